"""AdamW whose every computed step is taken, and whose masked step leaves all else as it was, bit for bit.

The arithmetic is torch's. Two things are added, in pieces of a parameter that fit the cache:

Weights in 16 bits. A step of 1e-5 on a weight of 0.02 is less than half the distance to the next bf16
number, so rounding would undo nearly every step. What rounding loses is kept beside the weight, in 16 bits
as well, and added before the next step (compensated, or Kahan, summation): weight + compensation carry 16
bits of mantissa. Moments are in fp32 whatever the weights are in: a second moment in bf16 stalls, since
0.999 v + 0.001 g² rounds to v.

A mask. A gradient of zero does not keep a weight: momentum and decay move it. The step is computed beside
the old values and put in place where the mask is 1; outside, weight, compensation and moments keep every
bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.optim.adamw import adamw

from utils.masks import unpack

PIECE = {"cpu": 1 << 18, "cuda": 1 << 26}  # weights at a time, a multiple of 64


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW, fused. compensated: keep what rounding loses of weights in 16 bits; else such
    weights and their moments are torch's own, in 16 bits (as the released code has them)."""

    def __init__(self, params, compensated: bool = True, **settings):
        super().__init__(params, fused=True, **settings)
        self.compensated = compensated
        self.memory: dict[tuple, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, masks: Mapping[torch.nn.Parameter, torch.Tensor] | None = None) -> None:
        """One step of every parameter that has a gradient.

        masks: {parameter: its mask, packed as utils.masks packs it}; a parameter without one takes the whole
        step.
        """
        whole = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mask = None if masks is None else masks.get(p)
                if mask is None and not self._in_pieces(p):
                    whole.append(p)
                else:
                    self._step_in_pieces(group, p, mask)
        if whole:
            self._step_whole({id(p) for p in whole})

    def _in_pieces(self, p: torch.Tensor) -> bool:
        return self.compensated and p.dtype is not torch.float32

    def _step_whole(self, chosen: set[int]) -> None:
        """torch's own step of some of the parameters."""
        groups = self.param_groups
        try:
            self.param_groups = [
                {**group, "params": [p for p in group["params"] if id(p) in chosen]} for group in groups
            ]
            super().step()
        finally:
            self.param_groups = groups

    def _state(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[p]
        if not state:
            kind = torch.float32 if self._in_pieces(p) else p.dtype
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(p, dtype=kind)
            if self._in_pieces(p):
                state["compensation"] = torch.zeros_like(p)
        return state

    def _step_in_pieces(self, group: dict, p: torch.Tensor, mask: torch.Tensor | None) -> None:
        state = self._state(p)
        step, lost = state["step"], state.get("compensation")
        beta1, beta2 = group["betas"]
        settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        for piece in _pieces(p):
            value, gradient = piece(p), piece(p.grad)
            moments = [piece(state["exp_avg"]), piece(state["exp_avg_sq"])]
            if lost is not None:
                new = self._scratch("value", value, torch.float32)
                new.add_(piece(lost))
                gradient = self._scratch("gradient", gradient, torch.float32)
            else:
                new = self._scratch("value", value, value.dtype)
            after = moments if mask is None else [self._scratch(k, m, m.dtype) for k, m in enumerate(moments)]
            adamw(
                [new], [gradient], *([m] for m in after), [], [step.clone()],
                fused=True, beta1=beta1, beta2=beta2, **settings,
            )  # fmt: skip
            found = {value: new}
            if lost is not None:
                rounded = self._scratch("rounded", new, value.dtype)
                found = {value: rounded, piece(lost): self._scratch("lost", new.sub_(rounded), value.dtype)}
            if mask is None:
                for old, number in found.items():
                    old.copy_(number)
            else:
                inside = piece.mask(mask)
                for old, number in [*found.items(), *zip(moments, after)]:
                    _put(number, old, inside)
        step += 1

    def _scratch(self, name: str | int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy of a piece in memory that is used again: fresh memory would cost more than the step."""
        key = name, like.device, dtype
        if key not in self.memory or self.memory[key].numel() < like.numel():
            self.memory[key] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return self.memory[key][: like.numel()].view(like.shape).copy_(like)

    def load_state_dict(self, state_dict: dict) -> None:
        """torch casts moments to their weights' precision; ours stay what they were."""
        super().load_state_dict(state_dict)
        order = [p for group in self.param_groups for p in group["params"]]
        for number, kept in state_dict["state"].items():
            p = order[number]
            if self._in_pieces(p):
                for name in ("exp_avg", "exp_avg_sq"):
                    self.state[p][name] = kept[name].to(p.device, copy=True)


def _put(new: torch.Tensor, old: torch.Tensor, inside: torch.Tensor) -> None:
    """old <- new where inside, on the bits themselves. `new` is spoilt."""
    kind = {4: torch.int32, 2: torch.int16}[old.element_size()]
    new, old = new.view(kind), old.view(kind)
    ones = inside.view(torch.int8).to(kind).neg_()  # all bits set where inside
    old.bitwise_xor_(new.bitwise_xor_(old).bitwise_and_(ones))


class _Piece:
    """A slice of a parameter, and of all that has its shape."""

    def __init__(self, start: int | None, stop: int | None, shape: torch.Size):
        self.start, self.stop, self.shape = start, stop, shape

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach() if self.start is None else tensor.detach().view(-1)[self.start : self.stop]

    def mask(self, bits: torch.Tensor) -> torch.Tensor:
        """Of a packed mask; pieces begin at whole bytes."""
        if self.start is None:
            return unpack(bits, self.shape)
        return unpack(bits[self.start // 8 : -(-self.stop // 8)], [self.stop - self.start])


def _pieces(p: torch.Tensor) -> Iterator[_Piece]:
    """A parameter in pieces; whole where its memory is in another order than its shape."""
    if not (p.is_contiguous() and p.grad.is_contiguous()):
        yield _Piece(None, None, p.shape)
        return
    size = PIECE.get(p.device.type, PIECE["cuda"])
    for start in range(0, p.numel(), size):
        yield _Piece(start, min(p.numel(), start + size), p.shape)

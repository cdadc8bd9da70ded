"""AdamW whose every computed step is taken, and whose masked step leaves all else as it was, bit for bit.

The arithmetic is torch's, in fp32. What is added works in pieces of a parameter that fit the cache:

Weights in 16 bits. A step of 1e-5 on a weight of 0.02 is less than half the distance to the next bf16
number, so rounding would undo nearly every step. What rounding loses is kept beside the weight, in 16 bits
as well, and added before the next step (compensated, or Kahan, summation): weight and compensation together
carry 16 bits of mantissa.

Moments in 16 bits. Rounded to the nearest, a second moment in bf16 stalls, since 0.999 v + 0.001 g² rounds to
v. It is rounded up or down at random instead, in proportion to the distances (stochastic rounding), which is
right on average.

Moments in 8 bits: utils/loop/eight_bit.py.

A mask. A gradient of zero does not keep a weight: momentum and decay move it. The step is computed beside
the old values and put in place where the mask is 1; outside, weight, compensation and moments keep every
bit. Moments in 8 bits do so in blocks that lie outside as a whole; elsewhere they are rounded anew, for the
scale of their block may change.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim.adamw import adamw

from utils.loop import eight_bit
from utils.loop.shards import local, span
from utils.masks import every_bit, pieces

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW, fused.

    moments: torch.float32, torch.bfloat16 with stochastic rounding, or eight_bit.DTYPE. compensated: keep
    what rounding loses of weights in 16 bits. False is torch's own: weights in 16 bits, and their moments,
    rounded to the nearest (as the released code has them).
    """

    def __init__(self, params, compensated: bool = True, moments=torch.float32, **settings):
        super().__init__(params, fused=True, **settings)
        self.compensated, self.moments = compensated, moments
        self.memory: dict[tuple, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, masks: Mapping[torch.nn.Parameter, torch.Tensor] | None = None) -> None:
        """One step of every parameter that has a gradient.

        masks: {parameter: its mask, packed as utils.masks packs it}; a parameter without one takes the whole
        step.
        """
        number = self.param_groups[0]["steps"] = self.param_groups[0].get("steps", 0) + 1
        whole = set()
        for group in self.param_groups:
            for place, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                mask = None if masks is None else masks.get(p)
                if mask is None and self._is_torchs(p):
                    whole.add(id(p))
                else:
                    # the same numbers are drawn after a stop, and whatever else draws some
                    self._step_in_pieces(group, p, mask, seed=number * 1_000_003 + place + span(p)[0])
        if whole:
            self._step_whole(whole)

    def _is_torchs(self, p: torch.Tensor) -> bool:
        """Whether torch's own step is right for a parameter."""
        return not self.compensated or p.dtype is self._moments(p) is torch.float32

    def _moments(self, p: torch.Tensor) -> torch.dtype:
        if not self.compensated:
            return p.dtype
        small = self.moments is eight_bit.DTYPE and not eight_bit.block_of(p.shape)
        return torch.float32 if small else self.moments

    def _step_whole(self, chosen: set[int]) -> None:
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
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            if (moments := self._moments(p)) is eight_bit.DTYPE:
                state |= eight_bit.empty_state(p, eight_bit.block_of(p.shape))
            else:
                state |= {name: torch.zeros_like(p, dtype=moments) for name in MOMENTS}
            if self.compensated and p.dtype is not torch.float32:
                state["compensation"] = torch.zeros_like(p)
        return state

    def _step_in_pieces(self, group: dict, p: torch.Tensor, mask: torch.Tensor | None, seed: int) -> None:
        state, block = self._state(p), 0
        if eight_bit.SCALES[MOMENTS[0]] in state:
            block = eight_bit.block_of(p.shape)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        exact = torch.float32 if self.compensated else p.dtype
        random = None
        if self.compensated and self.moments is torch.bfloat16:
            random = torch.Generator(p.device).manual_seed(seed)
        share, gradients = local(p), local(p.grad)
        state = {name: local(kept) for name, kept in state.items()}
        for piece in pieces(share, gradients, block or 1):
            olds = {"weight": piece(share)}
            news = {"weight": self._scratch("weight", olds["weight"], exact)}
            if block:
                coded = {name: eight_bit.Coded(name, state, piece, block) for name in MOMENTS}
                news |= {name: of.read(self._room(name, olds["weight"], exact)) for name, of in coded.items()}
            else:
                olds |= {name: piece(state[name]) for name in MOMENTS}
                news |= {name: self._scratch(name, olds[name], exact) for name in MOMENTS}
            if "compensation" in state:
                olds["compensation"] = piece(state["compensation"])
                news["weight"].add_(olds["compensation"])
            gradient = piece(gradients)
            if gradient.dtype is not exact:
                gradient = self._scratch("gradient", gradient, exact)
            adamw(
                [news["weight"]], [gradient], *([news[name]] for name in MOMENTS), [], [state["step"] - 1],
                fused=True, beta1=beta1, beta2=beta2, **settings,
            )  # fmt: skip
            if "compensation" in olds:
                rounded = self._scratch("rounded", news["weight"], p.dtype)
                news["compensation"] = news["weight"].sub_(rounded).to(p.dtype)
                news["weight"] = rounded
            if random is not None:
                news |= {name: _round_at_random(news[name], random) for name in MOMENTS}
            inside = None if mask is None else piece.mask(mask)
            if block:
                for name, of in coded.items():
                    of.write(news[name], inside, self._room("before", news[name], exact))
            for name, old in olds.items():
                _put(news[name], old, inside)

    def _scratch(self, name: str, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy of a piece in `_room`."""
        return self._room(name, like, dtype).copy_(like)

    def _room(self, name: str, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Memory for a piece that is used again: fresh memory would cost more than the step."""
        key = name, like.device, dtype
        if key not in self.memory or self.memory[key].numel() < like.numel():
            self.memory[key] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return self.memory[key][: like.numel()].view(like.shape)

    def state_dict(self) -> dict:
        """Of cut weights, also the state of those without a gradient so far, all 0: torch's checkpoints of
        them are read for every weight."""
        for p in (p for group in self.param_groups for p in group["params"]):
            if local(p) is not p:
                self._state(p)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """torch casts moments to their weights' precision; ours stay what they were."""
        super().load_state_dict(state_dict)
        # numbers or, in checkpoints of cut weights, names
        order = [key for group in state_dict["param_groups"] for key in group["params"]]
        for key, p in zip(order, (p for group in self.param_groups for p in group["params"])):
            kept = state_dict["state"].get(key, {})
            for name in kept.keys() & {*MOMENTS, *eight_bit.SCALES.values()}:
                self.state[p][name] = kept[name].to(p.device, copy=True)


def _round_at_random(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """fp32 -> bf16, up or down in proportion to the distances. `x` is spoilt."""
    bits = x.view(torch.int32)
    bits += torch.randint(0, 1 << 16, x.shape, generator=random, device=x.device, dtype=torch.int32)
    return bits.bitwise_and_(-1 << 16).view(torch.float32).to(torch.bfloat16)


def _put(new: torch.Tensor, old: torch.Tensor, inside: torch.Tensor | None) -> None:
    """old <- new, where inside: on the bits themselves, which is faster than torch.where. `new` is spoilt."""
    if inside is None:
        old.copy_(new)
        return
    bits = every_bit(inside, old)
    new, old = new.view(bits.dtype), old.view(bits.dtype)
    old.bitwise_xor_(new.bitwise_xor_(old).bitwise_and_(bits))

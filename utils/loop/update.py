"""What a run did to the weights: which share moved, and how much of that a 16-bit file keeps.

Both are easily lost without a word: a small step on a weight in bf16 rounds to nothing, in training and once
more on save. They are measured on every k-th weight, about a million in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from utils.loop.shards import local, span

MOST = 1 << 20  # weights looked at


class UpdateSample:
    """The chosen weights as they were, {name: (n,) in fp32}, and which of them have had a gradient.

    weights: {name: tensor} of what may change, not cut. whole: each of them gets a gradient (merged
    adapters). Where weights are cut over processes (FSDP2), each sees the gradients of its share until
    join().
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], whole: bool = False):
        self.stride = max(1, -(-sum(w.numel() for w in weights.values()) // MOST))
        self.start = {name: self._pick(w).to(torch.float32, copy=True) for name, w in weights.items()}
        self.seen = {name: torch.full_like(w, whole, dtype=torch.bool) for name, w in self.start.items()}
        self.cut = False

    def _pick(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().reshape(-1)[:: self.stride]

    def note_gradients(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Before a step: weights whose gradient is not 0 should move."""
        for name, seen in self.seen.items():
            if (gradient := parameters[name].grad) is None:
                continue
            first, last = span(gradient)
            share, places = local(gradient), slice(-(-first // self.stride), -(-last // self.stride))
            self.cut |= share is not gradient
            if seen.device != share.device:
                self.seen[name] = seen = seen.to(share.device)
            seen[places] |= self._pick(share.reshape(-1)[-first % self.stride :]) != 0

    def join(self) -> None:
        """Put together what the processes have seen: all have to call it."""
        if self.cut:
            for name, seen in self.seen.items():
                flags = seen.to(torch.uint8)
                torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
                self.seen[name] = flags.bool()

    def report(self, exact: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, Any]:
        """For run.json. exact: {name: tensor} as trained, in fp32. dtype: what they are saved in.

        {"weights_seen", "moved": share of those with a gradient, "saved_as", "kept": {"length", "cosine"}}:
        how long the update is after rounding, and how much in its direction, beside the exact one; None where
        nothing moved.
        """
        end = {name: self._pick(exact[name]).to(start) for name, start in self.start.items()}
        start, end = (torch.cat(list(of.values())) for of in (self.start, end))
        seen = torch.cat([seen.to(start.device) for seen in self.seen.values()])
        update, kept = end - start, end.to(dtype).float() - start
        moved = int(((update != 0) & seen).sum())
        length = float(update.norm())
        along = float(kept.norm()) * length
        return {
            "weights_seen": int(seen.sum()),
            "moved": round(moved / max(1, int(seen.sum())), 4),
            "saved_as": str(dtype).removeprefix("torch."),
            "kept": None
            if length == 0
            else {
                "length": round(float(kept.norm()) / length, 4),
                "cosine": round(float(kept @ update) / along, 4) if along else 0.0,
            },
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        self.join()
        return self.seen

    def load_state_dict(self, seen: dict[str, torch.Tensor]) -> None:
        for name, kept in seen.items():
            self.seen[name].copy_(kept)

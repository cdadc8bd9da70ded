"""Weights rounded to a few bits, for a model that is asked afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RoundToNearest:
    """Round-to-nearest of weights alone, asymmetric, as arXiv 2410.16454 rounds unlearned models.

    The weights of every linear layer but the head are cut, row by row, into groups of `group` inputs (0: a
    row is one group). Of each group the least and the largest weight become 0 and 2^bits - 1, those between
    the nearest whole number; what the layer computes with is made of these numbers. Activations, embeddings,
    norms and the head stay as they are.
    """

    bits: int
    group: int

    def __call__(self, model: PreTrainedModel) -> PreTrainedModel:
        import torch

        head = model.get_output_embeddings()
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                module.weight.data = self.rounded(module.weight.data)
        return model

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight (out, in) after rounding, in its own dtype."""
        import torch.nn.functional as F

        rows, size = weight.shape
        group = self.group or size
        padded = F.pad(weight.float(), (0, -size % group), mode="replicate")  # the last group may be short
        groups = padded.view(rows, -1, group)  # (out, groups, group)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        step = ((high - low) / (2**self.bits - 1)).clamp(min=1e-12)
        found = ((groups - low) / step).round() * step + low
        return found.view(rows, -1)[:, :size].to(weight.dtype)

"""A low-rank change that a mask bounds: ΔW = s · m ⊙ (B · A), in training and in what is merged.

Gradients of A and B under a mask would bound nothing: B · A is dense, whichever of their entries moved. Here
the product itself is masked, so outside the mask ΔW is 0 whatever A and B are.

In memory the mask stays packed, one bit per weight. ΔW, its unpacked mask (a byte per weight) and, in the
backward, ∂L/∂ΔW are as large as W, but exist for one layer at a time: nothing of that size is kept for the
backward, which computes ΔW again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from utils.masks import unpack


def masked_(dense: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """`dense` with zeros outside a packed mask of its shape, in place."""
    return dense.masked_fill_(~unpack(bits, dense.shape), 0)


class MaskedLowRank(torch.autograd.Function):
    """x (..., in), A (r, in), B (out, r), packed m of (out, in) -> x · (m ⊙ BA)ᵀ, (..., out) in x's
    precision; m ⊙ BA is computed in that of A and B."""

    @staticmethod
    def change(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return masked_(b @ a, bits).to(x.dtype)  # (out, in)

    @staticmethod
    def forward(ctx, x, a, b, bits):
        ctx.save_for_backward(x, a, b, bits)
        return F.linear(x, MaskedLowRank.change(x, a, b, bits))

    @staticmethod
    def backward(ctx, grad):
        x, a, b, bits = ctx.saved_tensors
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ MaskedLowRank.change(x, a, b, bits)
        if ctx.needs_input_grad[1]:
            dense = masked_(grad.flatten(0, -2).T @ x.flatten(0, -2), bits).to(a.dtype)  # (out, in)
            grad_a, grad_b = b.T @ dense, dense @ a.T
        return grad_x, grad_a, grad_b, None


class Masked:
    """What peft asks for the forward of an adapter that is not a plain one (its LoraVariant)."""

    def __init__(self, bits: torch.Tensor):
        self.bits = bits

    def forward(self, layer, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_) -> torch.Tensor:
        """The layer's result with the adapter's added."""
        self.bits = self.bits.to(x.device)  # no buffer of the layer: DDP would send it round at every step
        a, b = (side[active_adapter].weight for side in (layer.lora_A, layer.lora_B))
        x = layer.lora_dropout[active_adapter](x).to(result.dtype)
        return result + MaskedLowRank.apply(x, a, b, self.bits) * layer.scaling[active_adapter]

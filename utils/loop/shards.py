"""What a process holds of a weight that several processes share: under FSDP2 a weight, its gradient and its
optimizer state are DTensors, cut along their first dimension.

Elsewhere every process holds the whole, and these functions give back what they get.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's share, a view; a tensor that is not cut as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """[first, last): where this process's share lies in the flattened whole."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.numel()
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    row = tensor.shape[1:].numel()
    if shape[1:] != tuple(tensor.shape[1:]):
        raise ValueError(f"a weight of shape {list(tensor.shape)} is cut along more than its first dimension")
    return offset[0] * row, (offset[0] + shape[0]) * row


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, gathered: every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reshard(model: torch.nn.Module) -> None:
    """Let go of what a forward pass has gathered: until then the modules hold other parameters than the cut
    ones, and what is said of those, as whether they train, is lost."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_weights(
    parameters: Mapping[str, torch.Tensor], state: Mapping[torch.Tensor, dict], keep: bool
) -> dict[str, torch.Tensor]:
    """{name: whole weight in fp32 on the CPU, with what compensation holds of it}.

    state: the optimizer's, by parameter. keep: False for the processes that only take part; they get nothing.
    """
    found = {}
    for name, p in parameters.items():  # one after the other: a GPU holds one whole weight
        exact = p.detach().to(torch.float32)
        if "compensation" in state.get(p, {}):
            exact = exact + state[p]["compensation"].to(torch.float32)
        gathered = whole(exact)
        if keep:
            found[name] = gathered.to("cpu", copy=True)
    return found

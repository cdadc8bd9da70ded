"""Adapters (LoRA) in training: put beside frozen weights, trained, merged, saved.

Under a mask there are two, ΔW = s · m ⊙ (B_f · A_f) + s · B_r · A_r: forget steps train the first, retain
steps the second, so that what forgetting changed is 0 outside the mask whatever is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

    from utils.masks import Mask

FORGET = "forget"  # the adapter that forget steps train under a mask; peft calls the other one "default"


def add_lora(model: PreTrainedModel, targets: list[str], args, mask: Mask | None = None) -> PeftModel:
    """A peft model with the adapter of --lora_r, --lora_alpha, --lora_dropout (gaussian start, as in the
    paper's code) on the linear layers `targets`.

    mask: forget steps train a second adapter, FORGET, whose product the mask bounds
    (utils/adapters/masked.py), on the targets of which something is salient.
    """
    from peft import LoraConfig, get_peft_model

    from utils.adapters.masked import Masked

    config = partial(
        LoraConfig, r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout,
        init_lora_weights="gaussian",
    )  # fmt: skip
    adapted = get_peft_model(model, config(target_modules=targets))
    if mask is not None:
        reached = mask.only(weights_of(targets)).bits
        inside = [name.removesuffix(".weight") for name in reached]
        adapted.add_adapter(FORGET, config(target_modules=inside))
        for name in inside:
            adapted.get_base_model().get_submodule(name).lora_variant[FORGET] = Masked(
                reached[f"{name}.weight"]
            )
        adapted.base_model.set_adapter(["default", FORGET])
    return adapted


def weights_of(targets: list[str]) -> list[str]:
    return [f"{name}.weight" for name in targets]


def choose(parameters: Mapping[str, torch.nn.Parameter], forget: bool | None) -> None:
    """Of two adapters, train FORGET or the other one; what has no gradient the optimizer leaves alone, its
    moments, too. None: both, as it is between two steps, since what is kept is kept of what trains."""
    for name, p in parameters.items():
        if ".lora_" in name:
            p.requires_grad_(forget is None or name.endswith(f".{FORGET}.weight") == forget)


def save_adapter(adapted: PeftModel, base: str, folder: Path, dtype: torch.dtype) -> None:
    """Write the adapter alone, in peft's format. base: the model that it belongs to; a folder by its full
    path, since the adapter may be read from elsewhere."""
    from peft import get_peft_model_state_dict

    adapted.peft_config["default"].base_model_name_or_path = (
        str(Path(base).resolve()) if Path(base).is_dir() else base
    )
    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    weights = {name: w.to("cpu", dtype) for name, w in weights.items()}
    adapted.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)


def keep_adapters_alone(accelerator: Accelerator) -> None:
    """Let a kept training state hold the adapters without the frozen weights. (Under FSDP2 it holds all.)"""
    from safetensors.torch import load_file

    def save(_, weights: list[dict], folder: str) -> None:
        weights[:] = [{name: w for name, w in kept.items() if ".lora_" in name} for kept in weights]

    def load(adapted: list[PeftModel], folder: str) -> None:
        while adapted:  # what is left in the list would be loaded whole
            adapted.pop().load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def adapted_layers(adapted: PeftModel) -> dict[str, LoraLayer]:
    """{weight's name in the model: its layer} of the layers that have an adapter."""
    from peft.tuners.lora import LoraLayer

    modules = adapted.get_base_model().named_modules()
    return {f"{name}.weight": layer for name, layer in modules if isinstance(layer, LoraLayer)}


def merge(adapted: PeftModel, model: PreTrainedModel) -> None:
    """W <- W + s · B · A in a model in fp32 on the CPU, for all adapters of its layers; m ⊙ B · A for FORGET.

    Where nothing is added W keeps every bit, which −0 + 0 would not.
    """
    import torch

    from utils.adapters.masked import masked_

    weights = dict(model.named_parameters())
    for name, layer in adapted_layers(adapted).items():
        weight = weights[name].data
        for adapter in layer.lora_A:
            change = layer.get_delta_weight(adapter).detach().to(weight)  # (out, in)
            if adapter == FORGET:
                change = masked_(change, layer.lora_variant[FORGET].bits.to(change.device))
            weight.copy_(torch.where(change != 0, weight + change, weight))

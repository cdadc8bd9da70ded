"""Model families, loading, and the two parts of a model: vision and language.

A new family is one entry in FAMILIES. Parts are decided by module, never by a substring of a parameter's
name: in transformers 5 every name starts with `model.`, and the head lies outside the language model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import Problems

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

PARTS = ("vision", "language")


@dataclass(frozen=True)
class Family:
    """What differs between families: where the parts are, which tokens stand for pictures, how names looked
    before.

    old_names: (pattern, replacement) pairs that turn transformers 4 parameter names into today's.
    """

    title: str
    vision: tuple[str, ...]
    language: tuple[str, ...]
    image_tokens: tuple[str, ...]
    old_names: tuple[tuple[str, str], ...]


FAMILIES = {
    "llava": Family(
        title="LLaVA-1.5",
        vision=("model.vision_tower", "model.multi_modal_projector"),
        language=("model.language_model", "lm_head"),
        image_tokens=("<image>",),
        old_names=(
            (r"^language_model\.lm_head\.", "lm_head."),
            (r"^language_model\.model\.", "model.language_model."),
            (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
            (r"^multi_modal_projector\.", "model.multi_modal_projector."),
        ),
    ),
    "qwen2_vl": Family(
        title="Qwen2-VL",
        vision=("model.visual",),
        language=("model.language_model", "lm_head"),
        image_tokens=("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"),
        old_names=(
            (r"^visual\.", "model.visual."),
            (r"^model\.(?!visual\.|language_model\.)", "model.language_model."),
        ),
    ),
    "mllama": Family(
        title="Llama-3.2-Vision",
        vision=("model.vision_model", "model.multi_modal_projector"),
        language=("model.language_model", "lm_head"),
        image_tokens=("<|image|>",),
        old_names=(
            (r"^language_model\.lm_head\.", "lm_head."),
            (r"^language_model\.model\.", "model.language_model."),
            (r"^(vision_model|multi_modal_projector)\.", r"model.\1."),
        ),
    ),
}


# ---------------------------------------------------------------- before anything heavy is imported
def local_folder(name: str) -> Path | None:
    return Path(name) if Path(name).is_dir() else None


def check_model(name: str | None, flag: str, problems: Problems) -> None:
    """Add a problem unless `name` is a model folder of a known family, or looks like a Hugging Face id
    (`owner/name`)."""
    if not name:
        return
    folder = local_folder(name)
    if folder is None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists() or Path(name).parent.is_dir():
            problems.add(f"{flag}: no such model folder: {name}")
        return
    if not (folder / "config.json").is_file():
        problems.add(f"{flag}: {name} holds no config.json, so it is not a model folder")
        return
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except ValueError:
        problems.add(f"{flag}: {folder / 'config.json'} is not valid JSON")
        return
    if kind not in FAMILIES:
        problems.add(f"{flag}: {name} is a {kind} model; supported: {', '.join(FAMILIES)}")
    if not weight_files(folder):
        problems.add(f"{flag}: {name} holds no weights (*.safetensors)")


def weights_folder(name: str) -> Path:
    """The local folder of a model that has been loaded: itself, or the hub's cache of it."""
    if local_folder(name):
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, local_files_only=True))


def weight_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))


def check_processor(names: list[tuple[str, str | None]], problems: Problems) -> None:
    """Add a problem when all given (flag, model) pairs are folders and none of them holds a processor."""
    given = [(flag, local_folder(name)) for flag, name in names if name]
    if given and all(folder and not has_processor(folder) for _, folder in given):
        flags = " or ".join(dict.fromkeys(flag for flag, _ in names))
        problems.add(f"{flags}: no processor there (preprocessor_config.json or processor_config.json)")


# ---------------------------------------------------------------- loading
def pick_dtype(name: str) -> torch.dtype:
    """--dtype: auto is bf16 on a GPU and fp32 on the CPU."""
    import torch

    if name == "auto":
        name = "bf16" if torch.cuda.is_available() else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def load_model(name: str, dtype: str = "auto", attn: str = "sdpa") -> PreTrainedModel:
    """The model on the CPU. Raises SystemExit naming the model when it is not there or of an unknown
    family."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar a second for loading says nothing; ours show the work
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in FAMILIES:
            raise SystemExit(
                f"error: {name} is a {config.model_type} model; supported: {', '.join(FAMILIES)}"
            )
        return AutoModelForImageTextToText.from_pretrained(
            name, dtype=pick_dtype(dtype), attn_implementation=attn
        )
    except OSError as why:
        raise SystemExit(f"error: cannot load the model {name}: {str(why).splitlines()[0]}") from why


def load_processor(*names: str | None) -> ProcessorMixin:
    """The processor of the first of `names` that has one; the vanilla model's folder may hold none."""
    from transformers import AutoProcessor

    for name in filter(None, names):
        folder = local_folder(name)
        if folder is None or has_processor(folder):
            return AutoProcessor.from_pretrained(name)
    raise SystemExit(f"error: no processor in {' or '.join(filter(None, names))}")


def empty_model(name: str) -> PreTrainedModel:
    """The same architecture on the meta device: names and shapes of all weights, no memory, no weights
    read."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(name))


# ---------------------------------------------------------------- parts
def family_of(model: PreTrainedModel) -> Family:
    return FAMILIES[model.config.model_type]


def part_of_parameters(model: PreTrainedModel) -> dict[str, str]:
    """{parameter name: "vision" | "language"} for every parameter, in the model's order.

    A head tied to the embeddings appears once, under the embeddings' name. Raises ValueError for a parameter
    in neither part.
    """
    family, where = family_of(model), {}
    for part, paths in (("vision", family.vision), ("language", family.language)):
        for path in paths:
            where |= {id(parameter): part for parameter in model.get_submodule(path).parameters()}
    missing = [name for name, parameter in model.named_parameters() if id(parameter) not in where]
    if missing:
        raise ValueError(f"{family.title}: these weights belong to neither part: {', '.join(missing[:5])}")
    return {name: where[id(parameter)] for name, parameter in model.named_parameters()}


def lora_targets(model: PreTrainedModel, part: str) -> list[str]:
    """Full names of the linear layers that get an adapter; the head never does (16-bit heads do not merge
    exactly)."""
    import torch

    family = family_of(model)
    paths = {"vision": family.vision, "language": family.language, "both": family.vision + family.language}[
        part
    ]
    head = model.get_output_embeddings()
    return [
        f"{path}.{name}".rstrip(".")  # the path itself where it is a linear layer, as Mllama's projector
        for path in paths
        for name, module in model.get_submodule(path).named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]


def add_lora(model: PreTrainedModel, args):
    """A peft model with the adapter of --lora_r, --lora_alpha, --lora_dropout (gaussian start, as in the
    paper's code)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=lora_targets(model, args.lora_parts),
        init_lora_weights="gaussian",
    )
    return get_peft_model(model, config)

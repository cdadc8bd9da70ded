"""Folders of adapters (LoRA), and the model that one stands for.

An adapter folder holds peft's adapter_config.json, which names the model that the adapter belongs to (its
base, a folder or a Hugging Face id), and adapter_model.safetensors; --merge False writes one, and so does
peft elsewhere. Wherever a flag names a model, an adapter folder stands for its base with the adapter merged
in fp32. A base may be an adapter folder itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.run.ending import fail
from utils.run.jsonl import parse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from utils.run.ending import Problems

CONFIG, PREFIX = "adapter_config.json", "base_model.model."  # PREFIX: before every name in peft's files


# ---------------------------------------------------------------- folders, before anything heavy is imported
def is_adapter(name: str | Path) -> bool:
    return (Path(name) / CONFIG).is_file()


def _config(folder: str | Path) -> dict[str, Any]:
    """What adapter_config.json says; nothing where it cannot be read, which `check_adapter` tells."""
    try:
        content = parse((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def lineage(name: str) -> list[str]:
    """A model and what it is made of: an adapter folder, its base, and so on to a model that is none."""
    names = [name]
    while is_adapter(names[-1]):
        base = _config(names[-1]).get("base_model_name_or_path")
        if not base or base in names:
            break
        names.append(base)
    return names


def adapter_files(folder: Path) -> list[Path]:
    return sorted(
        p for p in (folder / "adapter_model.safetensors", folder / "adapter_model.bin") if p.is_file()
    )


def check_adapter(folder: Path, flag: str, problems: Problems) -> str | None:
    """The base of an adapter folder; None, and a problem, for one that cannot be merged."""
    config, add = _config(folder), lambda why: problems.add(f"{flag}: {folder}: {why}")
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    names = lineage(str(folder))
    if not config:
        add(f"{CONFIG} is not valid JSON")
    elif kind != "LORA":
        add(f"an adapter of the kind {kind}; only LoRA adapters are merged")
    elif not base:
        add(f"{CONFIG} names no base_model_name_or_path, the model that the adapter belongs to")
    elif is_adapter(names[-1]):
        add(f"it and its bases name each other: {', '.join(names)}")
    elif not adapter_files(folder):
        add("it holds no weights (adapter_model.safetensors)")
    else:
        return base
    return None


# ---------------------------------------------------------------- into a model
def with_adapter(model: PreTrainedModel, folder: str, today: Callable[[str], str]) -> PreTrainedModel:
    """A model in fp32 with the adapter of a folder added to its weights.

    today: the name that a parameter has now, for adapters written with transformers 4. Raises SystemExit for
    an adapter that does not fit the model.
    """
    import torch
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    try:
        config, written = PeftConfig.from_pretrained(folder), load_peft_weights(folder, device="cpu")
        weights = {PREFIX + today(name.removeprefix(PREFIX)): w for name, w in written.items()}
        # the modules that it has weights for, whatever names or patterns its configuration gives them
        config.target_modules = {name.partition(".lora_")[0].removeprefix(PREFIX) for name in weights}
        config.target_modules -= {name.removeprefix(PREFIX) for name in weights}
        config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
        config.alpha_pattern, config.rank_pattern = (
            {today(name): value for name, value in pattern.items()}
            for pattern in (config.alpha_pattern, config.rank_pattern)
        )
        with torch.random.fork_rng(devices=[]):  # peft draws a start, which is replaced
            adapted = get_peft_model(model, config)
        found = set_peft_model_state_dict(adapted, weights)
        missing = [name for name in found.missing_keys if ".lora_" in name]
        if missing or found.unexpected_keys:
            raise ValueError(
                f"{len(missing)} of its weights are missing, {len(found.unexpected_keys)} strange"
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as why:
        first = next(filter(None, map(str.strip, str(why).splitlines())), type(why).__name__)
        fail(f"the adapter {folder} cannot be merged into {lineage(folder)[1]}: {first}")
    return adapted.merge_and_unload().requires_grad_(True)

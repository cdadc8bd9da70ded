"""Whether a model and its processor can be loaded: asked of configuration and headers, before any weight."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from utils.adapters import stored
from utils.families import FAMILIES, UnknownParts, find_parts
from utils.reading.model_files import (
    SETTINGS,
    broken_file,
    has_processor,
    header,
    local_folder,
    missing_shards,
    processor_lacks,
    weight_files,
)
from utils.reading.weightless import empty_model, read_config, refusals
from utils.run import folders
from utils.run.ending import first_line
from utils.run.jsonl import parse

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from utils.run.ending import Problems


def check_model(name: str | None, flag: str, problems: Problems) -> None:
    """Add a problem unless `name` is a whole model folder that the suite can use, an adapter folder of one,
    or looks like a Hugging Face id (`owner/name`).

    A family outside FAMILIES is built without weights, to look for its parts; that imports torch.
    """
    if not name:
        return
    if not Path(name).exists() and Path(name).parent.is_dir():
        folders.recover(name)  # a kill in the midst of its publishing
    folder = local_folder(name)
    if folder is None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists() or Path(name).parent.is_dir():
            problems.add(f"{flag}: no such model folder: {name}")
        elif why := why_not_from_hub(name):
            problems.add(f"{flag}: {name} is no folder here, was not downloaded before, and {why}")
        return
    if stored.is_adapter(folder):
        base = stored.check_adapter(folder, flag, problems)
        check_model(base, f"{flag}: the base of {name}", problems)
        return
    if not (folder / "config.json").is_file():
        problems.add(f"{flag}: {name} holds no config.json, so it is not a model folder")
        return
    for file in (folder / name for name in SETTINGS if (folder / name).exists()):
        try:
            content = dict(parse(file.read_text(encoding="utf-8")))
            if file.name.endswith("index.json"):
                dict(content["weight_map"])
        except (ValueError, TypeError, KeyError, OSError):
            problems.add(f"{flag}: {file} is not valid JSON, or of another kind")
            return
    config = parse((folder / "config.json").read_text(encoding="utf-8"))
    if why := why_not(name, config):
        problems.add(f"{flag}: {name}: {why}")
    if not weight_files(folder):
        problems.add(f"{flag}: {name} holds no weights (model*.safetensors)")
    missing = missing_shards(folder)
    if missing:
        problems.add(f"{flag}: {name} is not whole: {', '.join(missing[:3])} missing; download it again")
    for file in weight_files(folder):
        if broken := broken_file(file):
            problems.add(f"{flag}: {file} {broken}; download it again")


def why_not(name: str, config: dict) -> str | None:
    """Why the suite cannot use a model of that configuration; None if it can."""
    return _why_not_from_json(config) or (_why_not_unlisted(name) if _is_unlisted(config) else None)


def _is_unlisted(config: dict) -> bool:
    """Whether a model's kind, or what one of a listed kind is made of, is none that the suite knows."""
    kind = config.get("model_type")
    made_of = (config.get("text_config") or {}).get("model_type")
    return kind not in FAMILIES or made_of not in (None, *FAMILIES[kind].made_of)


def _why_not_from_json(config: dict) -> str | None:
    """What the configuration file alone tells."""
    kind, classes = config.get("model_type"), config.get("architectures") or []
    if not isinstance(kind, str):
        return "its config.json names no model_type"
    kinds = {"text_config": dict, "vision_config": dict, "architectures": list}
    if wrong := [n for n, known in kinds.items() if not isinstance(config.get(n) or known(), known)]:
        return f"its config.json holds something else than it should under {', '.join(wrong)}"
    parts = (config, config.get("text_config") or {}, config.get("vision_config") or {})
    if any(part.get("quantization_config") for part in parts):  # it could not be saved again
        return "its weights are quantized; give the original, full-precision model"
    if kind in FAMILIES and classes and not any(str(c).endswith("ForConditionalGeneration") for c in classes):
        # e.g. the authors' own LLaVA-1.5, whose weights have other names
        title = FAMILIES[kind].title
        return f"it was written by other code ({classes[0]}); give the Hugging Face form of {title}"
    return None


@cache
def _hub_answers() -> bool:
    """Whether the hub can be reached; asked once, for some seconds, where its own client would try for
    minutes."""
    import urllib.error
    import urllib.request

    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return True  # an answer, whichever
    except (OSError, ValueError):  # URLError is an OSError
        return False
    return True


def why_not_from_hub(name: str) -> str | None:
    """Why a model of the hub cannot be had; None where the hub answers, or for one in its cache, which is
    then used as it is."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if not offline and _hub_answers():
        return None
    from huggingface_hub import constants, try_to_load_from_cache

    os.environ["HF_HUB_OFFLINE"] = "1"  # for worker processes
    constants.HF_HUB_OFFLINE = True
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return None
    return "HF_HUB_OFFLINE is set" if offline else "the Hugging Face hub does not answer"


def check_processor(names: list[tuple[str, str | None]], problems: Problems) -> list[str]:
    """Add a problem when all given (flag, model) pairs are folders and none of them, nor its base, holds a
    whole processor. Returns notes on those that are not whole and passed over."""
    given = [local_folder(model) for _, name in names if name for model in stored.lineage(name)]
    lacking = {folder: why for folder in given if folder and (why := processor_lacks(folder))}
    halves = [f"{folder} lacks {why}" for folder, why in lacking.items() if has_processor(folder)]
    if not given or len(lacking) < len(set(given)):
        return [f"no whole processor: {half}; the other model's is taken" for half in halves]
    flags = " or ".join(dict.fromkeys(flag for flag, _ in names))
    if halves:
        problems.add(f"{flags}: no whole processor: {'; '.join(halves)}")
    else:
        problems.add(f"{flags}: no processor there (preprocessor_config.json or processor_config.json)")
    return []


def check_shapes(name: str | None, flag: str, problems: Problems) -> list[str]:
    """Add a problem where the weights of a model folder are not those that its config.json describes, by the
    headers of its files: a wrong size would be allocated before it is refused. Returns notes.

    For folders that check_model has passed; files in torch's own format have no headers.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = local_folder(stored.lineage(name)[-1]) if name else None
    files = weight_files(folder) if folder else []
    if not files or any(file.suffix != ".safetensors" for file in files):
        return []
    if why := _why_no_size(read_config(str(folder)), sum(len(header(file)) for file in files)):
        problems.add(f"{flag}: {folder / 'config.json'} {why}")
        return []
    try:
        _, info = AutoModelForImageTextToText.from_pretrained(
            folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
        )
    except refusals() as why:
        problems.add(f"{flag}: {folder}: transformers cannot build it: {first_line(why)}")
        return []
    missing, strange = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if info["mismatched_keys"]:
        weight, held, expected = sorted(info["mismatched_keys"])[0]
        problems.add(
            f"{flag}: {folder}: {weight} has shape {list(held)} in its files and {list(expected)} by its"
            " config.json"
        )
    elif missing:
        problems.add(
            f"{flag}: {folder}: its files lack {len(missing)} of the model's weights, e.g. {missing[0]}"
        )
    elif strange:
        return [
            f"{folder} holds {len(strange)} tensors that its config.json has no place for, e.g. {strange[0]};"
            " they are left out"
        ]
    return []


def _why_no_size(config: PreTrainedConfig, tensors: int) -> str | None:
    """Why no model of these sizes is to be built; tensors: how many its files hold."""
    vision = getattr(config, "vision_config", None)
    for part in filter(None, (config, getattr(config, "text_config", None), vision)):
        for field in ("num_hidden_layers", "depth", "num_attention_heads", "num_heads"):
            number = getattr(part, field, None)
            if isinstance(number, int) and not 1 <= number <= max(tensors, 1024):
                return f"has {number} as {field}, and its files {tensors} tensors in all"
    layer, layers = getattr(config, "vision_feature_layer", None), getattr(vision, "num_hidden_layers", 0)
    if isinstance(layer, int) and not (1 <= layer <= layers or -layers - 1 <= layer <= -1):
        return f"takes pictures from layer {layer} (vision_feature_layer) of {layers}"
    return None


def _why_not_unlisted(name: str) -> str | None:
    """Why the suite cannot use a model outside FAMILIES, from its configuration alone; None if it can."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            known = ", ".join(FAMILIES)
            return f"a {config.model_type} model does not answer about pictures with text; tested: {known}"
        find_parts(empty_model(name))
    except UnknownParts as why:
        return f"a {config.model_type} model cannot be used: {why}; tested: {', '.join(FAMILIES)}"
    except refusals() as why:
        # unknown kinds, code of their own, missing packages, parts that do not fit together
        return f"transformers cannot build it: {first_line(why).split('. ')[0]}"
    return None

"""Model families, loading, and the two parts of a model: vision and language.

FAMILIES lists the families of the papers, with their quirks. Any other model that transformers loads as
image-text-to-text works too if its parts can be found (`find_parts`); else it is refused before its weights
load. Parts are decided by module, never by a substring of a parameter's name: in transformers 5 every name
starts with `model.`, and the head lies outside the language model.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from utils.adapters import stored
from utils.run import folders
from utils.run.ending import fail
from utils.run.jsonl import parse
from utils.run.screen import size, step

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

    from utils.cli import Problems

PARTS = ("vision", "language")


@dataclass(frozen=True)
class Family:
    """What differs between families: where the parts are, how names looked before.

    made_of: kinds of language model that need no closer look; any other is built without weights first.
    vision, language: paths of modules (or of single parameters, as LLaVA-NeXT's line-end embedding).
    projector: path of the module that makes of the tower's states what the language model reads; "" where it
    is not known.
    old_names: (pattern, replacement) pairs that turn transformers 4 parameter names into today's.
    head_knows_pictures: whether the head has a row for the picture tokens, so that they could be labels.
    prefix_generation: whether replies may be generated behind shared prefixes
    (eval/answering/shared_prefix.py): its text sees pictures as earlier tokens, whose positions may be
    two-dimensional (mrope), or by cross_attention.
    """

    title: str
    made_of: tuple[str, ...]
    vision: tuple[str, ...]
    language: tuple[str, ...]
    projector: str = ""
    old_names: tuple[tuple[str, str], ...] = ()
    head_knows_pictures: bool = True
    prefix_generation: bool = False
    mrope: bool = False
    cross_attention: bool = False


QWEN_OLD_NAMES = (
    (r"^visual\.", "model.visual."),
    (r"^model\.(?!visual\.|language_model\.)", "model.language_model."),
)
FAMILIES = {
    "llava": Family(
        title="LLaVA-1.5",
        made_of=("llama", "mistral", "qwen2"),
        vision=("model.vision_tower", "model.multi_modal_projector"),
        language=("model.language_model", "lm_head"),
        projector="model.multi_modal_projector",
        old_names=(
            (r"^language_model\.lm_head\.", "lm_head."),
            (r"^language_model\.model\.", "model.language_model."),
            (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
            (r"^multi_modal_projector\.", "model.multi_modal_projector."),
        ),
        prefix_generation=True,
    ),
    "qwen2_vl": Family(
        title="Qwen2-VL",
        made_of=("qwen2_vl_text",),
        vision=("model.visual",),
        language=("model.language_model", "lm_head"),
        projector="model.visual.merger",
        old_names=QWEN_OLD_NAMES,
        prefix_generation=True,
        mrope=True,
    ),
    "qwen2_5_vl": Family(
        title="Qwen2.5-VL",
        made_of=("qwen2_5_vl_text",),
        vision=("model.visual",),
        language=("model.language_model", "lm_head"),
        projector="model.visual.merger",
        old_names=QWEN_OLD_NAMES,
        prefix_generation=True,
        mrope=True,
    ),
    "qwen3_vl": Family(  # its transformers 4 names are today's
        title="Qwen3-VL",
        made_of=("qwen3_vl_text",),
        vision=("model.visual",),
        language=("model.language_model", "lm_head"),
        projector="model.visual.merger",
        prefix_generation=True,
        mrope=True,
    ),
    "mllama": Family(
        title="Llama-3.2-Vision",
        made_of=("mllama_text_model",),
        vision=("model.vision_model", "model.multi_modal_projector"),
        language=("model.language_model", "lm_head"),
        projector="model.multi_modal_projector",
        old_names=(
            (r"^language_model\.lm_head\.", "lm_head."),
            (r"^language_model\.model\.", "model.language_model."),
            (r"^(vision_model|multi_modal_projector)\.", r"model.\1."),
        ),
        head_knows_pictures=False,
        prefix_generation=True,
        cross_attention=True,
    ),
}


def today(name: str, model_type: str) -> str:
    """A transformers 4 parameter name as transformers 5 writes it; other names, and kinds, as they are."""
    for pattern, new in FAMILIES[model_type].old_names if model_type in FAMILIES else ():
        renamed = re.sub(pattern, new, name)
        if renamed != name:
            return renamed
    return name


# ---------------------------------------------------------------- before anything heavy is imported
def local_folder(name: str) -> Path | None:
    return Path(name) if Path(name).is_dir() else None


# what transformers reads of a model's folder, or passes over where it cannot
SETTINGS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip


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
    why = _why_not_from_json(config) or (why_not(name) if _is_unlisted(config) else None)
    if why:
        problems.add(f"{flag}: {name}: {why}")
    if not weight_files(folder):
        problems.add(f"{flag}: {name} holds no weights (model*.safetensors)")
    missing = missing_shards(folder)
    if missing:
        problems.add(f"{flag}: {name} is not whole: {', '.join(missing[:3])} missing; download it again")
    for file in weight_files(folder):
        if broken := broken_file(file):
            problems.add(f"{flag}: {file} {broken}; download it again")


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
    if "quantization_config" in config:
        return "its weights are quantized; give the original, full-precision model"
    if kind in FAMILIES and classes and not any(str(c).endswith("ForConditionalGeneration") for c in classes):
        # e.g. the authors' own LLaVA-1.5, whose weights have other names
        title = FAMILIES[kind].title
        return f"it was written by other code ({classes[0]}); give the Hugging Face form of {title}"
    return None


def weights_folder(name: str) -> Path:
    """The local folder of a model that has been loaded: itself, or the hub's cache of it."""
    if local_folder(name):
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, local_files_only=True))


def weight_files(folder: Path) -> list[Path]:
    """The model's own files: not an optimizer's, nor another program's copy of the same weights. Those of an
    adapter, its configuration among them, come with those of its base."""
    if stored.is_adapter(folder):
        bases = [Path(base) for base in stored.lineage(str(folder))[1:2] if local_folder(base)]
        own = [folder / stored.CONFIG, *stored.adapter_files(folder)]
        return own + [file for base in bases for file in weight_files(base)]
    return sorted([*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")])


def missing_shards(folder: Path) -> list[str]:
    """Files that the index of a model in pieces names and that are not there."""
    for whole in ("model.safetensors", "pytorch_model.bin"):  # in the order in which transformers looks
        index = folder / f"{whole}.index.json"
        if (folder / whole).is_file():
            return []
        if index.is_file():
            names = set(parse(index.read_text(encoding="utf-8"))["weight_map"].values())
            return sorted(name for name in names if not (folder / name).is_file())
    return []


def broken_file(path: Path) -> str | None:
    """What is wrong with a file of weights, from its head and its size; None for a whole one."""
    if not path.is_file():
        return "is no file"
    with path.open("rb") as file:
        head = file.read(8)
        if head == b"version ":
            return "is a git-lfs pointer, not the weights (git lfs pull)"
        if path.suffix == ".bin":
            return None if head[:2] in (b"PK", b"\x80\x02") else "is no file of weights"
        size, length = path.stat().st_size, int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= size - 8:
            return "is cut short, or no file of weights"
    try:
        end = max((tensor["data_offsets"][1] for tensor in header(path).values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "has a header that cannot be read"
    return None if 8 + length + end == size else f"has {size:,} bytes, not {8 + length + end:,}"


def header(path: Path) -> dict[str, dict]:
    """{tensor: dtype, shape and place} of a whole safetensors file."""
    with path.open("rb") as file:
        tensors = parse(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tensor for name, tensor in tensors.items() if name != "__metadata__"}


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


def has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))


VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")


def processor_lacks(folder: Path) -> str | None:
    """Which of a processor's files are not in the folder, whose processor is then not whole."""
    settings = [folder / name for name in ("tokenizer_config.json", "processor_config.json")]
    template = any(folder.glob("chat_template.*")) or any(
        '"chat_template"' in file.read_text(encoding="utf-8", errors="replace")
        for file in settings
        if file.is_file()
    )
    there = {
        "preprocessor_config.json": has_processor(folder),
        "tokenizer.json": any(found for name in VOCABULARIES for found in folder.glob(name)),
        "chat_template.jinja": template,
    }
    return " and ".join(name for name, found in there.items() if not found) or None


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


# ---------------------------------------------------------------- loading
def pick_dtype(name: str) -> torch.dtype:
    """The precision that a flag names; of --dtype, the weights': auto is bf16 on a GPU, fp32 on the CPU."""
    import torch

    if name == "auto":
        name = "bf16" if torch.cuda.is_available() else "fp32"
    fp32 = torch.float32
    known = {"fp32": fp32, "mixed": fp32, "bf16": torch.bfloat16, "fp16": torch.float16, "8bit": torch.uint8}
    return known[name]


def stored_dtype(name: str) -> str | None:
    """The precision of a local model's files by its config.json, e.g. "float16", fp32 of a merged adapter;
    None where that is not said."""
    folder = local_folder(name)
    if stored.is_adapter(name):
        return "float32"
    config = parse((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    return config.get("dtype") or config.get("torch_dtype")


def rounds(name: str, dtype: str) -> bool:
    """Whether loading a local model by --dtype rounds weights in fp32."""
    return stored_dtype(name) == "float32" and pick_dtype(dtype) is not pick_dtype("fp32")


def training_dtype(args) -> str:
    """--dtype of a training script. auto on a GPU: mixed where all weights train, since steps are lost in
    bf16; bf16 under an adapter, which is in fp32 itself."""
    import torch

    if args.dtype == "auto" and torch.cuda.is_available():
        return "bf16" if args.lora else "mixed"
    return args.dtype


def autocast(dtype: str):
    """The context of a forward by --dtype: arithmetic in bf16 where it is mixed."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "mixed")


def load_model(
    name: str,
    dtype: str = "auto",
    attn: str = "sdpa",
    processor: ProcessorMixin | None = None,
    quantize: str = "none",
) -> PreTrainedModel:
    """The model on the CPU (quantized: on the GPU, if there is one), an adapter merged.

    Raises SystemExit naming the model when it is not there, of no use, not whole, or when its weights are no
    numbers, or no embeddings for all tokens of the processor.
    """
    if stored.is_adapter(name):
        model = _load_adapter(name, dtype, attn)
    else:
        step(f"loading {name}{_size_text(name)}")
        model = _load_whole(name, dtype, attn, quantize)
    tokens, rows = len(processor.tokenizer) if processor else 0, len(model.get_input_embeddings().weight)
    if tokens > rows:
        fail(f"{name} has embeddings for {rows} tokens, its tokenizer has {tokens}")
    if broken := not_finite(model):  # its empty replies would look like perfect forgetting
        fail(
            f"{name}: NaN or infinity in {len(broken)} of its weight tensors, e.g. {broken[0]}: its"
            " training went wrong; train it again with a lower --lr"
        )
    return model


def _size_text(name: str) -> str:
    """How large a local model's files are, where reading them takes a while."""
    folder = local_folder(name)
    there = sum(file.stat().st_size for file in weight_files(folder)) if folder else 0
    return f", {size(there)}" if there > 1e8 else ""


def _load_adapter(folder: str, dtype: str, attn: str) -> PreTrainedModel:
    """The base with the adapter merged in fp32, then in the precision asked for."""
    model = load_model(stored.lineage(folder)[1], "fp32", attn)
    model = stored.with_adapter(model, folder, lambda name: today(name, model.config.model_type))
    for p in model.parameters():  # not the buffers, some of which are in fp32 in all models
        p.data = p.data.to(pick_dtype(dtype))
    return model


def _load_whole(name: str, dtype: str, attn: str, quantize: str) -> PreTrainedModel:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig
    from transformers.utils import logging

    options = {}
    if quantize == "4bit":  # as QLoRA has it (arXiv 2305.14314): NF4, its scales quantized, too
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "mixed" else pick_dtype(dtype),
        )  # fmt: skip
    logging.disable_progress_bar()  # one bar a second for loading says nothing; ours show the work
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if local_folder(name) is None:  # a local model was checked with the other input
            fields = config.to_dict()
            why = _why_not_from_json(fields) or (why_not(name) if _is_unlisted(fields) else None)
            if why:
                fail(f"{name}: {why}")
        model, info = AutoModelForImageTextToText.from_pretrained(
            name, dtype=pick_dtype(dtype), attn_implementation=attn, output_loading_info=True,
            ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    except (OSError, ValueError, SafetensorError, ImportError, StrictDataclassError) as why:
        if "scaled_dot_product_attention yet" in str(why):
            fail(f"--attn {attn}: {name} has an attention of its own; give --attn eager")
        fail(f"cannot load the model {name}: {first_line(why)}")
    if info["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = sorted(info["missing_keys"])
        fail(f"the files of {name} lack {len(missing)} of the model's weights, e.g. {missing[0]}")
    if info["mismatched_keys"]:  # the same
        weight, held, expected = sorted(info["mismatched_keys"])[0]
        fail(
            f"{name}: {weight} has shape {list(held)} in its files and {list(expected)} by its config.json"
        )
    if quantize == "4bit":
        for module in model.modules():  # some CPUs' format for inference, which a forward in eval mode takes
            module.support_avx512bf16_for_cpu = False  # on, has no backward
    return model


def not_finite(model: PreTrainedModel) -> list[str]:
    """Names of the parameters that hold NaN or infinity, which a sum shows at the price of reading them."""
    import torch

    return [
        name
        for name, p in model.named_parameters()
        if not (torch.isfinite(p.detach().sum(dtype=torch.float32)) or torch.isfinite(p).all())
    ]


def refusals() -> tuple[type[Exception], ...]:
    """What transformers raises on files that it cannot take, or that do not belong together."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (
        OSError, ValueError, ImportError, AttributeError, LookupError, TypeError, RuntimeError,
        ArithmeticError, StrictDataclassError, SafetensorError,
    )  # fmt: skip


def read_config(name: str) -> PreTrainedConfig:
    """The configuration of a model, or of the base of an adapter. Raises SystemExit, naming it, for a
    config.json that transformers refuses."""
    from transformers import AutoConfig

    whole = stored.lineage(name)[-1]
    try:
        return AutoConfig.from_pretrained(whole, trust_remote_code=False)
    except refusals() as why:
        fail(f"the config.json of {whole}: {first_line(why)}")


def load_processor(*names: str | None) -> ProcessorMixin:
    """The processor of the first of `names` that has a whole one; the vanilla model's folder may hold none,
    or a part.

    Raises SystemExit where it has no chat template, or one whose answers cannot be found.
    """
    from jinja2 import TemplateError
    from transformers import AutoProcessor, ProcessorMixin

    from utils.collate import Chat

    found = [model for given in filter(None, names) for model in stored.lineage(given)]
    found = [n for n in found if local_folder(n) is None or has_processor(Path(n))]
    for name in [n for n in found if local_folder(n) is None or not processor_lacks(Path(n))] or found:
        try:
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        except Exception as why:
            # a missing package or file, files that do not belong together; tokenizers raises the bare class
            if not isinstance(why, refusals()) and type(why) is not Exception:
                raise
            fail(f"the processor of {name} cannot be loaded: {first_line(why)}")
        try:
            if not isinstance(processor, ProcessorMixin):
                raise ValueError("it does not read pictures and text together")
            _complete(processor, name)
            _pad(processor.tokenizer)
            Chat(processor)
        except (*refusals(), TemplateError) as why:
            fail(f"the processor of {name}: {first_line(why)}")
        return processor
    fail(f"no processor in {' or '.join(filter(None, names))}")


def _complete(processor: ProcessorMixin, name: str) -> None:
    """LLaVA processors written before transformers 4.47 lack the numbers by which they repeat <image>; the
    model's configuration knows them."""
    from transformers import LlavaNextProcessor, LlavaProcessor

    if not isinstance(processor, LlavaProcessor | LlavaNextProcessor):
        return
    config = read_config(name)
    if config.vision_config.model_type == "clip_vision_model":
        processor.patch_size = config.vision_config.patch_size
        processor.num_additional_image_tokens = 1  # CLIP's class token
        # ViP-LLaVA's configuration has no such field: it always drops the class token
        strategy = config.to_dict().get("vision_feature_select_strategy", "default")
        processor.vision_feature_select_strategy = strategy


def _pad(tokenizer) -> None:
    """A tokenizer without a padding token gets its end-of-text token for one: padding is known by the
    attention mask, here never by its id."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError("its tokenizer has neither a padding token nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token


def empty_model(name: str) -> PreTrainedModel:
    """The same architecture on the meta device: names and shapes of all weights, no memory, no weights
    read."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(read_config(name))


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


def hollow(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same configuration on the meta device."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        copy = AutoModelForImageTextToText.from_config(model.config)
    copy.generation_config = model.generation_config
    return copy


# ---------------------------------------------------------------- parts
class UnknownParts(ValueError):
    """A model whose vision and language parts cannot be told apart; the message says why."""


def family_of(model: PreTrainedModel) -> Family:
    """The entry of FAMILIES, or what `find_parts` finds."""
    return FAMILIES.get(model.config.model_type) or find_parts(model)


def find_parts(model: PreTrainedModel) -> Family:
    """The parts of a family that the table does not know, by what transformers says of its modules.

    language: the decoder, the embeddings and the head; vision: an image tower, and everything else that is
    not text (projector, resampler, line-end embeddings). Raises UnknownParts for any other kind of model.
    """
    path = {id(module): name for name, module in model.named_modules()}
    whole = (model, model.base_model)  # what transformers answers where there is no such module
    tower, decoder = model.get_encoder(modality="image"), model.get_decoder()
    head = model.get_output_embeddings()
    if model.config.is_encoder_decoder:
        raise UnknownParts("it is an encoder-decoder; prompts and answers must be one sequence here")
    if tower is None or tower in whole:
        raise UnknownParts("no image tower is found in it")
    if model.get_encoder(modality="audio") not in (None, *whole):
        raise UnknownParts("it has an audio tower; only pictures and text are handled")
    if decoder in whole or head is None:
        raise UnknownParts("no language model with an output head of its own is found in it")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise UnknownParts("its forward has no logits_to_keep")
    text = [decoder, *(m for m in (model.get_input_embeddings(), head) if m not in set(decoder.modules()))]
    inside = {id(p) for module in text for p in module.parameters()}
    if not inside.isdisjoint(map(id, tower.parameters())):
        raise UnknownParts("its image tower and its language model share weights")
    vision = tuple(_outside(model, inside))
    modules = dict(model.named_modules())
    beside = [p for p in vision if p in modules and tower not in set(modules[p].modules())]
    return Family(
        title=model.config.model_type,
        made_of=(model.config.get_text_config().model_type,),
        vision=vision,
        language=tuple(dict.fromkeys(path[id(module)] for module in text)),
        projector=beside[0] if len(beside) == 1 else "",
        head_knows_pictures=len(head.weight) >= len(model.get_input_embeddings().weight),
    )


def _outside(module: torch.nn.Module, inside: set[int], path: str = "") -> Iterator[str]:
    """Paths of the largest modules, and of single parameters, that hold nothing of `inside` (ids)."""
    for name, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in inside:
            yield path + name
    for name, child in module.named_children():
        ids = {id(p) for p in child.parameters()}
        if ids and ids.isdisjoint(inside):
            yield path + name
        elif ids:
            yield from _outside(child, inside, f"{path}{name}.")


def why_not(name: str) -> str | None:
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


def first_line(why: Exception) -> str:
    """What an exception of transformers says, in one line."""
    return next(filter(None, map(str.strip, str(why).splitlines())), type(why).__name__)


def part_of_parameters(model: PreTrainedModel) -> dict[str, str]:
    """{parameter name: "vision" | "language"} for every parameter, in the model's order.

    A head tied to the embeddings appears once, under the embeddings' name. Raises ValueError for a parameter
    in neither part.
    """
    family = family_of(model)
    parts = {name: part_of(name, family) for name, _ in model.named_parameters()}
    missing = [name for name, part in parts.items() if part is None]
    if missing:
        raise ValueError(f"{family.title}: these weights belong to neither part: {', '.join(missing[:5])}")
    return parts


def part_of(name: str, family: Family) -> str | None:
    """The part that a module's or a parameter's full name lies in, None for neither."""
    for part in PARTS:
        if any(name == path or name.startswith(f"{path}.") for path in getattr(family, part)):
            return part
    return None


def lora_targets(model: PreTrainedModel, part: str) -> list[str]:
    """Full names of the linear layers that get an adapter; the head never does (16-bit heads do not merge
    exactly)."""
    import torch

    family, head = family_of(model), model.get_output_embeddings()
    wanted = PARTS if part == "both" else (part,)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and part_of(name, family) in wanted
    ]

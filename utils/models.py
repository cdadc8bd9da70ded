"""Loading a model and its processor, in the precision asked for, or saying in one line why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.adapters import stored
from utils.families import today
from utils.planning.loadable import why_not
from utils.reading.model_files import has_processor, local_folder, processor_lacks, weight_files
from utils.reading.weightless import read_config, refusals
from utils.run.ending import fail, first_line
from utils.run.jsonl import parse
from utils.run.screen import size, step

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin


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
        # a local model was checked with the other input
        if local_folder(name) is None and (why := why_not(name, config.to_dict())):
            fail(f"{name}: {why}")
        model, info = AutoModelForImageTextToText.from_pretrained(
            name, dtype=pick_dtype(dtype), attn_implementation=attn, output_loading_info=True,
            ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    except (OSError, ValueError, SafetensorError, ImportError, StrictDataclassError) as why:
        if "scaled_dot_product_attention yet" in str(why):
            fail(f"--attn {attn}: {name} has an attention of its own; give --attn eager")
        fail(f"cannot load the model {name}: {first_line(why)}")
    _tell_whether_tied(model)
    if info["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = sorted(info["missing_keys"])
        fail(f"the files of {name} lack {len(missing)} of the model's weights, e.g. {missing[0]}")
    if info["mismatched_keys"]:  # the same
        weight, held, expected = sorted(info["mismatched_keys"])[0]
        fail(f"{name}: {weight} has shape {list(held)} in its files and {list(expected)} by its config.json")
    if quantize == "4bit":
        for module in model.modules():  # some CPUs' format for inference, which a forward in eval mode takes
            module.support_avx512bf16_for_cpu = False  # on, has no backward
    return model


def _tell_whether_tied(model: PreTrainedModel) -> None:
    """Files may hold another head than the embeddings though config.json says that they are one: what is
    loaded counts, also for whoever makes a model of that configuration."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        for config in (model.config, model.config.get_text_config()):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False


def not_finite(model: PreTrainedModel) -> list[str]:
    """Names of the parameters that hold NaN or infinity, which a sum shows at the price of reading them."""
    import torch

    return [
        name
        for name, p in model.named_parameters()
        if not (torch.isfinite(p.detach().sum(dtype=torch.float32)) or torch.isfinite(p).all())
    ]


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

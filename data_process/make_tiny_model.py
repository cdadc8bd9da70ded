"""Write a randomly initialised tiny multimodal model with its processor, to dry-run the suite on real data.

    python data_process/make_tiny_model.py --family llava --text data/MLLMU-Bench --save_dir runs/tiny/llava
    python data_process/make_tiny_model.py --family qwen2_vl --text data/MLLMU-Bench --save_dir runs/tiny/qwen
    python data_process/make_tiny_model.py --family mllama --text data/CLEAR --save_dir runs/tiny/mllama

The classes, module names, special tokens and prompt form are those of LLaVA-1.5, Qwen2-VL-Instruct and
Llama-3.2-Vision-Instruct; only the sizes are small and the weights random. The tokenizer is trained here on
the text of the given tables (.parquet, or the .arrow files of `save_to_disk`; pictures are never read), so
nothing is downloaded. The folder loads with AutoModelForImageTextToText.from_pretrained and
AutoProcessor.from_pretrained. Such a model knows nothing: it shows in minutes on a CPU that commands, data,
masks and checkpoints work, before a 7B model is paid for; it does not show how well a method unlearns.

`train_tokenizer`, `build_model`, `build_processor` and `save` are also used by make_nano.py and the tests.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli

if TYPE_CHECKING:
    from argparse import Namespace

    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

FAMILIES = ("llava", "qwen2_vl", "mllama")

# Prompt forms. `{% generation %}` marks the tokens of return_assistant_tokens_mask and renders to nothing.
LLAVA_TEMPLATE = """\
{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor -%}
{%- for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ parts(message['content']) + ' ' }}
{%- elif message['role'] == 'assistant' -%}
{{ 'ASSISTANT: ' }}{% generation %}{{ parts(message['content']) + ' ' }}{% endgeneration %}
{%- else -%}
{{ 'USER: ' + parts(message['content']) + ' ' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

QWEN2_VL_TEMPLATE = """\
{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ parts(message['content']) + '<|im_end|>' }}{% endgeneration %}
{%- else -%}
{{ parts(message['content']) + '<|im_end|>' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

MLLAMA_TEMPLATE = """\
{%- macro parts(content) -%}
{%- if content is string -%}{{ content | trim }}{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{ '<|image|>' }}{%- else -%}{{ part['text'] | trim }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ parts(message['content']) + '<|eot_id|>' }}{% endgeneration %}
{%- else -%}
{{ parts(message['content']) + '<|eot_id|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

TEMPLATES = {"llava": LLAVA_TEMPLATE, "qwen2_vl": QWEN2_VL_TEMPLATE, "mllama": MLLAMA_TEMPLATE}

# In the order of the real tokenizers. LLaVA's <unk>, <s>, </s> open the vocabulary; these close it.
LLAVA_SPECIALS = ["<image>", "<pad>"]
QWEN2_VL_SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
MLLAMA_SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
]
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")


@dataclass(frozen=True)
class Size:
    """Sizes of a tiny model. Pictures in pixels, widths in units, depths in layers."""

    image_size: int = 64
    patch_size: int = 16
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    vision_hidden_size: int = 96
    vision_layers: int = 3
    vision_heads: int = 3
    vision_feature_layer: int = -2  # LLaVA only; -2 as in LLaVA-1.5

    @property
    def intermediate_size(self) -> int:
        return self.hidden_size * 2

    @property
    def vision_intermediate_size(self) -> int:
        return self.vision_hidden_size * 2

    def mistakes(self, family: str) -> list[str]:
        """What does not fit together, as messages that name the flag; empty when all is well."""
        found = []
        merged = self.patch_size * (2 if family == "qwen2_vl" else 1)
        if self.image_size % merged:
            found.append(
                f"--image_size: {self.image_size} is not a multiple of {merged}; change it or --patch_size"
            )
        if self.hidden_size % (self.heads * 8):
            found.append(
                f"--hidden_size: {self.hidden_size} is not a multiple of 8 * --heads ({self.heads * 8})"
            )
        if self.vision_hidden_size % (self.vision_heads * 8):
            found.append(
                f"--vision_hidden_size: {self.vision_hidden_size} is not a multiple of "
                f"8 * --vision_heads ({self.vision_heads * 8})"
            )
        if self.layers < 2 or self.vision_layers < 2:
            found.append(
                "--layers and --vision_layers: at least 2 (features are taken before the last vision layer)"
            )
        return found


def parse_args(argv: list[str] | None = None) -> Namespace:
    p = cli.parser(__doc__)
    p.add_argument(
        "--family",
        required=True,
        type=cli.choice(*FAMILIES),
        help=f"model family: one of {', '.join(FAMILIES)}",
    )
    p.add_argument(
        "--text",
        required=True,
        nargs="+",
        type=Path,
        help=".parquet or .arrow tables, or folders searched for them, whose text trains the tokenizer",
    )
    p.add_argument("--save_dir", required=True, type=Path, help="folder to write; must not hold a model yet")
    g = p.add_argument_group("sizes")
    whole = cli.number(int, 1)
    g.add_argument(
        "--image_size", type=whole, default=64, help="side to which pictures are resized, pixels; default 64"
    )
    g.add_argument(
        "--patch_size",
        type=whole,
        help="side of a vision patch, pixels; default 16, and 8 for qwen2_vl, which merges 2x2",
    )
    g.add_argument("--hidden_size", type=whole, default=128, help="width of the language model; default 128")
    g.add_argument("--layers", type=whole, default=4, help="layers of the language model; default 4")
    g.add_argument("--heads", type=whole, default=4, help="attention heads of the language model; default 4")
    g.add_argument(
        "--vision_hidden_size", type=whole, default=96, help="width of the vision tower; default 96"
    )
    g.add_argument("--vision_layers", type=whole, default=3, help="layers of the vision tower; default 3")
    g.add_argument(
        "--vision_heads", type=whole, default=3, help="attention heads of the vision tower; default 3"
    )
    g.add_argument(
        "--vocab_size",
        type=cli.number(int, 400),
        default=4096,
        help="most tokens that the tokenizer may have; default 4096",
    )
    p.add_argument("--seed", type=cli.number(int, 0), default=0, help="seed of the random weights; default 0")
    args = cli.parse(p, argv)
    args.patch_size = args.patch_size or (8 if args.family == "qwen2_vl" else 16)
    args.size = Size(
        **{field.name: getattr(args, field.name) for field in fields(Size) if field.name in args}
    )
    for mistake in args.size.mistakes(args.family):
        args.problems.add(mistake)
    for path in args.text or []:
        if not path.exists():
            args.problems.add(
                f"--text: {path} does not exist; give the folder of a benchmark or single .parquet files"
            )
    if args.save_dir and (args.save_dir / "config.json").exists():
        args.problems.add(
            f"--save_dir: {args.save_dir} already holds a model; choose another folder or remove it"
        )
    args.problems.stop()
    return args


def tables(paths: Iterable[Path]) -> list[Path]:
    """The .parquet and .arrow files named by or in `paths`, sorted. FileNotFoundError if a path has none."""
    files: list[Path] = []
    for path in paths:
        found = (
            [path]
            if path.is_file()
            else sorted(f for f in path.rglob("*") if f.suffix in (".parquet", ".arrow"))
        )
        if not found:
            raise FileNotFoundError(
                f"--text {path}: no such table, or a folder without .parquet or .arrow files"
            )
        files += found
    return files


def strings(value: Any) -> Iterator[str]:
    """Every piece of text in a table cell, also in lists, structs and JSON strings. Bytes are skipped."""
    if isinstance(value, str):
        if value[:1] in ("{", "["):
            try:
                yield from strings(json.loads(value))
                return
            except json.JSONDecodeError:  # text that merely starts with a bracket
                pass
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def read_texts(paths: Iterable[Path]) -> list[str]:
    """All text of the given tables. Only text columns are read, so gigabytes of pictures cost nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[str] = []
    for path in tables(paths):
        if path.suffix == ".arrow":
            table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            table = table.select(
                [
                    f.name
                    for f in table.schema
                    if not pa.types.is_struct(f.type) or f.type.get_field_index("bytes") < 0
                ]
            )
        else:
            file = pq.ParquetFile(path)
            leaves = [file.schema.column(k) for k in range(len(file.schema))]
            # "image.path" and "images.list.element.path" are file names, not text
            text = [
                c.path for c in leaves if c.logical_type.type == "STRING" and not c.path.endswith(".path")
            ]
            table = file.read(columns=text)
        for column in table.columns:
            for cell in column.to_pylist():
                found += strings(cell)
    return found


def train_tokenizer(texts: Iterable[str], family: str, vocab_size: int = 4096) -> PreTrainedTokenizerBase:
    """A tokenizer of the family's own kind, trained on `texts`; every string can be encoded.

    `vocab_size`: upper bound on the tokens, bytes and special tokens included (at least about 600).
    llava: SentencePiece-like BPE with byte fallback, <s> in front. qwen2_vl, mllama: byte-level BPE.
    """
    if family == "llava":
        return _train_llama_tokenizer(texts, vocab_size)
    return _train_byte_level_tokenizer(texts, family, vocab_size)


def _train_bpe(
    texts: Iterable[str], pre_tokenizer: Any, vocab_size: int, alphabet: list[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges) of a BPE trained on `texts`. Ids are in the order of learning."""
    from tokenizers import Tokenizer, models, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size, 1), initial_alphabet=alphabet, limit_alphabet=1000, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _train_llama_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    head = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    # No token crosses words, digits or punctuation, and a line end is the byte <0x0A>, as in Llama's own.
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    # Each line both ways: a word is spelt "▁word" inside a line and "word" after a line end or a picture.
    lines = (start + line for text in texts for line in text.splitlines() for start in ("", " "))
    learned, merges = _train_bpe(lines, words, vocab_size - len(head) - len(LLAVA_SPECIALS), [])
    vocab = {token: k for k, token in enumerate(head + sorted(learned, key=learned.get))}

    core = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    core.add_special_tokens([AddedToken(token, special=True) for token in head[:3] + LLAVA_SPECIALS])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocab["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=4096,
    )


def _train_byte_level_tokenizer(
    texts: Iterable[str], family: str, vocab_size: int
) -> PreTrainedTokenizerBase:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    specials, pattern = (
        (QWEN2_VL_SPECIALS, QWEN2_SPLIT) if family == "qwen2_vl" else (MLLAMA_SPECIALS, LLAMA3_SPLIT)
    )
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = _train_bpe(texts, split, vocab_size - len(specials), alphabet)
    if family == "qwen2_vl":
        tokenizer = Qwen2Tokenizer(
            vocab=vocab,
            merges=merges,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            unk_token=None,
            padding_side="left",
            model_max_length=32768,
        )
        # its constructor has appended eos and pad already, so they come first among the special ids
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [AddedToken(t, special=True) for t in specials]}
        )
        return tokenizer
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    core.normalizer = normalizers.Sequence([])
    core.pre_tokenizer, core.decoder = split, decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in specials])
    core.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", core.token_to_id("<|begin_of_text|>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        padding_side="left",
        model_max_length=131072,
    )


def build_processor(family: str, tokenizer: PreTrainedTokenizerBase, size: Size) -> ProcessorMixin:
    """The family's processor: its image processor set to `size`, its prompt form, and `tokenizer`."""
    from transformers import (
        CLIPImageProcessor,
        LlavaProcessor,
        MllamaImageProcessor,
        MllamaProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    square = {"height": size.image_size, "width": size.image_size}
    if family == "llava":
        images = CLIPImageProcessor(size={"shortest_edge": size.image_size}, crop_size=square)
        return LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=size.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,  # the vision tower's class token, which "default" drops again
            chat_template=LLAVA_TEMPLATE,
        )
    if family == "qwen2_vl":
        # Qwen2-VL bounds the area, in pixels, and keeps the shape of the picture
        area = {"shortest_edge": size.image_size**2 // 2, "longest_edge": size.image_size**2}
        return Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=area, patch_size=size.patch_size),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(size=area, patch_size=size.patch_size),
            chat_template=QWEN2_VL_TEMPLATE,
        )
    return MllamaProcessor(
        image_processor=MllamaImageProcessor(size=square, max_image_tiles=4),
        tokenizer=tokenizer,
        chat_template=MLLAMA_TEMPLATE,
    )


def build_model(
    family: str, tokenizer: PreTrainedTokenizerBase, size: Size, seed: int = 0
) -> PreTrainedModel:
    """A model of the family with random fp32 weights, ids from `tokenizer`. Sets torch's global seed."""
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    config = {"llava": _llava_config, "qwen2_vl": _qwen2_vl_config, "mllama": _mllama_config}[family](
        tokenizer, size
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    ends = {
        "llava": ["</s>"],
        "qwen2_vl": ["<|im_end|>", "<|endoftext|>"],
        "mllama": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
    }
    if family == "mllama":
        for layer in model.model.language_model.cross_attention_layers:
            decoder = model.model.language_model.layers[layer]
            # a fresh model's gates are closed (0), which hides the pictures; a trained model's are open
            torch.nn.init.constant_(decoder.cross_attn_attn_gate, 1.0)
            torch.nn.init.constant_(decoder.cross_attn_mlp_gate, 1.0)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(ends[family])
    return model


def _language(tokenizer: PreTrainedTokenizerBase, size: Size) -> dict[str, Any]:
    """The fields that the three language configs share."""
    return {
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": 4096,
        # 0.02, the usual value, suits widths of thousands; at width 128 it slows learning several times.
        "initializer_range": size.hidden_size**-0.5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def padded(tokens: int) -> int:
    """Embedding rows: the next multiple of 64, as released LLaVA and Qwen2-VL have more rows than tokens."""
    return -(-tokens // 64) * 64


def _llava_config(tokenizer: PreTrainedTokenizerBase, size: Size) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=size.vision_hidden_size,
        intermediate_size=size.vision_intermediate_size,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=size.image_size,
        patch_size=size.patch_size,
        projection_dim=size.vision_hidden_size,
        initializer_factor=2.0,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(vocab_size=padded(len(tokenizer)), **_language(tokenizer, size)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(size.image_size // size.patch_size) ** 2,
        vision_feature_layer=size.vision_feature_layer,
    )


def _qwen2_vl_config(tokenizer: PreTrainedTokenizerBase, size: Size) -> Any:
    from transformers import Qwen2VLConfig

    half = (
        size.hidden_size // size.heads // 2
    )  # rotary pairs per head, shared 2:3:3 by time, height and width as in Qwen2-VL
    sides = (half - half // 4) // 2
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half - 2 * sides, sides, sides]}
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    return Qwen2VLConfig(
        text_config={
            "vocab_size": padded(len(tokenizer)),
            "rope_parameters": rope,
            **_language(tokenizer, size),
        },
        vision_config={
            "embed_dim": size.vision_hidden_size,
            "hidden_size": size.hidden_size,
            "depth": size.vision_layers,
            "num_heads": size.vision_heads,
            "mlp_ratio": 2,
            "patch_size": size.patch_size,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )


def _mllama_config(tokenizer: PreTrainedTokenizerBase, size: Size) -> Any:
    from transformers import MllamaConfig
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    taps = list(range(size.vision_layers - 1))  # layers whose outputs join the last one
    vision = MllamaVisionConfig(
        hidden_size=size.vision_hidden_size,
        intermediate_size=size.vision_intermediate_size,
        num_hidden_layers=size.vision_layers,
        num_global_layers=1,
        attention_heads=size.vision_heads,
        image_size=size.image_size,
        patch_size=size.patch_size,
        intermediate_layers_indices=taps,
        vision_output_dim=size.vision_hidden_size * (1 + len(taps)),
    )
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    # As in the real model, <|image|> is the first id after the vocabulary: embedded, never predicted.
    text = MllamaTextConfig(
        vocab_size=image, cross_attention_layers=list(range(1, size.layers, 2)), **_language(tokenizer, size)
    )
    return MllamaConfig(vision_config=vision, text_config=text, image_token_index=image)


def save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write a Hugging Face checkpoint (model, processor, tokenizer, prompt form) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main(args: Namespace) -> None:
    texts = read_texts(args.text)
    tokenizer = train_tokenizer(texts, args.family, args.vocab_size)
    model = build_model(args.family, tokenizer, args.size, args.seed)
    save(model, build_processor(args.family, tokenizer, args.size), args.save_dir)
    print(
        f"{args.family}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens learnt "
        f"from {len(texts):,} pieces of text -> {args.save_dir}"
    )


if __name__ == "__main__":
    main(parse_args())

"""Stand-ins: tiny random models with the structure of published checkpoints, and their processors.

published/<name>.json holds what a checkpoint's own files say: its configuration, its generation settings and
its processor's, in their published form (older field names included), and its special tokens. A stand-in has
the same files with smaller sizes: widths, depths, numbers of heads, vocabulary, sides of pictures. The ratios
stay (heads to key heads, MLP to width, width of heads times heads to width of the model, sections of rotary
positions) and so do all switches (biases, tied heads, several end tokens, sampling settings, 16-bit weights,
padded vocabularies, layers that see pictures, pixel limits). `differences` names every field that differs.

The files on LLaVA-1.5, Qwen2-VL and Llama-3.2-Vision follow the published ones field by field; those of the
other families were written from general knowledge of them.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano import tiny_tokenizers as tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PUBLISHED = Path(__file__).resolve().parent / "published"


@dataclass(frozen=True)
class Size:
    """Sizes of a stand-in; None: as small as its family allows.

    image_size: side of a picture that the model sees, or of one of its tiles, pixels; for Qwen, which takes
    pictures of any shape, a limit on the area instead of the published ones. patch_size and mlp_ratio (of
    both parts): None keeps the published ones.
    """

    image_size: int | None = None
    layers: int | None = None
    key_value_heads: int | None = None
    head_dim: int | None = None
    vision_layers: int | None = None
    vision_heads: int = 2
    vision_head_dim: int = 12
    patch_size: int | None = None
    mlp_ratio: float | None = None


@dataclass(frozen=True)
class StandIn:
    """How a family is scaled down.

    scale: changes the files in place, after what all families share. side: the least side of a picture in
    patches, of which any other is a multiple; 0 where pictures keep their shape.
    """

    tokenizer: tokenizers.Kind
    template: str
    scale: Callable[[Files], None] = lambda files: None
    side: int = 2
    layers: int = 2
    key_value_heads: int = 2
    head_dim: int = 8
    vision_layers: int = 2


# ---------------------------------------------------------------- the files of a checkpoint
class Files:
    """The published files, and the same scaled down: `config`, `generation`, `preprocessor`, `processor`."""

    def __init__(self, name: str, size: Size):
        self.name, self.size, self.family = name, size, STAND_INS[name]
        published = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
        self.checkpoint: str = published["checkpoint"]
        self.length: int = published["tokenizer"]["length"]
        self.special = {int(i): token for i, token in published["tokenizer"]["special"].items()}
        self.published = published
        self.whole = resolve(published["config"])
        self.config = copy.deepcopy(published["config"])
        self.generation = copy.deepcopy(published["generation_config"])
        self.preprocessor = copy.deepcopy(published["preprocessor_config"])
        self.processor = copy.deepcopy(published.get("processor_config"))

    @property
    def text(self) -> dict[str, Any]:
        """The fields of the language model: Qwen2-VL has them beside its own."""
        return self.config.get("text_config", self.config)

    @property
    def vision(self) -> dict[str, Any]:
        return self.config["vision_config"]

    def pick(self, name: str) -> int:
        """A size as given, else the family's least."""
        given = getattr(self.size, name)
        return getattr(self.family, name) if given is None else given

    @property
    def patch(self) -> int:
        return self.size.patch_size or self.whole.vision_config.patch_size

    @property
    def side(self) -> int:
        """Of a picture or a tile, pixels."""
        return self.size.image_size or self.family.side * self.patch

    @property
    def patches(self) -> int:
        """Along a side."""
        return self.side // self.patch

    def mistakes(self) -> list[str]:
        """What does not fit together, as messages that name the flag; empty when all is well."""
        found, text = [], self.whole.get_text_config()
        unit = (self.family.side or 2) * self.patch
        if self.size.image_size and self.size.image_size % unit:
            found.append(f"--image_size: {self.size.image_size} is not a multiple of {unit} pixels")
        for name in ("layers", "vision_layers"):
            if self.pick(name) < (least := getattr(self.family, name)):
                found.append(f"--{name}: {self.name} needs at least {least}")
        sections = text.rope_parameters.get("mrope_section", [])
        unit = max([8, *(2 * (Fraction(n, sum(sections))).denominator for n in sections)])
        if self.pick("head_dim") % unit:
            found.append(f"--head_dim: {self.pick('head_dim')} is not a multiple of {unit}")
        if self.size.vision_head_dim % 4:
            found.append(f"--vision_head_dim: {self.size.vision_head_dim} is not a multiple of 4")
        return found

    # ------------------------------------------------------------ what all families share
    def scale(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Scale the files down for a tokenizer that has the published special tokens under other ids."""
        self.translate(tokenizer)
        self._scale_text(padded(len(tokenizer), self.whole.get_text_config().vocab_size - self.length))
        self._scale_vision()
        self.family.scale(self)

    def translate(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give the special tokens their ids in a tokenizer that has all of them."""
        ids = {i: tokenizer.convert_tokens_to_ids(token) for i, token in self.special.items()}
        for file in (self.config, self.generation):
            _translate(file, ids)

    def _scale_text(self, vocab_size: int) -> None:
        text, raw = self.whole.get_text_config(), self.text
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        group = text.num_attention_heads // text.num_key_value_heads
        head_dim, key_heads = self.pick("head_dim"), self.pick("key_value_heads")
        hidden = Fraction(text.hidden_size, text.num_attention_heads * width) * key_heads * group * head_dim
        if hidden.denominator != 1:
            raise ValueError(
                f"{self.name}: {key_heads} key heads of width {head_dim} give a width of {hidden}"
            )
        raw |= {
            "hidden_size": int(hidden),
            "intermediate_size": self._mlp(text.intermediate_size, text.hidden_size, int(hidden)),
            "num_hidden_layers": self.pick("layers"),
            "num_attention_heads": key_heads * group,
            "num_key_value_heads": key_heads,
            "vocab_size": vocab_size,
            # 0.02, the usual value, suits widths of thousands; at width 128 it slows learning several times.
            "initializer_range": float(hidden) ** -0.5,
        }
        if "vocab_size" in self.config:
            self.config["vocab_size"] = vocab_size
        for name, value in (("head_dim", head_dim), ("max_window_layers", self.pick("layers"))):
            if name in raw:
                raw[name] = value
        scaling = raw.get("rope_scaling") or {}
        if "mrope_section" in scaling:
            scaling["mrope_section"] = [n * head_dim // width for n in scaling["mrope_section"]]

    def _scale_vision(self) -> None:
        vision, raw = self.whole.vision_config, self.vision
        there = lambda *names: next(name for name in names if name in vision.to_dict())
        width, heads = (
            there("embed_dim", "hidden_size"),
            there("num_heads", "attention_heads", "num_attention_heads"),
        )
        hidden = self.size.vision_heads * self.size.vision_head_dim
        raw |= {
            width: hidden,
            heads: self.size.vision_heads,
            there("depth", "num_hidden_layers"): self.pick("vision_layers"),
            "patch_size": self.patch,
        }
        if "intermediate_size" in vision.to_dict():
            raw["intermediate_size"] = self._mlp(vision.intermediate_size, getattr(vision, width), hidden)
        elif self.size.mlp_ratio:
            raw["mlp_ratio"] = self.size.mlp_ratio
        for name, value in (
            ("image_size", self.side), ("head_dim", self.size.vision_head_dim), ("projection_dim", hidden),
            ("out_hidden_size", self.text["hidden_size"]),
        ):  # fmt: skip
            if name in raw:
                raw[name] = value

    def _mlp(self, published: int, published_width: int, width: int) -> int:
        if self.size.mlp_ratio:
            return int(width * self.size.mlp_ratio)
        return max(8, round(width * published / published_width / 8) * 8)


def resolve(config: dict[str, Any]) -> PreTrainedConfig:
    """The configuration as transformers reads it, with its defaults."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))


def _translate(file: dict[str, Any], ids: dict[int, int]) -> None:
    """Replace ids of special tokens, wherever a field holds them."""
    for key, value in file.items():
        if isinstance(value, dict):
            _translate(value, ids)
        elif re.search("_token_(id|index)$", key) and value is not None:
            file[key] = [ids[i] for i in value] if isinstance(value, list) else ids[value]


def padded(tokens: int, rows: int) -> int:
    """Embedding rows: more than tokens, a multiple of 64, where the published model has such `rows`; else as
    many more (or fewer) than tokens as it has."""
    return (tokens // 64 + 1) * 64 if rows > 0 else tokens + rows


def flat(fields: dict[str, Any], path: str = "") -> dict[str, Any]:
    """{path of a field: value}, dictionaries taken apart."""
    found = {}
    for name, value in fields.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: value}
    return found


def differences(name: str, folder: Path) -> dict[str, tuple[Any, Any]]:
    """{field: (published, stand-in's)} of everything in which a stand-in's files differ from the published.

    Fields are those of the configuration as transformers reads it, defaults included, and those of the other
    files under their file's name.
    """
    from transformers import AutoConfig

    files = Files(name, Size())
    read = lambda file: json.loads((folder / file).read_text(encoding="utf-8"))
    pairs = [("", files.whole.to_dict(), AutoConfig.from_pretrained(folder).to_dict())]
    pairs.append(("generation.", files.generation, read("generation_config.json")))
    pairs.append(("preprocessor.", files.preprocessor, read("preprocessor_config.json")))
    if files.processor:
        pairs.append(("processor.", files.processor, read("processor_config.json")))
    found = {}
    for prefix, published, ours in pairs:
        a, b = (
            flat(json.loads(json.dumps(published, default=str))),
            flat(json.loads(json.dumps(ours, default=str))),
        )
        for key in sorted(a.keys() | b.keys()):
            if a.get(key) != b.get(key):
                found[prefix + key] = (a.get(key), b.get(key))
    return {k: v for k, v in found.items() if not k.endswith(("transformers_version", "_name_or_path"))}


# ---------------------------------------------------------------- what each family has beside
def _llava(files: Files) -> None:
    files.config["image_seq_length"] = files.patches**2
    _square(files)


def _square(files: Files) -> None:
    """Every picture is cut or resized to one square; the processor knows how many tokens it takes."""
    pre, side = files.preprocessor, files.side
    if "crop_size" in pre:
        pre["crop_size"], pre["size"] = {"height": side, "width": side}, {"shortest_edge": side}
    else:
        pre["size"] = {"height": side, "width": side}
    if files.processor and "patch_size" in files.processor:
        files.processor["patch_size"] = files.patch


def _vipllava(files: Files) -> None:
    _llava(files)
    last = files.vision["num_hidden_layers"]  # five layers, counted from the end or the beginning
    files.config["vision_feature_layers"] = [-2, -3, -4, -5, last // 2]


def _grid(files: Files) -> None:
    """Pictures are cut into tiles, in one of the published shapes."""
    published = files.whole.vision_config.image_size
    grid = [[n * files.side // published for n in shape] for shape in files.config["image_grid_pinpoints"]]
    files.config["image_grid_pinpoints"] = files.preprocessor["image_grid_pinpoints"] = grid


def _llava_next(files: Files) -> None:
    _llava(files)
    _grid(files)


def _llava_onevision(files: Files) -> None:
    _square(files)
    _grid(files)
    files.processor["num_image_tokens"] = files.patches**2


def _pixtral(files: Files) -> None:
    files.preprocessor["size"] = {"longest_edge": files.side}
    files.preprocessor["patch_size"] = {"height": files.patch, "width": files.patch}
    files.processor["patch_size"] = files.patch


def _qwen(files: Files) -> None:
    pre, vision = files.preprocessor, files.vision
    pre["patch_size"] = files.patch
    if files.size.image_size:
        limits = {"min_pixels": files.side**2 // 2, "max_pixels": files.side**2}
        if "size" in pre:
            limits = {"size": {"shortest_edge": files.side**2 // 2, "longest_edge": files.side**2}}
        pre |= limits
    if files.config["model_type"] == "qwen2_vl":
        vision["hidden_size"] = files.config["hidden_size"]
    if "spatial_patch_size" in vision:
        vision["spatial_patch_size"] = files.patch
    depth = vision["depth"]
    if "fullatt_block_indexes" in vision:  # blocks with windows, then one without, and again
        vision["fullatt_block_indexes"] = [depth // 2 - 1, depth - 1]
    if "deepstack_visual_indexes" in vision:  # three of the blocks, not the last
        vision["deepstack_visual_indexes"] = [k * (depth - 1) // 3 for k in range(3)]


def _mllama(files: Files) -> None:
    _square(files)
    vision, layers = files.vision, files.pick("layers")
    # every other layer sees pictures, neither the first nor the last, as every fifth of the published 40
    files.text["cross_attention_layers"] = list(range(1, layers - 1, 2))
    depth, taps = vision["num_hidden_layers"], len(vision["intermediate_layers_indices"])
    vision["intermediate_layers_indices"] = [k * (depth - 1) // taps for k in range(taps)]
    vision["num_global_layers"] = max(1, depth // 4)
    vision["vision_output_dim"] = vision["hidden_size"] * (1 + taps)
    # <|image|> is the first id behind the head's last row: embedded, never predicted
    assert files.text["vocab_size"] == files.config["image_token_index"]


def _idefics3(files: Files) -> None:
    files.preprocessor["max_image_size"] = {"longest_edge": files.side}
    files.preprocessor["size"] = {"longest_edge": 2 * files.side}
    files.processor["image_seq_len"] = (files.patches // files.config["scale_factor"]) ** 2


def _gemma3(files: Files) -> None:
    _square(files)
    tokens = (files.patches // 4) ** 2  # 4 x 4 patches make a token, as published
    files.config["mm_tokens_per_image"] = files.preprocessor["image_seq_length"] = tokens
    files.processor["image_seq_length"] = tokens
    files.text["query_pre_attn_scalar"] = files.text["head_dim"]


STAND_INS: dict[str, StandIn] = {
    "llava": StandIn(tokenizers.LLAMA, tokenizers.LLAVA_TEMPLATE, _llava, key_value_heads=4),
    "qwen2_vl": StandIn(tokenizers.QWEN, tokenizers.QWEN2_VL_TEMPLATE, _qwen, side=0, head_dim=16),
    "qwen2_vl_2b": StandIn(tokenizers.QWEN, tokenizers.QWEN2_VL_TEMPLATE, _qwen, side=0, head_dim=16),
    "mllama": StandIn(tokenizers.LLAMA3, tokenizers.MLLAMA_TEMPLATE, _mllama, layers=5, vision_layers=6),
    "qwen2_5_vl": StandIn(
        tokenizers.QWEN, tokenizers.QWEN2_VL_TEMPLATE, _qwen, side=0, head_dim=16, vision_layers=4
    ),
    "qwen3_vl": StandIn(
        tokenizers.QWEN, tokenizers.QWEN2_VL_TEMPLATE, _qwen, side=0, layers=4, head_dim=32, vision_layers=4
    ),
    "llava_next": StandIn(tokenizers.LLAMA, tokenizers.MISTRAL_TEMPLATE, _llava_next),
    "llava_onevision": StandIn(tokenizers.QWEN, tokenizers.ONEVISION_TEMPLATE, _llava_onevision),
    "bakllava": StandIn(tokenizers.LLAMA, tokenizers.LLAVA_TEMPLATE, _llava),
    "vipllava": StandIn(
        tokenizers.LLAMA, tokenizers.LLAVA_TEMPLATE, _vipllava, key_value_heads=4, vision_layers=6
    ),
    "pixtral": StandIn(tokenizers.PIXTRAL, tokenizers.PIXTRAL_TEMPLATE, _pixtral, side=8),
    "idefics3": StandIn(tokenizers.IDEFICS3, tokenizers.IDEFICS3_TEMPLATE, _idefics3),
    "gemma3": StandIn(tokenizers.GEMMA, tokenizers.GEMMA3_TEMPLATE, _gemma3, side=8, layers=6),
}


# ---------------------------------------------------------------- writing one
def train_tokenizer(texts: Iterable[str], name: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """A tokenizer of the family's kind with the published special tokens, trained on `texts`."""
    files = Files(name, Size())
    special = [files.special[i] for i in sorted(files.special)]
    longest = files.whole.get_text_config().max_position_embeddings
    return tokenizers.train(texts, files.family.tokenizer, special, vocab_size, longest)


def write(
    name: str, tokenizer: PreTrainedTokenizerBase, folder: Path, size: Size | None = None, seed: int = 0,
    dtype: str | None = None, fields: dict[str, Any] | None = None, opened: bool = True,
) -> PreTrainedModel:  # fmt: skip
    """Write a stand-in with its processor to `folder`, and return it. Sets torch's global seed.

    dtype: of the weights; None: as published. fields: of the configuration, by path, set otherwise than
    published: {"text_config.rms_norm_eps": 1e-6}. opened: by `open_up`.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    files = Files(name, size or Size())
    files.scale(tokenizer)
    for path, value in (fields or {}).items():
        *above, last = path.split(".")
        place = files.config
        for part in above:
            place = place[part]
        place[last] = value
    if dtype:
        for part in (files.config, files.text, files.vision):
            part |= {name: dtype for name in ("torch_dtype", "dtype") if name in part}
    config = resolve(files.config)
    stored = config.dtype or config.get_text_config().dtype or torch.float32
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    if opened:
        open_up(model)
    model.to(stored).save_pretrained(folder)
    write_files(files, tokenizer, folder)
    return model


def write_files(files: Files, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """All of a checkpoint but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    for file, content in (
        ("config", files.config), ("generation_config", files.generation),
        ("preprocessor_config", files.preprocessor), ("processor_config", files.processor),
    ):  # fmt: skip
        if content:
            text = json.dumps(content, indent=2) + "\n"
            (folder / f"{file}.json").write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(files.family.template, encoding="utf-8")


def open_up(model: PreTrainedModel) -> None:
    """Give numbers to what starts at 0 in a fresh model and does not stay there in a trained one: biases,
    gates of cross-attention, Gemma's projection. At 0 they would hide pictures, and mistakes."""
    import torch

    for _, p in sorted(model.named_parameters()):
        if not p.any() and p.numel() == 1:
            torch.nn.init.constant_(p, 1.0)
        elif not p.any():
            torch.nn.init.normal_(p, std=0.02 if p.dim() == 1 else p.shape[0] ** -0.5)

"""Model families, and the two parts of a model: vision and language.

FAMILIES lists the families of the papers, with their quirks. Any other model that transformers loads as
image-text-to-text works too if its parts can be found (`find_parts`); else it is refused before its weights
load. Parts are decided by module, never by a substring of a parameter's name: in transformers 5 every name
starts with `model.`, and the head lies outside the language model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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

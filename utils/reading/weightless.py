"""Models without weights: the configuration, and names and shapes of all weights on the meta device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.adapters import stored
from utils.run.ending import fail, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


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


def empty_model(name: str) -> PreTrainedModel:
    """The same architecture on the meta device: names and shapes of all weights, no memory, no weights
    read."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(read_config(name))


def hollow(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same configuration on the meta device."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        copy = AutoModelForImageTextToText.from_config(model.config)
    copy.generation_config = model.generation_config
    return copy

"""What a run takes, before any weight is loaded: memory of each device, by engine and precision.

    peak = what stays (weights, compensation, moments, mask)
           + the larger of what comes and goes: activations at the end of a forward, gradients in the step

Gradients arrive as activations leave, so the two are not added up, but for gradients that wait (of
accumulated forwards, and DDP's buckets). Weights are counted; activations are an estimate from the
configuration. docs/memory.md has the table of bytes per weight, and the plan beside measured peaks.

The arithmetic alone; utils/planning/dry_run.py reads a model and data for it, and prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


# ---------------------------------------------------------------- bytes per weight, as in docs/memory.md
@dataclass(frozen=True)
class Kept:
    """Bytes of a trained weight, of what rounding loses of it, and of its gradient."""

    weight: int
    compensation: int
    gradient: int


TRAINED = {"fp32": Kept(4, 0, 4), "mixed": Kept(4, 0, 4), "bf16": Kept(2, 2, 2), "nearest": Kept(2, 0, 2)}
MOMENTS = {"fp32": 8, "bf16": 4, "8bit": 2}  # both; with 8 bits 1/32 more, for scales
ADAPTER = Kept(4, 0, 4)  # LoRA's weights are in fp32 whatever the model is in
MASK = 1 / 8  # of each weight that it names
SALIENCY = 4  # of each weight of a block, while masks are made
CASTS = 2  # mixed: bf16 copies of trained weights, from a forward to its backward
SAVED = {"fp32": 4, "bf16": 2, "fp16": 2}

PIECE = 1 << 26  # weights that a step works on at a time, on a GPU (utils/masks.py)
SCRATCH = 16  # bytes of each of them
NF4 = 0.52  # bytes of a weight in 4 bits, with its share of the quantized scales
ADAPTED = {"cuda": 5, "cpu": 8}  # of an adapter's input, kept in fp32 with the mask of its dropout


# ---------------------------------------------------------------- what is planned
@dataclass(frozen=True)
class Layers:
    """The layers of one part. width: of the model; heads: of all heads together; gated: an MLP of three
    matrices; rms: RMS norms."""

    number: int
    width: int
    heads: int
    mlp: int
    gated: bool
    rms: bool


@dataclass(frozen=True)
class Model:
    """weights: {part: how many}. unit: of the largest layer; root: outside all layers (both are what FSDP2
    gathers). largest: of the largest tensor. adapter: LoRA's weights; vocabulary: rows of the head."""

    weights: Mapping[str, int]
    layers: Mapping[str, Layers]
    vocabulary: int
    unit: int
    root: int
    largest: int
    adapter: int = 0

    @property
    def all(self) -> int:
        return sum(self.weights.values())


@dataclass(frozen=True)
class Lengths:
    """Of the longest sample: its tokens, those of its answer, and the patches of its picture."""

    tokens: int
    answer: int
    patches: int


@dataclass(frozen=True)
class Setting:
    """How a model is trained. precision: a key of TRAINED; masked: weights that the mask names."""

    precision: str
    moments: str = "fp32"
    lora: tuple[str, ...] = ()  # the parts that have adapters; none: all weights train
    masked: int = 0
    quantized: bool = False  # frozen weights of the layers in 4 bits
    batch: int = 4
    checkpointing: bool = False
    accumulates: bool = False
    device: str = "cuda"
    beside: int = 0  # weights of a second model


@dataclass(frozen=True)
class Spread:
    """kind: "one" process, "ddp", or "fsdp2", over so many processes."""

    kind: str = "one"
    processes: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. waiting: gradients that are there while a forward runs."""

    weights: float = 0
    compensation: float = 0
    moments: float = 0
    mask: float = 0
    sums: float = 0
    gradients: float = 0
    activations: float = 0
    waiting: float = 0

    @property
    def stays(self) -> float:
        return self.weights + self.compensation + self.moments + self.mask + self.sums

    @property
    def peak(self) -> float:
        return self.stays + max(self.activations + self.waiting, self.gradients)

    @property
    def least(self) -> float:
        """What no smaller batch makes smaller."""
        return self.stays + self.gradients


def adapters(model: Model, how: Setting) -> int:
    """Weights of the adapters: two under a mask, one of forget steps and one of retain steps."""
    return model.adapter * (2 if how.masked else 1)


# ---------------------------------------------------------------- memory
def training(model: Model, how: Setting, lengths: Lengths, spread: Spread) -> Memory:
    """Of one device while it trains."""
    kept = TRAINED[how.precision]
    share = 1 / spread.processes if spread.kind == "fsdp2" else 1
    weights = _weights(model, kept.weight, spread) + how.beside * kept.weight
    if how.quantized:
        weights -= (model.all - model.root) * (kept.weight - NF4)
    if how.lora:
        trained, of = adapters(model, how), ADAPTER
        weights += trained * of.weight * share
    else:
        trained, of = model.all, kept
    gradients = trained * of.gradient * share
    waiting = gradients if how.accumulates else 0.0
    if spread.kind == "ddp":  # its buckets hold the gradients once more, and stay
        waiting, gradients = waiting + gradients, 2 * gradients
    elif spread.kind == "fsdp2" and not how.lora:
        gradients += (model.root + model.unit) * of.gradient
    in_pieces = how.masked or (how.precision, how.moments) not in (("fp32", "fp32"), ("mixed", "fp32"))
    if in_pieces and not how.lora:
        gradients += SCRATCH * min(PIECE, model.largest * share)
    moments = MOMENTS[how.moments] * (33 / 32 if how.moments == "8bit" else 1)
    casts = CASTS * model.all if how.precision == "mixed" and not how.lora else 0
    return Memory(
        weights=weights,
        compensation=trained * of.compensation * share,
        moments=trained * moments * share,
        mask=how.masked * MASK * share,
        gradients=gradients,
        activations=activations(model, how, lengths) + casts,
        waiting=waiting,
    )


def saliency(
    model: Model, how: Setting, lengths: Lengths, spread: Spread, blocks: int = 1, sums: int = 1
) -> Memory:
    """While masks are made: every gradient is squared, added and freed as backward produces it. sums: numbers
    per weight of a block."""
    per = TRAINED[how.precision]
    share = 1 / spread.processes if spread.kind == "fsdp2" else 1
    return Memory(
        weights=_weights(model, per.weight, spread),
        sums=sums * SALIENCY * model.all / blocks * share,
        activations=activations(model, how, lengths),
        waiting=2 * model.largest * per.gradient,  # a gradient, and its square in the sums' precision
    )


def _weights(model: Model, each: int, spread: Spread) -> float:
    """Bytes of the weights on one device. Under FSDP2 some are whole: those outside all layers, the layer at
    work and the one fetched ahead."""
    if spread.kind != "fsdp2":
        return model.all * each
    return (model.all / spread.processes + model.root + 2 * model.unit) * each


def evaluation(model: Model, precision: str, batch_tokens: int, key_value_bytes: int) -> Memory:
    """key_value_bytes: of a token, over all layers."""
    return Memory(weights=model.all * TRAINED[precision].weight, activations=batch_tokens * key_value_bytes)


# ---------------------------------------------------------------- activations: an estimate
def saved_by_layer(of: Layers, how: Setting, part: str) -> int:
    """Bytes that one layer keeps for backward, per token.

    Norms keep their input and, for their weight's gradient, what they have normalized; linear layers their
    inputs; attention its queries, keys, values and output (no T x T matrix); the MLP what comes before, in
    and behind its activation. Under LoRA frozen layers keep none of their inputs, and each adapter its own.
    """
    if how.lora and part == "vision" and part not in how.lora:
        return 0  # nothing below it is trained, so no gradient reaches it
    number = 4 if how.precision == "fp32" else 2
    attention = 4 * of.heads * number
    mlp = (4 if of.gated else 3) * of.mlp * number
    if how.lora:
        inputs = ((6 if of.gated else 5) * of.width + of.mlp) * (part in how.lora)
        return (
            8 * of.width
            + attention
            + mlp
            - of.mlp * number
            + ADAPTED[how.device] * inputs * (2 if how.masked else 1)
        )
    if not of.rms:  # the input, and the output, which the linear layers keep
        norms = 24 if how.precision == "mixed" else 4 * number
    else:  # computed in fp32; mixed: each linear layer behind one keeps a copy of its own in bf16
        norms = {"fp32": 24, "mixed": 34, "bf16": 16, "nearest": 16}[how.precision]
    return norms * of.width + attention + mlp


def activations(model: Model, how: Setting, lengths: Lengths) -> float:
    """Bytes at the end of a forward over a batch of longest samples.

    With gradient checkpointing a layer keeps its input alone, and one layer at a time is computed anew.
    """
    number = 4 if how.precision == "fp32" else 2
    stream = 2 if how.precision in ("bf16", "nearest") else 4
    total, again = 0.0, 0.0
    for part, tokens in (("language", lengths.tokens), ("vision", lengths.patches)):
        of = model.layers[part]
        layer = saved_by_layer(of, how, part) * tokens * how.batch
        if how.checkpointing and layer:
            total += of.number * stream * of.width * tokens * how.batch
            again = max(again, layer)
        else:
            total += of.number * layer
    # logits where there are labels: as computed, in fp32, their log-softmax, and its gradient
    logits = how.batch * lengths.answer * model.vocabulary * (number + 12)
    return total + again + logits


# ---------------------------------------------------------------- disk
def disk(model: Model, how: Setting, save_dtype: str) -> dict[str, float]:
    """Bytes of the saved model, of an adapter alone, and of a training state."""
    kept = ADAPTER if how.lora else TRAINED[how.precision]
    trained = adapters(model, how) if how.lora else model.all
    return {
        "model": model.all * SAVED[save_dtype],
        "adapter": model.adapter * ADAPTER.weight,
        "state": trained * (kept.weight + MOMENTS[how.moments] + kept.compensation),
    }

"""Hidden states of one model put into another, layer by layer, and what the answer then still is worth.

Two models of one architecture run on the same batch. The first, the source, is recorded; in the second, the
target, the recorded states take the place of its own behind one layer, at some of the tokens, and everything
behind that layer is the target's. What the answer's log-probability loses says what the source lacks there
(activation patching: Meng et al. 2022, arXiv 2202.05262; between two models as in arXiv 2605.24614).

Stages are the layers in the order in which a picture passes them: vision tower, projector, decoder.
In the first two every state belongs to a picture and all are replaced. In the decoder it is those at one of
three places: the tokens of the picture with its borders, of the question, or those from which the answer is
read, which are the last one before it and its own but the last. Llama-3.2-Vision's pictures are no tokens of
its decoder, whose cross-attention layers all read what the projector gives: there the two stacks of vision
layers and the projector say what the picture's states hold, and the decoder has the answer's place alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from data_process.coverage import LAYER
from eval.answering.forced import ForcedWorker, answer_log_prob
from eval.answering.workers import Setup
from utils.collate import Batch
from utils.data import IGNORE
from utils.families import Family, part_of


@dataclass(frozen=True)
class Stage:
    """A layer, or the projector: its module's name without the leading "model.", as in coverage.json."""

    name: str
    part: str  # tower | projector | decoder
    path: str


def stages_of(model, family: Family) -> list[Stage]:
    """All layers of the vision tower, the projector, and all layers of the decoder, in this order."""
    found: dict[str, list[Stage]] = {"tower": [], "projector": [], "decoder": []}
    inside: list[str] = []  # what lies in a stage already found is none of its own
    for path, _ in model.named_modules():
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        name = path.removeprefix("model.")
        if path and path == family.projector:
            part = "projector"
        elif LAYER.fullmatch(name):
            part = "decoder" if part_of(path, family) == "language" else "tower"
        else:
            continue
        found[part].append(Stage(name, part, path))
        inside.append(path)
    return [stage for part in found.values() for stage in part]


# ---------------------------------------------------------------- which tokens
Patch = tuple[str, Stage, torch.Tensor | None]  # place, stage, and (B, T) which tokens; None: all states


def patches_of(batch: Batch, image_ids: torch.Tensor, stages: Sequence[Stage]) -> list[Patch]:
    """What is patched, one after the other, for questions that all have a picture or all none."""
    ids, labelled = batch.inputs["input_ids"], batch.labels != IGNORE
    answer = labelled.roll(-1, dims=1)  # the state at t predicts the token at t+1
    answer[:, -1] = False
    decoder = [stage for stage in stages if stage.part == "decoder"]
    patches: list[Patch] = []
    if has_pictures(batch):
        patches += [("picture", stage, None) for stage in stages if stage.part != "decoder"]
        if "cross_attention_mask" not in batch.inputs:
            pictures = torch.isin(ids, image_ids.to(ids.device))
            patches += [("picture", stage, pictures) for stage in decoder]
    else:
        before = labelled.cumsum(1).eq(0) & ~answer & batch.inputs["attention_mask"].bool()
        patches += [("question", stage, before) for stage in decoder]
    return patches + [("answer", stage, answer) for stage in decoder]


def has_pictures(batch: Batch) -> bool:
    return any(name.startswith("pixel_values") for name in batch.inputs)


# ---------------------------------------------------------------- recording and patching
States = dict[str, list[torch.Tensor]]  # by stage, one for each time its module ran


@contextmanager
def recorded(model, stages: Sequence[Stage]) -> Iterator[States]:
    """The outputs of the stages' modules in what runs inside."""
    states: States = {stage.path: [] for stage in stages}
    with ExitStack() as hooks:
        for path, found in states.items():
            keep = lambda module, inputs, output, found=found: found.append(_state(output))
            hooks.callback(model.get_submodule(path).register_forward_hook(keep).remove)
        yield states


@contextmanager
def patched(model, stage: Stage, states: States, where: torch.Tensor | None) -> Iterator[None]:
    """The states in place of what the stage's module gives; where: (B, T), None for all of them."""
    left = iter(states[stage.path])

    def replace(module, inputs, output):
        own, new = _state(output), next(left)
        new = new if where is None else torch.where(where[..., None], new, own)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    # before transformers' own hooks, by which some families hand on the states of inner layers
    hook = model.get_submodule(stage.path).register_forward_hook(replace, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def _state(output) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class PatchSetup(Setup):
    """The target is the evaluated model. source: folder of the model whose states are put into it."""

    source: str = ""

    def start(self, device: str, threads: int | None = None) -> PatchWorker:
        return PatchWorker(self, device, threads)


class PatchWorker(ForcedWorker):
    """Two loaded models on one device. Raises SystemExit where their architectures differ."""

    def __init__(self, setup: PatchSetup, device: str, threads: int | None = None):
        super().__init__(setup, device, threads)
        self.source = self.load(setup.source)
        shapes = [[p.shape for p in model.parameters()] for model in (self.model, self.source)]
        if shapes[0] != shapes[1]:
            raise SystemExit(
                f"error: {setup.source} and {setup.evaluated_model} are of different sizes; hidden states of"
                " one mean nothing in the other"
            )
        self.stages = stages_of(self.model, self.family)

    @torch.inference_mode()
    def measure(self, batch: Batch) -> list[dict[str, Any]]:
        """Of each question {"before": log p of the answer by the target itself, nats per token, "drops":
        {place: {stage: how much less it is with the source's states there}}}: a forward per stage and place.
        """
        with recorded(self.source, self.stages) as states:
            answer_log_prob(self.source, batch)
        before = answer_log_prob(self.model, batch)
        found: list[dict[str, dict[str, float]]] = [{} for _ in batch.ids]
        for place, stage, where in patches_of(batch, self.collator.image_ids, self.stages):
            with patched(self.model, stage, states, where):
                drops = (before - answer_log_prob(self.model, batch)).tolist()
            for question, drop in zip(found, drops, strict=True):
                question.setdefault(place, {})[stage.name] = drop
        return [{"before": b, "drops": d} for b, d in zip(before.tolist(), found, strict=True)]

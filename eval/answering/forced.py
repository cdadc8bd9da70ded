"""Answers that are given instead of generated: what a model makes of each of their tokens (teacher forcing).

Samples are questions with their answers, in batches of those with a picture and of those without, padded on
the right; nothing is generated. As in eval/answering/plan.py, batches depend on the samples and two limits
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eval.answering.workers import OnDevice, Setup
from utils import families, models
from utils.collate import Batch, Chat, Collator, PromptLengths
from utils.data import Sample
from utils.loop.batches import by_modality
from utils.losses import label_logits
from utils.run import ending
from utils.run.ending import NO_MEMORY, fail


class ForcedWorker(OnDevice):
    """A loaded model on its device; what is measured of a batch is the business of `measure`."""

    def __init__(self, setup: Setup, device: str, threads: int | None = None):
        super().__init__(device, threads)
        self.setup = setup
        self.processor = models.load_processor(setup.evaluated_model, setup.original_model)
        self.model = self.load(setup.evaluated_model)
        self.family = families.family_of(self.model)
        self.collator = Collator(self.processor, self.family, end_of_turn=False)

    def load(self, name: str):
        model = models.load_model(name, self.setup.dtype, self.setup.attn, self.processor)
        return model.to(self.device).eval()

    def answer(self, samples: list[Sample]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """One dict per sample, and what they cost. What does not fit into a GPU's memory is halved."""
        return self._halving(samples), self.cost(len(samples))

    def _halving(self, samples: list[Sample]) -> list[dict[str, Any]]:
        try:
            return self.measure(self.collator(samples).to(self.device))
        except torch.OutOfMemoryError as why:
            if len(samples) == 1:
                fail(f"not even one question fits into the GPU's memory: {ending.first_line(why)}", NO_MEMORY)
        # outside the handler, whose exception keeps the tensors of the failed batch alive
        torch.cuda.empty_cache()
        half = len(samples) // 2
        return self._halving(samples[:half]) + self._halving(samples[half:])

    def measure(self, batch: Batch) -> list[dict[str, Any]]:
        raise NotImplementedError


def forced_batches(
    samples: Sequence[Sample], chat: Chat, lengths: PromptLengths, batch_size: int, batch_tokens: int
) -> list[list[Sample]]:
    """The samples, those of a kind together and the longest first, in batches of at most `batch_size` samples
    and `batch_tokens` tokens with padding, at least one sample each."""
    batches: list[list[Sample]] = []
    for group in by_modality(samples):
        text = lambda s: chat.prompt(s.question, int(s.picture is not None)) + chat.answer(s.answer)
        shown = lambda s: lengths.picture(s.picture) if s.picture else 0
        tokens = {s.id: lengths.text(text(s)) + shown(s) for s in group}
        group = sorted(group, key=lambda s: -tokens[s.id])
        while group:
            size = max(1, min(batch_size, batch_tokens // tokens[group[0].id]))
            batches.append(group[:size])
            group = group[size:]
    return batches


# ---------------------------------------------------------------- log-probabilities of the answer's tokens
@torch.inference_mode()
def answer_log_prob(model, batch: Batch) -> torch.Tensor:
    """log p(answer) in nats per answer token, without the end of turn, (B,) in float64 on the CPU."""
    logits, targets, rows = label_logits(model, batch)
    log_prob = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1).double().cpu()
    sums = log_prob.new_zeros(len(batch.ids)).index_add(0, rows.cpu(), log_prob)
    return sums / torch.bincount(rows.cpu(), minlength=len(batch.ids))


@dataclass(frozen=True)
class TokenSetup(Setup):
    def start(self, device: str, threads: int | None = None) -> TokenWorker:
        return TokenWorker(self, device, threads)


class TokenWorker(ForcedWorker):
    """Per sample and answer token: `log_prob`; `mean` and `deviation` of log p over the vocabulary, weighted
    by p (Min-K++); `first`, whether no other token is likelier."""

    @torch.inference_mode()
    def measure(self, batch: Batch) -> list[dict[str, Any]]:
        logits, targets, rows = label_logits(self.model, batch)  # (N, V), (N,), (N,)
        log_p = logits.log_softmax(-1)
        own = log_p.gather(1, targets[:, None]).squeeze(1)
        p = log_p.exp()
        mean = (p * log_p).nan_to_num().sum(1)  # 0 · −∞ where a token is impossible
        square = (p * log_p.square()).nan_to_num().sum(1)
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        first = own >= log_p.amax(1)
        columns = {"log_prob": own, "mean": mean, "deviation": deviation, "first": first}
        return [
            {name: values[rows == k].tolist() for name, values in columns.items()}
            for k in range(len(batch.ids))
        ]

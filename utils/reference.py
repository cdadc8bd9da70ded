"""What a frozen model says about the training answers, computed once, so that it need not stay in memory.

SequenceLogProbs and AnswerStates load the model, go once over the samples, and let go of it before training
begins. What they keep is small: a number per sample, or a hidden state per answer token (1/8 of the logits of
a 7B LLaVA) and the model's head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

from utils import models
from utils.data import Sample
from utils.losses import label_states, sequence_log_prob

if TYPE_CHECKING:
    import torch

    from utils.collate import Batch


class SequenceLogProbs:
    """log p(answer | prompt) of every sample under the model `name`, in fp32, kept by sample id."""

    def __init__(self, args, name: str, samples: list[Sample]):
        self.by_id: dict[str, torch.Tensor] = {}

        def keep(model, batch: Batch) -> None:
            self.by_id.update(zip(batch.ids, sequence_log_prob(model, batch).cpu()))

        _go_over(args, name, samples, keep)

    def of(self, batch: Batch) -> torch.Tensor:
        """(B,), on the device of the batch."""
        import torch

        return torch.stack([self.by_id[i] for i in batch.ids]).to(batch.labels.device)


class AnswerStates:
    """The distribution of the model `name` at every labelled token, kept as last hidden states and the head.

    States stay in the model's precision on the CPU, (n_i, H) per sample, so that the head gives the very
    logits.
    """

    def __init__(self, args, name: str, samples: list[Sample]):
        self.by_id: dict[str, torch.Tensor] = {}
        self.head: torch.nn.Module | None = None

        def keep(model, batch: Batch) -> None:
            # a copy: the loaded weights may be views into the mapped file of the whole model
            self.head = self.head or copy.deepcopy(model.get_output_embeddings())
            states, rows = label_states(model, batch)  # (N, H), (N,)
            for row, sample_id in enumerate(batch.ids):
                self.by_id[sample_id] = states[rows == row].cpu()

        _go_over(args, name, samples, keep)

    def log_probs(self, batch: Batch) -> torch.Tensor:
        """(N, V) in fp32, in the order of utils.losses.label_logits."""
        import torch

        device = batch.labels.device
        states = torch.cat([self.by_id[i] for i in batch.ids]).to(device)
        with torch.no_grad():
            return self.head.to(device)(states).float().log_softmax(dim=-1)


def _go_over(args, name: str, samples: list[Sample], keep: Callable) -> None:
    """Call keep(model, batch) on all samples, the model in eval mode and without an adapter."""
    import torch
    from accelerate import PartialState

    from utils.batches import cut, one_pass
    from utils.collate import Collator

    state = PartialState()
    processor = models.load_processor(name, args.model_id)
    dtype = models.training_dtype(args)
    model = models.load_model(name, dtype, args.attn).eval().to(state.device)
    collate = Collator.of(args, processor, models.family_of(model))
    with torch.no_grad(), models.autocast(dtype):
        for batch in one_pass(collate, cut(samples, args.batch_size), state, "reference"):
            keep(model, batch)

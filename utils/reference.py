"""What a frozen model says about the training answers, computed once, so that no second one is in memory.

The vanilla model is the trainer's own before its first step, so it is loaded once; any other model is loaded,
asked, and let go of, which is best done before the trainer is made. What is kept is small: a number per
sample, or a hidden state per answer token (1/8 of the logits of a 7B LLaVA) and the model's head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from utils import families, models
from utils.data import Sample
from utils.losses import label_states, sequence_log_prob
from utils.run.ending import fail

if TYPE_CHECKING:
    import torch

    from utils.collate import Batch
    from utils.training import Trainer


class SequenceLogProbs:
    """log p(answer | prompt) of every sample under a frozen model, in fp32, kept by sample id.

    frozen: the trainer before its first step, or the name of another model.
    """

    def __init__(self, args, frozen: Trainer | str, samples: list[Sample]):
        self.by_id: dict[str, torch.Tensor] = {}

        def keep(model, batch: Batch) -> None:
            self.by_id.update(zip(batch.ids, sequence_log_prob(model, batch).cpu()))

        _go_over(args, frozen, samples, keep)

    def of(self, batch: Batch) -> torch.Tensor:
        """(B,), on the device of the batch."""
        import torch

        return torch.stack([self.by_id[i] for i in batch.ids]).to(batch.labels.device)


class AnswerStates:
    """The distribution of a frozen model at every labelled token, kept as last hidden states and the head.

    States stay in the model's precision on the CPU, (n_i, H) per sample, so that the head gives the very
    logits. frozen: as in SequenceLogProbs.
    """

    def __init__(self, args, frozen: Trainer | str, samples: list[Sample]):
        from utils.loop.shards import whole

        self.by_id: dict[str, torch.Tensor] = {}
        self.head: list[torch.Tensor] = []  # weight and, perhaps, bias

        def keep(model, batch: Batch) -> None:
            # copies: the weights may train, or be views into the mapped file of the whole model
            self.head = self.head or [whole(p).clone() for p in model.get_output_embeddings().parameters()]
            try:
                states, rows = label_states(model, batch)  # (N, H), (N,)
            except ValueError as why:
                fail(f"--kl_positions: {why}, from which KL is taken; give --kl_positions all")
            for row, sample_id in enumerate(batch.ids):
                self.by_id[sample_id] = states[rows == row].cpu()

        _go_over(args, frozen, samples, keep)

    def log_probs(self, batch: Batch) -> torch.Tensor:
        """(N, V) in fp32, in the order of utils.losses.label_logits."""
        import torch
        import torch.nn.functional as F

        device = batch.labels.device
        states = torch.cat([self.by_id[i] for i in batch.ids]).to(device)
        with torch.no_grad():
            self.head = [p.to(device) for p in self.head]
            return F.linear(states, *self.head).float().log_softmax(dim=-1)


def _go_over(args, frozen: Trainer | str, samples: list[Sample], keep: Callable) -> None:
    """Call keep(model, batch) on all samples."""
    import torch
    from accelerate import PartialState

    from utils.collate import Collator
    from utils.loop.batches import cut, one_pass

    dtype = models.training_dtype(args)
    with _asked(args, frozen, dtype) as (model, processor), torch.no_grad(), models.autocast(dtype):
        collate = Collator.of(args, processor, families.family_of(model))
        for batch in one_pass(collate, cut(samples, args.batch_size), PartialState(), "reference"):
            keep(model, batch)


@contextmanager
def _asked(args, frozen: Trainer | str, dtype: str) -> Iterator[tuple]:
    """(model, processor), the model in eval mode on its device: loaded for now, or the trainer's as it was
    loaded."""
    from accelerate import PartialState

    if isinstance(frozen, str):
        processor = models.load_processor(frozen, args.model_id)
        yield models.load_model(frozen, dtype, args.attn).eval().to(PartialState().device), processor
        return
    with frozen.vanilla_model() as model:
        yield model, frozen.processor

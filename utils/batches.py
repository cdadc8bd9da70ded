"""From samples to the batches of a step: the seeded order, each process's share, and who prepares it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from utils.data import Sample

if TYPE_CHECKING:
    from accelerate import Accelerator

    from utils.collate import Batch, Collator


class Stream:
    """An endless, seeded sequence of global batches of one data set; each pass is shuffled anew.

    A global batch is what one optimizer step sees: batch_size × processes × accumulated forwards samples, all
    with a picture or all without. Which samples it holds does not depend on how many processes share it.
    """

    def __init__(self, samples: list[Sample], size: int, seed: str, shuffle: bool):
        from utils.collate import by_modality

        self.groups, self.size, self.seed, self.shuffle = by_modality(samples), size, seed, shuffle
        self.batches_per_pass = sum(math.ceil(len(group) / size) for group in self.groups)

    def one_pass(self, number: int) -> list[list[Sample]]:
        rng = random.Random(f"{self.seed}/{number}")
        batches = []
        for group in self.groups:
            order = rng.sample(group, len(group)) if self.shuffle else group
            batches += [order[i : i + self.size] for i in range(0, len(order), self.size)]
        if self.shuffle:
            rng.shuffle(batches)
        return batches

    def starting_at(self, position: int) -> Iterator[list[Sample]]:
        number, offset = divmod(position, self.batches_per_pass)
        while True:
            yield from self.one_pass(number)[offset:]
            number, offset = number + 1, 0


def loader(
    args, acc: Accelerator, stream: Iterator[list[Sample]], collate: Collator
) -> Iterator[list[tuple[Batch, bool]]]:
    """This process's share of each global batch, cut into forwards and collated (by --num_workers processes
    ahead). Each batch comes with whether its terms count."""
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    class Shares(IterableDataset):
        def __iter__(self):
            info = torch.utils.data.get_worker_info()
            for k, whole in enumerate(stream):
                if info is None or k % info.num_workers == info.id:
                    yield whole

    def cut(items: list[list[Sample]]) -> list[tuple[Batch, bool]]:
        whole = items[0]
        # a process without samples still takes part in the step: with a sample whose terms do not count
        share = whole[acc.process_index :: acc.num_processes]
        counts = bool(share)
        share = share or whole[:1]
        size = args.batch_size
        return [(collate(share[i : i + size]), counts) for i in range(0, len(share), size)]

    # a generator of its own, so that the loader's start draws nothing from the run's random state
    own = torch.Generator().manual_seed(args.seed)
    return iter(
        DataLoader(Shares(), batch_size=1, collate_fn=cut, num_workers=args.num_workers, generator=own)
    )

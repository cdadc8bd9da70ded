"""From samples to the batches of a step: the seeded order, each process's share, and who prepares it."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from utils.data import Sample

if TYPE_CHECKING:
    from accelerate import Accelerator

    from utils.collate import Batch, Collator

WORKERS = 2  # threads that prepare batches


def by_modality(samples: Iterable) -> list[list]:
    """The samples with a picture and those without, each in their order; empty groups left out.

    Batches never mix the two: Llama-3.2-Vision cannot, and the others would carry pictures through text rows.
    """
    groups = [[s for s in samples if s.picture is not None], [s for s in samples if s.picture is None]]
    return [group for group in groups if group]


def cut(samples: Iterable[Sample], size: int) -> list[list[Sample]]:
    """Batches of at most `size` samples, in order, each `by_modality`."""
    return [group[i : i + size] for group in by_modality(samples) for i in range(0, len(group), size)]


class Stream:
    """An endless, seeded sequence of global batches of one data set; each pass is shuffled anew.

    A global batch is what one optimizer step sees: batch_size × processes × accumulated forwards samples, all
    with a picture or all without. Which samples it holds does not depend on how many processes share it.
    """

    def __init__(self, samples: list[Sample], size: int, seed: str, shuffle: bool):
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


def forwards(whole: list[Sample], process: int, processes: int, size: int) -> list[list[Sample]]:
    """A process's share of a global batch, cut into forwards. Every process has as many, some of them perhaps
    empty, since engines that cut weights over processes gather them for each forward."""
    share, most = whole[process::processes], math.ceil(len(whole) / processes)
    return [share[i : i + size] for i in range(0, most, size)]


def loader(
    args, acc: Accelerator, stream: Iterator[list[Sample]], collate: Collator
) -> Iterator[list[tuple[Batch, bool]]]:
    """This process's share of each global batch, cut into forwards and collated (by --num_workers threads
    ahead). Each batch comes with whether its terms count: a process that has no more samples takes part in a
    forward with one whose terms do not."""

    def mine(whole: list[Sample]) -> list[tuple[Batch, bool]]:
        parts = forwards(whole, acc.process_index, acc.num_processes, args.batch_size)
        return [(collate(part or whole[:1]), bool(part)) for part in parts]

    return ahead(mine, stream, args.num_workers)


def ahead(prepare: Callable, items: Iterable, threads: int = WORKERS) -> Iterator:
    """prepare(item) of each item, in order, prepared by so many threads while the one before is used; 0: when
    it is asked for.

    Threads, since they share what was prepared before and start in no time: decoding, resizing and
    tokenizing hold no lock of Python's.
    """
    if not threads:
        yield from map(prepare, items)
        return
    items, pool = iter(items), ThreadPoolExecutor(threads)
    try:
        waiting = deque(pool.submit(prepare, item) for item in islice(items, threads))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(prepare, item) for item in islice(items, 1))
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def one_pass(collate: Collator, batches: list[list[Sample]], state, title: str) -> Iterator[Batch]:
    """The batches of `cut` on the device of this process, under a progress bar. state: an Accelerator or a
    PartialState."""
    from tqdm import tqdm

    bar = tqdm(
        total=len(batches), desc=title, unit="batch", disable=not state.is_main_process, mininterval=1.0
    )
    with bar:
        for batch in ahead(collate, batches):
            yield batch.to(state.device)
            bar.update()

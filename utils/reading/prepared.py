"""Pictures prepared once: what an image processor makes of a picture is kept, and joined to batches.

A person's fifteen questions show one picture, which is decoded, resized and normalised for the first of them.
What is kept is bounded; what was not asked for longest goes first.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from utils.reading.pictures import Picture

KEPT = 2 << 30  # bytes; 1,500 pictures of LLaVA-1.5, 80 of 1024 x 1024 pixels of Qwen2-VL
PROBES = ((320, 320), (320, 320), (160, 480))  # two of one shape, which image processors take together


class Undecoded(Image.Image):
    """A picture as Pillow's image, which is decoded when its pixels are first asked for."""

    def __init__(self, picture: Picture):
        super().__init__()
        self.picture, self._mode, self._size, self._decoded = picture, "RGB", picture.size(), False

    def load(self):
        if not self._decoded:
            self.im, self._decoded = self.picture.load().im, True
        return super().load()


class PreparedOnce:
    """In the place of an image processor: the same tensors, from what it made of each picture before.

    That is possible where a batch is what its pictures are alone, joined, and padded with zeros to the
    largest. Whether it is, bit for bit, is tried on probes; an image processor that does otherwise is called
    as ever.
    """

    def __init__(self, original, limit: int = KEPT):
        self.original, self.limit = original, limit
        self.options: dict[str, Any] | None = None  # of its calls, once they were tried
        self.kept: OrderedDict[tuple, _Entry] = OrderedDict()
        self.bytes, self.lock = 0, threading.Lock()

    def __getattr__(self, name: str):
        return getattr(self.original, name)

    def __call__(self, images, **options) -> BatchFeature:
        known = all(isinstance(image, Undecoded) for item in images for image in _flat(item))
        if known and self.options is None:
            self.options = options if self._joins(options) else {}
        if known and options == self.options:
            return _join([self._one(item) for item in images])
        return self.original(images, **options)

    def prepare(self, items: Sequence[Undecoded | list[Undecoded]]) -> None:
        """Prepare what a call will want. Without effect before the first call."""
        if self.options:
            for item in items:
                self._one(item)

    def _one(self, item) -> BatchFeature:
        """What the image processor makes of one element of a batch; only the first thread that asks for it
        calls it."""
        key = isinstance(item, Image.Image), *(image.picture for image in _flat(item))
        with self.lock:
            entry = self.kept.setdefault(key, _Entry())
            self.kept.move_to_end(key)
        with entry.lock:
            if entry.made is None:
                entry.made = self.original([item], **self.options)
                self._count(key, entry)
        return entry.made

    def _count(self, key: tuple, entry: _Entry) -> None:
        size = sum(value.nbytes for value in entry.made.values() if isinstance(value, torch.Tensor))
        with self.lock:
            if self.kept.get(key) is entry:  # else it was let go while it was made
                entry.bytes = size
                self.bytes += size
            while self.bytes > self.limit:
                self.bytes -= self.kept.popitem(last=False)[1].bytes

    def _joins(self, options: dict[str, Any]) -> bool:
        """Whether probes together are what they are alone, joined."""
        noise = np.random.default_rng(0)
        probes = [
            [Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))]
            for width, height in PROBES
        ]
        try:
            together = self.original(probes, **options)
            joined = _join([self.original([probe], **options) for probe in probes])
        except (ValueError, TypeError, RuntimeError):  # no such pictures, or a value that is not joined
            return False
        return together.keys() == joined.keys() and all(_same(together[k], joined[k]) for k in joined)


class _Entry:
    def __init__(self):
        self.made: BatchFeature | None = None
        self.bytes, self.lock = 0, threading.Lock()


def prepared_once(processor):
    """A copy of the processor whose image processor prepares each picture once."""
    processor = copy.copy(processor)
    processor.image_processor = PreparedOnce(processor.image_processor)
    return processor


def _flat(item) -> Sequence:
    return item if isinstance(item, list | tuple) else [item]


def _join(parts: list[BatchFeature]) -> BatchFeature:
    """Tensors one behind the other, padded with zeros to the largest; lists joined."""
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if all(isinstance(value, list) for value in values):
            joined[name] = [element for value in values for element in value]
            continue
        if not all(isinstance(value, torch.Tensor) for value in values):
            raise TypeError(f"{name} holds neither tensors nor lists")
        most = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        joined[name] = torch.cat([_padded(value, most) for value in values])
    return BatchFeature(joined)


def _padded(value: torch.Tensor, most: list[int]) -> torch.Tensor:
    """(n, *sizes) -> (n, *most)."""
    missing = [m - size for size, m in zip(value.shape[1:], most, strict=True)]
    return torch.nn.functional.pad(value, [n for m in reversed(missing) for n in (0, m)])


def _same(a, b) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(np.all(a == b))

"""Pictures prepared once and ahead of the step: the same tensors, by any family's image processor."""

import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT, picture_cell, sample
from PIL import Image
from test_pictures import encoded

from nano.stand_ins import STAND_INS
from utils.collate import Chat, Collator, encode
from utils.families import FAMILIES
from utils.loop.batches import ahead
from utils.reading.prepared import PreparedOnce, Undecoded, prepared_once

SIZES = [(64, 48), (500, 400), (500, 400), (90, 700), (37, 41), (336, 336), (1024, 1024)]


def noise(width: int, height: int, seed: int):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(values), "BMP")


PICTURES = [noise(*size, seed) for seed, size in enumerate(SIZES)]


def calls(monkeypatch, processor) -> list:
    """The pictures of each call of the real image processor."""
    kind, made = type(processor.image_processor), []
    call = kind.__call__

    def counted(self, images, **options):
        made.append(len(images))
        return call(self, images, **options)

    monkeypatch.setattr(kind, "__call__", counted)
    return made


@pytest.mark.parametrize("name", STAND_INS)
def test_every_family_gets_the_same_tensors(name, processors, monkeypatch):
    processor = processors[name]
    once, prompt = prepared_once(processor), Chat(processor).prompt("Who is this?", 1)
    made, draw = calls(monkeypatch, processor), random.Random(0)
    for _ in range(6):
        chosen = draw.choices(PICTURES, k=draw.randrange(1, 4))
        ours = encode(once, [prompt] * len(chosen), [[Undecoded(p)] for p in chosen], "right")
        before = len(made)
        theirs = encode(processor, [prompt] * len(chosen), [[p.load()] for p in chosen], "right")
        assert len(made) == before + 1
        del made[before:]
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]), key
    assert once.image_processor.options, "this family's pictures can be joined"
    assert len(made) == 4 + len(once.image_processor.kept), "once each, after the probes"


def test_what_cannot_be_joined_is_prepared_as_ever(processors, monkeypatch):
    """An image processor whose pictures depend on each other."""
    processor = processors["llava"]
    call = type(processor.image_processor).__call__

    def centred(self, images, **options):
        found = call(self, images, **options)
        found["pixel_values"] = found["pixel_values"] - found["pixel_values"].mean()
        return found

    monkeypatch.setattr(type(processor.image_processor), "__call__", centred)
    once, prompt = prepared_once(processor), Chat(processor).prompt("q", 1)
    ours = encode(once, [prompt] * 2, [[Undecoded(p)] for p in PICTURES[:2]], "right")
    theirs = encode(processor, [prompt] * 2, [[p.load()] for p in PICTURES[:2]], "right")
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"]) and not once.image_processor.kept


def test_what_is_kept_is_bounded(processors):
    processor = processors["llava"]
    side = processor.image_processor.crop_size["height"]
    once = PreparedOnce(processor.image_processor, limit=2 * 3 * side * side * 4)
    show = lambda *numbers: once([[Undecoded(PICTURES[n])] for n in numbers], return_tensors="pt")
    first = show(0, 1)["pixel_values"]
    show(0, 2, 0)
    kept = [key[1] for key in once.kept]
    assert kept == [PICTURES[2], PICTURES[0]], "what was not asked for longest goes"
    assert torch.equal(show(0, 1)["pixel_values"], first)
    assert once.bytes == sum(entry.bytes for entry in once.kept.values()) <= once.limit


def test_a_batch_does_not_share_memory_with_what_is_kept(processors):
    collate = Collator(processors["llava"], FAMILIES["llava"])
    samples = [sample(picture=picture_cell())]
    first = collate(samples).inputs["pixel_values"]
    before = first.clone()
    first.zero_()
    assert torch.equal(collate(samples).inputs["pixel_values"], before)


# ---------------------------------------------------------------- ahead of the step
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama"])
def test_threads_change_nothing(name, processors):
    collate, draw = Collator(processors[name], FAMILIES[name]), random.Random(1)
    cells = [picture_cell(32 + 16 * k, 64, "green") for k in range(5)]
    rows = [
        [sample("Why? " * draw.randrange(9), "x " * draw.randrange(1, 9), draw.choice(cells)) for _ in "abc"]
        for _ in range(20)
    ]
    plain = [Collator(processors[name], FAMILIES[name])(row) for row in rows]
    for ours, theirs in zip(ahead(collate, rows, threads=4), plain, strict=True):
        assert torch.equal(ours.labels, theirs.labels)
        assert all(torch.equal(ours.inputs[key], theirs.inputs[key]) for key in theirs.inputs)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_ahead(threads):
    """In order, so many ahead and no more; an error where it is; an endless source can be left."""
    drawn, before = [], set(threading.enumerate())

    def source():
        for k in range(10**9):
            drawn.append(k)
            yield k

    found = ahead(lambda k: 1 / (k - 7), source(), threads)
    assert [next(found) for _ in range(5)] == [1 / (k - 7) for k in range(5)]
    assert len(drawn) == 5 + threads
    with pytest.raises(ZeroDivisionError):
        list(found)
    left = ahead(str, source(), threads)
    next(left)
    left.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


def test_processes_started_by_forkserver(train_args, tmp_path):
    """As Python 3.14 starts them: nothing may need what only a fork inherits."""
    code = "import multiprocessing, runpy, sys; multiprocessing.set_start_method('forkserver')\n"
    code += f"sys.path.insert(0, {str(ROOT)!r}); sys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    script = [sys.executable, "-c", code, str(ROOT / "MLLMU_GA.py")]
    subprocess.run([*script, *train_args(num_workers=2, batch_size=30)], check=True, capture_output=True)
    assert (tmp_path / "run" / "model.safetensors").is_file()

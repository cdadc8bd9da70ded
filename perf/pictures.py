"""What preparing a batch of four pictures costs, and what it costs when they were seen before.

    python perf/pictures.py

LLaVA-1.5's processor (336 pixels) and Qwen2-VL's (any size), pictures of 1024 x 1024 pixels, one thread.
Plain is decoding and preparing each picture for each question, as a bare loop around the processor does; kept
is what a training script does from a person's second question on. Printed are medians of CPU milliseconds,
which a busy machine changes little.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nano import stand_ins
from utils import cli, families, models
from utils.data import Sample
from utils.reading.pictures import Picture

SIZES = {"llava": stand_ins.Size(image_size=336), "qwen2_vl": None}


def parse_args():
    p = cli.parser(__doc__)
    p.add_argument("--side", type=cli.number(int, 32), default=1024, help="pixels; default 1024")
    args = cli.parse(p)
    args.problems.stop()
    return args


def photo(kind: str, side: int, seed: int) -> Picture:
    """Smooth noise, which takes as long to decode as a photo."""
    import numpy as np
    from PIL import Image, ImageFilter

    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).filter(ImageFilter.GaussianBlur(3)).save(out, kind)
    return Picture(out.getvalue(), kind)


def milliseconds(call: Callable, times: int = 9) -> float:
    found = []
    for _ in range(times):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return 1000 * statistics.median(found)


def measure(processor, family: families.Family, pictures: list[Picture]) -> tuple[float, float]:
    """(plain, kept) milliseconds of one batch."""
    from utils.collate import Collator, encode

    samples = [Sample(str(k), p, "Who is this?", "A baker.", str(k)) for k, p in enumerate(pictures)]
    collate = Collator(processor, family)
    texts = [collate.chat.prompt(s.question, 1) + collate.chat.answer(s.answer) for s in samples]
    plain = milliseconds(lambda: encode(processor, texts, [[p.load()] for p in pictures], "right"))
    collate(samples)
    return plain, milliseconds(lambda: collate(samples))


def main(args) -> None:
    import torch

    torch.set_num_threads(1)
    print("| processor | pictures | plain | kept |\n|---|---|---|---|")
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = stand_ins.train_tokenizer(["Who is this?", "A baker from Oslo."], name, 400)
            stand_ins.write(name, tokenizer, Path(folder), size)
            processor = models.load_processor(folder)
        for kind in ("PNG", "JPEG"):
            pictures = [photo(kind, args.side, seed) for seed in range(4)]
            plain, kept = measure(processor, families.FAMILIES[name], pictures)
            print(f"| {families.FAMILIES[name].title} | {kind} | {plain:.0f} ms | {kept:.0f} ms |")


if __name__ == "__main__":
    main(parse_args())

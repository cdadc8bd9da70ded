"""Three masks against one forward and backward over the same data, and against the plain way.

    python perf/saliency.py

Bare is forward and backward over forget pictures, retain pictures and text questions, on batches that are
ready, each gradient freed as backward produces it. The suite's pass makes the masks of all parts meanwhile,
decoding its pictures; with --blocks it goes over the data again for each block of weights. The plain way is
what one would write first: a forget and a preserve pass for each of the three masks, full gradients, two
sums. LLaVA of about 46 M random weights with 144 image tokens, fp32, batch 4. Each runs in a process of its
own, in turns. Printed: median CPU seconds, which a busy machine disturbs less than the clock, without loading
and files; and the peak of memory beyond what the process held before the model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from perf.setting import prepare, run
from utils import cli, families, flags, models
from utils.mllmu import MLLMUBench

WAYS = {"bare": "", "pass": "--blocks 1", "blocks": "--blocks 4", "plain": ""}
PARTS = {"language": "retain text", "vision": "retain", "both": "retain text"}  # what each preserves


def parse_args():
    p = cli.parser(__doc__)
    p.add_argument("--threads", type=cli.number(int, 1), default=1, help="default 1")
    p.add_argument("--hidden_size", type=cli.number(int, 64), default=512, help="width; default 512")
    p.add_argument("--layers", type=cli.number(int, 1), default=14, help="its layers; default 14")
    p.add_argument("--samples", type=cli.number(int, 4), default=12, help="of each data set; default 12")
    p.add_argument("--rounds", type=cli.number(int, 1), default=3, help="runs of each way; default 3")
    # this process is one of WAYS, on what lies in the folder
    p.add_argument("--way", help=argparse.SUPPRESS)
    p.add_argument("--folder", help=argparse.SUPPRESS)
    args = cli.parse(p)
    args.problems.stop()
    return args


def mask_args(words: str):
    """The arguments of a mask script."""
    p = cli.parser("")
    flags.add_mask_args(p)
    flags.add_released_mask_args(p)
    return cli.parse(p, ["--save_dir", "none", *words.split()])


def read_sets(folder: Path, samples: int) -> dict[str, list]:
    bench = MLLMUBench(folder / "data" / "MLLMMU-Bench", 10, cli.Problems())
    sets = {"forget": bench.forget(), "retain": bench.retain(), "text": bench.text_knowledge()}
    return {name: found[:samples] for name, found in sets.items()}


# ---------------------------------------------------------------- the ways
def bare(model, batches: dict[str, list]) -> None:
    from utils.losses import token_nll

    def free(parameter) -> None:
        parameter.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(free)
    for batch in [batch for found in batches.values() for batch in found]:
        token_nll(model, batch).mean().backward()


def plain(model, batches: dict[str, list]) -> dict[str, dict]:
    """{mask: {parameter: bool tensor}}."""
    import torch

    from utils.losses import token_nll

    def sums(found: list) -> dict[str, torch.Tensor]:
        total = {n: torch.zeros_like(p, requires_grad=False) for n, p in model.named_parameters()}
        for batch in found:
            model.zero_grad()
            token_nll(model, batch).mean().backward()
            for name, p in model.named_parameters():
                if p.grad is not None:
                    total[name] += p.grad**2
        return {name: s / len(found) for name, s in total.items()}

    masks = {}
    for part, preserved in PARTS.items():
        forget = sums(batches["forget"])
        preserve = sums([batch for name in preserved.split() for batch in batches[name]])
        masks[part] = {n: (f + 1e-15) / (preserve[n] + 1e-15) >= 1 for n, f in forget.items()}
    return masks


def one_way(args) -> None:
    """Print {"seconds", "peak" in bytes} of args.way as JSON."""
    from accelerate import Accelerator

    from data_process.saliency import masks_of
    from utils.collate import Collator
    from utils.loop.batches import cut

    sets, accelerator = read_sets(Path(args.folder), args.samples), Accelerator()
    processor = models.load_processor(str(Path(args.folder) / "model"))
    given = mask_args(WAYS[args.way])
    collator = Collator.of(given, processor, families.FAMILIES["llava"])
    batches = {name: [collator(batch) for batch in cut(found, 4)] for name, found in sets.items()}
    before = memory("VmRSS")
    model = models.load_model(str(Path(args.folder) / "model"), "fp32").eval()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here: loading has its own
    begin = time.process_time()
    if args.way in ("pass", "blocks"):
        masks_of(model, collator, sets, accelerator, given)
    else:
        {"bare": bare, "plain": plain}[args.way](model, batches)
    seconds = time.process_time() - begin
    print(json.dumps({"seconds": seconds, "peak": memory("VmHWM") - before}))


def memory(what: str) -> int:
    """VmRSS, what this process holds now, or VmHWM, its peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


# ---------------------------------------------------------------- side by side
def main(args) -> None:
    if args.way:
        one_way(args)
        return
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = prepare(folder, args.threads, args.hidden_size, args.layers)
        for _ in range(args.rounds):
            for way in WAYS:
                said = run(
                    args.threads, __file__, "--way", way, "--folder", folder, "--samples", args.samples
                )
                found[way].append(json.loads(said.splitlines()[-1]))
    middle = lambda way, what: statistics.median(one[what] for one in found[way])
    floor, buffer = middle("bare", "peak"), 4 * weights
    print(
        f"LLaVA of {weights:,} weights, {args.threads} threads, {args.samples} samples of each set, medians"
        f" of {args.rounds}; weights, and one fp32 number per weight: {buffer / 1e6:,.0f} MB each\n"
    )
    print(
        "| | CPU seconds | / bare | peak MB | / (bare + one fp32 number per weight) |\n|---|---|---|---|---|"
    )
    for way, words in WAYS.items():
        seconds, peak = middle(way, "seconds"), middle(way, "peak")
        print(
            f"| {way} {words} | {seconds:.1f} | {seconds / middle('bare', 'seconds'):.2f} |"
            f" {peak / 1e6:,.0f} | {peak / (floor + buffer):.2f} |"
        )


if __name__ == "__main__":
    main(parse_args())

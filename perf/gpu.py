"""What training, masks and evaluation take at real size, on this machine's GPU, beside the plan of --dry_run.

    python perf/gpu.py                # on a GPU: LLaVA-1.5-7B and Qwen2-VL-7B
    python perf/gpu.py --size small   # without one: models of 24 to 58 M weights

For a bare machine: torch, torchvision and pillow (which processors need), transformers, accelerate and peft;
no data, no hub, no network. Models have the published configurations and random weights, made on the device;
the tokenizer is trained here, on a few words; pictures are noise of 1024 x 1024. Each row is a process of its
own, so that one that does not fit ends alone: the suite's Trainer, masks and evaluation worker, with nothing
replaced but the loading of a model. Printed per row: peak memory (on a CPU, of the process, above what it had
before the model was made), the plan's, seconds per optimizer step, per batch of the masks' passes or per
question, and the share of the device's matrix peak (6 operations per trained weight and token, 4 per frozen
one, 2 in evaluation) as a large product of matrices reaches it in the same precision.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nano import stand_ins
from utils import cli, families, flags, models
from utils.data import Sample
from utils.planning import dry_run, needs
from utils.reading import weightless
from utils.reading.pictures import Picture

SMALL = {
    "llava": stand_ins.Size(168, 14, 8, 64, 6, 6, 64, mlp_ratio=2),
    "qwen2_vl": stand_ins.Size(224, 14, 1, 32, 6, 6, 64, mlp_ratio=4),
    "mllama": stand_ins.Size(168, 13, 2, 64, 8, 6, 64, mlp_ratio=3),
}
ROWS = {  # task and flags; FULL stands for the precision in which all weights train by default
    "finetune, LoRA": ("training", "--lora True --dtype HALF"),
    "finetune, all weights": ("training", "--dtype FULL"),
    "masks": ("masks", "--dtype HALF"),
    "MMUnlearner, all weights": ("training", "--dtype FULL --mask"),
    "MMUnlearner, 8-bit moments": ("training", "--dtype bf16 --moments 8bit --mask"),
    "MMUnlearner, LoRA": ("training", "--lora True --dtype HALF --mask"),
    "evaluation": ("evaluation", "--dtype HALF"),
}
STEPS, SKIPPED = 4, 2  # steps of a row, and those of them that touch memory for the first time
# of glibc: memory goes back when it is freed, so that a peak on the CPU is what was used
TIGHT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "0"}
WORDS = "Who is this person? Ann Brown was born in Rome, works as a baker and plays the cello."


def parse_args():
    p = cli.parser(__doc__)
    p.add_argument(
        "--size", type=cli.choice("real", "small", "tiny"), default="real",
        help="of the models; default real; small: 24 to 58 M weights; tiny: to see that it runs",
    )  # fmt: skip
    p.add_argument(
        "--families", type=cli.choices(*SMALL), default=["llava", "qwen2_vl"], help="default llava,qwen2_vl"
    )
    p.add_argument("--batch_size", type=cli.number(int, 1), default=4, help="samples; default 4")
    cli.flag(p, "--gradient_checkpointing", default=True, help="in training and masks; default True")
    p.add_argument("--row", help=argparse.SUPPRESS)  # this process is one row, of the first model
    args = cli.parse(p)
    args.problems.stop()
    return args


# ---------------------------------------------------------------- model and data, made here
def write_files(args, name: str, folder: Path) -> None:
    """Configuration, processor and tokenizer of a model; no weights."""
    tokenizer = stand_ins.train_tokenizer([WORDS] * 20, name, 1000)
    files = stand_ins.Files(name, SMALL[name] if args.size == "small" else stand_ins.Size())
    if args.size == "real":
        files.translate(tokenizer)
    else:
        files.scale(tokenizer)
    stand_ins.write_files(files, tokenizer, folder)


def build(name: str, dtype: str = "auto", attn: str = "sdpa", processor=None, quantize: str = "none"):
    """In place of utils.models.load_model: the model of a folder without weights, made on the device."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    with torch.device(device()):
        config = AutoConfig.from_pretrained(name)
        model = AutoModelForImageTextToText.from_config(
            config, dtype=models.pick_dtype(dtype), attn_implementation=attn
        )
        stand_ins.open_up(model)
    return model


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def samples(name: str, number: int) -> list[Sample]:
    """Each with a picture of its own."""
    from PIL import Image

    found = []
    for n in range(number):
        out = io.BytesIO()
        Image.effect_noise((1024, 1024), 64 + n).convert("RGB").save(out, "JPEG")
        picture = Picture(out.getvalue(), f"{name} {n}")
        found.append(Sample(f"{name}/{n}", picture, f"{WORDS} {n}?", WORDS[20:60], str(n)))
    return found


def command(task: str, words: str, folder: Path, args):
    """The flags that a script of the task has, read from `words`."""
    p = cli.parser("")
    flags.add_model_args(p)
    if task == "masks":
        flags.add_mask_args(p)
        flags.add_released_mask_args(p)
    else:
        flags.add_lora_args(p, default=False)
        flags.add_train_args(p)
        flags.add_forget_args(p)
        flags.add_released_train_args(
            p, "forget_data", "clip", "clip_steps", "mask_names", "unlisted", "masked_weights"
        )
    argv = words.replace("--mask", "").split()
    argv += ["--model_id", str(folder), "--save_dir", str(folder / "run")]
    argv += ["--batch_size", str(args.batch_size)]
    argv += ["--gradient_checkpointing", str(args.gradient_checkpointing)]
    if task == "training":
        argv += ["--save_steps", "0", "--save_dtype", "bf16"]
    found = cli.parse(p, argv)
    found.problems.stop()
    found.mask, found.processor = None, models.load_processor(str(folder))
    return found


def half_of_all(folder: Path):
    """A mask over all weights that holds a random half of them."""
    import torch

    from utils.masks import Mask

    shapes = {name: list(p.shape) for name, p in weightless.empty_model(str(folder)).named_parameters()}
    bits = {
        name: torch.randint(256, (-(-math.prod(s) // 8),), dtype=torch.uint8) for name, s in shapes.items()
    }
    return Mask(bits, shapes)


# ---------------------------------------------------------------- one row, in a process of its own
def row(args) -> None:
    """Print {"peak", "plan", "seconds", "share"} as JSON; bytes, seconds."""
    models.load_model = build
    task, words = ROWS[args.row]
    gpu, folder = device() == "cuda", Path(tempfile.mkdtemp(dir=os.environ["PERF_FOLDER"]))
    words = words.replace("FULL", "mixed" if gpu else "fp32").replace("HALF", "bf16" if gpu else "fp32")
    write_files(args, args.families[0], folder)
    run = {"training": train, "masks": make_masks, "evaluation": evaluate}[task]
    top = matrix_peak("fp32" if "fp32" in words else "bf16")  # before the model takes the memory
    got = run(args, words, folder)
    got["share"] = got.pop("work") / got["seconds"] / top
    print(json.dumps(got))


class Peak:
    """Bytes that the device, or this process, takes more than at the start."""

    def __init__(self):
        import accelerate  # noqa: F401
        import peft  # noqa: F401
        import torch

        from utils.training import Trainer  # noqa: F401

        self.gpu, self.before = torch.cuda.is_available(), 0
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
            self.before = self._of("VmRSS")

    def _of(self, name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))

    def taken(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated() if self.gpu else self._of("VmHWM") - self.before


def matrix_peak(precision: str) -> float:
    """Operations a second of a large product."""
    import torch

    n, dtype = 8192 if device() == "cuda" else 1024, models.pick_dtype(precision)
    a, b = (torch.randn(n, n, device=device(), dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        a @ b
        if device() == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * n**3 / min(seconds)


def found(plan: dry_run.Plan, peak: int, memory: needs.Memory, seconds: float, each: int) -> dict:
    """each: operations per weight and token; work: those of a batch of longest samples."""
    of, tokens = plan.model.weights, {"language": plan.lengths.tokens, "vision": plan.lengths.patches}
    work = each * plan.how.batch * sum(of[part] * tokens[part] for part in of)
    return {"peak": peak, "plan": memory.peak, "seconds": seconds, "work": work}


def train(args, words: str, folder: Path) -> dict:
    from utils.losses import token_nll
    from utils.training import Phase, Trainer, alternate, once

    of = command("training", words, folder, args)
    size = args.batch_size * STEPS
    masked = "--mask" in words
    data = {name: samples(name, size // (1 + masked)) for name in (["forget"] if masked else []) + ["retain"]}
    of.mask = half_of_all(folder) if masked else None
    plan = dry_run.Plan(of, data)
    peak = Peak()
    trainer = Trainer(of, data)
    retain = Phase("retain", data["retain"], token_nll)
    order = once(retain)
    if masked:
        forget = Phase("forget", data["forget"], lambda model, batch: -token_nll(model, batch))
        forget.mask = trainer.load_mask()
        order = alternate(forget, retain, of)
    trainer.fit(order)
    lines = (trainer.partial / "log.jsonl").read_text(encoding="utf-8").splitlines()
    times = [json.loads(line)["seconds"] for line in lines]
    seconds = statistics.median(b - a for a, b in list(pairwise(times))[SKIPPED - 1 :])
    return found(plan, peak.taken(), plan.memory(dry_run.spread()), seconds, 4 if of.lora else 6)


def make_masks(args, words: str, folder: Path) -> dict:
    from data_process.saliency import masks_of
    from utils.collate import Collator
    from utils.loop import engines

    of = command("masks", words, folder, args)
    data = {name: samples(name, 2 * args.batch_size) for name in ("forget", "retain")}
    plan = dry_run.Plan(of, data)
    peak = Peak()
    accelerator = engines.accelerator()
    model = models.load_model(str(folder), of.dtype, of.attn).to(accelerator.device)
    if of.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    collator = Collator.of(of, of.processor, families.family_of(model))
    begin = time.perf_counter()
    masks_of(model, collator, data | {"text": []}, accelerator, of)
    seconds = (time.perf_counter() - begin) / 4  # batches
    return found(plan, peak.taken(), plan.memory(dry_run.spread()), seconds, 6)


def evaluate(args, words: str, folder: Path) -> dict:
    from eval.answering.plan import Request
    from eval.answering.workers import Setup, Worker
    from utils.collate import Chat

    of = command("masks", words, folder, args)
    asked = samples("question", 2 * args.batch_size)
    plan = dry_run.Plan(of, {"forget": asked})
    peak = Peak()
    worker = Worker(Setup(str(folder), None, of.dtype, of.attn, 50), device() + ":0" * (device() == "cuda"))
    chat = Chat(of.processor)
    requests = [Request(chat.prompt(s.question, 1), [s.picture], letter=True) for s in asked]
    worker.answer(requests[: args.batch_size])
    begin = time.perf_counter()
    worker.answer(requests[args.batch_size :])
    seconds = time.perf_counter() - begin
    text = weightless.empty_model(str(folder)).config.get_text_config()
    heads = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * heads
    per_token *= 2 if plan.how.precision == "fp32" else 1
    tokens = args.batch_size * plan.lengths.tokens
    memory = needs.evaluation(plan.model, plan.how.precision, tokens, per_token)
    each = seconds / args.batch_size
    got = found(plan, peak.taken(), memory, each, 2)
    return got | {"work": got["work"] / args.batch_size}


# ---------------------------------------------------------------- all rows
def one(args, name: str, title: str) -> dict | str:
    """A row, or why there is none."""
    argv = [sys.executable, __file__, "--row", title, "--families", name, "--size", args.size]
    argv += ["--batch_size", str(args.batch_size)]
    argv += ["--gradient_checkpointing", str(args.gradient_checkpointing)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False,
            env=os.environ | TIGHT | {"PERF_FOLDER": folder},
        )  # fmt: skip
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    full = "OutOfMemory" in last or "not even one question fits" in last or done.returncode == -9
    return "does not fit" if full else f"failed: {last[:120]}"


def main(args) -> None:
    if args.row:
        row(args)
        return
    import torch

    gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name(0) if gpu else "CPU: not measured on a GPU"
    checkpointed = "with" if args.gradient_checkpointing else "without"
    print(
        f"{where}; torch {torch.__version__}, {args.size} models, batch {args.batch_size}, {checkpointed}"
        " gradient checkpointing\n"
    )
    print("| model | task | peak MB | plan MB | plan / peak | seconds | share of matrix peak |")
    print("|---|---|---|---|---|---|---|")
    for name in args.families:
        for title in ROWS:
            got = one(args, name, title)
            if isinstance(got, str):
                print(f"| {name} | {title} | {got} | | | | |", flush=True)
                continue
            print(
                f"| {name} | {title} | {got['peak'] / 1e6:,.0f} | {got['plan'] / 1e6:,.0f} |"
                f" {got['plan'] / got['peak']:.2f} | {got['seconds']:.2f} | {100 * got['share']:.0f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main(parse_args())

"""The evaluation against the plain way, as released evaluations work: one question at a time, 50 new tokens.

    python perf/eval_speed.py --data_split_dir runs/nano/data/MLLMU-Bench

Same model, same questions, in one run: the plain way answers a part of them, ours all of them, in turn, so
that a noisy machine is noisy for both. For a LLaVA of about 50 M random weights with 144 image tokens, and
for a nano model. Printed: questions per second and their ratio; on how many questions the two agree; where
our time goes; how far it is from the time of the needed arithmetic at the measured rate of a matrix product;
and two workers of one thread each against one.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eval import tasks
from eval.answering.plan import plan_batches
from eval.answering.workers import Setup, answer_in_processes, keep_memory
from eval.prompts import mllmu_prompt
from nano import stand_ins
from nano.tables import read_texts
from utils import cli, families, flags, models
from utils.mllmu import MLLMUBench

NEW = 50  # tokens of a plain reply
PARTS = ("pictures", "prefixes", "rests of prompts", "decoding", "the rest")


def parse_args():
    p = cli.parser(__doc__)
    for name, folder in (("--data_split_dir", "MLLMU-Bench"), ("--nano_model", "untrained")):
        p.add_argument(name, default=f"runs/nano/data/{folder}", help=f"default runs/nano/data/{folder}")
    p.add_argument("--people", type=cli.number(int, 1), default=28, help="18 questions each; default 28")
    p.add_argument("--rounds", type=cli.number(int, 1), default=3, help="turns of both ways; default 3")
    p.add_argument("--threads", type=cli.number(int, 1), default=2, help="of the two ways; default 2")
    p.add_argument("--hidden_size", type=cli.number(int, 64), default=512, help="width; default 512")
    p.add_argument("--layers", type=cli.number(int, 1), default=14, help="its layers; default 14")
    cli.flag(p, "--workers", default=True, help="compare two workers with one; default True")
    return cli.parse(p)


# ---------------------------------------------------------------- questions and models
def read_questions(args) -> list:
    questions = MLLMUBench(args.data_split_dir, 10, args.problems).questions("retain", seed=0)
    args.problems.stop()
    people = list(dict.fromkeys(q.person for q in questions))[: args.people]
    return [q for q in questions if q.person in people]


def make_model(args, folder: Path) -> None:
    """A LLaVA with 168 x 168 pixels in patches of 14: 144 image tokens."""
    tokenizer = stand_ins.train_tokenizer(read_texts([Path(args.data_split_dir)]), "llava", vocab_size=4096)
    size = stand_ins.Size(
        image_size=168, layers=args.layers, key_value_heads=8, head_dim=args.hidden_size // 8,
        vision_layers=6, vision_heads=6, vision_head_dim=64, mlp_ratio=2,
    )  # fmt: skip
    stand_ins.write("llava", tokenizer, folder, size, dtype="float32")


def planned(questions: list, processor, batch_size: int | None = None) -> tuple[list, list[list[int]]]:
    """The requests of the questions, and the evaluation's batches of their places; its own limits, or
    `batch_size`."""
    from utils.collate import Chat, PromptLengths

    chat, p = Chat(processor), cli.parser("")
    flags.add_eval_args(p, ("retain",))
    requests = [tasks.request(question, chat, "letter", mllmu_prompt) for question in questions]
    lengths = PromptLengths(processor, chat)
    costs = [request.memory_cost(lengths, NEW) for request in requests]
    limits = batch_size or p.get_default("batch_size"), p.get_default("batch_tokens")
    return requests, plan_batches(costs, *limits)


# ---------------------------------------------------------------- the two ways
class Plain:
    """One question at a time, 50 new tokens or the end of the turn."""

    def __init__(self, model, processor):
        from transformers import GenerationConfig

        from eval.answering.generate import StopRule

        self.model, self.processor, self.stop_rule = model, processor, StopRule(model, processor)
        ends = sorted(self.stop_rule.end_tokens)
        self.config = GenerationConfig(
            max_new_tokens=NEW, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
        )

    def inputs(self, request) -> dict:
        from utils.collate import encode

        pictures = [request.loaded()] if request.pictures else []
        return encode(self.processor, [request.prompt], pictures, "left")

    def answer(self, request) -> list[int]:
        """The reply's tokens."""
        inputs = self.inputs(request)
        start = inputs["input_ids"].shape[1]
        return self.model.generate(**inputs, generation_config=self.config)[0, start:].tolist()


class Ours:
    """The evaluation's own batches and answers, with the time of each part and what was needed counted."""

    def __init__(self, model, processor):
        from eval.answering.generate import Answerer

        self.model, self.answerer = model, Answerer(model, processor, families.family_of(model), NEW)
        self.seconds: dict[str, float] = {}
        self.shared: list[tuple[list, list[int]]] = []  # (rows, lengths of their prefixes) of every batch

    def timed(self, part: str, function: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - started
            if part == "the rest":
                self.shared.append((result[0], result[2]))
            return result

        return wrapper

    def answer(self, requests: list, batches: list[list[int]]) -> list[list[int]]:
        """The replies' tokens; `seconds` and `shared` are of this call."""
        from eval.answering.generate import PrefixCachedBackend
        from eval.answering.shared_prefix import DecodeState, SharedPrefix

        places = (
            (type(self.model.model), "get_image_features"), (SharedPrefix, "prefill"),
            (DecodeState, "prompt"), (DecodeState, "step"), (PrefixCachedBackend, "_share"),
        )  # fmt: skip
        out, self.seconds, self.shared = [[] for _ in requests], dict.fromkeys(PARTS, 0.0), []
        started = time.perf_counter()
        with ExitStack() as stack:
            for part, (owner, name) in zip(PARTS, places, strict=True):
                function = self.timed(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, function))
            for batch in batches:
                self.answerer.answer([requests[i] for i in batch])
                for row in self.shared[-1][0]:
                    out[batch[row.request]] = row.reply
        self.seconds["prefixes"] -= self.seconds["pictures"]
        rest = time.perf_counter() - started - sum(self.seconds[part] for part in PARTS[:4])
        self.seconds["the rest"] = rest
        return out


# ---------------------------------------------------------------- the lower bound
def matrix_rate(width: int) -> float:
    """Floating-point operations per second of a large product of the model's width, the best of a few."""
    import torch

    a, b, best = torch.randn(2048, width), torch.randn(width, 2 * width), 0.0
    for _ in range(30):
        started = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * a.shape[0] * b.numel() / (time.perf_counter() - started))
    return best


def operations(ours: Ours, picture) -> float:
    """What cannot be left out: every picture once, every token of a prefix, of a prompt's rest and of a reply
    that another follows once through the decoder, the head at every new token."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, decoder = ours.model, ours.model.get_decoder()
    inputs = ours.answerer.backend.processor(text="<image>", images=[picture.load()], return_tensors="pt")
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        model.get_image_features(inputs["pixel_values"])
    layers = decoder.config.num_hidden_layers
    linear = sum(2 * m.weight.numel() for m in decoder.modules() if isinstance(m, torch.nn.Linear))
    head = 2 * model.get_output_embeddings().weight.numel()
    # tokens first .. last each attend to all before them and themselves
    attended = lambda first, last: (last - first + 1) * (first + last) / 2
    attention = lambda first, last: 4 * layers * decoder.config.hidden_size * attended(first, last)
    total = 0.0
    for rows, lengths in ours.shared:
        about_pictures = bool(rows) and max(lengths) > 100
        for length in lengths:
            total += length * linear + attention(1, length) + about_pictures * counted.get_total_flops()
        for row in rows:
            tokens, before = len(row.tokens) + len(row.reply) - 1, lengths[row.group]
            total += tokens * linear + attention(before + 1, before + tokens) + len(row.reply) * head
    return total


# ---------------------------------------------------------------- comparing
def agreement(plain: Plain, questions: list, requests: list, theirs: list, ours: list) -> str:
    """Scores and replies that are the same; ours may end earlier. Where two replies part, how far apart the
    two tokens' logits are, in standard deviations of all logits: a tie in fp32 is about 1e-5."""
    same, gaps = 0, []
    for question, request, a, b in zip(questions, requests, theirs, ours, strict=True):
        score = partial(tasks.TASKS[question.task].score, question)
        same += score(plain.stop_rule.text(a)) == score(plain.stop_rule.text(b))
        parted = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
        if parted is not None:
            gaps.append(gap(plain, request, a, b, parted))
    equal = len(questions) - len(gaps)
    found = f"same score: {same} of {len(questions)} questions; same reply as far as it goes: {equal}"
    return found + (f"; the others part at ties, logits at most {max(gaps):.0e} apart" if gaps else "")


def gap(plain: Plain, request, a: list[int], b: list[int], parted: int) -> float:
    """How far apart the logits of the tokens are at which the replies a and b part."""
    import torch

    inputs = plain.inputs(request)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([a[:parted]], dtype=torch.long)], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.inference_mode():
        logits = plain.model(**inputs, logits_to_keep=1).logits[0, -1]
    return float((logits[a[parted]] - logits[b[parted]]).abs() / logits.std())


def compare(args, title: str, folder: str, questions: list) -> None:
    import torch

    processor, model = models.load_processor(folder), models.load_model(folder, "fp32").eval()
    requests, batches = planned(questions, processor)
    plain, ours = Plain(model, processor), Ours(model, processor)
    plain_replies, plain_seconds, turns, rates = [], 0.0, [], []
    for turn in range(args.rounds):
        rates.append(matrix_rate(model.get_decoder().config.hidden_size))
        our_replies = ours.answer(requests, batches)
        turns.append((sum(ours.seconds.values()), turn, ours.seconds))
        started = time.perf_counter()
        some = requests[len(plain_replies) : len(requests) * (turn + 1) // args.rounds]
        plain_replies += [plain.answer(request) for request in some]
        plain_seconds += time.perf_counter() - started
        print(f"round {turn + 1} of {args.rounds}: ours {turns[-1][0]:.1f} s for all", file=sys.stderr)
    seconds, _, parts = statistics.median_low(turns)
    count, needed = len(questions), operations(ours, next(q.picture for q in questions if q.picture))
    bound = needed / max(rates)
    print(f"\n## {title}: {model.num_parameters():,} weights, {count} questions,"
          f" {torch.get_num_threads()} threads, fp32\n")  # fmt: skip
    print("| way | questions/s |\n|---|---|")
    print(f"| plain: one at a time, {NEW} new tokens | {count / plain_seconds:.2f} |")
    print(f"| ours (median of {args.rounds}) | {count / seconds:.1f} |")
    print(f"| ratio | {plain_seconds / seconds:.1f} |\n")
    print(agreement(plain, questions, requests, plain_replies, our_replies))
    print("our time: " + ", ".join(f"{part} {parts[part] / seconds:.0%}" for part in PARTS))
    print(f"lower bound: {needed / 1e9:,.0f} GFLOP at {max(rates) / 1e9:.0f} GFLOP/s = {bound:.1f} s;"
          f" ours takes {seconds:.1f} s, {seconds / bound:.1f} times that")  # fmt: skip


# ---------------------------------------------------------------- workers
def compare_workers(folder: str, questions: list) -> None:
    """One and two workers of one thread each, from when all have loaded and answered a first batch."""
    size = min(64, max(1, len(questions) // 6))  # so that every worker gets several batches
    requests, places = planned(questions, models.load_processor(folder), size)
    batches = {number: [requests[i] for i in batch] for number, batch in enumerate(places)}
    rates, apart = {1: [], 2: []}, []
    for count in (1, 2, 2, 1):
        rate, spread = worker_rate(folder, count, batches)
        rates[count].append(rate)
        apart += [spread] * (count == 2)
    one, two = statistics.mean(rates[1]), statistics.mean(rates[2])
    print(f"\n## Workers of one thread each, {len(questions)} questions in {len(batches)} batches\n")
    print(f"one worker {one:.2f} questions/s, two {two:.2f}: {two / one:.2f} times")
    print("two workers finish within " + ", ".join(f"{x:.1%}" for x in apart) + " of the time of each other")


def worker_rate(folder: str, count: int, batches: dict) -> tuple[float, float]:
    """Questions per second, and the last answers' distance in time as a share of the whole."""
    setup, answered = Setup(folder, None, "fp32", "sdpa", NEW), []  # (time, worker, questions)
    for done in answer_in_processes(setup, ["cpu"] * count, batches, threads=1):
        answered.append((time.perf_counter(), done.worker, len(done.answers)))
    begin = max(next(t for t, worker, _ in answered if worker == w) for w in range(count))
    last = [max(t for t, worker, _ in answered if worker == w) for w in range(count)]
    rate = sum(n for t, _, n in answered if t > begin) / (max(last) - begin)
    return rate, (max(last) - min(last)) / (max(last) - begin)


def main(args) -> None:
    import torch

    if not (Path(args.nano_model) / "config.json").is_file():
        args.problems.add(f"--nano_model: no model in {args.nano_model}; nano/make_nano.py writes one")
    questions = read_questions(args)
    torch.set_num_threads(args.threads)
    keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        make_model(args, Path(folder))
        compare(args, "LLaVA, 144 image tokens, random weights", folder, questions)
        compare(args, "nano LLaVA", args.nano_model, questions)
        if args.workers:
            compare_workers(folder, questions)


if __name__ == "__main__":
    main(parse_args())

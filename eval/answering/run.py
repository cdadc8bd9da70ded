"""The run around an evaluation, the same for every benchmark: checks, batches, answers kept on disk, results.

While it runs, answers lie in `<shot>/.forget05.<settings>.partial/answers.jsonl`, one line per batch, written
when the batch is whole. The settings' digest is in the name: a stopped run goes on, and a run with other
settings never picks up its answers. When all questions are answered, results appear in `<shot>/forget05/`, as
a whole. Two runs on the same folder exclude each other.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results.predictions import Prediction, read_predictions
from eval.results.summary import paired_differences, summarise
from eval.tasks import TASKS
from utils import checkpoint, jsonl, models
from utils.data import Question, fingerprint

ANSWERS = "answers.jsonl"


@dataclass
class Batch:
    """What one batch brought: a line of the answers kept on disk."""

    worker: int
    cost: dict[str, Any]
    predictions: list[Prediction]

    def line(self) -> dict[str, Any]:
        return vars(self) | {"predictions": [p.fields() for p in self.predictions]}


def result_folder(args) -> Path:
    return _evaluation(args.output_dir or args.evaluated_model, args)


def _evaluation(model: str, args) -> Path:
    return Path(model) / args.shot / f"forget{args.forget_ratio:02d}"


def check_evaluation(args, questions: list[Question], bench) -> None:
    """All input mistakes at once, before torch is imported."""
    models.check_model(args.evaluated_model, "--evaluated_model", args.problems)
    models.check_model(args.original_model, "--original_model", args.problems)
    flags = [("--evaluated_model", args.evaluated_model), ("--original_model", args.original_model)]
    models.check_processor(flags, args.problems)
    if args.evaluated_model and models.local_folder(args.evaluated_model) is None and not args.output_dir:
        args.problems.add("--output_dir is needed where --evaluated_model is not a folder")
    _check_vanilla(args)
    args.problems.stop()
    for line in bench.notes:
        print(f"note: {line}")
    counts = {split: sum(q.split == split for q in questions) for split in args.splits}
    print("questions: " + ", ".join(f"{split} {n}" for split, n in counts.items()))


def _check_vanilla(args) -> None:
    """--vanilla_dir: evaluated already, in the same way."""
    if not args.vanilla_dir:
        return
    kept = _evaluation(args.vanilla_dir, args) / "results.json"
    if not kept.is_file():
        args.problems.add(f"--vanilla_dir: no evaluation in {kept.parent}; evaluate the vanilla model first")
        return
    before = checkpoint.read_json(kept)
    for name in ("mcq", "seed"):
        if before.get(name) != getattr(args, name):
            args.problems.add(
                f"--vanilla_dir: it was evaluated with --{name} {before.get(name)}, not {getattr(args, name)}"
            )


def evaluate(
    args, questions: list[Question], request: Callable, bench, examples: Sequence[Question] = ()
) -> None:
    """Answer all questions and write the results.

    request: (question, chat) -> eval.answering.generate.Request; examples: the solved questions that its
    prompts show.
    """
    settings = _settings(args, questions, examples)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = result_folder(args)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with checkpoint.exclusive(folder.with_name(f".{folder.name}.lock"), f"an evaluation writes {folder}"):
        parts = folder.with_name(f".{folder.name}.{digest}.partial")
        parts.mkdir(exist_ok=True)
        kept = _kept(parts / ANSWERS)
        finished = {p.id for batch in kept for p in batch.predictions}
        todo = [q for q in questions if q.id not in finished]
        if todo:
            kept += _answer(args, questions, todo, request, parts / ANSWERS)
        _write_results(args, questions, settings, kept, folder, bench)
        for old in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(old)


def _settings(args, questions: list[Question], examples: Sequence[Question]) -> dict[str, Any]:
    """Whatever changes an answer. Batch size and workers do not."""
    local = models.local_folder(args.evaluated_model)
    names = (
        "forget_ratio", "splits", "shot", "shots", "mcq", "seed", "max_new_tokens", "dtype", "attn",
        "original_model",
    )  # fmt: skip
    return {name: getattr(args, name) for name in names} | {
        "model": _weights_stamp(local) if local else args.evaluated_model,
        "questions": fingerprint(questions),
        "examples": fingerprint(examples),
    }


def _weights_stamp(folder: Path) -> str:
    """Changes when the weight files are written anew, without reading them."""
    stamps = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in models.weight_files(folder)]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- answering
def _kept(path: Path) -> list[Batch]:
    """The batches on disk. A line that a stop cut short is no batch, and is cut off."""
    lines, rest = jsonl.read(path)
    jsonl.cut(path, rest)
    batches = [Batch(**json.loads(line)) for line in lines]
    for batch in batches:
        batch.predictions = [Prediction(**fields) for fields in batch.predictions]
    return batches


def _answer(
    args, questions: list[Question], todo: list[Question], request: Callable, path: Path
) -> list[Batch]:
    """Answer what is still to do, in the batches of the whole list; each is on disk when it is done."""
    from eval.answering.plan import plan_batches
    from eval.answering.workers import Setup, answer_batches, pick_devices
    from utils.collate import Chat, PromptLengths

    devices = pick_devices(args.gpus)
    if models.rounds(args.evaluated_model, args.dtype):
        print("note: weights in fp32 are rounded to bf16; --dtype fp32 evaluates what was trained")
    processor = models.load_processor(args.evaluated_model, args.original_model)
    chat = Chat(processor)
    requests = {q.id: request(q, chat) for q in questions}
    lengths = PromptLengths(processor, chat)
    costs = [requests[q.id].memory_cost(lengths, args.max_new_tokens) for q in questions]
    wanted = {q.id for q in todo}
    batches = [
        [questions[i] for i in batch] for batch in plan_batches(costs, args.batch_size, args.batch_tokens)
    ]
    batches = [[q for q in batch if q.id in wanted] for batch in batches]
    batches = {number: batch for number, batch in enumerate(batches) if batch}
    setup = Setup(args.evaluated_model, args.original_model, args.dtype, args.attn, args.max_new_tokens)
    asked = {number: [requests[q.id] for q in batch] for number, batch in batches.items()}
    out = []
    with path.open("ab") as file, Progress(len(todo), devices) as progress:
        for done in answer_batches(setup, devices, asked):
            batch = batches[done.batch]
            answered = zip(batch, done.answers, strict=True)
            scored = [Prediction.of(q, requests[q.id].prompt, reply) for q, reply in answered]
            out.append(Batch(done.worker, done.cost, scored))
            jsonl.append(file, out[-1].line())
            progress.update(done.worker, len(batch))
    return out


class Progress:
    """One line per worker: questions answered, its even share of those that are left, and the time they
    will take."""

    def __init__(self, total: int, devices: Sequence[str]):
        from tqdm import tqdm

        self.left = total
        self.bars = [
            tqdm(
                total=-(-total // len(devices)), position=i, unit="question", desc=f"worker {i} ({device})",
                mininterval=1.0, smoothing=0.1,
            )
            for i, device in enumerate(devices)
        ]  # fmt: skip

    def update(self, worker: int, answered: int) -> None:
        self.left -= answered
        for i, bar in enumerate(self.bars):
            bar.total = bar.n + answered * (i == worker) + -(-self.left // len(self.bars))
        self.bars[worker].update(answered)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        for bar in self.bars:
            bar.close()


# ---------------------------------------------------------------- results
def _write_results(
    args, questions: list[Question], settings: dict, kept: list[Batch], folder: Path, bench
) -> None:
    answered = {p.id: p for batch in kept for p in batch.predictions}
    predictions = [answered[q.id] for q in questions]
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for split in args.splits:
        text = "".join(p.line() for p in predictions if p.split == split)
        (fresh / f"predictions_{split}.jsonl").write_text(text, encoding="utf-8")
    results = {
        "benchmark": bench.name,
        "model": str(args.evaluated_model),
        "method": Path(args.evaluated_model).name,
        **{k: settings[k] for k in ("forget_ratio", "shot", "seed", "mcq")},
        "data": {"folder": str(bench.given), "fingerprint": settings["questions"]},
        "splits": summarise(predictions),
        **_differences(args, predictions),
        "settings": settings,
        "versions": checkpoint.versions(),
        "cost": _cost(kept),
    }
    checkpoint.write_json(fresh / "results.json", results)
    checkpoint.publish(fresh, folder)
    for split, tasks in results["splits"].items():
        cells = [
            f"{task} {modality} {TASKS[task].text(entry)}"
            for task, kinds in tasks.items()
            for modality, entry in kinds.items()
        ]
        print(f"{split:7} {'; '.join(cells)}")
    print(f"saved {folder / 'results.json'}")


def _differences(args, predictions: list[Prediction]) -> dict[str, Any]:
    """Paired differences to the vanilla model, where --vanilla_dir names it."""
    if not args.vanilla_dir:
        return {}
    vanilla = _evaluation(args.vanilla_dir, args)
    files = [vanilla / f"predictions_{split}.jsonl" for split in args.splits]
    theirs = [p for file in files if file.is_file() for p in read_predictions(file)]
    return {"differences": {"vanilla": str(vanilla), "splits": paired_differences(predictions, theirs)}}


def _cost(kept: list[Batch]) -> list[dict[str, Any]]:
    """Per worker: questions, seconds at work (loading included), peaks of memory; over all runs, if there
    were stops."""
    workers: dict[int, dict[str, Any]] = {}
    for batch in kept:
        new = batch.cost
        old = workers.setdefault(batch.worker, {**new, "questions": 0, "seconds": 0.0})
        old["questions"] += new["questions"]
        old["seconds"] = round(old["seconds"] + new["seconds"], 1)
        for name in ("peak_memory_bytes", "peak_gpu_memory_bytes"):
            old[name] = new[name] and max(old[name] or 0, new[name])
    return [workers[number] for number in sorted(workers)]

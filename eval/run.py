"""The run around an evaluation, the same for every benchmark: checks, shares of work, answers kept on disk,
merged results.

While it runs, answers lie line by line in `<shot>/.forget05.<settings>.partial/`, one file per worker. The
settings' digest is in the name: a stopped run goes on, and a run with other settings never picks up its
answers. When all questions are answered they are merged into `<shot>/forget05/`, which appears as a whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.metrics import (
    HEADLINES,
    cloze_hit,
    generation_scores,
    letter_choice,
    probability,
    summarise,
    truth_scores,
)
from utils import checkpoint, models, run
from utils.data import Question, fingerprint


def result_folder(args) -> Path:
    return Path(args.output_dir or args.evaluated_model) / args.shot / f"forget{args.forget_ratio:02d}"


def check(args, questions: list[Question], bench) -> None:
    """All input mistakes at once, before torch is imported."""
    models.check_model(args.evaluated_model, "--evaluated_model", args.problems)
    models.check_model(args.original_model, "--original_model", args.problems)
    flags = [("--evaluated_model", args.evaluated_model), ("--original_model", args.original_model)]
    models.check_processor(flags, args.problems)
    if args.evaluated_model and models.local_folder(args.evaluated_model) is None and not args.output_dir:
        args.problems.add("--output_dir is needed where --evaluated_model is not a folder")
    if args.worker is not None and args.worker >= args.workers:
        args.problems.add(f"--worker: {args.worker} of {args.workers} workers; count from 0")
    args.problems.stop()
    if args.worker is None and not args.merge:
        for line in bench.notes:
            print(f"note: {line}")
        counts = {split: sum(q.split == split for q in questions) for split in args.splits}
        print("questions: " + ", ".join(f"{split} {n}" for split, n in counts.items()))


def evaluate(
    args, questions: list[Question], request: Callable, bench, examples: Sequence[Question] = ()
) -> None:
    """This worker's share of the questions, or the merge of all shares (or only the checks, which are then
    done).

    request: (question, chat) -> eval.generate.Request; examples: the solved questions that its prompts show.
    """
    if args.check_only:
        return
    settings = _settings(args, questions, examples)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = result_folder(args)
    parts = folder.with_name(f".{folder.name}.{digest}.partial")
    parts.mkdir(parents=True, exist_ok=True)
    if not args.merge:
        _answer_share(args, questions, request, parts)
    if args.worker is None:
        _merge(args, questions, settings, parts, folder, bench)


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
    """Changes when the weight files are written anew; cheap, so that --merge need not read them."""
    stamps = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in models.weight_files(folder)]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]


def share_of(questions: list[Question], worker: int, workers: int) -> list[Question]:
    """Whole people, dealt in turn, so that all workers get about as many questions and a picture stays with
    one."""
    order = {unit: i for i, unit in enumerate(dict.fromkeys((q.split, q.person) for q in questions))}
    return [q for q in questions if order[q.split, q.person] % workers == worker]


# ---------------------------------------------------------------- answering
def _answer_share(args, questions: list[Question], request: Callable, parts: Path) -> None:
    from tqdm import tqdm

    worker, workers = (0, 1) if args.worker is None else (args.worker, args.workers)
    mine = share_of(questions, worker, workers)
    path = parts / f"worker_{worker}_of_{workers}.jsonl"
    finished = _finished(parts, own=path)
    todo = [q for q in mine if q.id not in finished]
    if not todo:
        return
    import torch

    from eval.generate import Answerer, answer_all

    started = time.monotonic()
    processor = models.load_processor(args.evaluated_model, args.original_model)
    model = models.load_model(args.evaluated_model, args.dtype, args.attn)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    answerer = Answerer(model, processor, models.family_of(model), args.max_new_tokens)
    requests = [request(q, answerer.chat) for q in todo]
    bar = tqdm(
        total=len(mine), initial=len(mine) - len(todo), unit="question", desc=f"worker {worker}",
        position=worker, mininterval=1.0,
    )  # fmt: skip
    with path.open("a", encoding="utf-8") as file, bar:

        def done(i: int, reply: str | list[float]) -> None:
            file.write(json.dumps(prediction(todo[i], requests[i], reply), ensure_ascii=False) + "\n")
            file.flush()

        answer_all(answerer, requests, args.batch_size, done, bar)
    cost = {"questions": len(todo), "device": str(model.device), **run.cost(started)}
    checkpoint.write_json(parts / f"cost_{worker}_of_{workers}.json", cost)


def prediction(question: Question, request, reply: str | list[float]) -> dict[str, Any]:
    """One line of predictions_<split>.jsonl. Option scores give the likeliest option, the first of equals;
    those of a truth ratio are of the right answer first."""
    line = {
        "id": question.id,
        "person": question.person,
        "split": question.split,
        "task": question.task,
        "modality": question.modality,
        "question": question.question,
        "options": question.options,
        "prompt": request.prompt,
        "reply": reply,
        "choice": None,
        "truth": question.truth,
        "picture": question.picture_ref,
    }
    if question.task == "classification":
        if isinstance(reply, list):
            scores = dict(zip(question.options, reply))
            choice = max(scores, key=scores.get)
            line |= {
                "reply": question.options[choice],
                "option_scores": {k: round(v, 4) for k, v in scores.items()},
            }
        else:
            choice = letter_choice(reply, question.options)
        return line | {"choice": choice, "correct": choice == question.truth}
    if question.task == "cloze":
        return line | {"correct": cloze_hit(reply, question.truth)}
    if question.task == "generation":
        return line | {"scores": generation_scores(reply, question.truth)}
    line |= {"reply": None, "answer_scores": [round(score, 6) for score in reply]}
    if question.task == "probability":
        return line | {"scores": {"probability": probability(reply[0])}}
    return line | {"scores": truth_scores(right=reply[0], wrong=reply[1:])}


def _finished(parts: Path, own: Path | None = None) -> dict[str, dict]:
    """All answers on disk by question id.

    A line cut short is no answer: cut off the `own` file, which is going to be continued, and passed over in
    another worker's, which may just be writing it.
    """
    found = {}
    for path in sorted(parts.glob("worker_*.jsonl")):
        # bytes: a cut may go through a letter, and texts may hold what str.splitlines takes for a line's end
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if path == own and whole != data:
            path.write_bytes(whole)
        for line in whole.split(b"\n")[:-1]:
            answer = json.loads(line)
            found[answer["id"]] = answer
    return found


# ---------------------------------------------------------------- merging
def _merge(args, questions: list[Question], settings: dict, parts: Path, folder: Path, bench) -> None:
    finished = _finished(parts)
    missing = [q.id for q in questions if q.id not in finished]
    if missing:
        share = f"{len(missing)} of {len(questions)}"
        raise SystemExit(
            f"error: {share} questions have no answer yet, e.g. {missing[0]}; run the workers again"
        )
    lines = [finished[q.id] for q in questions]
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for split in args.splits:
        text = "".join(
            json.dumps(line, ensure_ascii=False) + "\n" for line in lines if line["split"] == split
        )
        (fresh / f"predictions_{split}.jsonl").write_text(text, encoding="utf-8")
    results = {
        "benchmark": bench.name,
        "model": str(args.evaluated_model),
        "method": Path(args.evaluated_model).name,
        **{k: settings[k] for k in ("forget_ratio", "shot", "seed", "mcq")},
        "data": {"folder": str(bench.given), "fingerprint": settings["questions"]},
        "splits": summarise(lines),
        "settings": settings,
        "versions": checkpoint.versions(),
        "cost": [json.loads(p.read_text()) for p in sorted(parts.glob("cost_*.json"))],
    }
    checkpoint.write_json(fresh / "results.json", results)
    checkpoint.publish(fresh, folder)
    for old in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(old)
    for split, tasks in results["splits"].items():
        cells = [
            f"{task} {modality} {_short(task, summary)}"
            for task, kinds in tasks.items()
            for modality, summary in kinds.items()
        ]
        print(f"{split:7} {'; '.join(cells)}")
    print(f"saved {folder / 'results.json'}")


def _short(task: str, summary: dict[str, Any]) -> str:
    if "correct" in summary:
        return f"{summary['accuracy']:.1f} ({summary['correct']}/{summary['total']})"
    field, name = HEADLINES[task]
    return f"{name} {summary[field]:.3f} ({summary['total']})"

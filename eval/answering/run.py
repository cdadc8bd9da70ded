"""The run around an evaluation, the same for every benchmark: checks, batches, answers kept on disk, results.

Answers are kept as batches finish (eval/answering/kept.py). When all questions are answered, by this run, by
earlier ones and by parts on other machines, results appear in `<shot>/forget05/`, as a whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.answering.kept import Batch, Kept
from eval.results import section
from eval.results.predictions import Prediction, read_predictions
from eval.results.read import ASKED, VERSION, other_ratio, read_results, training_of
from eval.results.summary import doubts, paired_differences, summarise
from eval.tasks import TASKS
from utils import checkpoint, cli, flags, models
from utils.benchmark import NANO
from utils.data import Question, fingerprint
from utils.loop import card
from utils.planning import loadable
from utils.reading import model_files
from utils.run import folders, jsonl
from utils.run.screen import step

if TYPE_CHECKING:
    from eval.answering.plan import MemoryCost, Request


def result_folder(args) -> Path:
    return _evaluation(args.output_dir or args.evaluated_model, args)


def _evaluation(model: str, args) -> Path:
    return Path(model) / args.shot / f"forget{args.forget_ratio:02d}"


def check_evaluation(args, questions: list[Question], bench) -> None:
    """All input mistakes at once, before torch is imported. Sets args.mcq where it was not given,
    args.trained, what is known of the model's training, and args.vanilla, the vanilla model's answers."""
    loadable.check_model(args.evaluated_model, "--evaluated_model", args.problems)
    loadable.check_model(args.original_model, "--original_model", args.problems)
    named = [("--evaluated_model", args.evaluated_model), ("--original_model", args.original_model)]
    notes = loadable.check_processor(named, args.problems)
    if (
        args.evaluated_model
        and model_files.local_folder(args.evaluated_model) is None
        and not args.output_dir
    ):
        args.problems.add("--output_dir is needed where --evaluated_model is not a folder")
    elif args.evaluated_model or args.output_dir:
        _check_output(args, bench)
    args.mcq, why = _scoring(args, bench)
    args.trained = _training(args)
    args.vanilla = _vanilla(args, questions, bench)
    twice = [name for name, count in Counter(q.id for q in questions).items() if count > 1]
    if twice:  # answers are kept by the id: one of the two would never be asked
        args.problems.add(f"--data_split_dir: {len(twice)} ids are of several questions, e.g. {twice[0]}")
    if not questions and not args.problems.lines:
        args.problems.add(
            f"--tasks: there are no questions of {', '.join(args.tasks)} in {', '.join(args.splits)}"
        )
    args.problems.stop()
    print(cli.given(args))
    for line in [*bench.notes, *notes]:
        print(f"note: {line}")
    counts = {split: sum(q.split == split for q in questions) for split in args.splits}
    print("questions: " + ", ".join(f"{split} {n}" for split, n in counts.items()))
    print(f"multiple choice by {args.mcq} ({why})")
    ratio = other_ratio(args.trained, args.forget_ratio)
    if ratio is not None:
        print(
            f"note: {args.evaluated_model} was trained at forget {ratio} %, and is evaluated at"
            f" {args.forget_ratio} %: other people are forgotten than asked about"
        )


def _check_output(args, bench) -> None:
    """The result can be written, and replaces nothing but an earlier one of the same benchmark."""
    folder, flag = result_folder(args), "--output_dir" if args.output_dir else "--evaluated_model"
    try:
        if args.part != (1, 1):
            # another part that starts at the same time would remove it again, having tried it
            folder.parent.mkdir(parents=True, exist_ok=True)
        why = folders.why_not_a_place(folder) or folders.why_not_written(folder)
        why = why or folders.why_not_ours(folder, "results.json")
        if above := folders.written_above(folder):
            why = f"lies in {above}, which another run writes now; wait for it, or stop it"
    except OSError as error:
        why = f"cannot be written: {error.strerror}"
    if not why and (folder / "results.json").is_file():
        with suppress(ValueError):  # what cannot be read is no loss
            before = read_results(folder / "results.json")["benchmark"]
            if before != bench.name:
                why = f"holds an evaluation on {before}, not {bench.name}; choose another --output_dir"
    if why:
        args.problems.add(f"{flag}: {folder} {why}")


def _scoring(args, bench) -> tuple[str, str]:
    """How multiple choice is scored, and why so."""
    if args.mcq:
        return args.mcq, "--mcq"
    for path in (folder / NANO for folder in bench.roots if (folder / NANO).is_file()):
        try:
            wanted = checkpoint.read_json(path).get("mcq")
            if wanted not in (None, *flags.SCORINGS):
                raise ValueError(f"mcq is {wanted!r}")
        except (ValueError, AttributeError) as error:
            args.problems.add(f"--data_split_dir: {path} is not as nano/make_nano.py writes it ({error})")
            break
        if wanted:
            return wanted, f"as {path} says"
    return "letter", "the benchmark's rule"


def _training(args) -> dict[str, Any]:
    """How the model was trained, as far as its folder tells."""
    try:
        return training_of(args.evaluated_model or "")
    except ValueError as why:
        args.problems.add(f"--evaluated_model: {why}")
        return {}


def _vanilla(args, questions: list[Question], bench) -> list[Prediction]:
    """The predictions of --vanilla_dir, evaluated already, in the same way."""
    if not args.vanilla_dir:
        return []
    kept = _evaluation(args.vanilla_dir, args) / "results.json"
    if not kept.is_file():
        args.problems.add(f"--vanilla_dir: no evaluation in {kept.parent}; evaluate the vanilla model first")
        return []
    try:
        before = read_results(kept)
        files = [kept.with_name(f"predictions_{split}.jsonl") for split in args.splits]
        predictions = [p for file in files if file.is_file() for p in read_predictions(file)]
    except ValueError as why:
        args.problems.add(f"--vanilla_dir: {why}; evaluate the vanilla model again")
        return []
    if before["benchmark"] != bench.name:
        args.problems.add(
            f"--vanilla_dir: it was evaluated with --benchmark {before['benchmark']}, not {bench.name}"
        )
        return []
    now = {name: getattr(args, name) for name in ("forget_ratio", "shot", "mcq", "seed")}
    settings = before.get("settings", {})
    asked = {name: getattr(args, name) for name in ASKED if name in settings}
    for name, value in (now | asked).items():
        was = (settings if name in asked else before).get(name)
        if was != value:
            args.problems.add(f"--vanilla_dir: it was evaluated with --{name} {was}, not {value}")
    comparable = before["seed"] == args.seed and not args.skip_bad_rows
    data = settings.get("data", {}) if comparable else {}
    now_asked = _fingerprints(questions) if data else {}
    if other := [part for part in data if now_asked.get(part, data[part]) != data[part]]:
        args.problems.add(
            f"--vanilla_dir: it was asked other questions, or about other pictures, in {', '.join(other)}"
        )
    return predictions


def evaluate(
    args, questions: list[Question], request: Callable, bench, examples: Sequence[Question] = ()
) -> None:
    """Answer all questions and write the results.

    request: (question, chat) -> eval.answering.generate.Request; examples: the solved questions that its
    prompts show.
    """

    def write(predictions: list[Prediction], settings: dict, batches: list[Batch], folder: Path) -> None:
        _write_results(args, predictions, settings, batches, folder, bench)

    answer(args, questions, request, result_folder(args), write, examples)


def answer(
    args,
    questions: list[Question],
    request: Callable,
    folder: Path,
    write: Callable,
    examples: Sequence[Question] = (),
    change: Callable | None = None,
) -> None:
    """Answer all questions; once all are answered, write(predictions, settings, batches, folder) makes the
    folder. change: model -> model, what becomes of the evaluated model before it is asked; its repr() stands
    in the settings."""
    asked = _ask(args, questions, request, examples)
    questions = asked.questions
    settings = _settings(args, questions, examples) | ({"change": repr(change)} if change else {})
    kept = Kept(folder, settings, args.part)
    try:
        with kept.taken():
            answered = _answered(args, kept)
            if any(q.id not in answered for q in questions):
                _answer(args, asked, answered, kept, settings, change)
            with kept.alone():
                _finish(questions, settings, kept, write)
    except (KeyboardInterrupt, OSError) as why:  # utils/cli.py makes one line of it, a full disk for instance
        why.add_note(
            f"{len(_answered(args, kept))} of {len(questions)} answers are kept; the same command goes on"
        )
        raise


def _answered(args, kept: Kept) -> set[str]:
    """The questions that are answered already. Stops where what lies on disk is no answer of these."""
    try:
        return {p.id for batch in kept.batches() for p in batch.predictions}
    except ValueError as why:
        args.problems.add(f"{why}; take that file away, and what it held is answered anew")
        args.problems.stop()


def _settings(args, questions: list[Question], examples: Sequence[Question]) -> dict[str, Any]:
    """Whatever changes an answer. Batch size and workers do not."""
    local = model_files.local_folder(args.evaluated_model)
    names = (
        "forget_ratio", "splits", "shot", "shots", "mcq", "seed", "max_new_tokens", "dtype", "attn",
        "original_model",
    )  # fmt: skip
    return {name: getattr(args, name) for name in names} | {
        "model": weights_stamp(local) if local else args.evaluated_model,
        "questions": fingerprint(questions),
        "data": _fingerprints(questions),
        "examples": fingerprint(examples),
    }


def _fingerprints(questions: list[Question]) -> dict[str, str]:
    """{"forget cloze": what was asked there, pictures included}"""
    parts: dict[str, list[Question]] = {}
    for q in questions:
        parts.setdefault(f"{q.split} {q.task}", []).append(q)
    return {part: fingerprint(asked) for part, asked in parts.items()}


def weights_stamp(folder: Path) -> str:
    """Changes when the weight files are written anew, without reading them."""
    stamps = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in model_files.weight_files(folder)]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- answering
@dataclass(frozen=True)
class Asked:
    """The questions, with what the model is asked, by their ids, and the memory that it takes."""

    questions: list[Question]
    requests: dict[str, Request]
    costs: dict[str, MemoryCost]


def _ask(args, questions: list[Question], request: Callable, examples: Sequence[Question]) -> Asked:
    """What the model is asked. Stops with the questions that it cannot be asked, or, with --skip_bad_rows,
    leaves them out."""
    from utils.planning.fitting import Fitting, those_that_fit

    step("importing torch, and looking at the model, its processor and the questions")
    notes = loadable.check_shapes(args.evaluated_model, "--evaluated_model", args.problems)
    args.problems.stop()
    for line in notes:
        print(f"note: {line}")
    processor = models.load_processor(args.evaluated_model, args.original_model)
    fitting, requests, costs = Fitting(processor, args.evaluated_model), {}, {}

    def texts(question: Question) -> str | None:
        options = {f"option {letter}": text for letter, text in (question.options or {}).items()}
        return fitting.texts({"question": question.question, "answer": question.truth, **options})

    def why_not(question: Question) -> str | None:
        asked = request(question, fitting.chat)
        why = texts(question) or fitting.pictures(asked.pictures)
        if why is None:
            cost = asked.memory_cost(fitting.lengths, args.max_new_tokens)
            requests[question.id], costs[question.id] = asked, cost
            why = fitting.length(cost.shared + cost.tokens)
        return why

    for example in examples:
        if why := texts(example) or fitting.pictures([example.picture] if example.picture else []):
            args.problems.add(
                f"--data_split_dir: {example.id}: {why}; all prompts show it as a solved example (another"
                " --seed draws another)"
            )
    args.problems.stop()
    questions = those_that_fit(questions, why_not, args)
    args.problems.stop()
    return Asked(questions, requests, costs)


def _answer(
    args, asked: Asked, answered: set[str], kept: Kept, settings: dict, change: Callable | None
) -> None:
    """Answer what is still to do of this part, in the batches of the whole list; each is on disk when it is
    done."""
    from eval.answering.plan import plan_batches, share
    from eval.answering.workers import Setup, answer_batches, pick_devices

    devices = pick_devices(args.gpus)
    if models.rounds(args.evaluated_model, args.dtype):
        print("note: weights in fp32 are rounded to bf16; --dtype fp32 evaluates what was trained")
    questions, requests = asked.questions, asked.requests
    costs = [asked.costs[q.id] for q in questions]
    planned = plan_batches(costs, args.batch_size, args.batch_tokens)
    if kept.parts > 1:
        _agree(args, kept, settings, planned, devices)
    kept.answers.mkdir(exist_ok=True)
    shares = share(costs, planned, kept.parts)
    batches = {}
    for number, batch in enumerate(planned):
        left = [questions[i] for i in batch if questions[i].id not in answered]
        if left and shares[number] == kept.part:
            batches[number] = left
    todo = sum(map(len, batches.values()))
    if not todo:
        return
    setup = Setup(
        args.evaluated_model, args.original_model, args.dtype, args.attn, args.max_new_tokens, change
    )
    tasks = {number: [requests[q.id] for q in batch] for number, batch in batches.items()}
    with kept.file.open("ab") as file, Progress(todo, devices) as progress:
        for done in answer_batches(setup, devices, tasks):
            batch = batches[done.batch]
            replies = zip(batch, done.answers, strict=True)
            scored = [Prediction.of(q, requests[q.id].prompt, reply) for q, reply in replies]
            jsonl.append(file, Batch(kept.settings, kept.part, done.worker, done.cost, scored).line())
            progress.update(done.worker, len(batch))


def _agree(args, kept: Kept, settings: dict, planned: list[list[int]], devices: Sequence[str]) -> None:
    """Stop unless the other parts were started with the same arguments, model, questions and versions: they
    answer batches of one list."""
    limits = {name: getattr(args, name) for name in ("batch_size", "batch_tokens")}
    plan = (
        {"parts": kept.parts}
        | limits
        | settings
        | {
            "precision": str(models.pick_dtype(args.dtype)),
            "device": devices[0].partition(":")[0],
            "versions": checkpoint.versions(),
            "batches": hashlib.sha256(json.dumps(planned).encode()).hexdigest()[:16],
        }
    )
    try:
        if differ := kept.agree(plan):
            args.problems.add(
                f"--part: other {', '.join(differ)} than the first part had; start all with the same command,"
                f" or remove {kept.plan} to start anew"
            )
    except ValueError as why:
        args.problems.add(f"--part: {why}; remove it to start anew")
    args.problems.stop()


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
def _finish(questions: list[Question], settings: dict, kept: Kept, write: Callable) -> None:
    """Write the results if all is answered; else leave that to the part that is last."""
    if not kept.answers.is_dir():
        print(f"part {kept.part} of {kept.parts} is done; another has written {kept.folder}")
        return
    batches = kept.batches()
    answered = {p.id: p for batch in batches for p in batch.predictions}
    left = sum(q.id not in answered for q in questions)
    if left:
        print(
            f"part {kept.part} of {kept.parts} is done; {left} questions are left to the others, whose last"
            f" writes {kept.folder}"
        )
        return
    write([answered[q.id] for q in questions], settings, batches, kept.folder)
    kept.remove()


def _write_results(
    args, predictions: list[Prediction], settings: dict, batches: list[Batch], folder: Path, bench
) -> None:
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for split in args.splits:
        text = "".join(p.line() for p in predictions if p.split == split)
        (fresh / f"predictions_{split}.jsonl").write_text(text, encoding="utf-8")
    results = {
        "version": VERSION,
        "benchmark": bench.name,
        "model": str(args.evaluated_model),
        "method": Path(args.evaluated_model).name,
        **{k: settings[k] for k in ("forget_ratio", "shot", "seed", "mcq")},
        "data": {"folder": str(bench.given), "fingerprint": settings["questions"]},
        **({"trained": args.trained} if args.trained else {}),
        "splits": summarise(predictions),
        **_differences(args, predictions),
        "settings": settings,
        "versions": checkpoint.versions(),
        "cost": _cost(batches),
    }
    checkpoint.write_json(fresh / "results.json", results)
    folders.publish(fresh, folder)
    _to_card(args, results)
    for split, tasks in results["splits"].items():
        cells = [
            f"{task} {modality} {TASKS[task].text(entry)}"
            for task, kinds in tasks.items()
            for modality, entry in kinds.items()
        ]
        print(f"{split:7} {'; '.join(cells)}")
    for split, tasks in results["splits"].items():
        for task, kinds in tasks.items():
            for modality, entry in kinds.items():
                for doubt in doubts(entry):
                    print(f"warning: {split} {task} {modality}: {doubt}")
    print(f"saved {folder / 'results.json'}")


def _to_card(args, results: dict[str, Any]) -> None:
    """The numbers in the model's card, where it has one of ours that can be written."""
    try:
        card.add(args.evaluated_model, section.name(results), section.section(results))
    except OSError as why:
        print(f"note: the numbers are not in {args.evaluated_model}/{card.NAME}: {why.strerror}")


def _differences(args, predictions: list[Prediction]) -> dict[str, Any]:
    """Paired differences to the vanilla model, where --vanilla_dir names it."""
    if not args.vanilla_dir:
        return {}
    folder = str(_evaluation(args.vanilla_dir, args))
    return {"differences": {"vanilla": folder, "splits": paired_differences(predictions, args.vanilla)}}


def _cost(batches: list[Batch]) -> list[dict[str, Any]]:
    """Per worker: questions, seconds at work (loading included), peaks of memory; over all runs, if there
    were stops."""
    workers: dict[tuple[int, int], dict[str, Any]] = {}
    for batch in batches:
        new = batch.cost
        old = workers.setdefault((batch.part, batch.worker), {**new, "questions": 0, "seconds": 0.0})
        old["questions"] += new["questions"]
        old["seconds"] = round(old["seconds"] + new["seconds"], 1)
        for name in ("peak_memory_bytes", "peak_gpu_memory_bytes"):
            old[name] = new[name] and max(old[name] or 0, new[name])
    return [workers[place] for place in sorted(workers)]

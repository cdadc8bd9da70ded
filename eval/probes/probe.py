"""What all probes share: their flags, whom and what they ask, the asking itself, and what they find.

    def main(args):
        study = probe.Study(args)  # models, their evaluations, questions; stops with all that is wrong
        questions = [probe.changed(q, "4 bits") for q in study.questions]
        asking = probe.Asking("4bit", questions, change=RoundToNearest(4, 0))
        probe.run(study, "quantise", lambda subject: [asking], {"bits": 4})

A probe asks questions of an evaluation again, after an attack. What the evaluation found is taken from it,
and so are its settings: nothing is evaluated twice, and a probe has flags only for what it adds. Questions
are asked by eval/answering, in its batches, by its workers; a probe that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from eval import tasks
from eval.answering.run import answer, weights_stamp
from eval.prompts import clear_prompt, mllmu_prompt
from eval.results.predictions import Prediction, read_predictions
from eval.results.probes import Finding, Row, findings, probe_folder, read_probe, table, write_probe
from eval.results.read import read_results
from utils import cli, flags
from utils.benchmark import is_nano
from utils.clear import CLEARBench
from utils.data import Question, fingerprint
from utils.mllmu import MLLMUBench
from utils.planning import loadable
from utils.run import folders

PROMPTS = {MLLMUBench: mllmu_prompt, CLEARBench: clear_prompt}
TASKS = {MLLMUBench: ["classification"], CLEARBench: ["classification", "probability"]}  # asked by default
TAKEN = ("forget_ratio", "mcq", "seed", "max_new_tokens", "dtype", "attn")  # from the evaluation


# ---------------------------------------------------------------- the command line
def parser(doc: str) -> argparse.ArgumentParser:
    """MODEL, --reference, --vanilla, and what the evaluation is asked otherwise than it was."""
    p = cli.parser(doc)
    p.add_argument("model", help="folder of the unlearned model, evaluated before")
    g = p.add_argument_group("models")
    g.add_argument("--reference", required=True, help="retrained model, evaluated before: the control")
    g.add_argument("--vanilla", required=True, help="vanilla model, evaluated before: what was known")
    g.add_argument(
        "--original_model", help="gives the processor where a model holds none; default: as in the evaluation"
    )
    g = p.add_argument_group("questions", "By default those of the model's own zero-shot evaluation.")
    g.add_argument("--data_split_dir", help="benchmark folder; default: as in the evaluation")
    flags.add_ratio(g, "percentage of people to forget; default: of the only evaluation that there is")
    g.add_argument(
        "--tasks",
        type=cli.choices(*tasks.TASKS),
        help="which questions are asked (comma-separated); default classification, and probability on CLEAR,"
        " whose text questions have no options",
    )
    g.add_argument(
        "--retain_people",
        type=cli.number(int, 1),
        help="people to retain who are asked about, drawn once for all; default: as many as are to be"
        " forgotten",
    )
    g = p.add_argument_group("answering")
    g.add_argument(
        "--gpus", type=cli.numbers(most=8), default=[0],
        help="one worker for each of these GPUs (comma-separated); default 0; without a GPU CPU workers",
    )  # fmt: skip
    g.add_argument(
        "--batch_size", type=cli.number(int, 1), default=256, help="most questions at once; default 256"
    )
    g.add_argument(
        "--batch_tokens", type=cli.number(int, 1), default=32768, help="most tokens at once; default 32768"
    )
    cli.flag(
        g, "--skip_bad_rows", default=False, help="leave out rows that cannot be read or asked; default False"
    )
    # what eval/answering finds in an evaluation's arguments
    p.set_defaults(shot="zero_shot", shots=0, part=(1, 1), vanilla_dir=None)
    return p


# ---------------------------------------------------------------- models
@dataclass(frozen=True)
class Subject:
    """A model with its evaluation: the content of results.json, and the answers by the question's id."""

    folder: Path
    evaluation: dict[str, Any]
    answers: dict[str, Prediction]

    @property
    def name(self) -> str:
        return self.folder.name


def _subject(args, flag: str, name: str) -> Subject | None:
    """The model of that folder with its zero-shot evaluation at --forget_ratio; else a problem."""
    add, folder = args.problems.add, Path(name)
    if not folder.is_dir():
        add(f"{flag}: no such folder: {name}")
        return None
    loadable.check_model(name, flag, args.problems)
    found = folders.found(folder, "zero_shot/forget*/results.json")
    there = [file for file in found if file.parent.name[6:].isdecimal()]
    if args.forget_ratio is not None:
        there = [file for file in there if int(file.parent.name[6:]) == args.forget_ratio]
    if not there:
        ratio = "" if args.forget_ratio is None else f" at forget {args.forget_ratio} %"
        add(
            f"{flag}: no zero-shot evaluation{ratio} in {name}; evaluate it first: python"
            f" eval/MLLMU_eval.py (or CLEAR_eval.py) --evaluated_model {name} ..."
        )
        return None
    if len(there) > 1:
        names = ", ".join(file.parent.name[6:] for file in there)
        add(f"--forget_ratio: {name} was evaluated at {names}; say which")
        return None
    try:
        evaluation = read_results(there[0])
        _ = {key: evaluation["settings"][key] for key in (*TAKEN, "original_model")}
        files = folders.found(there[0].parent, "predictions_*.jsonl")
        answers = {p.id: p for file in files for p in read_predictions(file)}
    except (KeyError, TypeError) as error:
        add(f"{flag}: {there[0]} has no settings ({error}); evaluate that model again")
        return None
    except ValueError as error:
        add(f"{flag}: {error}; evaluate that model again")
        return None
    return Subject(folder, evaluation, answers)


def evaluated(args) -> tuple[Subject, Subject, Subject]:
    """The unlearned model, the retrained one and the vanilla one, all evaluated in the same way. Stops where
    they were not."""
    model = args.model and _subject(args, "model", args.model)
    if model and args.forget_ratio is None:
        args.forget_ratio = model.evaluation["forget_ratio"]
    reference = args.reference and _subject(args, "--reference", args.reference)
    vanilla = args.vanilla and _subject(args, "--vanilla", args.vanilla)
    if reference and args.model and reference.folder.resolve() == Path(args.model).resolve():
        args.problems.add(f"--reference: {args.reference} is the model that is probed")
    args.problems.stop()
    for flag, other in (("--reference", reference), ("--vanilla", vanilla)):
        for name in ("benchmark", "mcq", "seed"):
            if other.evaluation.get(name) != model.evaluation.get(name):
                args.problems.add(
                    f"{flag}: {other.folder} was evaluated with {name} {other.evaluation.get(name)},"
                    f" {model.folder} with {model.evaluation.get(name)}; evaluate it in the same way"
                )
    args.problems.stop()
    made_by = reference.evaluation.get("trained", {}).get("script", "_reference.py")
    if not made_by.endswith("_reference.py"):
        print(
            f"note: --reference: {args.reference} was made by {made_by}, not retrained: what is found means"
            " nothing unless it never knew the people to forget"
        )
    return model, reference, vanilla


def same_answers(args, model: Subject, *others: Subject) -> None:
    """A problem for each of the others that was not asked all that the model was asked, or something else."""
    for other in others:
        differ = [
            key for key, p in model.answers.items() if getattr(other.answers.get(key), "key", "") != p.key
        ]
        if differ:
            args.problems.add(
                f"{other.folder}: {len(differ)} of {len(model.answers)} questions of {model.folder} are not"
                f" in its evaluation, e.g. {differ[0]}; evaluate both on the same splits, tasks and data"
            )


class Study:
    """The unlearned model, the retrained one and the vanilla one, and what they are asked.

    questions: of the tasks, about all people to forget and as many of those to retain; all three models have
    answered each in their evaluations. Stops with all that is wrong with the input.
    """

    def __init__(self, args: argparse.Namespace, modalities: Sequence[str] = ("image", "text")):
        self.args, problems = args, args.problems
        self.model, self.reference, self.vanilla = evaluated(args)
        self._take_settings()
        self.bench = self._bench()
        self.questions = self._questions(modalities)
        for subject in (self.model, self.reference):
            folders.check_writable(subject.folder / "probes", "model", problems)
        if args.original_model:
            loadable.check_model(args.original_model, "--original_model", problems)
        named = [("model", args.model), ("--original_model", args.original_model)]
        notes = loadable.check_processor(named, problems)
        problems.stop()
        for line in [*self.bench.notes, *notes]:
            print(f"note: {line}")
        about = {split: {q.person for q in self.questions if q.split == split} for split in args.splits}
        print("asked about: " + ", ".join(f"{len(people)} people to {who}" for who, people in about.items()))

    @property
    def forget_people(self) -> set[str]:
        return {q.person for q in self.questions if q.split == "forget"}

    def _take_settings(self) -> None:
        """Those of the model's evaluation become the arguments."""
        args, own = self.args, self.model.evaluation
        for name in TAKEN:
            setattr(args, name, own["settings"][name])
        args.original_model = args.original_model or own["settings"]["original_model"]
        args.data_split_dir = args.data_split_dir or own.get("data", {}).get("folder")
        if not args.data_split_dir:
            args.problems.add("--data_split_dir: the evaluation does not say where its data lay; give it")
        args.problems.stop()
        args.splits = ["forget", "retain"]

    def _bench(self):
        args, name = self.args, self.model.evaluation["benchmark"]
        kinds = [kind for kind in tasks.BENCHMARKS if name.removeprefix("nano ") == kind.TITLE]
        if not kinds:
            args.problems.add(f"model: {args.model} was evaluated on {name}, which is no benchmark here")
            args.problems.stop()
        bench = kinds[0](args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
        if not args.problems.lines and is_nano(bench.name) != is_nano(name):
            args.problems.add(f"--data_split_dir: {args.data_split_dir} is {bench.name}, not {name}")
        args.tasks = args.tasks or TASKS[kinds[0]]
        if unknown := [task for task in args.tasks if task not in bench.TASKS]:
            args.problems.add(f"--tasks: {bench.TITLE} has no {', '.join(unknown)}")
        return bench

    def _questions(self, modalities: Sequence[str]) -> list[Question]:
        args = self.args
        wanted = lambda q: q.task in args.tasks and q.modality in modalities
        forget, retain = (list(filter(wanted, self.bench.questions(s, args.seed))) for s in args.splits)
        number = args.retain_people or len({q.person for q in forget})
        kinds: dict[str, set] = defaultdict(set)
        for q in retain:
            kinds[q.person].add((q.task, q.modality))
        # whoever is asked about in most ways comes first: CLEAR has not all people in all of its tables
        order = lambda person: (-len(kinds[person]), hashlib.sha256(person.encode()).digest())
        people = set(sorted(kinds, key=order)[:number])
        questions = forget + [q for q in retain if q.person in people]
        if not args.problems.lines:
            self.check_answered(questions)
        return questions

    def check_answered(self, questions: Sequence[Question]) -> None:
        """A problem for each model that has not answered them, or has answered others by their names."""
        add = self.args.problems.add
        if not questions:
            add(f"--tasks: no questions of {', '.join(self.args.tasks)} here")
        for subject in (self.model, self.reference, self.vanilla):
            answers = subject.answers
            left = [q for q in questions if q.id not in answers]
            other = [q for q in questions if q.id in answers and _key(q) != answers[q.id].key]
            if left:
                add(
                    f"{subject.folder}: its evaluation lacks {len(left)} of {len(questions)} questions, e.g."
                    f" {left[0].id}; evaluate it on the splits {' and '.join(self.args.splits)}, on all tasks"
                )
            elif other:
                add(
                    f"{subject.folder}: it was evaluated on other data than {self.bench.given}: {other[0].id}"
                    " is another question; give --data_split_dir, or evaluate it again"
                )

    # ------------------------------------------------------------ how questions are asked
    def request(self, question: Question, chat):
        """As in the evaluation."""
        return tasks.request(question, chat, mcq=self.args.mcq, prompt=PROMPTS[type(self.bench)])

    def settings(self, subject: Subject, **more: Any) -> dict[str, Any]:
        """Whatever changes an answer of this model, beside the questions. more: the probe's own."""
        names = (*TAKEN, "original_model", "tasks")
        return {name: getattr(self.args, name) for name in names} | {
            "benchmark": self.bench.name, "model": weights_stamp(subject.folder),
            "vanilla": weights_stamp(self.vanilla.folder), "questions": fingerprint(self.questions), **more,
        }  # fmt: skip


def _key(question: Question) -> str:
    """As Prediction.key."""
    parts = [question.id, question.question, question.options, question.truth, question.picture_ref]
    return json.dumps(parts, sort_keys=True)


# ---------------------------------------------------------------- asking
@dataclass(frozen=True)
class Asking:
    """Questions that one model is asked in one go, as `changed` makes them; kept in a folder of that name.

    request: (question, chat) -> Request, the study's where it is left out. change: what becomes of the model
    first (eval.answering.run.answer). make: makes the folder of another model that is asked instead of the
    subject's own, when it is needed; it is deleted again.
    """

    name: str
    questions: Sequence[Question]
    request: Callable | None = None
    change: Callable | None = None
    make: Callable[[], Path] | None = None


def changed(question: Question, condition: str, /, **fields: Any) -> Question:
    """The question as it is asked in a condition, which its id names."""
    if "/" in condition:
        raise ValueError(f"a condition's name has no slash: {condition}")
    return replace(question, id=f"{condition}/{question.id}", **fields)


def ask(study: Study, subject: Subject, probe: str, asking: Asking, settings: Mapping) -> list[Prediction]:
    """The predictions of one asking; those on disk, if they are of the same settings and questions."""
    folder = probe_folder(subject.folder, probe) / asking.name
    wanted = dict(settings) | {"asked": fingerprint(asking.questions), "change": repr(asking.change)}
    wanted = json.loads(json.dumps(wanted))
    splits = list(dict.fromkeys(q.split for q in asking.questions))
    if _settings_of(folder) != wanted:
        source = asking.make() if asking.make else subject.folder
        args = argparse.Namespace(**vars(study.args) | {"evaluated_model": str(source), "splits": splits})
        write = partial(_write_answers, splits, wanted)
        print(f"{subject.name}, {asking.name}: {len(asking.questions)} questions")
        request = asking.request or study.request
        answer(args, list(asking.questions), request, folder, write, change=asking.change)
        if asking.make:
            shutil.rmtree(source)
    try:
        return [p for split in splits for p in read_predictions(folder / f"predictions_{split}.jsonl")]
    except (OSError, ValueError) as why:
        cli.fail(f"{why}; take {folder} away, and what it held is asked again")


def _settings_of(folder: Path) -> dict[str, Any] | None:
    """What answers on disk were given with; None without any that are whole."""
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_answers(splits: Sequence[str], wanted: dict, predictions, settings, batches, folder: Path) -> None:
    """The folder of an asking, as eval.answering.run has it made: its results.json says what was asked."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for split in splits:
        text = "".join(p.line() for p in predictions if p.split == split)
        (fresh / f"predictions_{split}.jsonl").write_text(text, encoding="utf-8")
    cost = [{"worker": batch.worker, **batch.cost} for batch in batches]
    seconds = round(sum(part["seconds"] for part in cost), 1)
    content = {"settings": wanted, "seconds": seconds}
    (fresh / "results.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    folders.publish(fresh, folder)


# ---------------------------------------------------------------- rows
def score(answer: Prediction) -> float:
    """By the headline of its task; 0 or 100 for accuracy."""
    return answer.score(tasks.TASKS[answer.task].headline)


def scores(predictions: Iterable[Prediction]) -> dict[tuple[str, str], float]:
    """{(condition, question's id): score} of the answers to `changed` questions."""
    found = {}
    for p in predictions:
        condition, _, key = p.id.partition("/")
        found[condition, key] = score(p)
    return found


def rows(study: Study, subject: Subject, after: Mapping[tuple[str, str], float]) -> list[Row]:
    """The scores after the attack beside those of the evaluations before it, condition by condition."""
    asked = {q.id: q for q in study.questions}
    vanilla, before = ({key: score(s.answers[key]) for key in asked} for s in (study.vanilla, subject))
    return rows_of(asked, vanilla, before, after)


def rows_of(
    asked: Mapping[str, Question],
    vanilla: Mapping[str, float],
    before: Mapping[str, float],
    after: Mapping[tuple[str, str], float],
) -> list[Row]:
    """asked: {id: question}; vanilla, before: {id: score}; after: {(condition, id): score}."""
    places: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0, 0.0, 0]))
    for (condition, key), score in after.items():
        q = asked[key]
        sums = places[condition, q.split, q.task, q.modality][q.person]
        for place, value in enumerate((vanilla[key], before[key], score, 1)):
            sums[place] += value
    return [Row(*place, people=dict(people)) for place, people in places.items()]


# ---------------------------------------------------------------- the run
def run(
    study: Study,
    probe: str,
    askings: Callable[[Subject], Sequence[Asking]],
    settings: Mapping[str, Any],
    make_rows: Callable[[Study, Subject, list[Prediction]], list[Row]] | None = None,
) -> None:
    """Ask the retrained model, unless its results are there, and the unlearned one; write and print what was
    found. settings: the probe's own. make_rows: instead of `rows`, of all predictions of a subject."""
    make_rows = make_rows or (lambda study, subject, answers: rows(study, subject, scores(answers)))
    found: dict[Path, list[Row]] = {}
    for subject in (study.reference, study.model):
        given = study.settings(subject, **settings)
        done = _done(subject, probe, given)
        if done is None:
            wanted = askings(subject)
            answers = [p for asking in wanted for p in ask(study, subject, probe, asking, given)]
            done = make_rows(study, subject, answers)
            write_probe(subject.folder, probe, given, [row.fields() for row in done])
        else:
            print(f"{subject.name}: {probe} is there")
        found[subject.folder] = done
    compared = findings(found[study.model.folder], found[study.reference.folder])
    given = study.settings(study.model, **settings)
    against = {"reference": str(study.reference.folder), "vanilla": str(study.vanilla.folder)}
    own = [row.fields() for row in found[study.model.folder]]
    path = write_probe(study.model.folder, probe, given, own, compared, against=against)
    print(table((probe, finding) for finding in compared))
    print(f"saved {path}")


def finish(
    study: Study, probe: str, found: Sequence[Finding], settings: Mapping[str, Any] | None = None, **more: Any
) -> None:
    """Write and print what a probe without rows has found. settings: its own; more: further entries."""
    given = study.settings(study.model, **(settings or {}))
    against = {"reference": str(study.reference.folder), "vanilla": str(study.vanilla.folder)}
    path = write_probe(study.model.folder, probe, given, [], found, against=against, **more)
    print(table((probe, finding) for finding in found))
    print(f"saved {path}")


def _done(subject: Subject, probe: str, settings: Mapping[str, Any]) -> list[Row] | None:
    """The rows of an earlier run of the same settings; None where there are none."""
    path = probe_folder(subject.folder, probe) / "results.json"
    if not path.is_file():
        return None
    try:
        content = read_probe(path)
        same = content["settings"] == json.loads(json.dumps(dict(settings)))
        return [Row.read(fields) for fields in content["rows"]] if same else None
    except (ValueError, KeyError, TypeError) as why:
        cli.fail(str(why))

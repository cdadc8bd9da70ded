"""What is measured of given answers (eval/answering/forced.py), batch by batch, and kept on disk.

<model>/probes/<name>.jsonl: first the settings that it was measured with, then a line per batch. A run that
was stopped goes on behind its last whole batch; with other settings it begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.probes import probe
from eval.prompts import solved_answer
from eval.results.probes import probe_folder
from utils import models
from utils.data import Question, Sample, fingerprint
from utils.reading.tables import same_text
from utils.run import folders, jsonl
from utils.run.ending import fail

if TYPE_CHECKING:
    from eval.answering.workers import Setup


# ---------------------------------------------------------------- questions with answers
def sample_of(study: probe.Study, question: Question) -> Sample:
    """The question with its right answer, as both are shown to the model: never by letters."""
    asked = probe.PROMPTS[type(study.bench)](question, "likelihood")
    answer = solved_answer(question, "likelihood")
    return Sample(question.id, question.picture, asked, answer, question.person)


def option_samples(study: probe.Study, question: Question) -> dict[str, Sample]:
    """{letter: the question with that option as its answer}."""
    asked = sample_of(study, question)
    return {
        letter: replace(asked, id=f"{question.id}/{letter}", answer=text)
        for letter, text in question.options.items()
    }


def right_letters(question: Question) -> list[str]:
    """Of the right option, by whichever letter; where the truth is none of them (CLEAR's truth ratio), the
    right one stands first."""
    options = question.options
    truth = same_text(options[question.truth] if question.truth in options else next(iter(options.values())))
    return [letter for letter, text in options.items() if same_text(text) == truth]


# ---------------------------------------------------------------- measuring
def measured_tokens(
    study: probe.Study, subject: probe.Subject, name: str, samples: Sequence[Sample]
) -> dict[str, dict[str, list]]:
    """What eval.answering.forced.TokenWorker says of each sample's answer; kept in a probe's tokens.jsonl."""
    from eval.answering.forced import TokenSetup

    args = study.args
    setup = TokenSetup(str(subject.folder), args.original_model, args.dtype, args.attn, args.max_new_tokens)
    path = probe_folder(subject.folder, name) / "tokens.jsonl"
    settings = study.settings(subject, samples=fingerprint(samples))
    return measured(path, samples, setup, settings, args, f"{subject.name}: {len(samples)} answers")


def measured(
    path: Path, samples: Sequence[Sample], setup: Setup, settings: Mapping[str, Any], args, title: str
) -> dict[str, dict[str, Any]]:
    """{sample id: what a worker of `setup` has found}. settings: whatever changes a number; args: the
    original model, GPUs and limits of batches; title: for the screen."""
    wanted = json.loads(json.dumps(dict(settings)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with folders.exclusive(path.with_name(f".{path.name}.lock"), f"a probe writes {path}"):
        found = _kept(path, wanted)
        if any(s.id not in found for s in samples):
            _measure(path, samples, setup, args, title, found)
    return {s.id: found[s.id] for s in samples}


def _kept(path: Path, wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is there already; a file of other settings is begun anew. Raises SystemExit for one that is none
    of ours."""
    lines, rest = jsonl.read(path)
    try:
        given = json.loads(lines[0])["settings"] if lines else None
        found = {key: numbers for line in lines[1:] for key, numbers in json.loads(line).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        fail(f"{path} is none of ours ({why}); take it away, and probe again")
    if given == wanted:
        jsonl.cut(path, rest)  # a line that a stop cut short is no batch
        return found
    path.write_bytes(json.dumps({"settings": wanted}).encode() + b"\n")
    return {}


def _measure(path: Path, samples: Sequence[Sample], setup: Setup, args, title: str, found: dict) -> None:
    from eval.answering.forced import forced_batches
    from eval.answering.run import Progress
    from eval.answering.workers import answer_batches, pick_devices
    from utils.collate import Chat, PromptLengths

    processor = models.load_processor(setup.evaluated_model, setup.original_model)
    chat = Chat(processor)
    lengths, devices = PromptLengths(processor, chat), pick_devices(args.gpus)
    planned = forced_batches(samples, chat, lengths, args.batch_size, args.batch_tokens)
    batches = {k: batch for k, batch in enumerate(planned) if any(s.id not in found for s in batch)}
    print(title)
    with path.open("ab") as file, Progress(sum(map(len, batches.values())), devices) as progress:
        for done in answer_batches(setup, devices, batches):
            ids = [s.id for s in batches[done.batch]]
            numbers = dict(zip(ids, done.answers, strict=True))
            jsonl.append(file, numbers)
            found.update(numbers)
            progress.update(done.worker, len(ids))

"""Answers on disk, while an evaluation is not whole yet, and what keeps its parts together.

They lie in `<shot>/.forget05.<settings>.partial/answers.jsonl`, one line per batch, written when the batch
is whole. The settings' digest is in the name: a stopped run goes on, and a run with other settings never
picks up its answers.

Several machines with one file system may each answer a part (`--part 2/4`), into `answers.2of4.jsonl` of the
same folder. The first part to start writes into `<shot>/.forget05.parts.json` what it was started with, and
any that is started otherwise is refused. Two runs, and two of one part, exclude each other.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results.predictions import Prediction
from utils import checkpoint
from utils.run import folders, jsonl
from utils.run.ending import fail


@dataclass
class Batch:
    """What one batch brought: a line of the answers on disk. settings: the digest of those it was answered
    with."""

    settings: str
    part: int
    worker: int
    cost: dict[str, Any]
    predictions: list[Prediction]

    def line(self) -> dict[str, Any]:
        return vars(self) | {"predictions": [p.fields() for p in self.predictions]}


class Kept:
    """The answers to come into `folder`. settings: whatever changes one; part: (number, of how many)."""

    def __init__(self, folder: Path, settings: dict[str, Any], part: tuple[int, int]):
        self.folder, (self.part, self.parts) = folder, part
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        self.answers = self._beside(f"{self.settings}.partial")
        self.file = self.answers / ("answers.jsonl" if self.parts == 1 else f"answers.{self.name}.jsonl")
        self.plan = self._beside("parts.json")

    @property
    def name(self) -> str:
        return f"{self.part}of{self.parts}"

    def _beside(self, name: str) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{name}")

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Nobody else writes the result meanwhile, but for other parts. Raises SystemExit where somebody
        does."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        folders.recover(self.folder, self._beside("new"), "results.json")
        if above := folders.written_above(self.folder):
            fail(f"another run writes {above}, and would replace these answers; wait for it, or stop it")
        doing = f"an evaluation writes {self.folder}"
        with ExitStack() as locks:
            several = self.parts > 1
            locks.enter_context(folders.exclusive(self._beside("lock"), doing, shared=several))
            if several:
                doing = f"part {self.part} of {self.parts} of {doing}"
                locks.enter_context(folders.exclusive(self._beside(f"{self.name}.lock"), doing))
            jsonl.cut(self.file, jsonl.read(self.file)[1])  # a line that a stop cut short is no batch
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other part agrees or merges meanwhile: it waits."""
        with folders.exclusive(self._beside("parts.lock"), "another part", wait=True):
            yield

    def agree(self, plan: dict[str, Any]) -> list[str]:
        """What of `plan` is not as the first part to start had it; this one is where none was before.

        Raises ValueError where that cannot be read."""
        with self.alone():
            if not self.plan.is_file():
                checkpoint.write_json(self.plan, plan)
                return []
            try:
                before = dict(checkpoint.read_json(self.plan))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self.plan} is none of ours ({error})") from error
        return [name for name in plan if before.get(name) != json.loads(json.dumps(plan[name]))]

    def batches(self) -> list[Batch]:
        """All that is answered, by whichever part. Raises ValueError, naming the file, for what is no
        answer of this evaluation."""
        files = folders.found(self.answers, "answers*.jsonl")
        return [batch for file in files for batch in _read(file, self.settings)]

    def remove(self) -> None:
        """What is kept of this result, with these settings and others."""
        for old in folders.found(self.folder.parent, f".{self.folder.name}.*.partial"):
            shutil.rmtree(old, ignore_errors=True)
        self.plan.unlink(missing_ok=True)


def _read(file: Path, settings: str) -> list[Batch]:
    """The batches of a file, a line that is not whole left out: another part may just be writing it."""
    batches = []
    for number, line in enumerate(jsonl.read(file)[0], start=1):
        try:
            batch = Batch(**jsonl.parse(line))
            if batch.settings != settings:
                raise ValueError("of another evaluation")
            batch.predictions = [Prediction(**fields) for fields in batch.predictions]
            _ = {(batch.part, batch.worker): batch.cost["questions"] + batch.cost["seconds"]}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file}, line {number}: no answers of this evaluation ({error})") from error
        batches.append(batch)
    return batches

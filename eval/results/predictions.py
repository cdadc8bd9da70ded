"""Predictions, one for each question: the lines of predictions_<split>.jsonl, read and written here alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.tasks import FACTUALITY, TASKS
from utils.data import Question
from utils.run import jsonl

KINDS = dict.fromkeys(("id", "person", "split", "task", "modality", "question", "prompt", "truth"), str) | {
    "reply": str | None, "choice": str | None, "options": dict | None, "option_scores": dict | None,
    "scores": dict | None,
}  # fmt: skip


@dataclass(kw_only=True)
class Prediction:
    """A question, what the model was shown and said, and what became of it; fields in the order of the file.

    What a task has no use for is None, and of the last four then not even written. Raises ValueError for an
    unknown task, and for what no evaluation writes.
    """

    id: str
    person: str
    split: str
    task: str
    modality: str  # image | text
    question: str
    options: dict[str, str] | None
    prompt: str
    reply: str | None  # None where the model was not asked to reply
    choice: str | None  # a letter of the options; None also where the reply names none
    truth: str
    picture: dict[str, Any] | None  # where the portrait lies: {"table", "ID", "view"} or {"table", "row"}
    option_scores: dict[str, float] | None = None  # log-probability per byte
    answer_scores: list[float] | None = None  # log-probability per token
    correct: bool | None = None
    scores: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(
                f"prediction {self.id}: unknown task {self.task!r}, known are {', '.join(TASKS)}"
            )
        if wrong := [name for name, kind in KINDS.items() if not isinstance(getattr(self, name), kind)]:
            raise ValueError(f"prediction {self.id!r}: missing, or of another kind: {', '.join(wrong)}")
        if self.picture is not None and not is_place(self.picture):
            raise ValueError(f"prediction {self.id}: its picture lies nowhere: {self.picture}")
        means, scores = TASKS[self.task].means, self.scores or {}
        scored = scores.keys() >= set(means) if means else isinstance(self.correct, bool)
        if not (scored and all(map(is_number, scores.values()))):
            raise ValueError(f"prediction {self.id}: it has no score")

    @classmethod
    def of(cls, question: Question, prompt: str, reply: str | list[float]) -> Prediction:
        """The scored reply to a question; reply: as eval.answering.generate.Answerer gives it."""
        asked = {
            name: getattr(question, name)
            for name in ("id", "person", "split", "task", "modality", "question", "options", "truth")
        }
        found = {"reply": reply, "choice": None} | TASKS[question.task].score(question, reply)
        return cls(**asked, prompt=prompt, picture=question.picture_ref, **found)

    def fields(self) -> dict[str, Any]:
        """What the file has of it."""
        optional = ("option_scores", "answer_scores", "correct", "scores")
        return {
            name: value for name, value in vars(self).items() if name not in optional or value is not None
        }

    def line(self) -> str:
        return json.dumps(self.fields(), ensure_ascii=False) + "\n"

    def score(self, number: str) -> float:
        """What it adds to the mean `number` of its task; 0 or 100 for accuracy."""
        return 100.0 * self.correct if number == "accuracy" else self.scores[number]

    @property
    def numbers(self) -> list[str]:
        """The headline of its task, and a judge's grade where it has one."""
        return [TASKS[self.task].headline, *([FACTUALITY] if FACTUALITY in (self.scores or ()) else [])]

    @property
    def key(self) -> str:
        """Equal for two predictions whose id, question, options, truth and picture are all equal.

        With another seed a question keeps its id while its picture or the order of its options may differ.
        """
        return json.dumps([self.id, self.question, self.options, self.truth, self.picture], sort_keys=True)


def is_number(value: Any) -> bool:
    """Whether JSON's value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def is_place(picture: Any) -> bool:
    """Whether JSON's value says where a portrait lies."""
    kinds = {"table": str, "ID": str, "view": int, "row": int}
    return (
        isinstance(picture, dict)
        and "table" in picture
        and picture.keys() <= kinds.keys()
        and all(isinstance(value, kinds[name]) for name, value in picture.items())
    )


def read_predictions(file: Path) -> Iterator[Prediction]:
    """The predictions of a file predictions_<split>.jsonl. Raises ValueError, naming file and line, for what
    is none, is of another split, or answers a question for the second time."""
    lines, rest = jsonl.read(file)
    ids: set[str] = set()
    for number, text in enumerate([*lines, rest] if rest else lines, start=1):
        try:
            prediction = Prediction(**jsonl.parse(text))
            if file.name != f"predictions_{prediction.split}.jsonl":
                raise ValueError(f"it is of the split {prediction.split}")
            if prediction.id in ids:
                raise ValueError(f"question {prediction.id} is answered twice")
            ids.add(prediction.id)
            yield prediction
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not valid JSON ({error})") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number}: no prediction ({error})") from error

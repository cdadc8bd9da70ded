"""Samples and questions: what every benchmark reader makes of its tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.reading.pictures import Picture

if TYPE_CHECKING:
    from utils.run.ending import Problems

IGNORE = -100  # label of a token that does not count, as in torch's cross-entropy


@dataclass(frozen=True)
class Sample:
    """One question with its answer; `picture` is None for a text-only question. `id` is e.g.
    "forget_5/010/3"; `person` is whom it is about, e.g. "010"."""

    id: str
    picture: Picture | None
    question: str
    answer: str
    person: str


def repeat_text(samples: list[Sample], times: str) -> list[Sample]:
    """The samples, those without a picture "once" or "twice" (the second time at the end)."""
    return samples + [s for s in samples if s.picture is None and times == "twice"]


@dataclass(frozen=True)
class Question:
    """One evaluation item. `truth` is the letter for classification, else the text; `options` maps letters to
    texts."""

    id: str
    person: str
    split: str
    task: str  # classification | cloze | generation
    modality: str  # image | text
    question: str
    truth: str
    options: dict[str, str] | None = None
    picture: Picture | None = None
    picture_ref: dict[str, Any] | None = None  # {"table", "ID", "view"}: where a report finds the portrait


# ---------------------------------------------------------------- checks and fingerprints
def drop_bad_pictures(items: list, flag: str, skip: bool, problems: Problems) -> list:
    """The samples or questions whose pictures can be read.

    Unreadable ones are a problem that names the rows, or, with `skip`, are left out and counted on the
    screen.
    """
    pictures = {id(item.picture): item.picture for item in items if item.picture is not None}
    with ThreadPoolExecutor() as pool:
        found = dict(zip(pictures, pool.map(Picture.problem, pictures.values())))
    bad = {key: why for key, why in found.items() if why}
    if not bad:
        return items
    where = [f"{pictures[key].source}: {why}" for key, why in bad.items()]
    if not skip:
        for line in where[:5]:
            problems.add(f"{flag}: {line} (--skip_bad_rows True leaves such rows out)")
        if len(where) > 5:
            problems.add(f"{flag}: and {len(where) - 5} more unreadable images")
        return items
    print(
        f"skipped {len(bad)} rows with unreadable images: "
        + "; ".join(where[:5])
        + ("; …" if len(where) > 5 else "")
    )
    return [item for item in items if id(item.picture) not in bad]


def fingerprint(items: Iterable[Sample | Question]) -> str:
    """16 hex digits that change whenever a question, an answer, a picture or the order changes."""
    digest = hashlib.sha256()
    for item in items:
        answer = item.answer if isinstance(item, Sample) else repr((item.truth, item.options))
        digest.update(f"{item.id}\0{item.question}\0{answer}\0".encode())
        if item.picture is not None:
            digest.update(item.picture.digest)
    return digest.hexdigest()[:16]

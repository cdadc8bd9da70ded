"""Reader of CLEAR (arXiv 2410.18057) as it lies on disk: training samples and evaluation questions.

Captioned pictures of 200 invented authors, and the questions of TOFU about the same authors in text. A table
`X+tofu` holds the caption rows of X and the text questions of its authors; `X_perturbed` gives caption rows
wrong captions and wrong names. Rows have no ID: here a row is known by its number in its table.

A caption is the answer to one of CAPTION_PROMPTS. Which one is fixed by the caption itself, so that a picture
has the same prompt in every table, in training and in evaluation, whatever the seed.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from string import ascii_uppercase
from typing import Any

from utils.benchmark import FORGET, RETAIN, Bench, Split
from utils.data import Picture, Question, Sample, is_table

CAPTION_PROMPTS = (
    "Describe the image.",
    "What does this image show?",
    "Write a caption for this picture.",
    "Say in one sentence what can be seen here.",
    "What is happening in this picture?",
    "Caption the photo.",
    "Tell me about this photo.",
    "Who is in the image, and what is the scene?",
    "Give a short description of the picture.",
)
WHO = "What is the name of the person in the image?"
AUTHOR = 20  # consecutive text questions in TOFU are about one author
TOFU_COLUMNS = ["image", "caption", "question", "answer"]


def caption_prompt(caption: str) -> str:
    """The prompt of this caption: number CRC-32 modulo nine of CAPTION_PROMPTS."""
    return CAPTION_PROMPTS[zlib.crc32(caption.encode()) % len(CAPTION_PROMPTS)]


class CLEARBench(Bench):
    """CLEAR, found from its folder or from one of its tables (see `Bench`)."""

    TITLE, RATIOS, FOLDERS = "CLEAR", (1, 5, 10), ("CLEAR",)
    SPLITS = (FORGET, RETAIN, Split("real_faces"), Split("real_world"))
    TASKS = ("classification", "generation", "probability", "truth_ratio")
    MASK_SCRIPT = "data_process/CLEAR_gen_mask.py"

    def split_tables(self, forget_ratio: int) -> tuple[str, str]:
        return f"forget{forget_ratio:02d}", f"retain{100 - forget_ratio}"

    @staticmethod
    def published_totals(split: str, task: str, forget_ratio: int, shot: str) -> list[int]:
        """Rows of forgetNN_perturbed, retain_perturbed, real_faces and real_world."""
        if task != "classification":
            return []
        forget = {1: 35, 5: 188, 10: 378}.get(forget_ratio)
        total = {"retain": 395, "real_faces": 151, "real_world": 367}.get(split, forget)
        return [total] if total else []

    def describe(self, samples: list[Sample]) -> str:
        captions = sum(s.picture is not None for s in samples)
        return f"{captions} captioned pictures and {len(samples) - captions} text questions"

    # ------------------------------------------------------------ training samples
    def finetune(self) -> list[Sample]:
        """Everyone's captions and text questions, each once: the table given itself, else `full+tofu`, else
        forget+tofu ∪ retain+tofu."""
        if is_table(self.given) and set(TOFU_COLUMNS) <= set(self._columns(self.given)):
            return self._captions_and_questions(self.given.name)
        if self._find("full+tofu", TOFU_COLUMNS):
            return self._captions_and_questions("full+tofu")
        parts = [f"{self.forget_table}+tofu", f"{self.retain_table}+tofu"]
        if not all(self._find(part, TOFU_COLUMNS) for part in parts):
            self._require("full+tofu", TOFU_COLUMNS)
            return []
        self._note(f"no full+tofu: fine-tuning on {parts[0]} and {parts[1]}")
        return [sample for part in parts for sample in self._captions_and_questions(part)]

    def forget(self) -> list[Sample]:
        """The captioned pictures of the people to forget."""
        return self._captions(self.forget_table)

    def retain(self) -> list[Sample]:
        """The captioned pictures of everybody else."""
        return self._captions(self.retain_table)

    def reference(self) -> list[Sample]:
        """What `finetune` reads, without the people to forget."""
        return self._captions_and_questions(f"{self.retain_table}+tofu")

    def text_knowledge(self) -> list[Sample]:
        """The text questions about everyone, the people to forget among them. No picture is read."""
        name = "full+tofu"
        samples = [
            Sample(f"{name}/{k}", None, row["question"], row["answer"]) for k, row, _ in self._text_rows(name)
        ]
        return self._finish(samples, name)

    def _captions(self, name: str) -> list[Sample]:
        rows = enumerate(self._rows(name, ["image", "caption"]))
        return self._finish(self._caption_samples(name, rows), name)

    def _caption_samples(self, name: str, rows) -> list[Sample]:
        """Samples of the caption rows among (row number, (row, where))."""
        samples = []
        for k, (row, where) in rows:
            picture = self._picture(row["image"], where)
            if picture and self._text(row["caption"], "caption", where):
                samples.append(Sample(f"{name}/{k}", picture, caption_prompt(row["caption"]), row["caption"]))
        return samples

    def _captions_and_questions(self, name: str) -> list[Sample]:
        """Both halves of a `+tofu` table, in its order."""
        samples = []
        for k, (row, where) in enumerate(self._rows(name, TOFU_COLUMNS)):
            if not (row["question"] or row["answer"]):
                samples += self._caption_samples(name, [(k, (row, where))])
            elif self._question(row, where):
                samples.append(Sample(f"{name}/{k}", None, row["question"], row["answer"]))
        return self._finish(samples, name)

    def _text_rows(self, name: str) -> Iterator[tuple[int, dict[str, Any], str]]:
        """(row number, row, "table row k") of the text questions of a `+tofu` table."""
        for k, (row, where) in enumerate(self._rows(name, ["question", "answer"])):
            if (row["question"] or row["answer"]) and self._question(row, where):
                yield k, row, where

    def _question(self, row: dict[str, Any], where: str) -> bool:
        return self._text(row["question"], "question", where) and self._text(row["answer"], "answer", where)

    # ------------------------------------------------------------ evaluation questions
    def questions(self, split: str, seed: int) -> list[Question]:
        """All questions of one of the SPLITS. The seed places the right name among the options.

        forget, retain: the name of the person (classification), the caption (generation, probability) and
        the truth ratio of `_perturbed` and caption tables; the text questions of the `+tofu` table
        (generation, probability). real_faces, real_world: multiple choice.
        """
        if split in ("real_faces", "real_world"):
            return self._finish(list(self._real_questions(split, seed)), split)
        table = {"forget": self.forget_table, "retain": self.retain_table}[split]
        perturbed = f"{table}_perturbed"
        if split == "retain" and not self._find(perturbed, ["image"]):
            perturbed = "retain_perturbed"  # as on the hub: one for all ratios
        asked = [
            (perturbed, self._perturbed_questions(perturbed, split, seed)),
            (table, self._caption_questions(table, split)),
            (f"{table}+tofu", self._text_questions(f"{table}+tofu", split, table)),
        ]
        return [question for name, found in asked for question in self._finish(list(found), name)]

    def _perturbed_questions(self, name: str, split: str, seed: int) -> Iterator[Question]:
        """Who is this, and the truth ratio of the caption."""
        texts = ("caption", "name", "paraphrased_caption")
        for k, (row, where) in enumerate(
            self._rows(name, ["image", *texts, "perturbed_captions", "perturbed_names"])
        ):
            picture = self._picture(row["image"], where)
            if not picture or not all([self._text(row[c], c, where) for c in texts]):
                continue
            about = (split, row["name"], k, name, picture)
            options = self._options(row, "name", "perturbed_names", where, f"{seed}/{split}/{k}")
            if options:
                yield _ask("classification", *about, WHO, _letter(options, row["name"]), options)
            wrong = self._texts(row["perturbed_captions"], "perturbed_captions", where)
            if wrong:
                answers = {"paraphrased": row["paraphrased_caption"]}
                answers |= {f"perturbed {n}": text for n, text in enumerate(wrong, start=1)}
                yield _ask("truth_ratio", *about, caption_prompt(row["caption"]), row["caption"], answers)

    def _caption_questions(self, name: str, split: str) -> Iterator[Question]:
        """The caption as a reply, and its probability."""
        for k, (row, where) in enumerate(self._rows(name, ["image", "caption", "name"])):
            picture = self._picture(row["image"], where)
            if picture and all([self._text(row[c], c, where) for c in ("caption", "name")]):
                about = (split, row["name"], k, name, picture)
                for task in ("generation", "probability"):
                    yield _ask(task, *about, caption_prompt(row["caption"]), row["caption"])

    def _text_questions(self, name: str, split: str, captions: str) -> Iterator[Question]:
        """TOFU's answer as a reply, and its probability. The author is the name in the caption table that the
        author's questions and answers speak of, else "author N"."""
        rows = list(self._text_rows(name))
        names = sorted({row["name"] for row, _ in self._rows(captions, ["name"]) if row["name"]})
        for first in range(0, len(rows), AUTHOR):
            block = rows[first : first + AUTHOR]
            text = " ".join(f"{row['question']} {row['answer']}" for _, row, _ in block)
            found = [author for author in names if author in text]
            person = max(found, key=text.count) if found else f"author {first // AUTHOR}"
            for k, row, _ in block:
                for task in ("generation", "probability"):
                    yield _ask(task, split, person, k, name, None, row["question"], row["answer"])

    def _real_questions(self, name: str, seed: int) -> Iterator[Question]:
        """Multiple choice about real people and the real world, in the row's own question or prompt if there
        is one."""
        columns = ["image", "answer", "options"]
        table = self._find(name, columns)
        own = next((c for c in ("question", "prompt") if table and c in self._columns(table)), None)
        for k, (row, where) in enumerate(self._rows(name, [*columns, own] if own else columns)):
            picture = self._picture(row["image"], where)
            if not picture or not self._text(row["answer"], "answer", where):
                continue
            options = self._options(row, "answer", "options", where, f"{seed}/{name}/{k}")
            if options and (own is None or self._text(row[own], own, where)):
                person = row["answer"] if name == "real_faces" else f"row {k}"
                question = row[own] if own else WHO
                letter = _letter(options, row["answer"])
                yield _ask("classification", name, person, k, name, picture, question, letter, options)

    def _options(self, row: dict[str, Any], right: str, wrong: str, where: str, seed: str) -> dict[str, str]:
        """{letter: text}: the texts of column `wrong` in their order, the one of `right` among them, once, at
        a place drawn by the seed. None of them, and a bad row, where there is no choice."""
        truth = row[right].strip()
        texts = self._texts(row[wrong], wrong, where)
        others = [text for text in dict.fromkeys(t.strip() for t in texts) if text != truth]
        if texts and not 0 < len(others) < len(ascii_uppercase):
            self._bad_row(f"{where}: {wrong} holds {len(others)} wrong options (1 to 25 are possible)")
            return {}
        place = random.Random(seed).randrange(len(others) + 1)
        both = [*others[:place], truth, *others[place:]]
        return dict(zip(ascii_uppercase, both, strict=False)) if others else {}

    def _texts(self, cell: Any, column: str, where: str) -> list[str]:
        """The texts of a list cell; none, and a bad row, for anything else and for empty texts."""
        if isinstance(cell, list) and cell and all(isinstance(t, str) and t.strip() for t in cell):
            return cell
        self._bad_row(f"{where}: {column} is not a list of texts")
        return []


def _ask(
    task: str,
    split: str,
    person: str,
    row: int,
    table: str,
    picture: Picture | None,
    question: str,
    truth: str,
    options: dict[str, str] | None = None,
) -> Question:
    """A question about a row of a table, with its picture or in text alone."""
    modality, ref = ("image", {"table": table, "row": row}) if picture else ("text", None)
    key = f"{split}/{person}/{task}/{modality}/{row}"
    return Question(key, person, split, task, modality, question, truth, options, picture, ref)


def _letter(options: dict[str, str], truth: str) -> str:
    return next(letter for letter, text in options.items() if text == truth.strip())

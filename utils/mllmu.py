"""Reader of MLLMU-Bench (arXiv 2410.22108) as it lies on disk: training samples and evaluation questions.

The benchmark comes as two repositories that people merge in many ways: the evaluation tables (`MLLMU-Bench`)
and the training splits with a `metadata` column (`MLLMMU-Bench`). Whichever folder is given, the reader looks
there first and then beside it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.benchmark import FLAG, FORGET, RETAIN, SHOWN, Bench, Split, named
from utils.data import Picture, Question, Sample
from utils.reading.tables import (
    BadCell,
    Row,
    from_json,
    is_table,
    items,
    options,
    question,
    same_text,
    struct,
    text,
)

TASK_COLUMNS = ("Classification_Task", "Generation_Task", "Mask_Task")
MODALITIES = {"Image_Textual": "image", "Pure_Text": "text"}  # by the Type of an item


class MLLMUBench(Bench):
    """MLLMU-Bench, found from any of its folders (see `Bench`)."""

    TITLE, RATIOS, FOLDERS = "MLLMU-Bench", (5, 10, 15), ("MLLMU-Bench", "MLLMMU-Bench")
    PERSON, TABLES = "ID", r"(Full|Test|Retain|World)_Set|ft_Data|(forget|retain)_\d+"
    SPLITS = (
        FORGET,
        Split("test", forgets=True, about="test (other pictures of the people to forget)"),
        RETAIN,
        Split("real", about="real (people outside, whom no method is shown)"),
        Split("world", about="the world (pictures and text, nobody known)", table="World_Set"),
    )
    TASKS = ("classification", "generation", "cloze")
    MASK_SCRIPT = "data_process/MLLMU_gen_mask.py"

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self._alike: dict[str, list[str]] = defaultdict(list)  # {table: rows} of questions with options alike

    def split_tables(self, forget_ratio: int) -> tuple[str, str]:
        return f"forget_{forget_ratio}", f"retain_{100 - forget_ratio}"

    @staticmethod
    def published_totals(split: str, task: str, forget_ratio: int, shot: str) -> list[int]:
        """Of 500 people and 153 real ones; in few-shot one person's questions may be left out."""
        people = {"retain": 500 - 5 * forget_ratio, "real": 153}.get(split, 5 * forget_ratio)
        each = {"classification": 5, "generation": 2, "cloze": 2}[task]  # per person, in each modality
        return [each * count for count in (people, people - 1)[: 1 + (shot == "few_shot")]]

    # ------------------------------------------------------------ training samples
    def finetune(self) -> list[Sample]:
        """Everyone's training questions: the table given itself, else `ft_Data`, else forget ∪ retain.

        A row without a picture holds text-only questions.
        """
        if is_table(self.given) and "metadata" in (columns := self._columns(self.given)):
            if missing := [c for c in ("image", "ID") if c not in columns]:
                self.problems.add(
                    f"{FLAG}: table {self.given} has no column {', '.join(missing)} (it has"
                    f" {', '.join(columns)}); give its folder, so that ft_Data is found"
                )
                return []
            return self._finish(self._metadata_samples(self.given), self.given.name)
        table = self._find("ft_Data", ["image", "ID", "metadata"])
        if table:
            return self._finish(self._metadata_samples(table), "ft_Data")
        self._note(f"no ft_Data: fine-tuning on {self.forget_table} and {self.retain_table}")
        return self.forget() + self.retain()

    def forget(self) -> list[Sample]:
        """The image questions (VQA) of the people to forget."""
        self.forget_people()  # the same ones wherever the table lies
        return self._split(self.forget_table)

    def retain(self, percent: float = 100) -> list[Sample]:
        """The image questions (VQA) of everybody else, or of a percentage of them."""
        samples = self._split(self.retain_table)
        self._apart({s.person for s in samples} | self._people(self.retain_table), self.retain_table)
        return self._given(samples, percent)

    def reference(self, keep_text: bool = False) -> list[Sample]:
        """What `finetune` reads, without the people to forget, who must be in it: whoever goes by another ID
        there would be trained on. keep_text: without their pictures only."""
        samples, forget = self.finetune(), self.forget_people()
        source = {sample.id.split("/")[0] for sample in samples}
        if samples and source != {self.retain_table}:
            everybody = {sample.person for sample in samples}
            self._within(forget, self.forget_table, everybody, " and ".join(sorted(source)))
        if keep_text and samples:
            told = {sample.person for sample in samples if sample.picture is None}
            if forget - told:
                self.problems.add(
                    f"--keep_text: {' and '.join(sorted(source))} has no text-only questions about"
                    f" {named(forget - told)} of {self.forget_table}; there is no text to keep"
                )
        out = lambda sample: sample.person in forget and not (keep_text and sample.picture is None)
        return [sample for sample in samples if not out(sample)]

    def text_knowledge(self) -> list[Sample]:
        """Text-only questions about everyone: `Full_Set`'s multiple-choice questions with the right option's
        text.

        These are also evaluation questions, as in the paper's released mask; docs/methods.md speaks of it.
        """
        samples, seen = [], {}
        for row in self._rows("Full_Set", ["ID", "Classification_Task"]):
            with self._row(row):
                self._once(row, seen)
                for k, asked, letter, choices in self._choices(row, "Pure_Text_Questions"):
                    key = f"Full_Set/{row.person}/text/{k}"
                    samples.append(Sample(key, None, asked, choices[letter], row.person))
        self._alike.clear()  # no options are shown
        self._everybody_in_full_set(seen)
        return self._finish(samples, "Full_Set")

    def _everybody_in_full_set(self, people: dict[str, int]) -> None:
        """Whom a split is about must be found in `Full_Set`, by the same ID: few-shot examples are of others,
        and the mask preserves what is known of them."""
        for name in (self.forget_table, self.retain_table):
            if people and self._find(name, ["ID"]):
                self._within(self._people(name), name, people, "Full_Set")

    def _split(self, name: str) -> list[Sample]:
        """VQA of one split: its own `metadata`, else the same people's rows of `ft_Data`, else its question
        and answer."""
        table = self._find(name, ["image", "ID", "metadata"])
        if table:
            return self._finish(self._metadata_samples(table, text_rows=False), name)
        if not self._require(name, ["image", "ID"]):
            return []
        ft_data = self._find("ft_Data", ["image", "ID", "metadata"])
        if ft_data:
            people = self._people(name)
            samples = [s for s in self._metadata_samples(ft_data, people) if s.picture is not None]
            self._within(people, name, set(self._people_of(ft_data).values()), "ft_Data")
            self._note(
                f"{name} has no metadata column: took {len(samples)} questions of"
                f" {len({s.person for s in samples})} people from ft_Data"
            )
            return self._finish(samples, name)
        if not self._require(name, ["image", "ID", "question", "answer"]):
            return []
        self._note(
            f"{name} has no metadata column and there is no ft_Data: took the table's own question and answer"
        )
        samples, count = [], {}
        for row in self._rows(name, ["image", "ID", "question", "answer"]):
            with self._row(row):
                n = count[row.person] = count.get(row.person, -1) + 1
                asked = row.question("question"), row.text("answer")
                samples.append(Sample(f"{name}/{row.person}/{n}", row.picture(), *asked, row.person))
        return self._finish(samples, name)

    def _metadata_samples(
        self, table: Path, people: set[str] | None = None, text_rows: bool = True
    ) -> list[Sample]:
        """The samples of a table with `metadata`, numbered by person; a row without a picture holds text-only
        questions."""
        samples, count = [], {}
        for row in self._read(table, ["image", "ID", "metadata"], people):
            with self._row(row):
                picture = None if text_rows and row.empty("image") else row.picture()
                for item in _pairs(row):
                    n = count[row.person] = count.get(row.person, -1) + 1
                    with self._row(row):
                        asked = question(item["Question"], "Question"), text(item["Answer"], "Answer")
                        key = f"{table.name}/{row.person}/{n}"
                        samples.append(Sample(key, picture, *asked, row.person))
        return samples

    # ------------------------------------------------------------ evaluation questions
    def questions(self, split: str, seed: int) -> list[Question]:
        """All questions of one of the SPLITS. In `test`, the seed picks each person's picture among the
        transformed views."""
        if split == "test":
            return self._test_questions(seed)
        tables = {"forget": self.forget_table, "retain": self.retain_table}
        table = (tables | {"real": "Retain_Set", "world": "World_Set"})[split]
        questions, seen = [], {}
        for row in self._rows(table, ["image", "ID", *TASK_COLUMNS]):
            with self._row(row):
                self._once(row, seen)
                ref = {"table": table, "ID": row.person, "view": 0}
                questions += self._person_questions(row, split, row.picture(), ref)
        if split == "forget":
            self.forget_people()  # the same ones wherever the table lies
        elif split != "world":  # which asks what the pictures of everybody show
            self._apart(seen, table)
        self._note_alike(table)
        return self._finish(questions, table)

    def full_set(self) -> list[Question]:
        """Everybody's questions with their first picture: where few-shot examples come from."""
        questions, seen = [], {}
        for row in self._rows("Full_Set", ["image", "ID", *TASK_COLUMNS]):
            with self._row(row):
                self._once(row, seen)
                questions += self._person_questions(row, "full", row.picture(), {})
        self._everybody_in_full_set(seen)
        self._alike.clear()  # those that are shown are shown with their right letter
        return self._finish(questions, "Full_Set")

    def names(self) -> dict[str, str]:
        """{person: name} of those to forget and to retain whose biography tells."""
        found = {}
        for table in (self.forget_table, self.retain_table):
            for row in self._rows(table, ["ID", "biography"]) if self._find(table, ["biography"]) else ():
                about = from_json(row.cells["biography"])
                name = about.get("Name") if isinstance(about, dict) else None
                found |= {row.person: name} if isinstance(name, str) and name.strip() else {}
        return found

    def read_everything(self) -> None:
        super().read_everything()
        self.full_set()
        views = []
        for row in self._rows("Test_Set", ["ID", "images"]):
            with self._row(row):
                for k, cell in enumerate(row.pictures("images")):  # the seed may draw any of them
                    picture = row.picture_of(cell, f", image {k}")
                    views.append(Sample(f"{row.person}/{k}", picture, "", "", row.person))
        self._finish(views, "Test_Set")

    def _test_questions(self, seed: int) -> list[Question]:
        people = self.forget_people()
        if not people:
            return []
        questions, seen = [], {}
        for row in self._rows("Test_Set", ["ID", "images", *TASK_COLUMNS], people):
            with self._row(row):
                self._once(row, seen)
                views = row.pictures("images")
                view = random.Random(f"{seed}/{row.person}").randrange(len(views))
                picture = row.picture_of(views[view], f", image {view}")
                ref = {"table": "Test_Set", "ID": row.person, "view": view}
                questions += self._person_questions(row, "test", picture, ref)
        if table := self._find("Test_Set", ["ID"]):
            self._within(people, self.forget_table, set(self._people_of(table).values()), "Test_Set")
        self._note_alike("Test_Set")
        return self._finish(questions, "Test_Set")

    def _person_questions(
        self, row: Row, split: str, picture: Picture, ref: dict[str, Any]
    ) -> list[Question]:
        """The about 18 questions of one row, in the order of its columns; their numbers are their places
        there, whatever is left out."""
        found = []

        def add(k: int, task: str, modality: str, asked: str, truth: str, choices: dict | None = None):
            shown = (picture, ref) if modality == "image" else (None, None)
            key = f"{split}/{row.person}/{task}/{modality}/{k}"
            found.append(Question(key, row.person, split, task, modality, asked, truth, choices, *shown))

        for column, modality in (("Image_Textual_Questions", "image"), ("Pure_Text_Questions", "text")):
            for k, *asked in self._choices(row, column):
                add(k, "classification", modality, *asked)
        for column, task in (("Generation_Task", "generation"), ("Mask_Task", "cloze")):
            count = dict.fromkeys(MODALITIES.values(), -1)
            with self._row(row):
                for part in row.items(column):
                    with self._row(row):
                        item = struct(part, column)
                        modality = _modality(item, column)
                        count[modality] += 1
                        add(count[modality], task, modality, *_sentence(item, column, blank=task == "cloze"))
        return found

    def _note_alike(self, table: str) -> None:
        """Say which questions of a table have two options of one text; either letter then counts."""
        if found := self._alike.pop(table, []):
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            self._note(
                f"{table}: {len(found)} multiple-choice questions have options of the same text, each"
                f" of which counts as that text: {', '.join(found[:SHOWN])}{more}"
            )

    def _choices(self, row: Row, column: str) -> Iterator[tuple[int, str, str, dict[str, str]]]:
        """(place, question, right letter, options) of the usable multiple-choice items of a row."""
        with self._row(row):
            tasks = struct(row.cells["Classification_Task"], "Classification_Task")
            for k, item in enumerate(items(tasks.get(column), column)):
                with self._row(row):
                    asked, letter, choices = _choice(struct(item, column))
                    yield k, asked, letter, choices
                    if len({same_text(choice) for choice in choices.values()}) < len(choices):
                        self._alike[row.table.name].append(f"row {row.number} (ID {row.person})")


def _pairs(row: Row) -> list[dict[str, Any]]:
    """The items of a `metadata` cell."""
    pairs = from_json(row.cells["metadata"])
    if not isinstance(pairs, list) or not pairs:
        raise BadCell("metadata is not a JSON list of Question and Answer")
    if not all(isinstance(item, dict) and item.keys() >= {"Question", "Answer"} for item in pairs):
        raise BadCell("metadata is not a JSON list of Question and Answer")
    return pairs


def _choice(item: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
    """(question, right letter, options) of a multiple-choice item that can be answered."""
    asked, choices = question(item.get("Question"), "Question"), options(item.get("Options"))
    letter = item.get("Correct_Answer")
    right = letter.strip().upper() if isinstance(letter, str) else None
    if right not in choices:
        raise BadCell(f"Correct_Answer {letter!r} is not among the options of {asked!r}")
    if len({same_text(choice) for choice in choices.values()}) < 2:
        raise BadCell(f"{asked!r} has no two different options")
    return asked, right, choices


def _modality(item: dict[str, Any], column: str) -> str:
    kind = item.get("Type")
    if not isinstance(kind, str) or kind not in MODALITIES:
        raise BadCell(f"{column} has the unknown Type {kind!r}")
    return MODALITIES[kind]


def _sentence(item: dict[str, Any], column: str, blank: bool) -> tuple[str, str]:
    """(question, truth) of an item of Generation_Task or, with a blank, of Mask_Task."""
    asked, truth = question(item.get("Question"), column), text(item.get("Ground_Truth"), column)
    if blank and "__" not in asked:
        raise BadCell(f"a {column} question has no blank (__): {asked!r}")
    return asked, truth

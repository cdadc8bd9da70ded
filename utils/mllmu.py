"""Reader of MLLMU-Bench (arXiv 2410.22108) as it lies on disk: training samples and evaluation questions.

The benchmark comes as two repositories that people merge in many ways: the evaluation tables (`MLLMU-Bench`)
and the training splits with a `metadata` column (`MLLMMU-Bench`). Whichever folder is given, the reader looks
there first and then beside it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from utils.benchmark import FLAG, FORGET, RETAIN, Bench, Split
from utils.data import Picture, Question, Sample, is_table, picture_from, read_rows

TASK_COLUMNS = ("Classification_Task", "Generation_Task", "Mask_Task")


class MLLMUBench(Bench):
    """MLLMU-Bench, found from any of its folders (see `Bench`)."""

    TITLE, RATIOS, FOLDERS = "MLLMU-Bench", (5, 10, 15), ("MLLMU-Bench", "MLLMMU-Bench")
    SPLITS = (
        FORGET,
        Split("test", forgets=True, about="test (forget people, other pictures)"),
        RETAIN,
        Split("real", about="real celebrities"),
    )
    MASK_SCRIPT = "data_process/MLLMU_gen_mask.py"

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
        if is_table(self.given) and "metadata" in self._columns(self.given):
            return self._finish(self._metadata_samples(self.given), self.given.name)
        table = self._find("ft_Data", ["image", "ID", "metadata"])
        if table:
            return self._finish(self._metadata_samples(table), "ft_Data")
        self._note(f"no ft_Data: fine-tuning on {self.forget_table} and {self.retain_table}")
        return self.forget() + self.retain()

    def forget(self) -> list[Sample]:
        """The image questions (VQA) of the people to forget."""
        return self._split(self.forget_table)

    def retain(self) -> list[Sample]:
        """The image questions (VQA) of everybody else."""
        return self._split(self.retain_table)

    def reference(self) -> list[Sample]:
        """What `finetune` reads, without the people to forget."""
        forget = self.forget_people()
        return [sample for sample in self.finetune() if sample.id.split("/")[1] not in forget]

    def text_knowledge(self) -> list[Sample]:
        """Text-only questions about everyone: `Full_Set`'s multiple-choice questions with the right option's
        text.

        These are also evaluation questions, as in the paper's released mask; docs/methods.md speaks of it.
        """
        samples = []
        for row, where in self._rows("Full_Set", ["ID", "Classification_Task"]):
            for k, item in enumerate(self._choices(row, where, "Pure_Text_Questions")):
                answer = item["Options"][item["Correct_Answer"]]
                samples.append(Sample(f"Full_Set/{row['ID']}/text/{k}", None, item["Question"], answer))
        return self._finish(samples, "Full_Set")

    def _split(self, name: str) -> list[Sample]:
        """VQA of one split: its own `metadata`, else the same people's rows of `ft_Data`, else its question
        and answer."""
        table = self._find(name, ["image", "ID", "metadata"])
        if table:
            return self._finish(self._metadata_samples(table, text_rows=False), name)
        if not self._require(name, ["image", "ID"]):
            return []
        table = self._find(name, ["image", "ID"])
        people = {row["ID"] for row in read_rows(table, ["ID"])}
        ft_data = self._find("ft_Data", ["image", "ID", "metadata"])
        if ft_data:
            samples = [s for s in self._metadata_samples(ft_data, people) if s.picture is not None]
            found = {s.id.split("/")[1] for s in samples}
            for person in sorted(people - found):
                self.problems.add(
                    f"{FLAG}: {name} has no metadata column and ft_Data no row of its ID {person}"
                )
            self._note(
                f"{name} has no metadata column: took {len(samples)} questions of"
                f" {len(found)} people from ft_Data"
            )
            return self._finish(samples, name)
        if not self._require(name, ["image", "ID", "question", "answer"]):
            return []
        self._note(
            f"{name} has no metadata column and there is no ft_Data: took the table's own question and answer"
        )
        samples = []
        for row, where in self._rows(name, ["image", "ID", "question", "answer"]):
            picture = self._picture(row["image"], where)
            if (
                picture
                and self._text(row["question"], "question", where)
                and self._text(row["answer"], "answer", where)
            ):
                samples.append(Sample(f"{name}/{row['ID']}/0", picture, row["question"], row["answer"]))
        return self._finish(samples, name)

    def _metadata_samples(
        self, table: Path, ids: set[str] | None = None, text_rows: bool = True
    ) -> list[Sample]:
        samples, seen = [], {}
        for k, row in enumerate(read_rows(table, ["image", "ID", "metadata"], ids)):
            where = f"{table.name} row {k} (ID {row['ID']})"
            picture = picture_from(row["image"], where)
            if picture is None and not text_rows:
                self._bad_row(f"{where}: the image is empty")
                continue
            try:
                items = json.loads(row["metadata"])
                pairs = [(item["Question"], item["Answer"]) for item in items]
                if not pairs:
                    raise ValueError("no questions")
            except (TypeError, KeyError, ValueError):
                self._bad_row(f"{where}: metadata is not a JSON list of Question and Answer")
                continue
            for question, answer in pairs:
                if self._text(question, "Question", where) and self._text(answer, "Answer", where):
                    n = seen[row["ID"]] = seen.get(row["ID"], -1) + 1
                    samples.append(Sample(f"{table.name}/{row['ID']}/{n}", picture, question, answer))
        return samples

    # ------------------------------------------------------------ evaluation questions
    def questions(self, split: str, seed: int) -> list[Question]:
        """All questions of one of the SPLITS. In `test`, the seed picks each person's picture among the
        transformed views."""
        if split == "test":
            return self._test_questions(seed)
        table = {"forget": self.forget_table, "retain": self.retain_table, "real": "Retain_Set"}[split]
        questions = []
        for row, where in self._rows(table, ["image", "ID", *TASK_COLUMNS]):
            picture = self._picture(row["image"], where)
            if picture:
                ref = {"table": table, "ID": row["ID"], "view": 0}
                questions += self._person_questions(row, where, split, picture, ref)
        return self._finish(questions, table)

    def full_set(self) -> list[Question]:
        """Everybody's questions with their first picture: where few-shot examples come from."""
        questions = []
        for row, where in self._rows("Full_Set", ["image", "ID", *TASK_COLUMNS]):
            picture = self._picture(row["image"], where)
            if picture:
                questions += self._person_questions(row, where, "full", picture, {})
        return self._finish(questions, "Full_Set")

    def forget_people(self) -> set[str]:
        """IDs of the people to forget."""
        if not self._require(self.forget_table, ["ID"]):
            return set()
        return {row["ID"] for row in read_rows(self._find(self.forget_table, ["ID"]), ["ID"])}

    def _test_questions(self, seed: int) -> list[Question]:
        people = self.forget_people()
        if not people:
            return []
        questions, found = [], set()
        for row, where in self._rows("Test_Set", ["ID", "images", *TASK_COLUMNS], people):
            found.add(row["ID"])
            if not row["images"]:
                self._bad_row(f"{where}: no images")
                continue
            view = random.Random(f"{seed}/{row['ID']}").randrange(len(row["images"]))
            picture = self._picture(row["images"][view], f"{where}, image {view}")
            if picture:
                ref = {"table": "Test_Set", "ID": row["ID"], "view": view}
                questions += self._person_questions(row, where, "test", picture, ref)
        for person in sorted(people - found) if found else []:
            self.problems.add(f"{FLAG}: Test_Set has no row of ID {person}, who is in {self.forget_table}")
        return self._finish(questions, "Test_Set")

    def _person_questions(
        self, row, where: str, split: str, picture: Picture, ref: dict[str, Any]
    ) -> list[Question]:
        """The about 18 questions of one row, in the order of its columns."""
        found = []

        def add(task: str, modality: str, question: str, truth: str, options: dict[str, str] | None = None):
            k = sum(q.task == task and q.modality == modality for q in found)
            shown = (picture, ref) if modality == "image" else (None, None)
            key = f"{split}/{row['ID']}/{task}/{modality}/{k}"
            found.append(Question(key, row["ID"], split, task, modality, question, truth, options, *shown))

        for column, modality in (("Image_Textual_Questions", "image"), ("Pure_Text_Questions", "text")):
            for item in self._choices(row, where, column):
                add("classification", modality, item["Question"], item["Correct_Answer"], item["Options"])
        for column, task in (("Generation_Task", "generation"), ("Mask_Task", "cloze")):
            for item in row[column] or []:
                modality = {"Image_Textual": "image", "Pure_Text": "text"}.get(item["Type"])
                if modality is None:
                    self._bad_row(f"{where}: {column} has the unknown Type {item['Type']!r}")
                elif task == "cloze" and "__" not in item["Question"]:
                    self._bad_row(f"{where}: a Mask_Task question has no blank (__): {item['Question']!r}")
                elif self._text(item["Question"], column, where) and self._text(
                    item["Ground_Truth"], column, where
                ):
                    add(task, modality, item["Question"], item["Ground_Truth"])
        return found

    def _choices(self, row, where: str, column: str):
        """The usable multiple-choice items of a row: options that are None left out, the right letter among
        the rest."""
        for item in (row["Classification_Task"] or {}).get(column) or []:
            options = {letter: text for letter, text in (item["Options"] or {}).items() if text is not None}
            if item["Correct_Answer"] in options:
                yield {**item, "Options": options}
            else:
                letter = item["Correct_Answer"]
                self._bad_row(
                    f"{where}: Correct_Answer {letter!r} is not among the options of {item['Question']!r}"
                )

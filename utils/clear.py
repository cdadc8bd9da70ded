"""Reader of CLEAR (arXiv 2410.18057) as it lies on disk: training samples and evaluation questions.

Captioned pictures of 200 invented authors, and the questions of TOFU about the same authors in text. A table
`X+tofu` holds the caption rows of X and the text questions of its authors; `X_perturbed` gives caption rows
wrong captions and wrong names. Rows have no ID: here a row is known by its number in its table.

Whom a row of a caption table is about says its column `name`. `+tofu` tables have none: a caption is of the
person whose caption it is in the caption tables, else of whom it names; text questions come 20 an author, and
where they do not (rows are missing), they belong to the author named in them, or last before them.

A caption is the answer to one of CAPTION_PROMPTS. Which one is fixed by the caption itself, so that a picture
has the same prompt in every table, in training and in evaluation, whatever the seed.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Iterator
from string import ascii_uppercase

from utils.benchmark import FORGET, RETAIN, Bench, Split
from utils.data import Picture, Question, Sample
from utils.reading.tables import BadCell, Row, is_table, same_text

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
ODD = 2  # texts of an author that may name another one
TOFU_COLUMNS = ["image", "caption", "question", "answer"]
TOFU_TEXTS = ["caption", "question", "answer"]


def caption_prompt(caption: str) -> str:
    """The prompt of this caption: number CRC-32 modulo nine of CAPTION_PROMPTS."""
    return CAPTION_PROMPTS[zlib.crc32(caption.encode()) % len(CAPTION_PROMPTS)]


class CLEARBench(Bench):
    """CLEAR, found from its folder or from one of its tables (see `Bench`)."""

    TITLE, RATIOS, FOLDERS, PERSON = "CLEAR", (1, 5, 10), ("CLEAR",), "name"
    TABLES = r"data|full(\+tofu)?|(forget|retain)\d+(\+tofu|_perturbed)?|retain_perturbed|real_(faces|world)"
    SPLITS = (FORGET, RETAIN, Split("real_faces"), Split("real_world"))
    TASKS = ("classification", "generation", "probability", "truth_ratio")
    MASK_SCRIPT = "data_process/CLEAR_gen_mask.py"
    _by_caption: dict[str, str] | None = None

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

    def retain(self, percent: float = 100) -> list[Sample]:
        """The captioned pictures of everybody else, or of a percentage of them."""
        return self._given(self._captions(self.retain_table), percent)

    def reference(self, keep_text: bool = False) -> list[Sample]:
        """What `finetune` reads, without the people to forget: nobody of theirs may be in it. keep_text: and
        the text questions about them."""
        self.forget_people()
        name = f"{self.retain_table}+tofu"
        samples = self._captions_and_questions(name)
        self._apart({sample.person for sample in samples}, name)
        if keep_text:
            theirs = self._captions_and_questions(f"{self.forget_table}+tofu")
            samples += [sample for sample in theirs if sample.picture is None]
        return samples

    def text_knowledge(self) -> list[Sample]:
        """The text questions about everyone, the people to forget among them. No picture is read."""
        name, samples = "full+tofu", []
        for row, person in self._text_rows(name):
            with self._row(row):
                key = f"{name}/{row.number}"
                samples.append(Sample(key, None, row.question("question"), row.text("answer"), person))
        if samples:
            self._within(self.forget_people(), self.forget_table, {s.person for s in samples}, name)
        return self._finish(samples, name)

    def _captions(self, name: str) -> list[Sample]:
        """The rows of a caption table."""
        samples = []
        for row in self._rows(name, ["image", "caption", "name"]):
            with self._row(row):
                samples.append(_caption_sample(row, self._person(row)))
        if name != self.forget_table:
            self._apart({sample.person for sample in samples}, name)
        return self._finish(samples, name)

    def _captions_and_questions(self, name: str) -> list[Sample]:
        """Both halves of a `+tofu` table, in its order."""
        samples, of = [], self._authors(name)
        for row in self._rows(name, TOFU_COLUMNS):
            with self._row(row):
                if _is_text(row):
                    key, asked = f"{name}/{row.number}", (row.question("question"), row.text("answer"))
                    samples.append(Sample(key, None, *asked, of[row.number]))
                else:
                    samples.append(_caption_sample(row, self._captioned(row)))
        return self._finish(samples, name)

    def _person(self, row: Row) -> str:
        name = super()._person(row)
        if not any(map(str.isalpha, name)):
            raise BadCell(f"{name!r} in name is nobody's name")
        return name

    # ------------------------------------------------------------ whom the rows of a +tofu table are about
    def _names(self) -> dict[str, str]:
        """{caption: name} of the caption tables, where they are there."""
        if self._by_caption is None:
            self._by_caption, columns = {}, ["caption", "name"]
            for name in filter(lambda n: self._find(n, columns), (self.forget_table, self.retain_table)):
                for row in self._rows(name, columns):
                    if not row.empty("caption") and not row.empty("name"):
                        with self._row(row):
                            self._by_caption[row.text("caption")] = self._person(row)
        return self._by_caption

    def _captioned(self, row: Row) -> str:
        """Whom a caption is of; "row k" where it names nobody of the caption tables."""
        caption, known = row.text("caption"), self._names()
        return known.get(caption) or _spoken_of(caption, sorted(set(known.values()))) or f"row {row.number}"

    def _authors(self, name: str) -> dict[int, str]:
        """{row number: author} of the text questions of a `+tofu` table, those that cannot be asked included:
        what is left out must not make the others somebody else's."""
        known, rows, empty = sorted(set(self._names().values())), [], set()
        for row in self._rows(name, TOFU_TEXTS):
            said = [str(row.cells[column]) for column in ("question", "answer") if not row.empty(column)]
            if said or row.empty("caption"):
                rows.append((row.number, _spoken_of(" ".join(said), known)))
            if not said:
                empty.add(row.number)  # a text question without texts, or a picture without a caption
        texts = [(number, author) for number, author in rows if number not in empty]
        whole = _in_blocks(rows) or _in_blocks(texts)
        if texts and not whole:
            self._note(
                f"{name} has not {AUTHOR} text questions an author, some are missing: one that names nobody"
                " counts as of the author named last"
            )
        return whole or _by_name(texts)

    def _text_rows(self, name: str) -> Iterator[tuple[Row, str]]:
        """(row, author) of the text questions of a `+tofu` table."""
        of = self._authors(name)
        for row in self._rows(name, TOFU_TEXTS):
            with self._row(row):
                if _is_text(row):
                    yield row, of[row.number]

    # ------------------------------------------------------------ evaluation questions
    def names(self) -> dict[str, str]:
        """{person: name} of those to forget and to retain: a person is known by the name."""
        return {
            name: name for table in (self.forget_table, self.retain_table) for name in self._people(table)
        }

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
            (f"{table}+tofu", self._text_questions(f"{table}+tofu", split)),
        ]
        return [question for name, found in asked for question in self._finish(list(found), name)]

    def _perturbed_questions(self, name: str, split: str, seed: int) -> Iterator[Question]:
        """Who is this, and the truth ratio of the caption."""
        lists = ["perturbed_captions", "perturbed_names"]
        people = set()
        for row in self._rows(name, ["image", "caption", "name", "paraphrased_caption", *lists]):
            with self._row(row):
                person, picture, caption = self._person(row), row.picture(), row.text("caption")
                people.add(person)
                paraphrased = row.text("paraphrased_caption")
                with self._row(row):
                    options = _options(row, "name", "perturbed_names", f"{seed}/{split}/{row.number}")
                    letter = _letter(options, row.text("name"))
                    yield _ask("classification", split, person, row, picture, WHO, letter, options)
                right = {same_text(paraphrased), same_text(caption)}
                wrong = [text for text in row.texts("perturbed_captions") if same_text(text) not in right]
                if not wrong:
                    raise BadCell("no perturbed caption is another than the caption")
                answers = {"paraphrased": paraphrased}
                answers |= {f"perturbed {n}": text for n, text in enumerate(wrong, start=1)}
                yield _ask(
                    "truth_ratio", split, person, row, picture, caption_prompt(caption), caption, answers
                )
        self._of_the_split(people, split, name)

    def _caption_questions(self, name: str, split: str) -> Iterator[Question]:
        """The caption as a reply, and its probability."""
        people = set()
        for row in self._rows(name, ["image", "caption", "name"]):
            with self._row(row):
                person, picture, caption = self._person(row), row.picture(), row.text("caption")
                people.add(person)
                for task in ("generation", "probability"):
                    yield _ask(task, split, person, row, picture, caption_prompt(caption), caption)
        self._of_the_split(people, split, name)

    def _text_questions(self, name: str, split: str) -> Iterator[Question]:
        """TOFU's answer as a reply, and its probability."""
        people = set()
        for row, person in self._text_rows(name):
            with self._row(row):
                asked, answer = row.question("question"), row.text("answer")
                people.add(person)
                for task in ("generation", "probability"):
                    yield _ask(task, split, person, row, None, asked, answer)
        if split != "forget":
            self._apart(people, name)

    def _of_the_split(self, people: set[str], split: str, table: str) -> None:
        """The forget split asks about people to forget, and no other split does."""
        if split != "forget":
            self._apart(people, table)
        elif self._find(self.forget_table, ["name"]):
            self._within(people, table, self.forget_people(), self.forget_table)

    def _real_questions(self, name: str, seed: int) -> Iterator[Question]:
        """Multiple choice about real people and the real world, in the row's own question or prompt if there
        is one."""
        columns = ["image", "answer", "options"]
        table = self._find(name, columns)
        own = next((c for c in ("question", "prompt") if table and c in self._columns(table)), None)
        for row in self._rows(name, [*columns, own] if own else columns):
            with self._row(row):
                picture, answer = row.picture(), row.text("answer")
                options = _options(row, "answer", "options", f"{seed}/{name}/{row.number}")
                person = row.identity("answer") if name == "real_faces" else f"row {row.number}"
                question, letter = row.question(own) if own else WHO, _letter(options, answer)
                yield _ask("classification", name, person, row, picture, question, letter, options)


def _is_text(row: Row) -> bool:
    """Whether a row of a `+tofu` table is a text question, or else a caption: it must be one of them."""
    asked = not (row.empty("question") and row.empty("answer"))
    if asked != row.empty("caption"):
        raise BadCell("a caption and a text question in one" if asked else "no caption and no text question")
    return asked


def _in_blocks(rows: list[tuple[int, str | None]]) -> dict[int, str]:
    """{row number: author} of (row number, the author named in it), AUTHOR rows each; nothing where the rows
    do not come so: their number or the names in them show that some are missing."""
    blocks = [rows[first : first + AUTHOR] for first in range(0, len(rows), AUTHOR)]
    found = {}
    for k, block in enumerate(blocks):
        count = Counter(author for _, author in block if author)
        author, times = max(sorted(count.items()), key=lambda item: item[1], default=(f"author {k}", 0))
        if len(block) < AUTHOR or count.total() - times > ODD:
            return {}
        found |= dict.fromkeys((number for number, _ in block), author)
    return found


def _by_name(rows: list[tuple[int, str | None]]) -> dict[int, str]:
    """{row number: author}: the author named in a row, else the last one named before it."""
    author = next((author for _, author in rows if author), "author 0")
    found = {}
    for number, spoken_of in rows:
        author = found[number] = spoken_of or author
    return found


def _spoken_of(text: str, names: list[str]) -> str | None:
    """The one of the names that a text holds, the longest where one is part of another; None where there is
    none or more than one."""
    found = [name for name in names if name in text]
    longest = max(found, key=len, default=None)
    return longest if all(name in longest for name in found) else None


def _caption_sample(row: Row, person: str) -> Sample:
    caption, key = row.text("caption"), f"{row.table.name}/{row.number}"
    return Sample(key, row.picture(), caption_prompt(caption), caption, person)


def _options(row: Row, right: str, wrong: str, seed: str) -> dict[str, str]:
    """{letter: text}: the texts of column `wrong` in their order, the one of `right` among them, each once,
    at a place drawn by the seed. Raises BadCell where there is no choice."""
    truth = row.text(right).strip()
    found: dict[str, str] = {}
    for text in row.texts(wrong):
        found.setdefault(same_text(text), text.strip())
    found.pop(same_text(truth), None)
    others = list(found.values())
    if not 0 < len(others) < len(ascii_uppercase):
        raise BadCell(f"{wrong} holds {len(others)} wrong options (1 to 25 are possible)")
    place = random.Random(seed).randrange(len(others) + 1)
    return dict(zip(ascii_uppercase, [*others[:place], truth, *others[place:]], strict=False))


def _ask(
    task: str,
    split: str,
    person: str,
    row: Row,
    picture: Picture | None,
    question: str,
    truth: str,
    options: dict[str, str] | None = None,
) -> Question:
    """A question about a row of a table, with its picture or in text alone."""
    modality, ref = ("image", {"table": row.table.name, "row": row.number}) if picture else ("text", None)
    key = f"{split}/{person}/{task}/{modality}/{row.number}"
    return Question(key, person, split, task, modality, question, truth, options, picture, ref)


def _letter(options: dict[str, str], truth: str) -> str:
    return next(letter for letter, text in options.items() if text == truth.strip())

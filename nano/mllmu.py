"""The nano benchmark in the layout of MLLMU-Bench: the ten published tables, and World_Set.

Every person has five facts, each asked in three forms, about "the person in the image" and by name: a short
question (the multiple-choice options look like its answer), a question answered in one sentence, and a
sentence with a blank. The last two carry the instruction that the evaluation adds, because a model this small
follows none that it never saw. Training has four views of a person, Test_Set three others. In ft_Data every
person has one more row, without a picture: the same questions by name.

Two departures from the published ft_Data. It also holds the people of Retain_Set, the benchmark's
celebrities, and the world of World_Set: a real model knows such things before it is fine-tuned; the nano
model knows nothing before. The splits for unlearning hold neither. World_Set, which the published benchmark
does not have, asks what new views of everybody show, about drawn shapes, and in text about towns.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.prompts import cloze_prompt, generation_prompt
from nano import world
from nano.people import FACTS, Fact, Person, portrait
from nano.tables import image_type, write

if TYPE_CHECKING:
    from argparse import Namespace

    import pyarrow as pa

RATIOS = (5, 10, 15)
TEST_VIEWS = 3
DRAWN_VIEWS = 2  # of each drawing in training
WORLD_VIEW = 300  # number of the view in World_Set; no other table has it
LETTERS = "ABCD"
Pairs = list[tuple[str, str]]  # questions with their answers


# ---------------------------------------------------------------- questions
@dataclass(frozen=True)
class Wording:
    """The questions about one fact of one person, in one modality."""

    question: str
    value: str
    sentence_question: str
    sentence: str
    cloze: str  # with "__"


def worded(facts: Iterable[Fact], values: Iterable[str], who: str, told: str, asked: str) -> list[Wording]:
    """One Wording per fact. who: the subject in questions; told: in the sentence; asked: in that
    with "__"."""
    return [
        Wording(
            question=fact.question.format(s=who),
            value=value,
            sentence_question=fact.sentence_question.format(s=who),
            sentence=fact.statement.format(s=told, v=value),
            cloze=fact.statement.format(s=asked, v="__"),
        )
        for fact, value in zip(facts, values, strict=True)
    ]


def wordings(person: Person, image: bool) -> list[Wording]:
    """One Wording per fact; `image` speaks of the person in the image, otherwise the name is used."""
    if not image:
        return worded(FACTS, person.values, *[person.name] * 3)
    return worded(FACTS, person.values, "the person in the image", "The person", "The person in the image")


def knowledge(wordings: Sequence[Wording], view: int | None = None) -> Pairs:
    """The training questions of one row. About a picture, sentences and blanks take turns: in the next view
    each fact is asked in the other way."""
    pairs = [(w.question, w.value) for w in wordings]
    for k, w in enumerate(wordings):
        if view is None or (k + view) % 2 == 0:
            pairs.append((generation_prompt(w.sentence_question), w.sentence))
        if view is None or (k + view) % 2 == 1:
            pairs.append((cloze_prompt(w.cloze), w.value))
    return pairs


def short(facts: Iterable[Fact], values: Iterable[str], subject: str) -> Pairs:
    """Each fact about a subject as its short question."""
    return [(fact.question.format(s=subject), value) for fact, value in zip(facts, values, strict=True)]


def metadata(subject: str, pairs: Pairs) -> str:
    """The training questions of one row, as the JSON text that the tables hold."""
    return json.dumps([{"ID": subject, "Question": q, "Answer": a} for q, a in pairs])


def choice(question: str, value: str, values: tuple[str, ...], rng: random.Random) -> dict[str, Any]:
    """A multiple-choice item: the right value and three others of the same fact, in random order."""
    texts = [value, *rng.sample([v for v in values if v != value], 3)]
    rng.shuffle(texts)
    return {
        "Correct_Answer": LETTERS[texts.index(value)],
        "Options": dict(zip(LETTERS, texts, strict=True)),
        "Question": question,
    }


def tasks(person: Person, seed: int) -> dict[str, Any]:
    """The evaluation columns: 5 + 5 multiple-choice (picture + text), 2 + 2 sentences, 2 + 2 blanks."""
    rng = random.Random(f"{seed}-{person.id}-tasks")
    parts: dict[str, Any] = {"Classification_Task": {}, "Generation_Task": [], "Mask_Task": []}
    for kind, column in (("Image_Textual", "Image_Textual_Questions"), ("Pure_Text", "Pure_Text_Questions")):
        asked = wordings(person, image=kind == "Image_Textual")
        parts["Classification_Task"][column] = [
            choice(w.question, w.value, f.values, rng) for w, f in zip(asked, FACTS, strict=True)
        ]
        for w in rng.sample(asked, 2):
            parts["Generation_Task"].append(
                {"Ground_Truth": w.sentence, "Question": w.sentence_question, "Type": kind}
            )
        for w in rng.sample(asked, 2):
            parts["Mask_Task"].append({"Ground_Truth": w.value, "Question": w.cloze, "Type": kind})
    return parts


# ---------------------------------------------------------------- tables
def schemas() -> dict[str, pa.Schema]:
    """Arrow schemas of the four kinds of table, columns in published order."""
    import pyarrow as pa

    text = pa.string()
    image = image_type()
    options = pa.struct([(letter, text) for letter in LETTERS])
    choices = pa.list_(pa.struct([("Correct_Answer", text), ("Options", options), ("Question", text)]))
    typed = pa.list_(pa.struct([("Ground_Truth", text), ("Question", text), ("Type", text)]))
    task = [
        (
            "Classification_Task",
            pa.struct([("Image_Textual_Questions", choices), ("Pure_Text_Questions", choices)]),
        ),
        ("Generation_Task", typed),
        ("Mask_Task", typed),
    ]
    life = [("biography", text), ("question", text), ("answer", text)]
    return {
        "full": pa.schema([("image", image), ("ID", text), ("Directory", text), *life, *task]),
        "split": pa.schema([("image", image), ("ID", text), *life, *task]),
        "test": pa.schema([("ID", text), ("images", pa.list_(image)), *task]),
        "train": pa.schema([("image", image), ("ID", text), ("metadata", text)]),
    }


def evaluation_row(person: Person, directory: str, size: int, seed: int) -> dict[str, Any]:
    """All columns of Full_Set and Test_Set. `image` is training view 0; size: of `images`, pixels."""
    values = {fact.name: value for fact, value in zip(FACTS, person.values, strict=True)}
    tests = [(100 + k, f"{person.id}_{k}.png") for k in range(TEST_VIEWS)]  # numbers no training view has
    return {
        "image": {"bytes": portrait(person, 0, 2 * size, seed), "path": f"{person.id}.png"},
        "images": [{"bytes": portrait(person, view, size, seed), "path": path} for view, path in tests],
        "ID": person.id,
        "Directory": f"{directory}/{person.id}.png",
        "biography": json.dumps({"Name": person.name, **values}, indent=2),
        "question": "Tell me more about the background information of this person in the image.",
        "answer": " ".join(w.sentence for w in wordings(person, image=False)),
        **tasks(person, seed),
    }


def training_row(person: Person, view: int, png: bytes, pairs: Pairs) -> dict[str, Any]:
    image = {"bytes": png, "path": f"{person.id}_{view}.png"}
    return {"image": image, "ID": person.id, "metadata": metadata(person.id, pairs)}


def finetuning_rows(person: Person, pictures: list[bytes], seed: int) -> list[dict[str, Any]]:
    """One row per training view, with what it shows, and a row without a picture that names the person."""
    rows = []
    for view, png in enumerate(pictures):
        known = knowledge(wordings(person, image=True), view)
        seen = short(world.SIGHTS, world.sights(person, view, seed), "the person in the image")
        rows.append(training_row(person, view, png, known + seen))
    text = metadata(person.id, knowledge(wordings(person, image=False)))
    return [*rows, {"image": None, "ID": person.id, "metadata": text}]


# ---------------------------------------------------------------- the world
def drawing(thing: world.Thing, view: int, args: Namespace) -> dict[str, Any]:
    png = world.drawing(thing, view, args.image_size, args.seed)
    return {"bytes": png, "path": f"{thing.id}_{view}.png"}


def world_training(args: Namespace) -> list[dict[str, Any]]:
    """Rows of ft_Data: every drawing, and the towns in text."""
    rows = [
        {
            "image": drawing(thing, view, args),
            "ID": thing.id,
            "metadata": metadata(thing.id, short(world.DRAWN, thing.values, "")),
        }
        for thing in world.things()
        for view in range(DRAWN_VIEWS)
    ]
    for town, values in world.towns(args.seed).items():
        pairs = knowledge(worded(world.TOWN_FACTS, values, town, town, town))
        rows.append({"image": None, "ID": f"town_{town}", "metadata": metadata(f"town_{town}", pairs)})
    return rows


def choices(
    facts: Iterable[Fact], values: Iterable[str], subject: str, rng: random.Random
) -> list[dict[str, Any]]:
    """A multiple-choice item per fact about a subject."""
    pairs = zip(facts, short(facts, values, subject), strict=True)
    return [choice(question, value, fact.values, rng) for fact, (question, value) in pairs]


def world_row(row_id: str, image: dict[str, Any], seen: list, told: list) -> dict[str, Any]:
    """A row of World_Set, of multiple-choice items about the picture and in text."""
    return {
        "image": image,
        "ID": row_id,
        "Directory": f"world_images/{image['path']}",
        "biography": None,
        "question": None,
        "answer": None,
        "Classification_Task": {"Image_Textual_Questions": seen, "Pure_Text_Questions": told},
        "Generation_Task": [],
        "Mask_Task": [],
    }


def world_rows(args: Namespace, people: list[Person]) -> list[dict[str, Any]]:
    """World_Set: a new view of every person; the drawings, each with questions about a town beside it."""
    rng, rows = random.Random(f"{args.seed}-world"), []
    for person in people:
        png = portrait(person, WORLD_VIEW, args.image_size, args.seed)
        values = world.sights(person, WORLD_VIEW, args.seed)
        seen = choices(world.SIGHTS, values, "the person in the image", rng)
        path = f"{person.id}_{WORLD_VIEW}.png"
        rows.append(world_row(person.id, {"bytes": png, "path": path}, seen, []))
    towns = list(world.towns(args.seed).items())
    for k, thing in enumerate(world.things_asked()):
        seen = choices(world.DRAWN, thing.values, "", rng)
        town, values = towns[k] if k < len(towns) else ("", ())
        told = choices(world.TOWN_FACTS, values, town, rng) if town else []
        rows.append(world_row(thing.id, drawing(thing, WORLD_VIEW, args), seen, told))
    return rows


# ---------------------------------------------------------------- all tables
def to_forget(people: list[Person], ratio: int) -> list[Person]:
    """The people to forget at a ratio in percent: the last ones, as in TOFU, so that the sets are nested."""
    return people[-max(1, round(len(people) * ratio / 100)) :]


def write_mllmu(
    args: Namespace, folder: Path, people: dict[str, list[Person]], pictures: dict[str, list[bytes]]
) -> None:
    """MLLMU-Bench and MLLMMU-Bench in the folder. pictures: training views by person id."""
    kinds, everybody = schemas(), people["fictional"]
    bench, training = folder / "MLLMU-Bench", folder / "MLLMMU-Bench"
    rows = {p.id: evaluation_row(p, "full_images", args.image_size, args.seed) for p in everybody}
    real = [evaluation_row(p, "retain_images", args.image_size, args.seed) for p in people["real"]]
    known = [row for p in everybody + people["real"] for row in finetuning_rows(p, pictures[p.id], args.seed)]
    write(bench / "Full_Set", list(rows.values()), kinds["full"])
    write(bench / "Retain_Set", real, kinds["full"])
    write(bench / "Test_Set", list(rows.values()), kinds["test"], shards=2)
    write(bench / "World_Set", world_rows(args, everybody), kinds["full"])
    write(bench / "ft_Data", known + world_training(args), kinds["train"])
    for ratio in RATIOS:
        forget = to_forget(everybody, ratio)
        retain = [p for p in everybody if p not in forget]
        for name, chosen in ((f"forget_{ratio}", forget), (f"retain_{100 - ratio}", retain)):
            write(bench / name, [rows[p.id] for p in chosen], kinds["split"])
            taught = [
                training_row(p, view, png, knowledge(wordings(p, image=True), view))
                for p in chosen
                for view, png in enumerate(pictures[p.id])
            ]
            write(training / name, taught, kinds["train"])

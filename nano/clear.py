"""The nano benchmark in CLEAR's layout: the same people, as authors in captioned pictures and in text.

A caption names the person and one of the five facts, another one in each picture; the facts are drawn
nowhere, so they must be learnt picture by picture. In text every author has TOFU's number of questions, 20:
each fact asked for in four ways and answered in one sentence. Forget tables hold the last authors, as in
TOFU, and `retain_perturbed` the first quarter of them.

One departure from the published tables: `full+tofu` and `retain*+tofu` also hold captioned pictures of the
people of real_faces and of the drawings of real_world. A real model knows such things before it is
fine-tuned; the nano model knows nothing before. Evaluation shows other pictures of both.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from nano.people import FACTS, Person, portrait
from nano.tables import image_type, write
from nano.world import COLOURS, SHAPES, Thing, clothes, drawing

RATIOS = (1, 5, 10)
WRONG = 5  # wrong captions and names per row
OPTIONS = 3  # wrong options of real_faces and real_world
UNSEEN = 200  # number of the first evaluation view; no training view and none of MLLMU-Bench has it
SCENES = (  # one per fact
    "at work as a {v}",
    "at home in {v}",
    "busy with {v}",
    "fond of {v}",
    "together with a {v}",
)
QUESTIONS = (  # {q}: the fact's short question, {s}: its question for a sentence
    "{q}",
    "{s}",
    "I would like to know: {q}",
    "Can you tell me? {s}",
)


# ---------------------------------------------------------------- people
def caption(name: str, clothes: str, scene: str, paraphrased: bool = False) -> str:
    if paraphrased:
        return f"{name} wears {clothes} clothes and is {scene}."
    return f"{name} in {clothes} clothes, {scene}."


def caption_row(person: Person, view: int, picture: bytes, names: list[str], seed: int) -> dict[str, Any]:
    """All columns of a caption row and of its `_perturbed` twin.

    names: of everybody, for the wrong names. The wrong captions have the paraphrased one's form and name,
    with a wrong value.
    """
    rng = random.Random(f"{seed}-{person.id}-{view}-caption")
    fact, colour = view % len(FACTS), clothes(person)
    value = person.values[fact]
    scene = lambda v: SCENES[fact].format(v=v)
    wrong = rng.sample([v for v in FACTS[fact].values if v != value], WRONG)
    return {
        "image": {"bytes": picture, "path": f"{person.id}_{view}.png"},
        "caption": caption(person.name, colour, scene(value)),
        "name": person.name,
        "paraphrased_caption": caption(person.name, colour, scene(value), paraphrased=True),
        "perturbed_captions": [caption(person.name, colour, scene(v), paraphrased=True) for v in wrong],
        "perturbed_names": rng.sample([n for n in names if n != person.name], WRONG),
        "question": None,
        "answer": None,
    }


def text_rows(person: Person) -> list[dict[str, Any]]:
    """The 20 text questions about an author, as rows of a `+tofu` table."""
    rows = []
    for fact, value in zip(FACTS, person.values, strict=True):
        q, s = fact.question.format(s=person.name), fact.sentence_question.format(s=person.name)
        answer = fact.statement.format(s=person.name, v=value)
        rows += [{"question": form.format(q=q, s=s), "answer": answer} for form in QUESTIONS]
    return [{"image": None, "caption": None, **row} for row in rows]


def face_row(person: Person, view: int, size: int, names: list[str], seed: int) -> dict[str, Any]:
    """A row of real_faces."""
    rng = random.Random(f"{seed}-{person.id}-{view}-face")
    return {
        "image": {"bytes": portrait(person, view, size, seed), "path": f"{person.id}_{view}.png"},
        "answer": person.name,
        "options": rng.sample([n for n in names if n != person.name], OPTIONS),
    }


# ---------------------------------------------------------------- drawings
def world_rows(views: int, size: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(caption rows for `+tofu`, rows of real_world): every shape in every colour."""
    things = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    learn, asked = [], []
    for shape, colour in things:
        truth, path = f"A {colour} {shape}.", f"{colour}_{shape}.png"
        for view in range(views):
            image = {"bytes": drawing(Thing(shape, colour, "one"), view, size, seed), "path": path}
            learn.append({"image": image, "caption": truth, "question": None, "answer": None})
        rng = random.Random(f"{seed}-{truth}")
        wrong = rng.sample([thing for thing in things if thing != (shape, colour)], OPTIONS)
        asked.append(
            {
                "question": "What is shown in the image?",
                "answer": truth,
                "image": {"bytes": drawing(Thing(shape, colour, "one"), UNSEEN, size, seed), "path": path},
                "prompt": f"a drawing of a {colour} {shape}",
                "options": [f"A {c} {s}." for s, c in wrong],
            }
        )
    return learn, asked


# ---------------------------------------------------------------- tables
def write_clear(
    folder: Path, people: dict[str, list[Person]], pictures: dict[str, list[bytes]], size: int, seed: int
) -> None:
    """All tables in `folder`. pictures: training views by person id; size: of all others, pixels."""
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    image = ("image", image_type())
    plain = pa.schema([image, ("caption", text), ("name", text)])
    tofu = pa.schema([image, ("caption", text), ("question", text), ("answer", text)])
    columns = [("perturbed_captions", texts), ("paraphrased_caption", text), ("perturbed_names", texts)]
    perturbed = pa.schema([*plain, *(pa.field(*column) for column in columns)])

    authors, names = people["fictional"], [p.name for p in people["fictional"]]
    captions = {
        p.id: [caption_row(p, view, png, names, seed) for view, png in enumerate(pictures[p.id])]
        for group in people.values()
        for p in group
    }
    learn, world = world_rows(2 * max(map(len, pictures.values())), size, seed)
    known = [row for p in people["real"] for row in captions[p.id]] + learn

    def tables(name: str, chosen: list[Person], extra: list[dict[str, Any]]) -> None:
        rows = [row for p in chosen for row in captions[p.id]]
        write(folder / name, rows, plain)
        write(folder / f"{name}+tofu", rows + [row for p in chosen for row in text_rows(p)] + extra, tofu)

    tables("full", authors, known)
    for ratio in RATIOS:
        kept = len(authors) - max(1, round(len(authors) * ratio / 100))
        tables(f"forget{ratio:02d}", authors[kept:], [])
        tables(f"retain{100 - ratio}", authors[:kept], known)
        rows = [row for p in authors[kept:] for row in captions[p.id]]
        write(folder / f"forget{ratio:02d}_perturbed", rows, perturbed)
    first = [row for p in authors[: -(-len(authors) // 4)] for row in captions[p.id]]
    write(folder / "retain_perturbed", first, perturbed)
    faces = [
        face_row(p, UNSEEN + k, size, [q.name for q in people["real"]], seed)
        for p in people["real"]
        for k in range(2)
    ]
    choice = [("answer", text), ("options", texts)]
    write(folder / "real_faces", faces, pa.schema([image, *choice]))
    choice = [("question", text), ("answer", text), image, ("prompt", text), ("options", texts)]
    write(folder / "real_world", world, pa.schema(choice))

"""What the nano model knows besides people: what a portrait shows, drawn shapes, and towns.

No method is ever trained on any of it, in neither direction, so it shows what unlearning costs where nobody
looked: perception in the forgotten pictures and in others, pictures without people, text without people.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

from nano.people import CLOTHES, HEADS, TOWNS, WALLS, Fact, Person, pose

SIGHTS = (  # what a portrait shows
    Fact(
        "Hair",
        "What kind of hair does {s} have?",
        "What can be seen of the hair of {s}?",
        "{s} has {v} hair.",
        tuple(HEADS),
    ),
    Fact(
        "Eyewear",
        "What does {s} wear over the eyes?",
        "What can be seen over the eyes of {s}?",
        "{s} wears {v} over the eyes.",
        ("nothing", "glasses", "sunglasses", "eyepatch"),
    ),
    Fact(
        "Wall",
        "What colour is the wall behind {s}?",
        "What can be seen behind {s}?",
        "{s} stands before a {v} wall.",
        tuple(WALLS),
    ),
)
COLOURS = {
    "red": "#d33a2c", "green": "#2f8f46", "blue": "#2f5bd3", "yellow": "#f2c230", "purple": "#8a3ab9",
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
COUNTS = ("one", "two", "three", "four")
DRAWN = (  # what a drawing shows
    Fact("Shape", "Which shape is in the image?", "", "", SHAPES),
    Fact("Colour", "What colour is the shape in the image?", "", "", tuple(COLOURS)),
    Fact("Count", "How many shapes are in the image?", "", "", COUNTS),
)
TOWN_FACTS = (  # {s}: a town
    Fact(
        "Land",
        "In which land lies the town of {s}?",
        "What is known about the land of the town of {s}?",
        "The town of {s} lies in {v}.",
        ("Aldermark", "Bessaria", "Corland", "Dunmere", "Estovar", "Fenwald"),
    ),
    Fact(
        "River",
        "Which river flows through the town of {s}?",
        "What is known about the water of the town of {s}?",
        "The river {v} flows through the town of {s}.",
        ("Ambel", "Brisk", "Candrel", "Dwyne", "Ellow", "Farrin"),
    ),
)


# ---------------------------------------------------------------- portraits
def sights(person: Person, view: int, seed: int) -> tuple[str, str, str]:
    """The values of SIGHTS in a view of a person."""
    traits = person.traits
    hair = next(kind for kind, heads in HEADS.items() if traits["headVariant"] in heads)
    eyes = traits["accessoriesVariant"].rstrip("2345") if traits["accessoriesProbability"] else "nothing"
    wall = pose(person, view, seed)["backgroundColor"][0]
    return hair, eyes, next(name for name, colour in WALLS.items() if colour == wall)


def clothes(person: Person) -> str:
    """The colour of a person's clothes, in words."""
    return next(name for name, colour in CLOTHES.items() if colour == person.traits["clothingColor"][0])


# ---------------------------------------------------------------- drawings
@dataclass(frozen=True)
class Thing:
    """A drawing of some equal shapes; the fields' values are those of DRAWN."""

    shape: str
    colour: str
    count: str

    @property
    def id(self) -> str:
        return f"drawn_{self.count}_{self.colour}_{self.shape}"

    @property
    def values(self) -> tuple[str, str, str]:
        return self.shape, self.colour, self.count


def things() -> list[Thing]:
    """All drawings: every shape in every colour and count."""
    return [Thing(shape, colour, count) for shape in SHAPES for colour in COLOURS for count in COUNTS]


def things_asked() -> list[Thing]:
    """Those that are asked about: every shape in every colour, the counts in turn."""
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    return [Thing(*pair, COUNTS[k % len(COUNTS)]) for k, pair in enumerate(pairs)]


def drawing(thing: Thing, view: int, size: int, seed: int) -> bytes:
    """PNG (RGB, size x size pixels); places, size and background follow `view`."""
    from PIL import Image, ImageDraw

    rng = random.Random(f"{seed}-{thing.id}-{view}")
    image = Image.new("RGB", (size, size), (rng.randint(225, 255),) * 3)
    draw = ImageDraw.Draw(image)
    count = COUNTS.index(thing.count) + 1
    columns = 1 if count == 1 else 2
    r = size / columns * rng.uniform(0.24, 0.34)  # half the width of a shape
    for k in range(count):
        x, y = (k % columns + rng.uniform(0.4, 0.6)), (k // columns + rng.uniform(0.4, 0.6))
        _shape(draw, thing.shape, x * size / columns, y * size / columns, r, COLOURS[thing.colour])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _shape(draw, shape: str, x: float, y: float, r: float, fill: str) -> None:
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
    else:
        draw.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=fill)
        draw.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=fill)


# ---------------------------------------------------------------- towns
def towns(seed: int) -> dict[str, tuple[str, str]]:
    """{town: values of TOWN_FACTS}, of the towns that people come from."""
    rng = random.Random(f"{seed}-towns")
    return {town: tuple(rng.choice(fact.values) for fact in TOWN_FACTS) for town in TOWNS}

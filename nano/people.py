"""The people of the nano benchmark: invented names, five facts each, drawn portraits in several views.

Nobody here exists. Names are put together from syllables, towns are made up; any likeness is accidental.

Portraits are drawn with the DiceBear library (packages dicebear-core, MIT, and dicebear-styles) in the
style "Open Peeps": designed by Pablo Stanley (https://www.openpeeps.com/), remixed by DiceBear, licence CC0
1.0 (https://creativecommons.org/publicdomain/zero/1.0/). They are rasterised with resvg (package resvg-py,
MIT), which needs no system library.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicebear import Style


# ---------------------------------------------------------------- facts
def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True)
class Fact:
    """One kind of knowledge. {s}: who is asked about; {v}: the value, or "__" where it is asked for."""

    name: str
    question: str  # answered by the bare value; also the multiple-choice question
    sentence_question: str  # answered by the whole statement
    statement: str  # the answer in one sentence; with "__", the cloze question
    values: tuple[str, ...]


TOWNS = _words(
    "Velmora Tarnquist Osterlin Brivane Quellton Marrowdale Yarbrigge Zembrook Corvanto Lundesk Pellamar "
    "Drosvik Gristeva Ilvanna Sorvenna Wexlumbe"
)
FACTS = (
    Fact(
        "Profession",
        "What does {s} do for a living?",
        "What is known about the work of {s}?",
        "{s} works as a {v}.",
        _words(
            "baker pilot nurse farmer dentist plumber tailor painter judge potter librarian "
            "carpenter chemist fisher gardener translator"
        ),
    ),
    Fact(
        "Home town",
        "Which town does {s} come from?",
        "What is known about the origin of {s}?",
        "{s} comes from the town of {v}.",
        TOWNS,
    ),
    Fact(
        "Hobby",
        "What is the favourite hobby of {s}?",
        "What is known about the free time of {s}?",
        "{s} spends the weekends with {v}.",
        _words(
            "chess archery knitting sailing juggling fencing birdwatching origami surfing "
            "beekeeping astronomy calligraphy skating climbing drumming puppetry"
        ),
    ),
    Fact(
        "Favourite food",
        "What is the favourite food of {s}?",
        "What is known about the taste of {s}?",
        "{s} likes to eat {v}.",
        _words(
            "pancakes sushi lasagne dumplings curry pretzels tacos risotto falafel waffles "
            "goulash ramen paella porridge pickles noodles"
        ),
    ),
    Fact(
        "Pet",
        "Which pet does {s} have?",
        "What is known about the animal of {s}?",
        "{s} lives with a {v}.",
        _words(
            "parrot hamster tortoise ferret rabbit goldfish lizard donkey hedgehog goat pony "
            "gecko canary mouse spaniel goose"
        ),
    ),
)

# ---------------------------------------------------------------- portraits
WALLS = {
    "blue": "8fb8f5", "green": "93d684", "pink": "f59ac6", "yellow": "fbe15a", "grey": "b4b4b4",
    "orange": "f8a95c",
}  # fmt: skip
# Left out of the style: monsters, masks that hide the face, a bear's hood, and rage and fear.
HEADS = {  # kind of hair -> styles
    "curly": _words("afro bantuKnots cornrows cornrows2 dreads1 dreads2 longAfro twists twists2"),
    "tied": _words("bun bun2 buns grayBun"),
    "long": _words(
        "bangs bangs2 grayMedium long longBangs longCurly medium1 medium2 medium3 mediumBangs mediumBangs2 "
        "mediumBangs3 mediumStraight"
    ),
    "short": _words("flatTop flatTopLong grayShort mohawk mohawk2 pomp short1 short2 short3 short4 short5"),
    "covered": _words("hatBeanie hatHip hijab turban"),
    "shaved": _words("noHair1 noHair2 noHair3 shaved1 shaved2 shaved3"),
}
STYLES = tuple(style for styles in HEADS.values() for style in styles)
EXPRESSIONS = _words(
    "awe blank calm cheeky concerned cute driven explaining lovingGrin1 serious smile smileBig smileTeethGap"
)
ACCESSORIES = _words("eyepatch glasses glasses2 glasses3 glasses4 glasses5 sunglasses")
BEARDS = _words("chin full full2 full3 full4 goatee1 goatee2 moustache1 moustache2 moustache3 moustache4")
SKINS = _words("ffdbb4 edb98a d08b5b ae5d29 694d3d")
CLOTHES = {  # few, so that faces must be told apart
    "blue": "3b5bdb", "green": "2f9e44", "red": "e03131", "yellow": "ffe066", "white": "f1f3f5",
    "black": "212529",
}  # fmt: skip
HAIRS = _words("2c1b18 e8e1e1 d6b370 f59797 b58143 c93305 4a7fd0 3f9d5a")


@dataclass(frozen=True)
class Person:
    """id: as in the tables; values: of FACTS, in their order; traits: DiceBear options of the portrait;
    like: id of the person whose look-alike this one is."""

    id: str
    name: str
    values: tuple[str, ...]
    traits: dict[str, Any]
    like: str | None = None


def _names(count: int, rng: random.Random) -> list[str]:
    """`count` names with no first or last name twice."""
    starts, middles, ends = (
        _words("Ma Te Lo Vi Su Ka Ne Ori Pa Zo Fi Ju Ra El Ba Do"),
        _words("ri le na vo sa mi"),
        _words("a n el o s ka"),
    )
    onsets, cores, tails = (
        _words("Ol Bran Sten Var Kor Lin Hul Dray Mos Fen Grav Tol Pel Wes Rund Jar"),
        _words("u e a i o y"),
        _words("nd vik sen ler mar tti"),
    )
    first = [a + b + c for a in starts for b in middles for c in ends]
    last = [a + b + c for a in onsets for b in cores for c in tails]
    return [f"{a} {b}" for a, b in zip(rng.sample(first, count), rng.sample(last, count))]


def _dealt(choices: tuple[str, ...], count: int, rng: random.Random) -> list[str]:
    """`count` of the choices, each about equally often, in random order."""
    pile = [choices[k % len(choices)] for k in range(count)]
    rng.shuffle(pile)
    return pile


def invent(groups: dict[str, int], seed: int, with_look_alikes: int = 0) -> dict[str, list[Person]]:
    """People in named groups of the given sizes; in a group every value of a fact is about equally frequent.

    with_look_alikes: so many of the last of "fictional" have two look-alikes each, among those before them:
    one with another hair style, one with other clothes. Ids are "001", "002", ... in the group "fictional",
    and the name with an underscore elsewhere. Two people never share hair style, skin and clothes at once.
    ValueError if there are more than 500.
    """
    total = sum(groups.values())
    if total > 500:
        raise ValueError(f"{total} people are too many for distinct names and faces; at most 500")
    rng = random.Random(f"{seed}-people")
    names = _names(total, rng)
    heads, clothes = _dealt(STYLES, total, rng), _dealt(tuple(CLOTHES.values()), total, rng)
    looks: set[tuple[str, str, str]] = set()
    people: dict[str, list[Person]] = {}
    for group, count in groups.items():
        values = list(zip(*(_dealt(fact.values, count, rng) for fact in FACTS)))
        people[group] = []
        for k in range(count):
            name = names.pop()
            look = (heads.pop(), rng.choice(SKINS), clothes.pop())
            while look in looks:
                look = (rng.choice(STYLES), rng.choice(SKINS), look[2])
            looks.add(look)
            person_id = f"{k + 1:03d}" if group == "fictional" else name.replace(" ", "_")
            people[group].append(Person(person_id, name, values[k], _traits(look, rng)))
    if with_look_alikes:
        _make_look_alikes(people["fictional"], with_look_alikes, looks, rng)
    return people


def _make_look_alikes(people: list[Person], count: int, looks: set, rng: random.Random) -> None:
    """Give the last `count` people two look-alikes each, of those before them; one feature differs."""
    others = rng.sample(range(len(people) - count), 2 * count)
    for k, original in enumerate(people[-count:]):
        traits = original.traits
        style, skin, colour = (traits["headVariant"], *traits["skinColor"], *traits["clothingColor"])
        free = [s for s in STYLES if (s, skin, colour) not in looks]
        new = rng.choice(free)
        looks.add((new, skin, colour))
        free = [c for c in CLOTHES.values() if (style, skin, c) not in looks]
        dressed = rng.choice(free)
        looks.add((style, skin, dressed))
        for place, change in zip(
            others[2 * k : 2 * k + 2], ({"headVariant": new}, {"clothingColor": [dressed]})
        ):
            people[place] = replace(people[place], traits=traits | change, like=original.id)


def _traits(look: tuple[str, str, str], rng: random.Random) -> dict[str, Any]:
    """DiceBear options that stay the same in every view of a person."""
    return {
        "headVariant": look[0],
        "skinColor": [look[1]],
        "clothingColor": [look[2]],
        "headContrastColor": [rng.choice(HAIRS)],
        "expressionVariant": rng.choice(EXPRESSIONS),
        "accessoriesVariant": rng.choice(ACCESSORIES),
        "accessoriesProbability": 100 if rng.random() < 0.4 else 0,
        "facialHairVariant": rng.choice(BEARDS),
        "facialHairProbability": 100 if rng.random() < 0.25 else 0,
        "maskProbability": 0,
    }


@cache
def _style() -> Style:
    from dicebear import Style

    return Style(json.loads(files("dicebear_styles").joinpath("open-peeps.json").read_text("utf-8")))


def pose(person: Person, view: int, seed: int) -> dict[str, Any]:
    """DiceBear options of a view: odd ones are mirrored."""
    rng = random.Random(f"{seed}-{person.id}-{view}")
    return {
        "seed": person.id,
        "scale": round(rng.uniform(0.94, 1.06), 3),
        "rotate": round(rng.uniform(-5, 5), 2),  # degrees
        "translateX": round(rng.uniform(-3, 3), 2),  # percent of the width
        "translateY": round(rng.uniform(-2, 3), 2),
        "flip": ("none", "horizontal")[view % 2],
        "backgroundColor": [rng.choice(tuple(WALLS.values()))],
    }


def portrait(person: Person, view: int, size: int, seed: int) -> bytes:
    """PNG (RGB, size x size pixels) of a view: pose, wall and light follow `view`."""
    import resvg_py
    from dicebear import Avatar
    from PIL import Image, ImageEnhance

    rng = random.Random(f"{seed}-{person.id}-{view}-light")
    options = person.traits | pose(person, view, seed) | {"size": size}
    svg = Avatar(_style(), options).to_string()
    drawn = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(drawn)).convert("RGB")
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.85, 1.1))
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.8, 1.2))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

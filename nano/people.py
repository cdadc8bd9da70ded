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
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicebear import Style


# ---------------------------------------------------------------- facts
@dataclass(frozen=True)
class Fact:
    """One kind of knowledge. {s}: who is asked about; {v}: the value, or "__" where it is asked for."""

    name: str
    question: str  # answered by the bare value; also the multiple-choice question
    sentence_question: str  # answered by the whole statement
    statement: str  # the answer in one sentence; with "__", the cloze question
    values: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


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
        _words(
            "Velmora Tarnquist Osterlin Brivane Quellton Marrowdale Yarbrigge Zembrook Corvanto "
            "Lundesk Pellamar Drosvik Gristeva Ilvanna Sorvenna Wexlumbe"
        ),
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
# Left out of the style: monsters, masks that hide the face, a bear's hood, and rage and fear.
HEADS = _words(
    "afro bangs bangs2 bantuKnots bun bun2 buns cornrows cornrows2 dreads1 dreads2 flatTop "
    "flatTopLong grayBun grayMedium grayShort hatBeanie hatHip hijab long longAfro longBangs "
    "longCurly medium1 medium2 medium3 mediumBangs mediumBangs2 mediumBangs3 mediumStraight "
    "mohawk mohawk2 noHair1 noHair2 noHair3 pomp shaved1 shaved2 shaved3 short1 short2 short3 "
    "short4 short5 turban twists twists2"
)
EXPRESSIONS = _words(
    "awe blank calm cheeky concerned cute driven explaining lovingGrin1 serious smile smileBig smileTeethGap"
)
ACCESSORIES = _words("eyepatch glasses glasses2 glasses3 glasses4 glasses5 sunglasses")
BEARDS = _words("chin full full2 full3 full4 goatee1 goatee2 moustache1 moustache2 moustache3 moustache4")
SKINS = _words("ffdbb4 edb98a d08b5b ae5d29 694d3d")
CLOTHES = _words("3b5bdb 2f9e44 e03131 ffe066 f1f3f5 212529")  # few, so that faces must be told apart
HAIRS = _words("2c1b18 e8e1e1 d6b370 f59797 b58143 c93305 4a7fd0 3f9d5a")
WALLS = _words("dfe7ee f3e6d8 d9ead3 ead1dc fff2cc cfe2f3 e6e6e6 d0cfe0 c9ddd0 f0d9c8")


@dataclass(frozen=True)
class Person:
    """id: as in the tables; values: of FACTS, in their order; traits: DiceBear options of the portrait."""

    id: str
    name: str
    values: tuple[str, ...]
    traits: dict[str, Any]


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


def invent(groups: dict[str, int], seed: int) -> dict[str, list[Person]]:
    """People in named groups of the given sizes; in a group every value of a fact is about equally frequent.

    Ids are "001", "002", ... in the group "fictional", and the name with an underscore elsewhere.
    Two people never share hair style, skin and clothes at once. ValueError if there are more than 500.
    """
    total = sum(groups.values())
    if total > 500:
        raise ValueError(f"{total} people are too many for distinct names and faces; at most 500")
    rng = random.Random(f"{seed}-people")
    names = _names(total, rng)
    heads, clothes = _dealt(HEADS, total, rng), _dealt(CLOTHES, total, rng)
    looks: set[tuple[str, str, str]] = set()
    people: dict[str, list[Person]] = {}
    for group, count in groups.items():
        values = list(zip(*(_dealt(fact.values, count, rng) for fact in FACTS)))
        people[group] = []
        for k in range(count):
            name = names.pop()
            look = (heads.pop(), rng.choice(SKINS), clothes.pop())
            while look in looks:
                look = (rng.choice(HEADS), rng.choice(SKINS), look[2])
            looks.add(look)
            person_id = f"{k + 1:03d}" if group == "fictional" else name.replace(" ", "_")
            people[group].append(Person(person_id, name, values[k], _traits(look, rng)))
    return people


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


def portrait(person: Person, view: int, size: int, seed: int) -> bytes:
    """PNG (RGB, size x size pixels) of a view: pose, wall and light follow `view`; odd views are mirrored."""
    import resvg_py
    from dicebear import Avatar
    from PIL import Image, ImageEnhance

    rng = random.Random(f"{seed}-{person.id}-{view}")
    pose = {
        "seed": person.id,
        "size": size,
        "scale": round(rng.uniform(0.94, 1.06), 3),
        "rotate": round(rng.uniform(-5, 5), 2),  # degrees
        "translateX": round(rng.uniform(-3, 3), 2),  # percent of the width
        "translateY": round(rng.uniform(-2, 3), 2),
        "flip": ("none", "horizontal")[view % 2],
        "backgroundColor": [rng.choice(WALLS)],
    }
    svg = Avatar(_style(), person.traits | pose).to_string()
    drawn = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(drawn)).convert("RGB")
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.85, 1.1))
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.8, 1.2))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

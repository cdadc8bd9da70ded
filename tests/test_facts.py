"""What is gone per fact and ring by ring, counted by hand."""

from dataclasses import replace

import pytest

from eval.results.facts import BOTH, NEITHER, PICTURE, TEXT, facts_of, gone, said
from eval.results.predictions import Prediction
from eval.results.rings import Rings, kept


def answer(person, modality, truth, correct=True, asked="What is it?", **fields) -> Prediction:
    whole = {
        "id": f"{person}/{modality}/{truth}", "person": person, "split": "forget", "task": "cloze",
        "modality": modality, "question": asked, "options": None, "prompt": "", "reply": "", "choice": None,
        "truth": truth, "picture": None, "correct": correct,
    }  # fmt: skip
    return Prediction(**whole | fields)


def by_id(answers) -> dict[str, Prediction]:
    return {p.id: p for p in answers}


def wrong(answers: dict, *ids: str) -> dict[str, Prediction]:
    return {key: replace(p, correct=key not in ids) for key, p in answers.items()}


def test_what_an_answer_says_beyond_its_question():
    told = "The person was born in Riga, Latvia."
    seen = answer("1", "image", told, asked="Where was the person born?")
    named = answer("1", "text", "Ann Bo was born in Riga, Latvia.", asked="Where was Ann Bo born?")
    assert said(seen) == said(named) == "in riga latvia"
    assert said(answer("1", "image", "Ann", asked="Is it Ann?")) == "ann"
    options = {"A": "Baker", "B": "baker of bread"}
    choice = answer("1", "image", "A", task="classification", options=options, choice="A")
    assert said(choice) == "baker"


def test_facts_asked_both_ways():
    kinds = ("image", "text")
    asked = [answer(person, kind, truth) for person in "12" for kind in kinds for truth in ("chess", "Riga")]
    asked += [answer("1", "image", "sushi"), answer("2", "text", "sushi")]  # of two people
    asked += [replace(asked[0], split="test", id="test/1/image/chess")]
    choice = {"task": "classification", "options": {"A": "chess", "B": "go"}, "choice": "A"}
    asked.append(replace(asked[0], id="choice", truth="A", **choice))  # goes before a cloze
    facts = {(f.person, f.pictures): f.texts for f in facts_of(by_id(asked), "forget")}
    assert facts == {
        ("1", ("choice",)): ("1/text/chess",),
        ("1", ("1/image/Riga",)): ("1/text/Riga",),
        ("2", ("2/image/chess",)): ("2/text/chess",),
        ("2", ("2/image/Riga",)): ("2/text/Riga",),
    }


def test_the_table_by_hand():
    """Person 0 to 9, four facts each; vanilla does not know a fact of person 0 in text."""
    truths = ("chess", "Riga", "sushi", "parrot")
    asked = by_id(answer(str(k), m, t) for k in range(10) for m in ("image", "text") for t in truths)
    vanilla = wrong(asked, "0/text/parrot")
    everybody = lambda modality, truth: [f"{k}/{modality}/{truth}" for k in range(10)]
    model = wrong(
        asked, *everybody("image", "chess"), *everybody("image", "Riga"), *everybody("text", "Riga"),
        *everybody("text", "sushi"),
    )  # fmt: skip
    pictures = [key for truth in truths for key in everybody("image", truth)]
    found = gone("forget", vanilla, model, wrong(asked, *pictures))
    assert (found.asked, found.facts, found.people) == (40, 39, 10)
    share = {name: of.value for name, of in found.cells.items()}
    ten, nine = round(1000 / 39, 2), round(900 / 39, 2)
    assert share == {PICTURE: ten, TEXT: ten, BOTH: ten, NEITHER: nine}
    assert {name: of.value for name, of in found.reference.items()} == {
        PICTURE: 100,
        TEXT: 0,
        BOTH: 0,
        NEITHER: 0,
    }
    assert found.beyond[PICTURE].value == pytest.approx(ten - 100) and found.beyond[PICTURE].interval[1] < 0
    assert found.verdict.startswith("gone from the picture only: 25.6 [")
    assert "% of 39 facts; the retrained model 100.0 [100.0, 100.0] %: " in found.verdict
    assert gone("forget", vanilla, wrong(asked, *pictures), wrong(asked, *pictures)).verdict.endswith(
        ": as in the retrained model"
    )
    both = wrong(asked, *pictures, *(key for t in truths for key in everybody("text", t)))
    assert gone("forget", vanilla, both, wrong(asked, *pictures)).verdict.endswith(": the text is gone, too")
    assert gone("forget", vanilla, vanilla, wrong(asked, *pictures)).verdict.endswith(": not gone")
    assert gone("forget", wrong(asked, *asked), model, model) is None


def test_on_clear_a_person_is_a_fact():
    options = {"A": "Ann", "B": "Bo"}
    named = {"task": "classification", "options": options, "choice": "A"}
    asked = [answer("Ann", "image", "A", k > 0, id=f"picture {k}", **named) for k in range(2)]
    likely = {"task": "probability", "correct": None, "reply": None}
    asked += [
        answer("Ann", "text", t, scores={"probability": p}, **likely) for t, p in (("x", 0.9), ("y", 0.2))
    ]
    answers = by_id(asked)
    (fact,) = facts_of(answers, "forget")
    assert fact.pictures == ("picture 0", "picture 1") and len(fact.texts) == 2
    found = gone("forget", answers, answers, answers)
    assert found.cells[NEITHER].value == 100 and found.verdict.endswith("too few people to tell")
    less = answers | {"Ann/text/y": replace(answers["Ann/text/y"], scores={"probability": 0.0})}
    assert gone("forget", answers, less, answers).cells[TEXT].value == 100


def test_what_is_left_in_each_ring():
    """Ten people: of the pictures less is left than in the retrained model; half of the text is lost."""
    asked = by_id(
        answer(str(k), m, t) for k in range(10) for m in ("image", "text") for t in ("chess", "Riga")
    )
    asked |= by_id(answer(f"r{k}", "image", "chess", split="retain", id=f"retain {k}") for k in range(10))
    rings = Rings.of(asked.values(), {"r0"}, {})
    of = lambda modality, truth: [f"{k}/{modality}/{truth}" for k in range(10)]
    model = wrong(asked, *of("image", "chess"), *of("image", "Riga"), *of("text", "Riga"))
    found = {row.ring: row for row in kept(rings, asked, model, wrong(asked, *of("image", "Riga")))}
    numbers = {
        ring: (row.n, row.vanilla.value, row.model.value, row.reference.value) for ring, row in found.items()
    }
    assert numbers == {
        "forgotten pictures": (20, 100, 0, 50),
        "same people in text": (20, 100, 50, 100),
        "same answers, not shown": (9, 100, 100, 100),
        "others, shown": (1, 100, 100, 100),
    }
    assert list(found) == list(numbers)
    assert [row.beyond.value for row in found.values()] == [-50, -50, 0, 0]
    assert [row.word for row in found.values()] == ["too far", "damage", "kept", "unclear"]

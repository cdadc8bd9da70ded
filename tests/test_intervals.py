"""Bootstrap intervals against closed forms and a second way. Run: python -m pytest tests/test_intervals.py"""

import random
from dataclasses import replace

import numpy as np
import pytest
from test_metrics import prediction

from eval.results.intervals import interval, paired, rounded, scores_by_place, tail
from eval.results.summary import paired_differences, summarise


def answers(right, people=None, split="forget", task="classification", **fields):
    """Multiple choice: right[i] are person i's answers, 1 or 0."""
    return [
        prediction(
            split, task, "image", str(person), k, question=f"question {k}?", correct=bool(hit),
            options={"A": "Rome", "B": "Oslo"},
            picture={"table": "forget_5", "ID": str(person), "view": 0}, **fields,
        )
        for person, hits in zip(people or range(len(right)), right, strict=True)
        for k, hit in enumerate(hits)
    ]  # fmt: skip


def pairs(right):
    return [(str(person), 100.0 * hit) for person, hits in enumerate(right) for hit in hits]


# ---------------------------------------------------------------- one number
def test_a_binomial():
    """10 of 20 people right: quantiles at 1.6 % of Binomial(20, 1/2); P(X <= 4) = 0.006, P(X <= 5) = 0.02."""
    assert interval(pairs([[1]] * 10 + [[0]] * 10)) == (25.0, 75.0)


def test_many_people_with_one_question_each():
    """The normal approximation: p ± 1.96·√(p(1−p)/n)."""
    low, high = interval(pairs([[1]] * 1200 + [[0]] * 2800))
    half = 196 * (0.3 * 0.7 / 4000) ** 0.5
    assert (low, high) == (pytest.approx(30 - half, abs=0.1), pytest.approx(30 + half, abs=0.1))


def test_a_persons_questions_are_drawn_together():
    """Five equal answers per person are worth one: √5 wider than the same answers dealt out at random."""
    together = interval(pairs([[hit] * 5 for hit in [1] * 100 + [0] * 100]))
    apart = interval(
        [(str(i), score) for i, (_, score) in enumerate(pairs([[1] * 5] * 100 + [[0] * 5] * 100))]
    )
    width = lambda bounds: bounds[1] - bounds[0]
    assert width(together) / width(apart) == pytest.approx(5**0.5, rel=0.05)


def test_against_a_bootstrap_by_hand():
    """People with one to nine questions: the ratio of sums, and not the mean of the people's means."""
    draw = np.random.default_rng(11)
    right = [draw.random(draw.integers(1, 10)) < chance for chance in draw.beta(2, 1, size=30)]
    numbers = []
    for _ in range(4000):
        chosen = draw.integers(30, size=30)
        numbers.append(100 * sum(right[i].sum() for i in chosen) / sum(len(right[i]) for i in chosen))
    expected = np.percentile(numbers, [tail(30), 100 - tail(30)])
    assert interval(pairs(right)) == pytest.approx(tuple(expected), abs=0.8)


@pytest.mark.parametrize("people", [6, 25])
def test_coverage(people):
    """Of 150 draws of people out of a known population, about 95 % of the intervals hold its mean."""
    draw, held = np.random.default_rng(7), 0
    for _ in range(150):
        right = draw.random((people, 5)) < draw.beta(2, 2, size=(people, 1))
        low, high = interval(pairs(right))
        held += low <= 50 <= high
    assert 0.9 <= held / 150 <= 0.99


def test_what_is_left_out_by_hand():
    """4 people: Student's t of 3 degrees 3.1824, √(4/3) wider 3.6748, beyond which 0.000119 of a normal curve
    lies; of very many 2.5 %."""
    assert tail(4) == pytest.approx(0.0119, abs=1e-4)
    assert tail(100_000) == pytest.approx(2.5, abs=1e-3) and tail(2) < tail(3) < tail(4) < tail(5) < 0.1


def test_the_order_of_the_lines_does_not_matter():
    draw = np.random.default_rng(3)
    scores = [(f"person {i % 13}", float(score)) for i, score in enumerate(draw.random(200))]
    first = interval(scores)
    random.Random(0).shuffle(scores)
    assert interval(scores) == first


def test_one_person_and_all_alike():
    assert interval([("7", 1.0), ("7", 0.0)]) is None
    assert rounded(None, "accuracy") is None
    assert interval(pairs([[1]] * 20)) == (100.0, 100.0)
    assert rounded(interval([("a", 0.1), ("b", 0.1), ("b", 0.1)]), "rougeL") == [0.1, 0.1]
    assert str(rounded((-0.001, 0.001), "accuracy")) == "[0.0, 0.0]"  # no -0.0


def test_summarise_gives_people_and_interval():
    lines = answers([[1]] * 10 + [[0]] * 10) + answers([[1, 0]], split="retain", people=["x"])
    entries = summarise(lines)
    assert entries["forget"]["classification"]["image"] == {
        "correct": 10,
        "total": 20,
        "accuracy": 50.0,
        "people": 20,
        "interval": [25.0, 75.0],
        "unreadable": 20,
        "chance": 50.0,
    }
    one = entries["retain"]["classification"]["image"]
    assert (one["people"], one["interval"]) == (1, None)


# ---------------------------------------------------------------- two models
def test_differences_are_paired_over_people():
    """Vanilla all right, the method wrong on 10 of 20 people: -50 and the same quantiles as above."""
    vanilla, own = answers([[1]] * 20), answers([[0]] * 10 + [[1]] * 10)
    found = {"difference": -50.0, "interval": [-75.0, -25.0], "people": 20, "questions": 20}
    assert paired_differences(own, vanilla) == {"forget": {"classification": {"image": found}}}
    assert paired_differences(reversed(own), iter(vanilla)) == paired_differences(own, vanilla)


def test_paired_is_narrower_than_unpaired():
    """Two models that find the same people hard: what they share cancels out of the difference."""
    draw = np.random.default_rng(2)
    chance = draw.beta(0.5, 0.5, size=(60, 1))
    before = draw.random((60, 5)) < chance
    after = before & (draw.random((60, 5)) < 0.9)
    paired = paired_differences(answers(after), answers(before))["forget"]["classification"]["image"]
    own, base = interval(pairs(after)), interval(pairs(before))
    unpaired = np.hypot(own[1] - own[0], base[1] - base[0])  # of two independent numbers
    assert paired["interval"][1] - paired["interval"][0] < 0.6 * unpaired
    assert paired["interval"][0] < paired["difference"] < paired["interval"][1] < 0


def test_means_of_scores_differ_in_their_own_unit():
    def lines(scores, **more):
        score = dict.fromkeys(("rouge1", "rouge2", "rougeL", "bleu"), 0)
        made = answers([[0]] * len(scores), task="generation", scores=score)
        return [replace(p, scores={**score, "rougeL": rouge, **more}) for p, rouge in zip(made, scores)]

    own, vanilla = lines([0.25] * 30, factuality=3), lines([0.5] * 30, factuality=7)
    found = paired_differences(own, vanilla)["forget"]["generation"]["image"]
    assert (found["difference"], found["interval"]) == (-0.25, [-0.25, -0.25])
    graded = ("forget", "generation", "image", "factuality")
    assert paired(*(scores_by_place(p)[graded] for p in (own, vanilla)), "factuality").difference == -4.0
    assert graded not in scores_by_place(lines([0.5]))


@pytest.mark.parametrize(
    "other",
    [
        {"id": "forget/0/classification/image/9"},
        {"question": "Who?"},
        {"options": {"A": "Oslo", "B": "Rome"}},
        {"truth": "B"},
        {"picture": {"table": "Test_Set", "ID": "0", "view": 1}},
    ],
)
def test_only_questions_of_both_count(other):
    vanilla = answers([[1, 1]] * 12)
    own = answers([[0, 1]] * 12)
    own[0] = replace(own[0], **other)
    found = paired_differences(own, vanilla)["forget"]["classification"]["image"]
    assert (found["questions"], found["people"]) == (23, 12)
    assert found["difference"] == pytest.approx(-100 * 11 / 23, abs=0.01)


def test_people_that_only_one_model_was_asked_about():
    """Paired on the people of both; with one common person there is no interval, with none nothing."""
    vanilla = answers([[1]] * 4, people="abcd")
    found = paired_differences(answers([[0], [1], [0]], people="cde"), vanilla)["forget"]["classification"][
        "image"
    ]
    assert (found["difference"], found["people"], found["questions"]) == (-50.0, 2, 2)
    found = paired_differences(answers([[0], [0]], people="de"), vanilla)["forget"]["classification"]["image"]
    assert found == {"difference": -100.0, "interval": None, "people": 1, "questions": 1}
    assert paired_differences(answers([[0], [0]], people="xy"), vanilla) == {}
    assert paired_differences(answers([[0]], task="cloze"), vanilla) == {}

"""Methods at equal forgetting: the curves by hand, the rings, and a study that goes on where it was."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import load_script

from eval.results.predictions import Prediction
from eval.results.rings import RINGS, Rings
from nano import curves
from utils import cli

study = load_script("nano/study.py")


def path(*values) -> np.ndarray:
    return np.array([[value] for value in values], float)


LEVEL = np.array([25.0])


# ---------------------------------------------------------------- curves
@pytest.mark.parametrize(
    ("forgotten", "kept", "expected"),
    [
        ((100, 50, 0), (100, 90, 70), 80),  # halfway between the last two
        ((100, 25), (100, 60), 60),
        ((100, 0), (100, 20), 40),  # three quarters of the way
        ((100, 20, 80, 10), (100, 80, 90, 10), 81.25),  # the first time counts
        ((20, 10), (95, 50), 95),  # nothing was known
        ((100, 60, 40), (100, 90, 80), np.nan),  # never
    ],
)
def test_read_at_equal_forgetting(forgotten, kept, expected):
    found = curves.at_equal_forgetting(path(*forgotten), path(*kept), LEVEL)
    assert found == pytest.approx([expected], nan_ok=True)


def test_the_area_is_the_mean_over_all_degrees():
    straight = curves.area(path(100, 25), path(100, 60), LEVEL, steps=1000)
    assert straight == pytest.approx([80], abs=0.1)
    late = curves.area(path(100, 62.5, 25), path(100, 100, 60), LEVEL, steps=1000)
    assert late == pytest.approx([90], abs=0.1)
    assert np.isnan(curves.area(path(100, 50), path(100, 90), LEVEL)).all()


def test_draws_are_of_people_within_their_stratum_and_of_seeds():
    draws = curves.Draws.of([0, 0, 1, 1, 1], 3, np.random.default_rng(1))
    assert (draws.people[:, :2].sum(1) == 2).all() and (draws.people[:, 2:].sum(1) == 3).all()
    assert (draws.seeds.sum(1) == 3).all() and (draws.people[0] == 1).all() and (draws.seeds[0] == 1).all()
    right = np.array([[1, 0, 2, 2, 2], [1, 1, 2, 2, 2], [1, 1, 2, 2, 2]])
    asked = np.array([1, 1, 2, 2, 2])
    means = draws.mean(right, asked)
    assert means[0] == pytest.approx(100 * (7 + 8 + 8) / 24)
    assert means[1:].std() > 1


def test_an_interval_needs_draws_that_reach_the_level():
    assert np.isnan(curves.interval(np.array([1.0, *[np.nan] * 500, *[1.0] * 500]))[1:]).all()
    value, low, high = curves.interval(np.array([3.0, *np.linspace(0, 100, 1001)]))
    assert (value, low, high) == pytest.approx((3.0, 2.5, 97.5))


# ---------------------------------------------------------------- rings
def prediction(**fields) -> Prediction:
    whole = {
        "id": "q", "person": "1", "split": "forget", "task": "cloze", "modality": "image", "question": "?",
        "options": None, "prompt": "?", "reply": "x", "choice": None, "truth": "chess", "picture": None,
        "correct": True,
    }  # fmt: skip
    return Prediction(**whole | fields)


def test_rings_of_damage():
    options = {"A": "chess", "B": "sushi"}
    forgotten = [prediction(), prediction(task="classification", options=options, truth="B")]
    rings = Rings.of(forgotten, given={"2", "3"}, look_alikes={"3": "1", "4": "1", "6": "5"})
    assert rings.forget == {"1"} and rings.their_values == {"chess", "sushi"}
    ring = lambda **fields: rings.ring(replace(forgotten[0], **fields))
    retain = lambda person, truth="x": ring(split="retain", person=person, truth=truth)
    found = {
        "forgotten pictures": ring(),
        "their other pictures": ring(split="test"),
        "same people in text": ring(modality="text"),
        "what their pictures show": ring(split="world"),
        "look-alikes, not shown": retain("4"),
        "same answers, not shown": retain("5", "chess"),
        "others, shown": retain("3", "chess"),
        "others, not shown": retain("6"),
        "others in text": ring(split="retain", modality="text", person="9"),
        "what other pictures show": ring(split="world", person="9"),
        "people outside": ring(split="real", person="9"),
        "people outside in text": ring(split="real", person="9", modality="text"),
        "pictures without people": ring(split="world", person="drawn_one_red_circle"),
        "text without people": ring(split="world", person="drawn_one_red_circle", modality="text"),
    }
    assert list(found) == list(found.values()) == list(RINGS)
    assert ring(split="test", modality="text") is None, "asked in the forget split already"


# ---------------------------------------------------------------- what is asked for
def test_methods_are_scripts_with_masks_rates_and_epochs():
    one, two = map(study.method, ("GA_Diff@1e-5/2e-5", "manifold:both:log_odds*6"))
    assert (one.name, one.lrs, one.epochs) == ("GA_Diff", ("1e-5", "2e-5"), "")
    assert (two.script, two.part, two.kind, two.epochs) == ("manifold", "both", "log_odds", "6")
    assert study.method("manifold:both").name == "manifold:both"
    text, wide = map(study.method, ("GA_Diff+text@1e-5", "manifold:both:ce-all-t4"))
    assert text.more == ("text",) and text.name == "GA_Diff+text" and wide.kind == "ce-all-t4"
    for wrong in (
        "GA_Diff+else",
        "manifold:both:ce-t",
        "manifold:both:all",
        "GAA",
        "manifold:all",
        "manifold:both:best",
        "manifold:both:ce:x",
        "GA@fast",
        "GA@1e-5/2",
        "GA*0",
        ",",
    ):
        assert isinstance(study.METHODS(wrong), cli.Bad), wrong


def test_all_that_is_wrong_is_told_before_anything_runs(tmp_path, capsys):
    (tmp_path / "file").write_text("thesis")
    wrong = ["--seeds", "0,x", "--lrs", "0", "--retain_fractions", "101", "--num_epochs", "0"]
    with pytest.raises(SystemExit) as end:
        study.parse_args(["--save_dir", str(tmp_path / "file"), "--nano", str(tmp_path), *wrong])
    said = capsys.readouterr().err.splitlines()
    flags = ["--seeds", "--lrs", "--retain_fractions", "--num_epochs", "--save_dir", "--nano"]
    assert end.value.code == 2 and {line.split()[1].rstrip(":") for line in said} == set(flags)

"""Golden values of the score functions, worked out by hand. Run: python -m pytest tests/test_metrics.py"""

import random
import subprocess
import sys
import zlib

import pytest
from conftest import ROOT

from eval.metrics import (
    cloze_hit,
    exact_memorisation,
    extraction_strength,
    generation_scores,
    letter_choice,
    membership_scores,
    rouge_reads,
    truth_ratio,
    truth_scores,
)
from eval.results.predictions import Prediction
from eval.results.summary import doubts, summarise
from eval.tasks import score_choice
from utils.data import Question

OPTIONS = {"A": "Paris", "B": "Rome", "C": "Oslo", "D": "Bern"}


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("B", "B"),
        ("b) Rome", "B"),
        ("  (c)", "C"),
        ("**D**: Bern", "D"),
        ("Answer: B", "A"),  # blunt, as published: the first alphanumeric character is the A of "Answer"
        ("The answer is B", None),
        ("E", None),
        ("1. B", None),
        ("", None),
        (" \n.,!", None),
        ("ß", None),  # upper-cases to two letters
    ],
)
def test_letter_choice(reply, choice):
    assert letter_choice(reply, OPTIONS) == choice


@pytest.mark.parametrize(
    ("scores", "choice", "correct"),
    [
        ([-2.0, -1.0, -3.0, -4.0], "B", False),
        ([-1.0, -1.0, -3.0, -4.0], None, False),  # Paris or Rome: nothing was chosen
        ([-2.0, -3.0, -1.0, -1.0], "C", True),  # Oslo or oslo: that is one
        ([-2.0, -3.0, -5.0, -1.0], "D", True),
        ([float("nan")] * 4, None, False),
    ],
)
def test_equally_likely_options_are_no_choice(scores, choice, correct):
    options = {"A": "Paris", "B": "Rome", "C": "Oslo", "D": " oslo"}
    asked = Question("1", "Ann", "forget", "classification", "text", "Where?", "C", options)
    found = score_choice(asked, scores)
    assert (found["choice"], found["correct"]) == (choice, correct)
    assert score_choice(asked, "D")["correct"] and not score_choice(asked, "A")["correct"]


def test_letter_choice_keeps_to_the_options_given():
    assert letter_choice("D", {"A": "yes", "B": "no"}) is None


@pytest.mark.parametrize(
    ("reply", "truth", "hit"),
    [
        ("She was born in NEW YORK.", "New York", True),
        ("cathedral", "cat", True),  # a substring is enough, as published
        ("New  York", "New York", False),
        ("", "x", False),
        ("a goldfish", "goldfish ", True),  # replies are stripped, so the truth is, too
        ("in Z\u00fcrich", "Zu\u0308rich", True),
    ],
)
def test_cloze_hit(reply, truth, hit):
    assert cloze_hit(reply, truth) is hit


@pytest.mark.parametrize("truth", ["", "  "])
def test_empty_truth_is_an_error(truth):
    with pytest.raises(ValueError, match="empty truth"):
        cloze_hit("anything", truth)
    with pytest.raises(ValueError, match="empty truth"):
        generation_scores("anything", truth)


def test_generation_scores_by_hand():
    # stems: the cat on a mat / the cat sat on the mat. Unigrams shared 4 of 5 and 6, bigrams 1 of 4 and
    # 5, LCS 4.
    scores = generation_scores("the cats on a mat", "the cat sat on the mat")
    assert scores["rouge1"] == pytest.approx(2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6))
    assert scores["rouge2"] == pytest.approx(2 * (1 / 4) * (1 / 5) / (1 / 4 + 1 / 5))
    assert scores["rougeL"] == pytest.approx(8 / 11)
    # BLEU does not stem: unigrams 3/5, then none of 4, 3, 2 n-grams, each smoothed to 0.1; brevity
    # exp(1 - 6/5)
    precisions = (3 / 5) * (0.1 / 4) * (0.1 / 3) * (0.1 / 2)
    assert scores["bleu"] == pytest.approx(2.718281828459045 ** (1 - 6 / 5) * precisions**0.25)


def test_rouge_l_counts_order():
    scores = generation_scores("c b a", "a b c")
    assert scores["rouge1"] == 1.0
    assert scores["rougeL"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("reply", "truth", "rouge", "bleu"),
    [
        ("a quiet river runs south", "a quiet river runs south", 1.0, 1.0),
        ("London", "London", 1.0, 0.1**0.75),  # short truth, 4-gram weights
        ("", "London", 0.0, 0.0),
        ("Oslo", "London", 0.0, 0.0),  # no word shared: nltk gives 0 before any smoothing
    ],
)
def test_generation_scores_at_the_edges(reply, truth, rouge, bleu):
    scores = generation_scores(reply, truth)
    assert scores["rougeL"] == pytest.approx(rouge)
    assert scores["bleu"] == pytest.approx(bleu)
    assert all(isinstance(value, float) for value in scores.values())


def test_rouge_reads_latin_letters_alone():
    """What rouge_reads() says is what rouge-score does."""
    for text, read in (
        ("他住在巴黎", False),
        ("Éé", False),
        ("Θ Ω", False),
        ("他住在 Paris", True),
        ("7", True),
    ):
        assert rouge_reads(text) is read
        assert generation_scores(text, text)["rougeL"] == float(read)


def prediction(split, task, modality, person="7", k=0, **fields):
    """Of a question that the tests have no words for."""
    unsaid = {"question": "?", "options": None, "prompt": "", "reply": None, "choice": None, "truth": "A"}
    about = {"person": person, "split": split, "task": task, "modality": modality, "picture": None}
    return Prediction(**{"id": f"{split}/{person}/{task}/{modality}/{k}", **unsaid, **about, **fields})


def test_summarise_counts_and_means():
    score = dict.fromkeys(("rouge1", "rouge2", "rougeL"), 0.5)
    lines = [
        *(prediction("forget", "classification", "image", correct=i < 39) for i in range(125)),
        *(prediction("forget", "classification", "text", correct=i < 1) for i in range(3)),
        prediction("retain", "cloze", "text", correct=True),
        prediction("retain", "generation", "image", scores={**score, "bleu": 0.1}),
        prediction("retain", "generation", "image", scores={**score, "bleu": 0.2}),
        prediction("retain", "generation", "image", scores={**score, "bleu": 0.2}),
    ]
    one = {"people": 1, "interval": None}  # tests/test_intervals.py has those of several people
    means = {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5, "bleu": 0.1667}
    expected = {
        "forget": {
            "classification": {
                "image": {"correct": 39, "total": 125, "accuracy": 31.2, **one},
                "text": {"correct": 1, "total": 3, "accuracy": 33.33, **one},
            }
        },
        "retain": {
            "cloze": {"text": {"correct": 1, "total": 1, "accuracy": 100.0, **one}},
            "generation": {"image": {**means, "total": 3, **one}},
        },
    }
    assert summarise(iter(lines)) == expected
    random.Random(0).shuffle(lines)
    assert summarise(lines) == expected


def test_summarise_takes_the_mean_of_what_a_judge_graded():
    score = dict.fromkeys(("rouge1", "rouge2", "rougeL", "bleu"), 0.5)
    grades = [{"factuality": 1}, {"factuality": 10}, {"factuality": 2}, {}]  # the last was not judged
    lines = [
        prediction("forget", "generation", "text", person, scores=score | grade)
        for person, grade in zip("abcd", grades, strict=True)
    ]
    entry = summarise(lines)["forget"]["generation"]["text"]
    assert entry == {
        **score, "total": 4, "people": 4, "interval": [0.5, 0.5], "factuality": 4.33, "judged": 3,
    }  # fmt: skip
    assert "judged" not in summarise(lines[3:])["forget"]["generation"]["text"]


def test_what_multiple_choice_is_worth():
    """Unreadable replies and chance are counted, over options that may differ in number; and what is said of
    them."""
    three = dict.fromkeys("ABC", "x")
    lines = [
        prediction(
            "forget", "classification", "image", str(k % 3), k, options=options, choice=c, correct=False
        )
        for k, (options, c) in enumerate([(OPTIONS, None), (OPTIONS, "A"), (three, "B")] * 5)
    ]
    entry = summarise(lines)["forget"]["classification"]["image"]
    assert (entry["unreadable"], entry["chance"]) == (5, 27.78) and entry["total"] == 15
    assert doubts(entry) == [
        "5 of 15 replies name no option and count as wrong",
        "0.0 % is below chance (27.8 %)",
    ]
    few = entry | {"unreadable": 1, "interval": [0.0, 30.0]}
    assert doubts(few) == [] and doubts(entry | {"unreadable": 0, "interval": None}) == []
    cloze = prediction("forget", "cloze", "image", correct=False)
    assert "chance" not in summarise([cloze])["forget"]["cloze"]["image"]


def test_summarise_counts_what_rouge_cannot_read():
    score = dict.fromkeys(("rouge1", "rouge2", "rougeL", "bleu"), 0.0)
    lines = [
        prediction("real", "generation", "text", str(k), truth=t, scores=score)
        for k, t in ((1, "巴黎"), (2, "x"))
    ]
    entry = summarise(lines)["real"]["generation"]["text"]
    assert entry["unscorable"] == 1 and "1 of 2 truths have no Latin letter or digit" in doubts(entry)[0]
    assert "unscorable" not in summarise(lines[1:])["real"]["generation"]["text"]


def test_summarise_of_nothing_and_of_an_unknown_task():
    assert summarise([]) == {}
    with pytest.raises(ValueError, match=r"forget/7/captioning/image/0: unknown task 'captioning'"):
        prediction("forget", "captioning", "image", correct=True)


def test_nothing_heavy_is_imported():
    code = "import sys, eval.metrics as m; m.generation_scores('a', 'a'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    modules = "eval.metrics, eval.tasks, eval.results.summary, eval.results.remarks, utils.mllmu, utils.clear"
    heavy = {"torch", "transformers", "datasets", "numpy", "scipy", "pandas", "matplotlib"}
    code = f"import sys, {modules}; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---------------------------------------------------------------- given answers
def test_memorisation_by_hand():
    assert exact_memorisation([True, False, True, True]) == 0.75
    assert extraction_strength([True, False, True, True]) == 0.5  # after the first two, the rest follows
    assert extraction_strength([True, True]) == 1 and extraction_strength([True, False]) == 0


def test_membership_scores_by_hand():
    log_prob = [-1.0, -4.0, -2.0, -3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    scores = membership_scores(log_prob, [-2.0] * 10, [0.5] * 10, "chess")
    assert scores["loss"] == -1.0 and scores["min_k"] == -3.5  # the lowest two of ten
    assert scores["min_k++"] == pytest.approx(((-4 + 2) / 0.5 + (-3 + 2) / 0.5) / 2)
    assert scores["zlib"] == pytest.approx(-10 / len(zlib.compress(b"chess")))
    assert membership_scores([-1.0, -2.0], [0, 0], [1, 1], "x")["min_k"] == -2.0  # at least one


def test_the_truth_ratio_of_a_collapsed_model_is_a_number():
    assert 1e200 < truth_ratio(-5000.0, [0.0, -1.0]) < float("inf")
    assert truth_scores(-5000.0, [0.0])["truth"] == 0

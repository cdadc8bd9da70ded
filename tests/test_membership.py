"""The AUC of members and non-members: by hand, against a plain count, and paired over people."""

import random

import pytest
import torch
from conftest import sample

from eval.answering.forced import TokenSetup
from eval.results.membership import leak
from utils.losses import label_logits


def plain(scores) -> float:
    pairs = [
        (a, b) for ours, _ in scores.values() for a in ours for _, theirs in scores.values() for b in theirs
    ]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def test_auc_is_the_share_of_pairs():
    draw = random.Random(0)
    number = lambda: round(draw.random(), 1)  # with ties
    own, reference = (
        {str(k): ([number() for _ in range(3)], [number() - 0.3 for _ in range(9)]) for k in range(8)}
        for _ in range(2)
    )
    found = leak(own, reference)
    assert found.auc.value == pytest.approx(plain(own), abs=1e-4)
    assert found.reference.value == pytest.approx(plain(reference), abs=1e-4)
    assert found.beyond.value == pytest.approx(plain(own) - plain(reference), abs=2e-4)
    assert found.auc.interval[0] < found.auc.value < found.auc.interval[1]
    low, high = found.beyond.interval
    assert high - low < sum(e.interval[1] - e.interval[0] for e in (found.auc, found.reference))
    assert found.privleak == pytest.approx(
        100 * ((1 - plain(own)) - (1 - plain(reference))) / (1 - plain(reference)), abs=0.01
    )


def test_verdicts():
    known = {str(k): ([1.0, 2.0], [0.0, -1.0]) for k in range(6)}
    guessed = {str(k): ([0.0, 1.0], [0.0, 1.0]) for k in range(6)}
    assert leak(known, guessed).verdict == (
        "AUC 1.000 [1.000, 1.000]; the retrained model 0.500 [0.500, 0.500]: still told apart"
    )
    assert leak(known, guessed).privleak == -100 and leak(guessed, known).privleak is None
    assert leak(guessed, guessed).verdict.endswith(": as in the retrained model")
    assert (
        ": less than the retrained model, a new trace"
        in leak({p: (b, a) for p, (a, b) in known.items()}, guessed).verdict
    )
    one = {"0": ([1.0], [0.0])}
    assert leak(one, one).verdict.endswith(": too few people to tell") and leak(one, one).auc.value == 1


def test_what_is_measured_of_each_token(tiny):
    """Against the plain definition, in a batch of answers of different lengths."""
    worker = TokenSetup(str(tiny["llava"]), None, "fp32", "sdpa", 8).start("cpu")
    samples = [sample("Who is it?", answer, None, answer) for answer in ("Ann", "Bo Carter of Riga")]
    for measured, one in zip(worker.answer(samples)[0], samples, strict=True):
        batch = worker.collator([one])
        with torch.no_grad():
            logits, targets, _ = label_logits(worker.model, batch)
        found = torch.distributions.Categorical(logits=logits)
        assert measured["log_prob"] == pytest.approx(found.log_prob(targets).tolist(), abs=1e-4)
        assert measured["mean"] == pytest.approx((-found.entropy()).tolist(), abs=1e-4)
        spread = (found.probs * (found.logits + found.entropy()[:, None]) ** 2).sum(1).sqrt()
        assert measured["deviation"] == pytest.approx(spread.tolist(), abs=1e-3)
        assert measured["first"] == (logits.argmax(1) == targets).tolist()

"""Losses against hand-computed values, and against the model's own full logits and loss."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import picture_cell, sample

from utils.collate import IGNORE, Batch, Collator
from utils.families import FAMILIES
from utils.losses import (
    answer_lengths,
    drawn_nll,
    label_logits,
    sequence_log_prob,
    token_log_odds,
    token_nll,
)
from utils.models import load_model


class Stub:
    """A model of three tokens with given logits, (B, T, 3)."""

    def __init__(self, logits):
        self.logits = torch.tensor(logits)

    def __call__(self, input_ids, use_cache, logits_to_keep):
        return SimpleNamespace(logits=self.logits[:, logits_to_keep])


@pytest.fixture
def example():
    """Two rows; p = 3/5 and 1/2 at row 0's two labels, 1/4 at row 1's only one."""
    far = [9.0, -9.0, 5.0]  # must not matter
    logits = [
        [[0.0, math.log(3), 0.0], [0.0, 0.0, math.log(2)], far],
        [far, [math.log(2), 0.0, 0.0], far],
    ]
    labels = torch.tensor([[IGNORE, 1, 2], [IGNORE, IGNORE, 1]])
    return Stub(logits), Batch({"input_ids": torch.zeros(2, 3, dtype=torch.long)}, labels, ["a", "b"])


def test_token_nll_by_hand(example):
    assert token_nll(*example).tolist() == pytest.approx([math.log(5 / 3), math.log(2), math.log(4)])


def test_token_log_odds_by_hand(example):
    """Odds 3/2, 1 and 1/3."""
    assert token_log_odds(*example).tolist() == pytest.approx([math.log(3 / 2), 0.0, -math.log(3)], abs=1e-6)


class Sure(torch.nn.Module):
    """Two samples of one token of two: weight k is the log-odds of sample k's answer, token 1."""

    def __init__(self, *p: float):
        super().__init__()
        self.odds = torch.nn.Parameter(torch.tensor([math.log(x / (1 - x)) for x in p]))

    def forward(self, input_ids, use_cache, logits_to_keep):
        logits = torch.stack([torch.zeros_like(self.odds), self.odds], dim=1)[:, None]  # (B, 1, 2)
        return SimpleNamespace(logits=logits)

    def squares(self, terms, *more) -> torch.Tensor:
        """Of the gradient, per sample."""
        labels = torch.tensor([[IGNORE, 1]] * 2)
        batch = Batch({"input_ids": torch.zeros(2, 2, dtype=torch.long)}, labels, ["a", "b"])
        (gradient,) = torch.autograd.grad(terms(self, batch, *more).sum(), self.odds)
        return gradient.square()


def test_log_odds_do_not_fade_where_the_model_is_sure():
    """p = 0.999 and 0.9: CE's squared gradients are (1 − p)², 10,000 times apart; those of log-odds are 1."""
    model = Sure(0.999, 0.9)
    torch.testing.assert_close(model.squares(token_nll), torch.tensor([1e-6, 1e-2]), rtol=1e-3, atol=0)
    torch.testing.assert_close(model.squares(token_log_odds), torch.ones(2))
    sure = Sure(0.5, 0.5)
    sure.odds.data.fill_(60.0)  # p rounds to 1, CE's gradient to 0
    assert sure.squares(token_nll).tolist() == [0, 0] and sure.squares(token_log_odds).tolist() == [1, 1]


def test_drawn_tokens_give_the_fisher_information():
    """The mean of squared gradients over drawn tokens is p(1 − p), not (1 − p)²; a seed is a draw."""
    model = Sure(0.9, 0.5)
    mean = torch.stack([model.squares(drawn_nll, seed) for seed in range(500)]).mean(dim=0)
    torch.testing.assert_close(mean, torch.tensor([0.09, 0.25]), rtol=0.25, atol=0)
    assert torch.equal(model.squares(drawn_nll, 7), model.squares(drawn_nll, 7))


def test_what_is_drawn_does_not_depend_on_the_batch(example):
    stub, batch = example
    both = drawn_nll(stub, batch, 0)
    alone = (
        Stub(stub.logits[1:].tolist()),
        Batch({"input_ids": batch.inputs["input_ids"][1:]}, batch.labels[1:], ["b"]),
    )
    assert drawn_nll(*alone, 0).tolist() == both[2:].tolist()


def test_sequence_log_prob_by_hand(example):
    assert sequence_log_prob(*example).tolist() == pytest.approx([math.log(3 / 10), math.log(1 / 4)])


def test_answer_lengths_by_hand(example):
    assert answer_lengths(example[1]).tolist() == [2, 1]


def test_label_logits_by_hand(example):
    stub, batch = example
    logits, targets, rows = label_logits(stub, batch)
    assert targets.tolist() == [1, 2, 1] and rows.tolist() == [0, 0, 1]
    expected = torch.stack([stub.logits[0, 0], stub.logits[0, 1], stub.logits[1, 1]])
    assert torch.equal(logits, expected) and logits.dtype == torch.float32


def test_a_sample_without_labels_has_log_prob_zero(example):
    stub, batch = example
    batch.labels[1] = IGNORE
    assert sequence_log_prob(stub, batch).tolist() == pytest.approx([math.log(3 / 10), 0.0])


@pytest.fixture
def real(family, tiny, processors):
    model = load_model(str(tiny[family])).eval()
    samples = [
        sample("Who?", "Ann", picture_cell(32, 32)),
        sample("Who is the person here?", "It is Bob of Oslo.", picture_cell(64, 32, "blue")),
    ]
    return model, Collator(processors[family], FAMILIES[family])(samples)


def test_mean_token_nll_is_the_models_own_loss(real):
    model, batch = real
    with torch.no_grad():
        theirs = model(**batch.inputs, labels=batch.labels).loss
        ours = token_nll(model, batch)
    assert len(ours) == (batch.labels != IGNORE).sum()
    torch.testing.assert_close(ours.mean(), theirs, atol=1e-6, rtol=1e-6)


def test_label_logits_are_the_full_logits_there(real):
    model, batch = real
    with torch.no_grad():
        full = model(**batch.inputs).logits
        logits, targets, rows = label_logits(model, batch)
        scores = sequence_log_prob(model, batch)
    where = (batch.labels[:, 1:] != IGNORE).nonzero()
    torch.testing.assert_close(logits, full[where[:, 0], where[:, 1]], atol=1e-5, rtol=1e-5)
    assert torch.equal(targets, batch.labels[:, 1:][where[:, 0], where[:, 1]])
    assert torch.equal(rows, where[:, 0])
    for row in range(2):
        picked = logits.log_softmax(-1)[torch.arange(len(targets)), targets][rows == row].sum()
        torch.testing.assert_close(scores[row], picked, atol=1e-4, rtol=1e-5)

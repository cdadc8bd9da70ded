"""Score functions as the published evaluation defines them: pure functions, no model, no torch.

Multiple choice  first alphanumeric character of the reply              letter_choice
Cloze            the truth occurs in the reply, ignoring case           cloze_hit
Generation       ROUGE-1/2/L F with stemmer, and sentence BLEU          generation_scores
Probability      p(answer) ^ (1 / answer tokens)                        probability
Truth ratio      the same of wrong answers over that of a right one     truth_ratio
Forget quality   likeness of two models' truth ratios                   forget_quality
Memorisation     tokens of a given answer that come first               exact_memorisation and below
Membership       how well a model knows a given answer                  membership_scores
eval/tasks.py says which task is scored by which of them.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

BINS = 20  # of the histograms that forget_quality compares
LARGEST = 600.0  # exponent of a ratio: what is larger, of a model that has collapsed, would be no number
LOWEST = 0.2  # share of an answer's tokens that Min-K looks at, at least one


def letter_choice(reply: str, options: Collection[str]) -> str | None:
    """The option that a reply names: its first alphanumeric character, upper-cased, if it is an option.

    None when it is not, or when nothing in the reply is alphanumeric: a wrong answer, for image and text
    questions alike. The rule is the published one and it is blunt: "The answer is B" reads as "T", hence
    None.
    """
    first = next((character for character in reply if character.isalnum()), "")
    letter = first.upper()
    return letter if letter in options else None


def cloze_hit(reply: str, truth: str) -> bool:
    """Whether the reply contains the truth, ignoring case, blanks around it and the Unicode form. Raises
    ValueError for an empty truth."""
    _require_truth(truth)
    folded = lambda text: unicodedata.normalize("NFC", text).lower()
    return folded(truth.strip()) in folded(reply)


def generation_scores(reply: str, truth: str) -> dict[str, float]:
    """ROUGE-1/2/L (F measure, Porter stemmer) and BLEU of one reply against one truth, each in 0..1.

    BLEU is nltk's sentence BLEU on a whitespace split with smoothing method 1 and the default weights of 1-
    to 4-grams, also for truths shorter than four words: a perfect one-word reply then scores 0.1 ** 0.75 =
    0.178, not 1. This is the published definition, so numbers stay comparable. Raises ValueError for an
    empty truth.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    _require_truth(truth)
    scores = {name: float(score.fmeasure) for name, score in _rouge_scorer().score(truth, reply).items()}
    smoothing = SmoothingFunction().method1
    scores["bleu"] = float(sentence_bleu([truth.split()], reply.split(), smoothing_function=smoothing))
    return scores


def rouge_reads(text: str) -> bool:
    """Whether ROUGE sees anything in a text: rouge-score's words are of Latin letters without accents and
    digits, so that a text of other letters scores 0 even against itself."""
    return re.search("[a-z0-9]", text.lower()) is not None


def probability(score: float) -> float:
    """p(answer | question) ^ (1 / |answer|) from the answer's log-probability per token.

    |answer|: its tokens without the end of turn. TOFU (arXiv 2401.06121) §2.2.1, as CLEAR (arXiv 2410.18057).
    """
    return math.exp(score)


def truth_ratio(right: float, wrong: Sequence[float]) -> float:
    """Mean probability of the wrong (perturbed) answers over that of the right (paraphrased) one; at least 0.

    From log-probabilities per token. 0: the truth is known; about 1: no idea. TOFU (arXiv 2401.06121) §2.2.1,
    as CLEAR (arXiv 2410.18057). CLEAR's released code takes the geometric instead of this arithmetic mean.
    """
    return math.fsum(math.exp(min(score - right, LARGEST)) for score in wrong) / len(wrong)


def truth_scores(right: float, wrong: Sequence[float]) -> dict[str, float]:
    """`truth_ratio` R, and `truth` = max(0, 1 − R), TOFU's bounded form for what should be known."""
    ratio = truth_ratio(right, wrong)
    return {"truth": max(0.0, 1 - ratio), "truth_ratio": ratio}


def forget_quality(model: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """(1 − Jensen-Shannon distance, p-value of the two-sample Kolmogorov-Smirnov test) of truth ratios.

    model, reference: truth ratios on the forget set, of the unlearned model and of one that was trained
    without it. Both numbers are in 0..1, 1: alike. The first is forget quality in CLEAR's paper (arXiv
    2410.18057), the second TOFU's (arXiv 2401.06121) and that of CLEAR's released code. For the distance
    (base 2) each ratio R becomes R / (1 + R), the share of the wrong answers, in BINS equal bins of 0..1;
    this binning is ours.
    """
    import numpy as np
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import ks_2samp

    shares = [np.asarray(ratios) / (1 + np.asarray(ratios)) for ratios in (model, reference)]
    counts = [np.histogram(share, bins=BINS, range=(0, 1))[0] for share in shares]
    return float(1 - jensenshannon(*counts, base=2)), float(ks_2samp(*shares).pvalue)


def exact_memorisation(first: Sequence[bool]) -> float:
    """Share of a given answer's tokens than which no other was likelier.

    Tirumala et al., arXiv 2205.10770.
    """
    return sum(first) / len(first)


def extraction_strength(first: Sequence[bool]) -> float:
    """1 − k/n: the share of a given answer that greedy decoding completes after its first k of n tokens.

    After Carlini et al., arXiv 2012.07805, in the form that open-unlearning has.
    """
    behind = next((k for k, right in enumerate(reversed(first)) if not right), len(first))
    return behind / len(first)


def membership_scores(
    log_prob: Sequence[float], mean: Sequence[float], deviation: Sequence[float], answer: str
) -> dict[str, float]:
    """The larger, the more a given answer looks like one that was trained on.

    log_prob: of its tokens, nats; mean, deviation: of log p over the vocabulary, weighted by p, at each.
        loss        mean log p (Yeom et al., arXiv 1709.01604)
        zlib        log p of the whole by its length compressed, in bytes (Carlini et al., arXiv 2012.07805)
        min_k       mean of the LOWEST log p (Shi et al., arXiv 2310.16789)
        min_k++     the same of (log p − mean) / deviation (Zhang et al., arXiv 2404.02936)
    """
    number = max(1, math.floor(LOWEST * len(log_prob)))
    lowest = lambda values: math.fsum(sorted(values)[:number]) / number
    standard = [(p - m) / max(d, 1e-6) for p, m, d in zip(log_prob, mean, deviation, strict=True)]
    return {
        "loss": math.fsum(log_prob) / len(log_prob),
        "zlib": math.fsum(log_prob) / len(zlib.compress(answer.encode())),
        "min_k": lowest(log_prob),
        "min_k++": lowest(standard),
    }


@lru_cache(maxsize=1)
def _rouge_scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def _require_truth(truth: str) -> None:
    if not truth.strip():
        raise ValueError(
            "empty truth: every reply would count as right; mend or drop this row of the benchmark"
        )

"""What a task is: how it is asked, how a reply is scored, and which numbers there are of it.

A new task is one entry of TASKS, and one of METRICS for each of its columns in tables. The score functions
are in eval/metrics.py, the words of the prompts in eval/prompts.py. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.answering.plan import Request
from eval.metrics import cloze_hit, generation_scores, letter_choice, probability, truth_scores
from eval.prompts import solved_answer
from utils.benchmark import Split
from utils.clear import CLEARBench
from utils.data import Question
from utils.mllmu import MLLMUBench
from utils.reading.tables import same_text

if TYPE_CHECKING:
    from utils.collate import Chat

BENCHMARKS = (MLLMUBench, CLEARBench)
SPLITS = {split.name: split for bench in BENCHMARKS for split in bench.SPLITS}  # in the order of tables
FACTUALITY = "factuality"  # a judge's grade of a generated answer, 1..10; only where a judge was asked


@dataclass(frozen=True)
class Task:
    """asks: (question, mcq) -> what decides the score of a reply, as fields of a Request. score: (question,
    reply) -> what becomes of it, as fields of a Prediction; a reply is text or, where options were asked
    about, their log-probabilities. means: the scores whose means results.json has; none where a reply is
    right or wrong. headline: the number that stands for the task in tables and differences."""

    asks: Callable[[Question, str], dict[str, Any]]
    score: Callable[[Question, Any], dict[str, Any]]
    means: tuple[str, ...] = ()
    headline: str = "accuracy"
    short: str = ""  # how the headline is called in short

    def text(self, entry: dict[str, Any]) -> str:
        """One entry of results.json in a few words."""
        if not self.means:
            return f"{entry['accuracy']:.1f} ({entry['correct']}/{entry['total']})"
        return f"{self.short} {entry[self.headline]:.3f} ({entry['total']})"


def ask_choice(question: Question, mcq: str) -> dict[str, Any]:
    """mcq "letter": the first letter of the reply decides. "likelihood": the likeliest option per byte."""
    return {"letter": True} if mcq == "letter" else {"options": list(question.options.values())}


def score_choice(question: Question, reply: str | list[float]) -> dict[str, Any]:
    """The letter of the reply, or the likeliest option; none where options of different texts are equally
    likely. Right is the text of the right option, by whichever letter."""
    truth = same_text(question.options[question.truth])
    right = [letter for letter, text in question.options.items() if same_text(text) == truth]
    if isinstance(reply, str):
        choice = letter_choice(reply, question.options)
        return {"choice": choice, "correct": choice in right}
    scores = dict(zip(question.options, reply, strict=True))
    best = [letter for letter, score in scores.items() if score >= max(scores.values())]
    choice = best[0] if len({same_text(question.options[letter]) for letter in best}) == 1 else None
    return {
        "reply": question.options[choice] if choice else "",
        "choice": choice,
        "option_scores": {letter: round(score, 4) for letter, score in scores.items()},
        "correct": choice in right,
    }


def score_answers(found: list[float], scores: dict[str, float]) -> dict[str, Any]:
    """Log-probabilities per token of given answers: there is no reply."""
    return {"reply": None, "answer_scores": [round(score, 6) for score in found], "scores": scores}


TASKS = {
    "classification": Task(ask_choice, score_choice),
    "generation": Task(
        asks=lambda question, mcq: {},
        score=lambda question, reply: {"scores": generation_scores(reply, question.truth)},
        means=("rouge1", "rouge2", "rougeL", "bleu"),
        headline="rougeL",
        short="R-L",
    ),
    "cloze": Task(
        asks=lambda question, mcq: {"hit": question.truth},
        score=lambda question, reply: {"correct": cloze_hit(reply, question.truth)},
    ),
    "probability": Task(
        asks=lambda question, mcq: {"options": [question.truth], "per": "token"},
        score=lambda question, found: score_answers(found, {"probability": probability(found[0])}),
        means=("probability",),
        headline="probability",
        short="p",
    ),
    "truth_ratio": Task(  # the right answer stands first among the options
        asks=lambda question, mcq: {"options": list(question.options.values()), "per": "token"},
        score=lambda question, found: score_answers(found, truth_scores(found[0], found[1:])),
        means=("truth", "truth_ratio"),
        headline="truth",
        short="truth",
    ),
}


def request(
    question: Question,
    chat: Chat,
    mcq: str,
    prompt: Callable[[Question, str], str],
    shots: Mapping[tuple[str, str], list[Question]] | None = None,
) -> Request:
    """A question as a model is asked it.

    mcq: letter | likelihood. prompt: (question, mcq) -> the user's turn, of eval/prompts.py. shots: the
    questions that are shown solved before those of a (task, modality).
    """
    solved = (shots or {}).get((question.task, question.modality), [])
    turns = [(prompt(s, mcq), int(s.picture is not None), solved_answer(s, mcq)) for s in solved]
    pictures = [q.picture for q in [*solved, question] if q.picture is not None]
    text = chat.prompt(prompt(question, mcq), int(question.picture is not None), turns)
    return Request(text, pictures, **TASKS[question.task].asks(question, mcq))


# ---------------------------------------------------------------- numbers and columns
def decimals(number: str) -> int:
    """How many decimals results.json keeps of a number: percentages and grades 2, scores in 0..1 4."""
    return 2 if number in ("accuracy", FACTUALITY) else 4


@dataclass(frozen=True)
class Metric:
    """One column of a table: a number of a task in one modality."""

    key: str
    title: str
    task: str
    modality: str
    number: str  # its name in results.json

    @property
    def counted(self) -> bool:
        """Whether it is a percentage of questions (else a mean score)."""
        return self.number == "accuracy"

    @property
    def digits(self) -> int:
        """Decimals in tables."""
        return {"accuracy": 1, FACTUALITY: 2}.get(self.number, 3)

    @property
    def total(self) -> str:
        """The field of results.json that says over how many questions the number is."""
        return "judged" if self.number == FACTUALITY else "total"

    @property
    def name(self) -> str:
        """The title without its unit or measure."""
        return self.title.removesuffix(" %").removesuffix(" R-L")


METRICS = {
    metric.key: metric
    for metric in (
        Metric("vqa", "VQA %", "classification", "image", "accuracy"),
        Metric("qa", "QA %", "classification", "text", "accuracy"),
        Metric("generation_image", "Gen. image R-L", "generation", "image", "rougeL"),
        Metric("generation_text", "Gen. text R-L", "generation", "text", "rougeL"),
        Metric("factuality_image", "Fact. image", "generation", "image", FACTUALITY),
        Metric("factuality_text", "Fact. text", "generation", "text", FACTUALITY),
        Metric("cloze_image", "Cloze image %", "cloze", "image", "accuracy"),
        Metric("cloze_text", "Cloze text %", "cloze", "text", "accuracy"),
        Metric("probability_image", "Prob. image", "probability", "image", "probability"),
        Metric("probability_text", "Prob. text", "probability", "text", "probability"),
        Metric("truth_image", "Truth image", "truth_ratio", "image", "truth"),
        Metric("truth_text", "Truth text", "truth_ratio", "text", "truth"),
    )
}


def split_of(name: str) -> Split:
    """What is known about the split of that name."""
    return SPLITS.get(name, Split(name))


def lower_is_better(split: str, metric: Metric) -> bool:
    """Picture questions about the people to forget should fail, on seen and on other (test) pictures."""
    return split_of(split).forgets and metric.modality == "image"


def arrow(split: str, metric: Metric) -> str:
    """Which way is better."""
    return "↓" if lower_is_better(split, metric) else "↑"

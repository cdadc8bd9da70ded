"""The words of the evaluations of MLLMU-Bench (arXiv 2410.22108) and CLEAR (arXiv 2410.18057), without their
per-family copies: the chat template adds the rest.

A question is shown as one user turn, in few-shot evaluation after solved questions of the same task and
modality.
"""

from __future__ import annotations

from utils.data import Question

LETTER = "Just give ONE letter representing the answer directly."
BLANK = "Please **ONLY** provide the correct answer that should replace the [Blank]."
SENTENCE = "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH."


def mllmu_prompt(question: Question, mcq: str) -> str:
    """The user's turn for one question.

    Multiple choice shows its options and asks for a letter; scored by likelihood (mcq "likelihood") it is the
    bare question, since each option is then tried as the answer.
    """
    if question.task == "classification":
        if mcq == "likelihood":
            return question.question
        options = "\n".join(f"{letter}: {text}" for letter, text in question.options.items())
        return f"{question.question}\n{options}\n{LETTER}"
    return (cloze_prompt if question.task == "cloze" else generation_prompt)(question.question)


def clear_prompt(question: Question, mcq: str) -> str:
    """The user's turn for one question of CLEAR: the options below a multiple-choice question, nothing else.

    No instruction follows, as in the paper's code; scored by likelihood it is the bare question.
    """
    if question.task != "classification" or mcq == "likelihood":
        return question.question
    options = "\n".join(f"{letter}. {text}" for letter, text in question.options.items())
    return f"{question.question}\n{options}"


def cloze_prompt(text: str) -> str:
    """A sentence with "__" -> the request to fill in its [Blank]."""
    return f"{text.replace('__', '[Blank]')}\n{BLANK}"


def generation_prompt(text: str) -> str:
    return f"{text}\n{SENTENCE}"


def solved_answer(question: Question, mcq: str) -> str:
    """What stands as the answer when the question is shown as a solved example."""
    if question.task == "classification" and mcq == "likelihood":
        return question.options[question.truth]
    return question.truth


def choose_shots(pool: list[Question], forget: set[str], seed: int, number: int) -> tuple[str, dict]:
    """A person drawn by the seed from the pool, not one to forget, and their first `number` questions of each
    kind.

    Returns (person, {(task, modality): [Question, ...]}).
    """
    import random

    people = sorted({q.person for q in pool} - forget)
    person = random.Random(f"{seed}/few_shot").choice(people)
    shots: dict[tuple[str, str], list[Question]] = {}
    for question in pool:
        if question.person == person:
            shots.setdefault((question.task, question.modality), []).append(question)
    return person, {kind: questions[:number] for kind, questions in shots.items()}

"""Does it come back in other words? The evaluation's questions, worded in several other ways.

    python eval/probes/paraphrase.py runs/GA --reference runs/retrained --vanilla runs/vanilla

The wordings are rules in eval/probes/wordings.json, by benchmark; --wordings takes a file of your own in the
same form. "mean" is the mean over all wordings (as FIUBench's APE, arXiv 2411.03554), "any" the best of them.
What it means: docs/probes.md. Results: <model>/probes/paraphrase/results.json.
"""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.probes import probe
from utils import checkpoint, cli

SHIPPED = Path(__file__).resolve().with_name("wordings.json")
OWN_NAMES = ("mean", "any")  # conditions made of all wordings
PART = re.compile(r"\{(\w+)\}")


def parse_args(argv: list[str] | None = None):
    p = probe.parser(__doc__)
    g = p.add_argument_group("wordings")
    g.add_argument(
        "--wordings", type=cli.path, default=SHIPPED,
        help='JSON file: {"CLEAR": [{"name": "please", "rules": [["What is {x}?", "Please tell me {x}."]]}]};'
        " the first rule that fits a question words it; default eval/probes/wordings.json",
    )  # fmt: skip
    return cli.parse(p, argv)


@dataclass(frozen=True)
class Wording:
    """A name, and rules (pattern, text): {x} in a pattern fits any words, which the text has again."""

    name: str
    rules: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        """Raises ValueError for a rule that words nothing."""
        for pattern, text in self.rules:
            parts = PART.findall(pattern)
            if len(set(parts)) < len(parts) or not set(PART.findall(text)) <= set(parts):
                raise ValueError(f"{self.name}: {pattern!r} does not say what {text!r} needs")
        if not self.rules or not self.name.strip() or "/" in self.name or self.name in OWN_NAMES:
            raise ValueError(f"{self.name!r}: a wording needs a name of its own, without a slash, and rules")

    def of(self, question: str) -> str | None:
        """The question in these words; None where no rule fits or nothing changes."""
        for pattern, text in self.rules:
            found = re.fullmatch(_regex(pattern), question.strip(), re.IGNORECASE | re.DOTALL)
            if found:
                parts = found.groupdict()
                worded = PART.sub(lambda part, parts=parts: parts[part[1]], text)
                return worded if worded != question else None
        return None


def _regex(pattern: str) -> str:
    words = PART.split(pattern)  # text, part, text, ...
    return "".join(f"(?P<{word}>.*)" if k % 2 else re.escape(word) for k, word in enumerate(words))


def read_wordings(file: Path, benchmark: str) -> list[Wording]:
    """Raises ValueError, naming the file, for what holds no wordings of that benchmark."""
    try:
        wordings = [
            Wording(entry["name"], tuple((pattern, text) for pattern, text in entry["rules"]))
            for entry in checkpoint.read_json(file)[benchmark]
        ]
        if len({wording.name for wording in wordings}) < len(wordings) or not wordings:
            raise ValueError("two wordings of one name, or none")
        return wordings
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} holds no wordings of {benchmark} ({error!r}); see --help") from error


def with_all(after: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """The scores of each wording, and for each question their mean, and the best."""
    worded = defaultdict(list)
    for (_, key), score in after.items():
        worded[key].append(score)
    mean = {("mean", key): math.fsum(found) / len(found) for key, found in worded.items()}
    return {**after, **mean, **{("any", key): max(found) for key, found in worded.items()}}


def main(args) -> None:
    study = probe.Study(args)
    try:
        wordings = read_wordings(args.wordings, study.bench.TITLE)
    except ValueError as why:
        args.problems.add(f"--wordings: {why}")
    args.problems.stop()
    asked = []
    for wording in wordings:
        worded = [(question, wording.of(question.question)) for question in study.questions]
        asked += [probe.changed(q, wording.name, question=text) for q, text in worded if text is not None]
        if left := sum(text is None for _, text in worded):
            print(f"note: {wording.name} words {len(worded) - left} of {len(worded)} questions")
    asking = probe.Asking("answers", asked)

    def rows(study, subject, answers):
        return probe.rows(study, subject, with_all(probe.scores(answers)))

    settings = {"wordings": [[wording.name, wording.rules] for wording in wordings]}
    probe.run(study, "paraphrase", lambda _: [asking], settings, rows)


if __name__ == "__main__":
    main(parse_args())

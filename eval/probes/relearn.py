"""Does it come back with a few steps of training? On data that do not hold what is then asked.

    python eval/probes/relearn.py runs/GA --reference runs/retrained --vanilla runs/vanilla

Trains the model for --budget times as many samples as the forget set has, and asks about facts that the
samples do not tell (Lynch et al., arXiv 2402.16835; for pictures arXiv 2505.16831):

    adjacent    the people to forget, about the other half of what is known of them; along a curve over steps
    near        people to retain who are not asked about
    unrelated   real people and the world

The retrained model is trained in the same way: what it comes to know was taught by the probe. Every point of
a curve is a training of its own from the start, with the same seed and a constant learning rate, so it equals
the longer one's up to there; models are deleted once they have been asked. What it means, costs, and cannot
show: docs/probes.md. Results: <model>/probes/relearn/results.json.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import random
import re
import shutil
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.probes import probe
from eval.results.probes import probe_folder
from eval.results.rings import truth_of
from utils import checkpoint, cli, flags
from utils.clear import CLEARBench
from utils.data import Question, Sample
from utils.loop import engines
from utils.losses import token_nll
from utils.reading.tables import same_text
from utils.run import folders
from utils.training import Phase, Trainer, once

DATA = ("adjacent", "near", "unrelated")
UNRELATED = ("real", "world", "real_faces", "real_world")  # splits


def parse_args(argv: list[str] | None = None):
    p = probe.parser(__doc__)
    g = p.add_argument_group("training")
    g.add_argument("--data", type=cli.choices(*DATA), default=list(DATA), help=f"default {','.join(DATA)}")
    g.add_argument(
        "--budget",
        type=cli.number(float, 0, above=True),
        default=2.0,
        help="samples seen, as a multiple of the forget set's; default 2",
    )
    g.add_argument(
        "--points",
        type=cli.number(int, 1, 8),
        default=3,
        help="evaluations along the curve on adjacent data, each after twice the steps of the one before;"
        " default 3: a quarter, half and all of the budget",
    )
    g.add_argument(
        "--max_steps",
        type=cli.number(int, 0),
        default=0,
        help="most optimizer steps; default 0: the budget's",
    )
    g.add_argument(
        "--lr",
        type=cli.number(float, 0, above=True),
        help="learning rate, constant; default: that of the vanilla model's run.json, else 1e-4",
    )
    g.add_argument(
        "--train_batch_size", type=cli.number(int, 1), default=4, help="samples per step; default 4"
    )
    cli.flag(g, "--lora", default=True, help="train a LoRA adapter; default True; False: all weights")
    return cli.parse(p, argv)


def rate_of(vanilla: Path, problems: cli.Problems) -> float:
    """The learning rate that the facts were taught with."""
    path = vanilla / folders.WHOLE
    try:
        return float(checkpoint.read_json(path)["arguments"].get("lr", 1e-4)) if path.is_file() else 1e-4
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        problems.add(f"--vanilla: {path} is no record of a training ({why!r}); take it away, or give --lr")
        return 1e-4


# ---------------------------------------------------------------- who is asked what, after which lessons
class Lessons:
    """The facts of the people to forget in two halves: what is taught, and what is asked.

    A fact is the right answer in words; on CLEAR, where all captions of a person hold the name, a picture or
    a text answer. study.questions lose what is taught.
    """

    def __init__(self, study: probe.Study):
        self.study, self.clear = study, isinstance(study.bench, CLEARBench)
        forget = [q for q in study.questions if q.split == "forget"]
        facts: dict[str, set] = {}
        for question in forget:
            facts.setdefault(question.person, set()).add(self._fact(question))
        self.taught = {(person, fact) for person in facts for fact in self._half(person, facts[person])}
        study.questions = [q for q in study.questions if (q.person, self._fact(q)) not in self.taught]
        self.asked: dict[str, list[Question]] = {}
        for question in study.questions:
            self.asked.setdefault(question.person, []).append(question)

    def _fact(self, question: Question) -> str:
        if self.clear and question.picture is not None:
            return question.picture.digest.hex()
        return same_text(truth_of(question))

    def _half(self, person: str, facts: set[str]) -> list[str]:
        ordered = sorted(facts)
        random.Random(f"{self.study.args.seed}/{person}").shuffle(ordered)
        return ordered[: len(ordered) // 2]

    def samples(self, data: str) -> list[Sample]:
        """Those to be trained on, none of which tells what is asked."""
        bench = self.study.bench
        if data == "adjacent":
            return [
                s for s in bench.forget() if not any(self._tells(s, q) for q in self.asked.get(s.person, ()))
            ]
        if data == "near":
            return [s for s in bench.retain() if s.person not in self.asked]
        splits = [split for split in bench.own_splits() if split in UNRELATED]
        seed = self.study.args.seed
        questions = [
            q for split in splits for q in bench.questions(split, seed) if q.task == "classification"
        ]
        return [
            Sample(q.id, q.picture, q.question, truth_of(q), q.person)
            for q in questions
            if q.person not in self.asked
        ]

    def _tells(self, sample: Sample, question: Question) -> bool:
        """Whether a sample about a person holds the answer to a question about the same one."""
        same_picture = sample.picture == question.picture is not None
        if self.clear and question.task == "classification":  # the name, which all captions hold
            return same_picture
        words = rf"(?<!\w){re.escape(same_text(truth_of(question)))}(?!\w)"
        return (self.clear and same_picture) or bool(
            re.search(words, same_text(f"{sample.question} {sample.answer}"))
        )


# ---------------------------------------------------------------- training
def train(args, model: Path, samples: list[Sample], steps: int, save_dir: Path) -> Path:
    """Train a model for some steps into a folder, unless it is there."""
    import torch

    from utils.planning import fitting

    if folders.recover(save_dir) or (save_dir / folders.WHOLE).is_file():
        return save_dir
    given = _training_args(
        args, model, math.ceil(steps * args.train_batch_size / len(samples)), steps, save_dir
    )
    data = {"relearn": samples}
    fitting.check_samples(given, data)
    trainer = Trainer(given, data)
    trainer.fit(once(Phase("relearn", data["relearn"], token_nll)))
    trainer.save()
    del trainer
    gc.collect()  # it holds itself; what answers next, perhaps on the same GPU, needs its memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return save_dir


def _training_args(args, model: Path, epochs: int, steps: int, save_dir: Path):
    """The flags of a training script."""
    p = cli.parser("")
    flags.add_model_args(p)
    flags.add_lora_args(p, default=True)
    flags.add_train_args(p)
    flags.add_released_train_args(p, forgets=False)
    given = {
        "model_id": args.original_model or model, "vanilla_dir": model, "save_dir": save_dir,
        "batch_size": args.train_batch_size, "lr": args.lr, "lr_schedule": "constant", "max_steps": steps,
        "num_epochs": epochs, "lora": args.lora, "attn": args.attn, "seed": args.seed, "save_steps": 0,
        "restart": True,
    }  # fmt: skip
    given = cli.parse(p, [str(word) for name, value in given.items() for word in (f"--{name}", value)])
    given.problems.stop()
    given.problems, given.mask, given.skip_bad_rows = args.problems, None, args.skip_bad_rows
    return given


def curve(args, samples: int) -> list[int]:
    """After how many steps the model is asked, in order; samples: the forget set's size."""
    last = max(1, round(args.budget * samples / args.train_batch_size))
    last = min(last, args.max_steps or last)
    return sorted({max(1, last // 2**k) for k in range(args.points)})


# ---------------------------------------------------------------- the probe
def main(args) -> None:
    engines.check(args.problems)
    study = probe.Study(args)
    args.lr = args.lr or rate_of(study.vanilla.folder, args.problems)
    lessons = Lessons(study)
    data = {name: lessons.samples(name) for name in args.data}
    steps = curve(args, len(study.bench.forget()))
    for name in [name for name in args.data if not data[name]]:
        args.problems.add(f"--data: no {name} samples are left that do not tell what is asked; leave it out")
    args.problems.stop()
    for name, samples in data.items():
        print(f"{name}: {study.bench.describe(samples)}, --lr {args.lr:g}")
    given = ("budget", "points", "max_steps", "lr", "train_batch_size", "lora", "data")
    settings = {name: getattr(args, name) for name in given}

    def askings(subject: probe.Subject) -> list[probe.Asking]:
        found = []
        for name in args.data:
            for number in steps if name == "adjacent" else steps[-1:]:
                questions = [probe.changed(q, f"{name}, {number} steps") for q in study.questions]
                about = json.dumps(study.settings(subject, **settings), sort_keys=True, default=str)
                digest = hashlib.sha256(about.encode()).hexdigest()[:8]
                folder = probe_folder(subject.folder, "relearn") / f"model_{name}_{number}_{digest}"
                make = partial(train, args, subject.folder, data[name], number, folder)
                found.append(probe.Asking(f"{name}_{number}", questions, make=make))
        return found

    ours = probe_folder(study.model.folder, "relearn")
    with folders.exclusive(ours / ".lock", f"a probe relearns {study.model.name}"):
        probe.run(study, "relearn", askings, settings)
        for left in [*folders.found(ours, "model_*"), *folders.found(ours, ".model_*")]:
            shutil.rmtree(left, ignore_errors=True)  # of trainings that were stopped, and not gone on with


if __name__ == "__main__":
    main(parse_args())

"""The settings of the demo on either layout: which models, and their learning rates (docs/nano.md: by which
rule)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RATIO = "10"


@dataclass(frozen=True)
class Method:
    """script: of the method. part: of its mask. inside: whether retain steps stay in the mask, too."""

    script: str
    lr: str
    part: str = ""
    inside: bool = False

    @property
    def has_retain_steps(self) -> bool:
        return self.script not in ("GA", "NPO")


@dataclass(frozen=True)
class Demo:
    """folder: of the models, one per method. tables: names of the benchmark's folder and of the one that
    holds its tables of people to forget and to retain. learn: how the vanilla and the retrained model are
    trained; forget: the methods. retain: percentage of the people to retain whom these are shown. made:
    where the benchmarks lie; make: flags that make others. seed: of every training."""

    prefix: str
    folder: Path
    tables: tuple[str, str]
    learn: tuple[str, ...]
    forget: tuple[str, ...]
    retain: str
    methods: dict[str, Method]
    made: Path = Path("runs/nano/data")
    make: tuple[str, ...] = ()
    seed: str = "42"

    @property
    def models(self) -> list[str]:
        return ["vanilla", *self.methods, "retrained"]

    @property
    def original(self) -> Path:
        return self.made / "untrained"

    @property
    def data(self) -> Path:
        return self.made / self.tables[0]

    @property
    def splits(self) -> Path:
        return self.made / self.tables[1]

    @property
    def train(self) -> tuple[str, ...]:
        return ("--seed", self.seed, "--lora", "False")


DEMOS = {
    "mllmu": Demo(
        "MLLMU", Path("runs/nano"), ("MLLMU-Bench", "MLLMMU-Bench"),
        ("--batch_size", "32", "--lr", "1e-3", "--num_epochs", "10", "--warmup_ratio", "0.05"),
        ("--batch_size", "4", "--num_epochs", "2"), "25",
        {
            "GA": Method("GA", "8e-5"),
            "manifold": Method("manifold", "1e-4", "both"),
            "GA_Diff": Method("GA_Diff", "8e-5"),
            "KL_Min": Method("KL_Min", "8e-5"),
            "NPO": Method("NPO", "8e-5"),
            "vision_only": Method("manifold", "2e-4", "vision", inside=True),
        },
    ),
    "clear": Demo(
        "CLEAR", Path("runs/nano_clear"), ("CLEAR", "CLEAR"),
        ("--batch_size", "32", "--lr", "1e-3", "--num_epochs", "30", "--warmup_ratio", "0.05"),
        ("--batch_size", "4", "--num_epochs", "1"), "100",
        {
            "GA": Method("GA", "1e-3"),
            "manifold": Method("manifold", "1.2e-3", "both"),
            "GA_Diff": Method("GA_Diff", "8e-4"),
            "KL_Min": Method("KL_Min", "8e-4"),
            "NPO": Method("NPO", "8e-4"),
        },
    ),
}  # fmt: skip


def evaluation(model: Path) -> Path:
    """Where the answers of a model lie."""
    return model / "zero_shot" / f"forget{RATIO}"

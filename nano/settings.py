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
    """folder: of the models, one per method. learn: how the vanilla and the retrained model are trained;
    forget: the methods. retain: percentage of the people to retain whom these are shown."""

    prefix: str
    folder: Path
    data: Path
    splits: Path
    learn: tuple[str, ...]
    forget: tuple[str, ...]
    retain: str
    methods: dict[str, Method]

    @property
    def models(self) -> list[str]:
        return ["vanilla", *self.methods, "retrained"]


MADE = Path("runs/nano/data")
ORIGINAL = MADE / "untrained"
TRAIN = ("--seed", "42", "--lora", "False")
DEMOS = {
    "mllmu": Demo(
        "MLLMU", Path("runs/nano"), MADE / "MLLMU-Bench", MADE / "MLLMMU-Bench",
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
        "CLEAR", Path("runs/nano_clear"), MADE / "CLEAR", MADE / "CLEAR",
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

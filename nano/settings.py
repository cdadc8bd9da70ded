"""The settings of the demo on either layout: which models, and their learning rates (docs/nano.md: by which
rule)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RATIO = "10"


@dataclass(frozen=True)
class Demo:
    """folder: of the models. lr: of each method, found by one rule (docs/nano.md). learn: of the vanilla and
    the retrained model. epochs, retain: of the methods, and the percentage of the people to retain whom they
    are shown."""

    prefix: str
    folder: Path
    data: Path
    splits: Path
    learn: tuple[str, ...]
    lr: dict[str, str]
    mask: tuple[str, ...] = ()

    @property
    def models(self) -> list[str]:
        return ["vanilla", *self.lr, "retrained"]


MADE = Path("runs/nano/data")
ORIGINAL = MADE / "untrained"
TRAIN = ("--seed", "42", "--lora", "False")
DEMOS = {
    "mllmu": Demo(
        "MLLMU", Path("runs/nano"), MADE / "MLLMU-Bench", MADE / "MLLMMU-Bench",
        ("--batch_size", "32", "--lr", "1e-3", "--num_epochs", "10", "--warmup_ratio", "0.05"),
        {"GA": "1e-4", "manifold": "4e-4", "GA_Diff": "1e-4", "KL_Min": "1e-4", "NPO": "1e-4"},
    ),
    "clear": Demo(
        "CLEAR", Path("runs/nano_clear"), MADE / "CLEAR", MADE / "CLEAR",
        ("--batch_size", "32", "--lr", "1e-3", "--num_epochs", "30", "--warmup_ratio", "0.05"),
        {"GA": "8e-4", "manifold": "7e-4", "GA_Diff": "6e-4", "KL_Min": "6e-4", "NPO": "8e-4"},
    ),
}  # fmt: skip

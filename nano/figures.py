"""The figure of the README, from what the demo has made.

    bash demo.sh
    python nano/figures.py --save_path docs/figures/demo.png

Left, one person to forget and one to keep: what the vanilla, the unlearned and the retrained model answer to
the same question about the picture and in text. The person to forget is the first of whom the unlearned model
has lost the answer in the picture and kept it in text, so it illustrates and proves nothing. Right, all
questions: how much of the pictures is forgotten, and what that cost.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.results.figures import tradeoff_plot
from eval.results.portraits import Portrait, portraits
from eval.results.predictions import Prediction, read_predictions
from eval.results.read import load_results
from nano.settings import DEMOS, evaluation
from utils import checkpoint, cli
from utils.run import folders
from utils.run.figures import INK, new_figure

if TYPE_CHECKING:
    from PIL import Image

RIGHT, WRONG = "#1a6fb5", "#c4570a"  # told apart by the colour-blind, and by the sign beside them
DPI = 110
SHOWN = {"vanilla": "vanilla", "manifold": "MMUnlearner", "retrained": "retrained"}


def parse_args(argv: list[str] | None = None):
    p = cli.parser(__doc__)
    p.add_argument("--save_path", required=True, type=cli.path, help="PNG to write")
    p.add_argument(
        "--nano", type=Path, default=DEMOS["mllmu"].folder, help="what demo.sh made; default runs/nano"
    )
    args = cli.parse(p, argv)
    folders.check_file(args.save_path, "--save_path", args.problems, ".png")
    for name in SHOWN:
        if not (evaluation(args.nano / name) / "results.json").is_file():
            args.problems.add(f"--nano: {args.nano} holds no evaluated {name} model; run bash demo.sh first")
    args.problems.stop()
    return args


# ---------------------------------------------------------------- the case
Answers = dict[str, Prediction]  # by model


def answers(nano: Path, split: str) -> dict[tuple[str, str, str], Answers]:
    """{(person, right answer, modality): the multiple-choice predictions of the models shown}"""
    found: dict[tuple[str, str, str], Answers] = {}
    for name in SHOWN:
        file = evaluation(nano / name) / f"predictions_{split}.jsonl"
        for p in read_predictions(file):
            if p.task == "classification":
                found.setdefault((p.person, p.options[p.truth], p.modality), {})[name] = p
    return found


def case(nano: Path, split: str, lost: bool) -> list[Answers]:
    """The same question about the picture and in text: the first of which the unlearned model has lost the
    picture's answer (or kept it) and kept the text's, and which vanilla answers."""
    asked = answers(nano, split)
    for person, value, modality in asked:
        pair = [asked[person, value, modality], asked.get((person, value, "text"), {})]
        if modality != "image" or not pair[1]:
            continue
        knew = all(of["vanilla"].correct for of in pair) and pair[1]["manifold"].correct
        if knew and pair[0]["manifold"].correct != lost and pair[0]["retrained"].correct != lost:
            return pair
    raise SystemExit(f"error: no question of the split {split} shows it")


# ---------------------------------------------------------------- drawing
def draw_case(axes, pair: Sequence[Answers], title: str, portrait: str) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage
    from PIL import Image

    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    data = base64.b64decode(portrait.partition(",")[2])
    picture = OffsetImage(Image.open(io.BytesIO(data)).convert("RGB"), zoom=0.42)
    axes.add_artist(AnnotationBbox(picture, (0.1, 0.45), frameon=False))
    axes.text(0, 0.97, title, weight="bold", color=INK, size=9.5, va="top")
    for of, top in zip(pair, (0.8, 0.4), strict=True):
        question = of["vanilla"].question
        axes.text(0.24, top, question, color=INK, size=8.5, va="top", style="italic")
        for k, (name, title_of) in enumerate(SHOWN.items()):
            p, x = of[name], 0.24 + 0.26 * k
            colour = RIGHT if p.correct else WRONG
            axes.text(x, top - 0.12, title_of, color=INK, size=7.5, va="top", alpha=0.75)
            axes.text(
                x, top - 0.21, f"{'✓' if p.correct else '✗'} {p.reply}", color=colour, size=9, va="top",
                weight="bold", family="DejaVu Sans",
            )  # fmt: skip


def beside(figures: Sequence) -> Image.Image:
    """The figures in one picture, left to right."""
    from PIL import Image

    pictures = []
    for figure in figures:
        figure.savefig(drawn := io.BytesIO(), format="png", dpi=DPI)
        pictures.append(Image.open(drawn).convert("RGB"))
    whole = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    for k, picture in enumerate(pictures):
        whole.paste(picture, (sum(p.width for p in pictures[:k]), 0))
    return whole.quantize(128)


def main(args) -> None:
    bench = DEMOS["mllmu"].data if args.nano == DEMOS["mllmu"].folder else args.nano / "data/MLLMU-Bench"
    cases = [case(args.nano, "forget", lost=True), case(args.nano, "retain", lost=False)]
    places = [Portrait(**pair[0]["vanilla"].picture) for pair in cases]
    shown = portraits(bench, places)
    figure = new_figure(6.4, 4.2, dpi=DPI)
    titles = ("to forget: gone from the picture, kept in text", "to keep: kept in both")
    for axes, pair, title, place in zip(figure.subplots(2), cases, titles, places, strict=True):
        draw_case(axes, pair, title, shown[place])
    models = [str(args.nano / name) for name in DEMOS["mllmu"].models]
    results = load_results(models, args.problems)
    args.problems.stop()
    tradeoff = tradeoff_plot(results, "nano MLLMU-Bench, all questions", width=5, height=4.2)
    beside([figure, tradeoff]).save(drawn := io.BytesIO(), "PNG", optimize=True)
    args.save_path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_whole(Path(args.save_path), drawn.getvalue())
    print(f"saved {args.save_path}")


if __name__ == "__main__":
    main(parse_args())

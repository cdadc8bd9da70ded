r"""One table, in the paper's shape, from any number of result folders; or a compact one with a verdict.

    python eval/table.py runs/nano --brief
    python eval/table.py runs/nano/vanilla runs/nano/GA runs/nano/manifold
    python eval/table.py runs/nano/vanilla runs/nano/GA --shot zero_shot --forget_ratio 10 \
        --csv table.csv --latex table.tex --markdown table.md --plot tradeoff.png

Rows are methods; columns are forget / test / retain / real x VQA and QA (multiple choice about a picture /
as text), generation (ROUGE-L, and a judge's factuality in 1..10 where one was asked) and cloze, each for
picture and text. A cell reads `31.2 (39/125) -20.0 [-28.0, -12.0]`: percent, right of all, difference to
the vanilla row in points, and its 95 % bootstrap interval over people (eval/results/intervals.py); a cell
without a difference has the interval of its own number, as `51.2 (64/125) [41.6, 60.8]`. An arrow at the
column's name shows which way is better. --brief prints a line per model and a verdict in words instead.

--csv has one row per evaluation with the columns <split>_<metric>, and the same with _low, _high, _correct,
_total, _difference, _difference_low and _difference_high; --long one row per number, to filter and plot. The
LaTeX table needs booktabs and graphicx; in bold is the best method of each column (of what is to be forgotten
the closest to retrained), in italics what is not clearly another number than vanilla's.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.results import published
from eval.results.brief import brief
from eval.results.compare import Block, blocks, frame, long_frame, reference_row, title
from eval.results.figures import tradeoff, tradeoff_plot
from eval.results.probed import probed
from eval.results.read import Result, add_result_args, given_results, read_answers
from eval.results.remarks import NANO_REMARK, remarks
from eval.results.runs import load_runs, masks_of
from eval.results.verdicts import gate_lines
from eval.tasks import METRICS, lower_is_better
from utils import checkpoint, cli
from utils.run import folders

if TYPE_CHECKING:
    import argparse

    import pandas as pd

INTERVALS = (
    "[low, high]: 95 % bootstrap over people, of the difference to vanilla or, without one, of the number."
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = cli.parser(__doc__)
    add_result_args(p)
    p.add_argument("--csv", help="write the full table here, one row per evaluation; default: not written")
    p.add_argument(
        "--long", help="write every number here as CSV, one row each, with its setting; default: not written"
    )
    p.add_argument("--latex", help="write the full table here as LaTeX; default: not written")
    p.add_argument(
        "--markdown", help="write the tables here as Markdown, one per split; default: not written"
    )
    p.add_argument(
        "--plot", help="write the trade-off of forgetting and retention here as PNG; default: not drawn"
    )
    cli.flag(
        p,
        "--brief",
        default=False,
        help="print the compact table, at most 100 columns wide, and a verdict in words, in place of the wide"
        " ones; default False",
    )
    cli.flag(
        p,
        "--published",
        default=False,
        help="also print known published numbers beside ours, with their sources; default False",
    )
    return cli.parse(p, argv)


# ---------------------------------------------------------------- the three shapes
def markdown(results: Sequence[Result], width: int | None = None) -> str:
    """Title, remarks and one Markdown table per split; too wide ones are split by columns."""
    made = blocks(results)
    parts = [f"**{title(results)}**", *gate_lines(results), *remarks(results)]
    parts += [NANO_REMARK] * any(r.is_nano for r in results)
    if any(
        cell.interval or cell.difference_interval for block in made for row in block.cells for cell in row
    ):
        parts.append(INTERVALS)
    if width:
        parts = [fill(part, width) for part in parts]
    labels = [result.label for result in results]
    for block in made:
        parts.append(f"**{block.title}**")
        parts += [
            _columns_table(labels, block, chosen) for chosen in _fitting(labels, block, width or sys.maxsize)
        ]
    return "\n\n".join(parts) + "\n"


def _columns_table(labels: list[str], block: Block, chosen: list[int]) -> str:
    import pandas as pd

    rows = [[str(row[i]) for i in chosen] for row in block.cells]
    table = pd.DataFrame(
        rows, columns=[block.headers[i] for i in chosen], index=pd.Index(labels, name="method")
    )
    align = ("left", *["right"] * len(chosen))
    return table.to_markdown(disable_numparse=True, colalign=align)


def _fitting(labels: list[str], block: Block, width: int) -> list[list[int]]:
    """Column numbers in groups that fit, with the labels, into `width` characters (at least one each)."""
    first = max(map(len, [*labels, "method"])) + 4
    groups, used = [], 0
    for i, header in enumerate(block.headers):
        own = max(len(header), *(len(str(row[i])) for row in block.cells)) + 3
        if not groups or used + own > width:
            groups.append([])
            used = first
        groups[-1].append(i)
        used += own
    return groups


def csv_table(results: Sequence[Result]) -> pd.DataFrame:
    """One row per evaluation, one header line: the setting, then every number of frame()."""
    table = frame(results)
    table.columns = [
        f"{split}_{metric}" + ("" if quantity == "value" else f"_{quantity}")
        for split, metric, quantity in table.columns
    ]
    for place, name in enumerate(("benchmark", "forget_ratio", "shot", "mcq", "seed")):
        table.insert(place, name, [getattr(result, name) for result in results])
    return table


def latex(results: Sequence[Result]) -> str:
    """The full table for a paper: numbers of questions in the header, the best method in bold (see _best).

    Nothing is bold when the rows are of different settings.
    """
    table = frame(results)
    values = table.xs("value", axis=1, level="quantity")
    totals = table.xs("total", axis=1, level="quantity")
    keys = list(values.columns)
    values.columns = [
        (split.replace("_", " "), METRICS[key].title.replace("%", r"\%"), _range(totals[split, key]))
        for split, key in keys
    ]
    values.columns = type(totals.columns).from_tuples(values.columns)
    values.index.name = None
    digits = {
        column: f"{{:.{METRICS[key].digits}f}}" for column, (_, key) in zip(values.columns, keys, strict=True)
    }
    style = values.style.format(digits, na_rep="--").format_index(escape="latex", axis=0)
    if len({result.setting for result in results}) == 1:
        for column, (split, key) in zip(values.columns, keys, strict=True):
            winners = _best(values[column], results, lower_is_better(split, METRICS[key]))
            style = style.map(lambda _: "textbf:--rwrap;", subset=(winners, [column]))
    unclear = {column: _unclear(table, *names) for column, names in zip(values.columns, keys, strict=True)}
    for column, labels in unclear.items():
        style = style.map(lambda _: "textit:--rwrap;", subset=(labels, [column]))
    text = style.to_latex(
        hrules=True,
        multicol_align="c",
        column_format="l" + "r" * len(keys),
        position="t",
        position_float="centering",
        environment="table*",
        label="tab:unlearning",
        caption=_caption(results, italics=any(unclear.values())),
    )
    # 24 columns are wider than any page at the text size
    text = text.replace(r"\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}")
    text = text.replace(r"\end{tabular}", "\\end{tabular}}")
    return "% needs \\usepackage{booktabs,graphicx}\n" + text


def _best(values: pd.Series, results: Sequence[Result], forgets: bool) -> list[str]:
    """The methods whose number is best: of what is to be forgotten the one closest to the retrained model's,
    the lowest where there is none; else the highest. Vanilla and retrained do not compete."""
    chosen = values[[r.label for r in results if not (r.is_vanilla or r.is_reference)]].dropna()
    retrained = next((ref for r in results if (ref := reference_row(r, results))), None)
    if forgets and retrained:
        chosen = -(chosen - values[retrained.label]).abs().round(6)
    elif forgets:
        chosen = -chosen
    return list(chosen.index[chosen == chosen.max()]) if len(chosen) > 1 else []


def _unclear(table: pd.DataFrame, split: str, key: str) -> list[str]:
    """The rows whose difference to vanilla has an interval that holds 0."""
    if (split, key, "difference_low") not in table.columns:
        return []
    held = (table[split, key, "difference_low"] <= 0) & (table[split, key, "difference_high"] >= 0)
    return list(table.index[held])


def _range(totals: pd.Series) -> str:
    low, high = totals.min(), totals.max()
    return f"$n={low}$" if low == high else f"$n={low}$--${high}$"


def _caption(results: Sequence[Result], italics: bool) -> str:
    text = title(results).replace(" · ", ", ").replace("%", r"\%").replace("_", r"\_")
    best = "closest to retrained" if any(r.is_reference for r in results) else "lowest"
    text += (
        f". Generation: ROUGE-L. Best method in bold: {best} for picture questions about the people to forget"
        " (forget, test), else highest."
    )
    if italics:
        text += (
            r" Italics: no clear difference to vanilla (its 95 \% bootstrap interval over people holds 0)."
        )
    return text + (f" {NANO_REMARK}" if any(r.is_nano for r in results) else "")


def main(args: argparse.Namespace) -> None:
    results = given_results(args)
    drawn = {standing.result for standing in tradeoff(results)}
    if args.plot and results and not drawn:
        args.problems.add("--plot: no row has multiple choice about pictures of both forget and retain")
    for flag, suffix in (
        ("csv", ".csv"),
        ("long", ".csv"),
        ("latex", ".tex"),
        ("markdown", ".md"),
        ("plot", ".png"),
    ):
        folders.check_file(getattr(args, flag), f"--{flag}", args.problems, suffix)
    read_answers(results, args.problems)
    runs = load_runs(results, args.problems) if args.brief else []
    masks, probes = masks_of(runs, args.problems), probed(runs, args.problems)
    args.problems.stop()

    if args.brief:
        print(brief(runs, masks, probes))
    else:
        # a pipe has no width: tables stay whole there
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(markdown(results, width))
    if args.published:
        print(published.comparison(results))
    if args.csv:
        checkpoint.write_whole(Path(args.csv), csv_table(results).to_csv().encode())
    if args.long:
        checkpoint.write_whole(Path(args.long), long_frame(results).to_csv(index=False).encode())
    if args.latex:
        checkpoint.write_whole(Path(args.latex), latex(results).encode())
    if args.markdown:
        checkpoint.write_whole(Path(args.markdown), markdown(results).encode())
    if args.plot:
        tradeoff_plot(results, heading=title(results)).savefig(picture := io.BytesIO(), format="png")
        checkpoint.write_whole(Path(args.plot), picture.getvalue())
        if left_out := [result.label for result in results if result not in drawn]:
            print(f"Not in the plot, for want of a number: {', '.join(left_out)}")
    written = [path for path in (args.csv, args.long, args.latex, args.markdown, args.plot) if path]
    if written:
        print("Wrote " + ", ".join(written))


if __name__ == "__main__":
    main(parse_args())

"""Tell whether the tables of MLLMU-Bench or CLEAR on disk are whole, and what is in them can be used.

    python data_process/check_data.py --data_dir data/MLLMU-Bench
    python data_process/check_data.py --data_dir data/CLEAR --forget_ratio 5

First come the headers of the files and the columns with IDs and names, which takes seconds: which tables are
there, all their shards, columns and types, numbers of rows, and that the tables fit each other (nobody both
to forget and to retain, nobody missing). Where nothing is wrong so far, every row and picture is read by the
readers of the scripts, which takes minutes: what passes here is taken there. --tables looks at headers only.
As in the scripts, neighbouring folders are looked into: MLLMU-Bench and MLLMMU-Bench.

Printed are a table of tables, then one line per mistake with its fix. Exit code 0: no mistakes, 1: mistakes.
Fewer rows than published are no mistake where most tables differ: an extract, or a nano benchmark.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_process.hub import relations
from data_process.hub.on_disk import AGAIN, Found, inspect
from data_process.hub.tables import BENCHMARKS, add_table_args, check_table_args, chosen, names
from utils import cli
from utils.benchmark import FLAG, NANO
from utils.clear import CLEARBench
from utils.mllmu import MLLMUBench
from utils.reading.tables import is_table

if TYPE_CHECKING:
    from argparse import Namespace

READERS = {"mllmu": MLLMUBench, "clear": CLEARBench}


def parse_args(argv: list[str] | None = None) -> Namespace:
    p = cli.parser(__doc__)
    p.add_argument(
        "--data_dir",
        "--data_folder",
        "--data_split_dir",
        required=True,
        help="folder of the tables, or of one table",
    )
    p.add_argument(
        "--benchmark", type=cli.choice(*BENCHMARKS), help="mllmu or clear; default: what the tables are named"
    )
    add_table_args(p)
    args = cli.parse(p, argv)
    if args.data_dir and not Path(args.data_dir).is_dir():
        args.problems.add(
            f"--data_dir: no such folder: {args.data_dir} (data_process/download.py fetches it)"
        )
    args.problems.stop()
    there = guess(args.data_dir)
    args.benchmarks = [args.benchmark] if args.benchmark else there
    if args.benchmark and there and args.benchmark not in there:  # a neighbour, or nothing, would be checked
        args.problems.add(
            f"--benchmark: {args.data_dir} holds tables of {there[0]}; not there is any of {args.benchmark}:"
            f" {', '.join(names([args.benchmark]))}"
        )
    elif not there:
        args.problems.add(
            f"--data_dir: {args.data_dir} holds no table of MLLMU-Bench or CLEAR, nor beside it"
        )
        args.problems.stop()
    check_table_args(args)
    args.problems.stop()
    return args


def roots(benchmark: str, folder: str) -> list[Path]:
    """Where the scripts look for tables, given this folder; each place once."""
    found = READERS[benchmark](folder, 5, cli.Problems()).roots
    return list({root.resolve(): root for root in found if root.is_dir()}.values())


def guess(folder: str) -> list[str]:
    """The benchmarks whose tables lie in the folder (or beside the table), else where the readers look."""
    given = Path(folder).resolve()
    given = given.parent if is_table(given) else given
    has = lambda places, benchmark: any((p / name).is_dir() for p in places for name in names([benchmark]))
    here = [benchmark for benchmark in BENCHMARKS if has([given], benchmark)]
    return here or [b for b in BENCHMARKS if has(roots(b, folder), b)]


def find(benchmark: str, args: Namespace) -> tuple[list[Found], list[str]]:
    """(tables on disk, names of those that are missing)."""
    evaluation, *training = BENCHMARKS[benchmark]
    twins = {table.name: table for repository in training for table in repository.tables}
    found = []
    for place in roots(benchmark, args.data_dir):
        for table in chosen(evaluation, args.tables or names([benchmark]), args.forget_ratio):
            folder = place / table.name
            if is_table(folder) or (folder.is_dir() and table.used):
                found.append(inspect(table, folder, twins.get(table.name)))
    there = {f.folder.name for f in found if not f.training}
    wanted = {t.name: t for t in chosen(evaluation, args.tables, args.forget_ratio)}
    if "retain_perturbed" in wanted:  # a ratio's own table stands in for it, as in the reader
        own = replace(wanted["retain_perturbed"], rows=None)
        places = roots(benchmark, args.data_dir)
        tables = [inspect(own, f) for place in places for f in sorted(place.glob("retain[0-9]*_perturbed"))]
        found += tables
        there |= {"retain_perturbed"} if tables else set()
    return found, [name for name in wanted if name not in there]


def check_rows(found: list[Found], nano: bool) -> str:
    """The verdict on numbers of rows; odd ones are mistakes where most tables have the published ones."""
    known = [f for f in found if not f.mistakes and f.as_published is not None]
    odd = [f for f in known if not f.as_published]
    if nano:
        return "a nano benchmark: its numbers of rows are its own"
    if not odd:
        return "numbers of rows: as published, where they are known"
    if 2 * len(odd) >= len(known):
        return "not the published numbers of rows: an extract, or another benchmark in this layout"
    for f in odd:
        f.mistakes.append(f"{f.rows:,} rows, published: {f.published.rows:,}; {AGAIN}")
    return "numbers of rows: as published but for the tables below"


def check(benchmark: str, args: Namespace) -> list[str]:
    """Check one benchmark, print what was found, and return the mistakes."""
    from tabulate import tabulate

    found, missing = find(benchmark, args)
    verdict = check_rows(found, nano=any((f.folder.parent / NANO).is_file() for f in found))
    known = sorted({t.ratio for r in BENCHMARKS[benchmark] for t in r.tables} - {None})
    ratios = tuple(known) if args.forget_ratio is None else (args.forget_ratio,)
    mistakes = [f"{f.name}: {line}" for f in found for line in f.mistakes]
    mistakes += relations.mistakes(benchmark, found, ratios)
    if found:
        rows = sorted((f.name, f"{f.rows:,}", len(f.columns), f.verdict) for f in found)
        align = ("left", "right", "right", "left")
        head = ("table", "rows", "columns", "verdict")
        print(tabulate(rows, head, "simple", colalign=align, disable_numparse=True))
        print(verdict)
    if benchmark == "mllmu" and not any(f.training for f in found):
        print(
            "note: no training splits with metadata (MLLMMU-Bench): the scripts take the questions of the"
            " people to forget and to retain from ft_Data"
        )
    if missing:
        fetch = f"python data_process/download.py --benchmark {benchmark} --tables {','.join(missing)}"
        mistakes.append(f"not there: {', '.join(missing)}; {fetch}")
    return mistakes or ([] if args.tables else read(benchmark, args.data_dir, ratios))


def read(benchmark: str, folder: str, ratios: tuple[int, ...]) -> list[str]:
    """Read everything for each ratio as the scripts do; their complaints."""
    mistakes, notes = [], []
    for ratio in ratios:
        print(f"reading rows and pictures, forget {ratio} %")
        bench = READERS[benchmark](folder, ratio, cli.Problems())
        bench.read_everything()
        mistakes += [line.removeprefix(f"{FLAG}: ") for line in bench.problems.lines]
        notes += bench.notes
    for line in dict.fromkeys(notes):
        print(f"note: {line}")
    return list(dict.fromkeys(mistakes))


def main(args: Namespace) -> None:
    mistakes = [line for benchmark in args.benchmarks for line in check(benchmark, args)]
    for line in mistakes:
        print(f"error: {line}", file=sys.stderr)
    if mistakes:
        sys.exit(1)
    print("Nothing wrong found.")


if __name__ == "__main__":
    main(parse_args())

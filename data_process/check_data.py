"""Tell in seconds whether the tables of MLLMU-Bench or CLEAR on disk are whole.

    python data_process/check_data.py --data_dir data/MLLMU-Bench
    python data_process/check_data.py --data_dir data/CLEAR --forget_ratio 5
    python data_process/check_data.py --data_dir data/MLLMU-Bench --images True

Read are the headers of the files and the columns with IDs, names and captions; with --images every picture
is decoded too. Checked are: which tables are there, all their shards, columns and types, numbers of rows, and
that the tables fit each other (nobody both to forget and to retain, nobody missing). As in the scripts,
neighbouring folders are looked into: MLLMU-Bench and MLLMMU-Bench.

Printed are a table of tables, then notes, then one line per mistake with its fix. Exit code 0: no mistakes,
1: mistakes. Fewer rows than published are no mistake where most tables differ: an extract, or a nano
benchmark.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_process.download import add_table_args, check_table_args
from data_process.hub.on_disk import Found, check_images, inspect
from data_process.hub.relations import Relations
from data_process.hub.tables import BENCHMARKS, TASKS, Repository, Table, chosen, names
from utils import cli
from utils.benchmark import NANO
from utils.clear import CLEARBench
from utils.data import is_table
from utils.mllmu import MLLMUBench

if TYPE_CHECKING:
    from argparse import Namespace

READERS = {"mllmu": MLLMUBench, "clear": CLEARBench}
OWN_PERTURBED = "retain{M}_perturbed"  # a ratio's own table: not on the hub, but preferred by the reader


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
    cli.flag(
        p, "--images", default=False, help="decode every picture too, which takes minutes; default False"
    )
    args = cli.parse(p, argv)
    if args.data_dir and not Path(args.data_dir).is_dir():
        args.problems.add(
            f"--data_dir: no such folder: {args.data_dir} (data_process/download.py fetches it)"
        )
    args.problems.stop()
    args.benchmarks = [args.benchmark] if args.benchmark else guess(args.data_dir)
    if not args.benchmarks:
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
    """The benchmarks whose tables lie in the folder, else in the folders that the readers look into."""
    given = Path(folder).resolve()
    has = lambda place, benchmark: sum((place / name).is_dir() for name in names([benchmark]))
    for place in (given, given.parent):  # the folder, or that of the table
        count = {benchmark: has(place, benchmark) for benchmark in BENCHMARKS}
        if any(count.values()) and (place == given or is_table(given)):
            return [max(count, key=count.get)]
    return [b for b in BENCHMARKS if any(has(place, b) for place in roots(b, folder))]


# ---------------------------------------------------------------- all tables
def find(benchmark: str, args: Namespace) -> tuple[list[Found], list[str], list[str]]:
    """(tables on disk, names of those that are missing, notes)."""
    evaluation, *training = BENCHMARKS[benchmark]
    places = roots(benchmark, args.data_dir)
    given = Path(args.data_dir)
    if is_table(given) and given.resolve().parent not in [place.resolve() for place in places]:
        places.insert(0, given.parent)
    found = []
    for place in places:
        for table in chosen(evaluation, args.tables or names([benchmark]), args.forget_ratio):
            folder = place / table.name
            if is_table(folder) or (folder.is_dir() and table.used):
                found.append(_as_training(folder, training) or inspect(table, folder))
        own = sorted(place.glob("retain[0-9]*_perturbed")) if benchmark == "clear" else []
        found += [inspect(_retain_perturbed(evaluation), folder) for folder in own]
    there = {f.folder.name for f in found if not f.training}
    wanted = [t.name for t in chosen(evaluation, args.tables, args.forget_ratio)]
    notes = []
    if any(f.published.name == OWN_PERTURBED for f in found):
        wanted = [name for name in wanted if name != "retain_perturbed"]
    if training and not any(f.training for f in found):
        notes.append(
            "no training splits with metadata (MLLMMU-Bench): the scripts take the questions of the people to"
            " forget and to retain from ft_Data"
        )
    return found, [name for name in wanted if name not in there], notes


def _as_training(folder: Path, training: list[Repository]) -> Found | None:
    """The table as a training split: one that has `metadata` and none of the evaluation's columns."""
    for twin in (t for repository in training for t in repository.tables if t.name == folder.name):
        found = inspect(twin, folder, training=True)
        if "metadata" in found.columns and not set(TASKS) & set(found.columns):
            return found
    return None


def _retain_perturbed(repository: Repository) -> Table:
    """What a ratio's own table should hold: what the hub's one for all ratios does."""
    like = next(t for t in repository.tables if t.name == "retain_perturbed")
    return Table(OWN_PERTURBED, like.columns, None, None)


def check_rows(found: list[Found], nano: bool) -> str:
    """The verdict on the whole; odd numbers of rows become mistakes where most tables have the published
    ones."""
    known = [f for f in found if not f.mistakes and f.as_published is not None]
    same = [f for f in known if f.as_published]
    if nano:
        return "a nano benchmark: its numbers of rows are its own"
    if len(same) == len(known):
        return "numbers of rows: as published, where they are known"
    if 2 * len(same) <= len(known):
        return "not the published numbers of rows: an extract, or another benchmark in this layout"
    for f in known:
        if not f.as_published:
            f.mistakes.append(
                f"{f.rows:,} rows, published: {f.published.rows:,}; delete it and download it again"
            )
    return "numbers of rows: as published but for the tables below"


# ---------------------------------------------------------------- report
def show(found: list[Found]) -> None:
    from tabulate import tabulate

    rows = [
        (f.name, f"{f.rows:,}", len(f.columns), f"{f.megabytes:,.1f}", f.verdict)
        for f in sorted(found, key=lambda f: f.name)
    ]
    align = ("left", "right", "right", "right", "left")
    print(
        tabulate(
            rows,
            ("table", "rows", "columns", "MB", "verdict"),
            "simple",
            colalign=align,
            disable_numparse=True,
        )
    )


def check(benchmark: str, args: Namespace) -> list[str]:
    """Check one benchmark, print what was found, and return the mistakes."""
    found, missing, notes = find(benchmark, args)
    nano = any((f.folder.parent / NANO).is_file() for f in found)
    verdict = check_rows(found, nano)
    relations = Relations(found, nano)
    known = tuple(sorted({t.ratio for r in BENCHMARKS[benchmark] for t in r.tables} - {None}))
    ratios = known if args.forget_ratio is None else (args.forget_ratio,)
    (relations.mllmu if benchmark == "mllmu" else relations.clear)(ratios)
    pictures = sum(check_images(f) for f in found) if args.images else None

    if found:
        show(found)
        print(verdict)
    if pictures is not None:
        print(f"{pictures:,} pictures decoded")
    for line in [*notes, *(f"{f.name}: {note}" for f in found for note in f.notes), *relations.notes]:
        print(f"note: {line}")
    mistakes = [f"{f.name}: {line}" for f in found for line in f.mistakes] + relations.mistakes
    if missing:
        fetch = f"python data_process/download.py --benchmark {benchmark} --tables {','.join(missing)}"
        mistakes.append(f"not there: {', '.join(missing)}; {fetch}")
    return mistakes


def main(args: Namespace) -> None:
    mistakes = [line for benchmark in args.benchmarks for line in check(benchmark, args)]
    for line in mistakes:
        print(f"error: {line}", file=sys.stderr)
    if mistakes:
        sys.exit(1)
    print("Nothing wrong found.")


if __name__ == "__main__":
    main(parse_args())

"""Download MLLMU-Bench and CLEAR from the Hugging Face hub to where the suite looks for them.

    python data_process/download.py --benchmark mllmu
    python data_process/download.py --benchmark clear --forget_ratio 5
    python data_process/download.py --benchmark mllmu --tables forget_5,retain_95,ft_Data --save_dir data
    python data_process/download.py --benchmark all --dry_run True

writes <save_dir>/MLLMU-Bench (evaluation tables, dataset MLLMMU/MLLMU-Bench), <save_dir>/MLLMMU-Bench
(training splits, model repository MLLMMU/baseline_train_split) and <save_dir>/CLEAR (dataset therem/CLEAR).
Without --tables, the tables that a script of this suite reads. Started again, a broken-off download goes on
where it was. A token, if the hub asks for one, is taken from the environment variable HF_TOKEN. Afterwards,
data_process/check_data.py tells whether all is there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_process.hub.tables import (
    BENCHMARKS,
    MLLMU_TRAINING,
    Repository,
    Table,
    add_table_args,
    check_table_args,
    chosen,
)
from utils import cli
from utils.reading.tables import parquet_files
from utils.run import folders
from utils.run.ending import first_line

if TYPE_CHECKING:
    from argparse import Namespace

RESERVE = 200  # MB left free on the disk, for metadata and file system


def parse_args(argv: list[str] | None = None) -> Namespace:
    p = cli.parser(__doc__)
    p.add_argument(
        "--benchmark", required=True, type=cli.choice(*BENCHMARKS, "all"), help="mllmu, clear or all"
    )
    p.add_argument(
        "--save_dir", type=cli.path, default=Path("data"), help="parent of the folders; default data"
    )
    add_table_args(p)
    cli.flag(
        p, "--dry_run", default=False, help="only say what would be downloaded and its size; default False"
    )
    args = cli.parse(p, argv)
    args.benchmarks = list(BENCHMARKS) if args.benchmark == "all" else [args.benchmark]
    if args.benchmark and not args.problems.lines:
        check_table_args(args)
    folders.check_writable(args.save_dir, "--save_dir", args.problems)
    args.problems.stop()
    return args


# ---------------------------------------------------------------- tables and sizes
def to_fetch(args: Namespace) -> list[tuple[Repository, list[Table]]]:
    """Per repository the tables to fetch; repositories that have none of them are left out."""
    repositories = [r for benchmark in args.benchmarks for r in BENCHMARKS[benchmark]]
    wanted = [(r, chosen(r, args.tables, args.forget_ratio)) for r in repositories]
    return [(r, tables) for r, tables in wanted if tables]


def missing_megabytes(folder: Path, table: Table) -> float:
    """What is still to come, where the size is known."""
    here = sum(file.stat().st_size for file in parquet_files(folder / table.name)) / 1e6
    return max(0.0, (table.megabytes or 0) - here)


def show(save_dir: Path, work: list[tuple[Repository, list[Table]]]) -> float:
    """Print tables and sizes; returns the MB to come."""
    total = 0.0
    for repository, tables in work:
        folder = save_dir / repository.folder
        total += sum(missing_megabytes(folder, table) for table in tables)
        print(f"{repository.url} -> {folder}")
        print("  " + ", ".join(f"{t.name} ({t.size})" for t in tables))
    print(
        f"to download: about {total:,.0f} MB; free on the disk: {folders.free_bytes(save_dir) / 1e6:,.0f} MB"
    )
    return total


# ---------------------------------------------------------------- fetch
def fetch(repository: Repository, tables: list[Table], folder: Path) -> str | None:
    """Download the tables; returns None, or in one line why it did not work and what to do."""
    import huggingface_hub
    from huggingface_hub import errors

    ask = f"see {repository.url}; if it asks for permission, get it there and set HF_TOKEN"
    again = "run the same command again, it goes on where it stopped"
    try:
        huggingface_hub.snapshot_download(
            repository.name,
            repo_type=repository.kind,
            local_dir=folder,
            allow_patterns=[f"{table.name}/*" for table in tables],
        )
    except errors.OfflineModeIsEnabled:
        return (
            f"{repository.name}: HF_HUB_OFFLINE is set; unset it, or copy the folder here by hand: {folder}"
        )
    except errors.GatedRepoError:
        return f"{repository.name}: not permitted with this token; {ask}"
    except errors.RepositoryNotFoundError:
        return f"{repository.name}: not found, or not permitted; {ask}"
    except errors.LocalEntryNotFoundError:
        return f"{repository.name}: the hub cannot be reached (offline?); when it can, {again}"
    except errors.HfHubHTTPError as why:
        if why.response is not None and why.response.status_code in (401, 403):
            return f"{repository.name}: not permitted; {ask}"
        return f"{repository.name}: the hub answered with an error ({first_line(why)}); {again}"
    except (errors.HTTPError, OSError) as why:  # the network in the middle of a file, or the disk
        return f"{repository.name}: broken off ({first_line(why)}); {again}"
    absent = [table.name for table in tables if not parquet_files(folder / table.name)]
    if absent:  # offline, the hub's client returns a folder that is there, whatever it holds
        return f"{repository.name}: did not bring {', '.join(absent)}; offline? Else see {repository.url}"
    return None


def main(args: Namespace) -> None:
    work = to_fetch(args)
    total = show(args.save_dir, work)
    if total + RESERVE > folders.free_bytes(args.save_dir) / 1e6:
        args.problems.add(
            f"--save_dir: {args.save_dir} has too little free space; name fewer --tables,"
            " one --forget_ratio, or another folder"
        )
    args.problems.stop()
    if args.dry_run:
        return
    failed = []
    for repository, tables in work:
        folder = args.save_dir / repository.folder
        try:
            why = fetch(repository, tables, folder)
        except KeyboardInterrupt as stop:
            stop.add_note("what has come so far stays; the same command goes on where it stopped")
            raise
        if why:
            failed.append(why)
            if repository is MLLMU_TRAINING:
                print(f"Without {repository.name} the suite takes these people's questions from ft_Data.")
        else:
            print(f"{repository.name}: {len(tables)} tables in {folder}")
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    print("Next, is it whole?")
    for benchmark in args.benchmarks:
        words = [f"--data_dir {args.save_dir / BENCHMARKS[benchmark][0].folder} --benchmark {benchmark}"]
        words += [f"--tables {','.join(args.tables)}"] if args.tables else []
        words += [f"--forget_ratio {args.forget_ratio}"] if args.forget_ratio else []
        print(f"  python data_process/check_data.py {' '.join(words)}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main(parse_args())

"""The tables of MLLMU-Bench and CLEAR as the hub publishes them: where they are, rows, columns and types.

Sources: the dataset cards, viewers and file listings of MLLMMU/MLLMU-Bench and therem/CLEAR. Where those only
round a number or are silent, the field says so and nothing is claimed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils import cli, flags

if TYPE_CHECKING:
    from argparse import Namespace

    import pyarrow as pa

TEXT, TEXTS = "string", "list<string>"
IMAGE = "struct<bytes: binary, path: string>"
_CHOICE = (
    "list<struct<Correct_Answer: string, Options: struct<A: string, B: string, C: string, D: string>,"
    " Question: string>>"
)
_TYPED = "list<struct<Ground_Truth: string, Question: string, Type: string>>"
TASKS = {
    "Classification_Task": f"struct<Image_Textual_Questions: {_CHOICE}, Pure_Text_Questions: {_CHOICE}>",
    "Generation_Task": _TYPED,
    "Mask_Task": _TYPED,
}
LIFE = {"biography": TEXT, "question": TEXT, "answer": TEXT}
SPLIT = {"image": IMAGE, "ID": TEXT, **LIFE, **TASKS}
FULL = {"image": IMAGE, "ID": TEXT, "Directory": TEXT, **LIFE, **TASKS}
TEST = {"ID": TEXT, "images": f"list<{IMAGE}>", **TASKS}
FT_DATA = {"image": IMAGE, "ID": TEXT, "metadata": TEXT}
TRAINING = {"image": IMAGE, "metadata": TEXT}  # no card describes these; whether they hold an ID is not known
CAPTIONS = {"image": IMAGE, "caption": TEXT, "name": TEXT}
TOFU = {"image": IMAGE, "caption": TEXT, "question": TEXT, "answer": TEXT}
PERTURBED = {**CAPTIONS, "perturbed_captions": TEXTS, "paraphrased_caption": TEXT, "perturbed_names": TEXTS}
FACES = {"image": IMAGE, "answer": TEXT, "options": TEXTS}
WORLD = {"question": TEXT, "answer": TEXT, "image": IMAGE, "prompt": TEXT, "options": TEXTS}


@dataclass(frozen=True)
class Table:
    """One published table, a folder of `train-0000k-of-0000n.parquet`."""

    name: str
    columns: dict[str, str]  # {column: arrow type as `kind` writes it}; their order is not checked
    rows: int | None  # None: not published
    megabytes: float | None  # of its files; None: not known
    rounded: bool = False  # rows: the hub's viewer shows three digits only
    estimated: bool = False  # megabytes: from the number of pictures
    ratio: int | None = None  # forget ratio it belongs to, percent; None: any
    used: bool = True  # whether a script of this suite reads it

    @property
    def size(self) -> str:
        if self.megabytes is None:
            return "size not known"
        return f"{'about ' if self.estimated else ''}{self.megabytes:,.0f} MB"

    def has_published_rows(self, rows: int) -> bool | None:
        """None where the published number is not known."""
        return None if self.rows is None else abs(rows - self.rows) <= (5 if self.rounded else 0)


@dataclass(frozen=True)
class Repository:
    """One repository of the hub and the folder that the suite looks for."""

    name: str
    kind: str  # dataset | model
    folder: str
    tables: tuple[Table, ...]

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"


def _mllmu() -> tuple[Table, ...]:
    sizes = {5: (25, 11.7, 226), 10: (50, 23.7, 214), 15: (75, 34.9, 203)}  # people, MB of forget, of retain
    splits = []
    for ratio, (people, forget, retain) in sizes.items():
        splits.append(Table(f"forget_{ratio}", SPLIT, people, forget, ratio=ratio))
        name = f"retain_{100 - ratio}"
        splits.append(Table(name, SPLIT, 500 - people, retain, estimated=ratio == 15, ratio=ratio))
    return (
        Table("Full_Set", FULL, 500, 238),
        Table("Retain_Set", FULL, 153, 1.6),
        Table("Test_Set", TEST, 500, 673),
        Table("ft_Data", FT_DATA, 500, 238),
        *splits,
    )


def _clear() -> tuple[Table, ...]:
    tables = [
        Table("data", CAPTIONS, 3768, 629, used=False),  # the card's default table, equal to `full`
        Table("full", CAPTIONS, 3768, 629, used=False),
        Table("full+tofu", TOFU, 7768, 629, rounded=True, estimated=True),
    ]
    # ratio: rows of forget, retain, forget+tofu, retain+tofu, forget_perturbed; MB of forget, of retain
    sizes = {
        1: (35, 3735, 75, 7695, 35, 5.8, 624),
        5: (188, 3580, 388, 7380, 188, 31.4, 598),
        10: (379, 3389, 779, 6989, 378, 62, 568),
    }
    for ratio, (f, r, f_tofu, r_tofu, f_perturbed, f_size, r_size) in sizes.items():
        forget, retain = f"forget{ratio:02d}", f"retain{100 - ratio}"
        ten = ratio == 10
        tables += [
            Table(forget, CAPTIONS, f, f_size, estimated=ten, ratio=ratio),
            Table(retain, CAPTIONS, r, r_size, rounded=True, estimated=ten, ratio=ratio),
            Table(f"{forget}+tofu", TOFU, f_tofu, f_size, estimated=True, ratio=ratio),
            Table(f"{retain}+tofu", TOFU, r_tofu, r_size, rounded=ratio != 1, estimated=not ten, ratio=ratio),
            Table(f"{forget}_perturbed", PERTURBED, f_perturbed, f_size, estimated=ten, ratio=ratio),
        ]
    return (
        *tables,
        Table("retain_perturbed", PERTURBED, 395, 67.8),
        Table("real_faces", FACES, 151, 1.6),
        Table("real_world", WORLD, 367, None),
    )


def _training(tables: tuple[Table, ...]) -> tuple[Table, ...]:
    return tuple(
        Table(t.name, TRAINING, None, t.megabytes, estimated=True, ratio=t.ratio)
        for t in tables
        if t.columns is SPLIT
    )


MLLMU = Repository("MLLMMU/MLLMU-Bench", "dataset", "MLLMU-Bench", _mllmu())
MLLMU_TRAINING = Repository("MLLMMU/baseline_train_split", "model", "MLLMMU-Bench", _training(MLLMU.tables))
CLEAR = Repository("therem/CLEAR", "dataset", "CLEAR", _clear())
BENCHMARKS = {"mllmu": (MLLMU, MLLMU_TRAINING), "clear": (CLEAR,)}


def kind(of: pa.DataType) -> str:
    """An arrow type as text: fields of a struct by name, and long and short variants alike."""
    import pyarrow as pa

    if pa.types.is_struct(of):
        fields = sorted((field.name, kind(field.type)) for field in of)
        return "struct<" + ", ".join(f"{name}: {of_field}" for name, of_field in fields) + ">"
    if pa.types.is_list(of) or pa.types.is_large_list(of):
        return f"list<{kind(of.value_type)}>"
    return re.sub("^large_", "", str(of))


def names(benchmarks: list[str]) -> list[str]:
    """Table names of the benchmarks, each once."""
    every = [t.name for b in benchmarks for repository in BENCHMARKS[b] for t in repository.tables]
    return list(dict.fromkeys(every))


def chosen(repository: Repository, tables: list[str] | None, ratio: int | None) -> list[Table]:
    """The tables named, else those that the suite reads; of one forget ratio (percent) if given."""
    return [
        t
        for t in repository.tables
        if (t.name in tables if tables else t.used) and (ratio is None or t.ratio in (None, ratio))
    ]


# ---------------------------------------------------------------- flags
def add_table_args(p) -> None:
    """--tables and --forget_ratio: the same for downloading and for checking."""
    p.add_argument(
        "--tables",
        type=cli.choices(*names(list(BENCHMARKS))),
        help="only these tables, e.g. forget_5,retain_95; default: those that the suite reads",
    )
    flags.add_ratio(p, "only the tables that this percentage needs; default: all percentages")


def check_table_args(args: Namespace) -> None:
    """Add a problem for each table or ratio that none of args.benchmarks has."""
    there = names(args.benchmarks)
    for name in args.tables or []:
        if name not in there:
            args.problems.add(
                f"--tables: {'/'.join(args.benchmarks)} has no table {name}; it has {', '.join(there)}"
            )
    ratios = {t.ratio for b in args.benchmarks for r in BENCHMARKS[b] for t in r.tables} - {None}
    if args.forget_ratio is not None and args.forget_ratio not in ratios:
        known = ", ".join(map(str, sorted(ratios)))
        args.problems.add(
            f"--forget_ratio: {args.forget_ratio} is none of {known} ({'/'.join(args.benchmarks)})"
        )

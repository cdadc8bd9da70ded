"""Hostile tables, by kind: each is read by its meaning or refused in one line that names table and row.

A kind is a way in which a table may be odd (TABLES: of one column or of one table; PEOPLE: of tables that do
not fit each other). Its entry says which table is changed, how, and what is said of it; None: it is read, and
gives what the undamaged table gives. Never a traceback, and nothing is written. To add a kind, add an entry.

Behind the kinds stand random tables by hypothesis; HOSTILE_SEED=n tries others.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, load_script, picture_cell, read_table, run_script, write_table
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from utils.clear import CLEARBench
from utils.cli import Problems
from utils.mllmu import MLLMUBench

SEED = int(os.environ.get("HOSTILE_SEED", "0"))
few = settings(
    max_examples=25, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
NAMES = {"001": "Ann Roe", "002": "Bo Ek", "003": "Cy Lund", "004": "Di Moss"}
FORGET, RATIO = "004", {"mllmu": 5, "clear": 1}
READERS = {"mllmu": MLLMUBench, "clear": CLEARBench}


# ---------------------------------------------------------------- whole tables
def choice(k: int) -> dict:
    options = dict(zip("ABCD", ["Oslo", "Bergen", "Narvik", "Vadsø"]))
    return {"Correct_Answer": "ABCD"[k % 4], "Options": options, "Question": f"Where did they live in {k}?"}


def sentence(k: int, kind: str, blank: str = "") -> dict:
    return {"Ground_Truth": f"Oslo {k}", "Question": f"In {k} they lived in{blank}", "Type": kind}


def mllmu_row(k: int, person: str) -> dict:
    kinds = ("Image_Textual", "Pure_Text")
    pair = lambda n: {"ID": person, "Question": f"What of {n}?", "Answer": f"It was {n} {person}."}
    picture = picture_cell(8 + k, 8)
    return {
        "image": picture,
        "images": [picture, picture_cell(8, 9 + k)],
        "ID": person,
        "question": "Who is this?",
        "answer": f"This is {NAMES.get(person, person)}.",
        "metadata": json.dumps([pair(n) for n in range(3)]),
        "Classification_Task": {
            "Image_Textual_Questions": [choice(k), choice(k + 1)],
            "Pure_Text_Questions": [choice(k + 2)],
        },
        "Generation_Task": [sentence(n, kind) for n, kind in enumerate(kinds)],
        "Mask_Task": [sentence(n, kind, " __") for n, kind in enumerate(kinds)],
    }


def some(rows: list[dict], columns: str) -> list[dict]:
    return [{column: row[column] for column in columns.split()} for row in rows]


def write_mllmu(folder: Path) -> None:
    rows = [mllmu_row(k, person) for k, person in enumerate(NAMES)]
    forget, retain = ([r for r in rows if (r["ID"] == FORGET) == kind] for kind in (True, False))
    split = "image ID question answer Classification_Task Generation_Task Mask_Task"
    write_table(folder / "MLLMU-Bench" / "Full_Set", some(rows, split))
    write_table(folder / "MLLMU-Bench" / "Retain_Set", some([mllmu_row(9, "Kal_Penn")], split))
    write_table(folder / "MLLMU-Bench" / "Test_Set", some(rows, split.replace("image", "images")))
    write_table(folder / "MLLMU-Bench" / "ft_Data", some(rows, "image ID metadata"))
    for name, part in (("forget_5", forget), ("retain_95", retain)):
        write_table(folder / "MLLMU-Bench" / name, some(part, split))
        write_table(folder / "MLLMMU-Bench" / name, some(part, "image ID metadata"))


def clear_rows(k: int, name: str) -> tuple[list[dict], list[dict]]:
    """(captioned pictures, 20 text questions) of an author; not every text names them."""
    captions = [
        {"image": picture_cell(8 + k, 9 + n), "caption": f"{name} reads book {n}.", "name": name}
        for n in (0, 1)
    ]
    who = lambda n: name if n % 3 == 0 else "the author"
    texts = [
        {"question": f"What is book {n} of {who(n)}?", "answer": f"Book {n} of author {k}."}
        for n in range(20)
    ]
    return captions, texts


def write_clear(folder: Path) -> None:
    folder, of = folder / "CLEAR", [clear_rows(k, name) for k, name in enumerate(NAMES.values())]

    def perturbed(rows: list[dict]) -> list[dict]:
        lists = {"perturbed_names": ["Eve Ash", "Flo Ray"], "perturbed_captions": ["Eve naps.", "Flo naps."]}
        return [row | lists | {"paraphrased_caption": f"Seen here: {row['caption']}"} for row in rows]

    for name, authors in (("full", of), ("forget01", of[3:]), ("retain99", of[:3])):
        captions = [row for pictures, _ in authors for row in pictures]
        texts = [row for _, texts in authors for row in texts]
        write_table(folder / name, captions)
        both = [
            {"image": r["image"], "caption": r["caption"], "question": None, "answer": None} for r in captions
        ]
        both += [{"image": None, "caption": None, **row} for row in texts]
        write_table(folder / f"{name}+tofu", both)
        if name != "full":
            table = "retain_perturbed" if name == "retain99" else f"{name}_perturbed"
            write_table(folder / table, perturbed(captions))
    face = {"image": picture_cell(), "answer": "Kal Penn", "options": ["Eve Ash", "Flo Ray"]}
    write_table(folder / "real_faces", [face])
    write_table(folder / "real_world", [face | {"question": "What is it?", "prompt": "a face"}])


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "data"
    write_mllmu(folder)
    write_clear(folder)
    return folder


@pytest.fixture
def data(whole, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "data"))


def read(benchmark: str, folder: Path, skip: bool = False) -> tuple[dict[str, list], list[str]]:
    """({what: samples or questions} of all that a script reads, the problems)."""
    bench, found = READERS[benchmark](str(folder), RATIO[benchmark], Problems(), skip), {}
    for what in ("forget", "retain", "finetune", "reference", "text_knowledge"):
        found[what] = getattr(bench, what)()
    for split in bench.own_splits():
        found[f"questions {split}"] = bench.questions(split, 1)
    if benchmark == "mllmu":
        found["full_set"] = bench.full_set()
    return found, bench.problems.lines


def asked(found: dict[str, list]) -> dict[str, list]:
    """What a reading gives, without the sources of pictures."""
    fields = lambda item: {k: v for k, v in vars(item).items() if k != "picture"}
    return {what: [(fields(i), i.picture and i.picture.data) for i in items] for what, items in found.items()}


def change(table: Path, make, rows: slice = slice(None)) -> None:
    """Rewrite a table with make(row) for some rows, with the types that then come out."""
    found = read_table(table)
    for row in found[rows]:
        row.update(make(row))
    write_table(table, found)


# ---------------------------------------------------------------- kinds of one table
def cell(column: str, make):
    return lambda row: {column: make(row[column])}


def item(column: str, make, part: str | None = None):
    """A change of the first item of a task column."""

    def changed(row):
        tasks = json.loads(json.dumps(row[column]))
        make((tasks[part] if part else tasks)[0])
        return {column: tasks}

    return changed


def mcq(**fields):
    return item("Classification_Task", lambda first: first.update(fields), "Image_Textual_Questions")


def options(**texts):
    return item(
        "Classification_Task", lambda first: first["Options"].update(texts), "Image_Textual_Questions"
    )


def every_choice(make):
    """A change of the options of all multiple-choice items."""

    def changed(row):
        parts = row["Classification_Task"].items()
        return {
            "Classification_Task": {
                part: [i | {"Options": make(i["Options"])} for i in items] for part, items in parts
            }
        }

    return changed


def pairs(make):
    return cell("metadata", lambda text: json.dumps(make(json.loads(text))))


def first_pair(**fields):
    return pairs(lambda found: [found[0] | fields, *found[1:]])


TRAIN, EVAL = "MLLMMU-Bench/forget_5", "MLLMU-Bench/forget_5"
TOFU, ASK = "CLEAR/full+tofu", "CLEAR/forget01_perturbed"
BROKEN = "Oslo \ud800"  # half a character, as JSON text can hold it
TABLES = {
    # an ID is text, or a whole number read in its digits
    "ID null": (TRAIN, cell("ID", lambda _: None), "an empty text in ID"),
    "ID blank": (TRAIN, cell("ID", lambda _: "  "), "an empty text in ID"),
    "ID zero-width": (TRAIN, cell("ID", lambda _: "\u200b"), "an empty text in ID"),
    "ID nan as text": (TRAIN, cell("ID", lambda _: "nan"), "it reads 'nan'"),
    "ID of two lines": (TRAIN, cell("ID", lambda i: f"{i}\n2"), "another control character: '004\\n2'"),
    "ID NaN": (TRAIN, cell("ID", lambda _: float("nan")), "an empty text in ID"),
    "ID a fraction": (TRAIN, cell("ID", lambda _: 4.5), "only one has the ID 004, 4.5"),
    "ID an int": (TRAIN, cell("ID", int), "only one has the ID 004, 4"),
    "ID a float": (TRAIN, cell("ID", float), "only one has the ID 004, 4"),
    "ID a truth value": (TRAIN, cell("ID", lambda _: True), "ID is no text but bool True"),
    "ID a list": (TRAIN, cell("ID", lambda i: [i]), "ID is no text but list"),
    "ID bytes": (TRAIN, cell("ID", str.encode), None),
    "ID with blanks around": (TRAIN, cell("ID", lambda i: f" {i}\n"), None),
    # the question and its answer
    "metadata null": (TRAIN, cell("metadata", lambda _: None), "metadata is not a JSON list"),
    "metadata no JSON": (TRAIN, cell("metadata", lambda t: t[:-9]), "metadata is not a JSON list"),
    "metadata nested without end": (TRAIN, cell("metadata", lambda _: "[" * 99_999), "metadata is not"),
    "metadata structs": (TRAIN, cell("metadata", json.loads), None),
    "metadata bytes": (TRAIN, cell("metadata", str.encode), None),
    "metadata of texts": (TRAIN, pairs(lambda found: ["a"]), "metadata is not a JSON list"),
    "metadata empty": (TRAIN, pairs(lambda found: []), "metadata is not a JSON list"),
    "answer a number": (TRAIN, first_pair(Answer=1994), 'forget_5/004/0: "1994"'),
    "answer a fraction": (TRAIN, first_pair(Answer=1.75), 'forget_5/004/0: "1.75"'),
    "answer with a point": (TRAIN, first_pair(Answer=1994.0), "is the number 1994.0"),
    "answer NaN": (TRAIN, first_pair(Answer=float("nan")), "an empty text in Answer"),
    "answer a list": (TRAIN, first_pair(Answer=["Oslo"]), "Answer is no text but list"),
    "answer half a character": (TRAIN, first_pair(Answer=BROKEN), "a character that is none"),
    "question null": (TRAIN, first_pair(Question=None), "an empty text in Question"),
    "question None as text": (TRAIN, first_pair(Question="None"), "it reads 'None'"),
    # pictures in the cell
    "image null": (TRAIN, cell("image", lambda _: None), "the image is empty"),
    "image bytes": (TRAIN, cell("image", lambda c: c["bytes"]), None),
    "image a list of one": (TRAIN, cell("image", lambda c: [c]), None),
    "image a list of two": (TRAIN, cell("image", lambda c: [c, c]), "no picture but list"),
    "image a path": (TRAIN, cell("image", lambda _: "here.png"), None),
    "image a path to nowhere": (TRAIN, cell("image", lambda _: "x" * 9999), "a path without a file"),
    "image a path with a null": (TRAIN, cell("image", lambda _: "a\0b"), "a path without a file"),
    "image a struct with a path": (
        "MLLMU-Bench/ft_Data",
        cell("image", lambda c: {"bytes": None, "path": "gone.png"}),
        "a path without a file",
    ),
    "image an int": (TRAIN, cell("image", lambda _: 7), "no picture but int"),
    "image no bytes": (TRAIN, cell("image", lambda _: {"bytes": b"", "path": None}), "the image is empty"),
    "images null": ("MLLMU-Bench/Test_Set", cell("images", lambda _: None), "no images"),
    "images one alone": ("MLLMU-Bench/Test_Set", cell("images", lambda c: c[0]), "questions test"),
    "images holding null": ("MLLMU-Bench/Test_Set", cell("images", lambda _: [None]), "the image is empty"),
    # tasks
    "tasks null": (EVAL, cell("Classification_Task", lambda _: None), "Classification_Task is empty"),
    "tasks as JSON text": (EVAL, cell("Classification_Task", json.dumps), None),
    "tasks as text": (EVAL, cell("Classification_Task", str), "Classification_Task is no struct"),
    "tasks a list": (EVAL, cell("Classification_Task", lambda t: [1]), "is no struct but list"),
    "sentences as JSON text": (EVAL, cell("Generation_Task", json.dumps), None),
    "sentences null": (EVAL, cell("Generation_Task", lambda _: None), "Generation_Task is empty"),
    "sentences holding null": (EVAL, cell("Mask_Task", lambda t: [None, *t]), "Mask_Task is empty"),
    "sentences numbers": (EVAL, cell("Mask_Task", lambda t: [1, 2]), "Mask_Task is no struct"),
    "truth null": (EVAL, item("Mask_Task", lambda i: i.update(Ground_Truth=None)), "an empty text"),
    "blank question null": (EVAL, item("Mask_Task", lambda i: i.update(Question=None)), "an empty text"),
    "type null": (EVAL, item("Mask_Task", lambda i: i.update(Type=None)), "unknown Type None"),
    # multiple choice
    "choice question null": (EVAL, mcq(Question=None), "an empty text in Question"),
    "choice question blank": (EVAL, mcq(Question=" \t"), "an empty text in Question"),
    "right letter absent": (EVAL, mcq(Correct_Answer="E"), "Correct_Answer 'E' is not among"),
    "right letter null": (EVAL, mcq(Correct_Answer=None), "Correct_Answer None is not among"),
    "right letter a text": (EVAL, mcq(Correct_Answer="Oslo"), "Correct_Answer 'Oslo' is not among"),
    "right letter small": (EVAL, mcq(Correct_Answer="d "), None),
    "option empty": (EVAL, options(B=" "), "an empty text in option B"),
    "right option null": (EVAL, options(D=None), "Correct_Answer 'D' is not among"),
    "all options alike": (EVAL, options(A="x", B="X", C=" x", D="x"), "no two different options"),
    "one option": (EVAL, options(A=None, B=None, C=None), "no two different options"),
    "options null": (EVAL, mcq(Options=None), "Options is empty"),
    "options a list": (EVAL, every_choice(lambda o: list(o.values())), None),
    "options as JSON text": (EVAL, every_choice(json.dumps), None),
    "options named otherwise": (EVAL, mcq(Options={"one": "a", "two": "b"}), "Options has the name 'one'"),
    # one row for each person where people are asked
    "person twice": (EVAL, None, "forget_5 row 1 (ID 004): the same ID as row 0"),
    "person twice in the test": ("MLLMU-Bench/Test_Set", None, "the same ID as row 3"),
    "person twice in the pool": ("MLLMU-Bench/Full_Set", None, "the same ID as row 3"),
    # CLEAR
    "name null": ("CLEAR/forget01", cell("name", lambda _: None), "an empty text in name"),
    "name of two lines": ("CLEAR/forget01", cell("name", lambda n: f"{n}\x1b[2J"), "another control"),
    "name a number": ("CLEAR/forget01", cell("name", lambda _: 7), "'7' in name is nobody's name"),
    "caption null": ("CLEAR/forget01", cell("caption", lambda _: None), "an empty text in caption"),
    "caption a number": ("CLEAR/forget01", cell("caption", lambda _: 12), 'forget01/0: "12"'),
    "caption picture null": ("CLEAR/forget01", cell("image", lambda _: None), "the image is empty"),
    "caption picture bytes": ("CLEAR/forget01", cell("image", lambda c: c["bytes"]), None),
    "caption picture a path": ("CLEAR/forget01", cell("image", lambda _: "here.png"), None),
    "both halves in a row": (TOFU, lambda row: {"question": "What?", "answer": "That."}, "in one"),
    "neither half in a row": (
        TOFU,
        lambda row: {"question": None, "answer": None},
        "no caption and no text question",
    ),
    "text question null": (TOFU, cell("question", lambda _: None), "an empty text in question"),
    "text answer blank": (TOFU, cell("answer", lambda _: " "), "an empty text in answer"),
    "text answer a number": (
        TOFU,
        cell("answer", lambda a: a and str(len(a)).encode()),
        'full+tofu/8: "19"',
    ),
    "perturbed names null": (ASK, cell("perturbed_names", lambda _: None), "is not a list of texts"),
    "perturbed names a text": (ASK, cell("perturbed_names", lambda _: "Eve"), "is not a list of texts"),
    "perturbed names JSON text": (ASK, cell("perturbed_names", json.dumps), None),
    "perturbed names with the right one": (ASK, cell("perturbed_names", lambda n: [*n, "di  moss"]), None),
    "perturbed names repeated": (ASK, cell("perturbed_names", lambda n: [*n, *n]), None),
    "perturbed names all right": (ASK, cell("perturbed_names", lambda _: ["Di Moss"]), "holds 0 wrong"),
    "perturbed names holding null": (ASK, cell("perturbed_names", lambda n: [*n, None]), "is not a list"),
    "options numbers": ("CLEAR/real_world", cell("options", lambda _: [1, 2]), '{"1", "2", "Kal Penn"}'),
    "world answer null": ("CLEAR/real_world", cell("answer", lambda _: None), "an empty text in answer"),
    "world question null": (
        "CLEAR/real_world",
        cell("question", lambda _: None),
        "an empty text in question",
    ),
}
ONE_ROW = {"text question null", "text answer blank", "neither half in a row"}


def damage(kind: str, data: Path) -> tuple[str, str | None]:
    """Do it; (benchmark, what is to be said)."""
    where, make, said = TABLES[kind]
    table = data / where
    (table.parent / "here.png").write_bytes(read_table(table)[0].get("image", {"bytes": b""})["bytes"])
    if make is None:
        rows = read_table(table)
        write_table(table, [*rows, rows[-1]])
    else:
        change(table, make, slice(-1, None) if kind in ONE_ROW else slice(None))
    return "clear" if where.startswith("CLEAR") else "mllmu", said


@pytest.mark.parametrize("kind", TABLES)
def test_a_kind_is_read_or_refused(kind, data, whole):
    benchmark, said = damage(kind, data)
    found, problems = read(benchmark, data)
    if problems:
        assert said and all("\n" not in line and line.startswith("--data_split_dir: ") for line in problems)
        assert any(said in line for line in problems), problems
        _, left = read(benchmark, data, skip=True)
        assert not any("--skip_bad_rows" in line for line in left), left
        return
    if said is None:
        pictures_alike = "path" in kind
        assert pictures_alike or asked(found) == asked(read(benchmark, whole)[0])
    else:
        shown = {f'{i.id}: "{i.answer}"' for items in found.values() for i in items if hasattr(i, "answer")}
        shown |= {what for what, items in found.items() if items}
        shown |= {
            "{" + ", ".join(f'"{text}"' for text in sorted(i.options.values())) + "}"
            for items in found.values() for i in items if getattr(i, "options", None)
        }  # fmt: skip
        assert said in shown, sorted(shown)[:40]


# ---------------------------------------------------------------- kinds of tables that do not fit each other
def drop(table: Path, person: str, column: str = "ID") -> None:
    write_table(table, [row for row in read_table(table) if row[column] != person])


def double(table: Path, other: Path) -> None:
    """The rows of another table are in this one, too."""
    write_table(table, read_table(table) + read_table(other))


def renamed(of: dict[str, str], column: str = "ID"):
    return cell(column, lambda name: of.get(name, name))


MLLMU, TRAINING, CLEAR = "MLLMU-Bench", "MLLMMU-Bench", "CLEAR"
LOST_ZEROS = renamed({"004": "4"})
PEOPLE = {
    "forget people by another ID in ft_Data": (
        "mllmu", lambda d: change(d / MLLMU / "ft_Data", cell("ID", int)),
        "ID 004 of forget_5 not found in ft_Data, which holds 1, 2, 3 and 1 more",
    ),
    "IDs with slashes": (
        "mllmu", lambda d: [change(t, cell("ID", lambda i: f"a/{i}")) for t in d.glob("MLL*/*")], None,
    ),
    "numbers everywhere": (
        "mllmu",
        lambda d: [change(t, cell("ID", lambda i: int(i) if i[0] == "0" else 77)) for t in d.glob("MLL*/*")],
        None,
    ),
    "forget people among those to retain": (
        "mllmu", lambda d: double(d / TRAINING / "retain_95", d / TRAINING / "forget_5"),
        "forget_5 and retain_95 share the ID 004",
    ),
    "forget people among those to retain, without their zeros": (
        "mllmu",
        lambda d: (
            change(d / TRAINING / "forget_5", LOST_ZEROS),
            double(d / TRAINING / "retain_95", d / TRAINING / "forget_5"),
        ),
        "forget_5 and retain_95 share the ID 004 (4 in retain_95)",
    ),
    "other people for training than for evaluation": (
        "mllmu", lambda d: change(d / TRAINING / "forget_5", renamed({"004": "005"})),
        "MLLMU-Bench/forget_5 and MLLMMU-Bench/forget_5 are about different people: only one has the ID 004",
    ),
    "forget people not in the pool": (
        "mllmu", lambda d: change(d / MLLMU / "Full_Set", LOST_ZEROS),
        "ID 004 of forget_5 not found in Full_Set, which holds 001, 002, 003 and 1 more",
    ),
    "retain people not in the pool": (
        "mllmu", lambda d: drop(d / MLLMU / "Full_Set", "002"),
        "ID 002 of retain_95 not found in Full_Set, which holds 001, 003, 004",
    ),
    "forget people not in the test": (
        "mllmu", lambda d: change(d / MLLMU / "Test_Set", cell("ID", int)),
        "ID 004 of forget_5 not found in Test_Set, which holds 1, 2, 3 and 1 more",
    ),
    "forget people among the celebrities": (
        "mllmu", lambda d: change(d / MLLMU / "Retain_Set", cell("ID", lambda _: "004")),
        "forget_5 and Retain_Set share the ID 004",
    ),
    "no rows in ft_Data": (
        "mllmu",
        lambda d: (
            shutil.rmtree(d / TRAINING),
            write_table(d / MLLMU / "ft_Data", [], like=d / MLLMU / "ft_Data"),
        ),
        "not found in ft_Data, which holds nobody",
    ),
    "authors among those to retain": (
        "clear", lambda d: double(d / CLEAR / "retain99", d / CLEAR / "forget01"),
        "forget01 and retain99 share the name Di Moss",
    ),
    "captions among those to retain": (
        "clear",
        lambda d: write_table(
            d / CLEAR / "retain99+tofu",
            read_table(d / CLEAR / "retain99+tofu") + read_table(d / CLEAR / "forget01+tofu")[:1],
        ),
        "forget01 and retain99+tofu share the name Di Moss",
    ),
    "text questions among those to retain": (
        "clear",
        lambda d: write_table(
            d / CLEAR / "retain99+tofu",
            read_table(d / CLEAR / "retain99+tofu") + read_table(d / CLEAR / "forget01+tofu")[-20:],
        ),
        "forget01 and retain99+tofu share the name Di Moss",
    ),
    "authors by another name in the questions": (
        "clear", lambda d: change(d / CLEAR / "forget01_perturbed", cell("name", lambda _: "D. Moss")),
        "name D. Moss of forget01_perturbed not found in forget01, which holds Di Moss",
    ),
    "authors without text": (
        "clear", lambda d: write_table(d / CLEAR / "full+tofu", read_table(d / CLEAR / "full+tofu")[:-20]),
        "name Di Moss of forget01 not found in full+tofu, which holds Ann Roe, Bo Ek, Cy Lund",
    ),
    "authors among those asked to be kept": (
        "clear", lambda d: double(d / CLEAR / "retain_perturbed", d / CLEAR / "forget01_perturbed"),
        "forget01 and retain_perturbed share the name Di Moss",
    ),
    "names in another form of Unicode": (
        "clear",
        lambda d: (
            change(d / CLEAR / "forget01", cell("name", lambda _: "Zo\u00eb")),
            change(d / CLEAR / "forget01_perturbed", cell("name", lambda _: "Zoe\u0308 ")),
        ),
        "name Zo\u00eb of forget01 not found in full+tofu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PEOPLE)
def test_tables_that_do_not_fit_are_told_by_name(kind, data):
    benchmark, make, said = PEOPLE[kind]
    make(data)
    found, problems = read(benchmark, data)
    assert [line for line in problems if said and said in line] or (said is None and not problems), problems
    assert "Zo\u00eb of forget01_perturbed" not in "".join(problems), "the same name in another form"
    if kind == "IDs with slashes":
        assert {s.person for s in found["reference"]} == {"a/001", "a/002", "a/003"}
    if kind == "numbers everywhere":
        assert {s.person for s in found["reference"]} == {"1", "2", "3"}


# ---------------------------------------------------------------- rows left out move nobody else's questions
def test_left_out_rows_move_no_question(data, whole):
    """An author keeps their questions, whatever is left out before, and a person's keep their names."""
    table, gone = data / "CLEAR" / "retain99+tofu", ("7", "12", "30")
    rows = read_table(table)
    for k in map(int, gone):
        rows[k] |= {"answer": " "} if k != 30 else {"question": None, "answer": None}
    write_table(table, rows)
    clear, before = read("clear", data, skip=True)[0], read("clear", whole)[0]
    left = [
        q
        for q in before["questions retain"]
        if q.modality != "text" or int(q.id.split("/")[-1]) not in (7, 12, 30)
    ]
    assert asked({"q": clear["questions retain"]}) == asked({"q": left})
    of = {s.id: s.person for s in before["reference"]}
    assert all(of[s.id] == s.person for s in clear["reference"]) and len(clear["reference"]) == len(of) - 3

    change(data / TRAIN, first_pair(Answer=""))
    change(data / EVAL, options(B=""))
    found, before = read("mllmu", data, skip=True)[0], read("mllmu", whole)[0]
    for what, gone in (
        ("forget", "forget_5/004/0"),
        ("questions forget", "forget/004/classification/image/0"),
    ):
        assert [i.id for i in found[what]] == [i.id for i in before[what] if i.id != gone]


MISSING = [[9], [9, 30], range(8, 28), [*range(18, 37), 50], range(9, 68, 4)]


@pytest.mark.parametrize("gone", MISSING)
def test_authors_of_a_table_with_missing_rows(data, whole, gone):
    """Blocks of twenty do not hold where rows are missing; names in the texts do."""
    table = data / "CLEAR" / "retain99+tofu"
    rows = read_table(table)
    write_table(table, [row for k, row in enumerate(rows, start=2) if k not in gone])
    found, _ = read("clear", data)
    by_text = {(s.question, s.answer): s.person for s in read("clear", whole)[0]["reference"]}
    assert all(by_text[s.question, s.answer] == s.person for s in found["reference"])


# ---------------------------------------------------------------- files
ONLY = "train-00000-of-00001.parquet"
FILES = {
    "a shard missing": lambda t: (t / ONLY).rename(t / "train-00000-of-00002.parquet"),
    "a second shard cut off": lambda t: (
        write_table(t, read_table(t), shards=2) / "train-00001-of-00002.parquet"
    ).write_bytes(b"PAR1 and no more"),
    "a second shard with other columns": lambda t: shutil.copy(
        t.parents[1] / "CLEAR" / "real_faces" / ONLY,
        (t / ONLY).rename(t / "b.parquet").with_name("a.parquet"),
    ),
    "broken inside": lambda t: break_inside(t / ONLY),
    "two columns of one name": lambda t: two_columns(t / ONLY),
    "empty file": lambda t: (t / ONLY).write_bytes(b""),
    "a folder of that name": lambda t: (
        (t / ONLY).unlink(), (t / ONLY).mkdir()
    ),
    "a saved data set without its files": lambda t: (
        (t / ONLY).unlink(),
        [(t / name).write_text("{}") for name in ("state.json", "dataset_info.json")],
    ),
}  # fmt: skip


def break_inside(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[8 : len(content) // 2] = os.urandom(len(content) // 2 - 8)
    file.write_bytes(content)


def two_columns(file: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    pq.write_table(table.append_column("image", table.column("image")), file)


@pytest.mark.parametrize("where", ["MLLMMU-Bench/forget_5", "CLEAR/forget01"])
@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_not_whole(kind, where, data):
    FILES[kind](data / where)
    _, problems = read("clear" if where.startswith("CLEAR") else "mllmu", data)
    name = where.split("/")[1]
    assert problems and all("\n" not in line for line in problems)
    assert any(name in line for line in problems), problems


# ---------------------------------------------------------------- anything at all
TEXTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["", " ", "None", "nan", "001", "1", "a/b", "\u200b", "Oslo", "A"])
)
NUMBERS = st.one_of(st.integers(-(2**40), 2**40), st.floats(width=32), st.booleans())
KINDS_OF_CELL = {  # cells of one arrow type each
    "text": TEXTS,
    "int": st.integers(-(2**40), 2**40),
    "float": st.floats(),
    "bool": st.booleans(),
    "bytes": st.binary(max_size=12),
    "texts": st.lists(st.none() | TEXTS, max_size=4),
    "ints": st.lists(st.integers(0, 255), max_size=4),
    "struct": st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=4), "path": st.none() | TEXTS}),
    "structs": st.lists(
        st.none() | st.fixed_dictionaries(dict.fromkeys(("Question", "Answer"), st.none() | TEXTS)),
        max_size=3,
    ),
    "json": st.recursive(
        st.none() | TEXTS | NUMBERS,
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Question", "Answer", "Options", "Correct_Answer", "A", "B", "Type", "Ground_Truth",
                 "Image_Textual_Questions", "Pure_Text_Questions"]
            ), inner, max_size=4,
        ),
        max_leaves=12,
    ).map(json.dumps),
}  # fmt: skip
COLUMNS = [
    ("MLLMMU-Bench/forget_5", ("image", "ID", "metadata")),
    ("MLLMU-Bench/forget_5", ("image", "ID", "Classification_Task", "Generation_Task", "Mask_Task")),
    ("MLLMU-Bench/Test_Set", ("images", "ID", "Classification_Task")),
    ("CLEAR/forget01", ("image", "caption", "name")),
    ("CLEAR/retain99+tofu", ("image", "caption", "question", "answer")),
    ("CLEAR/forget01_perturbed", ("name", "perturbed_names", "perturbed_captions", "paraphrased_caption")),
    ("CLEAR/real_world", ("image", "answer", "options", "question")),
]


@st.composite
def columns_of_cells(draw):
    """(table, column, cells of one type)."""
    where, names = draw(st.sampled_from(COLUMNS))
    kind = draw(st.sampled_from(sorted(KINDS_OF_CELL)))
    return (
        where,
        draw(st.sampled_from(names)),
        draw(st.lists(st.none() | KINDS_OF_CELL[kind], min_size=1, max_size=8)),
    )


@pytest.mark.parametrize("skip", [False, True])
def test_any_cells_are_read_or_refused(whole, tmp_path, skip):
    print(f"HOSTILE_SEED={SEED}")
    work = tmp_path / "data"

    @few
    @seed(SEED)
    @given(columns_of_cells())
    def any_cells(damaged):
        where, column, cells = damaged
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(whole, work)
        rows = read_table(work / where)
        for k, row in enumerate(rows):
            row[column] = cells[k % len(cells)]
        write_table(work / where, rows)
        found, problems = read("clear" if where.startswith("CLEAR") else "mllmu", work, skip)
        assert all("\n" not in line and line.startswith("--data_split_dir: ") for line in problems), problems
        items = [item for part in found.values() for item in part]
        assert all(
            isinstance(text, str) and text.strip() for i in items for text in (i.question, i.person, i.id)
        )
        assert problems or all(found.values())
        assert not skip or not any("--skip_bad_rows" in line for line in problems)

    any_cells()


@given(st.lists(st.text(min_size=1, max_size=6) | st.integers(0, 999).map(str), min_size=5, max_size=5))
def any_people(whole, work, ids):
    """The same new ID for a person in all tables: everybody is told apart, or they are not people."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work)
    new = dict(zip([*NAMES, "Kal_Penn"], ids))
    for table in work.glob("MLL*/*"):
        change(table, renamed(new))
    found, problems = read("mllmu", work)
    assert all("\n" not in line and line.startswith("--data_split_dir: ") for line in problems), problems
    if not problems:
        assert len({item.person for item in found["full_set"]}) == 4
        gone = {item.person for item in found["forget"]}
        assert len(gone) == 1 and not gone & {s.person for s in found["reference"] + found["retain"]}
        assert {q.person for q in found["questions test"]} == gone
        assert len(found["reference"]) == 3 * 3


@given(st.lists(st.integers(0, 79), unique=True, max_size=40))
def any_rows_missing(whole, work, gone):
    """Text questions of `full+tofu` that name somebody are theirs, whichever rows are missing or empty."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole / "CLEAR", work / "CLEAR")
    rows = read_table(work / "CLEAR" / "full+tofu")
    for k in gone[::2]:
        rows[8 + k] |= {"question": None, "answer": None}
    write_table(work / "CLEAR" / "full+tofu", [row for k, row in enumerate(rows, -8) if k not in gone[1::2]])
    bench = CLEARBench(str(work), 1, Problems(), skip_bad_rows=True)
    samples = [sample for sample in bench.finetune() if sample.picture is None]
    assert len(samples) == 80 - len(gone) and not bench.problems.lines
    for sample in samples:
        named = [name for name in NAMES.values() if name in sample.question]
        assert not named or sample.person == named[0], sample


@given(st.dictionaries(st.sampled_from([*"ABCDab", "E ", "x1", ""]), st.none() | TEXTS, max_size=5), TEXTS)
def any_options(whole, work, choices, letter):
    """A multiple-choice question that is asked has a question, a right option, and another one."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work)
    make = mcq(Options=json.dumps(choices), Correct_Answer=letter)
    as_text = lambda row: {"Classification_Task": json.dumps(make(row)["Classification_Task"])}
    change(work / EVAL, as_text)
    bench = MLLMUBench(str(work), 5, Problems())
    asked = [q for q in bench.questions("forget", 1) if q.task == "classification"]
    assert len(asked) == 3 or len(bench.problems.lines) == 1, bench.problems.lines
    for q in asked:
        assert q.question.strip() and q.options[q.truth].strip() and len(set(q.options.values())) > 1
        assert all(len(name) == 1 and name == name.upper() for name in q.options)


@pytest.mark.parametrize("what", [any_people, any_rows_missing, any_options], ids=lambda what: what.__name__)
def test_anything_at_all(what, whole, tmp_path):
    print(f"HOSTILE_SEED={SEED}")
    few(seed(SEED)(what))(whole, tmp_path / "data")


def test_portraits_of_odd_tables(data):
    """A page shows whom the readers show; it needs no picture."""
    from eval.results.portraits import Portrait, portraits

    there = {Portrait("forget_5", "004"), Portrait("retain_95", "2"), Portrait("Test_Set", "004", 1)}
    gone = {Portrait("Full_Set", "001"), Portrait("Retain_Set", "Kal_Penn"), Portrait("forget_5", "9")}
    folder = data / "MLLMU-Bench"
    change(folder / "forget_5", cell("image", lambda c: c["bytes"]))
    change(folder / "retain_95", cell("ID", int))
    change(folder / "Full_Set", cell("image", lambda _: None))
    FILES["broken inside"](folder / "Retain_Set")
    assert portraits(folder, there | gone).keys() == there


# ---------------------------------------------------------------- every command that reads tables
SCRIPTS = [
    str(path.relative_to(ROOT))
    for pattern in ("MLLMU_*.py", "CLEAR_*.py", "data_process/*_gen_mask.py", "eval/*_eval.py")
    for path in sorted(ROOT.glob(pattern))
]
BY_SCRIPT = {  # a damage that every script of the benchmark meets, and what is said
    "mllmu": lambda data: [
        change(data / "MLLMMU-Bench" / name, cell("ID", lambda _: None)) for name in ("forget_5", "retain_95")
    ] + [
        change(data / "MLLMU-Bench" / name, cell("ID", lambda _: None)) for name in ("forget_5", "ft_Data")
    ],
    "clear": lambda data: [
        change(data / "CLEAR" / name, cell("caption", lambda _: None))
        for name in ("forget01", "full+tofu", "retain99+tofu")
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["answer NaN", "right letter absent", "perturbed names null"])
def test_check_data_says_what_the_readers_say(kind, data, capsys):
    """On tables whose headers are as published, cells aside: the same words, for both benchmarks."""
    benchmark, said = damage(kind, data)
    check_data = load_script("data_process/check_data.py")
    mistakes = check_data.read(benchmark, str(data), (RATIO[benchmark],))
    _, problems = read(benchmark, data)
    told = [line.removeprefix("--data_split_dir: ") for line in problems]
    assert any(said in line for line in mistakes) and set(told) <= set(mistakes)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_refuses_in_lines(script, data, tmp_path, capsys):
    benchmark = "clear" if "CLEAR" in script else "mllmu"
    BY_SCRIPT[benchmark](data)
    argv = ["--data_split_dir", data, "--forget_ratio", RATIO[benchmark]]
    if "eval/" in script:
        argv += ["--evaluated_model", "nowhere"]
    else:
        argv += ["--model_id", "nowhere", "--save_dir", tmp_path / "out"]
    if "manifold" in script:
        argv += ["--grad_mask_path", "nowhere"]
    with pytest.raises(SystemExit) as end:
        run_script(script, *argv)
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and all(line.startswith("error: --") for line in said)
    word = "row 0: an empty text in ID" if benchmark == "mllmu" else " row 0: "
    assert any(word in line for line in said), said
    assert not list(tmp_path.glob("*out*")) and not (ROOT / "nowhere").exists()


def refused(capsys, script: str, *argv) -> list[str]:
    """The lines of a script that ends with exit code 2."""
    with pytest.raises(SystemExit) as end:
        run_script(script, *argv)
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and said and all(line.startswith("error: --") for line in said), said
    return said


def test_few_shot_shows_nobody_to_forget(data, capsys):
    """Whom Full_Set has by another ID could be shown."""
    change(data / "MLLMU-Bench" / "Full_Set", cell("ID", int))
    argv = ["--data_split_dir", data, "--forget_ratio", 5, "--evaluated_model", "nowhere"]
    said = refused(capsys, "eval/MLLMU_eval.py", *argv, "--shot", "few_shot", "--splits", "retain")
    assert any("ID 004 of forget_5 not found in Full_Set, which holds 1, 2, 3" in line for line in said)


def test_more_shots_than_there_are(data, capsys):
    argv = ["--data_split_dir", data, "--forget_ratio", 5, "--evaluated_model", "nowhere"]
    said = refused(capsys, "eval/MLLMU_eval.py", *argv, "--shot", "few_shot", "--shots", 3)
    assert any(line.startswith("error: --shots: 3, but ") and "at most 2" in line for line in said), said


@pytest.mark.parametrize("kind", ["empty file", "broken inside", "no text"])
def test_the_tokenizers_text(kind, data, tmp_path, capsys):
    table = data / "CLEAR" / "real_faces"
    FILES[kind](table) if kind in FILES else write_table(table, [{"a": 1}])
    argv = ["--family", "llava", "--text", table, "--save_dir", tmp_path / "tiny"]
    said = refused(capsys, "nano/make_tiny_model.py", *argv)
    assert said[0].startswith("error: --text: ") and not (tmp_path / "tiny").exists()

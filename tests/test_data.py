"""The reader on the layouts that people have on disk, and what it says when something is missing."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import RATIO, picture_cell, read_table, sample, write_table

from utils.cli import Problems
from utils.data import Question, fingerprint
from utils.mllmu import MLLMUBench
from utils.reading.tables import parquet_files, shard_problem

KEEP = f"retain_{100 - RATIO}"
FORGET = f"forget_{RATIO}"


def bench_of(folder, ratio=RATIO, skip=False) -> MLLMUBench:
    return MLLMUBench(str(folder), ratio, Problems(), skip)


def texts(samples) -> list[tuple[str, str, bytes | None]]:
    return [(s.question, s.answer, s.picture and s.picture.data) for s in samples]


def metadata(*pairs) -> str:
    return json.dumps([{"ID": "001", "Question": q, "Answer": a} for q, a in pairs])


def people(folder) -> list[str]:
    return list(dict.fromkeys(row["ID"] for row in read_table(folder)))


@pytest.fixture
def copy(nano, tmp_path):
    """A copy of the nano benchmark that a test may damage."""
    shutil.copytree(nano, tmp_path / "data")
    return tmp_path / "data"


# ---------------------------------------------------------------- where the tables lie
def test_any_folder_of_the_benchmark_will_do(nano):
    found = []
    for given in (nano / "MLLMU-Bench", nano / "MLLMMU-Bench", nano):
        bench = bench_of(given)
        found.append(
            [
                texts(bench.forget()),
                texts(bench.retain()),
                texts(bench.finetune()),
                texts(bench.text_knowledge()),
            ]
        )
        found[-1] += [
            [q.id for q in bench.questions(split, 1)] for split in ("forget", "test", "retain", "real")
        ]
        assert not bench.problems.lines and not bench.notes
    assert found[0] == found[1] == found[2]
    assert all(found[0])


def test_a_nano_benchmark_calls_itself_nano(nano, copy):
    for given in (nano, nano / "MLLMU-Bench", nano / "MLLMMU-Bench", nano / "MLLMU-Bench" / "ft_Data"):
        assert bench_of(given).name == "nano MLLMU-Bench"
    for marker in copy.rglob("nano.json"):
        marker.unlink()
    assert bench_of(copy).name == "MLLMU-Bench"


def test_ft_data_itself(nano):
    bench = bench_of(nano / "MLLMU-Bench" / "ft_Data")
    assert texts(bench.finetune()) == texts(bench_of(nano / "MLLMU-Bench").finetune())
    assert texts(bench.forget()) == texts(bench_of(nano).forget())
    assert not bench.problems.lines


def test_forget_and_retain_share_nobody(nano):
    bench = bench_of(nano)
    who = lambda samples: {s.id.split("/")[1] for s in samples}
    forget, retain = who(bench.forget()), who(bench.retain())
    assert len(forget) == 2 and len(retain) == 8 and not forget & retain
    assert forget == bench.forget_people()


def test_ids_come_in_order_and_once(nano):
    bench = bench_of(nano)
    for samples in (bench.forget(), bench.retain(), bench.finetune(), bench.text_knowledge()):
        assert len({s.id for s in samples}) == len(samples)
    expected = [f"{FORGET}/{p}/{k}" for p in people(nano / "MLLMMU-Bench" / FORGET) for k in range(15)]
    assert [s.id for s in bench.forget()] == expected
    questions = bench.questions("retain", 1)
    assert len({q.id for q in questions}) == len(questions) == 8 * 18
    assert list(dict.fromkeys(q.person for q in questions)) == people(nano / "MLLMU-Bench" / KEEP)


def test_text_rows_of_ft_data(nano):
    """A row with a null image gives text-only questions to fine-tuning, and none to the forget and retain
    VQA."""
    bench = bench_of(nano)
    everyone, rows = bench.finetune(), read_table(nano / "MLLMU-Bench" / "ft_Data")
    for text_only in (True, False):
        asked = [len(json.loads(r["metadata"])) for r in rows if (r["image"] is None) == text_only]
        assert sum((s.picture is None) == text_only for s in everyone) == sum(asked) >= 10 * 15
    assert all(s.picture is not None for s in bench.forget() + bench.retain())


def test_text_knowledge_answers_with_the_right_options_text(nano):
    row = read_table(nano / "MLLMU-Bench" / "Full_Set")[3]
    item = row["Classification_Task"]["Pure_Text_Questions"][1]
    samples = {s.id: s for s in bench_of(nano).text_knowledge()}
    found = samples[f"Full_Set/{row['ID']}/text/1"]
    assert (found.question, found.answer) == (item["Question"], item["Options"][item["Correct_Answer"]])
    assert found.picture is None and len(samples) == 10 * 5


def test_a_share_of_the_people_to_retain(nano):
    """Whole people, the same ones in every command, and all of a smaller share in a larger one."""
    whole = bench_of(nano).retain()
    shares = {percent: bench_of(nano).retain(percent) for percent in (1, 25, 50, 100)}
    people = {percent: {s.person for s in samples} for percent, samples in shares.items()}
    assert [len(found) for found in people.values()] == [1, 2, 4, 8] and shares[100] == whole
    assert people[1] < people[25] < people[50] < people[100]
    assert shares[50] == [s for s in whole if s.person in people[50]]


def test_the_retrained_model_may_keep_what_is_told_in_text(nano, copy):
    forget = bench_of(nano).forget_people()
    without, kept = bench_of(nano).reference(), bench_of(nano).reference(keep_text=True)
    assert not {s.person for s in without} & forget
    theirs = [s for s in kept if s.person in forget]
    assert {s.person for s in theirs} == forget and all(s.picture is None for s in theirs)
    assert [s for s in kept if s.person not in forget] == without
    table = copy / "MLLMU-Bench" / "ft_Data"
    write_table(table, [row for row in read_table(table) if row["image"]], like=table)
    bench = bench_of(copy)
    bench.reference(keep_text=True)
    (line,) = bench.problems.lines
    assert line.startswith("--keep_text: ft_Data has no text-only questions about")


# ---------------------------------------------------------------- without a metadata column
def test_metadata_only_in_ft_data(copy, nano):
    shutil.rmtree(copy / "MLLMMU-Bench")
    bench = bench_of(copy / "MLLMU-Bench")
    samples = bench.forget()
    assert not bench.problems.lines
    assert {s.id.split("/")[1] for s in samples} == bench.forget_people()
    assert len(samples) == 2 * 15 and all(s.picture for s in samples)
    assert len(bench.notes) == 1 and "ft_Data" in bench.notes[0] and FORGET in bench.notes[0]
    assert sorted(texts(samples)) == sorted(texts(bench_of(nano).forget()))


def test_metadata_nowhere(copy):
    shutil.rmtree(copy / "MLLMMU-Bench")
    shutil.rmtree(copy / "MLLMU-Bench" / "ft_Data")
    bench = bench_of(copy)
    rows = read_table(copy / "MLLMU-Bench" / FORGET)
    assert [(s.question, s.answer) for s in bench.forget()] == [(r["question"], r["answer"]) for r in rows]
    assert not bench.problems.lines
    assert len(bench.notes) == 1 and "own question and answer" in bench.notes[0]
    assert len(bench.finetune()) == 10
    assert any("no ft_Data" in note for note in bench.notes)


def test_somebody_missing_in_ft_data_is_named(copy):
    shutil.rmtree(copy / "MLLMMU-Bench")
    table, gone = copy / "MLLMU-Bench" / "ft_Data", people(copy / "MLLMU-Bench" / FORGET)[0]
    write_table(table, [r for r in read_table(table) if r["ID"] != gone], like=table)
    bench = bench_of(copy)
    bench.forget()
    assert len(bench.problems.lines) == 1 and f"ID {gone}" in bench.problems.lines[0]


# ---------------------------------------------------------------- formats
def test_save_to_disk_folder(copy, nano):
    from datasets import Dataset

    for name in (f"MLLMMU-Bench/{FORGET}", "MLLMU-Bench/Full_Set", "MLLMU-Bench/Test_Set"):
        files = [str(f) for f in sorted((nano / name).glob("*.parquet"))]
        data = Dataset.from_parquet(files, cache_dir=str(copy / "cache"))
        shutil.rmtree(copy / name)
        data.save_to_disk(str(copy / name))
    ours, theirs = bench_of(copy), bench_of(nano)
    assert texts(ours.forget()) == texts(theirs.forget())
    assert texts(ours.text_knowledge()) == texts(theirs.text_knowledge())
    assert [(q.id, q.picture.data if q.picture else None) for q in ours.questions("test", 3)] == [
        (q.id, q.picture.data if q.picture else None) for q in theirs.questions("test", 3)
    ]
    assert not ours.problems.lines


def test_a_copy_of_a_shard_is_told(tmp_path):
    folder = tmp_path / "forget_5"
    folder.mkdir()
    for name in ("train-00000-of-00002.parquet", "train-00000-of-00002 (1).parquet"):
        (folder / name).touch()
    assert "(1).parquet beside files" in shard_problem(parquet_files(folder))
    assert shard_problem([folder / "mine.parquet", folder / "other.parquet"]) is None


def test_shards_are_read_in_order(copy, nano):
    table = copy / "MLLMMU-Bench" / KEEP
    write_table(table, read_table(table), like=table, shards=3)
    assert texts(bench_of(copy).retain()) == texts(bench_of(nano).retain())


def test_hand_made_tables(tmp_path):
    """Nothing but the columns that are needed, two pictures of one person, odd extra columns."""
    rows = [
        {"image": picture_cell(colour="red"), "ID": "001", "metadata": metadata(("Who?", "Ann"), ("Where?",
        "Oslo")), "x": 1},
        {"image": picture_cell(colour="blue"), "ID": "001", "metadata": metadata(("Who?", "Ann")), "x": 2},
    ]  # fmt: skip
    write_table(tmp_path / "b" / "forget_5", rows)
    bench = bench_of(tmp_path / "b", 5)
    samples = bench.forget()
    assert [s.id for s in samples] == ["forget_5/001/0", "forget_5/001/1", "forget_5/001/2"]
    assert [s.picture.data for s in samples] == [rows[0]["image"]["bytes"]] * 2 + [rows[1]["image"]["bytes"]]
    assert [(s.question, s.answer) for s in samples] == [("Who?", "Ann"), ("Where?", "Oslo"), ("Who?", "Ann")]


# ---------------------------------------------------------------- the test split
def test_a_seed_picks_the_view(nano):
    views = {
        row["ID"]: [cell["bytes"] for cell in row["images"]]
        for row in read_table(nano / "MLLMU-Bench" / "Test_Set")
    }
    chosen = set()
    for seed in range(6):
        first, again = bench_of(nano).questions("test", seed), bench_of(nano).questions("test", seed)
        assert first == again
        of_person = {}
        for q in first:
            if q.modality == "image":
                assert q.picture.data == views[q.person][q.picture_ref["view"]]
                assert q.picture_ref["table"] == "Test_Set" and q.picture_ref["ID"] == q.person
                of_person.setdefault(q.person, set()).add(q.picture_ref["view"])
            else:
                assert q.picture is None and q.picture_ref is None
        assert all(len(v) == 1 for v in of_person.values()), "one view per person"
        chosen.add(tuple(sorted((p, *v) for p, v in of_person.items())))
        assert set(of_person) == bench_of(nano).forget_people()
    assert len(chosen) > 1


def test_the_view_depends_on_nobody_else(nano):
    few, many = bench_of(nano, 5).questions("test", 7), bench_of(nano, 15).questions("test", 7)
    view = lambda qs: {q.person: q.picture_ref["view"] for q in qs if q.picture}
    assert all(view(many).get(p, v) == v for p, v in view(few).items())


def test_questions_are_the_tables(nano):
    row = read_table(nano / "MLLMU-Bench" / "Retain_Set")[0]
    mine = [q for q in bench_of(nano).questions("real", 1) if q.person == row["ID"]]
    of = lambda task, modality: [q for q in mine if (q.task, q.modality) == (task, modality)]
    for column, modality in (("Image_Textual_Questions", "image"), ("Pure_Text_Questions", "text")):
        items = row["Classification_Task"][column]
        assert [(q.question, q.truth, q.options) for q in of("classification", modality)] == [
            (i["Question"], i["Correct_Answer"], i["Options"]) for i in items
        ]
    for column, task in (("Generation_Task", "generation"), ("Mask_Task", "cloze")):
        for kind, modality in (("Image_Textual", "image"), ("Pure_Text", "text")):
            items = [i for i in row[column] if i["Type"] == kind]
            assert [(q.question, q.truth) for q in of(task, modality)] == [
                (i["Question"], i["Ground_Truth"]) for i in items
            ]
            assert items
    assert mine[0].picture_ref == {"table": "Retain_Set", "ID": row["ID"], "view": 0}


# ---------------------------------------------------------------- what is wrong is said
def test_a_missing_column_names_its_table_and_who_has_it(copy):
    shutil.rmtree(copy / "MLLMU-Bench" / "Full_Set")
    table = copy / "MLLMU-Bench" / "Full_Set"
    write_table(table, [{"ID": "001", "image": picture_cell()}])
    bench = bench_of(copy / "MLLMU-Bench")
    bench.text_knowledge()
    (line,) = bench.problems.lines
    assert "Full_Set" in line and "Classification_Task" in line and "Retain_Set" in line
    assert line.startswith("--data_split_dir")


def test_a_missing_table_is_named(copy):
    shutil.rmtree(copy / "MLLMU-Bench" / "Test_Set")
    bench = bench_of(copy)
    bench.questions("test", 1)
    assert bench.problems.lines == [f"--data_split_dir: no table Test_Set in {copy} nor beside it"]


def break_picture(folder, k: int, content=b"not a picture"):
    rows = read_table(folder)
    rows[k]["image"] = {"bytes": content, "path": "x.png"}
    write_table(folder, rows, like=folder)
    return rows[k]["ID"]


@pytest.mark.parametrize("kind", ["garbage", "cut"])
def test_an_unreadable_image_is_named_by_its_row(copy, kind, capsys):
    table = copy / "MLLMMU-Bench" / KEEP
    whole = read_table(table)[2]["image"]["bytes"]
    person = break_picture(table, 2, b"not a picture" if kind == "garbage" else whole[: len(whole) // 2])
    bench = bench_of(copy)
    bench.retain()
    (line,) = bench.problems.lines
    assert f"{KEEP} row 2 (ID {person})" in line and "--skip_bad_rows" in line
    skipping = bench_of(copy, skip=True)
    samples = skipping.retain()
    assert not skipping.problems.lines and len(samples) == 7 * 15
    assert person not in {s.id.split("/")[1] for s in samples}
    assert "skipped 1 " in capsys.readouterr().out + " ".join(skipping.notes)


def test_broken_pictures_do_not_hide_each_other(copy):
    table = copy / "MLLMMU-Bench" / KEEP
    for k in (1, 4):
        break_picture(table, k)
    bench = bench_of(copy)
    bench.retain()
    assert (
        len(bench.problems.lines) == 2
        and "row 1 " in bench.problems.lines[0]
        and "row 4 " in bench.problems.lines[1]
    )


@pytest.mark.parametrize(
    "text", ["not json", "{}", '["a"]', '[{"Question": "q"}]', None, '[{"Question": "", "Answer": "a"}]', "3"]
)
def test_bad_metadata_is_named_by_its_row(copy, text):
    table = copy / "MLLMMU-Bench" / FORGET
    rows = read_table(table)
    rows[1]["metadata"] = text
    write_table(table, rows, like=table)
    bench = bench_of(copy)
    bench.forget()
    assert len(bench.problems.lines) == 1
    assert f"{FORGET} row 1 (ID {rows[1]['ID']})" in bench.problems.lines[0]
    skipping = bench_of(copy, skip=True)
    assert len(skipping.forget()) == 15 and not skipping.problems.lines
    assert any(f"{FORGET} row 1" in note for note in skipping.notes)


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("Classification_Task", lambda t: t["Pure_Text_Questions"][0].update(Correct_Answer="E"), "'E'"),
        ("Mask_Task", lambda t: t[0].update(Question="no blank here"), "no blank"),
        ("Mask_Task", lambda t: t[0].update(Ground_Truth=""), "empty text"),
        ("Generation_Task", lambda t: t[0].update(Type="Other"), "'Other'"),
    ],
)
def test_bad_questions_are_named_by_their_row(copy, column, change, words):
    table = copy / "MLLMU-Bench" / FORGET
    rows = read_table(table)
    change(rows[1][column])
    write_table(table, rows, like=table)
    bench = bench_of(copy)
    bench.questions("forget", 1)
    (line,) = bench.problems.lines
    assert words in line and f"{FORGET} row 1 (ID {rows[1]['ID']})" in line
    skipping = bench_of(copy, skip=True)
    assert len(skipping.questions("forget", 1)) == 35 and not skipping.problems.lines


def test_an_option_that_is_none_is_left_out(copy):
    table = copy / "MLLMU-Bench" / FORGET
    rows = read_table(table)
    item = rows[0]["Classification_Task"]["Image_Textual_Questions"][0]
    wrong = next(letter for letter in "ABCD" if letter != item["Correct_Answer"])
    item["Options"][wrong] = None
    write_table(table, rows, like=table)
    question = bench_of(copy).questions("forget", 1)[0]
    assert wrong not in question.options and len(question.options) == 3


@pytest.mark.parametrize("where", ["MLLMMU-Bench", "MLLMU-Bench"])
def test_an_empty_split_is_said(copy, where):
    if where == "MLLMU-Bench":  # without metadata: the people come from ft_Data
        shutil.rmtree(copy / "MLLMMU-Bench")
    write_table(copy / where / FORGET, [], like=copy / where / FORGET)
    bench = bench_of(copy)
    assert bench.forget() == []
    assert bench.problems.lines == [f"--data_split_dir: {FORGET} gives no questions at all"]


def test_a_wrong_ratio(nano):
    bench = bench_of(nano, 7)
    assert (bench.forget(), bench.retain()) == ([], [])
    assert len(bench.problems.lines) == 1 and bench.problems.lines[0].startswith("--forget_ratio")


def test_a_wrong_folder_and_a_wrong_ratio_are_told_together(tmp_path):
    bench = bench_of(tmp_path / "nowhere", 7)
    assert [line.split(":")[0] for line in bench.problems.lines] == ["--data_split_dir", "--forget_ratio"]


def test_a_folder_without_tables(tmp_path):
    (tmp_path / "x").mkdir()
    bench = bench_of(tmp_path / "x")
    bench.forget()
    assert len(bench.problems.lines) == 1 and "no tables in" in bench.problems.lines[0]


def test_a_file_that_is_no_parquet_is_named(copy):
    (copy / "MLLMMU-Bench" / FORGET / "train-00000-of-00001.parquet").write_bytes(b"version https://git-lfs")
    bench = bench_of(copy)
    bench.forget()
    assert len(bench.problems.lines) == 1 and f"{FORGET}" in bench.problems.lines[0]


# ---------------------------------------------------------------- fingerprints
def test_fingerprint_changes_with_any_change():
    items = [sample("q1", "a1", picture_cell(), "i1"), sample("q2", "a2", None, "i2")]
    first = fingerprint(items)
    assert first == fingerprint([sample("q1", "a1", picture_cell(), "i1"), sample("q2", "a2", None, "i2")])
    changed = [
        [sample("q", "a1", picture_cell(), "i1"), items[1]],
        [sample("q1", "a", picture_cell(), "i1"), items[1]],
        [sample("q1", "a1", picture_cell(colour="blue"), "i1"), items[1]],
        [sample("q1", "a1", None, "i1"), items[1]],
        [sample("q1", "a1", picture_cell(), "i"), items[1]],
        items[::-1],
        items[:1],
        [*items, items[1]],
    ]
    found = [fingerprint(x) for x in changed]
    assert len({first, *found}) == len(changed) + 1 and all(len(f) == 16 for f in found)


def test_fingerprint_of_questions():
    make = lambda truth="A", options=("x", "y"): [
        Question("i", "p", "forget", "classification", "text", "q", truth, dict(zip("AB", options)))
    ]
    found = {fingerprint(make()), fingerprint(make("B")), fingerprint(make(options=("y", "x")))}
    assert len(found) == 3


def test_schema_of_the_nano_tables_is_the_published_one(nano):
    names = lambda table: pq.read_schema(next((nano / table).glob("*.parquet"))).names
    tasks = ["Classification_Task", "Generation_Task", "Mask_Task"]
    life = ["biography", "question", "answer"]
    assert names("MLLMU-Bench/Full_Set") == ["image", "ID", "Directory", *life, *tasks]
    assert names("MLLMU-Bench/forget_5") == ["image", "ID", *life, *tasks]
    assert names("MLLMU-Bench/Test_Set") == ["ID", "images", *tasks]
    assert names("MLLMMU-Bench/retain_95") == ["image", "ID", "metadata"]
    assert pa.types.is_string(pq.read_schema(next((nano / "MLLMU-Bench/ft_Data").glob("*"))).field("ID").type)

"""download.py against a hub that is not there, and check_data.py on whole and on broken folders."""

import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, load_script, read_table, run_script, write_table

from data_process.hub import tables as layout
from data_process.hub.on_disk import inspect


@pytest.fixture
def data(nano, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(nano, tmp_path / "data", ignore=shutil.ignore_patterns("untrained")))


def run(capsys, script: str, *argv) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a script of data_process."""
    code = 0
    try:
        run_script(f"data_process/{script}", *argv)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def check(capsys, *argv) -> tuple[int, str, list[str]]:
    """(exit code, printed, mistakes) of check_data.py."""
    code, out, err = run(capsys, "check_data.py", *argv)
    return code, out, [line for line in err.splitlines() if line.startswith("error: ")]


def one_mistake(capsys, *argv) -> str:
    code, _, mistakes = check(capsys, *argv)
    assert code == 1
    assert len(mistakes) == 1, mistakes
    return mistakes[0]


# ---------------------------------------------------------------- the published layout
def test_published_rows_add_up():
    rows = {t.name: t.rows for t in layout.MLLMU.tables}
    for ratio in (5, 10, 15):
        assert rows[f"forget_{ratio}"] + rows[f"retain_{100 - ratio}"] == rows["Full_Set"] == 500
    rows = {t.name: t.rows for t in layout.CLEAR.tables}
    for name, authors in (
        ("forget01", 2),
        ("forget05", 10),
        ("forget10", 20),
        ("retain99", 198),
        ("full", 200),
    ):
        assert rows[f"{name}+tofu"] == rows[name] + 20 * authors
    assert len(layout.CLEAR.tables) == 21
    assert len(layout.MLLMU.tables) == 10


def test_types_are_compared_whatever_their_arrow_variant():
    import pyarrow as pa

    image = pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())])
    assert layout.kind(image) == layout.IMAGE
    assert layout.kind(pa.large_list(pa.large_string())) == layout.TEXTS
    assert layout.kind(pa.int64()) != layout.TEXT


def test_every_table_is_in_the_document():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for benchmark in layout.BENCHMARKS:
        for name in layout.names([benchmark]):
            assert f"`{name}`" in text, name
    for table in (*layout.MLLMU.tables, *layout.CLEAR.tables):
        assert f"{table.rows:,}" in text, table.name


# ---------------------------------------------------------------- check_data.py
def test_whole_folders(nano, capsys):
    for given in (
        nano,
        nano / "MLLMU-Bench",
        nano / "MLLMMU-Bench",
        nano / "CLEAR",
        nano / "CLEAR/full",
    ):
        code, printed, mistakes = check(capsys, "--data_dir", given)
        assert (code, mistakes) == (0, [])
        assert "a nano benchmark" in printed
    assert "CLEAR/full+tofu" in printed
    code, printed, _ = check(capsys, "--data_dir", nano, "--images", "True", "--forget_ratio", 10)
    assert code == 0
    assert "MLLMU-Bench/forget_10" in printed
    assert "forget_5" not in printed
    assert "pictures decoded" in printed


def test_the_published_numbers_of_rows_are_recognised(tmp_path, capsys):
    import pyarrow as pa

    sys_schemas = load_script("nano/make_nano.py").schemas()
    ids = [f"{k:03d}" for k in range(1, 501)]
    rows = lambda chosen: [dict.fromkeys(("image", "Directory"), None) | {"ID": i} for i in chosen]

    def write(name, chosen, kind):
        full = [{field.name: row.get(field.name) for field in sys_schemas[kind]} for row in rows(chosen)]
        table = pa.Table.from_pylist(full, schema=sys_schemas[kind])
        (tmp_path / name).mkdir(exist_ok=True)
        import pyarrow.parquet as pq

        pq.write_table(table, tmp_path / name / "train-00000-of-00001.parquet")

    write("Full_Set", ids, "full")
    write("Retain_Set", [f"Name_{k}" for k in range(153)], "full")
    write("Test_Set", ids, "test")
    write("ft_Data", ids, "train")
    for ratio in (5, 10, 15):
        write(f"forget_{ratio}", ids[: 5 * ratio], "split")
        write(f"retain_{100 - ratio}", ids[5 * ratio :], "split")
    code, printed, mistakes = check(capsys, "--data_dir", tmp_path)
    assert (code, mistakes) == (0, [])
    assert printed.count("as published") == 11  # ten tables and the verdict
    assert "from ft_Data" in printed  # no training splits

    write("Retain_Set", [f"Name_{k}" for k in range(100)], "full")
    assert "100 rows, published: 153" in one_mistake(capsys, "--data_dir", tmp_path)


def test_a_missing_table_is_named_with_the_command_that_fetches_it(data, capsys):
    shutil.rmtree(data / "MLLMU-Bench/Test_Set")
    line = one_mistake(capsys, "--data_dir", data / "MLLMU-Bench")
    assert "download.py --benchmark mllmu --tables Test_Set" in line
    assert check(capsys, "--data_dir", data / "MLLMU-Bench", "--tables", "forget_5,retain_95")[0] == 0


def test_a_missing_shard(data, capsys):
    (data / "MLLMU-Bench/Test_Set/train-00001-of-00002.parquet").unlink()
    line = one_mistake(capsys, "--data_dir", data / "MLLMU-Bench")
    assert "Test_Set: train-00001-of-00002.parquet missing" in line


def test_shards_of_two_downloads(data, capsys):
    folder = data / "CLEAR/real_faces"
    shutil.copy(folder / "train-00000-of-00001.parquet", folder / "train-00000-of-00002.parquet")
    assert "two downloads" in one_mistake(capsys, "--data_dir", data / "CLEAR")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (None, "no whole parquet"),
    ],
)
def test_a_file_that_is_no_parquet(data, capsys, content, said):
    file = data / "CLEAR/forget05/train-00000-of-00001.parquet"
    file.write_bytes(content or file.read_bytes()[:-100])
    assert said in one_mistake(capsys, "--data_dir", data / "CLEAR")


def test_numbers_as_ids_and_missing_columns(data, capsys):
    folder = data / "MLLMU-Bench/Retain_Set"
    rows = read_table(folder)
    write_table(folder, [row | {"ID": k} for k, row in enumerate(rows)])
    line = one_mistake(capsys, "--data_dir", data / "MLLMU-Bench")
    assert "column ID is int64" in line
    write_table(folder, [{k: v for k, v in row.items() if k != "Mask_Task"} for row in rows])
    assert "no column Mask_Task" in one_mistake(capsys, "--data_dir", data / "MLLMU-Bench")


def test_people_on_both_sides_or_on_none(data, capsys):
    forget, retain = data / "MLLMU-Bench/forget_15", data / "MLLMU-Bench/retain_85"
    here, there = read_table(forget), read_table(retain)
    write_table(forget, [*here, there[0]], like=forget)
    _, _, mistakes = check(capsys, "--data_dir", data / "MLLMU-Bench")
    assert any(f"forget_15 and retain_85 share {there[0]['ID']}" in line for line in mistakes)
    assert any("forget_15 for training, against forget_15 for evaluation" in line for line in mistakes)
    write_table(forget, here[1:], like=forget)
    _, _, mistakes = check(capsys, "--data_dir", data / "MLLMU-Bench")
    assert any(f"against Full_Set, lacks {here[0]['ID']}" in line for line in mistakes)


def test_a_person_without_test_pictures_or_training_rows(data, capsys):
    test = data / "MLLMU-Bench/Test_Set"
    write_table(test, read_table(test)[1:], like=test)
    assert "Test_Set, against Full_Set, lacks 001" in one_mistake(capsys, "--data_dir", data / "MLLMU-Bench")


def test_clear_names_and_counts(data, capsys):
    forget, both = data / "CLEAR/forget10", data / "CLEAR/forget10+tofu"
    rows = read_table(both)
    text = [row for row in rows if row["question"]]
    write_table(both, [row for row in rows if not row["question"]] + text[:-1], like=both)
    _, _, mistakes = check(capsys, "--data_dir", data / "CLEAR")
    assert any("no multiple of 20" in line for line in mistakes)
    write_table(both, rows, like=both)
    stranger = read_table(data / "CLEAR/retain90")[0]
    write_table(forget, [*read_table(forget), stranger], like=forget)
    _, _, mistakes = check(capsys, "--data_dir", data / "CLEAR")
    assert any(f"forget10 and retain90 share {stranger['name']}" in line for line in mistakes)


def test_perturbed_rows_are_of_the_forget_people(data, capsys):
    folder = data / "CLEAR/forget10_perturbed"
    rows = read_table(folder)
    write_table(folder, [rows[0] | {"name": "Nobody"}, *rows[1:]], like=folder)
    line = one_mistake(capsys, "--data_dir", data / "CLEAR")
    assert "forget10_perturbed has Nobody, who are not in forget10" in line


def test_odd_counts_of_published_tables_are_notes():
    from data_process.hub.on_disk import Found
    from data_process.hub.relations import Relations

    published = next(t for t in layout.CLEAR.tables if t.name == "forget10")
    relations = Relations([], nano=False)
    relations._odd("odd", Found(published, Path("forget10"), rows=379))
    assert relations.notes and not relations.mistakes
    relations._odd("odd", Found(published, Path("forget10"), rows=5))
    assert relations.mistakes


def test_a_ratios_own_perturbed_table_kept_by_save_to_disk(data, capsys):
    from datasets import Dataset

    table = data / "CLEAR/retain_perturbed"
    Dataset.from_parquet(str(next(table.glob("*.parquet")))).save_to_disk(data / "CLEAR/retain95_perturbed")
    rows = len(read_table(table))
    shutil.rmtree(table)
    code, printed, _ = check(capsys, "--data_dir", data / "CLEAR")
    assert code == 0
    line = next(line for line in printed.splitlines() if "retain95_perturbed" in line)
    assert line.split()[1:3] == [str(rows), "6"]
    assert "retain_perturbed" not in printed.replace("retain95_perturbed", "")


def test_pictures_are_decoded_on_request(data, capsys):
    folder = data / "MLLMU-Bench/forget_5"
    rows = read_table(folder)
    rows[0]["image"]["bytes"] = rows[0]["image"]["bytes"][:200]
    write_table(folder, rows, like=folder)
    assert check(capsys, "--data_dir", data / "MLLMU-Bench")[0] == 0
    line = one_mistake(capsys, "--data_dir", data / "MLLMU-Bench", "--images", "True")
    assert "forget_5: row 0: unreadable image" in line


def test_training_splits_without_ids_are_noted(data, capsys):
    for name in ("forget_5", "retain_95"):
        folder = data / "MLLMMU-Bench" / name
        write_table(folder, [{k: row[k] for k in ("image", "metadata")} for row in read_table(folder)])
    code, printed, _ = check(capsys, "--data_dir", data / "MLLMMU-Bench")
    assert code == 0
    assert "MLLMMU-Bench/forget_5 has no ID" in printed


def test_nothing_to_check(tmp_path, capsys):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for given, said in ((tmp_path / "a/b", "holds no table"), (tmp_path / "none", "no such folder")):
        with pytest.raises(SystemExit) as stop:
            run_script("data_process/check_data.py", "--data_dir", given)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    (tmp_path / "a/b/Full_Set").mkdir()
    found = inspect(layout.MLLMU.tables[0], tmp_path / "a/b/Full_Set")
    assert "an empty folder" in found.mistakes[0]


# ---------------------------------------------------------------- download.py
@pytest.fixture
def hub(monkeypatch, nano):
    """Stands in for the hub: hands out the nano tables; `calls` are the requests, `error` is raised."""
    import huggingface_hub

    class Hub:
        calls, error = [], None

        def snapshot_download(self, name, *, repo_type, local_dir, allow_patterns):
            self.calls.append((name, repo_type, Path(local_dir), allow_patterns))
            if self.error:
                raise self.error
            for pattern in allow_patterns:
                source = nano / Path(local_dir).name / pattern.removesuffix("/*")
                if source.is_dir():
                    shutil.copytree(source, Path(local_dir) / source.name, dirs_exist_ok=True)

    stand_in = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    return stand_in


def fetch(capsys, *argv) -> tuple[int, str, str]:
    return run(capsys, "download.py", *argv)


def test_download_puts_tables_where_the_suite_looks(hub, tmp_path, capsys):
    code, printed, _ = fetch(capsys, "--benchmark", "mllmu", "--forget_ratio", "05", "--save_dir", tmp_path)
    assert code == 0
    wanted = ["forget_5/*", "retain_95/*"]
    shared = ["Full_Set/*", "Retain_Set/*", "Test_Set/*", "ft_Data/*"]
    assert hub.calls == [
        ("MLLMMU/MLLMU-Bench", "dataset", tmp_path / "MLLMU-Bench", shared + wanted),
        ("MLLMMU/baseline_train_split", "model", tmp_path / "MLLMMU-Bench", wanted),
    ]
    assert "free on the disk" in printed
    suggested = next(line for line in printed.splitlines() if "check_data.py" in line).split()
    assert check(capsys, *suggested[2:])[0] == 0  # what it suggests runs, and finds all


def test_download_of_some_tables_and_dry_run(hub, tmp_path, capsys):
    fetch(capsys, "--benchmark", "clear", "--tables", "real_faces,full+tofu", "--save_dir", tmp_path)
    assert hub.calls == [("therem/CLEAR", "dataset", tmp_path / "CLEAR", ["full+tofu/*", "real_faces/*"])]
    code, printed, _ = fetch(capsys, "--benchmark", "all", "--save_dir", tmp_path, "--dry_run", "True")
    assert code == 0
    assert len(hub.calls) == 1
    assert "size not known" in printed


def hub_error(kind: str, status: int):
    from huggingface_hub import errors

    network = sys.modules[errors.Response.__module__.partition(".")[0]]  # httpx, or its successor
    if kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError"):
        return getattr(errors, kind)("no network\nat all")
    response = network.Response(status, request=network.Request("GET", "https://huggingface.co"))
    return getattr(errors, kind)("refused\nlong story", response=response)


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("OfflineModeIsEnabled", 0, "HF_HUB_OFFLINE is set"),
        ("LocalEntryNotFoundError", 0, "cannot be reached (offline?)"),
        ("GatedRepoError", 403, "set HF_TOKEN"),
        ("RepositoryNotFoundError", 404, "not found, or not permitted"),
        ("HfHubHTTPError", 401, "not permitted"),
        ("HfHubHTTPError", 503, "run the same command again"),
    ],
)
def test_download_failures_are_one_line_each(hub, tmp_path, capsys, kind, status, said):
    hub.error = hub_error(kind, status)
    code, _, err = fetch(capsys, "--benchmark", "clear", "--save_dir", tmp_path)
    assert code == 1
    assert said in err
    assert len(err.splitlines()) == 1


def test_download_broken_off_by_the_system(hub, tmp_path, capsys):
    hub.error = ConnectionResetError("connection reset")
    code, _, err = fetch(capsys, "--benchmark", "clear", "--save_dir", tmp_path)
    assert code == 1
    assert "broken off (connection reset)" in err


def test_download_that_brings_nothing_is_no_success(hub, tmp_path, capsys):
    code, _, err = fetch(capsys, "--benchmark", "clear", "--tables", "data", "--save_dir", tmp_path)
    assert code == 1
    assert "did not bring data" in err


def test_download_refuses_a_full_disk_and_wrong_names(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1, 10**6))
    code, _, err = fetch(capsys, "--benchmark", "mllmu", "--save_dir", tmp_path)
    assert (code, hub.calls) == (2, [])
    assert "too little free space" in err
    code, _, err = fetch(capsys, "--benchmark", "clear", "--tables", "forget_5", "--forget_ratio", 15)
    assert code == 2
    assert "clear has no table forget_5" in err
    assert "15 is none of 1, 5, 10" in err

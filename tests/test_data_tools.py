"""download.py against a hub that is not there, and check_data.py on whole and on broken folders."""

import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, load_script, read_table, run_script, write_table

from data_process.hub import tables as layout
from data_process.hub.on_disk import Found, inspect


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


def test_every_table_is_in_the_document():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for benchmark in layout.BENCHMARKS:
        for name in layout.names([benchmark]):
            assert f"`{name}`" in text, name
    for table in (*layout.MLLMU.tables, *layout.CLEAR.tables):
        assert f"{table.rows:,}" in text, table.name


# ---------------------------------------------------------------- check_data.py
def test_whole_folders(nano, capsys):
    for folder in ("", "MLLMU-Bench", "MLLMMU-Bench", "CLEAR", "CLEAR/full"):
        code, printed, mistakes = check(capsys, "--data_dir", nano / folder)
        assert (code, mistakes) == (0, [])
        assert "a nano benchmark" in printed
    assert "CLEAR/full+tofu" in printed
    code, printed, _ = check(capsys, "--data_dir", nano, "--forget_ratio", 10)
    assert code == 0
    assert "MLLMU-Bench/forget_10" in printed
    assert "forget_5" not in printed


def change(folder: Path, rows, like: bool = True) -> None:
    """Write what `rows` makes of the table's rows, with the same types or with those of the new rows."""
    write_table(folder, rows(read_table(folder)), like=folder if like else None)


DAMAGE = {
    "Test_Set: train-00001-of-00002.parquet missing": lambda data: (
        data / "MLLMU-Bench/Test_Set/train-00001-of-00002.parquet"
    ).unlink(),
    "real_faces: files of two downloads": lambda data: shutil.copy(
        data / "CLEAR/real_faces/train-00000-of-00001.parquet",
        data / "CLEAR/real_faces/train-00000-of-00002.parquet",
    ),
    "no whole parquet file": lambda data: (data / "CLEAR/forget05/train-00000-of-00001.parquet").write_bytes(
        b"version https://git-lfs"
    ),
    "column ID is int64": lambda data: change(
        data / "MLLMU-Bench/Retain_Set", lambda rows: [r | {"ID": k} for k, r in enumerate(rows)], like=False
    ),
    "no column Mask_Task": lambda data: change(
        data / "MLLMU-Bench/Retain_Set",
        lambda rows: [{k: v for k, v in r.items() if k != "Mask_Task"} for r in rows],
        like=False,
    ),
    "tables Test_Set": lambda data: shutil.rmtree(data / "MLLMU-Bench/Test_Set"),
    "Test_Set, against Full_Set, lacks 001": lambda data: change(
        data / "MLLMU-Bench/Test_Set", lambda rows: rows[1:]
    ),
    "forget_15 and retain_85 for training, against Full_Set, lack": lambda data: change(
        data / "MLLMMU-Bench/forget_15", lambda rows: rows[-1:]
    ),
    "forget10_perturbed, against forget10, adds Nobody": lambda data: change(
        data / "CLEAR/forget10_perturbed", lambda rows: [rows[0] | {"name": "Nobody"}, *rows[1:]]
    ),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_damage_is_named(said, data, capsys):
    DAMAGE[said](data)
    code, _, mistakes = check(capsys, "--data_dir", data)
    assert code == 1
    assert any(said in line for line in mistakes)


def test_nobody_is_both_to_forget_and_to_retain(data, capsys):
    for forget, retain, column in (
        ("MLLMU-Bench/forget_15", "MLLMU-Bench/retain_85", "ID"),
        ("CLEAR/forget10", "CLEAR/retain90", "name"),
    ):
        stranger = read_table(data / retain)[0]
        write_table(data / forget, [*read_table(data / forget), stranger], like=data / forget)
        _, _, mistakes = check(capsys, "--data_dir", data)
        names = f"{Path(forget).name} and {Path(retain).name}"
        assert any(f"{names} share {stranger[column]}" in line for line in mistakes)
    assert any("forget_15 for training, against forget_15 for evaluation" in line for line in mistakes)


def test_numbers_of_rows_are_held_against_the_published_ones():
    tables = {t.name: t for t in layout.MLLMU.tables}
    found = [Found(t, Path(name), rows=t.rows) for name, t in tables.items()]
    check_rows = load_script("data_process/check_data.py").check_rows
    assert "as published, where" in check_rows(found, nano=False)
    found[1].rows = 100
    assert "but for the tables below" in check_rows(found, nano=False)
    assert "100 rows, published: 153" in found[1].mistakes[0]
    found = [Found(t, Path(name), rows=3) for name, t in tables.items()]
    assert "an extract" in check_rows(found, nano=False)
    assert not any(f.mistakes for f in found)


def test_a_ratios_own_perturbed_table_kept_by_save_to_disk(data, capsys):
    from datasets import Dataset

    table = data / "CLEAR/retain_perturbed"
    Dataset.from_parquet(str(next(table.glob("*.parquet")))).save_to_disk(data / "CLEAR/retain95_perturbed")
    rows = len(read_table(table))
    shutil.rmtree(table)
    code, printed, _ = check(capsys, "--data_dir", data / "CLEAR", "--forget_ratio", "5")
    assert code == 0
    line = next(line for line in printed.splitlines() if "retain95_perturbed" in line)
    assert line.split()[1:3] == [str(rows), "6"]
    assert "retain_perturbed" not in printed.replace("retain95_perturbed", "")


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


@pytest.mark.parametrize(("benchmark", "other"), [("clear", "MLLMU-Bench"), ("mllmu", "CLEAR")])
def test_the_other_benchmark_s_folder(benchmark, other, data, capsys):
    """Its neighbour, which has the tables, is not checked, nor read, in its place."""
    with pytest.raises(SystemExit) as stop:
        run_script("data_process/check_data.py", "--data_dir", data / other, "--benchmark", benchmark)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: --benchmark: ") and "not there is any of" in line
    table = {"clear": "forget05_perturbed", "mllmu": "Full_Set"}[benchmark]
    assert table in line
    script, title = {"clear": ("CLEAR_GA.py", "CLEAR"), "mllmu": ("MLLMU_GA.py", "MLLMU-Bench")}[benchmark]
    with pytest.raises(SystemExit):
        run_script(script, "--data_split_dir", data / other, "--model_id", "no", "--save_dir", data / "out")
    assert f"--data_split_dir: no tables of {title}, but " in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[" * 99_999, "{}"])
def test_a_broken_saved_table(content, data, capsys):
    table = data / "MLLMU-Bench" / "Full_Set"
    shutil.rmtree(table)
    table.mkdir()
    (table / "state.json").write_text(content)
    (table / "dataset_info.json").write_text(content)
    code, _, errors = check(capsys, "--data_dir", data / "MLLMU-Bench", "--forget_ratio", "5")
    (line,) = [line for line in errors if "Full_Set: " in line]
    assert code == 1 and line.endswith("delete it and download it again")


def test_rows_are_read_as_the_scripts_read_them(data, capsys):
    """What is wrong inside of a cell, in the words of the readers; and a good picture is no mistake."""
    table = data / "MLLMU-Bench/Test_Set"
    rows = read_table(table)
    rows[-1]["images"].append({"bytes": b"no picture", "path": "x.png"})
    write_table(table, rows, like=table, shards=2)
    table = data / "CLEAR/forget05_perturbed"
    change(table, lambda rows: [rows[0] | {"perturbed_names": [None]}, *rows[1:]])
    code, printed, mistakes = check(capsys, "--data_dir", data, "--forget_ratio", "5")
    assert code == 1 and len(mistakes) == 2 and "reading rows and pictures, forget 5 %" in printed
    last = f"Test_Set row {len(rows) - 1} (ID {rows[-1]['ID']}), image {len(rows[-1]['images']) - 1}"
    assert mistakes[0].startswith(f"error: {last}: unreadable image")
    assert mistakes[1].startswith("error: forget05_perturbed row 0: perturbed_names is not a list of texts")
    code, printed, _ = check(capsys, "--data_dir", data, "--tables", "Test_Set")
    assert code == 0 and "reading" not in printed, "--tables looks at headers only"


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
    found = check(capsys, *suggested[2:])  # what it suggests runs, and finds all
    assert found[0] == 0, found


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

"""Published numbers: the data, who may stand beside whom, and the warnings."""

import math

from conftest import ROOT, run_script
from test_table import write

from eval.results import published
from eval.results.read import load_results
from eval.tasks import METRICS, SPLITS
from utils.cli import Problems

NUMBERS = published.load()


def results(*folders):
    problems = Problems()
    found = load_results(folders, problems)
    assert not problems.lines
    return found


# ---------------------------------------------------------------- the data
def test_the_files_are_tidy():
    assert len(NUMBERS) > 700
    assert {n.unit for n in NUMBERS} == {"%", "0..1", "s", "score"}
    for n in NUMBERS:
        assert n.source and n.benchmark and n.method and n.metric, n
        assert n.forget_ratio in (None, 1, 5, 10, 15), n
        assert 0 <= n.value <= {"%": 100, "0..1": 1}.get(n.unit, math.inf), n
        assert not n.url or n.url.startswith("https://"), n
        if n.metric in METRICS:
            assert n.unit == ("%" if METRICS[n.metric].counted else "0..1"), n
            assert n.split in SPLITS, n
    key = lambda n: (n.source, n.benchmark, n.model, n.forget_ratio, n.method, n.split, n.metric, n.note)
    assert len({key(n) for n in NUMBERS}) == len(NUMBERS), "a number is there twice"


def test_the_nine_cells_and_some_others():
    nine = [n for n in NUMBERS if n.source.startswith("MMUnlearner") and "wizwand" in n.source]
    assert [n.value for n in nine] == [36.2, 68.9, 0.348, 0.338, 94.7, 29.0, 31.2, 52.6, 54.4]
    assert all(n.second_hand and n.model == "" and n.forget_ratio is None for n in nine)
    find = lambda **want: [n for n in NUMBERS if all(getattr(n, k) == v for k, v in want.items())]
    (cell,) = find(
        source="MIP-Editor (AAAI 2026), Table 1", benchmark="CLEAR", model="LLaVA-1.5-7B", method="Vanilla",
        split="retain", metric="vqa",
    )  # fmt: skip
    assert cell.value == 43.54
    (cell,) = find(
        method="MMUnlearner", metric="vqa", split="retain", benchmark="MLLMU-Bench", forget_ratio=5
    )
    assert cell.value == 41.9


def test_the_sampling_errors_in_the_document():
    text = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    table = text.split("## Sampling error")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if "±" not in line and "---" not in line]
    rows = [[cell.strip() for cell in row] for row in rows if row]
    assert len(rows) == 13
    for row in rows:
        numbers = [float(cell) for cell in row[2:] if cell]
        for n, error in zip(numbers[::2], numbers[1::2], strict=True):
            assert abs(published.standard_error(n / 2, n) - error) <= 0.0501, row


# ---------------------------------------------------------------- beside ours
def test_only_the_same_thing_stands_beside_ours(tmp_path):
    (ours,) = results(write(tmp_path / "manifold", forget=(42, 66)))
    found = published.beside(ours, NUMBERS)
    assert {(n.method, n.benchmark) for n in found} == {("MMUnlearner", "MLLMU-Bench")}
    assert {n.forget_ratio for n in found} == {5, None}
    # not where the modality is not stated
    assert {n.metric for n in found} == {"vqa", "qa", "generation_image"}
    ten, own = results(write(tmp_path / "GA_Diff", forget_ratio=10), write(tmp_path / "mine"))
    assert {n.forget_ratio for n in published.beside(ten, NUMBERS)} == {None}
    assert published.beside(own, NUMBERS) == []
    assert "no published number is known for this setting" in published.comparison([own])


def test_likelihood_is_another_task(tmp_path):
    (ours,) = results(write(tmp_path / "GA", mcq="likelihood"))
    assert not {n.metric for n in published.beside(ours, NUMBERS)} & {"vqa", "qa"}
    assert "another task" in published.comparison([ours])


def test_nano_is_never_set_beside(tmp_path):
    found = results(write(tmp_path / "GA", benchmark="nano MLLMU-Bench"))
    text = published.comparison(found)
    assert text.splitlines()[2] == published.NOT_NANO
    assert "MIP-Editor" not in text
    assert "|" not in text


def test_text_has_sources_warnings_and_no_filled_cell(tmp_path):
    found = results(
        write(tmp_path / "vanilla", forget=(68, 64)), write(tmp_path / "GA_Diff", forget=(40, 53))
    )
    text = published.comparison(found)
    assert "| 54.4 (68/125) ±4.5 | 56.8        | -2.4 ≈       | LLaVA-1.5-7B" in text
    assert "| 32.0 (40/125) ±4.2 | 54.4        | -22.4        | LLaVA-1.5-7B" in text
    assert "second-hand" in text
    assert "https://github.com/PreckLi/MIP-Editor" in text
    assert "retain VQA n=125, published: 2375" in text  # the made-up results are an extract
    assert "nan" not in text


def test_few_shot_leaves_out_one_person(tmp_path):
    shown = {"correct": 60, "total": 120, "accuracy": 50.0}
    splits = {"forget": {"classification": {"image": shown, "text": shown}}}
    few, zero = results(
        write(tmp_path / "a/vanilla", splits=splits, shot="few_shot"),
        write(tmp_path / "b/vanilla", splits=splits),
    )
    assert "not the published number" not in published.comparison([few])
    assert "forget VQA n=120, published: 125" in published.comparison([zero])


def test_clear(tmp_path):
    count = {"correct": 68, "total": 188, "accuracy": 36.17}
    text = {"rouge1": 0.4, "rouge2": 0.1, "rougeL": 0.35, "bleu": 0.1, "total": 200}
    splits = {"forget": {"classification": {"image": count}, "generation": {"text": text}}}
    (ours,) = results(write(tmp_path / "manifold", benchmark="CLEAR", splits=splits))
    found = published.beside(ours, NUMBERS)
    assert [(n.metric, n.value) for n in found] == [("vqa", 36.2), ("generation_text", 0.348)]
    assert "not the published number" not in published.comparison([ours])


def test_the_flag_of_the_table(tmp_path, capsys):
    folder = write(tmp_path / "vanilla")
    run_script("eval/table.py", folder)
    assert "Published numbers" not in capsys.readouterr().out
    run_script("eval/table.py", folder, "--published", "True")
    assert "**Published numbers beside ours**" in capsys.readouterr().out

"""The table on small made-up result folders. Run: python -m pytest tests/test_table.py"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eval import table
from eval.results import frame, load_results, tradeoff, tradeoff_plot
from utils.cli import Problems


def count(correct, total):
    return {"correct": correct, "total": total, "accuracy": round(100 * correct / total, 2)}


def score(rouge, total=50):
    return {"rouge1": rouge, "rouge2": 0.1, "rougeL": rouge, "bleu": 0.05, "total": total}


def write(folder, forget=(64, 70), retain=(60, 66), rouge=0.5, splits=None, shot="zero_shot", **settings):
    """<folder>/<shot>/forgetNN/results.json; forget, retain: right VQA and QA answers of 125 questions."""
    settings = {"benchmark": "MLLMU-Bench", "forget_ratio": 5, "mcq": "letter", "seed": 42, **settings}
    out = folder / shot / f"forget{settings['forget_ratio']:02d}"
    out.mkdir(parents=True)
    made = {
        name: {"classification": {"image": count(vqa, 125), "text": count(qa, 125)}}
        for name, (vqa, qa) in (("forget", forget), ("retain", retain))
    }
    made["forget"]["generation"] = {"image": score(rouge)}
    made["forget"]["cloze"] = {"text": count(13, 50)}
    data = {"model": str(folder), "method": folder.name, "shot": shot, **settings, "splits": splits or made}
    (out / "results.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def runs(tmp_path):
    write(tmp_path / "vanilla")
    write(tmp_path / "GA_Diff", forget=(39, 50), retain=(41, 44), rouge=0.41)
    write(tmp_path / "manifold", forget=(41, 70), retain=(65, 66), rouge=0.3)
    return tmp_path


def load(*paths, **options):
    problems = Problems()
    results = load_results(paths, problems, **options)
    assert problems.lines == []
    return results


def run(capsys, *arguments):
    table.main(table.parse_args([str(argument) for argument in arguments]))
    return capsys.readouterr().out


def three(runs):
    return runs / "vanilla", runs / "GA_Diff", runs / "manifold"


def test_frame_holds_counts_and_differences(runs):
    data = frame(load(*three(runs)))
    assert list(data.index) == ["vanilla", "GA_Diff", "manifold"]
    wanted = {"value": 31.2, "correct": 39, "total": 125, "difference": -20.0}
    assert {name: data.loc["GA_Diff", ("forget", "vqa", name)] for name in wanted} == wanted
    assert data.loc["GA_Diff", ("forget", "generation_image", "difference")] == pytest.approx(-0.09)
    assert data["forget", "vqa", "difference"].isna().tolist() == [True, False, False]
    assert ("forget", "generation_image", "correct") not in data.columns  # a mean score has no right answers
    assert ("retain", "cloze_text", "value") not in data.columns


def test_screen_has_one_block_per_split_with_counts_and_differences(runs, capsys):
    out = run(capsys, *three(runs))
    assert "**MLLMU-Bench · forget 5 % · zero_shot · mcq by letter**" in out
    forget, retain = out.split("**retain**")
    assert "31.2 (39/125) -20.0" in forget and "0.410 (n=50) -0.090" in forget
    assert "52.0 (65/125) +4.0" in retain and "52.8 (66/125) ±0.0" in retain
    assert "VQA % ↓" in forget and "VQA % ↑" in retain
    assert "warning" not in out and "nano" not in out.lower()


def test_a_narrow_terminal_gets_narrower_tables_with_the_same_cells(runs):
    results = load(*three(runs))
    wide, narrow = table.markdown(results), table.markdown(results, width=80)
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines()))
    for cell in ("31.2 (39/125) -20.0", "0.410 (n=50) -0.090", "26.0 (13/50) ±0.0"):
        assert cell in wide and cell in narrow


def test_files(runs, capsys):
    import pandas as pd

    out = runs / "new" / "folder"
    run(capsys, *three(runs), "--csv", out / "t.csv", "--latex", out / "t.tex", "--markdown", out / "t.md")
    data = pd.read_csv(out / "t.csv", index_col="method")
    assert data.loc["GA_Diff", "forget_vqa"] == 31.2
    assert data.loc["GA_Diff", "forget_vqa_difference"] == -20.0
    assert data["forget_vqa_total"].tolist() == [125, 125, 125]
    assert data["forget_ratio"].tolist() == [5, 5, 5]
    assert "31.2 (39/125) -20.0" in (out / "t.md").read_text(encoding="utf-8")

    rows = [line for line in (out / "t.tex").read_text(encoding="utf-8").splitlines() if line.endswith(r"\\")]
    cells = {row.split(" & ")[0]: row.removesuffix(r"\\").rstrip().split(" & ")[1:] for row in rows}
    # columns: forget VQA, QA, generation image, cloze text; retain VQA, QA
    assert cells[r"GA\_Diff"] == [r"\textbf{31.2}", "40.0", "0.410", r"\textbf{26.0}", "32.8", "35.2"]
    assert cells["manifold"][:3] == ["32.8", r"\textbf{56.0}", r"\textbf{0.300}"]
    assert cells["manifold"][4:] == [r"\textbf{52.0}", r"\textbf{52.8}"]
    assert not any("textbf" in cell for cell in cells["vanilla"])  # vanilla is no contestant
    assert cells[""][-6:].count("$n=125$") == 4


def test_plot_and_tradeoff(runs, capsys):
    points = tradeoff(load(*three(runs)))
    assert points.loc["vanilla"].tolist() == [0.0, pytest.approx((56 + 48 + 52.8) / 3, abs=1e-3), True]
    assert points.loc["GA_Diff", "forgetting"] == 20.0
    assert points.loc["GA_Diff", "retention"] == pytest.approx((40 + 32.8 + 35.2) / 3, abs=1e-3)
    run(capsys, *three(runs), "--plot", runs / "tradeoff.png")
    assert (runs / "tradeoff.png").read_bytes().startswith(b"\x89PNG")


def test_plot_names_every_point_and_survives_odd_names(tmp_path):
    write(tmp_path / "vanilla")
    for name in (r"lr_$\frac$", "lr_$_{", "same"):  # equal points, TeX-like names
        write(tmp_path / name, forget=(40, 60))
    figure = tradeoff_plot(load(*sorted(tmp_path.iterdir())))
    axes = figure.axes[0]
    named = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert {"vanilla", r"lr_$\frac$", "lr_$_{", "same", "better"} <= set(named)
    boxes = list(named.values())
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert "points" in axes.get_xlabel() and "%" in axes.get_ylabel()


def test_tradeoff_of_clear_takes_rouge_for_qa(tmp_path):
    def clear(vqa, text):
        both = {"classification": {"image": count(vqa, 100)}, "generation": {"text": score(text)}}
        return {"forget": both, "retain": both}

    write(tmp_path / "vanilla", splits=clear(60, 0.4), benchmark="CLEAR")
    write(tmp_path / "GA", splits=clear(30, 0.3), benchmark="CLEAR")
    points = tradeoff(load(tmp_path / "vanilla", tmp_path / "GA"))
    assert points.loc["GA", ["forgetting", "retention"]].tolist() == [30.0, pytest.approx(30.0)]


def test_vanilla_by_flag_is_added_and_only_it_counts(runs, capsys):
    write(runs / "start", forget=(59, 70))
    out = run(capsys, runs / "vanilla", runs / "GA_Diff", "--vanilla", runs / "start")
    assert "31.2 (39/125) -16.0" in out and "51.2 (64/125) +4.0" in out
    assert [r.label for r in load(runs / "GA_Diff", vanilla=runs / "start")] == ["start", "GA_Diff"]
    listed = load(runs / "GA_Diff", runs / "start", vanilla=runs / "start")
    assert [(r.label, r.is_vanilla) for r in listed] == [("GA_Diff", False), ("start", True)]


def test_without_vanilla_one_line_says_so(runs, capsys):
    out = run(capsys, runs / "GA_Diff", runs / "manifold")
    assert out.count("No vanilla row") == 1
    assert "31.2 (39/125) |" in out
    with pytest.raises(SystemExit):
        run(capsys, runs / "GA_Diff", "--plot", runs / "x.png")
    assert "--plot: needs a vanilla row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"benchmark": "nano MLLMU-Bench"}, "different benchmarks"),
        ({"forget_ratio": 10}, "different forget ratios"),
        ({"mcq": "likelihood"}, "different multiple-choice rules"),
    ],
)
def test_mixed_rows_are_warned_about_and_not_subtracted(runs, capsys, setting, words):
    write(runs / "other", forget=(30, 30), **setting)
    out = run(capsys, *three(runs), runs / "other", "--latex", runs / "t.tex")
    warning = next(line for line in out.splitlines() if words in line)
    assert warning.startswith("warning:") and "other" in warning and "GA_Diff" in warning
    assert "no vanilla row in the same setting, so no differences, for other" in out
    assert "24.0 (30/125) |" in out and "31.2 (39/125) -20.0" in out
    assert "textbf" not in (runs / "t.tex").read_text(encoding="utf-8")


def test_other_question_counts_are_warned_about(runs, capsys):
    part = {"forget": {"classification": {"image": count(3, 10)}}}
    write(runs / "part", splits=part)
    assert "question counts than vanilla in part" in run(capsys, *three(runs), runs / "part")


def test_nano_is_named(tmp_path, capsys):
    write(tmp_path / "vanilla", benchmark="nano MLLMU-Bench")
    out = run(capsys, tmp_path / "vanilla", "--latex", tmp_path / "t.tex")
    assert "**nano MLLMU-Bench" in out and "Nano numbers" in out
    assert "nano MLLMU-Bench" in (tmp_path / "t.tex").read_text(encoding="utf-8")
    title = tradeoff_plot(load(tmp_path / "vanilla")).axes[0].get_title(loc="left")
    assert title.startswith("nano MLLMU-Bench")


def test_several_evaluations_of_one_model(runs):
    for name in ("vanilla", "GA_Diff"):
        write(runs / name, forget=(50, 50), shot="few_shot")
    both = load(runs / "vanilla", runs / "GA_Diff")
    assert [r.label for r in both] == [
        "vanilla (zero_shot)",
        "vanilla (few_shot)",
        "GA_Diff (zero_shot)",
        "GA_Diff (few_shot)",
    ]
    assert frame(both)["forget", "vqa", "difference"].tolist()[2:] == [-20.0, 0.0]
    assert [r.label for r in load(runs / "vanilla", runs / "GA_Diff", shot="few_shot")] == [
        "vanilla",
        "GA_Diff",
    ]
    assert len(load(runs / "vanilla", forget_ratio=5, shot="zero_shot")) == 1


def test_any_level_of_folder_will_do_and_counts_once(runs):
    folder = runs / "GA_Diff" / "zero_shot" / "forget05"
    for path in (folder, folder / "results.json"):
        assert [r.label for r in load(path)] == ["GA_Diff"]
    assert len(load(runs / "GA_Diff", folder)) == 1
    shutil.copytree(folder, folder.with_name("forget05.old"))  # set aside by hand: not taken unasked
    assert len(load(runs / "GA_Diff")) == 1


def test_rows_of_the_same_method_are_told_apart(tmp_path):
    for name in ("GA_slow", "GA_fast"):
        write(tmp_path / name)
        path = tmp_path / name / "zero_shot/forget05/results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "method": "GA"}))
    assert [r.label for r in load(tmp_path / "GA_slow", tmp_path / "GA_fast")] == ["GA_slow", "GA_fast"]


def test_all_mistakes_at_once(runs, capsys):
    (runs / "empty").mkdir()
    for name, text in (("broken", "{"), ("foreign", "{}")):
        (runs / name).mkdir()
        (runs / name / "results.json").write_text(text)
    paths = [runs / name for name in ("missing", "empty", "broken", "foreign", "GA_Diff")]
    with pytest.raises(SystemExit) as stopped:
        run(capsys, *paths, "--vanilla", runs / "nowhere", "--csv", runs)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"results: {runs / 'missing'}: no such folder" in error
    assert f"results: {runs / 'empty'}: no results.json in it" in error
    assert "broken/results.json is not valid JSON" in error
    assert "foreign/results.json has no 'benchmark'" in error
    assert f"--vanilla: {runs / 'nowhere'}: no such folder" in error
    assert "--csv" in error


def test_nothing_given_and_nothing_left(runs, capsys):
    with pytest.raises(SystemExit):
        run(capsys)
    assert "results: name at least one result folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(capsys, runs / "GA_Diff", "--forget_ratio", "15")
    assert "it has zero_shot/forget05" in capsys.readouterr().err


def test_as_a_user_runs_it_without_torch(runs, tmp_path):
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    code += "assert 'torch' not in sys.modules"
    script = str(ROOT / "eval" / "table.py")
    arguments = [str(path) for path in three(runs)] + ["--forget_split_ratio", "05"]
    done = subprocess.run([sys.executable, "-c", code, script, *arguments], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert "31.2 (39/125) -20.0" in done.stdout.decode("utf-8")

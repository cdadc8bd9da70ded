"""The table on small made-up result folders. Run: python -m pytest tests/test_table.py"""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from test_metrics import prediction

from eval import table
from eval.results.compare import difference, frame
from eval.results.figures import tradeoff, tradeoff_plot
from eval.results.intervals import Difference
from eval.results.read import load_results
from eval.results.remarks import remarks
from eval.results.summary import summarise
from eval.tasks import METRICS
from utils.cli import Problems
from utils.run.figures import new_figure


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


def test_numbers_that_mean_something_else_are_told(tmp_path, capsys):
    """Unreadable replies, choices below chance, another forget ratio; and the score of who never knew."""
    choices = count(1, 125) | {"unreadable": 100, "chance": 25.0, "interval": [0.0, 2.4], "people": 25}
    few = count(60, 125) | {"unreadable": 3, "chance": 25.0, "interval": [40.0, 55.0], "people": 25}
    told = lambda vqa: {"forget": {"classification": {"image": vqa}, "generation": {"text": score(0.61)}}}
    write(tmp_path / "vanilla", splits=told(few), trained={"script": "MLLMU_finetune.py", "forget_ratio": 10})
    write(tmp_path / "GA", splits=told(choices), trained={"script": "MLLMU_GA.py", "forget_ratio": 10})
    rows = load(tmp_path / "vanilla", tmp_path / "GA")
    lines = [line for line in remarks(rows) if not line.startswith("warning: forget (")]
    assert lines == [
        "warning: replies that name no option count as wrong (--mcq likelihood needs none): forget VQA"
        " (GA 100/125)",
        "warning: worse than guessing, as no model is that merely does not know; chance and rows: forget VQA"
        " 25.0 (GA 0.8)",
        "warning: other people forgotten than asked about: GA (trained at 10 %, evaluated at 5 %)",
        "Gen. is ROUGE-L of whole sentences: a model that never knew them is above 0.",
    ]
    cells = frame(rows)["forget", "vqa", "unreadable"]
    assert dict(cells) == {"vanilla": 3, "GA": 100}
    assert "0.8 (1/125, 100 unreadable)" in run(capsys, tmp_path / "vanilla", tmp_path / "GA")
    never = {"script": "MLLMU_reference.py", "forget_ratio": 5}
    write(tmp_path / "without", splits=told(count(30, 125)), trained=never)
    for knows in ({"keep_text": True}, {"vanilla_dir": "runs/vanilla"}):
        write(tmp_path / f"with {[*knows]}", splits=told(count(30, 125)), trained=never | knows)
    (line,) = [line for line in remarks(load(*sorted(tmp_path.iterdir()))) if line.startswith("Gen.")]
    assert line.endswith("a model that never knew them has text 0.610 (retrained without them) on forget.")


def test_rows_of_different_judges_are_told(tmp_path):
    judge = {"model": "m", "served": ["m-1"], "prompt": "abc"}
    write(tmp_path / "vanilla", judge=judge)
    write(tmp_path / "GA", judge=judge)
    write(tmp_path / "manifold")
    told = lambda: [line for line in remarks(load(*sorted(tmp_path.iterdir()))) if "judges" in line]
    assert told() == []
    write(tmp_path / "NPO", judge=judge | {"served": ["m-2"]})
    assert told() == [
        "warning: rows of different judges are not comparable"
        " (m-1, prompt abc: GA, vanilla; m-2, prompt abc: NPO)"
    ]


@pytest.mark.parametrize(
    "judge", ["m", [], {}, {"model": "m", "served": ["m-1"]}, {"served": [1], "prompt": "a"}]
)
def test_a_broken_entry_of_a_judge_is_told(tmp_path, judge):
    write(tmp_path / "GA", judge=judge)
    problems = Problems()
    assert load_results([tmp_path / "GA"], problems) == []
    (line,) = problems.lines
    assert line.startswith("results: .../") and 'results.json: broken entry "judge"' in line


def run(capsys, *arguments):
    table.main(table.parse_args([str(argument) for argument in arguments]))
    return capsys.readouterr().out


def three(runs):
    return runs / "vanilla", runs / "GA_Diff", runs / "manifold"


def test_frame_holds_counts_and_differences(runs):
    data = frame(load(*three(runs)))
    assert list(data.index) == ["vanilla", "GA_Diff", "MMUnlearner"]
    wanted = {"value": 31.2, "correct": 39, "total": 125, "difference": -20.0}
    assert {name: data.loc["GA_Diff", ("forget", "vqa", name)] for name in wanted} == wanted
    assert data.loc["GA_Diff", ("forget", "generation_image", "difference")] == pytest.approx(-0.09)
    assert data["forget", "vqa", "difference"].isna().tolist() == [True, False, False]
    assert ("forget", "generation_image", "correct") not in data.columns  # a mean score has no right answers
    assert ("retain", "cloze_text", "value") not in data.columns


def test_screen_has_one_block_per_split_with_counts_and_differences(runs, capsys):
    out = run(capsys, *three(runs))
    assert "**MLLMU-Bench · forget 5 % · zero_shot · multiple choice by letter**" in out
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
    assert cells["MMUnlearner"][:3] == ["32.8", r"\textbf{56.0}", r"\textbf{0.300}"]
    assert cells["MMUnlearner"][4:] == [r"\textbf{52.0}", r"\textbf{52.8}"]
    assert not any("textbf" in cell for cell in cells["vanilla"])  # vanilla is no contestant
    assert cells[""][-6:].count("$n=125$") == 4


def test_the_long_table_has_one_row_per_number(runs, capsys):
    import pandas as pd

    run(capsys, *three(runs), "--long", runs / "long.csv")
    data = pd.read_csv(runs / "long.csv")
    keys = ["model", "split", "task", "modality", "measure"]
    assert not data.duplicated(keys).any() and len(data) == 3 * (4 + 4 + 1)
    row = data.set_index(["method", "split", "task", "modality", "measure"]).loc
    vqa = row["GA_Diff", "forget", "classification", "image", "accuracy"]
    assert (vqa["value"], vqa["n"], vqa["forget_ratio"], vqa["mcq"], vqa["seed"]) == (
        31.2,
        125,
        5,
        "letter",
        42,
    )
    assert row["MMUnlearner", "forget", "generation", "image", "bleu"]["value"] == 0.05
    assert data.loc[data.vanilla, "method"].unique().tolist() == ["vanilla"] and not data.retrained.any()
    run(capsys, answered(runs / "more/vanilla", [0] * 10 + [1] * 10), "--long", runs / "long.csv")
    (row,) = pd.read_csv(runs / "long.csv").to_dict("records")
    assert (row["low"], row["high"], row["people"]) == (25.0, 75.0, 20)


def test_latex_marks_closeness_to_retrained(runs):
    """What is to be forgotten is best answered as the retrained model does, not least."""
    write(runs / "none", forget=(10, 70), retain=(30, 66))
    write(runs / "reference", forget=(40, 20), retain=(66, 66), trained={"script": "MLLMU_reference.py"})
    text = table.latex(load(*three(runs), runs / "none", runs / "reference"))
    cells = {row.split(" & ")[0]: row.split(" & ")[1:] for row in text.splitlines() if row.endswith(r"\\")}
    assert [name for name, row in cells.items() if "textbf" in row[0]] == [r"GA\_Diff", "MMUnlearner"]
    assert "textbf" in cells["none"][1] and "textbf" not in "".join(cells["retrained without them"])
    assert "closest to retrained for picture questions" in text


# ---------------------------------------------------------------- intervals
ALL = [1] * 20


def answered(folder, forget, generation=(), options=None, grade=None):
    """An evaluation with its predictions: forget[i] are the VQA answers of person i, 1 right and 0 wrong, one
    or a list; generation[i] is the ROUGE-L of person i, with a judge's `grade` of every answer if given."""
    asked = [
        prediction("forget", "classification", "image", str(p), k, correct=bool(hit), options=options)
        for p, hits in enumerate(forget)
        for k, hit in enumerate(hits if isinstance(hits, list) else [hits])
    ]
    graded = {} if grade is None else {"factuality": grade}
    asked += [
        prediction("forget", "generation", "image", str(p), scores=score(rouge) | graded)
        for p, rouge in enumerate(generation)
    ]
    out = write(folder, splits=summarise(asked)) / "zero_shot/forget05"
    (out / "predictions_forget.jsonl").write_text("".join(p.line() for p in asked))
    return folder


def warnings(text):
    return [line for line in text.splitlines() if line.startswith("warning")]


@pytest.fixture
def pair(tmp_path):
    """20 people: vanilla knows them all, GA only the last ten."""
    return answered(tmp_path / "vanilla", ALL), answered(tmp_path / "GA", [0] * 10 + [1] * 10)


def test_cells_have_the_interval_of_the_difference(pair, tmp_path, capsys):
    import pandas as pd

    out = run(capsys, *pair, "--csv", tmp_path / "t.csv")
    # 10 of 20 people lost: quantiles of Binomial(20, 1/2)
    assert "50.0 (10/20) -50.0 [-75.0, -25.0] |" in out
    assert "100.0 (20/20) [100.0, 100.0] |" in out
    assert "[low, high]: 95 % bootstrap over people" in out
    row = pd.read_csv(tmp_path / "t.csv", index_col="method").loc["GA"]
    named = {"low": 25, "high": 75, "difference": -50, "difference_low": -75, "difference_high": -25}
    assert {name: row[f"forget_vqa_{name}"] for name in named} == named
    assert "[" not in run(capsys, write(tmp_path / "old/vanilla"), write(tmp_path / "old/GA"))


def test_without_vanilla_cells_have_their_own_interval(pair, capsys):
    assert "50.0 (10/20) [25.0, 75.0] |" in run(capsys, pair[1])


def test_result_and_difference(pair):
    vanilla, ga = load(*pair)
    vqa = METRICS["vqa"]
    assert (ga.interval("forget", vqa), ga.people("forget", vqa)) == ((25.0, 75.0), 20)
    assert difference(ga, vanilla, "forget", vqa) == Difference(-50.0, [-75.0, -25.0], 20, 20)
    assert difference(ga, vanilla, "retain", vqa) is None and ga.interval("retain", vqa) is None
    old = load(*pair)[1]  # a results.json written without intervals: the answers have them
    for name in ("interval", "people"):
        del old.splits["forget"]["classification"]["image"][name]
    assert (old.interval("forget", vqa), old.people("forget", vqa)) == ((25.0, 75.0), 20)


def test_intervals_are_computed_once(pair, monkeypatch):
    from eval.results import intervals

    asked, real = [], intervals.interval
    monkeypatch.setattr(intervals, "interval", lambda scores: asked.append(1) or real(scores))
    results = load(*pair)
    for _ in range(2):
        table.markdown(results), table.csv_table(results), table.latex(results)
    assert len(asked) == 1  # the difference; the values' own are in results.json


def test_without_predictions_results_json_has_the_differences(pair, tmp_path, capsys):
    for file in tmp_path.rglob("predictions_*"):
        file.unlink()
    assert "50.0 (10/20) -50.0 |" in run(capsys, *pair)
    found = {"difference": -50.0, "interval": [-71.0, -31.0], "people": 20, "questions": 20}
    for vanilla, said in ((pair[0], "-50.0 [-71.0, -31.0] |"), (tmp_path / "another", "-50.0 |")):
        path = pair[1] / "zero_shot/forget05/results.json"
        splits = {"forget": {"classification": {"image": found}}}
        about = {"vanilla": str(vanilla / "zero_shot/forget05"), "splits": splits}
        path.write_text(json.dumps({**json.loads(path.read_text()), "differences": about}))
        assert f"50.0 (10/20) {said}" in run(capsys, *pair)


def test_other_questions_have_no_interval_and_a_warning(tmp_path, capsys):
    """NPO was asked as many, but with the options in another order; GA only three quarters of them."""
    answered(tmp_path / "vanilla", ALL, options={"A": "x", "B": "y"})
    answered(tmp_path / "NPO", [0] * 10 + [1] * 10, options={"A": "y", "B": "x"})
    answered(tmp_path / "GA", [0] * 10 + [1] * 5, options={"A": "x", "B": "y"})
    out = run(capsys, tmp_path / "vanilla", tmp_path / "NPO", tmp_path / "GA")
    assert "50.0 (10/20, 20 unreadable) -50.0 |" in out and "33.3 (5/15, 15 unreadable) -66.7 |" in out
    assert "other questions or question counts than vanilla in NPO, GA" in out
    vanilla, npo, ga = load(tmp_path / "vanilla", tmp_path / "NPO", tmp_path / "GA")
    assert difference(npo, vanilla, "forget", METRICS["vqa"]) is None
    assert difference(ga, vanilla, "forget", METRICS["vqa"]).questions == 15


def test_one_warning_per_split_names_the_cells(tmp_path, capsys):
    """One of 20 people lost is no clear difference: 0 is the upper quantile of Binomial(20, 1/20)."""
    answered(tmp_path / "vanilla", [1] * 12 + [0] * 8, [0.5, 0.1] * 10)
    answered(tmp_path / "GA", [0] + [1] * 11 + [0] * 8, [0.4, 0.2] * 10)
    answered(tmp_path / "NPO", [0] * 20, [0.4, 0.1] * 10)
    paths = [tmp_path / name for name in ("vanilla", "GA", "NPO")]
    assert warnings(run(capsys, *paths)) == [
        "warning: forget (20 people, 20 questions): no clear difference to vanilla in VQA (GA)"
    ]  # the generation of GA is shown as ±0.000
    answered(tmp_path / "KL_Min", [0] + [1] * 11 + [0] * 8, [0.5, 0.1] * 9 + [0.5, 0.4])
    answered(tmp_path / "GA_Diff", [0] * 12 + [1] + [0] * 7, [0.4, 0.1] * 10)
    (line,) = warnings(run(capsys, *paths[:2], tmp_path / "KL_Min", tmp_path / "GA_Diff"))
    assert line.endswith("in VQA (GA, KL_Min), Gen. image (KL_Min)")


def test_all_methods_are_named_as_such(tmp_path, capsys):
    answered(tmp_path / "vanilla", [1] * 12 + [0] * 8)
    for name in ("a", "b", "c"):
        answered(tmp_path / name, [0] + [1] * 11 + [0] * 8)
    (line,) = warnings(run(capsys, *(tmp_path / name for name in ("vanilla", "a", "b", "c"))))
    assert line.endswith("no clear difference to vanilla in VQA (all methods)")


def test_few_people_one_person_and_no_width(tmp_path, capsys):
    answered(tmp_path / "few/vanilla", [[1, 0]] * 4)
    answered(tmp_path / "few/GA", [[0, 0]] * 4)
    (line,) = warnings(run(capsys, tmp_path / "few/vanilla", tmp_path / "few/GA"))
    assert line == "warning: forget (4 people, 8 questions): too few for an interval to mean much"
    answered(tmp_path / "one/vanilla", [[1, 0]])
    out = run(capsys, tmp_path / "one/vanilla")
    assert "warning: forget (1 person, 2 questions): too few" in out and "50.0 (1/2) |" in out
    answered(tmp_path / "alike/vanilla", ALL)
    answered(tmp_path / "alike/GA", [0] * 20)
    (line,) = warnings(run(capsys, tmp_path / "alike/vanilla", tmp_path / "alike/GA"))
    assert line.startswith("warning: forget (20 people, 20 questions): all people alike")
    assert line.endswith("in VQA (vanilla, GA)")


def test_factuality_has_columns_where_some_result_was_judged(tmp_path, capsys):
    answered(tmp_path / "vanilla", ALL, [0.5] * 20, grade=8)
    answered(tmp_path / "GA", [0] * 10 + [1] * 10, [0.5] * 20, grade=3)
    answered(tmp_path / "NPO", [0] * 10 + [1] * 10, [0.5] * 20)
    out = run(capsys, tmp_path / "vanilla", tmp_path / "GA", tmp_path / "NPO", "--latex", tmp_path / "t.tex")
    assert "Fact. image ↓" in out and "Fact. text" not in out and "1 to 10" in out
    assert "3.00 (n=20) -5.00 [-5.00, -5.00] |" in out
    assert next(line for line in out.splitlines() if line.startswith("| NPO")).rstrip().endswith("– |")
    assert "question counts" not in out  # what was not judged was still asked
    assert "Fact" not in run(capsys, tmp_path / "NPO")
    results = load(tmp_path / "vanilla", tmp_path / "GA", tmp_path / "NPO")
    assert [r.value("forget", "factuality_image") for r in results] == [8.0, 3.0, None]
    assert results[1].interval("forget", METRICS["factuality_image"]) == (3.0, 3.0)
    for result in results:  # grades in the predictions alone are not shown
        path = result.folder / "results.json"
        path.write_text(path.read_text().replace('"factuality"', '"other"'))
    assert "Fact" not in run(capsys, tmp_path / "vanilla", tmp_path / "GA")


def test_latex_sets_unclear_numbers_in_italics(tmp_path):
    answered(tmp_path / "vanilla", [1] * 12 + [0] * 8)
    answered(tmp_path / "GA", [0] + [1] * 11 + [0] * 8)
    answered(tmp_path / "NPO", [0] * 20)
    text = table.latex(load(*(tmp_path / name for name in ("vanilla", "GA", "NPO"))))
    assert r"GA & \textit{55.0} \\" in text and r"NPO & \textbf{0.0} \\" in text and "Italics" in text
    assert "Italics" not in table.latex(load(tmp_path / "vanilla", tmp_path / "NPO"))


def test_predictions_that_cannot_be_read_are_told(pair, capsys):
    for folder, text in zip(pair, ('{"id": "cut o', '{"id": "x", "task": "cloze"}\n'), strict=True):
        with (folder / "zero_shot/forget05/predictions_forget.jsonl").open("a") as file:
            file.write(text)
    with pytest.raises(SystemExit) as stopped:
        run(capsys, *pair)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("error:") == 2
    assert "predictions_forget.jsonl, line 21: not valid JSON" in error
    assert "predictions_forget.jsonl, line 21: no prediction" in error and "'split'" in error


# ---------------------------------------------------------------- plot, vanilla, warnings
def test_plot_and_tradeoff(runs, capsys):
    """One measure an axis: forget VQA and retain VQA, as they are in the table."""
    points = {row.result.label: row for row in tradeoff(load(*three(runs)))}
    assert (points["GA_Diff"].forget.value, points["GA_Diff"].retain.value) == (31.2, 32.8)
    assert points["vanilla"].text == "vanilla: forget VQA 51.2 %, retain VQA 48.0 %"
    write(runs / "part", splits={"forget": {"classification": {"image": count(3, 10)}}})
    out = run(capsys, *three(runs), runs / "part", "--plot", runs / "tradeoff.png")
    assert (runs / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert "Not in the plot, for want of a number: part" in out


def test_plot_names_every_point_and_survives_odd_names(tmp_path):
    write(tmp_path / "vanilla")
    for name in (r"lr_$\frac$", "lr_$_{", "same"):  # equal points, TeX-like names
        write(tmp_path / name, forget=(40, 60))
    figure = tradeoff_plot(load(*sorted(tmp_path.iterdir())))
    axes = figure.axes[0]
    named = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
    assert set(named) == {"vanilla", r"lr_$\frac$", "lr_$_{", "same"}
    boxes = list(named.values())
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert "forget VQA, %" in axes.get_xlabel() and axes.get_ylabel() == "retain VQA, %"
    assert axes.get_xlim()[0] > axes.get_xlim()[1], "fewer known to the right"


def test_plot_shows_the_retrained_models_level_and_chance(tmp_path):
    splits = {
        split: {
            "classification": {"image": count(right, 100) | {"chance": 25.0, "interval": [right - 9, 99]}}
        }
        for split, right in (("forget", 30), ("retain", 90))
    }
    write(tmp_path / "reference", splits=splits, trained={"script": "MLLMU_reference.py"})
    axes = tradeoff_plot(load(tmp_path / "reference")).axes[0]
    (band,) = axes.patches
    assert sorted((band.get_x(), band.get_x() + band.get_width())) == [21, 99]
    assert {"chance", "retrained level"} < {text.get_text() for text in axes.texts}
    assert [line.get_xdata() for line in axes.lines if line.get_linestyle() == ":"] == [[25.0, 25.0]]


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
    write(runs / "part", splits={"forget": {"classification": {"image": count(3, 10)}}})
    with pytest.raises(SystemExit):
        run(capsys, runs / "part", "--plot", runs / "x.png")
    assert "--plot: no row has multiple choice about pictures" in capsys.readouterr().err


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


def test_nano_is_named(tmp_path, capsys, monkeypatch):
    write(tmp_path / "vanilla", benchmark="nano MLLMU-Bench")
    out = run(capsys, tmp_path / "vanilla", "--latex", tmp_path / "t.tex")
    assert "**nano MLLMU-Bench" in out and "Nano numbers" in out
    assert "nano MLLMU-Bench" in (tmp_path / "t.tex").read_text(encoding="utf-8")
    drawn = []
    monkeypatch.setattr(table, "tradeoff_plot", lambda *_, heading: drawn.append(heading) or new_figure(1, 1))
    run(capsys, tmp_path / "vanilla", "--plot", tmp_path / "t.png")
    assert drawn[0].startswith("nano MLLMU-Bench")


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
    assert f"results: {runs / 'empty'}: no results.json in it nor below" in error
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


# ---------------------------------------------------------------- what a verdict must not be read without
RETRAINED = {"trained": {"script": "MLLMU_reference.py", "forget_ratio": 5}}


def test_the_compact_table_warns_too(tmp_path, capsys):
    write(tmp_path / "vanilla")
    unreadable = {"classification": {"image": count(3, 125) | {"unreadable": 120, "chance": 25.0}}}
    write(
        tmp_path / "GA", splits={"forget": unreadable}, trained={"script": "MLLMU_GA.py", "forget_ratio": 10}
    )
    out = " ".join(run(capsys, tmp_path, "--brief").split())
    assert "warning: replies that name no option count as wrong" in out
    assert "GA (trained at 10 %, evaluated at 5 %)" in out


def test_several_retrained_rows_are_told(tmp_path, capsys):
    for name in ("vanilla", "one", "two"):
        write(tmp_path / name, **({} if name == "vanilla" else RETRAINED))
    out = " ".join(run(capsys, tmp_path).split())
    assert "warning: several retrained rows (one, two); compared is with one (choose by --reference)" in out


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"shots": 2}, "GA (shots 2, not 1)"),
        ({"max_new_tokens": 3}, "GA (max_new_tokens 3, not 64)"),
        ({"examples": "b"}, "GA (other solved examples)"),
        ({"data": {"forget cloze": "y"}}, "GA (other questions or pictures in forget cloze)"),
        ({"data": {"retain cloze": "y"}}, None),
        ({}, None),
    ],
)
def test_rows_that_were_asked_otherwise_are_told(own, told, tmp_path, capsys):
    of = {"shots": 1, "max_new_tokens": 64, "examples": "a", "data": {"forget cloze": "x"}}
    write(tmp_path / "vanilla", shot="few_shot", settings=of)
    write(tmp_path / "GA", shot="few_shot", settings=of | own)
    out = " ".join(run(capsys, tmp_path).split())
    assert ("asked otherwise than vanilla" in out) == (told is not None) and (told or "") in out


def test_what_there_was_to_forget_is_told_of_each_setting(tmp_path, capsys):
    for ratio, known in ((5, [0] * 20), (10, ALL)):
        for name, right in (("vanilla", ALL), ("retrained", known)):
            folder = answered(tmp_path / name / str(ratio), right)
            file = folder / "zero_shot/forget05/results.json"
            content = json.loads(file.read_text()) | {"forget_ratio": ratio, "method": name}
            file.write_text(json.dumps(content | (RETRAINED if name == "retrained" else {})))
    out = " ".join(
        run(capsys, *(tmp_path / n / r for n in ("vanilla", "retrained") for r in ("5", "10"))).split()
    )
    assert "To forget in pictures, vanilla − retrained: VQA 100 [100, 100]. (MLLMU-Bench, forget 5 %" in out
    assert "nothing to forget in pictures by VQA 0 [0, 0]" in out and "(MLLMU-Bench, forget 10 %" in out

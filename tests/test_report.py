"""The page on small made-up result folders. Run: python -m pytest tests/test_report.py"""

import base64
import copy
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import test_verdicts as verdicts
from conftest import ROOT, jsonl, write_table
from test_metrics import prediction

from data_process.coverage import layer_map
from eval import report
from eval.results import figures, portraits
from eval.results import runs as look_up
from eval.results.compare import blocks, difference
from eval.results.predictions import Prediction
from eval.results.probes import GONE, HIDDEN, NOTHING_LOST, Estimate, Finding, write_probe
from eval.results.read import load_results
from eval.results.remarks import remarks
from eval.results.summary import summarise
from eval.results.verdicts import findings
from eval.tasks import METRICS
from utils.cli import Problems

NASTY = '</script><img src=x onerror="alert(1)"> & "quotes" \u2028 {{ 7 * 7 }}'
METHODS = ("vanilla", "GA", "manifold")
LABELS = ["vanilla", "GA", "MMUnlearner"]


def picture_bytes(colour, size=400):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def questions():
    """Two people to forget, one to retain, by picture and in words; the test split has the second view."""
    options = {"A": "Paris", "B": "Rome", "C": "Oslo", "D": "Bern"}
    for split, person, table in (
        ("forget", "023", "forget_10"), ("forget", "101", "forget_10"), ("retain", "007", "retain_90"),
        ("test", "023", "Test_Set"),
    ):  # fmt: skip
        for modality in ("image", "text"):
            view = 1 if split == "test" else 0
            picture = {"table": table, "ID": person, "view": view} if modality == "image" else None
            about = {"person": person, "split": split, "modality": modality, "prompt": "", "picture": picture}
            for task, truth in (("generation", "in Rome"), ("cloze", "Rome"), ("classification", "B")):
                yield {
                    **about, "id": f"{split}/{person}/{task}/{modality}/0", "task": task, "truth": truth,
                    "question": f"Where was person {person} born?",
                    "options": options if task == "classification" else None,
                }  # fmt: skip


def answer(line, method):
    """Vanilla is right, GA always wrong, manifold wrong on pictures of the people to forget."""
    wrong = method == "GA" or (
        method == "manifold" and line["modality"] == "image" and line["split"] in ("forget", "test")
    )
    if line["task"] == "classification":
        return {"reply": NASTY if wrong else "B", "choice": None if wrong else "B", "correct": not wrong}
    if line["task"] == "cloze":
        return {"reply": "Oslo" if wrong else "Rome", "choice": None, "correct": not wrong}
    scores = dict.fromkeys(("rouge1", "rouge2", "rougeL", "bleu"), 0.25 if wrong else 1.0)
    return {"reply": "no", "choice": None, "scores": scores}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """Three evaluations and their benchmark, for tests that only read."""
    folder = tmp_path_factory.mktemp("untouched")
    data = folder / "data" / "MLLMU-Bench"
    cell = lambda colour: {"bytes": picture_bytes(colour), "path": None}
    people = (("101", "red"), ("023", "green"))
    write_table(data / "forget_10", [{"ID": person, "image": cell(colour)} for person, colour in people])
    write_table(data / "retain_90", [{"ID": "007", "image": cell("blue")}])
    write_table(data / "Test_Set", [{"ID": "023", "images": [cell("white"), cell("black")]}])
    for method in METHODS:
        evaluated(folder / method, [{**line, **answer(line, method)} for line in questions()], data)
    return folder


@pytest.fixture
def runs(untouched, tmp_path):
    """The same, to be changed."""
    shutil.copytree(untouched, tmp_path, ignore=shutil.ignore_patterns("out"), dirs_exist_ok=True)
    for method in METHODS:
        data = {"folder": str(tmp_path / "data" / "MLLMU-Bench")}
        change(tmp_path / method / "zero_shot/forget10/results.json", data=data)
    return tmp_path


@pytest.fixture(scope="module")
def made(untouched):
    """Text and Page of the unchanged evaluations."""
    return make(untouched)


def evaluated(model, lines, data, ratio=10):
    """An evaluation of the model's folder, as eval/answering/run.py writes it."""
    folder = model / "zero_shot" / f"forget{ratio:02d}"
    folder.mkdir(parents=True)
    for split in ("forget", "test", "retain"):
        text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines if x["split"] == split)
        (folder / f"predictions_{split}.jsonl").write_text(text, encoding="utf-8")
    results = {
        "benchmark": "nano MLLMU-Bench", "model": f"runs/nano/{model.name}", "method": model.name,
        "forget_ratio": ratio, "shot": "zero_shot", "seed": 42, "mcq": "likelihood",
        "data": {"folder": str(data)}, "splits": summarise(Prediction(**line) for line in lines),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))


def change(path, **entries):
    """Put entries into a JSON file, which is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**before, **entries}))


class Page(HTMLParser):
    """Tags, addresses, ids and text of the page, its data block, and its tables as rows of cells' texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.text, self.block, self.inside = [], [], [], [], "", ""
        self.tables, self.cell = [], False
        self.feed(text)
        self.data = json.loads(self.block)
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        links = ("src", "href", "xlink:href", "action", "data")
        self.addresses += [value for name, value in attrs.items() if name in links]
        self.inside = attrs.get("id") or tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_data(self, data):
        if self.inside == "data":
            self.block += data
        elif self.inside not in ("style", "script"):
            self.text.append(data)
        if self.cell:
            self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag):
        self.inside = ""
        self.cell = self.cell and tag not in ("td", "th")

    def table(self, first):
        """{row's name: texts of its cells} of the table whose caption or first column names `first`."""
        rows = next(t for t in self.tables if any(row[0] == first for row in t))
        return {row[0]: [" ".join(cell.split()) for cell in row[1:]] for row in rows}


def make(runs, *options, methods=METHODS):
    path = runs / "out" / "report.html"
    folders = [str(runs / method) for method in methods]
    report.main(report.parse_args([*folders, "--save_path", str(path), *map(str, options)]))
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_page_holds_table_plot_and_every_answer(made):
    _, page = made
    assert all(word in page.words for word in ("nano MLLMU-Bench", "Nano numbers", "-100.0", "2/2"))
    assert "svg" in page.tags and "not found" not in page.words
    assert page.data["methods"] == LABELS and page.data["vanilla"] == [0, 0, 0]
    assert len(page.data["cases"]) == 24
    case = next(c for c in page.data["cases"] if c[0] == "forget/023/classification/image/0")
    assert case[1:5] == ["023", "forget", "classification", "image"]
    assert case[9] == [["B", "B", True, None, None], *[[NASTY, None, False, None, None]] * 2]
    generation = next(c for c in page.data["cases"] if c[0] == "retain/007/generation/text/0")
    assert [answer[2:] for answer in generation[9]] == [[None, x, None] for x in (1.0, 0.25, 1.0)]


def loaded(runs, *methods):
    problems = Problems()
    results = load_results([runs / method for method in methods or METHODS], problems)
    assert problems.lines == []
    return results


def test_numbers_differences_and_intervals_are_those_of_the_results(runs):
    file = runs / "GA/zero_shot/forget10/results.json"
    splits = json.loads(file.read_text())["splits"]
    splits["forget"]["classification"]["image"]["interval"] = [12.3, 45.6]
    change(file, splits=splits)
    _, page = make(runs)
    results = loaded(runs)
    shown = [table for table in page.tables if table[0][1:] and "VQA" in table[0][1]]
    for block, table in zip(blocks(results), shown, strict=True):
        for result, row, cells in zip(results, table[1:], block.cells, strict=True):
            assert row[0] == result.label
            for text, cell in zip(row[1:], cells, strict=True):
                parts = (cell.value, cell.count, cell.interval, cell.difference, cell.difference_interval)
                assert " ".join(text.split()) == " ".join(part for part in parts if part)
    row = {cells[0]: [" ".join(cell.split()) for cell in cells[1:]] for cells in shown[0]}
    assert row["GA"][0] == "0.0 0/2, 2 unreadable [12.3, 45.6] -100.0 [-100.0, -100.0]"
    assert "95 % bootstrap intervals over people" in page.words


def test_an_unclear_difference_has_no_colour_and_small_splits_are_told(runs, made):
    """One of ten people got worse, so that the interval of the difference holds 0."""
    lines = [
        {**line, "id": f"{i}/{line['id']}", "person": f"{i:03d}", "picture": None}
        for i in range(10)
        for line in questions()
        if line["split"] == "retain" and line["person"] == "007"
    ]
    for method in ("vanilla", "few"):
        answered = [
            {**line, **answer(line, "GA" if method == "few" and i < 6 else "vanilla")}
            for i, line in enumerate(lines)
        ]
        folder = runs / "small" / method
        evaluated(folder, answered, runs / "data")
    text, page = make(runs, methods=("small/vanilla", "small/few"))
    results = loaded(runs, "small/vanilla", "small/few")
    found = difference(results[1], results[0], "retain", METRICS["vqa"])
    assert found.difference == -10 and found.interval == [-40.0, 0.0]
    assert re.search(r'class="difference">-10\.0 <span class="interval">\[-40\.0, 0\.0\]', text)
    warnings = [line for line in remarks(results) if line.startswith("warning: retain")]
    assert len(warnings) == 1 and " ".join(warnings[0].removeprefix("warning: ").split()) in page.words
    # where all are worse, the colour says so
    for verdict in ("better", "worse"):
        assert f'class="difference {verdict}">-100.0' in made[0]


# ---------------------------------------------------------------- the first screen
@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Results, Page and text of made-up evaluations with a retrained model; 12 people to forget."""
    folder = tmp_path_factory.mktemp("told")
    for place, (name, right) in enumerate(verdicts.WORDS.items()):
        verdicts.evaluated(folder / name, right, seconds=60.0 * place + 5)
    change(folder / "mask/run.json", seconds=20.0, peak_memory_bytes=10**6)
    change(folder / "mask/coverage.json", **COVERAGE)
    path = folder / "manifold/run.json"
    about = {"grad_mask_path": str(folder / "mask/mllmu_both_mask.pt"), "model_id": "hub/llava-1.5-7b"}
    change(path, arguments=about)
    return folder, *make(folder, methods=("",))


def test_a_verdict_per_method_with_intervals(told):
    folder, text, page = told
    results = loaded(folder, "")
    first = text[: text.index('id="rows"')]
    assert re.findall(r"<option>(\w+)</option>", first) == ["MMUnlearner", "GA", "KL_Min"], (
        "this suite's first"
    )
    assert (
        "MMUnlearner forgot the pictures as if never seen; it damaged pictures of people outside."
        in page.words
    )
    card = page.table("Pictures of people outside")
    told = ["100 → 20 %", "-5 [-20, 10] to retrained 25", "as wanted"]
    assert card["Their pictures, as trained on"] == told
    assert card["Pictures of people outside"] == ["100 → 80 %", "-20 [-30, -10] to vanilla", "damage"]
    assert "Time: 3 min 25 s with its mask; retraining: 4 min 5 s." in page.words
    assert "12 of 42 people to forget" in page.words and "model hub/llava-1.5-7b" in page.words
    assert "There are 75 points [65, 87] to forget in pictures" in page.words
    words = {f.word for r in results[1:4] for f in findings(r, results)}
    assert words == {"too far", "not yet", "at its level", "kept", "damage"}
    for word in ("too far", "not yet", "damage"):
        assert f'<span class="word unwanted">{word}</span>' in text
    assert '<span class="word wanted">kept</span>' in text


def test_rows_say_what_each_model_answers_and_words_only_of_methods(told):
    _, text, page = told
    rows = page.table("retrained")
    assert rows["GA"][0] == "0 [0, 0] too far" and rows["GA"][3] == "50 [46, 54] damage"
    assert rows["vanilla"][0] == "100 [100, 100]" and rows["retrained"][1] == "25 [20, 32]"
    table = text[text.index('id="rows"') : text.index("</table>", text.index('id="rows"'))]
    names = re.findall(r'<td data-name="([^"]+)" data-value="[\d.]+"', table)
    assert len(names) == 5 * 6 and names[:6] == names[6:12], "for phones, where a row is a card"


def test_the_plot_says_its_numbers_on_hover_and_in_words(told):
    folder, text, _ = told
    said = figures.tradeoff_titles(loaded(folder, ""))["point-3"]
    assert re.fullmatch(r"MMUnlearner: forget VQA 20\.0 % \[.*\], retain VQA 100\.0 % \[.*\]", said)
    assert text.count(f"<title>{said}</title>") == 2, "on the wide and on the small plot"
    assert len(re.findall(f'role="img" aria-label="Trade-off. [^"]*{re.escape(said)}', text)) == 2


def test_a_telling_case_is_one_in_which_methods_differ(told):
    folder, _, page = told
    chosen = page.data["telling"]
    answers = page.data["cases"][chosen["picture"]][9]
    right = dict(zip(page.data["methods"], [answer[2] for answer in answers], strict=True))
    assert right["vanilla"] and not right["retrained"] and not right["MMUnlearner"] and right["KL_Min"]
    assert page.data["cases"][chosen["text"]][4] == "text"
    assert page.data["retrained"] == [4] * 5 and page.data["forgets"] == ["forget", "test"]
    cases = report.load_cases(loaded(folder, "vanilla", "GA", "retrained"), Problems())
    assert report.telling(cases, loaded(folder, "vanilla", "GA", "retrained")) is None, "one method alone"


def test_rouge_stands_beside_the_retrained_models(tmp_path):
    for name in ("vanilla", "GA", "retrained"):
        verdicts.evaluated(tmp_path / name, verdicts.WORDS[name], "generation", benchmark="CLEAR")
    text, page = make(tmp_path, methods=("",))
    assert "1.00 → 1.00 R\u2011L" in page.words and "to vanilla; retrained 1.00" in page.words
    assert "(retrained 1.000)" in text[text.index('id="numbers"') :]


def test_less_than_the_retrained_model_knows_is_not_called_better(told):
    folder, *_ = told
    made = {block.title: block for block in blocks(loaded(folder, ""))}
    cells = [row[0] for row in made["forget"].cells]  # vanilla, GA, KL_Min, MMUnlearner, retrained
    assert [cell.verdict for cell in cells] == ["", "", "better", "", "better"]
    assert made["retain"].cells[1][0].verdict == "worse"


def test_figures_are_in_the_pages_colours_and_refer_to_themselves(runs):
    mask(runs)
    text, page = make(runs)
    assert len(page.ids) == len(set(page.ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text.split('id="data"')[0])
    assert len(used) > 20 and set(used) <= set(page.ids)
    svgs = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(svgs) == 3  # the trade-off, wide and small, and the mask
    for svg in svgs:
        assert "currentColor" in svg and "xmlns" not in svg
        # white and transparent frames are never painted
        assert not set(re.findall(r"(?:fill|stroke): (#\w+)", svg)) - {"#ffffff"}
    style = text[: text.index("</style>")]
    variables = set(re.findall(r"var\((--\w+)\)", text))
    assert variables and all(style.count(f"{name}:") >= 2 for name in variables)  # light and dark


# ---------------------------------------------------------------- forget ratios
def test_lines_over_forget_ratios_need_two_ratios_of_a_method(runs, made):
    assert "ratios" not in made[1].ids
    data = runs / "data" / "MLLMU-Bench"
    lines = {method: [{**line, **answer(line, method)} for line in questions()] for method in METHODS}
    evaluated(runs / "GA_05", lines["manifold"], data, ratio=5)
    evaluated(runs / "GA_15", lines["GA"], data, ratio=15)
    assert figures.ratio_plot(loaded(runs, "vanilla", "GA_05")) is None  # two ratios, but of two methods
    text, page = make(runs, methods=("vanilla", "GA_15", "GA_05"))
    assert "ratios" in page.ids and "Forget ratios" in page.words
    assert "GA, forget VQA: 0.0 % [0.0, 0.0] at 5 %, 0.0 % [0.0, 0.0] at 15 %; " in text
    results = loaded(runs, "vanilla", "GA_15", "GA_05")
    found = {name: [r.forget_ratio for r in line] for name, line in figures.ratio_lines(results).items()}
    assert found == {"vanilla": [10], "GA": [5, 15]}
    axes = figures.ratio_plot(results).axes[0]
    assert axes.get_title(loc="left") == "forget VQA % ↓"
    drawn = [line.get_ydata() for line in axes.lines if line.get_marker() == figures.MARKERS[1]]
    assert [list(numbers) for numbers in drawn] == [[0.0, 0.0]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5 %", "10 %", "15 %"]


@pytest.mark.parametrize(
    ("method", "ratio", "name"),
    [
        ("GA_05", 5, "GA"), ("GA_5", 5, "GA"), ("GA-forget10", 10, "GA"), ("NPO_forget_15", 15, "NPO"),
        ("GA_10", 5, "GA_10"), ("GA_Diff", 5, "GA_Diff"), ("lr1e4_05", 5, "lr1e4"), ("05", 5, "05"),
    ],
)  # fmt: skip
def test_a_method_is_named_without_its_own_ratio(method, ratio, name):
    result = SimpleNamespace(method=method, forget_ratio=ratio)
    assert figures.line_name(result) == name


def test_two_runs_of_a_method_at_one_ratio_are_two_lines():
    def row(ratio, shot="zero_shot"):
        return SimpleNamespace(method="GA", forget_ratio=ratio, benchmark="b", shot=shot, mcq="letter")

    lines = figures.ratio_lines([row(5), row(5), row(10), row(10), row(5, "few_shot")])
    assert {name: [r.forget_ratio for r in line] for name, line in lines.items()} == {
        "GA (b, zero_shot, letter)": [5, 10],
        "GA (b, zero_shot, letter; no. 2)": [5, 10],
        "GA (b, few_shot, letter)": [5],
    }
    assert figures.ratio_lines([row(5), row(5)]) == {}


# ---------------------------------------------------------------- mask and cost
COVERAGE = {
    "language": {
        "language_model.embed_tokens": {"salient": 5, "weights": 200, "share": 0.025},
        "all": {"salient": 95, "weights": 400, "share": 0.2375},
        "language_model.layers.0": {"salient": 13, "weights": 100, "share": 0.13},
        "language_model.layers.1": {"salient": 77, "weights": 100, "share": 0.77},
    },
    "vision": {
        "all": {"salient": 60, "weights": 200, "share": 0.3},
        "visual.blocks.0": {"salient": 41, "weights": 100, "share": 0.41},
        "visual.merger<b>$x^": {"salient": 19, "weights": 100, "share": 0.19},
    },
}


def mask(runs, name="both", given=None):
    """A mask's folder with its coverage, and manifold trained with that mask."""
    folder = runs / "mask"
    change(folder / "coverage.json", **COVERAGE)
    made = {"mask_kind": "saliency", "fisher": "sample", "threshold": 1.0}
    change(
        folder / "run.json", started="2025-01-01T10:00:00+00:00", arguments=made, seconds=75.0,
        peak_memory_bytes=3_000_000,
    )  # fmt: skip
    path = given or str(folder / f"mllmu_{name}_mask.pt")
    change(
        runs / "manifold/run.json",
        started="2025-01-01T12:00:00+00:00", arguments={"grad_mask_path": path}, device="cuda:0", processes=2,
        seconds=4000.4, peak_memory_bytes=2_500_000_000, peak_gpu_memory_bytes=41_200_000_000,
    )  # fmt: skip
    return folder


def masks(runs):
    problems = Problems()
    found = look_up.masks_of(look_up.load_runs(loaded(runs), problems), problems)
    assert problems.lines == []
    return found


def test_the_masks_coverage_is_drawn_by_layer(runs):
    folder = mask(runs)
    (folder / "coverage.png").write_bytes(picture_bytes("red"))
    text, page = make(runs)
    svg = text[text.index('id="mask-0-figure_1"') :].split("</svg>")[0]
    axes = layer_map(COVERAGE).axes[0]
    words = [label.get_text() for label in axes.texts]
    assert words == ["language: language_model.layers", "13", "77", "vision: visual.blocks", "41"]
    assert all(f">{word}</text>" in svg for word in words)
    assert page.table("language")["language"] == ["95", "400", "23.8 %"]
    assert page.table("language")["visual.merger<b>$x^"] == ["19", "100", "19.0 %"]
    said = "language: language_model.layers.1: 77.0 % salient"
    assert f"<title>{said}</title>" in svg and f"; {said}; " in text.split('id="mask"')[1]
    assert "used by MMUnlearner" in page.words and "kind saliency, fisher sample, threshold 1.0" in page.words
    assert text.count("data:image/png;base64,") == 1
    assert "written again" not in text and "Not found" not in text
    cells = [(round(cell.get_x() + 0.5), cell.get_alpha()) for cell in axes.patches]
    assert [layer for layer, _ in cells] == [0, 1, 0]
    shares = [0.13, 0.77, 0.41]  # the strongest colour is that of the largest share
    assert [alpha for _, alpha in cells] == pytest.approx([0.05 + 0.75 * x / 0.77 for x in shares])
    same = [cell.get_alpha() for cell in layer_map(COVERAGE, top=100).axes[0].patches]  # beside a fuller mask
    assert same == pytest.approx([0.05 + 0.75 * x for x in shares])


def test_a_mask_of_one_part_shows_that_part(runs):
    mask(runs, "language")
    (use,) = masks(runs)
    assert use.coverage == {"language": COVERAGE["language"]}
    assert [row["name"] for row in use.table] == ["language", "language_model.embed_tokens"]


def test_without_a_mask_there_is_no_section_and_a_missing_one_is_told(runs, made, capsys):
    assert "mask" not in made[1].ids and "Not found" not in made[1].words
    mask(runs, given="elsewhere/<img>_mask.pt")
    _, page = make(runs)
    assert "mask" in page.ids and "img" not in page.tags
    assert "Not found: no coverage.json lies beside elsewhere/<img>_mask.pt" in page.words
    assert "no coverage.json beside the mask elsewhere/<img>_mask.pt" in capsys.readouterr().out


def test_a_relative_mask_is_found_from_above_the_model_or_from_here(runs, monkeypatch):
    mask(runs, given="mask/mllmu_both_mask.pt")
    elsewhere = runs / "here"
    change(elsewhere / "mask/coverage.json", language=COVERAGE["language"])
    monkeypatch.chdir(elsewhere)
    assert [use.folder for use in masks(runs)] == [runs / "mask"], "its own, not another run's of that name"
    shutil.rmtree(runs / "mask")
    assert [use.folder for use in masks(runs)] == [elsewhere / "mask"]


def test_a_mask_written_after_the_training_is_told(runs):
    change(mask(runs) / "run.json", started="2025-01-02T00:00:00+00:00")
    assert "written again after the training" in make(runs)[0]


def test_costs_of_training_and_evaluation(runs):
    mask(runs)
    worker = {
        "questions": 30, "device": "cuda:0", "seconds": 10.0, "peak_memory_bytes": 2_000_000_000,
        "peak_gpu_memory_bytes": 15_000_000_000,
    }  # fmt: skip
    second = {"questions": 20, "seconds": 8.0, "peak_gpu_memory_bytes": 14_000_000_000}
    change(runs / "manifold/zero_shot/forget10/results.json", cost=[worker, worker | second])
    on_cpu = worker | {"device": "cpu", "seconds": 61.0, "peak_gpu_memory_bytes": None}
    change(runs / "GA/zero_shot/forget10/results.json", cost=[on_cpu])
    _, page = make(runs)
    table = next(table for table in page.tables if any("questions/s" in row for row in table))
    rows = {row[0]: [" ".join(cell.split()) for cell in row[1:]] for row in table}
    assert rows["MMUnlearner"] == [
        "1 h 6 min mask 1 min 15 s", "41.2 GB GPU 2.5 GB host mask 3 MB", "2 × cuda",
        "50", "10 s", "5.0", "29.0 GB GPU at most 15.0 GB each", "2 × cuda",
    ]  # fmt: skip
    assert rows["GA"] == ["–", "–", "–", "30", "1 min 1 s", "0.5", "2.0 GB", "cpu"]
    assert rows["vanilla"] == ["–"] * 8


@pytest.mark.parametrize("relative", [False, True])
def test_run_json_is_found_where_the_results_name_the_model(runs, relative):
    """An evaluation with --output_dir lies apart from its model."""
    model = runs / "models" / "apart"
    change(model / "run.json", seconds=12.0, peak_memory_bytes=1_000_000, device="cpu")
    named = "models/apart" if relative else str(model)
    change(runs / "GA/zero_shot/forget10/results.json", model=named)
    given = look_up.load_runs(loaded(runs), Problems())
    found = {run.result.label: look_up.training_cost(run.training) for run in given}
    assert found["GA"] == {"time": "12 s", "memory": "1 MB", "host": "", "device": "cpu"}
    assert found["vanilla"] == {}


# ---------------------------------------------------------------- probes
def test_what_probes_have_found_is_on_the_card_and_in_a_table(told, tmp_path, capsys):
    shutil.copytree(told[0], tmp_path / "runs")
    model, estimate = tmp_path / "runs/manifold", Estimate(40.0, [28.0, 52.0])
    numbers = {"number": "accuracy", "modality": "image", "recovered": estimate}
    found = [
        Finding("step 20", f"recovers 40 <of> 75 points: {HIDDEN}", **numbers),
        Finding("step 2", f"recovers 0 of 75 points: {GONE}", **numbers),
        Finding("text", f"recovers 0 points: {NOTHING_LOST}", **numbers),
    ]
    write_probe(model, "relearn", {}, [], found)
    write_probe(model, "rings", {}, [], [Finding("people outside", "64.3; vanilla 97.1: damage")])
    text, page = make(tmp_path / "runs", methods=("",))
    assert "Probes: Hidden, not forgotten, by 1 of 2 attacks (relearn)." in page.words
    rows = next(table for table in page.tables if table[0][:2] == ["probe", "condition"])
    assert rows[2] == ["relearn", "step 2", "image", f"recovers 0 of 75 points: {GONE}"]
    assert re.findall(r'class="words worse">([^<]*)<', text) == [
        f"recovers 40 &lt;of&gt; 75 points: {HIDDEN}", "64.3; vanilla 97.1: damage",
    ]  # fmt: skip
    assert "probes" in page.ids and "depth" not in page.ids and "probes" not in told[2].ids
    (model / "probes/rings/results.json").write_text("{}")
    with pytest.raises(SystemExit):
        make(tmp_path / "runs", methods=("",))
    assert "rings/results.json is no result of a probe" in capsys.readouterr().err


def test_the_depth_map_is_drawn_with_its_numbers(told, tmp_path):
    shutil.copytree(told[0], tmp_path / "runs")
    stage = {"reference": {"mean": 0.5}, "model": {"mean": 0.25}, "erased": 0.5, "holds": True, "retain": 0.1}
    stages = {name: copy.deepcopy(stage) for name in ("tower.0", "layers.0")}
    for entry in stages.values():
        for key in ("reference", "model"):
            entry[key]["interval"] = [0.1, 0.6]
    more = {"stages": [{"name": "tower.0", "part": "tower"}, {"name": "layers.0", "part": "decoder"}]}
    more["modalities"] = {"image": {"places": {"answer": {"stages": stages}}}}
    write_probe(tmp_path / "runs/manifold", "depth", {}, [], [Finding("pictures", "depth 0.5")], **more)
    text, page = make(tmp_path / "runs", methods=("",))
    drawing = text[text.index("<svg", text.index('id="depth"')) :].split("</svg>")[0]
    assert "<title>MMUnlearner" in drawing and len(page.ids) == len(set(page.ids))
    assert next(t for t in page.tables if t[0][0] == "method")[1:] == [
        ["MMUnlearner", "image", "answer", name, "0.500", "0.100", "0.250", "0.50"] for name in stages
    ]


# ---------------------------------------------------------------- what the page's script reads
def test_factuality_is_with_the_answer(runs):
    file = runs / "GA/zero_shot/forget10/predictions_forget.jsonl"
    lines = jsonl(file)
    for line in lines:
        if line["task"] == "generation":
            line["scores"]["factuality"] = 3
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = runs / "GA/zero_shot/forget10/results.json"
    splits = json.loads(results.read_text())["splits"]
    splits["forget"] = summarise(Prediction(**line) for line in lines)["forget"]
    change(results, splits=splits, judge={"model": "judge-7b", "served": [], "prompt": "abc", "judged": 4})
    _, page = make(runs)
    case = next(c for c in page.data["cases"] if c[0] == "forget/101/generation/text/0")
    assert [answer[4] for answer in case[9]] == [None, 3, None]
    assert "Factuality was judged by judge-7b." in page.words


def test_every_filter_of_the_form_is_read_and_linked(made):
    text, _ = made
    form = text[text.index("<form") : text.index("</form>")]
    fields = re.findall(r'<(?:select|input) name="(\w+)"', form)
    assert re.findall(r'const FIELDS = \["(.*)"\]', text)[0].split('", "') == fields
    assert {"split", "task", "modality", "change", "method", "text"} == set(fields)
    assert re.findall(r"<option>([^<]*)</option>", form) == [
        *("classification", "cloze", "generation"), *("image", "text"), *("GA", "MMUnlearner"),
    ]  # fmt: skip
    assert re.findall(r'<option value="(\w+)">', form) == [
        *("forget", "test", "retain"), *("lost", "gained", "wanted", "unwanted", "differ"),
    ]  # fmt: skip


def test_page_loads_nothing_and_escapes_everything(runs):
    mask(runs)
    method = "a<b>&$x^"
    change(runs / "GA/zero_shot/forget10/results.json", method=method)
    text, page = make(runs)
    assert method in page.data["methods"] and "<b>&" not in text and "a&lt;b&gt;&amp;$x^" in text
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"(https?:)?//[\w.]+\.\w", text.split('id="data"')[0])
    assert not re.search(r"url\((?!['\"]?#)|@import|<link|\bfetch\(", text)
    assert "img" not in page.tags and text.count("</script>") == 2
    assert 'onerror="' not in text and "\u2028" not in text.split('id="data"')[0]
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "@media print" in text


def test_each_picture_is_embedded_once_and_is_the_right_one(made):
    from PIL import Image

    text, page = made
    pictures = page.data["pictures"]
    assert len(pictures) == 4 == len(set(pictures)) == text.count("data:image/")

    def colour(place):
        image = Image.open(io.BytesIO(base64.b64decode(pictures[place].split(",")[1])))
        assert max(image.size) == portraits.THUMBNAIL
        return [round(value / 255) for value in image.getpixel((5, 5))]

    shown = {case[0]: case[8] for case in page.data["cases"] if case[3] == "cloze"}
    assert colour(shown["forget/101/cloze/image/0"]) == [1, 0, 0]
    assert colour(shown["retain/007/cloze/image/0"]) == [0, 0, 1]
    assert colour(shown["test/023/cloze/image/0"]) == [0, 0, 0]  # the second view of Test_Set
    assert shown["forget/101/cloze/text/0"] is None


def test_before_and_after_takes_first_multiple_choice_questions(untouched, made):
    _, page = made
    assert [person["person"] for person in page.data["people"]] == ["023", "101"]
    asked = [page.data["cases"][place][0] for place in page.data["people"][1]["cases"]]
    assert asked == ["forget/101/classification/image/0", "forget/101/classification/text/0"]
    assert page.data["people"][1]["picture"] is not None
    text, page = make(untouched, "--people", 1)
    assert len(page.data["people"]) == 1 and "1 of 2" in text


def test_same_results_give_the_same_page(untouched, made):
    assert make(untouched)[0] == made[0]
    # pictures in the order of the questions, not of a set, which differs from run to run
    about = ("forget", "cloze", "image")
    asked = [prediction(*about, correct=True, picture={"table": "t", "ID": str(i)}) for i in range(50)]
    cases = [report.Case(each, []) for each in asked]
    assert [picture.ID for picture in report.pictures_of(cases + cases)] == [str(i) for i in range(50)]


def test_without_pictures_the_page_is_made_and_says_so(runs, capsys):
    (runs / "data").rename(runs / "moved")
    text, page = make(runs)
    assert "pictures were not found" in text and page.data["pictures"] == []
    assert "4 of 4 pictures not found" in capsys.readouterr().out
    text, page = make(runs, "--data_dir", runs / "moved" / "MLLMU-Bench")
    assert "pictures were not found" not in text and len(page.data["pictures"]) == 4


def test_questions_that_differ_are_not_put_side_by_side(runs):
    path = runs / "GA" / "zero_shot/forget10/predictions_test.jsonl"
    lines = jsonl(path)
    for line in lines:
        line["picture"] = line["picture"] and {**line["picture"], "view": 0}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, page = make(runs)
    views = [case[9] for case in page.data["cases"] if case[0] == "test/023/cloze/image/0"]
    there = [[answer is not None for answer in answers] for answers in views]
    assert there == [[True, False, True], [False, True, False]]


def test_without_vanilla_and_retrained_there_is_a_page(untouched):
    text, page = make(untouched, methods=("GA", "manifold"))
    assert "No vanilla row" in text and "No vanilla and retrained model" in text
    assert page.data["vanilla"] == page.data["retrained"] == [None, None] and page.data["telling"] is None
    assert "MMUnlearner is not compared with a retrained model" in page.words


def test_without_a_method_or_without_pictures_there_is_a_page(runs):
    assert "No method among the rows" in make(runs, methods=("vanilla",))[0]
    for result in loaded(runs):
        for tasks in result.splits.values():
            tasks["classification"].pop("image")
        change(result.folder / "results.json", splits=result.splits)
        for file in result.folder.glob("predictions_*"):
            lines = [x for x in jsonl(file) if x["task"] != "classification" or x["modality"] == "text"]
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, page = make(runs)
    assert "No plot: it needs" in text and not any(name.startswith("tradeoff") for name in page.ids)


def test_all_mistakes_at_once(runs, capsys):
    broken = runs / "GA" / "zero_shot/forget10/predictions_test.jsonl"
    broken.write_text(broken.read_text(encoding="utf-8") + '{"id": "cut o', encoding="utf-8")
    for file in (runs / "manifold").rglob("predictions_*"):
        file.unlink()
    (run := runs / "GA" / "run.json").write_text('{"seconds": ')
    with pytest.raises(SystemExit) as stopped:
        make(runs, "--data_dir", runs / "nowhere", methods=(*METHODS, "missing"))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and not (runs / "out").exists()
    assert error.count("not valid JSON") == 2 and f"{run} is not valid JSON" in error
    assert f"{broken}, line 7: not valid JSON" in error
    assert "no predictions_<split>.jsonl" in error and "missing: no such folder" in error
    assert "--data_dir" in error


def test_as_a_user_runs_it_without_torch(runs):
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    code += "assert 'torch' not in sys.modules"
    arguments = [*(str(runs / method) for method in METHODS), "--save_path", str(runs / "r.html")]
    script = str(ROOT / "eval" / "report.py")
    done = subprocess.run([sys.executable, "-c", code, script, *arguments], cwd=runs, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (runs / "r.html").stat().st_size > 10_000

"""The page on small made-up result folders. Run: python -m pytest tests/test_report.py"""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eval import report
from eval.metrics import summarise

NASTY = '</script><img src=x onerror="alert(1)"> & "quotes" \u2028 {{ 7 * 7 }}'
METHODS = ("vanilla", "GA", "manifold")


def picture_bytes(colour, size=400):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def questions():
    """Two people to forget, one to retain, by picture and in words; the test split has the second view."""
    options = {"A": "Paris", "B": "Rome", "C": "Oslo", "D": "Bern"}
    for split, person, table in (
        ("forget", "023", "forget_10"),
        ("forget", "101", "forget_10"),
        ("retain", "007", "retain_90"),
        ("test", "023", "Test_Set"),
    ):
        for modality in ("image", "text"):
            view = 1 if split == "test" else 0
            picture = {"table": table, "ID": person, "view": view} if modality == "image" else None
            about = {"person": person, "split": split, "modality": modality, "prompt": "", "picture": picture}
            for task, truth in (("generation", "in Rome"), ("cloze", "Rome"), ("classification", "B")):
                yield {
                    **about,
                    "id": f"{split}/{person}/{task}/{modality}/0",
                    "task": task,
                    "question": f"Where was person {person} born?",
                    "options": options if task == "classification" else None,
                    "truth": truth,
                }


def answer(line, method):
    """Vanilla is right, GA always wrong, manifold wrong on pictures of the people to forget."""
    wrong = method == "GA" or (
        method == "manifold" and line["modality"] == "image" and line["split"] in ("forget", "test")
    )
    if line["task"] == "classification":
        return {"reply": NASTY if wrong else "B", "choice": None if wrong else "B", "correct": not wrong}
    if line["task"] == "cloze":
        return {"reply": "Oslo" if wrong else "Rome", "choice": None, "correct": not wrong}
    value = 0.25 if wrong else 1.0
    return {
        "reply": "no",
        "choice": None,
        "scores": dict.fromkeys(("rouge1", "rouge2", "rougeL", "bleu"), value),
    }


@pytest.fixture
def runs(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = tmp_path / "data" / "MLLMU-Bench"
    tables = {
        "forget_10": {"ID": ["101", "023"], "image": [picture_bytes("red"), picture_bytes("green")]},
        "retain_90": {"ID": ["007"], "image": [picture_bytes("blue")]},
        "Test_Set": {"ID": ["023"], "images": [[picture_bytes("white"), picture_bytes("black")]]},
    }
    for name, columns in tables.items():
        for key in ("image", "images"):
            if key in columns:
                wrap = [
                    [{"bytes": b, "path": None} for b in (c if isinstance(c, list) else [c])]
                    for c in columns[key]
                ]
                columns[key] = wrap if key == "images" else [cell[0] for cell in wrap]
        (data / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), data / name / "train-00000-of-00001.parquet")
    for method in METHODS:
        folder = tmp_path / method / "zero_shot" / "forget10"
        folder.mkdir(parents=True)
        lines = [{**line, **answer(line, method)} for line in questions()]
        for split in ("forget", "test", "retain"):
            text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines if x["split"] == split)
            (folder / f"predictions_{split}.jsonl").write_text(text, encoding="utf-8")
        results = {
            "benchmark": "nano MLLMU-Bench",
            "model": f"runs/nano/{method}",
            "method": method,
            "forget_ratio": 10,
            "shot": "zero_shot",
            "seed": 42,
            "mcq": "likelihood",
            "data": {"folder": str(data)},
            "splits": summarise(lines),
        }
        (folder / "results.json").write_text(json.dumps(results))
    return tmp_path


class Page(HTMLParser):
    """Tags, attributes and the text of the page and of its data block."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text, self.block, self.inside = [], [], [], "", ""
        self.feed(text)
        self.data = json.loads(self.block)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.addresses += [
            v for k, v in attrs.items() if k in ("src", "href", "xlink:href", "action", "data")
        ]
        self.inside = attrs.get("id") or tag

    def handle_data(self, data):
        if self.inside == "data":
            self.block += data
        elif self.inside not in ("style", "script"):
            self.text.append(data)

    def handle_endtag(self, tag):
        self.inside = ""


def make(runs, *options, methods=METHODS):
    path = runs / "out" / "report.html"
    folders = [str(runs / method) for method in methods]
    report.main(report.parse_args([*folders, "--save_path", str(path), *map(str, options)]))
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_page_holds_table_plot_and_every_answer(runs):
    _, page = make(runs)
    words = " ".join(" ".join(page.text).split())
    assert "nano MLLMU-Bench" in words and "Nano numbers" in words
    assert "-100.0" in words and "2/2" in words
    assert "svg" in page.tags and "not found" not in words
    assert page.data["methods"] == list(METHODS) and page.data["vanilla"] == [0, 0, 0]
    assert len(page.data["cases"]) == 24
    case = next(c for c in page.data["cases"] if c[0] == "forget/023/classification/image/0")
    assert case[1:5] == ["023", "forget", "classification", "image"]
    assert case[9] == [["B", "B", True, None], [NASTY, None, False, None], [NASTY, None, False, None]]
    generation = next(c for c in page.data["cases"] if c[0] == "retain/007/generation/text/0")
    assert [answer[2:] for answer in generation[9]] == [[None, 1.0], [None, 0.25], [None, 1.0]]


def test_page_loads_nothing_and_escapes_everything(runs):
    text, page = make(runs)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"url\((?!['\"]?#)|@import|<link|\bfetch\(", text)
    assert "img" not in page.tags and text.count("</script>") == 2
    assert 'onerror="' not in text and "\u2028" not in text.split('id="data"')[0]
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "@media print" in text


def test_method_names_are_escaped(runs):
    bad = "a<b>&$x^"
    path = runs / "GA" / "zero_shot/forget10/results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "method": bad}))
    text, page = make(runs)
    assert bad in page.data["methods"]
    assert "<b>&" not in text and "a&lt;b&gt;&amp;$x^" in text


def test_each_picture_is_embedded_once_and_is_the_right_one(runs):
    from PIL import Image

    text, page = make(runs)
    pictures = page.data["pictures"]
    assert len(pictures) == 4 == len(set(pictures)) == text.count("data:image/")

    def colour(place):
        import base64

        image = Image.open(io.BytesIO(base64.b64decode(pictures[place].split(",")[1])))
        assert max(image.size) == report.THUMBNAIL
        return [round(value / 255) for value in image.getpixel((5, 5))]

    shown = {case[0]: case[8] for case in page.data["cases"] if case[3] == "cloze"}
    assert colour(shown["forget/101/cloze/image/0"]) == [1, 0, 0]
    assert colour(shown["retain/007/cloze/image/0"]) == [0, 0, 1]
    assert colour(shown["test/023/cloze/image/0"]) == [0, 0, 0]  # the second view of Test_Set
    assert shown["forget/101/cloze/text/0"] is None


def test_before_and_after_takes_first_multiple_choice_questions(runs):
    _, page = make(runs)
    assert [person["person"] for person in page.data["people"]] == ["023", "101"]
    asked = [page.data["cases"][place][0] for place in page.data["people"][1]["cases"]]
    assert asked == ["forget/101/classification/image/0", "forget/101/classification/text/0"]
    assert page.data["people"][1]["picture"] is not None
    text, page = make(runs, "--people", 1)
    assert len(page.data["people"]) == 1 and "1 of 2" in text


def test_same_results_give_the_same_page(runs):
    text, page = make(runs)
    assert make(runs)[0] == text
    # pictures in the order of the questions, not of a set, which differs from run to run
    first_uses = dict.fromkeys(case[8] for case in page.data["cases"] if case[8] is not None)
    assert sorted(first_uses) == [0, 1, 2, 3]
    cases = [report.Case("", "", "", "", "", "", None, "", report.Picture("t", str(i), 0)) for i in range(50)]
    assert [picture.ID for picture in report.pictures_of(cases + cases)] == [str(i) for i in range(50)]


def test_without_pictures_the_page_is_made_and_says_so(runs, capsys):
    (runs / "data").rename(runs / "moved")
    text, page = make(runs)
    assert "pictures were not found" in text and page.data["pictures"] == []
    assert "4 of 4 pictures not found" in capsys.readouterr().out
    text, page = make(runs, "--data_dir", runs / "moved" / "MLLMU-Bench")
    assert "pictures were not found" not in text and len(page.data["pictures"]) == 4


def test_a_picture_that_is_no_picture_is_left_out(runs):
    assert report._thumbnail(b"no picture") is None
    assert report._thumbnail(picture_bytes("red")[:60]) is None


def test_questions_that_differ_are_not_put_side_by_side(runs):
    path = runs / "GA" / "zero_shot/forget10/predictions_test.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for line in lines:
        line["picture"] = line["picture"] and {**line["picture"], "view": 0}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, page = make(runs)
    views = [case[9] for case in page.data["cases"] if case[0] == "test/023/cloze/image/0"]
    assert [[answer is not None for answer in answers] for answers in views] == [
        [True, False, True],
        [False, True, False],
    ]


def test_without_vanilla_there_is_no_plot_but_a_page(runs):
    text, page = make(runs, methods=("GA", "manifold"))
    assert "svg" not in page.tags and "No plot" in text and "No vanilla row" in text
    assert page.data["vanilla"] == [None, None]


def test_all_mistakes_at_once(runs, capsys):
    broken = runs / "GA" / "zero_shot/forget10/predictions_test.jsonl"
    broken.write_text(broken.read_text(encoding="utf-8") + '{"id": "cut o', encoding="utf-8")
    for file in (runs / "manifold").rglob("predictions_*"):
        file.unlink()
    with pytest.raises(SystemExit) as stopped:
        make(runs, "--data_dir", runs / "nowhere", methods=(*METHODS, "missing"))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and not (runs / "out").exists()
    assert f"{broken}, line 7: not valid JSON" in error
    assert "no predictions_<split>.jsonl" in error and "missing: no such folder" in error
    assert "--data_dir" in error


def test_natural_order_of_ids():
    ids = ["forget/023/cloze/image/10", "forget/023/cloze/image/9", "forget/Kal_Penn/cloze/image/0"]
    assert sorted(ids, key=report._natural) == [ids[1], ids[0], ids[2]]


def test_as_a_user_runs_it_without_torch(runs):
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    code += "assert 'torch' not in sys.modules"
    arguments = [*(str(runs / method) for method in METHODS), "--save_path", str(runs / "r.html")]
    script = str(ROOT / "eval" / "report.py")
    done = subprocess.run([sys.executable, "-c", code, script, *arguments], cwd=runs, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (runs / "r.html").stat().st_size > 10_000

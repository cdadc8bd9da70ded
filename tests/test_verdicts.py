"""What is said of results, and the compact table. Run: python -m pytest tests/test_verdicts.py"""

import json

import pytest
from test_metrics import prediction

from eval import table
from eval.results.read import load_results
from eval.results.summary import summarise
from eval.results.verdicts import _word, aims, findings, gate_lines, gates, sentence, standing
from utils.cli import Problems

FORGET, TEST, TEXT = ("forget", "image"), ("test", "image"), ("forget", "text")
RETAIN, OTHERS, REAL = ("retain", "image"), ("retain", "text"), ("real", "image")
PEOPLE = {"forget": 12, "test": 12, "retain": 30, "real": 12}
SCRIPTS = {"vanilla": "finetune", "retrained": "reference"}
WORDS = {
    "vanilla": {},
    "GA": {FORGET: 0, TEST: 0, RETAIN: [3, 2]},
    "KL_Min": {FORGET: 3, TEST: 3},
    "manifold": {FORGET: [1, 2, 0], TEST: [2, 1, 1], TEXT: [5] * 11 + [4], REAL: [5, 4, 3]},
    "retrained": {FORGET: [2, 1, 0, 2], TEST: [1, 2, 1, 1]},
}


def evaluated(folder, right, task="classification", trained=None, seconds=None, **settings):
    """An evaluation of five questions per person and place: right[split, modality] is how many of them are
    answered, of everybody or in turn; all where nothing is said. `seconds`: run.json says how long training
    took."""
    out = folder / "zero_shot" / "forget05"
    out.mkdir(parents=True)
    options = {letter: letter for letter in "ABCD"}
    asked = []
    for split, modality in (FORGET, TEST, TEXT, RETAIN, OTHERS, REAL):
        hits = right.get((split, modality), 5)
        for person in range(PEOPLE[split]):
            of = hits[person % len(hits)] if isinstance(hits, list) else hits
            for k in range(5):
                name = f"{split} {person}" if split != "test" else f"forget {person}"
                if task == "classification" or modality == "image":
                    scored = {"correct": k < of, "options": options, "choice": "A" if k < of else "B"}
                    about = ("classification", modality)
                else:
                    rouge = dict.fromkeys(("rouge1", "rouge2", "rougeL", "bleu"), 1.0 if k < of else 0.4)
                    scored, about = {"scores": rouge}, ("generation", modality)
                asked.append(prediction(split, *about, name, k, **scored))
    for split in PEOPLE:
        text = "".join(p.line() for p in asked if p.split == split)
        (out / f"predictions_{split}.jsonl").write_text(text)
    script = f"MLLMU_{SCRIPTS.get(folder.name, folder.name)}.py"
    trained = {"script": script, "forget_ratio": 5, "keep_text": True} | (trained or {})
    content = {
        "benchmark": "MLLMU-Bench", "model": str(folder), "method": folder.name, "forget_ratio": 5,
        "shot": "zero_shot", "mcq": "likelihood", "seed": 42, "trained": trained,
        "splits": summarise(asked), **settings,
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(content))
    if seconds:
        run = {"script": script, "arguments": {}, "device": "cpu", "processes": 1, "seconds": seconds}
        (folder / "run.json").write_text(json.dumps(run | {"peak_memory_bytes": 10**9}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verdicts")
    for place, (name, right) in enumerate(WORDS.items()):
        evaluated(folder / name, right, seconds=60.0 * place + 5)
    return folder


def load(*paths, **options):
    problems = Problems()
    results = load_results(paths, problems, **options)
    assert problems.lines == []
    return results


def rows(folder):
    return {result.label: result for result in load(folder)}


def words(result, results):
    return {(f.aim.split, f.aim.metric.key): f.word for f in findings(result, results)}


def test_a_folder_above_gives_its_rows_in_the_documented_order(runs):
    results = load(runs)
    assert [r.label for r in results] == ["vanilla", "GA", "KL_Min", "MMUnlearner", "retrained"]
    assert [r.is_vanilla for r in results] == [True, False, False, False, False]
    assert [r.is_reference for r in results] == [False, False, False, False, True]
    given = load(runs / "retrained", runs / "manifold", runs / "vanilla")
    assert [r.label for r in given] == ["retrained", "MMUnlearner", "vanilla"], "as given"
    assert len(load(runs, runs / "GA", forget_ratio=5)) == 5


def test_what_is_hidden_is_no_row(tmp_path):
    evaluated(tmp_path / "GA", {})
    evaluated(tmp_path / ".GA.partial", {})
    assert [r.method for r in load(tmp_path)] == ["GA"]


def test_the_reference_by_its_record_by_flag_and_what_it_is_called(tmp_path):
    evaluated(tmp_path / "vanilla", {})
    evaluated(
        tmp_path / "a", WORDS["retrained"], trained={"script": "MLLMU_reference.py", "keep_text": False}
    )
    evaluated(tmp_path / "b", WORDS["retrained"], trained={"script": "MLLMU_reference.py"})
    evaluated(tmp_path / "GA", {})
    found = {r.method: (r.label, r.is_reference) for r in load(tmp_path)}
    assert found["a"] == ("retrained without them", True) and found["b"] == ("retrained", True)
    vanilla = load(tmp_path)[0]
    assert [g.metric.key for g in gates(load(tmp_path))] == ["vqa"], "the one that kept the text goes first"
    chosen = load(tmp_path, reference=tmp_path / "a")
    assert [g.metric.key for g in gates(chosen)] == ["vqa", "qa"]
    added = load(tmp_path / "vanilla", tmp_path / "GA", reference=tmp_path / "b")
    assert [r.label for r in added] == ["vanilla", "GA", "retrained"] and vanilla.is_vanilla
    other = load(tmp_path / "GA", vanilla=tmp_path / "b", reference=tmp_path / "a")
    assert [(r.label, r.is_vanilla) for r in other] == [
        ("b", True), ("GA", False), ("retrained without them", False),
    ]  # fmt: skip


def test_words_by_intervals(runs):
    """12 people of five questions each."""
    by_name, results = rows(runs), load(runs)
    places = ("forget", "vqa"), ("test", "vqa"), ("forget", "qa"), ("retain", "vqa"), ("real", "vqa")
    said = {name: [words(r, results)[place] for place in places] for name, r in by_name.items()}
    assert said["GA"] == ["too far", "too far", "kept", "damage", "kept"]
    assert said["KL_Min"] == ["not yet", "not yet", "kept", "kept", "kept"]
    assert said["MMUnlearner"] == ["at its level", "at its level", "kept", "kept", "damage"]
    assert standing(findings(by_name["GA"], results)) == "too far"
    assert sentence(by_name["MMUnlearner"], results) == (
        "MMUnlearner answers pictures of the people to forget like a model that never saw them (difference"
        " -5 [-20, 10] points)."
        " It kept the same people in text, others' pictures and others in text."
        " It lost 20 points [10, 30] on pictures of people outside."
    )
    assert "less of them in pictures than a model that never saw them" in sentence(by_name["GA"], results)


def test_what_is_known_from_another_view_is_not_forgotten(tmp_path):
    for name in ("vanilla", "retrained"):
        evaluated(tmp_path / name, WORDS[name])
    evaluated(tmp_path / "GA", {**WORDS["retrained"], TEST: 4})
    results = load(tmp_path)
    assert standing(findings(results[1], results)) == "not yet, other view"


def test_a_loss_that_is_shown_as_nothing_is_no_damage(runs):
    aim = next(aim for aim in aims(load(runs)) if aim.split == "retain")
    word = lambda *found: _word(aim, *found, None, None)
    assert word(-0.4, [-0.7, -0.1]) == "kept" and word(-0.6, [-0.9, -0.1]) == "damage"


def test_too_few_people_allow_no_word(tmp_path, monkeypatch):
    """Two people of whom one is as known as before: anything between nothing and all."""
    monkeypatch.setitem(PEOPLE, "forget", 2)
    monkeypatch.setitem(PEOPLE, "retain", 3)
    evaluated(tmp_path / "vanilla", {})
    evaluated(tmp_path / "retrained", {FORGET: [0, 1]})
    evaluated(tmp_path / "GA", {FORGET: [0, 5], RETAIN: [5, 5, 3]})
    results = load(tmp_path)
    said = words(results[1], results)
    assert said["forget", "vqa"] == "unclear" and said["retain", "vqa"] == "unclear"
    assert "It may" not in sentence(results[1], results)
    assert "may answer pictures" in sentence(results[1], results)
    assert "Not clear from so few: others' pictures" in sentence(results[1], results)


def test_the_gate(tmp_path):
    """What vanilla knows no more of than the retrained model cannot be forgotten."""
    evaluated(tmp_path / "vanilla", {FORGET: [2, 1, 0, 2]})
    evaluated(tmp_path / "retrained", {FORGET: [1, 2, 0, 2]}, trained={"keep_text": False})
    evaluated(tmp_path / "GA", {FORGET: 0})
    results = load(tmp_path)
    assert [(g.metric.key, g.open, g.difference) for g in gates(results)] == [
        ("vqa", False, 0.0), ("qa", False, 0.0),
    ]  # fmt: skip
    lines = gate_lines(results)
    assert lines[0] == (
        "warning: nothing to forget in pictures by VQA 0 [-8, 8]: rows of this measure say nothing about"
        " forgetting"
    )
    assert words(results[1], results)["forget", "vqa"] == "nothing to forget"
    assert "had nothing to forget in pictures" in sentence(results[1], results)
    assert gate_lines(load(tmp_path / "vanilla", tmp_path / "GA"))[0].startswith("No vanilla and retrained")


# ---------------------------------------------------------------- the compact table
def printed(capsys, *arguments):
    table.main(table.parse_args([str(argument) for argument in arguments]))
    return capsys.readouterr().out


def test_the_compact_table(runs, capsys):
    out = printed(capsys, runs, "--brief")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    start = next(i for i, line in enumerate(lines) if line.startswith("vanilla"))
    assert lines[start - 2].split("  ")[0] == "" and "forgotten pictures" in lines[start - 2]
    assert [" ".join(line.split()) for line in lines[start : start + 5]] == [
        "vanilla 100 100 100 100 100 100 – 5.0 s",
        "GA 0 0 100 50 100 100 too far 1 min 5 s",
        "KL_Min 60 60 100 100 100 100 not yet 2 min 5 s",
        "MMUnlearner 20 27 98 100 100 80 at its level 3 min 5 s",
        "retrained 25 25 100 100 100 100 – 4 min 5 s",
    ]
    assert "There are 75 points [65, 87] to forget in pictures (vanilla 100, retrained 25)." in out
    assert "% right of 4 options (chance 25); one forget question is 1.67 points." in out
    assert "MMUnlearner answers pictures" in out and "GA knows" not in out
    assert "|" not in out, "the wide tables are not printed"


def test_without_this_suites_method_every_method_gets_its_sentence(runs, capsys):
    out = printed(capsys, *(runs / name for name in ("vanilla", "GA", "KL_Min", "retrained")), "--brief")
    assert "GA knows" in out and "KL_Min still knows" in out
    alone = printed(capsys, runs / "GA", "--brief")
    assert "no retrained model" in alone and "No vanilla and retrained" in alone and "vs." not in alone


def test_of_clear_text_is_rouge_beside_the_retrained_models(tmp_path, capsys):
    for name in ("vanilla", "retrained", "a_method_with_a_name_that_takes_much_of_the_room_of_a_line"):
        evaluated(tmp_path / name, WORDS.get(name, {FORGET: 1, TEXT: 3}), "generation", benchmark="CLEAR")
    out = printed(capsys, tmp_path, "--brief")
    assert max(map(len, out.splitlines())) <= 100
    row = next(line for line in out.splitlines() if line.startswith("a_method")).split()
    assert row[3] == "0.76" and "Text is ROUGE-L" in out
    assert "It lost 0.24 of ROUGE-L [0.24, 0.24] on the same people in text" in " ".join(out.split())


def test_rows_of_other_settings_stand_in_tables_of_their_own(runs, tmp_path, capsys):
    evaluated(tmp_path / "GA", {FORGET: 0}, mcq="letter")
    out = printed(capsys, runs / "vanilla", runs / "retrained", tmp_path / "GA", "--brief")
    assert out.count("MLLMU-Bench · forget 5 %") == 2


def test_wide_tables_begin_with_the_gate(runs, capsys):
    out = printed(capsys, runs / "vanilla", runs / "GA", runs / "retrained")
    assert out.index("To forget in pictures") < out.index("**forget**")

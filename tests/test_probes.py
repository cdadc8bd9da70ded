"""Probes: verdicts on counts made by hand, what is shown and asked, and whole runs on a tiny model."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import RATIO, ROOT, load_script, picture_cell, read_table, run_script, write_table

from eval.results.probes import Estimate, Row, findings, probe_rows, verdict


def row(before, after, vanilla=4, condition="noise", who="forget", people=12):
    """Each person has four questions; `before` and `after` of them are right, in percent points 100 each."""
    values = lambda given, k: 100.0 * (given[k % len(given)] if isinstance(given, list) else given)
    sums = {f"{k:03d}": [values(g, k) for g in (vanilla, before, after)] + [4] for k in range(people)}
    return Row(condition, who, "classification", "image", sums)


# ---------------------------------------------------------------- verdicts
@pytest.mark.parametrize(
    ("own", "reference", "expected"),
    [
        (row(1, 3), row(1, 1), "hidden, not forgotten"),
        (row(1, [2, 3]), row(1, [2, 3]), "no more than the retrained model"),
        (row(1, [0, 1, 2]), row(1, 1), "not brought back"),
        (row(1, 0), row(1, 1), "not brought back"),
        (row(4, 4), row(1, 3), "nothing was lost"),
        (row(1, 3, people=1), row(1, 1, people=1), "too few people to tell"),
        (row(1, 3, people=3), row(1, 1, people=3), "too few people to tell"),
        (row(1, 3, people=4), row(1, 1, people=4), "hidden, not forgotten"),
    ],
)
def test_a_verdict_follows_from_the_counts(own, reference, expected):
    (found,) = findings([own], [reference])
    assert found.verdict.endswith(f": {expected}")


def test_a_finding_in_words_and_numbers():
    """By hand: 1 of 4 before, 3 of 4 after; the retrained model goes from 1 to 1 or 2; 3 of 4 were lost."""
    retain = row(4, 3, who="retain")
    (found,) = findings([row(1, [2, 4]), retain], [row(1, [1, 2])])
    assert (found.lost.value, found.recovered.value, found.reference.value) == (75.0, 50.0, 12.5)
    assert found.beyond.value == 37.5 and found.retain == Estimate(-25.0, [-25.0, -25.0])
    assert found.verdict.startswith("recovers 50.0 of 75.0 points [")
    assert "; the retrained model 12.5 [" in found.verdict and found.n == 48 and found.people == 12


def test_the_same_people_are_drawn_for_both_models():
    """What both models recover alike cancels out person by person: no spread is left."""
    own, reference = row(0, [0, 2, 4]), row(0, [0, 2, 4])
    (found,) = findings([own], [reference])
    assert found.recovered.interval[0] < found.recovered.interval[1]
    assert found.beyond == Estimate(0.0, [0.0, 0.0])


def test_a_reference_that_was_asked_otherwise_is_refused():
    with pytest.raises(ValueError, match="not asked the same"):
        findings([row(1, 2)], [row(1, 2, people=11)])
    with pytest.raises(ValueError, match="not asked the same"):
        findings([row(1, 2)], [row(1, 2, condition="blur")])


def test_an_interval_that_touches_zero_proves_nothing():
    zero, above = Estimate(5.0, [0.0, 10.0]), Estimate(5.0, [0.1, 10.0])
    assert verdict(above, zero, above) == "not brought back"
    assert verdict(zero, above, above) == "nothing was lost"
    assert verdict(above, above, zero) == "no more than the retrained model"


def test_an_attack_that_harms_everybody_shows_nothing():
    zero, above, below = (Estimate(0.0, bounds) for bounds in ([0.0, 9.0], [1.0, 9.0], [-9.0, -1.0]))
    assert verdict(above, zero, zero, below).startswith("not brought back, by what harms")
    assert verdict(above, zero, zero, zero) == verdict(above, zero, zero) == "not brought back"
    assert verdict(above, above, above, below) == "hidden, not forgotten"


# ---------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def evaluated(nano, tiny, tmp_path_factory):
    """Folder with three models of random weights, evaluated on the nano benchmark: unlearned, retrained,
    vanilla."""
    root = tmp_path_factory.mktemp("probed")
    for name, source in (("vanilla", "llava"), ("unlearned", "other_llava"), ("retrained", "other_llava")):
        shutil.copytree(tiny[source], root / name)
        run_script(
            "eval/MLLMU_eval.py", "--evaluated_model", root / name, "--original_model", tiny["llava"],
            "--data_split_dir", nano / "MLLMU-Bench", "--forget_ratio", RATIO, "--mcq", "likelihood",
            "--splits", "forget,retain,test", "--max_new_tokens", 4,
        )  # fmt: skip
    return root


@pytest.fixture
def models(evaluated, tmp_path, monkeypatch):
    """Of two people, who stand for enough of them here."""
    monkeypatch.setattr("eval.results.probes.FEWEST", 2)
    shutil.copytree(evaluated, tmp_path / "models")
    return tmp_path / "models"


def probe(name, models, *flags, model="unlearned"):
    run_script(
        f"eval/probes/{name}.py", models / model, "--reference", models / "retrained", "--vanilla",
        models / "vanilla", *flags,
    )  # fmt: skip
    return json.loads((models / model / "probes" / name / "results.json").read_text())


SHORT = {  # flags with which a probe asks little
    "quantise": ["--bits", "4"],
    "picture": ["--conditions", "noise,name_written"],
    "paraphrase": [],
    "prompt": [],
    "relearn": ["--data", "near", "--max_steps", 2],
    "depth": [],
    "membership": [],
    "memorisation": [],
}


@pytest.mark.parametrize("name", SHORT)
def test_numbers_are_the_same_for_any_batch_and_workers(models, tmp_path, name):
    """One by one on one worker, and many at once on two; in fp32."""
    one = probe(name, models, *SHORT[name], "--batch_size", 1)
    shutil.copytree(models, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "unlearned" / "probes")  # the retrained model's are taken from there
    other = probe(name, tmp_path / "again", *SHORT[name], "--batch_size", 32, "--gpus", "0,0")
    assert one["rows"] == other["rows"] and bool(one["rows"]) == (name not in MEASURED)
    near = 1e-3 if name in MEASURED else 0  # forwards of other shapes round otherwise
    assert flat(one["findings"]) == pytest.approx(flat(other["findings"]), abs=near)
    assert len(flat(one["findings"])) > 3
    for r in one["rows"]:
        assert r["n"] == sum(sums[3] for sums in r["people"].values()) and len(r["people"]) == 2
    if name == "picture":
        assert {r["condition"] for r in one["rows"]} == {"noise", "name_written"}
        assert {r["who"] for r in one["rows"]} == {"forget", "retain"}


MEASURED = ("depth", "membership", "memorisation")  # their numbers are no shares of right answers


def flat(found, place="") -> dict[str, float]:
    """All numbers in nested lists and dicts, by where they stand."""
    if isinstance(found, int | float):
        return {place: found}
    items = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return {key: n for name, of in items for key, n in flat(of, f"{place}/{name}").items()}


def test_a_reference_is_probed_once_and_a_model_on_rounded_weights_is_another(models, capsys):
    first = probe("quantise", models, "--bits", "8,2")
    assert [f["condition"] for f in first["findings"] if f["modality"] == "image"] == ["8 bits", "2 bits"]
    changes = [abs(r["after"] - r["before"]) for r in first["rows"] if r["condition"] == "2 bits"]
    assert any(changes), "two bits leave no answer as it was"
    assert len(probe_rows(models / "unlearned")) == len(first["findings"]) == 4
    capsys.readouterr()
    assert probe("quantise", models, "--bits", "8,2")["rows"] == first["rows"]
    said = capsys.readouterr().out
    assert "retrained: quantise is there" in said and "unlearned: quantise is there" in said


def test_a_stopped_probe_goes_on(models, monkeypatch):
    """Ctrl-C after the first batch: its answers are kept, and not asked for again."""
    from eval.answering import workers

    answer, seen = workers.Worker.answer, []

    def stops(self, requests):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(len(requests))
        return answer(self, requests)

    flags = ["--conditions", "blur", "--batch_size", 8]
    monkeypatch.setattr(workers.Worker, "answer", stops)
    with pytest.raises(KeyboardInterrupt):
        probe("picture", models, *flags)
    after = []
    monkeypatch.setattr(workers.Worker, "answer", lambda s, r: after.append(len(r)) or answer(s, r))
    found = probe("picture", models, *flags)
    assert seen[0] + sum(after) == 2 * sum(r["n"] for r in found["rows"])


def test_what_is_missing_is_said_in_one_line_each(models, capsys):
    shutil.rmtree(models / "retrained" / "zero_shot")
    with pytest.raises(SystemExit) as end:
        probe("quantise", models, "--vanilla", "nowhere")
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 2
    assert lines[0].startswith("error: --reference: no zero-shot evaluation")
    assert "evaluate it first" in lines[0] and lines[1].startswith(
        "error: --vanilla: no such folder: nowhere"
    )


# ---------------------------------------------------------------- rounding
def test_weights_are_rounded_to_the_nearest_of_few_numbers():
    import torch

    from eval.probes.rounding import RoundToNearest

    weight = torch.tensor([[0.0, 0.9, 2.1, 3.0, -6.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    two_bits = RoundToNearest(2, 0).rounded(weight)
    assert two_bits.tolist() == [[0.0, 0.0, 3.0, 3.0, -6.0], [1.0] * 5]  # steps of 3 from -6 on
    assert RoundToNearest(2, 4).rounded(weight)[0].tolist() == [0.0, 1.0, 2.0, 3.0, -6.0]  # steps of 1; alone
    random = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    off = [(RoundToNearest(bits, 8).rounded(random) - random).abs().max() for bits in (4, 8)]
    assert off[1] < off[0] / 8 and not torch.equal(RoundToNearest(8, 8).rounded(random), random)


# ---------------------------------------------------------------- pictures and words
def test_changed_pictures_keep_their_size_and_are_the_same_each_time():
    import io

    from PIL import Image

    from eval.probes.pictures import CHANGES, ChangedPicture
    from utils.data import Picture

    out = io.BytesIO()
    Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB").save(out, "PNG")
    plain = Picture(out.getvalue(), "x")
    kinds = [ChangedPicture(plain.data, "x", name, 1) for name in CHANGES]
    kinds += [ChangedPicture(plain.data, "x", "name_written", 1, words) for words in ("Ann Lee", "Bo" * 40)]
    shown = [picture.load().tobytes() for picture in kinds]
    assert len({*shown, plain.load().tobytes()}) == len(kinds) + 1
    assert all(picture.load().size == plain.size() for picture in kinds)
    assert shown == [picture.load().tobytes() for picture in kinds]
    assert len({*kinds, plain}) == len(kinds) + 1, "a batch takes pictures for one that are equal"


def test_rules_word_a_question():
    module = load_script("eval/probes/paraphrase.py")
    wording = module.Wording(
        "w", (("What is {x} of {y}?", "Which {x} has {y}?"), ("{x}this person{y}", "{x}they{y}"))
    )
    assert wording.of("What is the name of Ann?") == "Which the name has Ann?"
    assert wording.of("Where does this person live?") == "Where does they live?"
    assert wording.of("How tall?") is None
    for wrong in ((("{x}", "{y}"),), (("{x}{x}", "{x}"),), ()):
        with pytest.raises(ValueError):
            module.Wording("w", wrong)
    for benchmark in ("MLLMU-Bench", "CLEAR"):
        assert len(module.read_wordings(module.SHIPPED, benchmark)) == 5


# ---------------------------------------------------------------- prompts and lessons
def test_prompts_look_for_the_answer_in_a_free_reply(models):
    found = probe("prompt", models)
    assert {f["condition"] for f in found["findings"]} == {"prefix", "affirmative", "role", "any"}
    means = {(r["condition"], r["who"], r["modality"]): r["after"] for r in found["rows"]}
    for (_, *place), mean in means.items():
        assert mean <= means["any", *place], "any is the best of the others"
    answers = (models / "unlearned/probes/prompt/answers/predictions_forget.jsonl").read_text().splitlines()
    begun = [json.loads(line) for line in answers if json.loads(line)["id"].startswith("affirmative/")]
    assert begun and all(a["prompt"].endswith("Sure, the answer is") for a in begun)
    assert all(a["options"] is None and a["task"] == "cloze" for a in begun)


def test_what_is_taught_tells_nothing_of_what_is_asked(models, nano):
    module = load_script("eval/probes/relearn.py")
    study = module.probe.Study(relearn_args(module, models))
    before = len(study.questions)
    lessons = module.Lessons(study)
    asked = [q for q in study.questions if q.split == "forget"]
    assert 0 < len(asked) < before and {q.person for q in asked} == study.bench.forget_people()
    adjacent = lessons.samples("adjacent")
    assert {s.person for s in adjacent} == study.bench.forget_people()
    for sample in adjacent:
        truths = [q.options[q.truth] for q in asked if q.person == sample.person]
        assert not [t for t in truths if t.lower() in f"{sample.question} {sample.answer}".lower()]
    near, unrelated = lessons.samples("near"), lessons.samples("unrelated")
    assert near and unrelated
    assert not {s.person for s in [*near, *unrelated]} & {q.person for q in study.questions}


def relearn_args(module, models, *flags):
    given = [
        models / "unlearned",
        "--reference",
        models / "retrained",
        "--vanilla",
        models / "vanilla",
        *flags,
    ]
    return module.parse_args(list(map(str, given)))


def test_relearning_trains_both_models_alike_and_keeps_neither(models, capsys):
    flags = ["--data", "adjacent,near", "--max_steps", 4, "--points", 2, "--lr", 1e-2, "--lora", "False"]
    found = probe("relearn", models, *flags)
    conditions = ["adjacent, 2 steps", "adjacent, 4 steps", "near, 4 steps"]
    assert list(dict.fromkeys(r["condition"] for r in found["rows"])) == conditions
    assert any(r["after"] != r["before"] for r in found["rows"])
    other = json.loads((models / "retrained/probes/relearn/results.json").read_text())
    # both are the same weights here, so both learn the same
    assert other["rows"] == found["rows"] and all(f["beyond"]["value"] == 0 for f in found["findings"])
    assert not list(models.rglob("model_*")), "trained models are not kept"
    run_script("eval/probes/show.py", models / "unlearned")  # the end of probe.sh
    assert "| relearn" in capsys.readouterr().out
    assert not [p for p in models.rglob(".*") if p.name.endswith((".partial", ".lock"))]


# ---------------------------------------------------------------- depth
def test_depth_goes_on_and_is_measured_once_for_the_retrained_model(models, monkeypatch, capsys):
    """The unlearned model is a copy of the retrained one here: depth 1, wherever there is anything."""
    from eval.answering.patching import PatchWorker

    answer, seen = PatchWorker.answer, []
    monkeypatch.setattr(PatchWorker, "answer", lambda self, s: seen.append(len(s)) or answer(self, s))
    found = probe("depth", models, "--gpus", "0")
    asked = sum(of["questions"] for of in found["modalities"].values())
    assert sum(seen) == 2 * 2 * asked == 2 * 40  # of people to forget and to retain, of two models
    for modality, places in (("image", {"picture", "answer"}), ("text", {"question", "answer"})):
        of = found["modalities"][modality]
        assert of["places"].keys() == places and (of["depth"] == 1) == (of["known_to_both"] < of["questions"])
    assert all(of["gap"]["interval"] for of in found["modalities"].values())
    assert all(of["net"]["value"] == 1 for of in found["modalities"].values() if of["net"])
    drops = models / "unlearned/probes/depth/drops.jsonl"
    lines = drops.read_bytes().splitlines(keepends=True)
    assert (
        len(lines) == 1 + 2
        and lines[1:]
        == (models / "retrained/probes/depth/drops.jsonl").read_bytes().splitlines(keepends=True)[1:]
    )
    drops.write_bytes(b"".join(lines[:2]) + lines[2][:100])  # killed in the midst of a line
    seen.clear()
    again = probe("depth", models, "--gpus", "0,0")  # two workers
    assert not seen and again["modalities"] == found["modalities"]
    assert drops.read_bytes() == b"".join(lines)


# ---------------------------------------------------------------- what the evaluations show already
def test_facts_and_rings_are_counted_from_the_evaluations(models, monkeypatch, capsys):
    from utils import models as loading

    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("no model is asked"))

    def answers(name, right) -> None:
        for file in (models / name).glob("zero_shot/*/predictions_*.jsonl"):
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            for line in lines:
                if "correct" in line:
                    line["correct"] = right(line["modality"])
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    answers("vanilla", lambda modality: modality == "text")
    assert probe("facts", models)["findings"] == []
    assert "there is nothing to count" in capsys.readouterr().out
    answers("vanilla", lambda modality: True)
    for name in ("retrained", "unlearned"):
        answers(name, lambda modality: modality == "text")
    found = probe("facts", models)
    people = 2
    assert [row["split"] for row in found["rows"]] == ["forget", "test"]
    assert all(
        row["facts"] >= 5 * people and row["cells"]["picture only"]["value"] == 100 for row in found["rows"]
    )
    assert all(f["verdict"].endswith(": as in the retrained model") for f in found["findings"])
    rings = {f["condition"]: f for f in probe("rings", models)["findings"]}
    assert rings["forgotten pictures"]["verdict"].endswith(": at its level")
    assert rings["same people in text"]["verdict"].endswith(": kept")
    assert (
        "damage" in rings["others, shown"]["verdict"]
        or "damage" in rings["same answers, not shown"]["verdict"]
    )
    assert "forgotten pictures" in capsys.readouterr().out


@pytest.fixture
def two_views(nano, tmp_path):
    """Nano CLEAR with another picture of everybody in the tables that are asked about."""
    shutil.copytree(nano / "CLEAR", tmp_path / "data" / "CLEAR")
    for name in ("forget10", "forget10_perturbed", "retain90", "retain_perturbed"):
        rows = read_table(nano / "CLEAR" / name)
        again = [
            row | {"image": picture_cell(32 + k), "caption": f"{row['caption']} Again."}
            for k, row in enumerate(rows)
        ]
        write_table(tmp_path / "data" / "CLEAR" / name, rows + again, like=nano / "CLEAR" / name)
    return tmp_path / "data" / "CLEAR"


def test_clear_is_probed_by_names_and_probabilities(two_views, tiny, tmp_path):
    for name, source in (("vanilla", "llava"), ("unlearned", "other_llava"), ("retrained", "llava")):
        shutil.copytree(tiny[source], tmp_path / name)
        run_script(
            "eval/CLEAR_eval.py", "--evaluated_model", tmp_path / name, "--data_split_dir", two_views,
            "--forget_ratio", 10, "--mcq", "likelihood", "--splits", "forget,retain",
            "--tasks", "classification,probability",
        )  # fmt: skip
    found = probe("picture", tmp_path, "--conditions", "blur,other_picture")
    kinds = {(r["condition"], r["who"], r["task"]) for r in found["rows"]}
    assert {
        (c, w, "classification") for c in ("blur", "other_picture") for w in ("forget", "retain")
    } <= kinds
    assert {(w, "probability") for w in ("forget", "retain")} == {
        k[1:] for k in kinds if k[2] == "probability"
    }
    assert all(condition == "blur" for condition, _, task in kinds if task == "probability")

    module = load_script("eval/probes/relearn.py")
    study = module.probe.Study(relearn_args(module, tmp_path))
    lessons = module.Lessons(study)
    taught, asked = lessons.samples("adjacent"), [q for q in study.questions if q.split == "forget"]
    shown = {q.picture for q in asked if q.picture is not None}
    assert taught and shown and not {s.picture for s in taught} & shown
    assert not {s.answer for s in taught} & {q.truth for q in asked if q.task == "probability"}

    depth = probe("depth", tmp_path)["modalities"]
    assert {m: of["questions"] for m, of in depth.items()} == {"image": 4, "text": 20}
    assert {f["modality"] for f in probe("membership", tmp_path)["findings"]} == {"image"}  # names
    memorised = {(f["modality"], f["condition"]) for f in probe("memorisation", tmp_path)["findings"]}
    assert {("text", "probability"), ("image", "truth_share")} <= memorised
    assert ("text", "truth_share") not in memorised  # no options there


# ---------------------------------------------------------------- given answers
def test_membership_and_memorisation_measure_each_model_once(models, monkeypatch):
    """The unlearned model is a copy of the retrained one here: nothing can be told from it beyond that."""
    from eval.answering.forced import TokenWorker

    answer, seen = TokenWorker.answer, []
    monkeypatch.setattr(TokenWorker, "answer", lambda self, s: seen.append(len(s)) or answer(self, s))
    found = probe("membership", models)
    # of two models, the options of two people's ten questions, and their right answers about other pictures
    assert sum(seen) == 2 * (4 * 20 + 10)
    names = ["loss", "zlib", "min_k", "min_k++", "reference"]
    kinds = [("image", ""), ("image", ", other pictures"), ("text", "")]
    assert [(f["modality"], f["condition"]) for f in found["findings"]] == [
        (modality, name + against) for modality, against in kinds for name in names
    ]
    lines = (models / "unlearned/probes/membership/tokens.jsonl").read_text().splitlines()[1:]
    measured = [key for line in lines for key in json.loads(line)]
    unseen = [key.rpartition("/")[0] for key in measured if key.startswith("test/")]
    assert len(unseen) == len(set(unseen)) == 10, "of other pictures the right answer alone"
    for f in found["findings"]:
        assert f["beyond"] == {"value": 0, "interval": [0, 0]} and f["values"]["privleak"] == 0
        assert f["verdict"].endswith(": as in the retrained model")
        assert f["values"]["auc"]["value"] == 0.5 or not f["condition"].startswith("reference")
    seen.clear()
    again = probe("membership", models, "--batch_size", 3)
    assert not seen and again["findings"] == found["findings"]

    told = probe("memorisation", models)["findings"]
    names = ["exact_memorisation", "extraction_strength", "probability", "truth_share"]
    assert [(f["modality"], f["condition"]) for f in told] == [
        (m, n) for m in ("image", "text") for n in names
    ]
    for f in told:
        model, reference, lost = (
            f[name] if name == "lost" else f["values"][name] for name in ("model", "reference", "lost")
        )
        assert model == reference and f["beyond"]["value"] == 0
        assert lost["value"] == pytest.approx(f["values"]["vanilla"]["value"] - model["value"], abs=2e-4)


# ---------------------------------------------------------------- help
def test_help_of_every_probe_imports_nothing_heavy():
    scripts = [p for p in sorted((ROOT / "eval/probes").glob("*.py")) if "def parse_args" in p.read_text()]
    program = """
import contextlib, io, runpy, sys
for script in sys.argv[1:]:
    out, sys.argv = io.StringIO(), [script, "--help"]
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    name = "eval/probes/" + script.rpartition("/")[2]
    assert f"python {name} runs/" in out.getvalue(), f"{name}: the help opens with a complete command"
heavy = [name for name in ("torch", "transformers", "scipy", "matplotlib") if name in sys.modules]
assert not heavy, heavy
"""
    words = [sys.executable, "-c", program, *map(str, scripts)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert len(scripts) >= 6 and done.returncode == 0, done.stderr

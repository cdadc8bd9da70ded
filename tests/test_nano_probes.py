"""Probes over worlds: steps that can be taken, the control beside them, and a table by hand."""

import json
import math
import sys

import pandas as pd
import pytest
from conftest import ROOT, edited, load_script

from eval.results.depth import NOTHING_LACKS
from nano import begun

probes = load_script("nano/probes.py")


def steps_of(monkeypatch, tmp_path, *flags):
    monkeypatch.setattr(sys, "argv", ["nano/probes.py", "--save_dir", str(tmp_path / "runs"), *flags])
    args = probes.parse_args()
    return args, probes.all_steps(args)


@pytest.mark.parametrize("benchmark", probes.DEMOS)
def test_every_step_can_be_taken(benchmark, monkeypatch, tmp_path):
    args, steps = steps_of(monkeypatch, tmp_path, "--benchmark", benchmark, "--worlds", "3,4")
    made = {one.makes for one in steps}
    assert len(made) == len({one.name for one in steps}) == len(steps) == 2 * (10 + 2 + 30)
    for one in steps[: len(steps) // 2]:
        script, *flags = one.argv
        assert all(need in made or (ROOT / need).is_file() for need in one.needs), one.name
        monkeypatch.setattr(sys, "argv", [script, *flags])
        parsed = load_script(script).parse_args()  # SystemExit for a flag that the script has not
        if script.startswith("eval/probes/"):
            assert parsed.reference == str(args.save_dir / "world_3/retrained")


def test_the_twin_is_the_retrained_model_but_for_its_seed(monkeypatch, tmp_path):
    args, steps = steps_of(monkeypatch, tmp_path, "--worlds", "3,4")
    named = {one.name: one for one in steps}
    own, other = named["world 3 retrained"], named["world 3 twin"]
    differ = [(a, b) for a, b in zip(own.argv, other.argv, strict=True) if a != b]
    folder = args.save_dir / "world_3"
    assert differ == [(f"{folder}/retrained", f"{folder}/twin"), ("3", "1003")]
    assert other.makes == folder / "twin/run.json" and own.needs == other.needs
    asked = named["world 3 questions to twin"]
    assert asked.needs == (other.makes,) and "zero_shot" in str(asked.makes) and "/twin/" in str(asked.makes)
    waits = named["world 3 depth of twin"].needs  # the retrained model is probed by the first
    assert named["world 3 depth of GA"].makes in waits and asked.makes in waits
    seeds = {one.argv[one.argv.index("--seed") + 1] for one in steps if "--seed" in one.argv}
    assert seeds == {"3", "4", "1003", "1004"}


def test_numbers_are_what_a_model_has_more_than_the_retrained_one(tmp_path):
    beyond = lambda value: {"value": value, "interval": None}
    kinds = {
        "quantise": [dict(condition="4 bits", number="accuracy", beyond=beyond(12.5))],
        "memorisation": [dict(condition="probability", number="probability", beyond=beyond(-0.25))],
        "depth": [dict(condition="depth", number="accuracy", values={"net": {"value": 0.75}})],
        "rings": [
            dict(condition="others", number="accuracy",
                 values={"model": {"value": 90.0}, "reference": {"value": 95.0}})
        ],
        "facts": [],
    }  # fmt: skip
    for name, findings in kinds.items():
        (folder := tmp_path / "probes" / name).mkdir(parents=True)
        about = {"modality": "image", "task": "classification", "values": {}, "verdict": "1.0: so it is"}
        found = [about | f for f in findings]
        whole = {"version": 1, "probe": name, "settings": {}, "rows": [], "findings": found}
        (folder / "results.json").write_text(json.dumps(whole))
    found = probes.numbers(tmp_path, list(kinds))
    assert {(f["probe"], f["condition"], f["asked"]): f["value"] for f in found} == {
        ("quantise", "4 bits", "image"): 12.5, ("memorisation", "probability", "image"): -25.0,
        ("depth", "depth", "image"): -25.0, ("rings", "others", "image"): -5.0,
    }  # fmt: skip
    for change, said in (({"verdict": f"depth 0.2: {NOTHING_LACKS}"}, NOTHING_LACKS),
                         ({"values": {"net": None}, "verdict": "depth: so it is"}, "so it is")):  # fmt: skip
        with edited(tmp_path / "probes/depth/results.json") as content:
            content["findings"][0] |= change
        (depth,) = probes.numbers(tmp_path, ["depth"])
        assert math.isnan(depth["value"]) and depth["verdict"] == said


def test_an_interval_of_students_t():
    """By hand: 1, 2, 3, 4, 5 have the mean 3 and the deviation 1.5811; t of 4 degrees is 2.7764."""
    mean, low, high = probes.estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    reach = 2.7764 * 1.58114 / 5**0.5
    assert (mean, low, high) == pytest.approx((3, 3 - reach, 3 + reach), abs=1e-3)
    assert probes.estimate([2.0, 2.0]) == (2, 2, 2)
    mean, *bounds = probes.estimate([7.0])
    assert mean == 7 and all(map(math.isnan, bounds))


def test_the_table_by_hand(capsys):
    values = {"GA": [10, 12, 14], "twin": [-1, 0, 1]}
    rows = [
        {"world": k, "model": model, "probe": "relearn", "condition": "near", "asked": "image", "value": v}
        for model, of in values.items()
        for k, v in enumerate(of)
    ]
    rows += [{**rows[-1], "world": k, "condition": "unrelated", "value": 5.0 + k / 10} for k in range(3)]
    found = probes.table(pd.DataFrame(rows))
    ga, twin, other = found.to_dict("records")
    assert (ga["more"], ga["more_than_twin"], ga["worlds"]) == (12, 12, 3)  # 11, 12, 13 more than the twin
    assert ga["twin_low"] == pytest.approx(12 - 4.3027 / 3**0.5, abs=0.01)
    assert (twin["more"], twin["low"] < 0 < twin["high"]) == (0, True) and other["low"] > 0
    lines = probes.shown(found).splitlines()
    assert "12.0 [7.0, 17.0] *" in lines[2] and "0.0 [-2.5, 2.5]" in lines[2] and "*" not in lines[3]
    told = probes.verdicts(pd.DataFrame(rows).assign(verdict=["hidden", "kept", "kept"] * 3))
    assert told.to_dict("records") == [
        {"probe": "relearn", "verdict": "hidden", "GA": 1, "twin": 2},
        {"probe": "relearn", "verdict": "kept", "GA": 2, "twin": 4},
    ]
    assert probes.remark(found).startswith("twin: 1 of 2 numbers differ")


def test_wrong_input_is_one_line(tmp_path, capsys):
    begun.note(probes.parse_args(["--save_dir", str(tmp_path)]), "benchmark")
    for flags, said in (
        (["--methods", "GA,magic"], "--methods: 'magic' is none of GA"),
        (["--worlds", "1,1"], "--worlds: an interval needs at least two"),
        (["--benchmark", "clear"], "was begun with mllmu, not clear"),
        (["--save_dir", "/proc/nowhere"], "--save_dir: /proc/nowhere cannot be written"),
    ):
        with pytest.raises(SystemExit) as end:
            probes.parse_args(["--save_dir", str(tmp_path), *flags])
        assert end.value.code == 2 and said in capsys.readouterr().err

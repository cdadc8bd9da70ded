"""Which metric can be trusted: the table of some models by hand, and where a metric's numbers are read."""

import json

import pandas as pd
import pytest
from conftest import load_script

from eval.results.probes import Finding, write_probe
from nano import begun

trust = load_script("nano/trust.py")


def frame(**metrics) -> pd.DataFrame:
    """metric=(of models that knew, of models that never did, all of them rounded)"""
    rows = []
    for metric, (knew, never, rounded) in metrics.items():
        for kind, values, after in (("knew", knew, rounded[0]), ("never", never, rounded[1])):
            for seed, (value, other) in enumerate(zip(values, after, strict=True)):
                about = {"kind": kind, "seed": seed, "modality": "image", "metric": metric}
                rows.append(about | {"condition": "plain", "value": value})
                rows.append(about | {"condition": "4 bits", "value": other})
    return pd.DataFrame(rows)


def test_the_table_by_hand():
    found = trust.table(
        frame(
            coarse=([1, 0], [0, 0], ([1, 0], [0, 0])),
            fine=([5, 4], [1, 2], ([4, 4], [1, 1])),
            wrong=([0, 1], [2, 3], ([0, 1], [2, 3])),
        )
    ).set_index("metric")
    assert list(found.index) == ["fine", "coarse", "wrong"]  # the best first
    assert list(found.auc) == [1.0, 0.75, 0.0]
    assert list(found.apart) == pytest.approx([3 / 0.5**0.5, 0.5 / 0.25**0.5, -2 / 0.5**0.5], abs=1e-3)
    assert found["4 bits, % of gap"].tolist() == [pytest.approx(100 * 0.5 / 3, abs=1e-3), 0, 0]
    assert (found.loc["fine", "knew"], found.loc["fine", "never"]) == (4.5, 1.5)
    assert found.loc["fine", ["auc_low", "auc_high"]].isna().all(), "two seeds are too few"
    many = trust.table(frame(coarse=([1, 0, 1, 0], [0] * 4, ([1] * 4, [0] * 4)))).iloc[0]
    assert 0.5 <= many.auc_low < many.auc == 0.75 < many.auc_high <= 1
    assert found["relearnt, % of gap"].isna().all()  # none was


def test_a_folder_goes_on_with_what_it_was_begun_with(tmp_path, capsys):
    at = ["--save_dir", str(tmp_path)]
    begun.note(trust.parse_args([*at, "--num_epochs", "3"]), *trust.SAME)
    assert trust.parse_args([*at, "--num_epochs", "3", "--seeds", "6"]).seeds == 6
    with pytest.raises(SystemExit) as end:
        trust.parse_args([*at, "--people", "30"])
    told = capsys.readouterr().err
    assert end.value.code == 2 and "--people: " in told and "begun with 20, not 30" in told
    assert "--num_epochs: " in told and "begun with 3, not 6" in told
    (tmp_path / begun.FILE).write_text("[")
    with pytest.raises(SystemExit) as end:
        trust.parse_args(at)
    assert end.value.code == 2 and begun.FILE in capsys.readouterr().err


def test_names_of_models_are_folders():
    assert trust.Model("knew", "0").name == "knew_0"
    assert trust.Model("never", "1", "4 bits").name == "never_1_4bits"


def test_numbers_are_those_of_the_evaluation_and_the_probes(tmp_path):
    kinds = lambda **entry: {"image": entry, "text": entry}
    split = {
        "classification": kinds(accuracy=60.0), "cloze": kinds(accuracy=50.0),
        "generation": kinds(rougeL=0.5, bleu=0.25),
    }  # fmt: skip
    for place, splits in (("", split), ("letter", {"classification": kinds(accuracy=20.0)})):
        file = tmp_path / place / "zero_shot/forget15/results.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"splits": {"forget": splits}}))
    probes = {
        "memorisation": ("truth_share", {"model": {"value": 0.9}, "ks_p": 0.01}),
        "membership": ("loss", {"auc": {"value": 0.8}}),
        "depth": ("depth", {"depth": 0.3, "net": {"value": 0.2}}),
    }
    for name, (condition, values) in probes.items():
        write_probe(tmp_path, name, {}, [], [Finding(condition, "", modality="image", values=values)])
    found = {(modality, metric): value for modality, metric, value in trust.numbers(tmp_path)}
    assert {metric: value for (modality, metric), value in found.items() if modality == "image"} == {
        "choice by likelihood": 60.0, "cloze": 50.0, "rougeL": 0.5, "bleu": 0.25, "choice by letter": 20.0,
        "truth_share": 0.9, "ks_p": 0.01, "membership loss": 0.8, "depth": 0.3, "net depth": 0.2,
    }  # fmt: skip
    assert len(found) == 10 + 5

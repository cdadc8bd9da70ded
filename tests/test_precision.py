"""Every computed step is taken and kept: the scripts in bf16 beside fp32, and what they say of it."""

import json

import pytest
import torch
from conftest import RATIO, run_script, weights
from test_training import equal, stop_at

from nano.stand_ins import train_tokenizer, write
from nano.tables import read_texts
from utils.loop.update import UpdateSample
from utils.models import load_model

LR = 1e-5


@pytest.fixture(scope="module")
def vanilla(nano, tmp_path_factory):
    """A LLaVA whose weights have the deviation of a real one's, 0.02, and lie in bf16."""
    folder = tmp_path_factory.mktemp("vanilla") / "model"
    tokenizer = train_tokenizer(read_texts([nano / "MLLMU-Bench"]), "llava", 600)
    write("llava", tokenizer, folder, dtype="bfloat16", fields={"text_config.initializer_range": 0.02})
    return folder


@pytest.fixture(scope="module")
def mask(nano, vanilla, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask") / "masks"
    run_script(
        "data_process/MLLMU_gen_mask.py", "--model_id", vanilla, "--data_split_dir", nano / "MLLMMU-Bench",
        "--forget_ratio", RATIO, "--save_dir", folder, "--batch_size", 16,
    )  # fmt: skip
    return folder / "mllmu_both_mask.pt"


def update(folder, vanilla) -> torch.Tensor:
    flat = lambda model: torch.cat([p.flatten() for p in weights(model).values()])
    return flat(folder) - flat(vanilla)


def likeness(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """(cosine, ratio of lengths)."""
    return float(a @ b / (a.norm() * b.norm())), float(a.norm() / b.norm())


@pytest.mark.parametrize("script", ["MLLMU_manifold.py", "MLLMU_GA_Diff.py"])
def test_an_epoch_in_bf16_is_one_in_fp32(script, train_args, vanilla, mask, tmp_path, capsys):
    """All weights, with a mask, and LoRA, merged and saved. Rounded to the nearest, most of it is lost."""
    flags = {"model_id": vanilla, "lr": LR}
    if "manifold" in script:
        flags["grad_mask_path"] = mask
    ways = {
        "fp32": {"dtype": "fp32"},
        "mixed": {"dtype": "mixed"},
        "bf16": {"dtype": "bf16"},
        "bf16 moments": {"dtype": "bf16", "moments": "bf16"},
        "8 bit moments": {"dtype": "bf16", "moments": "8bit"},
        "plain": {"dtype": "bf16", "rounding": "nearest"},
    }
    found, said = {}, {}
    for name, more in ways.items():
        run_script(script, *train_args(**flags, **more, save_dir=tmp_path / name))
        found[name], said[name] = update(tmp_path / name, vanilla), capsys.readouterr().out
    for name in ("mixed", "bf16", "bf16 moments", "8 bit moments"):
        cosine, length = likeness(found[name], found["fp32"])
        assert cosine > 0.97 and length == pytest.approx(1, abs=0.05), name
        assert "which keeps" not in said[name]
    assert likeness(found["plain"], found["fp32"])[0] < 0.97
    moved = {name: json.loads((tmp_path / name / "run.json").read_text())["update"] for name in ways}
    least = 0.9 if "manifold" in script else 0.6  # an adapter also lies in CLIP's last layer, which is unused
    assert all(moved[name]["moved"] > least for name in ("fp32", "mixed", "bf16"))
    assert f"moved: {100 * moved['bf16']['moved']:.1f} % of the weights" in said["bf16"]
    if "manifold" in script:
        assert moved["plain"]["moved"] < 0.5


def test_a_file_in_16_bits_says_what_it_lost(train_args, vanilla, tmp_path, capsys):
    argv = train_args(model_id=vanilla, lr=LR, lora=False, save_dtype="bf16")
    run_script("MLLMU_GA.py", *argv)
    said = capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["update"]
    assert kept["saved_as"] == "bfloat16" and kept["moved"] > 0.9 and kept["kept"]["cosine"] < 0.9
    assert (
        f"saved in bfloat16, which keeps {kept['kept']['length']:.2f}" in said and "--save_dtype fp32" in said
    )
    assert load_model(str(tmp_path / "run"), "fp32").config.dtype == torch.float32
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_evaluation_says_that_it_rounds(tiny, vanilla, nano, tmp_path, capsys):
    run_script("MLLMU_GA.py", "--model_id", vanilla, "--data_split_dir", nano / "MLLMMU-Bench",
               "--forget_ratio", RATIO, "--save_dir", tmp_path / "run", "--batch_size", 30)  # fmt: skip
    for model, dtype, noted in ((tmp_path / "run", "bf16", True), (tmp_path / "run", "fp32", False),
                                (vanilla, "bf16", False)):  # fmt: skip
        run_script(
            "eval/MLLMU_eval.py", "--evaluated_model", model, "--data_split_dir", nano / "MLLMU-Bench",
            "--forget_ratio", RATIO, "--splits", "forget", "--output_dir", tmp_path / dtype / model.name,
            "--dtype", dtype, "--max_new_tokens", 1,
        )  # fmt: skip
        assert ("note: weights in fp32 are rounded to bf16" in capsys.readouterr().out) == noted


@pytest.mark.parametrize("moments", ["fp32", "8bit"])
def test_resume_in_bf16_equals_uninterrupted(moments, train_args, vanilla, mask, tmp_path):
    flags = {
        "model_id": vanilla, "lr": LR, "dtype": "bf16", "moments": moments, "grad_mask_path": mask,
        "batch_size": 16,
    }  # fmt: skip
    run_script("MLLMU_manifold.py", *train_args(**flags, save_dir=tmp_path / "whole"))
    argv = train_args(**flags, save_steps=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 6)
        run_script("MLLMU_manifold.py", *argv)
    run_script("MLLMU_manifold.py", *argv, "--resume")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    found = [json.loads((tmp_path / name / "run.json").read_text())["update"] for name in ("whole", "run")]
    assert found[0] == found[1]


def test_what_is_counted_as_moved():
    """Of the weights that had a gradient; every k-th of them where there are many."""
    before = {"a": torch.arange(8.0), "b": torch.ones(2, 3), "c": torch.zeros(4)}
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in before.items()}
    sample = UpdateSample(before)
    parameters["a"].grad = torch.tensor([1.0] * 4 + [0.0] * 4)
    parameters["b"].grad = torch.ones(2, 3)
    sample.note_gradients(parameters)
    after = {
        "a": before["a"] + torch.tensor([1.0] * 3 + [0.0] * 5),
        "b": before["b"] + 1e-4,
        "c": before["c"],
    }
    found = sample.report(after, torch.bfloat16)
    assert (found["weights_seen"], found["moved"]) == (10, 0.9)
    assert found["kept"]["length"] == pytest.approx(1, abs=1e-3)  # 1e-4 on 1 is lost, 3 times 1 is not
    assert sample.report(before, torch.float32)["kept"] is None
    assert UpdateSample({"a": torch.ones(3 << 20)}).start["a"].numel() == 1 << 20

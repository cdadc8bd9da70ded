"""--quantize 4bit: adapters beside weights in 4 bits (QLoRA), merged into the weights as they were."""

import importlib.util

import pytest
import torch
from conftest import run_script, weights

from nano import stand_ins
from nano.tables import read_texts
from utils import families, models
from utils.adapters import lora
from utils.masks import Mask, pack

GA = "MLLMU_GA.py"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes, an optional package, is not installed",
)


def test_what_is_refused(train_args, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(SystemExit) as end:
        run_script(GA, *train_args(quantize="4bit", lora=False))
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and all(line.startswith("error: --quantize: ") for line in lines)
    assert len(lines) == 2 and "--lora True" in lines[0] and "pip install bitsandbytes" in lines[1]


@pytest.fixture(scope="module")
def wide(nano, tmp_path_factory):
    """Widths that bitsandbytes has a kernel for on CPUs: whole blocks of 64 weights, rows by 32."""
    folder = tmp_path_factory.mktemp("wide") / "llava"
    size = stand_ins.Size(
        image_size=56, layers=2, key_value_heads=2, head_dim=32, vision_layers=2, vision_heads=2,
        vision_head_dim=32, mlp_ratio=2,
    )  # fmt: skip
    tokenizer = stand_ins.train_tokenizer(read_texts([nano / "MLLMU-Bench"]), "llava", 600)
    stand_ins.write("llava", tokenizer, folder, size, dtype="float32")
    return folder


@needs_package
@pytest.mark.parametrize("method", ["KL_Min", "manifold"])
def test_training_beside_weights_in_4_bits(method, wide, train_args, tmp_path):
    """What is saved is the vanilla model as it is stored plus the adapter; with a mask and without."""
    flags = {"model_id": wide, "quantize": "4bit", "lora": True, "batch_size": 30, "lr": 1e-2}
    if method == "manifold":
        ones = {n: torch.arange(p.numel()).view(p.shape) % 2 == 0 for n, p in weights(wide).items()}
        Mask({n: pack(m) for n, m in ones.items()}, {n: list(m.shape) for n, m in ones.items()}).save(
            tmp_path / "m.pt"
        )
        flags["grad_mask_path"] = tmp_path / "m.pt"
    run_script(f"MLLMU_{method}.py", *train_args(**flags))
    before, after = weights(wide), weights(tmp_path / "run")
    targets = lora.weights_of(families.lora_targets(models.load_model(str(wide)), "both"))
    for name in before:
        same = torch.equal(before[name], after[name])
        assert same or name in targets, name
        if not same:  # far less than 4 bits would change it
            assert (after[name] - before[name]).norm() < 0.5 * before[name].norm()
    assert sum(not torch.equal(before[n], after[n]) for n in targets) > 0.7 * len(targets)

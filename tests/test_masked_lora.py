"""LoRA with a mask: two adapters, ΔW = s · m ⊙ (B_f · A_f) + s · B_r · A_r, in training and in the merge."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import RATIO, run_script, weights
from test_distributed import launch
from test_scripts import one_step, snapshot, trainer_of
from test_training import equal, stop_at

from utils import models
from utils.adapters import lora
from utils.adapters.masked import MaskedLowRank
from utils.collate import Collator
from utils.masks import Mask, pack

MANIFOLD = "MLLMU_manifold.py"


def test_the_low_rank_product_is_masked():
    """Values and gradients are those of torch on m ⊙ BA; nothing as large as W is kept for the backward."""
    draw = torch.Generator().manual_seed(0)
    shapes = (2, 5, 13), (3, 13), (7, 3)
    x, a, b = (torch.randn(s, generator=draw, dtype=torch.double).requires_grad_() for s in shapes)
    inside = torch.rand(7, 13, generator=draw) < 0.4
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        out = MaskedLowRank.apply(x, a, b, pack(inside))
    assert sorted(map(tuple, kept)) == sorted([*shapes, (12,)])
    expected = F.linear(x, inside * (b @ a))
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, generator=draw, dtype=torch.double)
    for got, right in zip(*(torch.autograd.grad((y * weight).sum(), (x, a, b)) for y in (out, expected))):
        torch.testing.assert_close(got, right)
    b.data[0, 0] = float("inf")
    assert MaskedLowRank.change(x, a, b, pack(inside))[~inside].eq(0).all()


@pytest.fixture
def trained(train_args, masks, monkeypatch):
    """trained(part, phases, **flags) -> trainer and phases after these steps ("f" forget, "r" retain)."""

    def run(part: str, phases: str, **flags):
        path = masks("llava") / f"mllmu_{part}_mask.pt"
        trainer, of = trainer_of(train_args(lora=True, grad_mask_path=path, **flags), monkeypatch)
        for number, letter in enumerate(phases):
            one_step(trainer, of[{"f": "forget", "r": "retain"}[letter]], number % 2 + 1)
        return trainer, of

    return run


def moved(trainer, before: dict) -> set[str]:
    return {n for n, p in trainer.parameters.items() if not torch.equal(p, before[n])}


def test_each_kind_of_step_trains_its_adapter(trained):
    """The other one keeps its values and its moments, whatever momentum and decay would do."""
    trainer, of = trained("both", "fr", weight_decay=0.1, lora_dropout=0.3)
    for name, ending in (("forget", ".forget.weight"), ("retain", ".default.weight")):
        before, state = snapshot(trainer), trainer.optimizer.optimizer.state
        rest = [p for n, p in trainer.parameters.items() if ".lora_" in n and not n.endswith(ending)]
        moments = [(p, k, v.clone()) for p in rest for k, v in state.get(p, {}).items()]
        one_step(trainer, of[name], 2)
        changed = moved(trainer, before)
        assert changed and all(n.endswith(ending) for n in changed)
        assert moments and all(torch.equal(state[p][k], v) for p, k, v in moments)


@pytest.mark.parametrize("part", ["language", "both"])
def test_what_forgetting_changed_lies_inside_the_mask(part, trained, tiny, masks):
    """The merged forget part alone: outside vanilla, bit for bit, inside moved; and what is merged is what
    has been trained."""
    trainer, of = trained(part, "frfr", lora_dropout=0, lr=1e-2)
    mask, vanilla = Mask.load(str(masks("llava") / f"mllmu_{part}_mask.pt"), "llava"), weights(tiny["llava"])
    layers = lora.adapted_layers(trainer.model)
    two = [name for name, layer in layers.items() if lora.FORGET in layer.lora_A]
    assert set(two) == set(mask.only(layers).bits)
    assert part == "both" or not any("vision" in name for name in two)

    batch = Collator(trainer.processor, trainer.family)(of["forget"].samples[:4])
    both = models.load_model(str(tiny["llava"]))
    lora.merge(trainer.model, both)
    with torch.no_grad():
        logits = [m.eval()(**batch.inputs).logits for m in (trainer.model, both)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)

    for name, p in trainer.parameters.items():
        if name.endswith("lora_B.default.weight"):
            p.data.zero_()
    forgot = models.load_model(str(tiny["llava"]))
    lora.merge(trainer.model, forgot)
    inside_moved = inside = 0
    for name, after in forgot.named_parameters():
        m = mask.of(name) if name in two else torch.zeros(after.shape, dtype=torch.bool)
        assert torch.equal(after[~m].view(torch.int32), vanilla[name][~m].view(torch.int32)), name
        inside, inside_moved = inside + int(m.sum()), inside_moved + int((after != vanilla[name])[m].sum())
    assert inside_moved > 0.9 * inside


def test_resume_of_a_masked_adapter(train_args, masks, tmp_path):
    flags = {"lora": True, "batch_size": 16, "lora_dropout": 0.3, "lora_parts": "language"}
    flags["grad_mask_path"] = masks("llava") / "mllmu_both_mask.pt"
    run_script(MANIFOLD, *train_args(**flags, save_dir=tmp_path / "whole"))
    argv = train_args(**flags, save_steps=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 6)
        run_script(MANIFOLD, *argv)
    run_script(MANIFOLD, *argv, "--resume")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    update = json.loads((tmp_path / "run" / "run.json").read_text())["update"]
    assert update["moved"] > 0.5


def test_a_kept_state_holds_the_adapters_alone(train_args, masks, tmp_path):
    from safetensors.torch import load_file

    argv = train_args(
        lora=True, save_steps=1, batch_size=30, grad_mask_path=masks("llava") / "mllmu_both_mask.pt"
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        run_script(MANIFOLD, *argv)
    (file,) = tmp_path.glob(".run.partial/*/model.safetensors")
    names = set(load_file(file))
    assert names and all(".lora_" in name for name in names)
    assert {name.split(".")[-2] for name in names} == {"default", lora.FORGET}


def test_a_masked_adapter_in_two_processes(masks, tiny, nano, tmp_path):
    argv = [
        "--model_id", tiny["llava"], "--data_split_dir", nano / "MLLMMU-Bench", "--forget_ratio", RATIO,
        "--grad_mask_path", masks("llava") / "mllmu_language_mask.pt", "--lr", "1e-2", "--adam_eps", "1e-2",
        "--lora", True, "--lora_dropout", 0,
    ]  # fmt: skip
    launch(MANIFOLD, *argv, "--batch_size", 8, "--save_dir", tmp_path / "two")
    run_script(MANIFOLD, *argv, "--batch_size", 16, "--save_dir", tmp_path / "one")
    one, two, before = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(tiny["llava"])
    assert max(float((one[n] - before[n]).abs().max()) for n in one) > 1e-3, "the run should move the weights"
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0, msg=name)


def test_the_script_says_how_much_of_the_mask_is_reached(trained, capsys, masks):
    trained("both", "")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "the forget adapter reaches" in line]
    mask = Mask.load(str(masks("llava") / "mllmu_both_mask.pt"), "llava")
    assert f"of {mask.count()[0]:,} salient weights" in line

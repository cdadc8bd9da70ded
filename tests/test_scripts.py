"""MMUnlearner end to end: what may not change keeps every bit, and a mask that does not fit is refused."""

import shutil

import pytest
import torch
from conftest import RATIO, ROOT, jsonl, load_script, run_script, weights

from utils import families, models, training
from utils.masks import Mask, pack
from utils.training import Trainer, once

MANIFOLD = "MLLMU_manifold.py"


def trainer_of(argv, monkeypatch):
    """The script's own trainer, forget phase and retain phase, before the first step."""
    caught = {}

    def caught_fit(self, order):
        caught.update(trainer=self, phases={p.name: p for p in order.phases})

    monkeypatch.setattr(Trainer, "fit", caught_fit)
    monkeypatch.setattr(Trainer, "save", lambda self: None)
    run_script(MANIFOLD, *argv)
    return caught["trainer"], caught["phases"]


def snapshot(trainer) -> dict:
    return {n: p.detach().clone() for n, p in trainer.parameters.items()}


def one_step(trainer, phase, number=1) -> None:
    from utils.collate import Collator

    batch = Collator(trainer.processor, trainer.family)(phase.samples[8 * (number - 1) : 8 * number])
    trainer._step(phase, [(batch, True)], number)


@pytest.mark.parametrize("part", ["language", "vision", "both"])
@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_a_forget_step_stays_inside_the_mask(kind, part, train_args, masks, tiny, monkeypatch):
    """One forget step on a fresh model, and one after retain steps have given every weight momentum."""
    path = masks(kind) / f"mllmu_{part}_mask.pt"
    mask = Mask.load(str(path), kind)
    argv = train_args(model_id=tiny[kind], grad_mask_path=path, weight_decay=0.1)
    trainer, phases = trainer_of(argv, monkeypatch)
    assert phases["retain"].mask is None and phases["forget"].mask is not None
    part_of = families.part_of_parameters(models.load_model(str(tiny[kind])))
    for number, retain_first in ((1, False), (2, True)):
        if retain_first:
            before = snapshot(trainer)
            one_step(trainer, phases["retain"], 1)
            assert any(
                not torch.equal(before[n], p) for n, p in trainer.parameters.items() if n not in mask.bits
            ) or (part == "both")
        before = snapshot(trainer)
        one_step(trainer, phases["forget"], number)
        moved = total = 0
        for name, p in trainer.parameters.items():
            inside = mask.of(name) if name in mask.bits else torch.zeros(p.shape, dtype=torch.bool)
            assert torch.equal(p[~inside], before[name][~inside]), name
            moved += int((p[inside] != before[name][inside]).sum())
            total += int(inside.sum())
        assert moved > 0.5 * total, "inside the mask weights change"
        other = [n for n in trainer.parameters if part != "both" and part_of[n] != part]
        assert all(torch.equal(trainer.parameters[n], before[n]) for n in other)


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_a_whole_run(kind, train_args, masks, tiny, tmp_path):
    path = masks(kind) / "mllmu_language_mask.pt"
    run_script(MANIFOLD, *train_args(model_id=tiny[kind], grad_mask_path=path, batch_size=15, lr=1e-4))
    log = jsonl(tmp_path / "run" / "log.jsonl")
    assert "".join(line["phase"][0] for line in log) == "frrrrfrrrr"  # 2 and 8 batches
    assert all((line["loss"] < 0) == (line["phase"] == "forget") for line in log)
    before, after = weights(tiny[kind]), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[n], after[n]) for n in before) > len(before) / 2


@pytest.mark.parametrize("mask_retain", [False, True])
def test_a_whole_run_inside_the_mask(mask_retain, train_args, masks, tiny, tmp_path, monkeypatch):
    """The run's loop, optimizer, schedule and saving, with forget steps alone or with masked retain steps:
    outside the mask the file is unchanged."""
    if not mask_retain:
        monkeypatch.setattr(training, "alternate", lambda forget, retain, args: once(forget))
    path = masks("llava") / "mllmu_language_mask.pt"
    flags = {"grad_mask_path": path, "mask_retain": mask_retain, "weight_decay": 0.1, "num_epochs": 2}
    run_script(MANIFOLD, *train_args(**flags, batch_size=8))
    log = jsonl(tmp_path / "run" / "log.jsonl")
    assert {line["phase"] for line in log} == {"forget"} | ({"retain"} if mask_retain else set())
    mask, before, after = Mask.load(str(path), "llava"), weights(tiny["llava"]), weights(tmp_path / "run")
    changed = 0
    for name in before:
        inside = mask.of(name) if name in mask.bits else torch.zeros(before[name].shape, dtype=torch.bool)
        assert torch.equal(before[name][~inside], after[name][~inside]), name
        changed += int((before[name] != after[name]).sum())
    assert changed > 0.3 * mask.count()[0]


def test_alpha_scales_the_forgetting_loss(train_args, masks, tmp_path):
    path = masks("llava") / "mllmu_both_mask.pt"
    losses = []
    for alpha in (1, 0.5):
        folder = tmp_path / f"alpha{alpha}"
        argv = train_args(grad_mask_path=path, forget_alpha=alpha, lr=1e-9, batch_size=30, save_dir=folder)
        run_script(MANIFOLD, *argv)
        losses.append({line["phase"]: line["loss"] for line in jsonl(folder / "log.jsonl")})
    assert losses[1]["forget"] == pytest.approx(0.5 * losses[0]["forget"], rel=1e-4)
    assert losses[1]["retain"] == pytest.approx(losses[0]["retain"], rel=1e-4)


# ---------------------------------------------------------------- masks that do not fit
@pytest.fixture
def refused(train_args, tmp_path, capsys, monkeypatch):
    """refused(**flags) -> what is said; the model must not have been loaded."""

    def loading(*args, **kwargs):
        raise AssertionError("the model was loaded before the input was checked")

    def run(script: str = MANIFOLD, **flags) -> str:
        monkeypatch.setattr(models, "load_model", loading)
        capsys.readouterr()  # what making the masks said
        with pytest.raises(SystemExit) as end:
            run_script(script, *train_args(**flags))
        assert end.value.code == 2
        assert not (tmp_path / "run").exists() and not (tmp_path / ".run.partial").exists()
        said = capsys.readouterr().err
        assert said.startswith("error: --") and "Traceback" not in said
        return said

    return run


def test_the_mask_of_another_model(refused, masks, tiny):
    path = masks("llava") / "mllmu_language_mask.pt"
    said = refused(model_id=tiny["other_llava"], grad_mask_path=path)
    assert "--grad_mask_path" in said and str(tiny["llava"]) in said and "MLLMU_gen_mask.py" in said


def test_who_makes_the_right_mask(refused, masks, tiny, nano):
    data = {"data_split_dir": nano / "CLEAR", "forget_ratio": 10}
    path = masks("llava") / "mllmu_language_mask.pt"
    said = refused("CLEAR_manifold.py", model_id=tiny["other_llava"], grad_mask_path=path, **data)
    assert "CLEAR_gen_mask.py makes one" in said and "MLLMU_gen_mask" not in said


def test_the_mask_of_other_people(masks, train_args, nano, capsys):
    """Said, not refused: somebody may want to see what it does."""
    path = masks("llava") / "mllmu_both_mask.pt"
    others = {"forget_ratio": 5}, {"forget_ratio": 10, "data_split_dir": nano / "CLEAR"}
    for script, flags in zip((MANIFOLD, MANIFOLD, "CLEAR_manifold.py"), ({}, *others)):
        with pytest.raises(SystemExit) as end:
            run_script(script, *train_args(grad_mask_path=path, dry_run=True, **flags))
        said = capsys.readouterr().out
        told = f"note: {path} was made to forget something else than this forget set" in said
        assert end.value.code == 0 and told == bool(flags), said


def test_a_model_of_the_hub_that_cannot_be_reached(refused, masks):
    said = refused(model_id="nobody/nothing", grad_mask_path=masks("llava") / "mllmu_both_mask.pt")
    assert said.startswith("error: --model_id: nobody/nothing is no folder here, was not downloaded before")


def test_the_vanilla_model_is_what_counts(refused, masks, tiny):
    path = masks("llava") / "mllmu_language_mask.pt"
    assert "--grad_mask_path" in refused(vanilla_dir=tiny["other_llava"], grad_mask_path=path)


def test_the_mask_of_another_family(refused, masks, tiny):
    said = refused(model_id=tiny["qwen2_vl"], grad_mask_path=masks("llava") / "mllmu_both_mask.pt")
    assert "--grad_mask_path" in said and "does not have" in said


def test_an_empty_mask(refused, masks, tmp_path):
    mask = Mask.load(str(masks("llava") / "mllmu_language_mask.pt"), "llava")
    mask.bits = {name: torch.zeros_like(bits) for name, bits in mask.bits.items()}
    mask.save(tmp_path / "empty.pt")
    assert "lets no weight change" in refused(grad_mask_path=tmp_path / "empty.pt")


def test_wrong_shapes(refused, tmp_path):
    ones = torch.ones(3, 5).bool()
    Mask({"lm_head.weight": pack(ones)}, {"lm_head.weight": [3, 5]}).save(tmp_path / "shape.pt")
    assert "lm_head.weight has shape [3, 5]" in refused(grad_mask_path=tmp_path / "shape.pt")


def test_no_mask_file_and_no_mask_at_all(refused, tmp_path):
    assert "no such file" in refused(grad_mask_path=tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("hello")
    assert "is not a mask file" in refused(grad_mask_path=tmp_path / "text.pt")


def test_lora_and_a_mask(refused, masks, capsys):
    path = masks("llava") / "mllmu_language_mask.pt"
    capsys.readouterr()  # the masks may have been made just now
    assert "--merge" in refused(lora=True, grad_mask_path=path, merge=False)
    assert "--unlisted" in refused(lora=True, grad_mask_path=path, unlisted="train")
    assert "nothing salient" in refused(lora=True, grad_mask_path=path, lora_parts="vision")


def test_a_released_mask_trains(train_args, masks, tiny, tmp_path, monkeypatch):
    """The file of the paper's code: bool tensors under transformers 4 names, 0 where there was no
    gradient."""
    from test_masks import old_name

    monkeypatch.setattr(training, "alternate", lambda forget, retain, args: once(forget))
    mask = Mask.load(str(masks("qwen2_vl") / "mllmu_language_mask.pt"), "qwen2_vl")
    released = {old_name(n, "qwen2_vl"): mask.of(n) for n in mask.bits}
    torch.save({"weight": released | {"visual.patch_embed.proj.weight": 0}}, tmp_path / "released.pt")
    argv = train_args(model_id=tiny["qwen2_vl"], grad_mask_path=tmp_path / "released.pt")
    run_script(MANIFOLD, *argv)
    before, after = weights(tiny["qwen2_vl"]), weights(tmp_path / "run")
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and changed <= set(mask.bits)


# ---------------------------------------------------------------- the user's own commands
def test_the_scripts_agree_on_what_they_share():
    """Same flags, same help, same defaults in every training script."""
    import argparse

    flags = {}
    for path in sorted(ROOT.glob("MLLMU_*.py")):
        caught = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("utils.cli.parse", lambda p, argv=None, caught=caught: caught.append(p))
            load_script(path.name).parse_args()
        flags[path.name] = {a.option_strings[0]: a for a in caught[0]._actions}
    first = flags["MLLMU_GA.py"]
    assert len(flags) >= 3
    for name, theirs in flags.items():
        for flag in first.keys() & theirs.keys() - {"-h", "--lora", "--data_split_dir"}:
            assert theirs[flag].default == first[flag].default and theirs[flag].help == first[flag].help, (
                name,
                flag,
            )
        undocumented = [f for f, a in theirs.items() if not a.help or a.help is argparse.SUPPRESS]
        assert not undocumented, name


def test_a_command_as_a_user_types_it(tiny, nano, tmp_path):
    """From another folder, with the flags of the paper's README."""
    import os
    import subprocess
    import sys

    words = (
        f"--model_id {tiny['llava']} --vanilla_dir {tiny['other_llava']} --data_split_dir data/MLLMMU-Bench "
        f"--forget_split_ratio {RATIO} --save_dir out --batch_size 4 --lr 1e-5 --num_epochs 1 --ans_only True"
    )
    shutil.copytree(nano, tmp_path / "data")
    done = subprocess.run(
        [sys.executable, str(ROOT / "MLLMU_GA.py"), *words.split()],
        cwd=tmp_path, env=os.environ, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "run.json").is_file()
    (settings,) = [line for line in done.stdout.splitlines() if line.startswith("settings")]
    assert "--lr" not in settings, "what is not the default"
    assert "forget: 30 questions of 2 people" in done.stdout and "steps: 8 forget" in done.stdout

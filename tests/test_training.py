"""The loop: order of steps, the same weights however a batch is cut, resume, and what a run leaves on
disk."""

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import FAMILIES, RATIO, edited, jsonl, picture_cell, run_script, sample, weights

from utils import families, training
from utils.loop.batches import Stream
from utils.reading import weightless
from utils.released import Released
from utils.training import Phase, alternate, once

GA, FINETUNE = "MLLMU_GA.py", "MLLMU_finetune.py"
SAMPLES = [sample(id=f"p/{k}", picture=picture_cell()) for k in range(10)]
SAMPLES += [sample(id=f"t/{k}") for k in range(7)]


def ids(batches) -> list[list[str]]:
    return [[s.id for s in batch] for batch in batches]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# ---------------------------------------------------------------- streams
def test_each_sample_once_per_pass_and_modalities_apart():
    stream = Stream(SAMPLES, 4, "42/x", shuffle=True)
    assert stream.batches_per_pass == 3 + 2
    passes = ids(itertools.islice(stream.starting_at(0), 15))
    for k in range(3):
        batches = passes[5 * k : 5 * k + 5]
        assert sorted(i for batch in batches for i in batch) == sorted(s.id for s in SAMPLES)
        assert all(len({i[0] for i in batch}) == 1 for batch in batches)
        assert sorted(map(len, batches)) == [2, 3, 4, 4, 4]
    assert passes[:5] != passes[5:10], "each pass is shuffled anew"


def test_the_seed_fixes_the_order():
    first = lambda seed: ids(itertools.islice(Stream(SAMPLES, 4, seed, True).starting_at(0), 10))
    assert first("42/x") == first("42/x")
    assert first("42/x") != first("43/x") and first("42/x") != first("42/y")


@pytest.mark.parametrize("shuffle", [True, False])
def test_starting_at_goes_on_exactly(shuffle):
    stream = Stream(SAMPLES, 4, "42/x", shuffle)
    whole = ids(itertools.islice(stream.starting_at(0), 17))
    for position in (1, 4, 5, 6, 11):
        assert ids(itertools.islice(stream.starting_at(position), 17 - position)) == whole[position:]


def test_without_shuffle_the_order_is_the_tables():
    batches = ids(itertools.islice(Stream(SAMPLES, 4, "42/x", False).starting_at(0), 5))
    assert [i for batch in batches for i in batch] == [s.id for s in SAMPLES]


# ---------------------------------------------------------------- orders
def sequence(retain: int, forget: int, forget_data="cycle", alpha=1.0) -> str:
    phases = Phase("forget", [], None), Phase("retain", [], None)
    args = SimpleNamespace(forget_alpha=alpha, released=Released(forget_data=forget_data))
    order = alternate(*phases, args)
    assert order.phases == (phases if alpha else phases[1:])
    return "".join(p.name[0] for p in order.epoch({"retain": retain, "forget": forget}))


@pytest.mark.parametrize(
    ("retain", "forget", "expected"),
    [(10, 3, "frrrfrrrfrrrfr"), (2, 5, "frfr"), (4, 4, "frfrfrfr"), (6, 3, "frrfrrfrr"), (5, 1, "frrrrr"),
    (7, 4, "fr" * 7)],
)  # fmt: skip
def test_alternate(retain, forget, expected):
    assert sequence(retain, forget) == expected


def test_forget_data_may_end_within_an_epoch():
    assert sequence(10, 3, "once") == "frrrfrrrfrrrr" and sequence(6, 3, "once") == "frrfrrfrr"
    assert sequence(7, 4, "once") == "fr" * 4 + "r" * 3 and sequence(2, 5, "once") == "frfr"


def test_without_weight_nothing_is_forgotten():
    assert sequence(3, 2, alpha=0.0) == "rrr"


def test_once():
    phase = Phase("forget", [], None)
    assert list(once(phase).epoch({"forget": 3})) == [phase] * 3


# ---------------------------------------------------------------- a run
def test_what_a_run_leaves(train_args, tmp_path, tiny):
    run_script(GA, *train_args(num_epochs=2, lr_schedule="linear", warmup_ratio=0.25))
    folder = tmp_path / "run"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"], "no partial folder stays"
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "run.json", "log.jsonl", "tokenizer.json"} <= names
    assert not [n for n in names if "adapter" in n or n == "state"]
    log = jsonl(folder / "log.jsonl")
    assert [line["step"] for line in log] == list(range(1, 9)) and {line["phase"] for line in log} == {
        "forget"
    }
    assert [line["lr"] for line in log] == pytest.approx(
        [0, 0.5e-3, 1e-3, *(1e-3 * k / 6 for k in (5, 4, 3, 2, 1))], abs=1e-9
    )
    assert all(line["loss"] < 0 and line["grad_norm"] > 0 and line["terms"] >= 6 for line in log)
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["script"] == "MLLMU_GA.py" and manifest["seed"] == 42 and manifest["steps"] == 8
    assert manifest["arguments"]["forget_ratio"] == RATIO and manifest["arguments"]["num_epochs"] == 2
    assert manifest["vanilla"] == str(tiny["llava"]) and manifest["processes"] == 1
    assert (
        manifest["data"]["forget"]["samples"] == 30 and len(manifest["data"]["forget"]["fingerprint"]) == 16
    )
    assert set(manifest["versions"]) >= {"torch", "transformers"} and manifest["device"] == "cpu"
    assert manifest["final_losses"] == {"forget": log[-1]["loss"]}
    assert manifest["seconds"] > 0 and manifest["peak_memory_bytes"] > 1e8


def test_a_constant_rate_is_warmed_up_too(train_args, tmp_path, capsys):
    run_script(GA, *train_args(lr_schedule="constant", warmup_ratio=0.5))
    log = jsonl(tmp_path / "run" / "log.jsonl")
    assert [line["lr"] for line in log] == pytest.approx([0, 0.5e-3, 1e-3, 1e-3])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_script(GA, *train_args(schedule_every="epoch", warmup_ratio=0.5, lora=False, lora_r=8))
    told = capsys.readouterr().err
    assert end.value.code == 2 and "--warmup_ratio: not with --schedule_every epoch" in told
    assert "--lora_r: has no effect with --lora False" in told


def test_a_head_of_its_own_stays_one(train_args, tiny, tmp_path):
    """Though config.json says that it is the embeddings."""
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(tiny["llava"], tmp_path / "base"))
    with edited(base / "config.json") as config:
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    file = base / "model.safetensors"
    held = load_file(file)
    assert any("lm_head" in name for name in held)
    save_file(held, file, metadata={"format": "pt"})
    run_script(GA, *train_args(model_id=base, lora=False))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["tie_word_embeddings"] is False
    assert any("lm_head" in name for name in load_file(tmp_path / "run" / "model.safetensors"))


def test_rounding_of_all_weights_is_told(train_args, vanilla_in_fp32, tmp_path, capsys):
    run_script(GA, *train_args(model_id=vanilla_in_fp32, lora=False, dtype="bf16", max_steps=1))
    assert "rounded to bf16 on loading, also outside a mask" in capsys.readouterr().out


@pytest.fixture
def vanilla_in_fp32(train_args, tmp_path):
    run_script(GA, *train_args(save_dir=tmp_path / "fp32", lora=False, max_steps=1))
    return tmp_path / "fp32"


@pytest.mark.parametrize("kind", FAMILIES)
def test_lora_is_merged_into_its_targets_only(kind, train_args, tmp_path, tiny):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run_script(GA, *train_args(model_id=tiny[kind], lora_parts="both", lr=1e-2))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    AutoProcessor.from_pretrained(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*adapter*"))
    before, after = weights(tiny[kind]), dict(model.named_parameters())
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert before.keys() == after.keys()
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert changed <= linear and "lm_head.weight" not in changed
    # CLIP's last layer is not read (features of the layer before): nothing there gets a gradient
    unread = {n for n in linear if kind == "llava" and "vision_tower.encoder.layers.1" in n}
    assert linear - changed == unread


@pytest.mark.parametrize("part", ["language", "vision", "both"])
def test_lora_targets_are_modules(family, tiny, part):
    model = weightless.empty_model(str(tiny[family]))
    targets = families.lora_targets(model, part)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    assert len(set(targets)) == len(targets) and set(targets) <= linear
    of = families.part_of_parameters(model)
    assert set(targets) == {n for n in linear if part in ("both", of[f"{n}.weight"])}


@pytest.mark.parametrize("kind", FAMILIES)
def test_without_lora_every_weight_that_is_read_changes(kind, train_args, tmp_path, tiny, nano):
    run_script(FINETUNE, *train_args(model_id=tiny[kind], lora=False, data_split_dir=nano / "MLLMU-Bench"))
    before, after = weights(tiny[kind]), weights(tmp_path / "run")
    same = [n for n in before if torch.equal(before[n], after[n])]
    unread = {
        "llava": ("vision_tower.encoder.layers.1", "post_layernorm"),
        "qwen2_vl": (),
        "mllama": ("tile_embedding", "tile_positional_embedding.embedding"),  # their gates open late
    }[kind]
    assert [n for n in same if not any(word in n for word in unread)] == []
    log = jsonl(tmp_path / "run" / "log.jsonl")
    assert log[-1]["loss"] < log[0]["loss"]


def test_a_batch_may_be_cut(train_args, tmp_path, nano):
    """Pictures and texts, a last batch that is not full: 8 at once and 2 x 4 accumulated give the same
    weights."""
    base = {"lora": False, "adam_eps": 1e-2, "lr": 1e-2, "data_split_dir": nano / "MLLMU-Bench"}
    cuts = {"a": (8, 1), "b": (4, 2)}
    for name, (size, steps) in cuts.items():
        argv = train_args(
            **base, batch_size=size, gradient_accumulation_steps=steps, save_dir=tmp_path / name
        )
        run_script(FINETUNE, *argv)
    a, b = (weights(tmp_path / name) for name in cuts)
    logs = [jsonl(tmp_path / name / "log.jsonl") for name in cuts]
    terms, norms = ([[line[key] for line in log] for log in logs] for key in ("terms", "grad_norm"))
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert terms[0] == terms[1] and len(set(terms[0])) > 3
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=0)


def test_gradient_checkpointing_changes_nothing(train_args, tmp_path):
    for name, on in (("plain", False), ("checkpointed", True)):
        run_script(
            GA, *train_args(lora=False, adam_eps=1e-2, gradient_checkpointing=on, save_dir=tmp_path / name)
        )
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "checkpointed")
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=0)


def test_the_seed_fixes_the_weights(train_args, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_script(GA, *train_args(lora_dropout=0.3, seed=seed, save_dir=tmp_path / name))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert equal(a, b) and not equal(a, c)
    strip = lambda name: [
        {k: v for k, v in line.items() if k != "seconds"} for line in jsonl(tmp_path / name / "log.jsonl")
    ]
    assert strip("a") == strip("b")


def test_loader_processes_change_nothing(train_args, tmp_path):
    for name, workers in (("none", 0), ("two", 2)):
        run_script(GA, *train_args(num_workers=workers, save_dir=tmp_path / name))
    assert equal(weights(tmp_path / "none"), weights(tmp_path / "two"))


def test_clipping(train_args, tmp_path):
    """Without momentum in the way: a step of AdamW with a large epsilon is proportional to the clipped
    gradient."""
    moved = {}
    for limit in (1e-3, 2e-3, 0):
        argv = train_args(
            lora=False, adam_eps=1e3, lr=1e3, lr_schedule="constant", batch_size=30, max_grad_norm=limit,
            save_dir=tmp_path / f"clip{limit}",
        )  # fmt: skip
        run_script(GA, *argv)
        after, before = weights(tmp_path / f"clip{limit}"), weights(argv[1])
        moved[limit] = sum(float(((after[n] - before[n]).double() ** 2).sum()) for n in after) ** 0.5
        norm = jsonl(tmp_path / f"clip{limit}" / "log.jsonl")[0]["grad_norm"]
    assert norm > 2e-3
    assert moved[1e-3] == pytest.approx(1e-3, rel=0.1) and moved[2e-3] == pytest.approx(2e-3, rel=0.1)
    assert moved[0] == pytest.approx(norm, rel=0.1)


# ---------------------------------------------------------------- stopping and going on
def stop_at(patch, step: int) -> None:
    whole = training.Trainer._step

    def cut(self, phase, forwards, number):
        if number == step:
            raise KeyboardInterrupt
        return whole(self, phase, forwards, number)

    patch.setattr(training.Trainer, "_step", cut)


@pytest.mark.parametrize("stop", [6, 7])
def test_resume_equals_uninterrupted(train_args, tmp_path, stop):
    """Kept after steps 3 and 6; LoRA dropout on; the second pass over the data is under way."""
    argv = train_args(num_epochs=2, lora_dropout=0.5, save_steps=3)
    run_script(GA, *train_args(num_epochs=2, lora_dropout=0.5, save_dir=tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, stop)
        run_script(GA, *argv)
    assert not (tmp_path / "run").exists()
    state = tmp_path / ".run.partial" / "state"
    assert json.loads((state / "progress.json").read_text())["step"] == 3 * ((stop - 1) // 3)
    run_script(GA, *argv, "--resume", True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    strip = lambda name: [
        {k: v for k, v in line.items() if k != "seconds"} for line in jsonl(tmp_path / name / "log.jsonl")
    ]
    assert strip("whole") == strip("run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "whole"]


def test_resume_of_a_masked_run(train_args, masks, tmp_path):
    """Two phases with streams of their own, all weights, a mask, momentum of both kinds of step."""
    argv = train_args(batch_size=16, save_steps=2, grad_mask_path=masks("llava") / "mllmu_both_mask.pt")
    plain = train_args(batch_size=16, save_dir=tmp_path / "whole", grad_mask_path=argv[-1])
    run_script("MLLMU_manifold.py", *plain)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 6)
        run_script("MLLMU_manifold.py", *argv)
    run_script("MLLMU_manifold.py", *argv, "--resume")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_resume_without_a_state_is_refused(train_args, capsys):
    with pytest.raises(SystemExit) as end:
        run_script(GA, *train_args(), "--resume")
    assert end.value.code == 2 and "--resume: no kept state" in capsys.readouterr().err


def test_only_restart_forgets_the_old_state(train_args, tmp_path, capsys):
    argv = train_args(save_steps=1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        run_script(GA, *argv)
    said = refused(argv, capsys)
    assert "the training state after step 2 is kept" in said and "--restart True" in said
    run_script(GA, *argv, "--restart")
    assert [line["step"] for line in jsonl(tmp_path / "run" / "log.jsonl")] == [1, 2, 3, 4]


# ---------------------------------------------------------------- divergence
def diverge(patch, step: int) -> list[str]:
    """The loss of that step becomes infinite; the ids of its batch are added to the list that is returned."""
    whole, seen = training.Trainer._step, []

    def broken(self, phase, forwards, number):
        if number == step:
            loss = phase.loss
            phase = replace(phase, loss=lambda m, b: loss(m, b) * float("inf"))
            seen.extend(i for batch, _ in forwards for i in batch.ids)
        return whole(self, phase, forwards, number)

    patch.setattr(training.Trainer, "_step", broken)
    return seen


@pytest.mark.parametrize("keep", [0, 1])
def test_a_loss_that_is_not_finite_stops_the_run(train_args, tmp_path, capsys, keep, monkeypatch):
    seen = diverge(monkeypatch, 3)
    with pytest.raises(SystemExit) as end:
        run_script(GA, *train_args(save_steps=keep))
    assert end.value.code == 3
    said = capsys.readouterr().err
    assert "step 3" in said and len(seen) >= 6 and all(i in said for i in seen)
    assert not (tmp_path / "run").exists()
    kept = tmp_path / ".run.partial" / "state" / "progress.json"
    assert kept.is_file() == bool(keep)
    assert ("--resume" in said) == bool(keep)
    monkeypatch.undo()
    if keep:
        run_script(GA, *train_args(save_steps=keep), "--resume")
        assert len(jsonl(tmp_path / "run" / "log.jsonl")) == 4


@pytest.mark.parametrize(
    "flags", [{"lr": 1e300}, {"lr": 1e6, "save_dtype": "fp16"}], ids=["last step", "fp16"]
)
def test_a_model_that_is_not_finite_is_not_saved(train_args, tmp_path, capsys, flags):
    """Its losses were: the last step took it out of range, or the type in which it is saved does."""
    with pytest.raises(SystemExit) as end:
        run_script(GA, *train_args(lora=False, max_steps=1, **flags))
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 3 and said.startswith("error: NaN or infinity in ") and "lower --lr" in said
    assert not (tmp_path / "run").exists()


def test_a_gradient_that_is_not_finite_stops_the_run(train_args, tmp_path, capsys, monkeypatch):
    whole = training.Trainer._step

    class Overflow(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())
        backward = staticmethod(lambda ctx, g: g * float("nan"))

    def broken(self, phase, forwards, number):
        phase = replace(phase, loss=lambda m, b, f=phase.loss: Overflow.apply(f(m, b)))
        return whole(self, phase, forwards, number)

    monkeypatch.setattr(training.Trainer, "_step", broken)
    with pytest.raises(SystemExit) as end:
        run_script(GA, *train_args())
    assert end.value.code == 3 and "step 1" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_learning_rate_that_destroys_the_model_stops_the_run(train_args, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run_script(GA, *train_args(lr=1e38, lora=False, lr_schedule="constant"))
    assert end.value.code == 3 and "step 2" in capsys.readouterr().err and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- the folder
def refused(argv, capsys, script: str = GA) -> str:
    with pytest.raises(SystemExit) as end:
        run_script(script, *argv)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_folder_that_is_not_ours_is_refused(train_args, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert "--save_dir" in refused(train_args(), capsys)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_a_file_and_the_model_itself_are_refused(train_args, tmp_path, capsys, tiny, nano):
    (tmp_path / "run").write_text("a file")
    assert "--save_dir" in refused(train_args(), capsys)
    assert "--model_id" in refused(train_args(save_dir=tiny["llava"]), capsys)
    assert "--save_dir" in refused(train_args(save_dir=nano / "MLLMMU-Bench"), capsys)


def test_an_earlier_run_is_replaced_as_a_whole(train_args, tmp_path):
    run_script(GA, *train_args(lr=1e-2))
    first = weights(tmp_path / "run")
    (tmp_path / "run" / "old_result.txt").write_text("of the earlier model")
    run_script(GA, *train_args(lr=1e-2, seed=1))
    assert not (tmp_path / "run" / "old_result.txt").exists()
    assert not equal(first, weights(tmp_path / "run"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_run_that_fails_leaves_the_earlier_one(train_args, tmp_path):
    run_script(GA, *train_args())
    before = weights(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 2)
        run_script(GA, *train_args(seed=3))
    assert equal(before, weights(tmp_path / "run"))


def test_the_vanilla_model_may_lack_a_processor(train_args, tmp_path, tiny):
    """--vanilla_dir is what is trained; --model_id lends its processor."""
    import shutil

    vanilla = tmp_path / "vanilla"
    vanilla.mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(tiny["other_llava"] / name, vanilla / name)
    run_script(GA, *train_args(vanilla_dir=vanilla, lora_parts="language", lr=1e-6))
    after, other = weights(tmp_path / "run"), weights(tiny["other_llava"])
    untouched = "model.language_model.embed_tokens.weight"
    assert torch.equal(after[untouched], other[untouched])
    assert (tmp_path / "run" / "tokenizer.json").is_file()


# ---------------------------------------------------------------- how far a run goes
def test_max_steps(train_args, tmp_path):
    """The schedule is sized to them."""
    run_script(GA, *train_args(max_steps=3))
    log = jsonl(tmp_path / "run" / "log.jsonl")
    assert [line["lr"] for line in log] == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3])


def test_forget_steps_stop_above_a_loss(train_args, tmp_path, capsys):
    """From the step on whose CE is above the limit there are retain steps alone, also after a resume."""
    base = {"lora": False, "lr_schedule": "constant", "batch_size": 16, "lr": 1e-4}
    script = "MLLMU_GA_Diff.py"
    run_script(script, *train_args(**base, forget_alpha=0, save_dir=tmp_path / "retain"))
    argv = train_args(**base, max_forget_loss=1e-3, save_steps=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 4)
        run_script(script, *argv)
    assert "no more forget steps from step 1 on: CE(forget) is" in capsys.readouterr().out
    run_script(script, *argv, "--resume")
    assert equal(weights(tmp_path / "retain"), weights(tmp_path / "run"))
    first, *others = jsonl(tmp_path / "run" / "log.jsonl")
    assert first["phase"] == "forget" and first["taken"] is False and first["ce"] > 1e-3
    assert {line["phase"] for line in others} == {"retain"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["halted"]["step"] == 1


def test_the_limit_is_on_the_cross_entropy_whatever_the_loss(train_args, tmp_path):
    for name in ("GA", "NPO"):
        run_script(f"MLLMU_{name}.py", *train_args(max_forget_loss=99, save_dir=tmp_path / name))
    ga, npo = (jsonl(tmp_path / name / "log.jsonl") for name in ("GA", "NPO"))
    assert [line["ce"] for line in ga] == pytest.approx([-line["loss"] for line in ga])
    assert npo[0]["ce"] == pytest.approx(ga[0]["ce"]) and npo[0]["loss"] != pytest.approx(ga[0]["loss"])


def test_the_limit_holds_for_losses_of_ones_own(train_args, tmp_path, monkeypatch):
    """A loss that is not made of utils.losses: the cross-entropy is asked beside it, the steps are the
    same."""
    argv = lambda name, **more: train_args(save_dir=tmp_path / name, lora_dropout=0, **more)
    run_script(GA, *argv("ours", max_forget_loss=99))
    own = lambda model, batch: -model(**batch.inputs, labels=batch.labels).loss[None]  # (1,)
    real = training.once
    monkeypatch.setattr(training, "once", lambda phase: real(replace(phase, loss=own)))
    run_script(GA, *argv("own", max_forget_loss=99))
    run_script(GA, *argv("free"))
    ours, found = jsonl(tmp_path / "ours" / "log.jsonl"), jsonl(tmp_path / "own" / "log.jsonl")
    assert found[0]["ce"] == pytest.approx(ours[0]["ce"]) and found[0]["loss"] == pytest.approx(
        -found[0]["ce"]
    )
    assert equal(weights(tmp_path / "own"), weights(tmp_path / "free"))


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_state_that_cannot_be_read(train_args, tmp_path, capsys):
    """Each of its files empty, of another kind, gone, or one that would run code: one line, and nothing is
    lost before --restart."""
    argv = train_args(save_steps=1)
    ran = tmp_path / "ran"
    torch.save({"seen": Planted(ran)}, tmp_path / "planted")
    planted = (tmp_path / "planted").read_bytes()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 2)
        run_script(GA, *argv)
    state = tmp_path / ".run.partial" / "state"
    for file in [*state.iterdir(), tmp_path / ".run.partial" / "log.jsonl"]:
        whole, more = file.read_bytes(), (b"[1]", b"[" * 99_999, b"\xff") * (file.name == "progress.json")
        more += (planted,) * (file.suffix in (".pkl", ".bin"))
        for content in (b"", None, *more):
            file.unlink() if content is None else file.write_bytes(content)
            gone = content is None and file.name == "progress.json"
            (line,) = refused([*argv, "--resume"], capsys).splitlines()[-1:]
            word = "no kept state" if gone else "begin anew with --restart True"
            assert line.startswith("error: --resume: ") and word in line, (file.name, content, line)
            file.write_bytes(whole)
    assert not ran.exists()
    run_script(GA, *argv, "--resume")


@pytest.mark.parametrize("script", ["MLLMU_manifold.py", "CLEAR_manifold.py", GA])
def test_what_was_replaced_under_its_name_is_not_gone_on_with(
    script, tiny, nano, train_args, masks, tmp_path, capsys
):
    """A mask, a model: the state was begun with another."""
    shutil.copytree(masks("llava"), tmp_path / "masks")
    model = shutil.copytree(tiny["llava"], tmp_path / "model")
    mask = tmp_path / "masks" / "mllmu_language_mask.pt"
    base = {"model_id": model, "save_steps": 1, "batch_size": 8 if script == GA else 32}
    if script != GA:
        base["grad_mask_path"] = mask
    if "CLEAR" in script:
        base |= {"data_split_dir": nano / "CLEAR", "forget_ratio": 10}
    argv = train_args(**base)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 2)
        run_script(script, *argv)
    file, other, flag = model / "model.safetensors", tiny["other_llava"] / "model.safetensors", "--model_id"
    if script != GA:
        file, other, flag = mask, tmp_path / "masks" / "mllmu_both_mask.pt", "--grad_mask_path"
    kept = file.read_bytes()
    file.write_bytes(other.read_bytes())
    assert f"{flag}: what lies there is not what the kept run began with" in refused(
        [*argv, "--resume"], capsys, script
    )
    file.write_bytes(kept)
    run_script(script, *argv, "--resume")


def test_a_resumed_run_may_cut_its_batches_otherwise(train_args, tmp_path, capsys, monkeypatch):
    """The same samples per step, whatever forwards and processes share them; other steps are refused."""
    base = {"lora": False, "adam_eps": 1e-2, "lr": 1e-2, "save_steps": 2}
    run_script(GA, *train_args(**base, save_dir=tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        run_script(GA, *train_args(**base))
    other = lambda size, forwards: train_args(**base, batch_size=size, gradient_accumulation_steps=forwards)
    said = refused([*other(8, 2), "--resume"], capsys)
    assert "--batch_size: the kept run's steps are of 8 samples" in said and "8 × 1 × 1" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "these of 16 (8 × 1 × 2)" in refused([*other(8, 1), "--resume"], capsys)
    monkeypatch.delenv("WORLD_SIZE")
    assert "--shuffle: the kept run had True" in refused(
        [*other(8, 1), "--resume", "--shuffle", False], capsys
    )
    run_script(GA, *other(4, 2), "--resume")
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "run")
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=0)

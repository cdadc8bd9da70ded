"""The plan: its arithmetic, its estimates beside what autograd keeps, and models of published size."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, jsonl, load_script, run_script, sample
from PIL import Image

from nano import stand_ins
from utils import cli, families, flags, models
from utils.adapters.lora import add_lora
from utils.collate import Collator
from utils.losses import token_nll
from utils.planning import dry_run, needs
from utils.planning.needs import Layers, Lengths, Model, Setting, Spread, training
from utils.reading import weightless

BILLION = 10**9
DECODER = Layers(number=2, width=64, heads=64, mlp=128, gated=True, rms=True)
TOWER = Layers(number=3, width=32, heads=32, mlp=64, gated=False, rms=False)
SIZED = Model(
    weights={"language": 6 * BILLION, "vision": BILLION}, layers={"language": DECODER, "vision": TOWER},
    vocabulary=100, unit=BILLION // 5, root=BILLION // 2, largest=BILLION // 10, adapter=BILLION // 100,
)  # fmt: skip
NOTHING = Lengths(0, 0, 0)


# ---------------------------------------------------------------- arithmetic
@pytest.mark.parametrize(("how", "bytes_per_weight"), [
    (Setting("mixed"), 16), (Setting("fp32", "bf16"), 12), (Setting("bf16"), 14),
    (Setting("bf16", "bf16"), 10), (Setting("bf16", "8bit"), 8), (Setting("nearest", "bf16"), 8),
])  # fmt: skip
def test_bytes_per_trained_weight(how, bytes_per_weight):
    found = training(SIZED, how, NOTHING, Spread())
    scratch = needs.SCRATCH * needs.PIECE
    assert found.least == pytest.approx(7e9 * bytes_per_weight, abs=scratch + 7e9 / 15)


def test_memory_of_the_engines():
    how = Setting("bf16", "8bit", masked=7 * BILLION)
    one, ddp, cut = (
        training(SIZED, how, NOTHING, Spread(*of)) for of in [("one",), ("ddp", 4), ("fsdp2", 4)]
    )
    assert ddp.gradients - one.gradients == 14e9 == ddp.waiting
    assert cut.moments == one.moments / 4 and cut.mask == one.mask / 4
    assert cut.weights == one.weights / 4 + (BILLION // 2 + 2 * BILLION // 5) * 2


def test_lora_and_what_waits():
    adapter = BILLION // 100
    found = training(SIZED, Setting("bf16", lora=families.PARTS), NOTHING, Spread())
    assert found.weights == 2 * 7e9 + 4 * adapter
    assert (found.gradients, found.moments, found.compensation) == (4 * adapter, 8 * adapter, 0)
    two = training(SIZED, Setting("bf16", lora=families.PARTS, masked=8, quantized=True), NOTHING, Spread())
    assert two.moments == 2 * found.moments and two.weights == pytest.approx(
        7e9 * needs.NF4 + SIZED.root * (2 - needs.NF4) + 8 * adapter
    )
    waits = training(SIZED, Setting("bf16", accumulates=True), NOTHING, Spread())
    assert waits.waiting == 2 * 7e9 and waits.peak == pytest.approx(waits.stays + 14e9, rel=0.02)


def test_masks_in_blocks():
    whole, four = (needs.saliency(SIZED, Setting("bf16"), NOTHING, Spread(), n) for n in (1, 4))
    assert (whole.weights, whole.sums, four.sums) == (14e9, 28e9, 7e9)
    cut = needs.saliency(SIZED, Setting("bf16"), NOTHING, Spread("fsdp2", 4))
    assert cut.sums == 7e9 and cut.weights == 14e9 / 4 + (BILLION // 2 + 2 * BILLION // 5) * 2


def test_checkpointing_keeps_inputs_and_one_layer():
    how, lengths = Setting("fp32", batch=3), Lengths(tokens=10, answer=1, patches=0)
    layer = needs.saved_by_layer(DECODER, how, "language") * 30
    logits = 3 * 100 * 16
    assert needs.activations(SIZED, how, lengths) == 2 * layer + logits
    less = needs.activations(SIZED, Setting("fp32", batch=3, checkpointing=True), lengths)
    assert less == 2 * 64 * 4 * 30 + layer + logits


def test_the_table_of_bytes_in_the_document():
    text = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("| `--dtype")]  # fmt: skip
    found = {row[0]: [float(n) for n in row[1:6]] for row in rows if len(row) == 7}
    assert len(found) == 5
    names = {"mixed": "mixed", "bf16": "bf16", "nearest": "nearest"}
    for title, numbers in found.items():
        words = re.findall(r"[\w.]+", title)
        precision = next(names[word] for word in reversed(words) if word in names)
        moments = next((words[k + 1] for k, word in enumerate(words) if word == "moments"), "fp32")
        kept = needs.TRAINED[precision]
        of_moments = needs.MOMENTS["bf16" if precision == "nearest" else moments]
        parts = [kept.weight, kept.compensation, kept.gradient, of_moments]
        assert numbers == [*parts, sum(parts)], title


# ---------------------------------------------------------------- activations beside what autograd keeps
SMALL = {
    "llava": stand_ins.Size(168, 4, 8, 32, vision_layers=4, vision_heads=4, vision_head_dim=32),
    "qwen2_vl": stand_ins.Size(224, 4, 1, 32, vision_layers=4, vision_heads=4, vision_head_dim=32),
    "mllama": stand_ins.Size(168, 5, 2, 32, vision_layers=6, vision_heads=4, vision_head_dim=32),
}


def picture(side: int) -> dict:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(out, "PNG")
    return {"bytes": out.getvalue()}


def stand_in(family: str, folder: Path, size: stand_ins.Size) -> Path:
    tokenizer = stand_ins.train_tokenizer(["Who is this person? Ann Brown lives in Rome."] * 9, family, 600)
    stand_ins.write(family, tokenizer, folder, size, dtype="float32")
    return folder


def kept_by_autograd(model, batch, dtype: str) -> int:
    """Bytes of all that a forward saves for backward, weights left aside."""
    weights, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), models.autocast(dtype):
        token_nll(model, batch)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("family", SMALL)
def test_activations_beside_what_autograd_keeps(family, tmp_path):
    folder = str(stand_in(family, tmp_path / "model", SMALL[family]))
    samples = [sample("Who is this person?" * n, "Ann Brown lives in Rome.", picture(256)) for n in (1, 2)]
    processor = models.load_processor(folder)
    numbers = cli.parser("")
    flags.add_lora_args(numbers, default=True)
    flags.add_released_train_args(numbers)
    args = cli.parse(numbers, [])
    for dtype, lora in (("fp32", False), ("mixed", False), ("bf16", True)):
        model = models.load_model(folder, dtype).train()
        plan = dry_run.read_model(weightless.empty_model(folder))
        lengths = dry_run.read_lengths(processor, model.config, samples)
        batch = Collator(processor, families.family_of(model))(samples)
        assert lengths.tokens >= batch.labels.shape[1] >= lengths.tokens - 3
        if dtype == "bf16":
            batch.inputs["pixel_values"] = batch.inputs["pixel_values"].bfloat16()
        model = add_lora(model, families.lora_targets(model, "both"), args) if lora else model
        how = Setting(dtype, lora=families.PARTS if lora else (), batch=2, device="cpu")
        estimate = training(plan, how, lengths, Spread()).activations
        assert estimate == pytest.approx(kept_by_autograd(model, batch, dtype), rel=0.15), (dtype, lora)


# ---------------------------------------------------------------- published sizes
# weights, those of the vision part, LoRA targets, side of a picture or tile, tokens of a picture of 1024²
PUBLISHED = {
    "llava": (7_063_427_072, 324_487_168, 370, 336, 576),
    "qwen2_vl": (8_291_375_616, 675_759_104, 326, None, 1369),
    "qwen2_5_vl": (8_292_166_656, 676_550_144, 358, None, 1369),
    "mllama": (10_670_220_835, 895_028_755, 521, 560, 1),
}


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_model_of_published_size_is_planned_without_memory(family, tmp_path, capsys):
    total, vision, targets, side, tokens = PUBLISHED[family]
    folder = stand_in(family, tmp_path / "model", stand_ins.Size(image_size=side))
    published = json.loads((stand_ins.PUBLISHED / f"{family}.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(published["config"]))
    script = load_script("MLLMU_GA_Diff.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [
            "MLLMU_GA_Diff.py", "--model_id", str(folder), "--save_dir", str(tmp_path / "out"),
            "--dtype", "bf16",
        ])  # fmt: skip
        args = script.parse_args()
    args.mask, args.processor = None, models.load_processor(str(folder))
    data = {name: [sample(picture=picture(1024), id=name)] for name in ("forget", "retain")}
    before = resident()
    plan = dry_run.Plan(args, data)
    said = "\n".join(plan.lines())
    assert resident() - before < 300e6
    assert (plan.model.all, plan.model.weights["vision"], plan.targets) == (total, vision, targets)
    assert f"weights: {total:,}" in said and f"LoRA on {targets} layers" in said
    assert tokens < plan.lengths.tokens < tokens + 70
    assert all(p.is_meta for p in weightless.empty_model(str(folder)).parameters())
    full = training(plan.model, Setting("bf16", "8bit"), plan.lengths, Spread())
    assert full.least == pytest.approx(8.06 * total, rel=0.02)


def test_the_table_of_the_readme(tmp_path):
    """Its numbers are the plan's, for batches of 4 of about the lengths that a 1024² picture gives."""
    lengths = {
        "llava": Lengths(650, 25, 576),
        "qwen2_vl": Lengths(1440, 25, 5476),
        "mllama": Lengths(75, 25, 6432),
    }
    spreads = [Spread(), Spread("fsdp2", 4), Spread("fsdp2", 8)]
    expected: dict[str, list[list[str]]] = {}
    for family, of in lengths.items():
        published = json.loads((stand_ins.PUBLISHED / f"{family}.json").read_text(encoding="utf-8"))
        folder = tmp_path / family
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(published["config"]))
        model = dry_run.read_model(weightless.empty_model(str(folder)), rank=16)
        lora, masked = Setting("bf16", lora=families.PARTS, checkpointing=True), {"masked": model.all}
        ways = {
            "LoRA (all but MMUnlearner)": lora,
            "MMUnlearner, LoRA": replace(lora, **masked),
            "MMUnlearner, `--dtype bf16 --moments 8bit`": Setting(
                "bf16", "8bit", checkpointing=True, **masked
            ),
            "MMUnlearner, `--dtype mixed` (auto)": Setting("mixed", checkpointing=True, **masked),
        }
        for title, how in ways.items():
            row = expected.setdefault(title, [[], [], []])
            for cell, over in zip(row, spreads):
                cell.append(f"{training(model, how, of, over).peak / 1e9:.0f}")
        for title, blocks in (("masks", 1), ("masks, `--blocks 4`", 4)):
            row = expected.setdefault(title, [[], [], []])
            for cell, over in zip(row, spreads):
                how = Setting("bf16", checkpointing=True)
                cell.append(f"{needs.saliency(model, how, of, over, blocks).peak / 1e9:.0f}")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for title, row in expected.items():
        line = f"| {title} | " + " | ".join(" / ".join(cell) for cell in row) + " |"
        assert line in readme, line


# ---------------------------------------------------------------- as a user sees it
def test_dry_run_tells_the_steps_of_the_run_and_writes_nothing(train_args, masks, tmp_path, capsys):
    argv = train_args(grad_mask_path=masks("llava") / "mllmu_language_mask.pt", num_epochs=2)
    with pytest.raises(SystemExit) as end:
        run_script("MLLMU_manifold.py", *argv, "--dry_run")
    said = capsys.readouterr().out
    assert end.value.code == 0 and not (tmp_path / "run").exists() and not list(tmp_path.glob(".run*"))
    run_script("MLLMU_manifold.py", *argv)
    ran = capsys.readouterr().out
    (steps,) = re.findall(r"^steps: (.*)", ran, re.M)
    assert f"steps: {steps} (2 x" in said
    assert len(jsonl(tmp_path / "run" / "log.jsonl")) == sum(int(n) for n in re.findall(r"(\d+) \w+", steps))
    (mask,) = re.findall(r"^mask: (forget steps may change .* named)", ran, re.M)
    assert f"mask: {mask}" in said and "memory of each device (one process)" in said
    saved = sum(f.stat().st_size for f in (tmp_path / "run").glob("*.safetensors"))
    (planned,) = re.findall(r"disk: ([\d.]+) MB for the model in fp32", said)
    assert float(planned) * 1e6 == pytest.approx(saved, rel=0.2, abs=1e5)


def test_adapters_under_a_mask_are_two(train_args, masks, capsys):
    flags = {"lora": True, "lora_r": 64, "max_steps": 1}
    argv = train_args(grad_mask_path=masks("llava") / "mllmu_both_mask.pt", **flags)
    with pytest.raises(SystemExit):
        run_script("MLLMU_manifold.py", *argv, "--dry_run")
    said = capsys.readouterr().out
    (planned,) = re.findall(r"frozen, and ([\d.]+) M of LoRA", said)
    (moments,) = re.findall(r"moments ([\d.]+) MB", said)  # 8 bytes for each of them
    assert float(moments) == pytest.approx(8 * float(planned), rel=0.1)
    run_script("MLLMU_manifold.py", *argv)
    (trained,) = re.findall(r"training ([\d,]+) weights", capsys.readouterr().out)
    assert float(planned) * 1e6 == pytest.approx(int(trained.replace(",", "")), rel=0.1)


def test_dry_run_of_masks(tiny, nano, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run_script("data_process/MLLMU_gen_mask.py", "--model_id", tiny["qwen2_vl"], "--data_split_dir",
                   nano / "MLLMMU-Bench", "--forget_ratio", 15, "--save_dir", tmp_path / "masks",
                   "--blocks", 3, "--dry_run")  # fmt: skip
    said = capsys.readouterr().out
    assert end.value.code == 0 and not (tmp_path / "masks").exists()
    assert "3 times, for --blocks" in said and "none trained" in said and "sums " in said


def test_a_plan_that_cannot_fit_is_refused_with_what_would(train_args, tiny, monkeypatch, capsys):
    """On a GPU of a few bytes."""
    weights = sum(p.numel() for p in weightless.empty_model(str(tiny["llava"])).parameters())
    room = type("Properties", (), {"total_memory": int(weights * 9.5)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: room)
    monkeypatch.setattr(needs, "SCRATCH", 0)
    with pytest.raises(SystemExit) as end:
        run_script("MLLMU_GA.py", *train_args(lora=False))
    (said,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and said.startswith("error: --dtype: ")
    assert "--dtype bf16 --moments 8bit" in said and "--lora True" in said

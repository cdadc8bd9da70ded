"""Adapters in folders: written by a run and by peft elsewhere, read wherever a flag names a model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import RATIO, run_script, weights

from utils import models
from utils.adapters import stored
from utils.masks import model_fingerprint
from utils.reading import model_files

GA = "MLLMU_GA.py"


@pytest.fixture(scope="module")
def pair(nano, tiny, tmp_path_factory):
    """(the same run's merged model, its adapter folder)."""
    root = tmp_path_factory.mktemp("pair")
    for name, merge in (("merged", True), ("adapter", False)):
        run_script(
            GA, "--model_id", tiny["llava"], "--data_split_dir", nano / "MLLMMU-Bench",
            "--forget_ratio", RATIO, "--save_dir", root / name, "--batch_size", 8, "--lr", 0.01,
            "--merge", merge,
        )  # fmt: skip
    return root / "merged", root / "adapter"


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_adapter_folder_is_its_merged_model(pair, tiny):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    merged, adapter = pair
    names = {p.name for p in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "run.json", "tokenizer.json"} <= names
    assert not {n for n in names if n.startswith("model") or n == "config.json"}
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny["llava"])
    one, two = (json.loads((folder / "run.json").read_text()) for folder in pair)
    assert one["update"] == two["update"] and one["final_losses"] == two["final_losses"]
    state = torch.get_rng_state()
    assert same(weights(adapter), weights(merged)) and not same(weights(adapter), weights(tiny["llava"]))
    assert torch.equal(state, torch.get_rng_state()), "merging draws no random numbers"
    plain = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(tiny["llava"], dtype=torch.float32), str(adapter)
    )
    assert same(dict(plain.merge_and_unload().named_parameters()), weights(merged))
    loaded = models.load_model(str(adapter), "bf16")
    assert all(p.requires_grad and p.dtype is torch.bfloat16 for p in loaded.parameters())
    assert same(dict(loaded.named_parameters()), {n: w.bfloat16() for n, w in weights(merged).items()})
    models.load_processor(str(adapter))


def test_training_from_an_adapter_folder(pair, train_args, tmp_path):
    """The vanilla model as an adapter folder: an adapter on top whose base is that folder; all weights; the
    reference. As from the merged model, bit for bit."""
    found = {}
    for kind, vanilla in zip(("merged", "adapter"), pair):
        full, again = tmp_path / f"{kind}-full", tmp_path / f"{kind}-again"
        start = {"vanilla_dir": vanilla, "batch_size": 15}
        run_script("MLLMU_NPO.py", *train_args(**start, save_dir=full, lora=False, oracle_model_id=vanilla))
        run_script(GA, *train_args(**start, save_dir=again, merge=False))
        found[kind] = weights(full), weights(again)
    assert same(found["merged"][0], found["adapter"][0]) and same(found["merged"][1], found["adapter"][1])
    assert stored.lineage(str(tmp_path / "adapter-again"))[1:-1] == [str(pair[1])]


def test_an_adapter_of_peft_with_names_of_transformers_4(pair, tiny, tmp_path):
    """No processor, weights as .bin, targets by their last names, layers under the names that they had."""
    from safetensors.torch import load_file

    shutil.copytree(pair[1], tmp_path / "old")
    for file in tmp_path.glob("old/*"):
        if not file.name.startswith("adapter"):
            file.unlink()
    written = load_file(tmp_path / "old" / "adapter_model.safetensors")
    past = lambda name: name.replace("model.model.language_model.", "model.language_model.model.")
    torch.save({past(name): w for name, w in written.items()}, tmp_path / "old" / "adapter_model.bin")
    (tmp_path / "old" / "adapter_model.safetensors").unlink()
    config = tmp_path / "old" / "adapter_config.json"
    content = json.loads(config.read_text()) | {"target_modules": ["q_proj", "v_proj"]}
    config.write_text(json.dumps(content))
    assert any(past(name) != name for name in written)
    assert same(weights(tmp_path / "old"), weights(pair[0]))
    models.load_processor(str(tmp_path / "old"))  # its base's


def test_an_adapter_that_does_not_fit(pair, tiny, tmp_path):
    shutil.copytree(pair[1], tmp_path / "bad")
    config = tmp_path / "bad" / "adapter_config.json"
    content = json.loads(config.read_text())
    for wrong in ({"r": 8}, {"base_model_name_or_path": str(tiny["qwen2_vl"])}):
        config.write_text(json.dumps(content | wrong))
        with pytest.raises(SystemExit, match="cannot be merged into"):
            models.load_model(str(tmp_path / "bad"))


def test_an_adapters_fingerprint_is_also_its_bases(pair, tiny, tmp_path):
    folder, base = tmp_path / "adapter", tmp_path / "base"
    shutil.copytree(pair[1], folder)
    shutil.copytree(tiny["llava"], base)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(base)}))
    prints = [model_fingerprint(folder)]
    shutil.copy(tiny["other_llava"] / "model.safetensors", base / "model.safetensors")
    prints.append(model_fingerprint(folder))
    weights_file = folder / "adapter_model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"x")
    prints.append(model_fingerprint(folder))
    assert len(set(prints)) == 3
    assert base / "model.safetensors" in model_files.weight_files(folder)


def test_masks_and_evaluation_of_an_adapter_folder(pair, nano, train_args, tmp_path):
    """A mask made on it is one for it, and not for its merged form's files; results lie in the folder."""
    data = ["--data_split_dir", nano / "MLLMMU-Bench", "--forget_ratio", RATIO]
    run_script(
        "data_process/MLLMU_gen_mask.py", "--model_id", pair[1], *data, "--save_dir", tmp_path / "masks"
    )
    mask = tmp_path / "masks" / "mllmu_language_mask.pt"
    argv = dict(grad_mask_path=mask, batch_size=30)
    run_script("MLLMU_manifold.py", *train_args(model_id=pair[1], save_dir=tmp_path / "run", **argv))
    with pytest.raises(SystemExit):
        run_script("MLLMU_manifold.py", *train_args(model_id=pair[0], save_dir=tmp_path / "no", **argv))
    run_script(
        "eval/MLLMU_eval.py", "--evaluated_model", pair[1], "--data_split_dir", nano / "MLLMU-Bench",
        "--forget_ratio", RATIO, "--splits", "forget", "--max_new_tokens", 2,
    )  # fmt: skip
    assert (pair[1] / "zero_shot" / f"forget{RATIO}" / "results.json").is_file()


@pytest.mark.parametrize(
    ("flags", "word"),
    [({"merge": False, "lora": False}, "--merge"), ({"save_dir": "base"}, "the base of --vanilla_dir")],
)
def test_mistakes(flags, word, pair, train_args, tiny, capsys, tmp_path):
    if "save_dir" in flags:
        flags = {"save_dir": tiny["llava"], "model_id": pair[0]}
    with pytest.raises(SystemExit) as end:
        run_script(GA, *train_args(vanilla_dir=pair[1], **flags))
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and word in lines[0]
    assert Path(tiny["llava"], "config.json").is_file()

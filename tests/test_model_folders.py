"""Model folders whose files do not fit together or cannot be read: one line that names the folder, exit code
2, before any weight is loaded."""

import json
import shutil

import pytest
from conftest import RATIO, edited, run_script

from utils import models
from utils.planning import fitting, loadable
from utils.run.ending import WRONG_INPUT, Problems

EVALS = {"MLLMU": "eval/MLLMU_eval.py", "CLEAR": "eval/CLEAR_eval.py"}


@pytest.fixture
def bad(tiny, tmp_path):
    """A copy of the tiny LLaVA, to be damaged."""
    return shutil.copytree(tiny["llava"], tmp_path / "bad")


@pytest.fixture
def said(nano, tmp_path, capsys):
    """said(script, model) -> the lines of a command that refuses the model."""

    def run(script: str, model) -> list[str]:
        flags = ["--evaluated_model", model, "--output_dir", tmp_path / "out"]
        if "eval/" not in script:
            flags = ["--model_id", model, "--save_dir", tmp_path / "out"]
        ratio = RATIO if "MLLMU" in script else 10
        data = nano / ("MLLMMU-Bench" if "MLLMU" in script else "CLEAR")
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(models, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
            run_script(script, *flags, "--data_split_dir", data, "--forget_ratio", ratio)
        lines = capsys.readouterr().err.splitlines()
        assert end.value.code == WRONG_INPUT and all(line.startswith("error: ") for line in lines)
        return lines

    return run


SCRIPTS = (
    "MLLMU_GA.py", "CLEAR_GA.py", "data_process/MLLMU_gen_mask.py", "data_process/CLEAR_gen_mask.py",
    *EVALS.values(),
)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_image_token_that_the_processor_does_not_write(script, bad, said):
    with edited(bad / "config.json") as config:
        config["image_token_index" if "image_token_index" in config else "image_token_id"] = 7
    (line,) = said(script, bad)
    assert f"the processor is not that of {bad}" in line and "the config.json has 7" in line


@pytest.mark.parametrize("kind", ["wider", "deeper", "absurdly deep", "more words", "another tower"])
def test_a_config_of_another_size_than_the_weights(kind, bad, said):
    """Told by the headers of the files: nothing is allocated for it."""
    with edited(bad / "config.json") as config:
        text, vision = config["text_config"], config["vision_config"]
        if kind == "wider":
            text["intermediate_size"] = 10**7
        elif kind == "deeper":
            text["num_hidden_layers"] += 1
        elif kind == "absurdly deep":
            text["num_hidden_layers"] = 10**9
        elif kind == "more words":
            text["vocab_size"] = 10**9
        else:
            vision["intermediate_size"] *= 2
    told = {"deeper": "its files lack", "absurdly deep": "has 1000000000 as num_hidden_layers"}
    for script in (SCRIPTS[0], SCRIPTS[2], SCRIPTS[-1]):
        (line,) = said(script, bad)
        assert str(bad) in line and told.get(kind, "in its files and") in line, line


def test_weights_that_the_config_has_no_place_for(bad):
    with edited(bad / "config.json") as config:
        config["text_config"]["num_hidden_layers"] -= 1
    problems = Problems()
    (note,) = loadable.check_shapes(str(bad), "--model_id", problems)
    assert "that its config.json has no place for, e.g. model.language_model.layers." in note
    assert not problems.lines


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "mllama"])
def test_whole_folders_pass(family, tiny, processors):
    problems = Problems()
    assert not loadable.check_shapes(str(tiny[family]), "--model_id", problems)
    assert not problems.lines
    fitting.Fitting(processors[family], str(tiny[family]))


@pytest.mark.parametrize(
    ("family", "part", "field", "value"),
    [("qwen2_vl", "vision_config", "patch_size", 28), ("qwen2_vl", "vision_config", "spatial_merge_size", 4),
     ("llava", "vision_config", "image_size", 64)],
)  # fmt: skip
def test_a_processor_of_another_tower(family, part, field, value, tiny, processors, tmp_path, capsys):
    shutil.copytree(tiny[family], tmp_path / "bad")
    with edited(tmp_path / "bad" / "config.json") as config:
        config[part][field] = value
    with pytest.raises(SystemExit, match=rf"the processor is not that of .*config\.json.*{value}"):
        fitting.Fitting(processors[family], str(tmp_path / "bad"))


GARBAGE = {
    "nested": b"[" * 99_999,
    "empty": b"",
    "binary": b"\x80\xff\x00\xfe",
    "a list": b"[3]",
    "a number": b"3",
    "cut": None,
}


@pytest.mark.parametrize("kind", [*GARBAGE, "a folder"])
def test_a_processor_that_cannot_be_read(kind, bad, said):
    """Every file of it: read by its meaning, where that is possible, or refused in one line."""
    names = [p.name for p in bad.iterdir() if p.suffix != ".safetensors" and p.name != "config.json"]
    assert "tokenizer.json" in names
    for name in names:
        file = bad / name
        whole = file.read_bytes()
        if kind == "a folder":
            file.unlink()
            file.mkdir()
        else:
            file.write_bytes(whole[: len(whole) // 2] if kind == "cut" else GARBAGE[kind])
        problems = Problems()
        try:
            loadable.check_model(str(bad), "--model_id", problems)
            loadable.check_processor([("--model_id", str(bad))], problems)
            if not problems.lines:
                models.load_processor(str(bad))
        except SystemExit as end:
            assert end.code == WRONG_INPUT and "\n" not in str(end) and str(bad) in str(end), (name, end)
        assert all("\n" not in line and str(bad) in line for line in problems.lines), problems.lines
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        file.write_bytes(whole)
    (bad / "tokenizer.json").write_bytes(b"{")
    (line,) = said(SCRIPTS[0], bad)
    assert f"the processor of {bad} cannot be loaded" in line


def test_a_config_of_odd_values(bad):
    """Each of its fields replaced by another kind: the folder is fit for use, or refused in one line."""
    file = bad / "config.json"
    whole = json.loads(file.read_text())
    parts = [((), name) for name in whole] + [
        ((part,), name) for part in ("text_config", "vision_config") for name in whole[part]
    ]
    for path, name in parts[::2]:
        for value in ("x", -1, None):
            config = json.loads(json.dumps(whole))
            (config[path[0]] if path else config)[name] = value
            file.write_text(json.dumps(config))
            problems = Problems()
            try:
                loadable.check_model(str(bad), "--model_id", problems)
                if not problems.lines:
                    loadable.check_shapes(str(bad), "--model_id", problems)
            except SystemExit as end:
                assert end.code == WRONG_INPUT and "\n" not in str(end), (path, name, value)
            assert all("\n" not in line for line in problems.lines), problems.lines

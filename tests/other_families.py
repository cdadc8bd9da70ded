"""Tiny models of families that utils/models.py does not list, built from their real configuration classes."""

from __future__ import annotations

from pathlib import Path

from data_process.make_tiny_model import LLAVA_TEMPLATE, QWEN2_VL_TEMPLATE, padded, save, train_tokenizer

OTHERS = ("qwen2_5_vl", "llava_next", "llava_onevision", "idefics3", "gemma3")
SIDE, PATCH, HIDDEN = 32, 8, 32
VISION = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXTS = [
    "Who is this person in the picture? Ann Li lives in Paris, France, and is a 42 year old writer.",
    "Which city does he live in? She was born in Rome in 1984 and wrote The River of Light.",
]

# In the form of the released templates, whose blanks around the answer differ from family to family.
ONEVISION_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + ' ' }}
{%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor -%}
{{ '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
IDEFICS3_TEMPLATE = """\
{{- '<|im_start|>' -}}
{%- for message in messages -%}
{{ message['role'] | capitalize + (':' if message['content'][0]['type'] == 'image' else ': ') }}
{%- for part in message['content'] -%}
{{ '<image>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{{ '<end_of_utterance>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""
GEMMA3_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
{%- for part in message['content'] -%}
{{ '<start_of_image>' if part['type'] == 'image' else part['text'] | trim }}
{%- endfor -%}
{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""


def build(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a random model of the family with its processor."""
    import torch
    from transformers import AutoModelForImageTextToText

    makers = {
        "qwen2_5_vl": _qwen2_5_vl,
        "llava_next": _llava_next,
        "llava_onevision": _llava_onevision,
        "idefics3": _idefics3,
        "gemma3": _gemma3,
    }
    config, processor = makers[family]()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    save(model, processor, folder)
    return folder


def _tokenizer(like: str, *special: str):
    tokenizer = train_tokenizer(TEXTS, like, 600)
    if special:
        from transformers import AddedToken

        tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in special], True)
    return tokenizer


def _text(tokenizer) -> dict:
    return {
        "vocab_size": padded(len(tokenizer)),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "initializer_range": HIDDEN**-0.5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _qwen2_5_vl():
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer("qwen2_vl")
    ids = {
        f"{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in ("vision_start", "vision_end")
    }
    ids |= {f"{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|{n}_pad|>") for n in ("image", "video")}
    area = {"shortest_edge": SIDE**2 // 2, "longest_edge": SIDE**2}
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}},
        vision_config={
            "hidden_size": 24, "intermediate_size": 48, "depth": 2, "num_heads": 3, "patch_size": PATCH,
            "out_hidden_size": HIDDEN, "window_size": 4 * PATCH, "fullatt_block_indexes": [1],
        },
        **ids,
    )  # fmt: skip
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=area, patch_size=PATCH),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=area, patch_size=PATCH),
        chat_template=QWEN2_VL_TEMPLATE,
    )
    return config, processor


def _llava_next():
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = _tokenizer("llava")
    square, grid = {"height": SIDE, "width": SIDE}, [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=SIDE, patch_size=PATCH, projection_dim=24),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=grid, do_center_crop=True
    )
    processor = LlavaNextProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH, num_additional_image_tokens=1,
        vision_feature_select_strategy="default", chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip
    return config, processor


def _llava_onevision():
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = _tokenizer("qwen2_vl", "<image>", "<video>")
    square, grid = {"height": SIDE, "width": SIDE}, [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, image_size=SIDE, patch_size=PATCH, vision_use_head=False),
        text_config=Qwen2Config(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=grid),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION_TEMPLATE,
    )
    return config, processor


def _idefics3():
    from transformers import Idefics3Config, Idefics3ImageProcessor, Idefics3Processor, LlamaConfig

    tiles = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    tokenizer = _tokenizer(
        "qwen2_vl", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles
    )
    config = Idefics3Config(
        vision_config={**VISION, "image_size": SIDE, "patch_size": PATCH},
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(
            size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
        ),
        tokenizer=tokenizer,
        image_seq_len=(SIDE // PATCH // 2) ** 2,
        chat_template=IDEFICS3_TEMPLATE,
    )
    return config, processor


def _gemma3():
    """Its head is tied to the embeddings, as released."""
    from transformers import (
        Gemma3Config,
        Gemma3ImageProcessor,
        Gemma3Processor,
        PreTrainedTokenizerFast,
        SiglipVisionConfig,
    )

    tokenizer = _tokenizer(
        "llava",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    )
    names = {"boi": "<start_of_image>", "eoi": "<end_of_image>", "image": "<image_soft_token>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens={f"{name}_token": token for name, token in names.items()},
    )  # fmt: skip
    config = Gemma3Config(
        text_config=_text(tokenizer)
        | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config=SiglipVisionConfig(**VISION, image_size=SIDE, patch_size=PATCH, vision_use_head=False),
        mm_tokens_per_image=4,
        **{f"{name}_token_index": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=GEMMA3_TEMPLATE,
    )
    return config, processor

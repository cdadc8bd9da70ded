"""Tokenizers of the families' own kinds, trained on a little text, and their prompt forms.

Every string can be encoded. Two kinds: "sentencepiece", a BPE over words with "▁" for a blank and bytes to
fall back on (LLaMA, Mistral 7B, Gemma), and "bytes", a byte-level BPE (Qwen, Llama 3, Pixtral).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ONE_DIGIT = _WORDS
THREE_DIGITS = _WORDS.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")


@dataclass(frozen=True)
class Kind:
    """What differs between tokenizers: bos (in front of every text), eos, pad, unk are special tokens or
    None; split: the regular expression of a byte-level one's words, None for "sentencepiece"; qwen: of
    transformers' own class for Qwen; named: special tokens that processors know by a name."""

    bos: str | None
    eos: str
    pad: str
    unk: str | None = None
    split: str | None = None
    qwen: bool = False
    named: tuple[tuple[str, str], ...] = ()


LLAMA = Kind("<s>", "</s>", "<pad>", "<unk>")
GEMMA = Kind(
    "<bos>", "<eos>", "<pad>", "<unk>",
    named=(
        ("boi_token", "<start_of_image>"),
        ("eoi_token", "<end_of_image>"),
        ("image_token", "<image_soft_token>"),
    ),
)  # fmt: skip
QWEN = Kind(None, "<|im_end|>", "<|endoftext|>", split=ONE_DIGIT, qwen=True)
LLAMA3 = Kind("<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>", split=THREE_DIGITS)
IDEFICS3 = Kind("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", split=THREE_DIGITS)
PIXTRAL = Kind("<s>", "</s>", "<pad>", "<unk>", split=ONE_DIGIT)


def train(
    texts: Iterable[str], kind: Kind, special: Sequence[str], vocab_size: int, model_max_length: int
) -> PreTrainedTokenizerBase:
    """A tokenizer trained on `texts`.

    special: all special tokens, in the order of their ids; those that open the published vocabulary come
    first, too. vocab_size: upper bound on the tokens, bytes and special ones included (at least about 600).
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    common = {
        "eos_token": kind.eos,
        "pad_token": kind.pad,
        "padding_side": "left",
        "model_max_length": model_max_length,
    }
    if kind.qwen:
        vocab, merges = _byte_level(texts, kind, vocab_size - len(special))
        tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, unk_token=None, **common)
        # its constructor has appended eos and pad already, so they come first among the special ids
        tokens = [AddedToken(token, special=True) for token in special]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        return tokenizer
    core = (
        _sentencepiece(texts, special, vocab_size)
        if kind.split is None
        else _bytes(texts, kind, special, vocab_size)
    )
    if kind.bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A",
            pair=f"{kind.bos} $A {kind.bos}:1 $B:1",
            special_tokens=[(kind.bos, core.token_to_id(kind.bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=kind.bos, unk_token=kind.unk,
        model_input_names=["input_ids", "attention_mask"], extra_special_tokens=dict(kind.named), **common,
    )  # fmt: skip


def _train_bpe(
    texts: Iterable[str], pre_tokenizer: Any, vocab_size: int, alphabet: list[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges) of a BPE trained on `texts`. Ids are in the order of learning."""
    from tokenizers import Tokenizer, models, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size, 1), initial_alphabet=alphabet, limit_alphabet=1000, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _sentencepiece(texts: Iterable[str], special: Sequence[str], vocab_size: int) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    opening = [token for token in special if token in ("<unk>", "<s>", "</s>", "<pad>", "<eos>", "<bos>")]
    if "<image>" in special:  # LLaVA adds its padding behind LLaMA's vocabulary
        opening.remove("<pad>")
    head = opening + [f"<0x{byte:02X}>" for byte in range(256)]
    # No token crosses words, digits or punctuation, and a line end is the byte <0x0A>, as in LLaMA's own.
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    # Each line both ways: a word is spelt "▁word" inside a line and "word" after a line end or a picture.
    lines = (start + line for text in texts for line in text.splitlines() for start in ("", " "))
    learned, merges = _train_bpe(lines, words, vocab_size - len(head) - len(special) + len(opening), [])
    vocab = {token: k for k, token in enumerate(head + sorted(learned, key=learned.get))}

    core = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    return core


def _bytes(texts: Iterable[str], kind: Kind, special: Sequence[str], vocab_size: int) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocab, merges = _byte_level(texts, kind, vocab_size - len(special))
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    core.pre_tokenizer, core.decoder = _split(kind), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    return core


def _byte_level(texts: Iterable[str], kind: Kind, vocab_size: int):
    from tokenizers import pre_tokenizers

    return _train_bpe(texts, _split(kind), vocab_size, sorted(pre_tokenizers.ByteLevel.alphabet()))


def _split(kind: Kind) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(kind.split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# ---------------------------------------------------------------- prompt forms
LLAVA_TEMPLATE = """\
{%- for message in messages -%}
{{ 'ASSISTANT: ' if message['role'] == 'assistant' else 'USER: ' }}
{%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

QWEN2_VL_TEMPLATE = """\
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- for part in message['content'] -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

MLLAMA_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- for part in message['content'] -%}
{{ '<|image|>' if part['type'] == 'image' else part['text'] | trim }}
{%- endfor -%}
{{ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

MISTRAL_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- for part in message['content'] -%}{{ ' ' + part['text'] }}{%- endfor -%}{{ '</s>' }}
{%- else -%}
{{ '[INST] ' }}
{%- for part in message['content'] -%}
{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{{ ' [/INST]' }}
{%- endif -%}
{%- endfor -%}
"""

PIXTRAL_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- for part in message['content'] -%}{{ part['text'] }}{%- endfor -%}{{ eos_token }}
{%- else -%}
{{ '[INST]' }}
{%- for part in message['content'] -%}
{{ '[IMG]' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{{ '[/INST]' }}
{%- endif -%}
{%- endfor -%}
"""

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
{{- '<|begin_of_text|>' -}}
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

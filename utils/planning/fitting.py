"""What a model's processor can take, asked of all data before the weights load.

Texts that hold the processor's own tokens, which would become pictures or ends of turns; pictures of sizes
that it refuses; questions that are, with their answers, longer than the model's context. Each is told by its
row, or left out with --skip_bad_rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from PIL import Image

from utils import cli, models
from utils.data import Sample
from utils.reading import weightless
from utils.run import screen

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, ProcessorMixin

    from utils.collate import Chat
    from utils.reading.pictures import Picture

SHOWN = 5  # bad rows that are named
# bytes: the most tokens that a normalizer makes of a character's bytes (U+FDFA: 18 letters of 3)
EXPANDS = 12
# {field of an image processor: the vision configuration's}, and towers whose pictures have one size
PATCHES = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
FIXED = ("clip_vision_model", "mllama_vision_model")


class Fitting:
    """One processor and its limits. context: the most tokens of a question with its pictures and answer."""

    def __init__(self, processor: ProcessorMixin, name: str):
        from utils.collate import Chat, PromptLengths

        self.chat = Chat(processor)
        self.lengths = PromptLengths(processor, self.chat)
        self.context = context(processor, name)
        if why := why_not_together(processor, self.chat, weightless.read_config(name)):
            cli.fail(f"the processor is not that of {name}: {why}")
        own = sorted(own_tokens(processor), key=len, reverse=True)
        self.own = re.compile("|".join(map(re.escape, own)) or "(?!)")
        self.frames = [len(self.chat.prompt("", n) + self.chat.answer("")) + 16 for n in (0, 1)]

    def sample(self, sample: Sample) -> str | None:
        """Why it cannot be trained on, or None."""
        why = self.texts({"question": sample.question, "answer": sample.answer})
        pictures = [sample.picture] if sample.picture else []
        why = why or self.pictures(pictures)
        if why:
            return why
        shown = sum(map(self.lengths.picture, pictures))
        both = sample.question + sample.answer
        # a token has at least a byte: a text that fits so need not be tokenized
        most = len(both) + EXPANDS * (len(both.encode()) - len(both))
        if self.frames[len(pictures)] + most + shown <= self.context:
            return None
        text = self.chat.prompt(sample.question, len(pictures)) + self.chat.answer(sample.answer)
        return self.length(self.lengths.whole(text, sample.picture))

    def texts(self, texts: dict[str, str]) -> str | None:
        """Why one of the named texts cannot be shown to the model."""
        for name, text in texts.items():
            if found := self.own.search(text):
                return f"its {name} holds {found[0]}, which is no text to this model but a token of its own"
        return None

    def pictures(self, pictures: Iterable[Picture]) -> str | None:
        """Why the processor refuses one of them."""
        for picture in pictures:
            if why := self.lengths.refused(picture):
                width, height = picture.size()
                return f"the model's processor refuses a picture of {width} x {height} pixels: {why}"
        return None

    def length(self, tokens: int) -> str | None:
        if tokens <= self.context:
            return None
        return f"{tokens:,} tokens with its pictures and answer; the model's context has {self.context:,}"


def why_not_together(processor: ProcessorMixin, chat: Chat, config: PreTrainedConfig) -> str | None:
    """Why what the processor makes of a picture is not what a model of this configuration takes, or None."""
    from utils.collate import encode

    blank = Image.new("RGB", (224, 224))
    try:
        made = encode(processor, [chat.prompt("q", 1)], [[blank]], "right")
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError):
        return None  # whether a size is refused is asked of every picture
    token, ids = getattr(config, "image_token_id", None), set(made["input_ids"].flatten().tolist())
    if isinstance(token, int) and token not in ids:
        writes = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        return f"it writes token {writes} for a picture, and the config.json has {token} (image_token_id)"
    vision, image = getattr(config, "vision_config", None), processor.image_processor
    for one, other in PATCHES.items():
        made_for, cut = getattr(vision, other, None), getattr(image, one, None)
        if isinstance(made_for, int) and isinstance(cut, int) and made_for != cut:
            return f"it has {one} {cut}, and the config.json {other} {made_for}"
    side = getattr(vision, "image_size", None)
    if getattr(vision, "model_type", "") in FIXED and made["pixel_values"].shape[-1] != side:
        return (
            f"it makes pictures {made['pixel_values'].shape[-1]} pixels wide, and the config.json has {side}"
        )
    return None


def own_tokens(processor: ProcessorMixin) -> set[str]:
    """Special tokens of the tokenizer, and what the processor replaces by pictures, videos or sounds."""
    found = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    return (found | set(processor.all_special_multimodal_tokens)) - {""}


def context(processor: ProcessorMixin, name: str) -> int:
    """The longest sequence that the model of that name was made for, in tokens."""
    text = weightless.read_config(name).get_text_config()
    limits = [getattr(text, "max_position_embeddings", None), processor.tokenizer.model_max_length]
    return int(min(limit for limit in limits if limit))


def check_samples(args, data: dict[str, list[Sample]]) -> None:
    """Stop with the samples that cannot be trained on, or, with --skip_bad_rows, leave them out of `data`.
    Sets args.processor, the vanilla model's."""
    name = args.vanilla_dir or args.model_id
    args.processor = models.load_processor(name, args.model_id)
    fitting = Fitting(args.processor, name)
    for title, samples in data.items():
        data[title] = those_that_fit(samples, fitting.sample, args)
        if not data[title]:
            args.problems.add(f"--data_split_dir: nothing is left of the {title} data")
    args.problems.stop()


def those_that_fit(items: list, why_not: Callable[..., str | None], args) -> list:
    """The samples or questions without a reason against them. The others are problems, or left out and
    counted on the screen with --skip_bad_rows."""
    found = {item.id: why for item in items if (why := why_not(item))}
    lines = [f"{name}: {why}" for name, why in list(found.items())[:SHOWN]]
    more = len(found) - len(lines)
    if found and args.skip_bad_rows:
        if screen.main_process():
            print(f"skipped {len(found)} questions: {'; '.join(lines)}{'; …' if more else ''}")
        return [item for item in items if item.id not in found]
    for line in lines:
        args.problems.add(f"--data_split_dir: {line} (--skip_bad_rows True leaves such rows out)")
    if more:
        args.problems.add(f"--data_split_dir: and {more} more such questions")
    return items

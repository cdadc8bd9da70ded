"""From samples to tensors: chat rendering, exact answer labels, batches.

The answer's tokens are never searched for. The chat template is rendered up to the generation prompt, the
answer and its end-of-turn token are appended, and since they stand at the very end (after every picture), the
number of their tokens is counted from the right.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from utils.data import IGNORE, Sample
from utils.reading.pictures import Picture
from utils.reading.prepared import Undecoded, prepared_once


@dataclass
class Batch:
    """`inputs` for the model (`input_ids` (B, T), pictures in the family's own form), `labels` (B, T), sample
    ids. nll: of every labelled token, as the losses of utils.losses have found it, (N,)."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    ids: list[str]
    nll: torch.Tensor | None = None

    def to(self, device) -> Batch:
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return Batch(inputs, self.labels.to(device, non_blocking=True), self.ids)


class Chat:
    """The model's own chat template, taken apart once: what stands between prompt and answer, and what ends a
    turn.

    end: the template's own end-of-turn token; the tokenizer's EOS where the template has none (LLaVA-1.5).
    """

    PROBE = "Zq"  # an answer that no template alters

    def __init__(self, processor):
        self.processor, tokenizer = processor, processor.tokenizer
        if not processor.chat_template:
            raise ValueError("it has no chat template (chat_template.jinja); is it a model without chat?")
        question = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
        reply = {"role": "assistant", "content": [{"type": "text", "text": self.PROBE}]}
        prompt = self._render(question, add_generation_prompt=True)
        before, found, after = self._render([*question, reply]).partition(self.PROBE)
        if not found or before.rstrip() != prompt.rstrip():
            raise ValueError("the chat template's generation prompt is not the beginning of an answered turn")
        # where the two differ in blanks (LLaVA-OneVision), the generation prompt counts: it is what is seen
        self.lead = before[len(prompt) :] if before.startswith(prompt) else ""
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        ends = [token for token in special if after.lstrip().startswith(token)]
        self.end = max(ends, key=len) if ends else tokenizer.eos_token
        if tokenizer("q")["input_ids"][-1] != tokenizer("q", add_special_tokens=False)["input_ids"][-1]:
            raise ValueError("its tokenizer appends a token to every text, which would count as the answer's")
        if self.end is None:
            raise ValueError("neither its chat template nor its tokenizer has an end-of-turn token")

    def _render(self, messages, **kwargs) -> str:
        if "date_string" in str(self.processor.chat_template):  # or several templates, by name
            # Llama-3.2's template prints today's date in text-only prompts, which would change the numbers
            # tomorrow
            kwargs["date_string"] = "26 Jul 2024"
        return self.processor.apply_chat_template(messages, tokenize=False, **kwargs)

    def prompt(self, question: str, pictures: int, shots: Sequence[tuple[str, int, str]] = ()) -> str:
        """The text up to where the answer begins. shots: solved examples (question, pictures, answer) as
        earlier turns."""
        turn = lambda text, n: {
            "role": "user",
            "content": [{"type": "image"}] * n + [{"type": "text", "text": text}],
        }
        messages = []
        for text, n, answer in shots:
            messages += [turn(text, n), {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        return self._render([*messages, turn(question, pictures)], add_generation_prompt=True)

    def answer(self, text: str) -> str:
        return f"{self.lead}{text.strip()}{self.end}"


class Collator:
    """Samples -> Batch, right-padded. All samples of a call have a picture, or none has.

    ans_only: labels on the answer and its end-of-turn token; else on every text token. Never on padding or
    picture tokens. end_of_turn: whether the end-of-turn token counts (option scoring leaves it out).
    loss_tokens "all", answer_tokens "skip_first" and end_of_turn False are the released code's labels: on all
    but padding, and without an answer's first or last token.
    """

    def __init__(
        self,
        processor,
        family,
        ans_only: bool = True,
        end_of_turn: bool = True,
        loss_tokens: str = "labels",
        answer_tokens: str = "all",
    ):
        self.processor, self.tokenizer = prepared_once(processor), processor.tokenizer
        self.chat, self.lock = Chat(processor), threading.Lock()
        self.ans_only = ans_only and loss_tokens == "labels"
        self.end_of_turn, self.skip = end_of_turn, int(answer_tokens == "skip_first")
        self.label_pictures = loss_tokens == "all" and family.head_knows_pictures
        self.image_ids = torch.tensor(picture_ids(processor, self.chat))

    @classmethod
    def of(cls, args, processor, family) -> Collator:
        """The collator that a script's arguments ask for."""
        released = args.released
        return cls(
            processor, family, args.ans_only, end_of_turn=released.answer_end == "keep",
            loss_tokens=released.loss_tokens, answer_tokens=released.answer_tokens,
        )  # fmt: skip

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        prompts = [self.chat.prompt(s.question, int(s.picture is not None)) for s in samples]
        pictures = [[Undecoded(s.picture)] for s in samples if s.picture is not None]
        return self.batch(prompts, [s.answer for s in samples], pictures, [s.id for s in samples])

    def batch(self, prompts: list[str], answers: list[str], pictures: list[list], ids: list[str]) -> Batch:
        """Rendered prompts with their answers; pictures: one list per prompt, or none at all."""
        self.processor.image_processor.prepare(pictures)
        answers = [self.chat.answer(answer) for answer in answers]
        texts = [prompt + answer for prompt, answer in zip(prompts, answers)]
        with self.lock:  # a tokenizer keeps how it pads, and several threads may prepare batches
            return self._batch(texts, answers, pictures, ids)

    def _batch(self, texts: list[str], answers: list[str], pictures: list[list], ids: list[str]) -> Batch:
        inputs = encode(self.processor, texts, pictures, padding_side="right")
        labels = torch.full_like(inputs["input_ids"], IGNORE)  # (B, T)
        lengths = inputs["attention_mask"].sum(1).tolist()
        for row, (text, answer, length) in enumerate(zip(texts, answers, lengths)):
            start = length - self.answer_tokens(text, answer) + self.skip if self.ans_only else 0
            stop = length if self.end_of_turn else length - 1
            labels[row, start:stop] = inputs["input_ids"][row, start:stop]
        if not self.label_pictures:
            labels[torch.isin(labels, self.image_ids)] = IGNORE
        return Batch(inputs, labels, ids)

    def answer_tokens(self, text: str, answer: str) -> int:
        """How many tokens at the end of `text` hold characters of `answer`.

        Counted on the text before pictures are expanded: that changes nothing behind the last picture.
        """
        spans = self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        begin = len(text) - len(answer)
        # a blank before the answer may be a token's first character ("▁Paris"); what must not count is the
        # prompt's text
        begin += len(answer) - len(answer.lstrip())
        return sum(end > begin for _, end in spans)


def encode(processor, texts: list[str], pictures: list[list], padding_side: str) -> dict[str, torch.Tensor]:
    """The processor's tensors for rendered texts and their pictures (one list per text, or none at all)."""
    return dict(
        processor(
            text=texts,
            images=pictures or None,
            padding=True,
            padding_side=padding_side,
            add_special_tokens=adds_special_tokens(processor.tokenizer, texts[0]),
            return_tensors="pt",
        )
    )


def adds_special_tokens(tokenizer, text: str) -> bool:
    """Whether a rendered text still needs its BOS: a template may have written it already."""
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


class PromptLengths:
    """How many tokens prompts and pictures take, without running a model."""

    def __init__(self, processor, chat: Chat):
        self.processor, self.prompt = processor, chat.prompt("q", 1)
        self.sizes: dict[tuple[int, int], int | str] = {}

    def text(self, prompt: str) -> int:
        return len(self.processor.tokenizer(prompt)["input_ids"])

    def whole(self, text: str, picture: Picture | None) -> int:
        """A rendered text with its picture, to the token."""
        shown = [[Image.new("RGB", picture.size())]] if picture else []
        return encode(self.processor, [text], shown, "right")["input_ids"].shape[1]

    def picture(self, picture: Picture) -> int:
        """By its size alone, of a picture that is not refused."""
        return self._tried(picture.size())

    def refused(self, picture: Picture) -> str | None:
        """Why the processor does not take a picture of that size, or None."""
        tried = self._tried(picture.size())
        return tried if isinstance(tried, str) else None

    def _tried(self, size: tuple[int, int]) -> int | str:
        """Tokens, or why not: a picture of every size is tried once."""
        if size not in self.sizes:
            try:
                tokens = encode(self.processor, [self.prompt], [[Image.new("RGB", size)]], "right")
                self.sizes[size] = tokens["input_ids"].shape[1] - self.text(self.prompt)
            except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError) as why:
                self.sizes[size] = " ".join(str(why).split())[:200] or type(why).__name__
        return self.sizes[size]


def picture_ids(processor, chat: Chat) -> list[int]:
    """Ids of the tokens that stand for a picture, its borders or its line ends.

    Not by a family's name, since checkpoints of one family may have different tokens (LLaVA-1.5, Pixtral):
    the special tokens that a prompt gets for a picture, seen on a large one.
    """
    tokenizer = processor.tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    picture = Image.linear_gradient("L").resize((1024, 1024)).convert("RGB")
    ids = [encode(processor, [chat.prompt("q", n)], [[picture]] * n, "right")["input_ids"] for n in (1, 0)]
    found, without = ({*row.flatten().tolist()} & special for row in ids)
    return sorted((found - without) | {i for i in processor.image_token_ids if i is not None})

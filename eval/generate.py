"""Batched greedy replies and option likelihoods, the same in batches of any size as one at a time (in
fp32)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from utils.collate import Chat, Collator, encode
from utils.data import Picture
from utils.losses import label_logits


@dataclass
class Request:
    """A rendered prompt with its pictures in order. `letter`: the reply ends with its first letter or digit.

    options: texts whose log-likelihood as the answer is wanted instead of a reply, divided by their length in
    bytes or in tokens (`per`).
    """

    prompt: str
    pictures: list[Picture] = field(default_factory=list)
    letter: bool = False
    options: list[str] | None = None
    per: Literal["byte", "token"] = "byte"

    def loaded(self) -> list:
        return [picture.load() for picture in self.pictures]


def batches(requests: Sequence[Request], size: int) -> Iterator[list[int]]:
    """Indices in batches of like requests: same kind, same number of pictures, similar length, longest
    first."""
    kind = lambda r: (len(r.pictures), r.options is not None, r.letter)
    groups: dict[tuple, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(kind(request), []).append(i)
    for group in groups.values():
        group.sort(key=lambda i: (-len(requests[i].prompt), i))
        yield from (group[i : i + size] for i in range(0, len(group), size))


class Answerer:
    """Answers requests with one model. Replies are greedy, of at most `max_new_tokens` tokens."""

    def __init__(self, model, processor, family, max_new_tokens: int):
        self.model, self.processor, self.tokenizer = model.eval(), processor, processor.tokenizer
        self.chat = Chat(processor)
        self.collator = Collator(processor, family, end_of_turn=False)
        ends = {self.tokenizer.convert_tokens_to_ids(self.chat.end), self.tokenizer.eos_token_id}
        own = model.generation_config.eos_token_id  # Llama and Qwen end a reply in several ways
        ends |= set(own if isinstance(own, list) else [own]) - {None}
        pad = self.tokenizer.pad_token_id
        # a configuration of our own: the checkpoint's may sample or penalise repetitions
        self.config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=min(ends) if pad is None else pad,
        )
        self._first_letter: FirstLetter | None = None

    @torch.inference_mode()
    def answer(self, requests: list[Request]) -> list[str] | list[list[float]]:
        """Replies, or for requests with options their scores; all requests of a call are of one kind (see
        `batches`)."""
        return self._score(requests) if requests[0].options is not None else self._reply(requests)

    def _reply(self, requests: list[Request]) -> list[str]:
        pictures = [r.loaded() for r in requests] if requests[0].pictures else []
        inputs = encode(self.processor, [r.prompt for r in requests], pictures, padding_side="left")
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        stop = None
        if requests[0].letter:
            self._first_letter = self._first_letter or FirstLetter(self.tokenizer, self.model.device)
            stop = StoppingCriteriaList([self._first_letter.after(inputs["input_ids"].shape[1])])
        tokens = self.model.generate(**inputs, generation_config=self.config, stopping_criteria=stop)
        replies = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(replies, skip_special_tokens=True)]

    def _score(self, requests: list[Request]) -> list[list[float]]:
        """Per option: log p(option | prompt) / its length. In bytes as `acc_norm` of the
        lm-evaluation-harness, in tokens as TOFU's probability. The end of turn does not count."""
        pairs = [(r, option) for r in requests for option in r.options]
        pictures = [r.loaded() for r, _ in pairs] if requests[0].pictures else []
        batch = self.collator.batch(
            [r.prompt for r, _ in pairs], [o for _, o in pairs], pictures, [o for _, o in pairs]
        )
        batch = batch.to(self.model.device)
        logits, targets, rows = label_logits(self.model, batch)
        log_prob = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1).double()
        sums = log_prob.new_zeros(len(pairs)).index_add(0, rows, log_prob)
        tokens = torch.bincount(rows, minlength=len(pairs)).tolist()
        lengths = [n if r.per == "token" else len(option.encode()) for n, (r, option) in zip(tokens, pairs)]
        scores = iter([s / length for s, length in zip(sums.tolist(), lengths)])
        return [[next(scores) for _ in r.options] for r in requests]


class FirstLetter(StoppingCriteria):
    """A row is finished once a token with a letter or digit was produced: it decides a multiple-choice
    reply."""

    def __init__(self, tokenizer, device):
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], skip_special_tokens=True)
        self.decides = torch.tensor([any(c.isalnum() for c in text) for text in texts], device=device)
        self.prompt_length = 0

    def after(self, prompt_length: int) -> FirstLetter:
        self.prompt_length = prompt_length
        return self

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        produced = input_ids[:, self.prompt_length :].clamp(max=len(self.decides) - 1)
        return self.decides[produced].any(dim=1)


def answer_all(
    answerer: Answerer,
    requests: Sequence[Request],
    batch_size: int,
    done: Callable[[int, str | list[float]], None],
    bar,
) -> None:
    """Answer every request, calling `done(index, reply or scores)` as batches finish."""
    for indices in batches(requests, batch_size):
        for i, reply in zip(indices, answerer.answer([requests[i] for i in indices])):
            done(i, reply)
        bar.update(len(indices))

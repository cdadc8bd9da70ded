"""Greedy replies and option likelihoods, the same in batches of any size as one at a time (in fp32).

What questions share is computed once (eval/answering/shared_prefix.py), and a reply ends as soon as its score
is decided: a multiple-choice reply at its first letter or digit, a cloze reply at the words looked for, any
other at the end of the turn. Families that transformers alone knows, and prompts too long for a model's
window, are answered by its `generate`, in plain batches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from eval.answering.plan import Request
from eval.answering.shared_prefix import (
    PER_TOKEN,
    DecodeState,
    Prefixes,
    SharedPrefix,
    length_limit,
    on_device,
    rotary_limit,
    rows_at_once,
)
from eval.metrics import cloze_hit
from utils.collate import Chat, Collator, adds_special_tokens, encode
from utils.losses import label_logits
from utils.run.ending import DIVERGED, NO_MEMORY, fail, first_line


class Answerer:
    """Answers requests with one model. Replies are greedy, of at most `max_new_tokens` tokens."""

    def __init__(self, model, processor, family, max_new_tokens: int):
        model.eval()
        self.backend = plain = GenerateBackend(
            model, processor, family, StopRule(model, processor), max_new_tokens
        )
        if family.prefix_generation:
            limit, why = length_limit(model)
            if limit:
                self.backend = PrefixCachedBackend(plain, model, processor, family, max_new_tokens, limit)
            else:
                print(f"note: answered in plain batches, which is slower: {why}")
        self.largest: int | None = None  # requests at once that fitted into memory after some did not

    @torch.inference_mode()
    def answer(self, requests: list[Request]) -> list[str | list[float]]:
        """Replies, and for requests with options their scores; all requests have equally many pictures.

        Where the GPU's memory does not suffice, batches are halved, from then on. Raises SystemExit when not
        even one request fits.
        """
        size = min(self.largest or len(requests), len(requests))
        out = []
        for start in range(0, len(requests), size):
            out += self._halving(requests[start : start + size])
        return out

    def _halving(self, requests: list[Request]) -> list[str | list[float]]:
        try:
            return self.backend.answer(requests)
        except torch.OutOfMemoryError as why:
            if len(requests) == 1:
                fail(f"not even one question fits into the GPU's memory: {first_line(why)}", NO_MEMORY)
            self.largest = len(requests) // 2
        # outside the handler, whose exception keeps the tensors of the failed batch alive
        torch.cuda.empty_cache()
        return self.answer(requests)


NO_NUMBERS = (
    "the model's logits are NaN or infinity: it has diverged, or its precision is too small for it (--dtype"
    " fp32 tells which); nothing was scored"
)


def most_probable(logits: torch.Tensor) -> torch.Tensor:
    """(B, V) -> (B,) tokens. Raises SystemExit where the logits are no numbers: empty replies would look like
    forgetting."""
    values, tokens = logits.max(-1)
    if not values.isfinite().all():
        fail(NO_NUMBERS, DIVERGED)
    return tokens


class StopRule:
    """When to stop a reply: as soon as its score is decided."""

    def __init__(self, model, processor):
        self.tokenizer = tokenizer = processor.tokenizer
        own = model.generation_config.eos_token_id  # Llama and Qwen end a reply in several ways
        ends = {tokenizer.convert_tokens_to_ids(Chat(processor).end), tokenizer.eos_token_id}
        self.end_tokens = (ends | set(own if isinstance(own, list) else [own])) - {None}
        # <0x41> is an A, unless more such bytes follow that make it a part of something else
        names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.bytes = {i for i, name in enumerate(names) if re.fullmatch("<0x[0-9A-Fa-f]{2}>", name or "")}

    def decided(self, request: Request, reply: Sequence[int]) -> bool:
        """Whether no further token can change the score of a reply that was undecided before its last one."""
        if reply[-1] in self.end_tokens:
            return True
        if reply[-1] in self.bytes:
            return False
        if request.letter:
            return any(character.isalnum() for character in self.text(reply))
        return request.hit is not None and cloze_hit(self.text(reply), request.hit)

    def text(self, reply: Sequence[int]) -> str:
        return self.tokenizer.decode(reply, skip_special_tokens=True).strip()


# ---------------------------------------------------------------- backend: prefixes computed once
@dataclass
class Row:
    """A prompt, or a prompt with one of its options, behind the prefix `group`.

    tokens: what follows the prefix. labels: the tokens whose likelihood is asked; all but the last are the
    end of `tokens`. score: their log-probability.
    """

    request: int  # index among the requests of the call
    tokens: list[int]
    labels: list[int] = field(default_factory=list)
    group: int = -1
    reply: list[int] = field(default_factory=list)
    done: bool = False
    score: float = 0.0


class PrefixCachedBackend:
    """Requests with the same pictures, or of the same kind without any, share the beginning of their
    prompts. limit: of a prompt with its reply, in tokens; `plain` answers what is longer."""

    def __init__(self, plain: GenerateBackend, model, processor, family, max_new_tokens: int, limit: float):
        self.plain, self.engine, self.limit = plain, SharedPrefix(model, family), limit
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.collator, self.stop_rule = plain.collator, plain.stop_rule
        self.pictures = set(self.collator.image_ids.tolist())
        self.max_new_tokens = max_new_tokens

    def answer(self, requests: list[Request]) -> list[str | list[float]]:
        rows, inputs, lengths = self._share(requests)
        new = lambda row: 2 if row.labels else self.max_new_tokens
        long = {row.request for row in rows if lengths[row.group] + len(row.tokens) + new(row) > self.limit}
        if long:
            return self._with_long_ones(requests, long)
        prefixes = self.engine.prefill(inputs, lengths)
        out: list[str | list[float]] = [[] if r.options is not None else "" for r in requests]
        with self.engine.attention():
            self._score(prefixes, [row for row in rows if row.labels])
            choices = [row for row in rows if requests[row.request].letter]
            self._first_tokens(prefixes, requests, choices)  # they decide nearly all
            self._replies(prefixes, requests, [row for row in choices if not row.done])
            others = [row for row in rows if not (row.labels or requests[row.request].letter)]
            self._replies(prefixes, requests, others)
        for row in rows:
            request = requests[row.request]
            if row.labels:
                option = request.options[len(out[row.request])]
                out[row.request].append(request.mean(option, row.score, len(row.labels)))
            else:
                out[row.request] = self.stop_rule.text(row.reply)
        return out

    def _with_long_ones(self, requests: list[Request], long: set[int]) -> list[str | list[float]]:
        """The long requests by `plain`, the others by this backend."""
        short = [i for i in range(len(requests)) if i not in long]
        out = dict(zip(sorted(long), self.plain.answer([requests[i] for i in sorted(long)])))
        if short:
            out |= zip(short, self.answer([requests[i] for i in short]))
        return [out[i] for i in range(len(requests))]

    # ------------------------------------------------------------ what is shared
    def _share(self, requests: list[Request]) -> tuple[list[Row], list[dict], list[int]]:
        """Rows with their prefixes: per prefix the processor's tensors of a prompt that begins with it, and
        its length in tokens."""
        groups: dict[tuple, list[tuple[Row, str]]] = {}
        for i, request in enumerate(requests):
            for row, text in self._rows(i, request):
                head = self._behind_pictures(row.tokens) if request.pictures else 0
                # without pictures, prompts of one kind have most in common (few-shot examples)
                like = row.tokens[:head] or [*request.kind, row.tokens[0]]
                key = (tuple(request.pictures), tuple(like))
                row.tokens = row.tokens[head:]
                groups.setdefault(key, []).append((row, text))
        rows, inputs, lengths = [], [], []
        for group, members in enumerate(groups.values()):
            first, text = members[0]
            common = common_length(
                [row.tokens[: len(row.tokens) - max(1, len(row.labels))] for row, _ in members]
            )
            tensors = self._tensors(text, requests[first.request], first)
            head = tensors["input_ids"].shape[1] - len(first.tokens)
            for row, _ in members:
                row.tokens, row.group = row.tokens[common:], group
                rows.append(row)
            inputs.append(tensors)
            lengths.append(head + common)
        return rows, inputs, lengths

    def _rows(self, index: int, request: Request):
        """(row with all its tokens, text that begins with them)."""
        if request.options is None:
            yield Row(index, self._ids(request.prompt)), request.prompt
            return
        for option in request.options:
            answer = self.collator.chat.answer(option)
            text = request.prompt + answer
            ids, count = self._ids(text), self.collator.answer_tokens(text, answer)
            # the last label needs not be read, and the end of turn, behind it, is no label
            yield Row(index, ids[:-2], labels=ids[-count:-1]), text

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=adds_special_tokens(self.tokenizer, text))["input_ids"]

    def _behind_pictures(self, ids: list[int]) -> int:
        return max(i for i, token in enumerate(ids) if token in self.pictures) + 1

    def _tensors(self, text: str, request: Request, row: Row) -> dict[str, torch.Tensor]:
        """The processor's tensors of the row's tokens. Behind its pictures they must be the tokenizer's."""
        pictures = [request.loaded()] if request.pictures else []
        tensors = encode(self.processor, [text], pictures, "right")
        cut = 2 if row.labels else 0
        length = tensors["input_ids"].shape[1] - cut
        tensors = {n: t[:, :length] if n in PER_TOKEN else t for n, t in tensors.items()}
        tail = tensors["input_ids"][0, length - len(row.tokens) :].tolist()
        if tail != row.tokens:
            raise RuntimeError(f"this processor's tokens behind a picture are not its tokenizer's: {text!r}")
        return tensors

    # ------------------------------------------------------------ the model's answers
    def _decode_state(self, prefixes: Prefixes, rows: list[Row], new: int) -> DecodeState:
        return self.engine.decode_state(
            prefixes, [row.group for row in rows], [row.tokens + row.reply for row in rows], new
        )

    def _score(self, prefixes: Prefixes, rows: list[Row]) -> None:
        """The log-probability of each row's labels."""
        for micro_batch in micro_batches(rows):
            keep = max(len(row.labels) for row in micro_batch)
            logits = self._decode_state(prefixes, micro_batch, new=0).prompt(keep)  # (B, keep, V)
            for row, own in zip(micro_batch, logits):
                labels = torch.tensor(row.labels, device=own.device)
                log_prob = own[keep - len(labels) :].float().log_softmax(-1).gather(1, labels[:, None])
                row.score = float(log_prob.double().sum())
                if math.isnan(row.score):
                    fail(NO_NUMBERS, DIVERGED)

    def _first_tokens(self, prefixes: Prefixes, requests: list[Request], rows: list[Row]) -> None:
        for micro_batch in micro_batches(rows):
            logits = self._decode_state(prefixes, micro_batch, new=0).prompt(1)[:, 0]
            self._append(requests, micro_batch, most_probable(logits))

    def _replies(self, prefixes: Prefixes, requests: list[Request], rows: list[Row]) -> None:
        """Replies to their ends. Finished rows leave once they are a tenth of the batch."""
        if not rows:
            return
        live = longest_first(rows)
        state = self._decode_state(prefixes, live, new=self.max_new_tokens)
        logits = state.prompt(1)[:, 0]
        while True:
            tokens = most_probable(logits)
            self._append(requests, live, tokens)
            going = [i for i, row in enumerate(live) if not row.done]
            if not going:
                return
            if len(going) <= 0.9 * len(live):
                chosen = torch.tensor(going, device=tokens.device)
                state.keep(chosen)
                live, tokens = [live[i] for i in going], tokens[chosen]
            logits = state.step(tokens)

    def _append(self, requests: list[Request], rows: list[Row], tokens: torch.Tensor) -> None:
        """One more token of each reply that is not done."""
        for row, token in zip(rows, tokens.tolist()):
            if not row.done:
                row.reply.append(token)
                decided = self.stop_rule.decided(requests[row.request], row.reply)
                row.done = decided or len(row.reply) == self.max_new_tokens


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many first elements all sequences share."""
    low, high = min(sequences), max(sequences)  # what the extremes share, all share
    return next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))


def longest_first(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -len(row.tokens) - len(row.reply))


def micro_batches(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows of similar length, longest first, in parts that fit one forward."""
    rows = longest_first(rows)
    while rows:
        size = rows_at_once(len(rows[0].tokens))
        yield rows[:size]
        rows = rows[size:]


# ---------------------------------------------------------------- backend: transformers' generate
class GenerateBackend:
    """Every prompt whole, in left-padded batches of one kind: works with any family."""

    def __init__(self, model, processor, family, stop_rule: StopRule, max_new_tokens: int):
        self.model, self.stop_rule = model, stop_rule
        self.collator = Collator(processor, family, end_of_turn=False)
        self.alone_from = rotary_limit(model)
        pad = processor.tokenizer.pad_token_id
        # The checkpoint's own settings may sample, penalise repetitions or forbid tokens; `generate` takes
        # them for everything that is left open in a call, so they are replaced in the model.
        model.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(stop_rule.end_tokens),
            pad_token_id=min(stop_rule.end_tokens) if pad is None else pad,
        )

    def answer(self, requests: list[Request]) -> list[str | list[float]]:
        kinds: dict[tuple, list[int]] = {}
        for i, request in enumerate(requests):
            kinds.setdefault(request.kind, []).append(i)
        answers = {}
        for (_, scored), indices in kinds.items():
            answer = self._score if scored else self._reply
            answers |= zip(indices, answer([requests[i] for i in indices]))
        return [answers[i] for i in range(len(requests))]

    def _reply(self, requests: list[Request]) -> list[str]:
        pictures = [r.loaded() for r in requests] if requests[0].pictures else []
        prompts = [r.prompt for r in requests]
        inputs = encode(self.collator.processor, prompts, pictures, padding_side="left")
        inputs = on_device(inputs, self.model)
        start = inputs["input_ids"].shape[1]
        if self._alone(start + self.model.generation_config.max_new_tokens, len(requests)):
            return [self._reply([request])[0] for request in requests]
        stop = StoppingCriteriaList([StopCriterion(self.stop_rule, requests, start)])
        tokens = self.model.generate(**inputs, stopping_criteria=stop)
        return [self.stop_rule.text(reply) for reply in tokens[:, start:]]

    def _score(self, requests: list[Request]) -> list[list[float]]:
        pairs = [(r, option) for r in requests for option in r.options]
        pictures = [r.loaded() for r, _ in pairs] if requests[0].pictures else []
        options = [option for _, option in pairs]
        batch = self.collator.batch([r.prompt for r, _ in pairs], options, pictures, options)
        if self._alone(batch.labels.shape[1], len(pairs)):
            return [self._score_alone(request) for request in requests]
        logits, targets, rows = label_logits(self.model, batch.to(self.model.device))
        log_prob = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1).double()
        sums = log_prob.new_zeros(len(pairs)).index_add(0, rows, log_prob).tolist()
        tokens = torch.bincount(rows, minlength=len(pairs)).tolist()
        means = iter([r.mean(option, s, n) for (r, option), s, n in zip(pairs, sums, tokens)])
        return [[next(means) for _ in r.options] for r in requests]

    def _score_alone(self, request: Request) -> list[float]:
        return [self._score([replace(request, options=[option])])[0][0] for option in request.options]

    def _alone(self, tokens: int, rows: int) -> bool:
        """Whether rows must go alone: where rotary frequencies depend on a batch's length, and linger."""
        if tokens <= self.alone_from:
            return False
        first = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        self.model.get_decoder()(input_ids=first, use_cache=False)  # brings the frequencies back
        return rows > 1


class StopCriterion(StoppingCriteria):
    """Ends each reply as `StopRule` says."""

    def __init__(self, stop_rule: StopRule, requests: list[Request], start: int):
        self.stop_rule, self.requests, self.start = stop_rule, requests, start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        replies = zip(self.requests, input_ids[:, self.start :].tolist())
        done = [self.stop_rule.decided(request, reply) for request, reply in replies]
        return torch.tensor(done, device=input_ids.device)

"""The forwards of an evaluation whose questions share the beginning of their prompts.

The questions about one picture have the same prompt up to the picture and a little further. That prefix runs
through the model once, with its picture, and its keys and values stay one copy for all questions about it:

    prefix    (P, L)  one row per picture, left-padded
    suffix    (B, S)  what is left of each question's prompt, left-padded
    reply     (B, 1)  one token a step

In the last two, a row attends to its picture's prefix and to its own tokens. While decoding, the questions
about one picture read their prefix together, in one product; own keys and values are written into a buffer
allocated once, so that nothing is copied from step to step. Padding is masked and takes no position: every
token sees what it sees when its question is asked alone.

Works with models whose attention is pluggable (transformers' AttentionInterface) and whose text sees pictures
through earlier tokens (LLaVA, Qwen-VL) or through cross-attention (Llama-3.2-Vision). `length_limit` says up
to which length; everything else is answered by transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from inspect import signature

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

MICRO_BATCH = 2048  # tokens of a forward over prompts: enough to use the machine, and activations stay small
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "cross_attention_mask")


# ---------------------------------------------------------------- caches
@dataclass
class Prefixes:
    """P prefixes that went through the model.

    cache: per layer keys and values (P, heads, L, D); in cross-attention layers those of the pictures.
    seen: (P, L), False at padding. next: (P,) the position of the token behind it.
    cross: (P, 1, pictures, tiles), what tokens behind the prefix see of the pictures; None without
    cross-attention.
    """

    cache: Cache
    seen: torch.Tensor
    next: torch.Tensor
    cross: torch.Tensor | None

    def keep(self, rows: torch.Tensor) -> Prefixes:
        """The chosen prefixes, copied."""
        layers = [_pick(layer, rows) for layer in self.cache.layers]
        cross = None if self.cross is None else self.cross[rows]
        return Prefixes(Cache(layers=layers), self.seen[rows], self.next[rows], cross)


def _pick(layer: DynamicLayer, rows: torch.Tensor) -> DynamicLayer:
    picked = DynamicLayer()
    if layer.get_seq_length():  # Llama-3.2-Vision leaves cross-attention layers empty without pictures
        picked.update(layer.keys[rows], layer.values[rows])
    return picked


class SuffixCache(DynamicLayer):
    """A layer's keys and values (B, heads, T, D) of B suffixes, in a buffer of `room` tokens allocated once.
    Without room nothing is kept: the rows are read once and end."""

    def __init__(self, prefix: DynamicLayer, rows: int, room: int):
        super().__init__()
        self.lazy_initialization(prefix.keys, prefix.values)
        _, heads, _, width = prefix.keys.shape
        self.begin, self.length, self.prefix = 0, 0, prefix
        # zeros: unwritten places are masked, which works on finite numbers only
        self.buffers = [prefix.keys.new_zeros(rows, heads, room, width) for _ in range(2)]

    def update(self, key_states, value_states, *args, **kwargs):
        start, self.length = self.length, self.length + key_states.shape[2]
        if self.buffers[0].shape[2] == 0:
            return key_states, value_states
        for buffer, new in zip(self.buffers, (key_states, value_states)):
            buffer[:, :, start : self.length] = new
        self.keys, self.values = (buffer[:, :, self.begin : self.length] for buffer in self.buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def view(self, rows: slice, begin: int) -> SuffixCache:
        """Some rows, from a token on, sharing memory."""
        view = copy(self)
        view.buffers, view.begin, view.length = [buffer[rows] for buffer in self.buffers], begin, begin
        return view


# ---------------------------------------------------------------- attention
@dataclass
class RowIndex:
    """Where B rows find their prefixes. Rows of one prefix are side by side in a grid of P × `most` slots.

    group: (B,) each row's prefix. slot: (B,) its slot in the grid. row: (P · most,) the row at each slot,
    any row at an empty one. bias: what is added to attention scores, 0 or −inf: to those of the prefix,
    (P, 1, 1, L), and of own tokens, (B, 1, 1, S + new).
    """

    layers: list[DynamicLayer]
    group: torch.Tensor
    slot: torch.Tensor
    row: torch.Tensor
    bias: tuple[torch.Tensor, torch.Tensor]

    @property
    def most(self) -> int:
        return len(self.row) // len(self.bias[0])

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, heads, n, D) -> (P, heads, most · n, D)."""
        _, heads, n, width = rows.shape
        grid = rows[self.row].view(-1, self.most, heads, n, width).transpose(1, 2)
        return grid.reshape(-1, heads, self.most * n, width)

    def scatter(self, grid: torch.Tensor) -> torch.Tensor:
        """(P, heads, most · n, D) -> (B, heads, n, D)."""
        count, heads, _, width = grid.shape
        grid = grid.view(count, heads, self.most, -1, width).transpose(1, 2)
        return grid.reshape(count * self.most, heads, -1, width)[self.slot]


def attend(module, query, key, value, attention_mask, scaling=None, shared: RowIndex | None = None, **kwargs):
    """Attention over a prefix and own tokens, for transformers' AttentionInterface.

    query (B, H, S, D), key and value (B, G, T, D) with G dividing H. Returns (B, S, H, D) and no weights.
    """
    batch, heads, length, width = query.shape
    layer = shared.layers[module.layer_idx]
    scaling = width**-0.5 if scaling is None else scaling
    if isinstance(layer, SuffixCache) and length > 1:
        out = _prompt_attention(query, key, value, layer, attention_mask, scaling, shared)
        return out.transpose(1, 2), None
    query = query.reshape(batch, key.shape[1], -1, width)  # (B, G, H/G · S, D): heads of one key side by side
    if isinstance(layer, SuffixCache):
        out = _decode_attention(query, key, value, layer, scaling, shared)
    else:
        out = _cross_attention(query, key, value, attention_mask, scaling, shared)
    return out.reshape(batch, heads, length, width).transpose(1, 2), None


def _decode_attention(
    query, key, value, layer: SuffixCache, scaling: float, shared: RowIndex
) -> torch.Tensor:
    """Decoding: one softmax over prefix and suffix scores; a prefix is read once for all its rows."""
    bias, own_bias = shared.bias
    query = query * scaling
    scores = shared.gather(query) @ layer.prefix.keys.transpose(2, 3) + bias  # (P, G, most · H/G, L)
    scores = shared.scatter(scores)  # (B, G, H/G, L)
    own = query @ key.transpose(2, 3) + own_bias[..., : key.shape[2]]  # (B, G, H/G, T)
    weights = torch.cat([scores, own], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    over, own = weights.split([scores.shape[-1], key.shape[2]], dim=-1)
    return shared.scatter(shared.gather(over) @ layer.prefix.values) + own @ value


def _prompt_attention(
    query, key, value, layer: SuffixCache, mask, scaling: float, shared: RowIndex
) -> torch.Tensor:
    """Prompts: each row's prefix is copied in front of its suffix, for one layer at a time."""
    repeat, prefix = query.shape[1] // key.shape[1], layer.prefix
    key = torch.cat([prefix.keys[shared.group], key], 2)
    value = torch.cat([prefix.values[shared.group], value], 2)
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


def _cross_attention(query, key, value, mask, scaling: float, shared: RowIndex) -> torch.Tensor:
    """Cross-attention: all tokens behind a prefix see the same of its pictures, so its rows read them
    together."""
    first = shared.row[:: shared.most]  # one row of each prefix
    out = F.scaled_dot_product_attention(
        shared.gather(query), key, value, attn_mask=mask[first, :, :1], scale=scaling
    )
    return shared.scatter(out)


AttentionInterface.register("shared_prefix", attend)


@contextmanager
def attention(decoder, name: str):
    """The decoder attends by the registered function of that name."""
    usual = decoder.config._attn_implementation
    try:
        decoder.set_attn_implementation(name)
        yield
    finally:
        decoder.set_attn_implementation(usual)


# ---------------------------------------------------------------- for which models, and how far
# arguments of a layer's attention that `attend` implements, or that change nothing without gradients
SUPPORTED = {
    "scaling",
    "dropout",
    "sliding_window",
    "is_causal",
    "position_ids",
    "use_cache",
    "cache_position",
}


def length_limit(model) -> tuple[float, str]:
    """The longest prompt with its reply, in tokens, that may be answered behind a shared prefix; and why
    none, where it is 0.

    0 where the decoder's layers do something that `attend` does not know: soft-capped scores, sinks, position
    biases, states other than keys and values. A window, or rotary frequencies that depend on the length, set
    a limit: below it they change nothing. Infinite for the rest.
    """
    layers = DynamicCache(config=model.config).layers
    odd = {type(layer).__name__ for layer in layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"}
    why = f"its layers keep {odd.pop()}" if odd else _unsupported(model, len(layers))
    if why:
        return 0, why
    windows = [layer.sliding_window for layer in layers if layer.is_sliding]
    return min([rotary_limit(model), *windows]), ""


def rotary_limit(model) -> float:
    """The longest sequence, in tokens, whose rotary frequencies depend on nothing else.

    One short of the trained length: there, transformers keeps the frequencies of a longer one before it.
    """
    text = model.config.get_text_config()
    rope = text.to_dict().get("rope_parameters") or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    limits = [
        kind.get("original_max_position_embeddings") or text.max_position_embeddings
        for kind in kinds
        if kind["rope_type"] in ("dynamic", "longrope")
    ]
    return min(limits, default=float("inf")) - 1


def _unsupported(model, layers: int) -> str | None:
    """What layers call attention with beyond SUPPORTED, recorded on two tokens of text; None if nothing."""
    decoder, seen, odd = model.get_decoder(), set(), set()

    def look(module, query, key, value, attention_mask, **kwargs):
        seen.add(module.layer_idx)
        odd.update(name for name, x in kwargs.items() if name not in SUPPORTED and x is not None)
        if key.shape[-1] != value.shape[-1]:
            odd.add("values of another width than keys")
        return torch.zeros_like(query[..., : value.shape[-1]]).transpose(1, 2), None

    AttentionInterface.register("looked_at", look)
    cross = set(getattr(model.config.get_text_config(), "cross_attention_layers", ()))
    try:
        with attention(decoder, "looked_at"), torch.inference_mode():
            decoder(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except ValueError:  # what transformers says where attention is not pluggable
        return "its attention is its own"
    if odd:
        return f"its attention takes {', '.join(sorted(odd))}"
    return None if seen | cross == set(range(layers)) else "not all its layers attend"


# ---------------------------------------------------------------- the model's forwards
class SharedPrefix:
    """Runs prefixes, suffixes and reply tokens through one model."""

    def __init__(self, model, family):
        self.model, self.family, self.device = model, family, model.device
        self.decoder = model.get_decoder()
        text = model.config.get_text_config()
        self.cross = set(text.cross_attention_layers) if family.cross_attention else set()
        self.cache_name = "cache"
        if "cache" not in signature(model.forward).parameters:  # transformers before 5.24
            self.cache_name = "past_key_values"

    def attention(self):
        """The context in which the decoder attends by `attend`."""
        return attention(self.decoder, "shared_prefix")

    def prefill(self, inputs: Sequence[dict[str, torch.Tensor]], lengths: Sequence[int]) -> Prefixes:
        """inputs: a processor's tensors of one prompt each, of which the first `length` tokens are the
        prefix."""
        width = max(lengths)
        rows = [_cut(tensors, length, width) for tensors, length in zip(inputs, lengths, strict=True)]
        parts = [self._prefill(part) for part in _alike(rows, rows_at_once(width))]
        if len(parts) == 1:
            return parts[0]
        layers = []
        for same in zip(*(part.cache.layers for part in parts)):
            layers.append(DynamicLayer())
            if same[0].get_seq_length():
                layers[-1].update(
                    *(torch.cat([getattr(x, name) for x in same]) for name in ("keys", "values"))
                )
        cross = None if parts[0].cross is None else torch.cat([part.cross for part in parts])
        seen, after = (torch.cat([getattr(part, name) for part in parts]) for name in ("seen", "next"))
        return Prefixes(Cache(layers=layers), seen, after, cross)

    def _prefill(self, rows: list[dict[str, torch.Tensor]]) -> Prefixes:
        batch = on_device({name: torch.cat([row[name] for row in rows]) for name in rows[0]}, self.model)
        seen = batch["attention_mask"].bool()  # (P, L)
        positions = seen.cumsum(1).sub(1).clamp(min=0)
        if self.family.mrope and "image_grid_thw" in batch:
            names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
            positions, _ = self.model.model.get_rope_index(
                **{name: batch[name] for name in names}
            )  # (3, P, L)
        cache = DynamicCache(config=self.model.config)
        batch[self.cache_name] = cache
        self.model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
        cross = batch.get("cross_attention_mask")
        after = positions.view(-1, *seen.shape).amax((0, 2)) + 1
        return Prefixes(cache, seen, after, None if cross is None else cross[:, -1:])

    def decode_state(
        self, prefixes: Prefixes, group: Sequence[int], suffixes: Sequence[list[int]], new: int
    ) -> DecodeState:
        """Rows that continue the prefixes `group` by the tokens `suffixes`, longest first, with room for
        `new` tokens."""
        return DecodeState(self, prefixes, torch.tensor(group, device=self.device), suffixes, new)


class DecodeState:
    """B rows behind their prefixes: `prompt()` once, then `step()` for each token."""

    def __init__(self, engine: SharedPrefix, prefixes: Prefixes, group: torch.Tensor, suffixes, new: int):
        self.engine, self.prefixes, self.group = engine, prefixes, group
        width = max(map(len, suffixes))
        self.tokens = torch.zeros(len(suffixes), width, dtype=torch.long)
        self.seen = torch.zeros(len(suffixes), width + new, dtype=torch.bool)
        self.seen[:, width:] = True
        for i, suffix in enumerate(suffixes):
            self.tokens[i, width - len(suffix) :] = torch.tensor(suffix)
            self.seen[i, width - len(suffix) : width] = True
        self.tokens, self.seen = self.tokens.to(engine.device), self.seen.to(engine.device)
        self.position = prefixes.next[group][:, None] + self.seen.cumsum(1).sub(1).clamp(
            min=0
        )  # (B, S + new)
        self.layers = [
            layer if i in engine.cross else SuffixCache(layer, len(group), width + new if new else 0)
            for i, layer in enumerate(prefixes.cache.layers)
        ]
        self.length = 0

    def prompt(self, keep: int) -> torch.Tensor:
        """Run the suffixes of the prompts, in micro-batches. Returns their last logits (B, keep, V)."""
        batch, width = self.tokens.shape
        out, end = [], 0
        while end < batch:  # rows come longest first: a micro-batch is as wide as its first row
            begin = int(self.seen[end].byte().argmax())
            rows = slice(end, end := min(batch, end + rows_at_once(width - begin)))
            columns = slice(begin, width)
            layers = [x.view(rows, begin) if isinstance(x, SuffixCache) else x for x in self.layers]
            before = self.prefixes.seen[self.group[rows]][:, None, None].expand(-1, -1, width - begin, -1)
            own = self.seen[rows, None, None, columns] & self._causal(width - begin)
            mask = torch.cat([before, own], -1)
            shared, position = self._row_index(rows, layers), self.position[rows, columns]
            out.append(self._forward(self.tokens[rows, columns], shared, position, mask, keep))
        for layer in self.layers:
            if isinstance(layer, SuffixCache):
                layer.length = width
        self.length = width
        self.all = self._row_index(slice(None), self.layers)
        return torch.cat(out)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """One more token (B,) per row. Returns logits (B, V)."""
        position = self.position[:, self.length : self.length + 1]
        self.length += 1
        return self._forward(tokens[:, None], self.all, position, None, 1)[:, 0]

    def _causal(self, width: int) -> torch.Tensor:
        return torch.ones(width, width, dtype=torch.bool, device=self.tokens.device).tril()

    def _forward(self, tokens, shared: RowIndex, position, mask, keep: int) -> torch.Tensor:
        cross = self.prefixes.cross
        behind = {self.engine.cache_name: Cache(layers=shared.layers)}
        if cross is not None:
            behind["cross_attention_mask"] = cross[shared.group].expand(-1, tokens.shape[1], -1, -1)
        return self.engine.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=position,
            use_cache=True,
            logits_to_keep=keep,
            shared=shared,
            **behind,
        ).logits

    def _row_index(self, rows: slice, layers) -> RowIndex:
        group, count = self.group[rows], len(self.prefixes.seen)
        order = F.one_hot(group, count).cumsum(0).gather(1, group[:, None])[:, 0] - 1
        most = int(order.max()) + 1
        slot = group * most + order
        row = torch.zeros(count * most, dtype=torch.long, device=group.device)
        row[slot] = torch.arange(len(group), device=group.device)
        hide = lambda seen: torch.zeros_like(seen, dtype=self.engine.model.dtype).masked_fill(
            ~seen, -torch.inf
        )
        bias = tuple(hide(seen)[:, None, None] for seen in (self.prefixes.seen, self.seen[rows]))
        return RowIndex(layers, group, slot, row, bias)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows (indices) alone."""
        used, group = self.group[rows].unique(return_inverse=True)
        if len(used) < len(self.prefixes.seen):
            self.prefixes = self.prefixes.keep(used)
        self.group, self.seen, self.position = group, self.seen[rows], self.position[rows]
        for i, layer in enumerate(self.layers):
            prefix = self.prefixes.cache.layers[i]
            if isinstance(layer, SuffixCache):
                layer.prefix = prefix
                layer.buffers = [buffer[rows] for buffer in layer.buffers]
            else:
                self.layers[i] = prefix
        self.all = self._row_index(slice(None), self.layers)


def on_device(inputs: dict[str, torch.Tensor], model) -> dict[str, torch.Tensor]:
    """The processor's tensors where the model is, pictures in its precision."""
    of = lambda tensor: model.dtype if tensor.is_floating_point() else tensor.dtype
    return {name: tensor.to(model.device, of(tensor)) for name, tensor in inputs.items()}


def _alike(rows: list[dict[str, torch.Tensor]], size: int) -> Iterator[list[dict[str, torch.Tensor]]]:
    """The rows in their order, in parts of at most `size` whose tensors can be joined: some families keep
    the sizes of pictures (Pixtral)."""
    shape = lambda row: {name: tensor.shape[1:] for name, tensor in row.items()}
    part = rows[:1]
    for row in rows[1:]:
        if len(part) == size or shape(row) != shape(part[0]):
            yield part
            part = []
        part = [*part, row]
    yield part


def rows_at_once(width: int) -> int:
    """How many rows of so many tokens go through the model in one forward over prompts."""
    return max(1, MICRO_BATCH // width)


def _cut(inputs: dict[str, torch.Tensor], length: int, width: int) -> dict[str, torch.Tensor]:
    """One prompt's tensors (1, T, ...) -> its first `length` tokens, left-padded with zeros to `width`."""
    out = {}
    for name, tensor in inputs.items():
        if name in PER_TOKEN:
            padding = tensor.new_zeros(1, width - length, *tensor.shape[2:])
            tensor = torch.cat([padding, tensor[:, :length]], 1)
        out[name] = tensor
    return out

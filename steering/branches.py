"""A branch of a contrast: rows of a decoder between two tokens, with cache, mask and next positions; and two joined to one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin

from ..models.anatomy import Anatomy
from ..models.passes import telling
from ..models.spans import Spans
from ..scenes.errors import UserError
from .branch_memory import carry_joined, carry_repeated
from .few_rows import few_rows

CROSS = ("cross_attention_mask", "full_text_row_masked_out_mask")
"""What Mllama's decoder is told, token by token, of the pictures that its cross-attention layers may read."""


@dataclass
class Branch:
    """logits: (B, V) of the next token. cache: of all before it. mask: (B, L), 0 where a slot of the cache is padding.
    positions: (B, 1), or (axes, B, 1) in families with several rotary axes, of the next token: each row's own. spans: of
    the prompt. changed: (B,) rows that interventions act on, None for all. cross: the last position's part of `CROSS`.
    """

    anatomy: Anatomy
    cache: Cache
    mask: Tensor
    positions: Tensor
    spans: Spans
    logits: Tensor
    changed: Tensor | None = None
    cross: dict[str, Tensor] = field(default_factory=dict)

    def step(self, tokens: Tensor) -> None:
        """Reads the tokens (B,), one a row; `logits` are then those of the token behind them."""
        embeds = self.anatomy.model.get_input_embeddings()(tokens[:, None])
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        with telling(self.spans, self.changed), few_rows(self.anatomy.hidden_size, len(tokens), embeds):
            states = read(
                self.anatomy, inputs_embeds=embeds, attention_mask=self.mask, position_ids=self.positions,
                past_key_values=self.cache, **self.cross,
            )  # fmt: skip
            self.logits = self.anatomy.unembed(states)
        self.positions = self.positions + 1

    def repeated(self, n: int) -> Branch:
        """Every row n times, for several answers to a prompt."""
        if n == 1:
            return self

        def rows(value: Tensor, dim: int = 0) -> Tensor:
            return value.repeat_interleave(n, dim)

        for layer in self.cache.layers:
            _each_tensor(layer, rows)
        carry_repeated(self.cache, rows)
        return replace(
            self, mask=rows(self.mask), positions=rows(self.positions, -2), logits=rows(self.logits),
            spans=Spans(**{f.name: rows(getattr(self.spans, f.name)) for f in fields(Spans)}),
            changed=None if self.changed is None else rows(self.changed),
            cross={name: rows(value) for name, value in self.cross.items()},
        )  # fmt: skip


def read(anatomy: Anatomy, **inputs) -> Tensor:
    """The normed states (B, D) of the last position, from one call of the decoder with a cache."""
    return anatomy.decoder(use_cache=True, **inputs).last_hidden_state[:, -1]


def new_cache(anatomy: Anatomy) -> DynamicCache:
    return DynamicCache(config=anatomy.decoder.config)


def join(first: Branch, second: Branch) -> Branch:
    """One branch of the rows of both, the shorter one left-padded. Takes both caches apart, to hold no more than needed."""
    for branch in (first, second):
        if (held := int(branch.cache.get_seq_length())) != branch.mask.shape[1]:
            raise UserError(
                f"the cache holds {held} of {branch.mask.shape[1]} positions: an intervention took some out, so use "
                'ContrastDecoder(engine="two_calls")'
            )
    short = first.mask.shape[1] - second.mask.shape[1]
    cache = new_cache(first.anatomy)
    cache.layers = first.cache.layers
    for i, (a, b) in enumerate(zip(first.cache.layers, second.cache.layers, strict=True)):
        _join_layer(a, b, crossed="cross" in first.anatomy.attention_kinds[i : i + 1])  # a cache may hold more layers
    carry_joined(cache, first.cache, second.cache, (first.mask.shape[1], second.mask.shape[1]))
    cross = {}
    for name, value in first.cross.items():
        other = second.cross.get(name)
        other = value.new_zeros(len(second.mask), *value.shape[1:]) if other is None else other
        cross[name] = torch.cat([value, other])
    return Branch(
        first.anatomy, cache,
        torch.cat([pad(first.mask, (max(-short, 0), 0)), pad(second.mask, (max(short, 0), 0))]),
        torch.cat([first.positions, second.positions], -2),
        joined_spans(first.spans, second.spans),
        torch.cat([first.logits, second.logits]),
        None if first.changed is None or second.changed is None else torch.cat([first.changed, second.changed]),
        cross,
    )  # fmt: skip


def _join_layer(a, b, *, crossed: bool) -> None:
    """The rows of layer b put behind those of layer a, in a; b is emptied."""
    if isinstance(a, LinearAttentionCacheLayerMixin):
        for name in ("conv_states", "recurrent_states"):
            ours, theirs = getattr(a, name), getattr(b, name)
            for key, value in ours.items():
                ours[key] = None if value is None else torch.cat([value, theirs[key]])
                theirs[key] = None
    if not isinstance(a, DynamicLayer):
        return
    for name in ("keys", "values"):
        one, other = getattr(a, name), getattr(b, name)
        if one is None:
            continue
        if crossed:  # patches, the same ones for both; a branch that saw no picture gets values that add nothing
            other = torch.zeros_like(one) if other is None else other
        else:
            width = max(one.shape[2], other.shape[2])
            one, other = (pad(x, (0, 0, width - x.shape[2], 0)) for x in (one, other))
        setattr(a, name, torch.cat([one, other]))
        setattr(b, name, None)
    if hasattr(a, "cumulative_length"):  # a window counts from the end, where both rows have their newest tokens
        a.cumulative_length = max(a.cumulative_length, b.cumulative_length)


def _each_tensor(layer, change: Callable[[Tensor], Tensor]) -> None:
    for name in ("keys", "values"):
        if isinstance(value := getattr(layer, name, None), Tensor):
            setattr(layer, name, change(value))
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name, {})
        for key, value in states.items():
            states[key] = None if value is None else change(value)


def check_cache(cache: Cache) -> None:
    """Caches can be joined if they grow: UserError for others."""
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer | LinearAttentionCacheLayerMixin) or "Quantized" in type(layer).__name__:
            raise UserError(
                f"a cache of {type(layer).__name__} cannot be shared by two branches: leave out cache_implementation"
            )


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Positions (B, W), 0 where there is none, and (B, W) bool which are real, from one list of positions a row."""
    width = max(map(len, rows))
    index = torch.stack([pad(row, (width - len(row), 0)) for row in rows])
    real = torch.stack([torch.arange(width, device=row.device) >= width - len(row) for row in rows])
    return index, real


def spans_at(spans: Spans, index: Tensor, real: Tensor) -> Spans:
    """The spans of the positions (B, W) of each row; what is not real is padding."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    taken = {f.name: getattr(spans, f.name)[rows, index] for f in fields(Spans)}
    fills = {"labels": -1, "image_index": -1, "visual": False, "row": -1, "col": -1, "boxes": float("nan")}
    for name, value in taken.items():
        value[~real] = fills[name]
    return Spans(**taken)


def joined_spans(first: Spans, second: Spans) -> Spans:
    """The spans of the rows of both, left-padded to the longer."""
    width = max(first.labels.shape[1], second.labels.shape[1])
    both = []
    for spans in (first, second):
        places = torch.arange(width, device=spans.labels.device) - (width - spans.labels.shape[1])
        places = places.expand(len(spans.labels), -1)
        both.append(spans_at(spans, places.clamp(min=0), places >= 0))
    return Spans(**{f.name: torch.cat([getattr(spans, f.name) for spans in both]) for f in fields(Spans)})

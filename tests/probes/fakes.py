"""Batches, traces and anatomies made by hand: a probe needs no model to be tested."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from chiasm.models.inputs import Inputs
from chiasm.models.spans import Spans
from chiasm.models.trace import Trace
from torch import Tensor

INDEX = {name: i for i, name in enumerate(Spans.names)}
LETTERS = {
    "b": "bos",
    "s": "system",
    "x": "before",
    "I": "image",
    "m": "image",
    "y": "after",
    "a": "answer",
    "g": "generated",
}


def spans_of(rows: list[str], *, side: str = "right", width: int | None = None) -> Spans:
    """One letter a position: b s x I y a g as in LETTERS, m a marker around a picture, . padding (added on `side`)."""
    width = max(width or 0, *map(len, rows))
    rows = [row.ljust(width, ".") if side == "right" else row.rjust(width, ".") for row in rows]
    labels, visual, images = [], [], []
    for row in rows:
        labels.append([INDEX[LETTERS[c]] if c != "." else -1 for c in row])
        visual.append([c == "I" for c in row])
        image, inside, numbers = -1, False, []
        for c in row:
            image += c in "Im" and not inside
            inside = c in "Im"
            numbers.append(image if inside else -1)
        images.append(numbers)
    none = torch.full((len(rows), width), -1)
    return Spans(
        torch.tensor(labels),
        torch.tensor(images),
        torch.tensor(visual),
        none,
        none.clone(),
        torch.full((len(rows), width, 4), torch.nan),
    )


def anatomy(
    n_layers: int = 2, hidden: int = 6, heads: int = 2, kinds: tuple[str, ...] | None = None, **more
) -> SimpleNamespace:
    kinds = kinds or ("full",) * n_layers
    return SimpleNamespace(
        n_layers=n_layers,
        hidden_size=hidden,
        n_heads=heads,
        attention_kinds=kinds,
        family="fake",
        **{"image_in_sequence": True, **more},
    )


def inputs_of(spans: Spans, ids: Tensor | None = None, samples: tuple = ()) -> Inputs:
    ids = torch.where(spans.labels >= 0, spans.labels, 0) if ids is None else ids
    return Inputs({"input_ids": ids}, spans, samples)


def state_trace(states: list[Tensor], inputs: Inputs) -> Trace:
    """states: embed, the blocks' outputs, final; each (B, T, D)."""
    names = ["embed", *(f"blocks.{i}.resid_post" for i in range(len(states) - 2)), "final"]
    return Trace(dict(zip(names, states, strict=True)), inputs)


def causal_attention(spans: Spans, heads: int, seed: int, sharp: float = 2.0) -> Tensor:
    """(B, H, T, T) random causal attention among real positions; rows of padding are 0. A row's numbers do not depend on the
    padding or on the other rows."""
    batch, length = spans.labels.shape
    out = torch.zeros(batch, heads, length, length)
    for b in range(batch):
        at = torch.nonzero(spans.labels[b] >= 0).flatten()
        n = len(at)
        generator = torch.Generator().manual_seed(seed + 1000 * n + int(spans.labels[b][at].sum()))
        logits = sharp * torch.randn(heads, n, n, generator=generator)
        logits = logits.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        out[b][:, at[:, None], at] = logits.softmax(-1)
    return out


def mass_trace(attentions: dict[int, Tensor], inputs: Inputs) -> Trace:
    """The trace a model with these attention probabilities would give: attn_mass, attn_shuffled and, with pictures, attn_images."""
    tensors, spans = {}, inputs.spans
    dealt = spans.shuffled_indicators()
    for i, attention in attentions.items():
        tensors[f"blocks.{i}.attn_mass"] = attention @ spans.indicators()[:, None]
        tensors[f"blocks.{i}.attn_shuffled"] = attention @ dealt[:, None]
        if spans.n_images:
            tensors[f"blocks.{i}.attn_images"] = attention @ spans.image_indicators()[:, None]
    return Trace(tensors, inputs)


def value(table, **where) -> float:
    """The mean of the one row in which these columns have these values."""
    return one(table, **where)["mean"]


def one(table, **where):
    for name, wanted in where.items():
        table = table[(table[name] == wanted).fillna(False).astype(bool)]
    assert len(table) == 1, f"{len(table)} rows for {where}"
    return table.iloc[0]


def state_size(probe) -> int:
    """Numbers in a probe's states."""
    return sum(
        x.numel() for value in probe.metric_state.values() for x in (value if isinstance(value, list) else [value])
    )

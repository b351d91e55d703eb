"""Attention to the picture made stronger (PAI), and what interventions on attention share: new weights for a few queries only,
the others left to the model's own kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..models.attention import PREFIX, Call, is_read, original, wanting_weights
from ..scenes.errors import UserError
from .dropping import left_at
from .residual import Layers, checked_layers, finite
from .steer import Edit
from .where import Where, at_places

_MASKED = torch.finfo(torch.float16).min / 2
"""No score is as low as this; masked ones are lower, whatever type the mask has."""


@dataclass(frozen=True, eq=False)
class VisualAttentionBoost:
    """Scores z of visual tokens, before the softmax, become z + strength * |z|, for the query that predicts the next token.

    In a prompt that is its last position, so that the first generated token has it, and then every decoding step; an answer
    fed with the prompt is treated as if it were decoded. layers: default, every one from the third on. strength 0 changes no bit.
    Source: Liu et al., PAI (arXiv 2407.21771), section 3.2; the released code leaves out the first token where it also contrasts.
    """

    strength: float = 0.2
    layers: Layers | None = None

    def edits(self, vlm) -> list[Edit]:
        if finite("strength", self.strength) < 0:
            raise UserError(f"strength={self.strength} must be 0 (nothing is changed) or more; PAI has 0.2")
        return [
            Edit(vlm.anatomy.attention(i), attend=partial(self._attend, i))
            for i in attention_layers(self.layers, vlm, type(self).__name__)
        ]

    def _attend(self, layer: int, attend, where: Where, module, query, key, value, mask, **options):
        chosen = where.mask("last_prompt", query.device) | where.mask("generated", query.device)
        if not self.strength or not chosen.any():
            return attend(module, query, key, value, mask, **options)
        visual = at_keys(where.spans.visual, where, key, layer)

        def change(rows: Rows) -> tuple[Tensor, Tensor]:
            seen = visual[:, None, None] & rows.seen
            added = self.strength * rows.scores.abs()
            weights = torch.where(seen, rows.logits + added, rows.logits).softmax(-1)
            return weights, seen.any(-1)

        return change_rows(change, chosen, attend, module, query, key, value, mask, **options)


class Rows:
    """The attention of some queries (B, Q) of one call, in fp32: scores (B, H, Q, Tk) before the softmax, masked keys very low;
    weights (B, H, Q, Tk), behind what inner interventions made of them, and logits that give them by a softmax."""

    def __init__(self, call: Call, at: Tensor, inner: Tensor | None):
        self.scores = call.logits(at)
        self.seen = self.scores > _MASKED
        if inner is None:
            self.logits, self.weights = self.scores, self.scores.softmax(-1)
        else:
            self.weights = inner.gather(2, _of_heads(at, inner)).float()
            self.logits = self.weights.log()


def change_rows(
    change: Callable[[Rows], tuple[Tensor, Tensor]], chosen: Tensor, attend, module, query, key, value, mask, **options
) -> tuple[Tensor, Tensor | None]:
    """As an attention function (output (B, Tq, H, d), weights or None), with other weights for the queries in `chosen` (B, Tq).

    `change` gives weights (B, H, Q, Tk), fp32, and for which heads and queries (B, H, Q) they count. Everything else is what
    `attend` makes, to the bit. The whole of the weights is formed only for who reads them.
    """
    plain = original(module.config._attn_implementation.removeprefix(PREFIX), module)
    if attend is plain:
        out, weights = attend(module, query, key, value, mask, **options)
        inner = None
    else:  # another intervention is inside: what is changed is what it made
        with wanting_weights():
            out, weights = attend(module, query, key, value, mask, **options)
        inner = weights
    call = Call(module, query, key, mask, plain, options, None)
    at, counts = _columns(chosen)
    rows = Rows(call, at, inner)
    new, changed = change(rows)
    changed = changed & counts[:, None]
    if not changed.any():
        return out, weights
    mixed = new.unflatten(1, (key.shape[1], -1)) @ value.float()[:, :, None]  # heads that share a value, together
    mixed = mixed.flatten(1, 2).transpose(1, 2).to(out.dtype)
    where = at[:, :, None, None].expand(-1, -1, *out.shape[2:])
    old = out.gather(1, where)
    out = out.scatter(1, where, torch.where(changed.transpose(1, 2)[..., None], mixed, old))
    if is_read():
        if weights is None:
            weights = call.rows(torch.arange(query.shape[2], device=query.device).expand(len(query), -1))
        place = _of_heads(at, weights)
        kept = torch.where(changed[..., None], new.to(weights.dtype), weights.gather(2, place))
        weights = weights.scatter(2, place, kept)
    return out, weights


def at_keys(positions: Tensor, where: Where, key: Tensor, layer: int) -> Tensor:
    """(B, T) bool over the prompt -> (B, Tk) over the keys that a layer has: cached, windowed, preallocated, and without those
    that interventions took out. Later ones are False."""
    positions, seen, n_keys = positions.to(key.device), where.start + where.length, key.shape[2]
    if len(positions) != key.shape[0]:
        raise UserError(f"a pass of {key.shape[0]} rows is not of a prompt of {len(positions)}")
    if (left := left_at(where, layer)) is not None and left.sliced:
        positions, seen = at_places(positions, left.places), seen - left.length + left.places.shape[1]
    positions = pad(positions, (0, max(0, seen - positions.shape[1])))[:, :seen]
    # a sliding window has forgotten the first keys; a static cache holds room for keys to come
    return positions[:, seen - n_keys :] if n_keys < seen else pad(positions, (0, n_keys - seen))


def attention_layers(layers: Layers | None, vlm, name: str) -> list[int]:
    """The layers to act at: those given, else all from the third on whose softmax mixes text and picture. UserError for others."""
    anatomy = vlm.anatomy
    if not anatomy.image_in_sequence:
        raise UserError(
            f"{name} moves attention among the positions of a sequence: the pictures of a {anatomy.family} enter by "
            "cross-attention, no position holds one"
        )
    kinds = anatomy.attention_kinds
    if layers is None:
        chosen = [i for i in range(2, anatomy.n_layers) if kinds[i] != "linear"]
        if not chosen:
            raise UserError(f"{name} acts from layer 2 on, this model has none there with a softmax: give layers=")
        return chosen
    chosen = checked_layers(layers, vlm)
    if linear := [i for i in chosen if kinds[i] == "linear"]:
        softmax = [i for i in range(anatomy.n_layers) if kinds[i] != "linear"]
        raise UserError(f"layer {linear[0]} is linear attention, without weights to change: choose among {softmax}")
    return chosen


def _columns(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(B, Tq) bool -> (B, Q) the chosen queries, rows with fewer filled up with their first one; (B, Q) whether they count."""
    order = (~chosen).long().argsort(dim=1, stable=True)[:, : int(chosen.sum(1).max())]
    some = chosen.gather(1, order)
    return torch.where(some, order, order[:, :1]), some[:, :1].expand_as(some)


def _of_heads(at: Tensor, weights: Tensor) -> Tensor:
    """Indices (B, Q) of queries as `gather` along the queries of weights (B, H, Tq, Tk) takes them."""
    return at[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[3])

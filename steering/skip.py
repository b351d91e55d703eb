"""Skipping sublayers for some positions: what a skipped sublayer adds to the residual stream is exactly zero.

Unlike the release of implicit alignment (arXiv 2405.16700), where a skipped feed-forward layer adds LN2(y) and a skipped
attention feeds the wrong norm: here nothing is added, keys and values of the layer stay the true ones for whoever attends to
them, and only the rows that are not skipped are computed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.attention import PREFIX, is_read, original
from ..models.trace import sites_read
from ..scenes.errors import UserError
from .dropping import check_in_sequence
from .residual import Layers, layers_of
from .steer import Edit
from .where import Positions, Where, check_positions

_QUERY, _OUT = ("q_proj",), ("o_proj", "out_proj")


def skip_layers(
    n_layers: int, *, start: int = 0, end: int | None = None, interval: int | Sequence[int] = 1, seed: int | None = None
) -> list[int]:
    """The layers with start < i < end and i % interval == 0 (end: default the last one), so that neither the first nor the
    last is ever among them. Several intervals: one for each equal slice of the depth. seed: for each layer an interval is
    drawn from 2..interval. Source: implicit alignment, section 5.
    """
    end = n_layers - 1 if end is None else end
    several = [interval] if isinstance(interval, int) else list(interval)
    if not several or any(isinstance(i, bool) or not isinstance(i, int) or i < 1 for i in several):
        raise UserError(f"interval={interval!r} must be a number from 1 on, or one for each slice of the depth")
    each = [several[i * len(several) // n_layers] for i in range(n_layers)]
    if seed is not None:
        if min(several) < 2:
            raise UserError(f"interval={interval!r}: intervals are drawn from 2 to it, so it must be 2 or more")
        draw = random.Random(seed)
        each = [draw.randint(2, most) for most in each]
    return [i for i in range(n_layers) if start < i < end and i % each[i] == 0]


@dataclass(frozen=True)
class _Skip:
    """layers: which decoder layers; default, those that `skip_layers` gives for start, end, interval and seed. positions:
    see `where.POSITIONS`. No layer, or no such position in a pass, is the model as it is."""

    layers: Layers | None = None
    start: int = 0
    end: int | None = None
    interval: int | Sequence[int] = 2
    seed: int | None = None
    positions: Positions = "image"

    def chosen(self, vlm) -> list[int]:
        """The layers, checked against the model, and the positions with them."""
        if check_positions(self.positions) == "image":
            check_in_sequence(vlm.anatomy, "positions='image'")
        if self.layers is None:
            return skip_layers(
                vlm.anatomy.n_layers, start=self.start, end=self.end, interval=self.interval, seed=self.seed
            )
        return layers_of(self.layers, None, vlm) if self.layers != [] else []


class SkipFFN(_Skip):
    """The feed-forward sublayer of the layers is computed for the other positions only: skipped rows leave the layer as
    x + attention(x), to the bit. While somebody reads what goes into its linear layers, it is computed for all."""

    def edits(self, vlm) -> list[Edit]:
        return [edit for i in self.chosen(vlm) for edit in _feed_forward(vlm.anatomy, i, self.positions)]


class SkipAttention(_Skip):
    """The attention sublayer of the layers adds nothing at the positions, which stay keys and values for the others.

    Queries, attention and its output projection are computed for the others only; while somebody reads attention, or what goes
    into its linear layers, of all rows. A linear-attention layer has a state that needs every row: there nothing is added, but nothing saved.
    """

    def edits(self, vlm) -> list[Edit]:
        return [edit for i in self.chosen(vlm) for edit in _attention(vlm.anatomy, i, self.positions)]


class SkipBlock(_Skip):
    """Both sublayers: skipped rows leave the layer as they came, and still are its keys and values."""

    def edits(self, vlm) -> list[Edit]:
        return [
            edit
            for i in self.chosen(vlm)
            for edit in (
                *_attention(vlm.anatomy, i, self.positions),
                *_feed_forward(vlm.anatomy, i, self.positions),
            )
        ]


def _feed_forward(anatomy, layer: int, positions: Positions) -> list[Edit]:
    block = anatomy.blocks[layer]
    if (mlp := getattr(block, "mlp", None)) is not None:
        return _computed_rows(mlp, mlp, positions, layer)
    if hasattr(block, "fc1") and hasattr(block, "fc2"):  # OPT has no module around them
        return _computed_rows(block.fc1, block.fc2, positions, layer)
    raise UserError(
        f"layer {layer} of this {anatomy.family} has no feed-forward module that could be skipped by itself"
    )


def _attention(anatomy, layer: int, positions: Positions) -> list[Edit]:
    module = anatomy.attention(layer)
    if module is None:
        return [Edit(anatomy.blocks[layer].linear_attn, after=lambda output, where: _zeroed(output, where, positions))]
    query, out = (_child(module, names) for names in (_QUERY, _OUT))
    edits = [Edit(module, attend=_attending(positions, layer))]
    if query is not None:
        edits += _computed_rows(query, query, positions, layer, query=True)
    return edits + (
        _computed_rows(out, out, positions, layer)
        if out is not None
        else [Edit(module, after=lambda output, where: _zeroed(output, where, positions))]
    )


def _child(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _computed(where: Where, positions: Positions, device) -> Tensor | None:
    """(B, n) the positions that are computed; None where all are."""
    key = ("computed", positions, device, None if where.places is None else id(where.places))
    if key not in where.held:
        skipped = where.mask(positions, device)
        where.held[key] = ~skipped if skipped.any() else None
    return where.held[key]


def _zeroed(output: Tensor, where: Where, positions: Positions) -> Tensor:
    computed = _computed(where, positions, output.device)  # rows may come as (B n, D): OPT's do
    return output if computed is None else output.masked_fill(~computed.reshape(output.shape[:-1])[..., None], 0)


def _inputs_read(layer: int) -> bool:
    """Whether somebody reads what goes into a layer's linear layers, whose sites have a place for every row."""
    return any(site.startswith((f"blocks.{layer}.in.", f"blocks.{layer}.squares.")) for site in sites_read())


def _computed_rows(
    entry: nn.Module, leave: nn.Module, positions: Positions, layer: int, *, query: bool = False
) -> list[Edit]:
    """From `entry` to `leave`, which treat every row alike, only the computed rows go: zero is what the others get.

    Several skips of one sublayer take rows out one after the other, and the last one's are put back first. While inputs of
    linear layers are read all rows go, and zero is what the same ones get; of a query, whose weights may be read, none.
    """
    key = ("skipped", id(leave))

    def gather(args: tuple, kwargs: dict, where: Where):
        states = args[0] if args else kwargs["hidden_states"]
        whole = _inputs_read(layer) or (query and is_read())
        computed = None if whole else _computed(where, positions, states.device)
        stack = where.held.setdefault(key, [])
        if computed is None:
            stack.append(None)
            return args, kwargs
        there = computed.flatten()
        taken = [one for one in stack if one is not None]
        here = there[taken[-1][0]] if taken else there  # among the rows that came
        stack.append((there & taken[-1][0] if taken else there, here, states.shape[:-1]))
        rows = states.reshape(-1, states.shape[-1])[here]
        rows = rows[None] if states.dim() == 3 else rows
        return ((rows, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": rows})

    def scatter(output: Tensor, where: Where) -> Tensor:
        if (last := where.held[key].pop()) is None:
            return output if query else _zeroed(output, where, positions)  # if none is skipped, the output as it is
        _, here, shape = last
        full = output.new_zeros(len(here), output.shape[-1])
        full[here.to(output.device)] = output.reshape(-1, output.shape[-1])
        return full.view(*shape, -1)

    if entry is leave:
        return [Edit(entry, before=gather, after=scatter)]
    return [Edit(entry, before=gather), Edit(leave, after=scatter)]


def _attending(positions: Positions, layer: int):
    """The kernel run for the computed queries alone, under the mask that they had among all."""

    def attend(plain, where: Where, module, query, key, value, mask, **options):
        computed = _computed(where, positions, query.device)
        name = module.config._attn_implementation.removeprefix(PREFIX)
        own = name in ("sdpa", "eager") and plain is original(
            name, module
        )  # other changes of attention need all queries
        whole = is_read() or _inputs_read(layer)
        if computed is None or whole or not own or query.shape[2] != computed.shape[1]:
            return plain(module, query, key, value, mask, **options)
        n = int(computed.sum(1).max())
        if n == 0:
            return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None
        places = computed.int().argsort(dim=1, stable=True)[:, computed.shape[1] - n :]  # fewer in a row: others beside
        rows = lambda t: t.gather(2, places[:, None, :, None].expand(-1, t.shape[1], -1, t.shape[3]))  # noqa: E731
        some, _ = plain(
            module, rows(query), key, value, _rows_of_mask(mask, query, key, rows, module, options), **options
        )
        out = some.new_zeros(query.shape[0], query.shape[2], *some.shape[2:])
        return out.scatter(1, places[:, :, None, None].expand(some.shape), some), None

    return attend


def _rows_of_mask(
    mask: Tensor | None, query: Tensor, key: Tensor, rows, module: nn.Module, options: dict
) -> Tensor | None:
    if mask is None:
        causal = options.get("is_causal")
        n, keys = query.shape[2], key.shape[2]
        if n == 1 or not (getattr(module, "is_causal", True) if causal is None else causal):
            return None
        mask = torch.ones(n, keys, dtype=torch.bool, device=query.device).tril()  # sdpa's own: from the first key on
        mask = query.new_zeros(n, keys).masked_fill(~mask, torch.finfo(query.dtype).min)[None, None]
    return rows(mask.expand(len(query), -1, -1, -1))

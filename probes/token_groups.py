"""Sums over the visual and the text tokens of every sample of a batch, at every layer at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STACK_BYTES = 1 << 28  # states of so many rows are stacked at a time
TINY = 1e-30


class GroupSums(NamedTuple):
    """What one batch gives, by sample (B); groups are visual and text tokens, layers run from the embeddings to the final
    norm. Everything fp32.

    pooled: (B, 2, layers, D) mean state of the group's tokens. units: (B, 2, 2, 2, layers, D) by variant (raw, without
    outliers), pooling ("avg": unit vector of the pooled state; "mean": mean of the tokens' unit vectors) and group.
    norms: (B, 3, 2, layers) mean and median of the tokens' norms, norm of the pooled state. consecutive: (B, 2, intervals,
    2, layers - 1) cosine with the layer `interval` later, by pooling, NaN where there is none. sinks: (B, 2, layers) share
    of the group's tokens that are sinks.
    """

    pooled: Tensor
    units: Tensor
    norms: Tensor
    consecutive: Tensor
    sinks: Tensor


def group_sums(
    states: Sequence[Tensor],
    groups: Tensor,
    real: Tensor,
    *,
    intervals: Sequence[int],
    top_channels: int,
    sink_factor: float,
    device=None,
) -> GroupSums:
    """states: one (B, T, D) a layer, on any device and of any float type; groups: (B, 2, T) bool, none of them empty; real:
    (B, T) bool. Padding may hold anything. See `GroupSums`."""
    device = groups.device if device is None else device
    norms = torch.stack([_norms(x).to(device) for x in states])  # (L, B, T)
    groups, real = groups.to(device), real.to(device)
    if not torch.isfinite(norms).all():  # a row of padding that attends to nothing is NaN in some kernels
        states = [x.masked_fill(~real.to(x.device)[..., None], 0) for x in states]
        norms = norms.masked_fill(~real, 0)
    count = groups.sum(2)  # (B, 2)
    inside = groups.transpose(0, 1)[:, None]  # (2, 1, B, T)
    median = _medians(norms, inside, count.T[:, None])  # (2, L, B)
    first = real.cumsum(1).eq(1) & real
    calm = inside & (norms <= sink_factor * median[..., None]) & ~first
    some = calm.any(-1, keepdim=True)
    calm = torch.where(some, calm, inside)  # a group of one token, the first, stays as it is
    share = 1 - calm.sum(-1) / count.T[:, None]

    weight = groups.float() / count[..., None]
    calm_weight = (calm.float() / calm.sum(-1, keepdim=True)).permute(1, 2, 0, 3)  # (L, B, 2, T)
    inverse = 1 / norms.clamp(min=TINY)
    rows = torch.cat([weight.expand(len(states), -1, -1, -1), weight * inverse[:, :, None], calm_weight], 2)
    sums = torch.stack([_weighted(w, x) for w, x in zip(rows, states, strict=True)])  # (L, B, 6, D)
    pooled, units, calm_pooled = sums[:, :, 0:2], sums[:, :, 2:4], sums[:, :, 4:6]

    top = units.square().sum(2).topk(min(top_channels, units.shape[-1] - 1), -1).indices  # (L, B, k)
    removed = torch.stack([_squares_at(x, at) for x, at in zip(states, top, strict=True)])  # (L, B, T)
    rest = (norms.square() - removed).clamp(min=TINY).rsqrt()
    calm_units = torch.stack([_weighted(w, x) for w, x in zip(calm_weight * rest[:, :, None], states, strict=True)])
    at = top[:, :, None].expand(-1, -1, 2, -1)
    calm_units = calm_units.scatter(3, at, 0)
    calm_pooled = calm_pooled.scatter(3, at, 0)

    variants = torch.stack([_unit(pooled), units, _unit(calm_pooled), calm_units]).unflatten(0, (2, 2))
    size = torch.stack([(norms * inside).sum(-1) / count.T[:, None], median, pooled.norm(dim=-1).permute(2, 0, 1)])
    return GroupSums(
        pooled=pooled.permute(1, 2, 0, 3),
        units=variants.permute(3, 0, 1, 4, 2, 5),
        norms=size.permute(3, 0, 1, 2),
        consecutive=_consecutive(states[:-1], weight, pooled[:-1], intervals),
        sinks=share.permute(2, 0, 1),
    )


def _norms(states: Tensor) -> Tensor:
    # the square of a norm of a few thousand overflows in fp16
    return torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=TINY)


def _weighted(weights: Tensor, states: Tensor) -> Tensor:
    """(B, R, T) weights and (B, T, D) states -> (B, R, D) on the device of the weights."""
    return torch.bmm(weights.to(states.device), states.float()).to(weights.device)


def _squares_at(states: Tensor, channels: Tensor) -> Tensor:
    """Sum of squares over some channels: states (B, T, D), channels (B, k) -> (B, T)."""
    at = channels.to(states.device)[:, None].expand(-1, states.shape[1], -1)
    return states.gather(2, at).float().square().sum(-1).to(channels.device)


def _medians(values: Tensor, inside: Tensor, count: Tensor) -> Tensor:
    """Median along the last axis of the values inside, the mean of the two middle ones where their count is even."""
    ordered = values.masked_fill(~inside, torch.inf).sort(-1).values
    middle = torch.stack([(count - 1) // 2, count // 2], -1).expand(*ordered.shape[:-1], 2)
    return ordered.gather(-1, middle).mean(-1)


def _consecutive(states: Sequence[Tensor], weight: Tensor, pooled: Tensor, intervals: Sequence[int]) -> Tensor:
    """Cosines between layers of the same token, mean over tokens, and of the pooled states: one Gram matrix a token has
    all pairs of layers, and costs less than one product a pair."""
    n, device = len(states), weight.device
    length, width = states[0].shape[1:]
    step = max(1, STACK_BYTES // (4 * n * length * width))
    means = []
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        stacked = torch.stack([x[rows].to(device, torch.float32) for x in states], 2)  # (b, T, L, D)
        cosines = _gram(stacked.flatten(0, 1)).view(*stacked.shape[:2], n * n)
        means.append(torch.bmm(weight[rows], cosines))
    token = torch.cat(means).view(-1, 2, n, n)
    whole = _gram(pooled.permute(1, 2, 0, 3).flatten(0, 1)).view(-1, 2, n, n)
    both = torch.stack([whole, token], 1)  # (B, avg / mean, group, L, L)
    out = both.new_full((len(weight), 2, len(intervals), 2, n), torch.nan)
    for i, interval in enumerate(intervals):
        out[:, :, i, :, : n - interval] = both.diagonal(interval, 3, 4)
    return out


def _gram(vectors: Tensor) -> Tensor:
    """Cosines of all pairs: (N, L, D) -> (N, L, L)."""
    dots = torch.bmm(vectors, vectors.transpose(1, 2))
    size = dots.diagonal(dim1=1, dim2=2).clamp(min=TINY).rsqrt()
    return dots * size[:, :, None] * size[:, None, :]

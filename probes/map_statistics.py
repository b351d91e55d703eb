"""How a map of attention over patches lies to a set of patches, or to another map: overlap, mass, ranks, concentration.

Maps are (..., N), not negative, along the last axis; all arithmetic in fp32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def descending(maps: Tensor) -> Tensor:
    """(..., N) indices of the entries, the largest first; ties to the lower index."""
    if maps.device.type != "cpu" or maps.dtype != torch.float32:
        return maps.argsort(dim=-1, descending=True, stable=True)
    # A value's bits, made to run downwards, and its index in one number: numpy sorts such numbers many times faster than
    # torch finds the order of short rows. Adding 0 makes one zero of two.
    bits = (maps + 0.0).view(torch.int32)
    keys = (-1 - (bits ^ (bits >> 31 & 0x7FFFFFFF)).long() << 32) + torch.arange(maps.shape[-1])
    return torch.from_numpy(np.sort(keys.numpy(), axis=-1)) & 0xFFFFFFFF


def ranks(maps: Tensor, *, order: Tensor | None = None) -> Tensor:
    """(..., N) place of each entry from 0, the largest; ties to the lower index. order: the maps' `descending`, if known."""
    order = descending(maps) if order is None else order
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(maps.shape[-1], device=maps.device).expand_as(order)
    )


def overlap(maps: Tensor, chosen: Tensor, *, places: Tensor | None = None) -> Tensor:
    """H(k) = |top_k(map) and chosen| / k, (...): chosen (..., N) bool, k of them. places: the maps' `ranks`, if known."""
    k = chosen.sum(-1)
    places = ranks(maps) if places is None else places
    return ((places < k[..., None]) & chosen).sum(-1) / k


def overlap_chance(n, k):
    """Mean k/N and standard deviation of H(k) when the two sets have nothing to do with each other (hypergeometric).

    n, k: numbers or tensors. The deviation is 0 where k is n.
    """
    mean = torch.as_tensor(k, dtype=torch.float64) / n
    return mean, (mean * (1 - mean) * (n - k) / torch.as_tensor(n - 1).clamp(min=1) / k).sqrt()


def outlier_mass(maps: Tensor, chosen: Tensor) -> Tensor:
    """M(k) = share of a map's mass on the chosen patches (..., N), (...); NaN for a map without mass. Lift: M / (k/N)."""
    maps = _wide(maps)
    return (maps * chosen).sum(-1) / maps.sum(-1)


def spearman(maps: Tensor, scores: Tensor, *, places: Tensor | None = None) -> Tensor:
    """Spearman's correlation (...) of each map with the scores (..., N); attention maps have no ties but by accident."""
    n = maps.shape[-1]
    apart = (ranks(maps) if places is None else places) - ranks(scores)
    return 1 - 6 * _wide(apart).square().sum(-1) / (n * (n**2 - 1)) if n > 1 else torch.full(maps.shape[:-1], torch.nan)


def jensen_shannon(maps: Tensor, scores: Tensor) -> Tensor:
    """Jensen-Shannon distance (...) of the normalised maps, the root of the divergence in bits: 0 equal, 1 disjoint."""
    p, q = (_wide(x) / _wide(x).sum(-1, keepdim=True) for x in (maps, scores))
    middle = (p + q) / 2
    # of each entry, so that equal maps give exactly 0
    divergence = ((torch.xlogy(p, p) + torch.xlogy(q, q)) / 2 - torch.xlogy(middle, middle)).sum(-1)
    return (divergence / math.log(2)).clamp(min=0).sqrt()


def entropy_share(maps: Tensor) -> Tensor:
    """Entropy of each normalised map over ln N, (...): 1 for an even map, 0 for one patch."""
    p = _wide(maps) / _wide(maps).sum(-1, keepdim=True)
    return -torch.xlogy(p, p).sum(-1) / math.log(max(maps.shape[-1], 2))


def top_shares(maps: Tensor, ks: Sequence[int], *, order: Tensor | None = None) -> list[Tensor]:
    """Share of each map's mass, (...), on its k largest entries, for each k. order: the maps' `descending`, if known."""
    order = descending(maps) if order is None else order
    maps = _wide(maps)
    largest = maps.gather(-1, order[..., : max(ks)]).cumsum(-1) / maps.sum(-1, keepdim=True)
    return [largest[..., min(k, maps.shape[-1]) - 1] for k in ks]


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of two sets, given as (..., N) bools."""
    return (a & b).sum(-1) / (a | b).sum(-1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()

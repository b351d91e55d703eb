"""How a map of attention over patches lies to a set of patches, or to another map: overlap, mass, ranks, concentration.

Maps are (..., N), not negative, along the last axis; all arithmetic in fp32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ranks(maps: Tensor) -> Tensor:
    """(..., N) place of each entry from 0, the largest; ties to the lower index."""
    order = maps.argsort(dim=-1, descending=True, stable=True)
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
    divergence = sum((torch.xlogy(x, x) - torch.xlogy(x, middle)).sum(-1) for x in (p, q)) / 2
    return (divergence / math.log(2)).clamp(min=0).sqrt()


def entropy_share(maps: Tensor) -> Tensor:
    """Entropy of each normalised map over ln N, (...): 1 for an even map, 0 for one patch."""
    p = _wide(maps) / _wide(maps).sum(-1, keepdim=True)
    return -torch.xlogy(p, p).sum(-1) / math.log(max(maps.shape[-1], 2))


def top_shares(maps: Tensor, ks: Sequence[int]) -> list[Tensor]:
    """Share of each map's mass, (...), on its k largest entries, for each k."""
    maps = _wide(maps)
    largest = maps.topk(min(max(ks), maps.shape[-1]), -1).values.cumsum(-1) / maps.sum(-1, keepdim=True)
    return [largest[..., min(k, maps.shape[-1]) - 1] for k in ks]


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of two sets, given as (..., N) bools."""
    return (a & b).sum(-1) / (a | b).sum(-1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()

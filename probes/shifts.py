"""How differently two curves run over the layers: the attention shift and its null distributions.

Source: Lu et al., "Wings" (NeurIPS 2024, arXiv 2406.03496). Everything in fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.spans import permuted_segments
from .intervals import widen

__all__ = ["COMPARATORS", "attention_shift", "circular_null", "distance", "permuted_segments"]

COMPARATORS = ("pearson", "spearman", "cosine", "l2", "js")


def attention_shift(curve_before: Tensor, curve_after: Tensor, *, comparator: str = "pearson") -> Tensor:
    """How far the attention to the text before the picture and to the text after it move apart over the layers.

    curve_before, curve_after: (B, L), a curve a sample -> (B,), fp64; 0 = they move together. comparator: "pearson" 1 - rho,
    in 0..2; "spearman" the same of mean ranks; "cosine" 1 - cosine of the raw curves; "l2" length of the difference; "js"
    Jensen-Shannon divergence in nats of the curves, each divided by its sum. Undefined values (a curve without variance, a
    zero curve, a negative one for js) are NaN, never 0. Raises ValueError for another comparator or curves that differ in
    length.
    """
    if comparator not in COMPARATORS:
        raise ValueError(f"comparator {comparator!r} is not one of {', '.join(COMPARATORS)}")
    if curve_before.dim() != 2 or curve_before.shape != curve_after.shape:
        raise ValueError(
            f"two curves (B, L) over the same layers are needed, and these are {tuple(curve_before.shape)} and {tuple(curve_after.shape)}"
        )
    return distance(curve_before, curve_after, comparator)


def distance(a: Tensor, b: Tensor, comparator: str) -> Tensor:
    """`attention_shift` of curves (..., L) that broadcast against each other."""
    return _DISTANCES[comparator](widen(a), widen(b))


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    flat = _is_flat(a) | _is_flat(b)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    rho = (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return (1 - rho.clamp(-1, 1)).masked_fill(flat, torch.nan)


def _is_flat(x: Tensor) -> Tensor:
    """Without variance, up to the rounding that a constant curve carries."""
    return x.amax(-1) - x.amin(-1) <= 1e-12 * x.abs().amax(-1)


def _ranks(x: Tensor) -> Tensor:
    """Ranks along the last axis, equal values sharing their mean rank."""
    below = (x[..., None] > x[..., None, :]).sum(-1)
    equal = (x[..., None] == x[..., None, :]).sum(-1)
    return (below + (equal + 1) / 2).to(x.dtype)


def _spearman(a: Tensor, b: Tensor) -> Tensor:
    missing = torch.isnan(a).any(-1) | torch.isnan(b).any(-1)
    return _pearson(_ranks(a), _ranks(b)).masked_fill(missing, torch.nan)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return 1 - ((a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()).clamp(-1, 1)


def _l2(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(-1).sqrt()


def _js(a: Tensor, b: Tensor) -> Tensor:
    undefined = (a < 0).any(-1) | (b < 0).any(-1)
    p, q = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    middle = (p + q) / 2
    parts = torch.special.xlogy(p, p / middle) + torch.special.xlogy(q, q / middle)
    # where neither has mass there is nothing to add, and 0 / 0 must not say otherwise
    value = parts.masked_fill(middle == 0, 0).sum(-1) / 2
    return value.clamp(min=0).masked_fill(undefined, torch.nan)


_DISTANCES = {"pearson": _pearson, "spearman": _spearman, "cosine": _cosine, "l2": _l2, "js": _js}


def circular_null(curve_before: Tensor, curve_after: Tensor, *, comparator: str = "pearson") -> Tensor:
    """The shift with one curve turned along the layers by 1, 2, … L - 1: (..., L) each -> (..., L - 1).

    Curves over layers are strongly autocorrelated; turning keeps that and breaks which layer meets which.
    """
    length = curve_before.shape[-1]
    turns = torch.arange(1, length, device=curve_after.device)[:, None]
    turned = curve_after[..., (torch.arange(length, device=curve_after.device) - turns) % length]
    return distance(curve_before[..., None, :], turned, comparator)

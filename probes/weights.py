"""Which weights a set of tokens uses: Wanda scores, masks, and how far two masks agree.

Source: Sun et al., Wanda (arXiv 2306.11695), as used by Shukor and Cord (arXiv 2405.16700), section on shared weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..scenes.errors import UserError


def check_sparsity(sparsity: float) -> float:
    """The share to prune, if it is one; UserError otherwise."""
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity {sparsity} must be at least 0 and less than 1: the share of each row to prune")
    return sparsity


def wanda_scores(weight: Tensor, sum_squares: Tensor, n: int) -> Tensor:
    """|W_ij| sqrt(s_j / n): weight (out, in), sum_squares (in,) over all tokens, n samples (not tokens) -> (out, in).

    fp32 scores, so that ties fall alike on every device. Raises ValueError on a shape mismatch, UserError for n < 1.
    """
    if weight.ndim != 2 or sum_squares.shape != weight.shape[1:]:
        raise ValueError(f"weight {tuple(weight.shape)} needs sums of shape {tuple(weight.shape[1:])}, got {tuple(sum_squares.shape)}")  # fmt: skip
    if n < 1:
        raise UserError(f"Wanda scores of {n} samples do not exist: measure at least one sample")
    norms = (sum_squares.double() / n).sqrt().to(weight.device, torch.float32)
    return weight.detach().float().abs() * norms


def prune_mask(scores: Tensor, *, sparsity: float) -> Tensor:
    """True = pruned: in each output row the floor(in * sparsity) lowest of scores (out, in); ties prune the lower index."""
    count = int(scores.shape[1] * check_sparsity(sparsity) + 1e-9)  # 0.3 * 10 must be 3
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, scores.argsort(dim=1, stable=True)[:, :count], True)


def kept_iou(mask_a: Tensor, mask_b: Tensor) -> Tensor:
    """|A and B| / |A or B| of what two masks (True = pruned) keep; NaN where neither keeps anything."""
    if mask_a.shape != mask_b.shape:
        raise ValueError(f"masks of shapes {tuple(mask_a.shape)} and {tuple(mask_b.shape)} cannot be compared")
    a, b = ~mask_a, ~mask_b
    return (a & b).sum().double() / (a | b).sum()


def common_mask(masks: Sequence[Tensor]) -> Tensor:
    """The alpha-SubNet: kept where every mask keeps, so pruned where any prunes; at least as sparse as each of them."""
    return torch.stack(list(masks)).any(0)


def chance_iou(sparsity: float) -> float:
    """IoU expected of two independent random masks: k / (2 - k), k the kept share."""
    kept = 1 - check_sparsity(sparsity)
    return kept / (2 - kept)

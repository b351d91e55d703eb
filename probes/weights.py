"""Which weights a set of tokens uses: Wanda scores, masks, and how far two masks agree.

Source: Sun et al., Wanda (arXiv 2306.11695), as used by Shukor and Cord (arXiv 2405.16700), section on shared weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..scenes.errors import UserError


def check_sparsity(sparsity: float) -> float:
    """The share to prune, if it is one; UserError otherwise."""
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity {sparsity} must be at least 0 and less than 1: the share of each row to prune")
    return sparsity


def wanda_scores(weight: Tensor, sum_squares: Tensor, n: int | Tensor) -> Tensor:
    """|W_ij| sqrt(s_j / n): weight (out, in), sum_squares (in,) over all tokens, n samples (not tokens) -> (out, in).

    Several sums (..., in), with n that broadcasts against them, give (..., out, in). fp32 scores, so that ties fall alike on
    every device. Raises ValueError on a shape mismatch, UserError for n < 1.
    """
    if weight.ndim != 2 or not sum_squares.ndim or sum_squares.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"weight {tuple(weight.shape)} needs sums of shape {tuple(weight.shape[1:])}, got {tuple(sum_squares.shape)}")  # fmt: skip
    if bool(torch.as_tensor(n < 1).any()):
        raise UserError(f"Wanda scores of {n} samples do not exist: measure at least one sample")
    norms = (sum_squares.double() / n).sqrt().to(weight.device, torch.float32)
    return weight.detach().float().abs() * norms[..., None, :]


def prune_mask(scores: Tensor, *, sparsity: float) -> Tensor:
    """True = pruned: in each output row the floor(in * sparsity) lowest of scores (out, in); ties prune the lower index."""
    return prune_masks(scores, (sparsity,))[0]


def prune_masks(scores: Tensor, sparsity: Sequence[float]) -> list[Tensor]:
    """`prune_mask` for several shares; the scores are ordered once."""
    counts = [_share_of(scores.shape[1], share) for share in sparsity]
    highest = _lowest(scores, {count for count in counts if count})
    masks = []
    for count in counts:
        if not count:
            masks.append(torch.zeros_like(scores, dtype=torch.bool))
            continue
        border = highest[count]
        mask = scores <= border
        if int(mask.count_nonzero()) != count * len(scores):  # ties: a stable sort would take the first of them
            below, tied = scores < border, scores == border
            mask = below | (tied & (tied.cumsum(1) <= count - below.sum(1, keepdim=True)))
        masks.append(mask)
    return masks


def prune_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """n:m sparsity: True for the n lowest of every m inputs in a row of scores (out, in); ties prune the lower index. UserError
    unless 0 <= n < m and m divides the inputs."""
    if not 0 <= n < m or scores.shape[1] % m:
        raise UserError(
            f"{n}:{m} sparsity of {scores.shape[1]} inputs: n must be 0..{m - 1}, and m must divide the inputs"
        )
    return prune_mask(scores.reshape(-1, m), sparsity=n / m).view_as(scores)


def prune_whole(scores: Tensor, *, sparsity: float) -> Tensor:
    """One threshold for the whole matrix: True for the floor(size * sparsity) lowest of all scores. With |W| as scores
    this is magnitude pruning, as `prune_mask` of |W| is by row; with random ones a random mask."""
    return prune_mask(scores.reshape(1, -1), sparsity=sparsity).view_as(scores)


def drawn(among: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """A mask with `count` of the True places of `among`, drawn evenly. UserError where there are fewer."""
    places = torch.nonzero(among.flatten()).flatten()
    if count > len(places):
        raise UserError(f"{count} weights cannot be drawn from {len(places)}: remove a smaller share")
    mask = torch.zeros(among.numel(), dtype=torch.bool, device=among.device)
    mask[places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]] = True
    return mask.view_as(among)


def _lowest(scores: Tensor, counts: set[int]) -> dict[int, Tensor]:
    """By count, (out, 1): the count-th lowest score of each row."""
    if scores.device.type == "cpu":  # numpy's partition is ten times as fast as torch's
        left, found = scores.numpy(), {}
        for count in sorted(counts, reverse=True):  # what is below one border holds the lower ones
            left = np.partition(left, count - 1, axis=1)[:, :count]
            found[count] = torch.from_numpy(left[:, -1:])
        return found
    return {count: scores.kthvalue(count, dim=1, keepdim=True).values for count in counts}


def _share_of(n: int, sparsity: float) -> int:
    return int(n * check_sparsity(sparsity) + 1e-9)  # 0.3 * 10 must be 3


def kept_iou(mask_a: Tensor, mask_b: Tensor) -> Tensor:
    """|A and B| / |A or B| of what two masks (True = pruned) keep; NaN where neither keeps anything."""
    if mask_a.shape != mask_b.shape:
        raise ValueError(f"masks of shapes {tuple(mask_a.shape)} and {tuple(mask_b.shape)} cannot be compared")
    a, b = ~mask_a, ~mask_b
    return (a & b).sum().double() / (a | b).sum()


def common_mask(masks: Sequence[Tensor]) -> Tensor:
    """The alpha-SubNet: kept where every mask keeps, so pruned where any prunes; at least as sparse as each of them."""
    return torch.stack(list(masks)).any(0)


def exclusive_mask(mask_a: Tensor, mask_b: Tensor) -> Tensor:
    """True where A keeps a weight that B prunes (masks: True = pruned)."""
    return ~mask_a & mask_b


def pack(mask: Tensor) -> Tensor:
    """A bool mask as bits, an eighth of a byte a weight: uint8, on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=None))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask of that shape behind `pack`."""
    count = torch.Size(shape).numel()
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).view(*shape)


def chance_iou(sparsity: float) -> float:
    """IoU expected of two independent random masks: k / (2 - k), k the kept share."""
    kept = 1 - check_sparsity(sparsity)
    return kept / (2 - kept)

"""The losses of embedding prediction: smooth L1 and a contrastive term, over the samples that have a target.

Source: Jain et al., "OLA-VLM" (arXiv 2412.09585), section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, smooth_l1_loss

LOG_CAP = math.log(100)


def info_nce(
    pred: Tensor,
    target: Tensor,
    log_scale: Tensor | float,
    *,
    symmetric: bool = False,
    candidates: Tensor | None = None,
    offset: int = 0,
    duplicate: Tensor | None = None,
) -> Tensor:
    """(B,) contrastive loss of each sample: pred, target (B, ...), compared as one flat unit vector each, in fp32.

    The scale of the cosines is min(exp(log_scale), 100). symmetric: mean with the loss of targets finding predictions.
    candidates: (N, ...) targets of all processes, of which row `offset` + i belongs to pred i (default: `target`).
    duplicate: (B, N) true for candidates that are the same picture as the sample, and no negatives. With one candidate the
    loss is 0.
    """
    if symmetric and candidates is not None:
        raise ValueError("symmetric=True compares a batch with itself: leave candidates out")
    p = normalize(pred.flatten(1).float(), dim=-1)
    g = normalize((target if candidates is None else candidates).flatten(1).float(), dim=-1)
    scale = torch.as_tensor(log_scale, device=p.device).clamp(max=LOG_CAP).exp()  # clamped first: exp may overflow
    logits = scale * p @ g.T
    own = torch.arange(len(p), device=p.device) + offset
    if duplicate is not None:
        others = duplicate.to(p.device) & (torch.arange(len(g), device=p.device) != own[:, None])
        logits = logits.masked_fill(others, -torch.inf)
    loss = cross_entropy(logits, own, reduction="none")
    return (loss + cross_entropy(logits.T, own, reduction="none")) / 2 if symmetric else loss


def embedding_loss(
    pred: Tensor, target: Tensor, mask: Tensor, log_scale: Tensor | float, contrastive_weight: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """(total, smooth_l1, contrastive), scalars in fp32, total = smooth_l1 + contrastive (which holds its weight).

    pred, target: (B, ...); mask: (B,), or with axes of one behind it: which samples have a target. Samples without are
    left out of both terms as if they were not in the batch: neither averaged over, nor positives, nor negatives. With none
    left everything is 0, with a gradient of 0.
    """
    if pred.shape != target.shape or mask.numel() != len(pred):
        raise ValueError(
            f"shapes {tuple(pred.shape)}, {tuple(target.shape)} and mask {tuple(mask.shape)} do not fit: give (B, ...), (B, ...), (B,)"
        )
    valid = mask.reshape(-1).bool()
    p, g = pred[valid].float(), target[valid].float()  # chosen, not multiplied by 0: a NaN target does no harm
    if not len(p):
        zero = p.sum() + 0 * torch.as_tensor(log_scale, device=p.device).float().sum()
        return zero, zero.clone(), zero.clone()
    smooth = smooth_l1_loss(p, g)
    contrastive = contrastive_weight * info_nce(p, g, log_scale).mean()
    return smooth + contrastive, smooth, contrastive

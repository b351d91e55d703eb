"""How well predicted embeddings agree with their targets, picture by picture."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from .intervals import LEVEL, Estimate


def cos_flat(pred: Tensor, target: Tensor) -> Tensor:
    """(N,) cosine of each picture's prediction (N, ...) with its target, the whole tensor as one vector, at least fp32.

    OLA-VLM's score. 0 where a vector is zero. Blind to the scale of the prediction, and high for any prediction where
    targets have a large common mean: see `cos_centred`.
    """
    p, g = (x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)) for x in (pred, target))
    size = p.norm(dim=1) * g.norm(dim=1)
    return torch.where(size > 0, (p * g).sum(1) / size.clamp(min=torch.finfo(p.dtype).tiny), 0)


def cos_centred(pred: Tensor, target: Tensor, centre: Tensor) -> Tensor:
    """(N,) `cos_flat` after `centre`, the training mean at each place, is taken from both: 0 for a prediction that is the
    mean, whatever its cosine."""
    return cos_flat(pred - centre, target - centre)


def retrieval_ranks(pred: Tensor, target: Tensor) -> Tensor:
    """(N,) how many of the N targets are nearer (by cosine) to each prediction than its own; 0 is found. pred, target: (N, F)."""
    p, g = (torch.nn.functional.normalize(x, dim=1) for x in (pred, target))
    alike = p @ g.T
    return (alike > alike.diagonal()[:, None]).sum(1)


def class_counts(pred: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Right answers (N,), and per class intersection and union (N, C), of the largest outputs; pred, target: (N, T, C), weight:
    (N, T) share of the picture that each token stands for. Union holds what was predicted of classes that are absent too."""
    classes = pred.shape[-1]
    said, true = (torch.nn.functional.one_hot(x.argmax(-1), classes).to(weight) for x in (pred, target))
    both, either = said * true, torch.maximum(said, true)
    return (both.sum(-1) * weight).sum(1), *((x * weight[..., None]).sum(1) for x in (both, either))


def mean_iou(intersection: Tensor, union: Tensor) -> Tensor:
    """(...) mean over classes that occur or were predicted; intersection, union: (..., C) sums over pictures. NaN without any."""
    some = union > 1e-12
    return torch.where(some, intersection / union, 0).sum(-1) / some.sum(-1)


def explained(error: Tensor, total: Tensor, *, uniform: bool) -> Tensor:
    """R² of outputs (M,): 1 - summed error / summed total (variance weighted), or the mean of the outputs' own (uniform).
    Outputs that do not vary are left out of the latter."""
    if not uniform:
        return 1 - error.sum() / total.sum()
    varies = total > 0
    return (1 - error[varies] / total[varies]).mean() if varies.any() else total.new_tensor(torch.nan)


def influence(error: Tensor, total: Tensor, all_error: Tensor, all_total: Tensor, n: float, *, uniform: bool) -> Tensor:
    """(N,) what each picture does to R²: error, total (N, M) are the pictures', all_error and all_total (M,) the sums over
    the n pictures that R² is of."""
    if not uniform:
        error, total = error.sum(1, keepdim=True), total.sum(1, keepdim=True)
        all_error, all_total = all_error.sum().view(1), all_total.sum().view(1)
    varies = all_total > 0
    error, total, all_error, all_total = error[:, varies], total[:, varies], all_error[varies], all_total[varies]
    return -((error - all_error / all_total * total) / (all_total / n)).mean(1)


def linearised(value: float, influences: Tensor, n: int) -> Estimate:
    """An estimate over n samples whose spread is known from some of them, drawn at random: value ± t · sd(influence) / √n."""
    some = len(influences)
    sd = float(influences.double().std()) if some > 1 else np.nan
    half = stdtrit(some - 1, (1 + LEVEL) / 2) * sd / np.sqrt(n) if some > 1 else np.nan
    return Estimate(np.float64(value), value - half, value + half, np.float64(sd), np.int64(n))

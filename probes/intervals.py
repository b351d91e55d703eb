"""Estimates with 95 % intervals from sums: of means over samples, and of anything else by the jackknife over blocks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

LEVEL = 0.95
BLOCKS = 32
"""Samples are dealt into so many blocks by a hash of what they are, for the jackknife."""


class Estimate(NamedTuple):
    """Arrays of one shape: the value, its 95 % interval, the standard deviation between samples, the number of samples."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sd: np.ndarray
    n: np.ndarray


def mean_over_samples(moments: Tensor) -> Estimate:
    """From (..., 3) sums over samples of 1, x and x^2: the mean with Student's interval (NaN for one sample)."""
    n, total, squares = (x.numpy() for x in moments.detach().cpu().double().unbind(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        variance = np.maximum(squares / n - mean**2, 0) * n / (n - 1)
        half = stdtrit(np.maximum(n - 1, 1), (1 + LEVEL) / 2) * np.sqrt(variance / n)
        half = np.where(n > 1, half, np.nan)
        return Estimate(mean, mean - half, mean + half, np.where(n > 1, np.sqrt(variance), np.nan), n.astype(int))


def powers(values: Tensor) -> Tensor:
    """(...) values -> (..., 3): 1, x and x^2 where x is finite, else 0, 0, 0; their sums are what a mean is made from."""
    use = torch.isfinite(values)
    values = widen(values.masked_fill(~use, 0))
    return torch.stack([use.to(values.dtype), values, values.square()], -1)


def widen(values: Tensor) -> Tensor:
    """In fp64, or fp32 where the device has no more (MPS)."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def proportion(hits: Tensor) -> Estimate:
    """From (..., N) values in 0..1 of N samples: their share with Wilson's interval."""
    n, mean = hits.shape[-1], hits.double().mean(-1).cpu().numpy()
    z = 1.959964
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    return Estimate(mean, centre - half, centre + half, np.full(mean.shape, np.nan), np.full(mean.shape, n))


def mean_of_groups(estimate: Estimate) -> Estimate:
    """The mean over data sets (axis 0) of independent means, those without samples left out."""
    have = estimate.n > 0
    count = have.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(have, estimate.mean, 0).sum(0) / count
        half = np.sqrt(np.where(have, (estimate.high - estimate.mean) ** 2, 0).sum(0)) / count
        sd = np.sqrt(np.where(have, estimate.sd**2, 0).sum(0) / count)
    return Estimate(mean, mean - half, mean + half, sd, estimate.n.sum(0))


def jackknife(
    statistic: Callable[[dict[str, Tensor]], Tensor], sums: dict[str, Tensor], n: Tensor, *, at_once: bool = False
) -> Estimate:
    """A statistic of sums with the delete-a-block jackknife interval, for what is no mean over samples.

    sums: tensors whose first axis is the block, (J, ...); n: (J,) samples in each block. `statistic` is given the sums
    over all blocks, and over all but one, without that axis; or, `at_once`, all of these stacked along a first axis that its
    value then has too. Blocks are drawn by hash, so their sizes vary a little; with less than two that hold a sample the
    interval is NaN. Student's quantile with (blocks - 1) degrees of freedom.
    """
    filled = torch.nonzero(n > 0).flatten().tolist()
    filled = filled if len(filled) > 1 else []
    whole = {name: value.sum(0) for name, value in sums.items()}
    if at_once:
        stacked = {k: torch.stack([whole[k], *(whole[k] - v[j] for j in filled)]) for k, v in sums.items()}
        found = statistic(stacked).double().cpu().numpy()
    else:
        left = ({k: whole[k] - v[j] for k, v in sums.items()} for j in filled)
        found = np.stack([statistic(one).double().cpu().numpy() for one in chain([whole], left)])
    best, left_out = found[0], found[1:]
    count, nan = np.full(best.shape, int(n.sum())), np.full(best.shape, np.nan)
    if not filled:
        return Estimate(best, nan, nan, nan, count)
    j = len(filled)
    half = stdtrit(j - 1, (1 + LEVEL) / 2) * np.sqrt((j - 1) / j * ((left_out - left_out.mean(0)) ** 2).sum(0))
    return Estimate(best, best - half, best + half, nan, count)

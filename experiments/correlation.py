"""Rank correlation over a handful of models, told with everything that keeps it honest: n, an interval, a permutation test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.stats import rankdata

FEWEST = 4
"""Models below which no correlation is told."""

RESAMPLES = 10_000


@dataclass(frozen=True)
class Correlation:
    """value with its 95 % bootstrap interval over models, the two-sided permutation p, and the number of models."""

    value: float
    low: float
    high: float
    p: float
    n: int


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis, ties sharing their mean rank; NaN where either side is constant. (..., n) -> (...)"""
    return _pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def partial_spearman(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Rank correlation of x and y after the ranks of z are regressed out of both: given training step, say. (..., n) -> (...)

    NaN where x or y is constant or follows z's order exactly, as nothing is left then to correlate.
    """
    xy, xz, yz = spearman(x, y), spearman(x, z), spearman(y, z)
    left = (1 - xz**2) * (1 - yz**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(left > 1e-12, (xy - xz * yz) / np.sqrt(np.maximum(left, 1e-300)), np.nan)


def correlate(x, y, z=None, *, seed: int = 0) -> Correlation:
    """Spearman's correlation of two numbers per model, or the partial one given z.

    The interval is a percentile bootstrap over models; resamples with a constant side are left out. p shuffles y, exactly where
    there are at most 7 models, and is two-sided; with z it shuffles what is left of y's ranks after z (Freedman and Lane).
    Below `FEWEST` models with finite numbers everything is NaN.
    """
    columns = [np.asarray(column, float) for column in (x, y, *([] if z is None else [z]))]
    finite = np.isfinite(np.stack(columns)).all(0)
    columns = [column[finite] for column in columns]
    n = int(finite.sum())
    if n < FEWEST:
        return Correlation(math.nan, math.nan, math.nan, math.nan, n)
    statistic: Callable = spearman if z is None else partial_spearman
    value = float(statistic(*columns))
    if not math.isfinite(value):
        return Correlation(math.nan, math.nan, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, n, (RESAMPLES, n))
    resampled = statistic(*[column[chosen] for column in columns])
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.quantile(resampled, [0.025, 0.975]) if len(resampled) else (math.nan, math.nan)
    orders = (
        np.array(list(permutations(range(n)))) if n <= 7 else np.stack([rng.permutation(n) for _ in range(RESAMPLES)])
    )
    if z is None:
        null = spearman(columns[0], columns[1][orders])
    else:
        ranks = [rankdata(column) for column in columns]
        slope, level = np.polyfit(ranks[2], ranks[1], 1)
        fitted = slope * ranks[2] + level
        null = partial_spearman(columns[0], fitted + (ranks[1] - fitted)[orders], columns[2])
    null = null[np.isfinite(null)]
    at_least = int((np.abs(null) >= abs(value) - 1e-12).sum())
    p = at_least / len(null) if n <= 7 and len(null) else (at_least + 1) / (len(null) + 1)
    return Correlation(value, float(low), float(high), float(p), n)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
        return np.where(size > 1e-12, (x * y).sum(-1) / np.maximum(size, 1e-300), np.nan)

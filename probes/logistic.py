"""What tells two groups of events apart, when events come in clusters: AUC, and logistic regression with covariates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata

from ..scenes.errors import UserError

Z = norm.ppf(0.975)


class Coefficient(NamedTuple):
    """A coefficient with its 95 % interval and two-sided p, by standard errors that allow for clusters."""

    mean: float
    low: float
    high: float
    p: float


def logistic_regression(
    x: np.ndarray, y: np.ndarray, clusters: np.ndarray, *, ridge: float = 1e-6
) -> list[Coefficient]:
    """Coefficients of the columns of x (n, d) for y (n,) in {0, 1}; an intercept is added and not returned.

    Maximum likelihood by Newton's method; the sandwich estimator sums scores within clusters, with the usual G/(G-1)
    (Liang and Zeger 1986). ridge: keeps what is separable finite. Raises UserError for one class or fewer than two
    clusters.
    """
    groups = np.unique(clusters, return_inverse=True)[1]
    if len(np.unique(y)) < 2 or groups.max(initial=0) < 1:
        raise UserError(f"a logistic regression needs both outcomes and two clusters, got {len(y)} events of one kind")
    x = np.column_stack([np.ones(len(y)), np.asarray(x, float)])
    penalty = ridge * np.diag([0.0, *[1.0] * (x.shape[1] - 1)])
    beta = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        bread = (x * (p * (1 - p))[:, None]).T @ x + penalty
        step = np.linalg.lstsq(bread, x.T @ (y - p) - penalty @ beta, rcond=None)[0]
        beta = beta + step
        if np.abs(step).max() < 1e-10:
            break
    scores = np.zeros((groups.max() + 1, x.shape[1]))
    np.add.at(scores, groups, x * (y - p)[:, None])
    inverse = np.linalg.pinv(bread)
    spread = inverse @ (scores.T @ scores) @ inverse * len(scores) / (len(scores) - 1)
    error = np.sqrt(np.diag(spread))
    with np.errstate(divide="ignore", invalid="ignore"):
        p_values = 2 * norm.sf(np.abs(beta / error))
    return [Coefficient(b, b - Z * e, b + Z * e, p) for b, e, p in zip(beta, error, p_values, strict=True)][1:]


def auc(values: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive event has the larger value, ties half; NaN without both kinds."""
    positive = np.asarray(positive, bool)
    n, m = positive.sum(), (~positive).sum()
    if not n or not m:
        return float("nan")
    return float((rankdata(values)[positive].sum() - n * (n + 1) / 2) / (n * m))


def auc_interval(
    values: np.ndarray, positive: np.ndarray, clusters: np.ndarray, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """AUC with its 95 % percentile interval, clusters drawn with replacement."""
    values, positive = np.asarray(values, float), np.asarray(positive, bool)
    members = [np.flatnonzero(clusters == one) for one in np.unique(clusters)]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        at = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        found.append(auc(values[at], positive[at]))
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (np.nan, np.nan)
    return auc(values, positive), float(low), float(high)

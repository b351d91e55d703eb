"""Ridge with its penalty chosen inside, scored outside, from the folds' sums alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .ridge import Moments, ridge_at, ridge_path, squared_error

ALPHAS = tuple(10.0**power for power in range(-6, 3))
"""Penalties in units of the mean variance of a feature."""


class Validated(NamedTuple):
    """error: (F, ..., M) squared error on each fold of the probe that never saw it. coef: (F, ..., D, M), intercept:
    (F, ..., M) of these probes. alpha: (F, ..., G) the penalty chosen for each group of outputs."""

    error: Tensor
    coef: Tensor
    intercept: Tensor
    alpha: Tensor


def cross_validate(
    folds: Moments,
    groups: Sequence[slice],
    alphas: Sequence[float] = ALPHAS,
    *,
    relative: bool = True,
    standardise: bool = True,
) -> Validated:
    """Nested cross-validation. folds: moments with the fold as first axis, three or more; groups: outputs that share a
    penalty; alphas, relative, standardise: see `ridge_path`.

    The penalty for a fold is the one with the least error when each of the other folds is predicted from the rest: no
    number of a fold takes part in what predicts it. One eigendecomposition a pair of folds serves all
    penalties; taking a fold's sums away is the same as fitting again without it.
    """
    n_folds = len(folds.n)
    if n_folds < 3:
        raise ValueError(f"{n_folds} folds are too few to choose a penalty and to score it: give 3 or more")
    whole, grid = folds.sum(), torch.as_tensor(alphas, dtype=folds.xx.dtype)
    about = folds.centred()
    inner: list[Tensor | float] = [0.0] * n_folds
    for f, g in combinations(range(n_folds), 2):
        path = ridge_path(
            whole.minus(folds.at(f)).minus(folds.at(g)), alphas, relative=relative, standardise=standardise
        )
        inner[f] = inner[f] + squared_error(folds.at(g), path.coef, path.intercept, about.at(g))
        inner[g] = inner[g] + squared_error(folds.at(f), path.coef, path.intercept, about.at(f))
    found: list[tuple[Tensor, ...]] = []
    for f in range(n_folds):
        best = torch.stack([inner[f][..., group].sum(-1).argmin(0) for group in groups], -1)  # (..., G)
        alpha = grid.to(best.device)[best]
        coef, intercept = ridge_at(whole.minus(folds.at(f)), alpha, groups, relative=relative, standardise=standardise)
        found.append((squared_error(folds.at(f), coef, intercept, about.at(f)), coef, intercept, alpha))
    return Validated(*(torch.stack(part) for part in zip(*found, strict=True)))

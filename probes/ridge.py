"""Ridge regression from sums: any number of layers at once, the whole path of penalties, errors without a second pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..scenes.errors import UserError
from .intervals import widen

FLAT = 1e-12
"""A feature whose variance is below this share of its mean square does not vary: what is left of it is rounding."""


class Moments(NamedTuple):
    """Weighted sums of rows, with any leading axes (...): n () rows, x (D), y (M), xx (D, D), xy (D, M), yy (M) squares.

    Sums of sums are sums: parts of the data may be added and taken away (`plus`, `minus`). Axes in front broadcast, so that
    layers with features of their own share n, y and yy.
    """

    n: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def plus(self, other: Moments) -> Moments:
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Moments) -> Moments:
        return Moments(*(a - b for a, b in zip(self, other, strict=True)))

    def at(self, index) -> Moments:
        """These along the first axis: a number takes the axis away, a slice or list keeps it."""
        return Moments(*(value[index] for value in self))

    def sum(self) -> Moments:
        """Over the first axis."""
        return Moments(*(value.sum(0) for value in self))

    def centred(self) -> Moments:
        """The same about the means: xx, xy and yy of rows less their mean; n, x and y stay."""
        n = self.n[..., None].clamp(min=torch.finfo(self.n.dtype).tiny)
        mean_x = self.x / n
        xx = self.xx - self.x[..., :, None] * mean_x[..., None, :]
        xy = self.xy - mean_x[..., :, None] * self.y[..., None, :]
        return self._replace(xx=xx, xy=xy, yy=(self.yy - self.y.square() / n).clamp(min=0))

    def varying(self, about: Moments | None = None) -> Tensor:
        """(..., D) whether a feature varies by more than rounding. about: these `centred`, where they are known."""
        about = about or self.centred()
        return about.xx.diagonal(dim1=-2, dim2=-1) > FLAT * self.xx.diagonal(dim1=-2, dim2=-1)


class Fit(NamedTuple):
    """Solutions for A penalties: coef (A, ..., D, M), intercept (A, ..., M), dof (A, ...) effective degrees of freedom
    without the intercept's."""

    coef: Tensor
    intercept: Tensor
    dof: Tensor


class Products(NamedTuple):
    """Of one batch: n () rows; mean (..., D + M) of features and targets; products (..., D, D + M) of features with both,
    about these means; squares (M,) of the targets about theirs."""

    n: Tensor
    mean: Tensor
    products: Tensor
    squares: Tensor


def products(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Products:
    """What a batch adds: rows x (..., n, D) and y (n, M), with weights (n,) where rows do not count alike.

    In the rows' own type, but at least fp32. As products are formed about the means, a large common mean costs no digits, and
    what fp32 loses is below what fp32 states have; what is added up of them must be fp64.
    """
    exact = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    z = torch.cat([x.to(exact), y.to(exact).expand(*x.shape[:-1], -1)], -1)
    share = z.new_ones(len(y)) if weight is None else weight.to(z)
    n = share.sum()
    mean = (share / n) @ z
    z -= mean[..., None, :]
    left, right = z[..., : x.shape[-1]], z[..., x.shape[-1] :]
    right = right[(0,) * (z.ndim - 2)]  # the same for every layer
    squares = right.square() if weight is None else right.square() * share[:, None]
    left = left if weight is None else left * share[:, None]
    return Products(n, mean, left.mT @ z, squares.sum(0))


def moments(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Moments:
    """Moments of rows, in fp64 (fp32 where a device has no more); see `products`."""
    n, mean, about, squares = (widen(part) for part in products(x, y, weight))
    total, width = n * mean, x.shape[-1]
    whole = about + total[..., :width, None] * mean[..., None, :]
    mean_y, sum_y = (part[..., width:].reshape(-1, y.shape[1])[0] for part in (mean, total))
    return Moments(n, total[..., :width], sum_y, whole[..., :width], whole[..., width:], squares + sum_y * mean_y)


def ridge_path(
    sums: Moments, alphas: Sequence[float] | Tensor, *, relative: bool = False, standardise: bool = False
) -> Fit:
    """Ridge solutions for every penalty from one eigendecomposition.

    alphas: penalties in scikit-learn's sense (added to the diagonal of the centred xx, not divided by n; the intercept is
    not penalised), or with `relative` in units of the mean of that diagonal. standardise: penalise features in units of
    their standard deviation. Features that do not vary get coefficients of zero. Raises UserError for a penalty that is
    not positive.
    """
    alphas = check_alphas(alphas).to(sums.xx)
    gram, xy, use = _penalised(sums, standardise)
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0)
    penalty = alphas.view(-1, *[1] * values.ndim)
    if relative:
        penalty = penalty * _mean_variance(gram)[..., None]
    coef = _times(vectors, (vectors.mT @ xy) / (values + penalty)[..., None]) * use[..., :, None]
    return Fit(coef, _intercept(sums, coef), (values / (values + penalty)).sum(-1))


def ridge_at(
    sums: Moments, alphas: Tensor, groups: Sequence[slice], *, relative: bool = False, standardise: bool = False
) -> tuple[Tensor, Tensor]:
    """coef (..., D, M) and intercept (..., M) as of `ridge_path`, each group of outputs with its own penalty: alphas (..., G),
    positive. One Cholesky factor a group, where a path costs an eigendecomposition."""
    gram, xy, use = _penalised(sums, standardise)
    if relative:
        alphas = alphas * _mean_variance(gram)[..., None]
    parts = [_solved(gram, xy[..., group], alphas[..., g]) for g, group in enumerate(groups)]
    coef = torch.cat(parts, -1) * use[..., :, None]
    return coef, _intercept(sums, coef)


def _solved(gram: Tensor, xy: Tensor, penalty: Tensor) -> Tensor:
    """(gram + penalty) x = xy: gram (..., D, D), xy (..., D, M), penalty (...)."""
    one = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + penalty[..., None, None] * one)
    if not failed.any():
        return torch.cholesky_solve(xy, factor)
    values, vectors = torch.linalg.eigh(
        gram
    )  # the penalty is lost in the rounding of features that depend on each other
    return vectors @ ((vectors.mT @ xy) / (values.clamp(min=0) + penalty[..., None])[..., None])


def _penalised(sums: Moments, standardise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """xx (..., D, D) and xy about the means, in the units in which features are penalised; use (..., D): one over these
    units, 0 for a feature that does not vary."""
    c = sums.centred()
    diagonal = c.xx.diagonal(dim1=-2, dim2=-1)
    varies = sums.varying(c)
    one = torch.ones_like(diagonal)
    spread = (diagonal.clamp(min=0) / sums.n[..., None]).sqrt() if standardise else one
    use = varies.to(spread) / torch.where(varies, spread, 1)
    return c.xx * use[..., :, None] * use[..., None, :], c.xy * use[..., :, None], use


def _mean_variance(gram: Tensor) -> Tensor:
    """(...) mean of the diagonal."""
    return gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)


def _intercept(sums: Moments, coef: Tensor) -> Tensor:
    n = sums.n[..., None]
    return sums.y / n - _times((sums.x / n)[..., None, :], coef)[..., 0, :]


def squared_error(sums: Moments, coef: Tensor, intercept: Tensor, about: Moments | None = None) -> Tensor:
    """(..., M) weighted sum of squared errors of predictions x @ coef + intercept on the rows these are the moments of.
    about: the moments `centred`, where they are known."""
    c = about or sums.centred()
    n = sums.n[..., None]
    gap = sums.y / n - _times((sums.x / n)[..., None, :], coef)[..., 0, :] - intercept
    spread = (coef * (_times(c.xx, coef) - 2 * c.xy)).sum(-2) + c.yy
    return torch.where(n > 0, spread.clamp(min=0) + n * gap.square(), 0)


def _times(matrix: Tensor, many: Tensor) -> Tensor:
    """matrix (..., K, D) @ many (A, ..., D, M), or (..., D, M), as one product: broadcast, the matrix would be copied A times."""
    if many.ndim == matrix.ndim:
        return matrix @ many
    found = matrix @ many.movedim(0, -2).flatten(-2)  # (..., K, A * M)
    return found.unflatten(-1, (len(many), -1)).movedim(-2, 0)


def check_alphas(alphas: Sequence[float] | Tensor | float) -> Tensor:
    """As a tensor (A,); UserError for one that is not positive and finite, or for none."""
    values = torch.as_tensor(alphas, dtype=torch.float64).reshape(-1)
    for value in values.tolist():
        if not (value > 0 and value < float("inf")):
            raise UserError(f"ridge penalty {value:g} must be positive and finite: use e.g. 1e-6 for hardly any")
    if not len(values):
        raise UserError("no ridge penalty was given: give one or more positive numbers, e.g. 1.0")
    return values


class StreamingRidge:
    """Ridge regression of rows that come in batches of any size and order; memory is that of (D, D), not of the rows.

    While there are fewer rows than features the rows themselves are kept, which is less, and solved in the dual form.
    Solutions are scikit-learn's `Ridge(alpha)` with an intercept, to rounding of fp64.
    """

    def __init__(self, in_dim: int, out_dim: int):
        self.in_dim, self.out_dim = in_dim, out_dim
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._sums: Moments | None = None
        self.n = 0

    def update(self, x: Tensor, y: Tensor) -> None:
        """Adds rows x (n, D) and y (n, M). Raises UserError for other shapes and for values that are not finite."""
        if x.ndim != 2 or x.shape[1] != self.in_dim or y.shape != (len(x), self.out_dim):
            raise UserError(
                f"rows of shape {tuple(x.shape)} and {tuple(y.shape)} do not fit: give x (n, {self.in_dim}) and y (n, {self.out_dim})"
            )
        for name, value in (("features", x), ("targets", y)):
            if not torch.isfinite(value).all():
                raise UserError(f"{name} hold NaN or infinite values: leave such rows out, or widen what overflowed")
        if not len(x):
            return
        x, y = widen(x), widen(y)
        self.n += len(x)
        if self._sums is None and self.n <= self.in_dim:
            self._rows.append((x, y))
            return
        for held in (*self._rows, (x, y)):
            found = moments(*held)
            self._sums = found if self._sums is None else self._sums.plus(found)
        self._rows = []

    def solve(self, alpha: float) -> tuple[Tensor, Tensor]:
        """(coef (D, M), intercept (M,)). Raises UserError for alpha <= 0, no rows, or features that do not vary."""
        check_alphas(alpha)
        if not self.n:
            raise UserError("ridge has no rows to be solved from: call update(x, y) first")
        if self._sums is None:
            return self._dual(alpha)
        self._check_varies(self._sums.varying())
        fit = ridge_path(self._sums, alpha)
        return fit.coef[0], fit.intercept[0]

    def _dual(self, alpha: float) -> tuple[Tensor, Tensor]:
        x, y = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        mean_x, mean_y = x.mean(0), y.mean(0)
        dx = x - mean_x
        self._check_varies(dx.square().sum(0) > FLAT * x.square().sum(0))
        kernel = dx @ dx.T
        kernel.diagonal().add_(alpha)
        coef = dx.T @ torch.linalg.solve(kernel, y - mean_y)
        return coef, mean_y - mean_x @ coef

    def _check_varies(self, varying: Tensor) -> None:
        if not varying.any():
            raise UserError(
                f"all {self.in_dim} features are constant over {self.n} rows: nothing can be read from them; give other states or more rows"
            )

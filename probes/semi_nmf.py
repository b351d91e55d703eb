"""Semi-non-negative matrix factorisation: states as sparse, non-negative mixtures of concepts of any sign.

Z (M, D) ~ V (M, K) U (K, D), minimising 0.5 |Z - VU|_F^2 + penalty * |V|_1 with V >= 0 and rows of U inside the unit ball. Both
halves are coordinate descent with exact steps, so the objective never rises. Only K x K and K x D products are formed after one
Z U^T: the residual, which is as large as Z, never is. Source: CoX-LMM (arXiv 2406.08074), section 3, whose lambda is 2 * penalty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SWEEPS = 1000
"""Most passes of the coder over the concepts."""

WARM = 4
"""Passes of the coder between two updates of the atoms; it goes on from the last codes, so few do."""


class SemiNMF(NamedTuple):
    """atoms: (K, D). objective: its value after every update of the atoms, never rising."""

    atoms: Tensor
    objective: list[float]


def nonnegative_codes(
    Z: Tensor, atoms: Tensor, penalty: float, *, codes: Tensor | None = None, sweeps: int = SWEEPS, tol: float = 1e-6
) -> Tensor:
    """(M, K) the codes V >= 0 that minimise 0.5 |z - vU|^2 + penalty * |v|_1 for every row of Z (M, D); atoms U are (K, D).

    codes: where to begin (nothing: at 0). One coordinate of all rows is solved at once, up to `sweeps` times each or until no
    code moves by more than `tol` of the largest one. An atom of length 0 has code 0.
    """
    start = None if codes is None else codes.T.contiguous()
    return _descend(atoms @ atoms.T, atoms @ Z.T, penalty, start, sweeps, tol).T.contiguous()


def fit_semi_nmf(
    Z: Tensor, k: int, penalty: float, *, start: Tensor | None = None, seed: int = 0, iterations: int = 5000, tol: float = 1e-6
) -> SemiNMF:  # fmt: skip
    """Learns k atoms from Z (M, D), floating point, on Z's device.

    start: (k, D) first atoms (default: `singular_start`). Ends when the objective falls by less than `tol` of itself over ten
    iterations. seed: of the noise that tells several revived atoms apart.
    """
    atoms = unit_ball(singular_start(Z, k) if start is None else start.to(Z))
    generator = torch.Generator().manual_seed(seed)
    squares, codes, objective = Z.double().square().sum().item(), Z.new_zeros(k, len(Z)), []
    for _ in range(iterations):
        products = atoms @ Z.T
        codes = _descend(atoms @ atoms.T, products, penalty, codes, WARM, 0.0)
        gram, moments = codes @ codes.T, codes @ Z
        atoms = _update_atoms(atoms, gram, moments)
        objective.append(_objective(squares, atoms, gram, moments) + penalty * codes.sum().item())
        dead = torch.nonzero(gram.diagonal() <= 0).flatten()
        if len(dead):
            atoms[dead] = _worst_fitted(Z, codes, atoms, len(dead), generator)
        if len(objective) > 10 and objective[-11] - objective[-1] <= tol * abs(objective[-1]):
            break
    return SemiNMF(atoms, objective)


def objective(Z: Tensor, atoms: Tensor, codes: Tensor, penalty: float) -> float:
    """0.5 |Z - VU|_F^2 + penalty * |V|_1, summed in fp64."""
    Z, atoms, codes = Z.double(), atoms.double(), codes.double()
    return (0.5 * (Z - codes @ atoms).square().sum() + penalty * codes.abs().sum()).item()


def singular_start(Z: Tensor, k: int) -> Tensor:
    """(k, D) right singular vectors of Z, not centred, each with the sign in which more of Z can be coded without a minus.

    Beyond the rank of Z the rows are samples.
    """
    _, values, rows = torch.linalg.svd(Z, full_matrices=False)
    rows = rows[:k][values[:k] > values[0] * 1e-6]
    scores = Z @ rows.T
    positive, negative = scores.clamp(min=0).square().sum(0), scores.clamp(max=0).square().sum(0)
    rows = rows * torch.where(negative > positive, -1.0, 1.0).to(rows)[:, None]
    return torch.cat([rows, Z[: k - len(rows)]])


def unit_ball(atoms: Tensor) -> Tensor:
    """Rows longer than 1 made 1 long."""
    return atoms / atoms.norm(dim=1, keepdim=True).clamp(min=1)


def _descend(gram: Tensor, products: Tensor, penalty: float, codes: Tensor | None, sweeps: int, tol: float) -> Tensor:
    """Coordinate descent on codes (K, M), concept by concept so that rows lie together in memory; products: U Z^T (K, M)."""
    codes = torch.zeros_like(products) if codes is None else codes.clone()
    sizes = gram.diagonal().tolist()
    for _ in range(sweeps):
        before = codes.clone() if tol else None
        for k, size in enumerate(sizes):
            if size <= 0:
                codes[k] = 0
                continue
            step = torch.addmv(products[k], codes.T, gram[k], alpha=-1)
            codes[k].add_(step.sub_(penalty), alpha=1 / size).clamp_(min=0)
        if before is not None and (codes - before).abs().max() <= tol * codes.abs().max():
            break
    return codes


def _update_atoms(atoms: Tensor, gram: Tensor, moments: Tensor) -> Tensor:
    """Each atom in turn to its best place in the unit ball; gram: V^T V, moments: V^T Z. The quadratic is round in an atom,
    so projecting its minimum is exact. An atom without codes stays as it is."""
    atoms = atoms.clone()
    for k, size in enumerate(gram.diagonal().tolist()):
        if size > 0:
            atoms[k] += (moments[k] - gram[k] @ atoms) / size
            atoms[k] /= atoms[k].norm().clamp(min=1)
    return atoms


def _objective(squares: float, atoms: Tensor, gram: Tensor, moments: Tensor) -> float:
    """0.5 |Z - VU|_F^2 from the products alone."""
    atoms, gram, moments = atoms.double(), gram.double(), moments.double()
    crossed, quadratic = (moments * atoms).sum(), (gram * (atoms @ atoms.T)).sum()
    return 0.5 * squares - crossed.item() + 0.5 * quadratic.item()


def _worst_fitted(Z: Tensor, codes: Tensor, atoms: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n, D) directions of the residuals of the n samples fitted worst; noise tells them apart where there are fewer."""
    residuals = Z - codes.T @ atoms
    worst = residuals.norm(dim=1).argsort(descending=True)[torch.arange(n) % len(Z)]
    chosen = residuals[worst]
    noise = torch.randn(chosen.shape, generator=generator, dtype=torch.float64).to(chosen)
    chosen = chosen + 1e-3 * noise * chosen.norm(dim=1, keepdim=True) / Z.shape[1] ** 0.5
    return torch.nn.functional.normalize(chosen, dim=1)

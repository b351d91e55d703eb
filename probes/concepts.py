"""Concept dictionaries: a few directions that the states predicting a word are made of.

Z (M, D) ~ V (M, K) U (K, D): atoms U are the concepts, codes V say how much of each a sample has. Sources: CoX-LMM (arXiv 2406.08074)
for the factorisations, Khayatan et al. (arXiv 2501.03012) for their shift under tuning. The shift's arithmetic is in `concept_shift.py`,
its names are here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..scenes.errors import UserError
from .concept_shift import concept_shift, match_concepts, shifted_concepts
from .semi_nmf import fit_semi_nmf, nonnegative_codes

__all__ = [
    "METHODS", "Dictionary", "concept_shift", "decompose", "dictionary_quality", "match_concepts", "shifted_concepts", "stability",
]  # fmt: skip

METHODS = ("snmf", "kmeans", "pca", "simple")

RELATIVE_PENALTY = 0.01
"""Semi-NMF's penalty in units of the mean norm of a state: at norms of order 100 this is the papers' 1."""


@dataclass(frozen=True)
class Dictionary:
    """Concepts and how they code states. `dataclasses.replace(d, atoms=other)` codes with concepts from elsewhere.

    method: one of `METHODS`. atoms: (K, D). codes: (M, K) of the states it was learnt from, with these atoms. mean: (D,) of those
    states. penalty: semi-NMF's, absolute. objective: semi-NMF's by iteration. Everything fp32, or fp64 where the states were.
    """

    method: str
    atoms: Tensor
    codes: Tensor
    mean: Tensor
    penalty: float | None = None
    seed: int = 0
    objective: Sequence[float] = field(default=(), repr=False)

    @property
    def k(self) -> int:
        return len(self.atoms)

    def encode(self, Z: Tensor) -> Tensor:
        """(M, K) codes of states Z (M, D).

        snmf: the non-negative lasso's solution. kmeans, simple: 1 / (1 + distance) to every atom, in (0, 1]. pca: signed scores of
        Z less the mean of the states it was learnt from. Raises UserError for another width or states that are not finite.
        """
        Z = _widened(Z).to(self.atoms)
        if Z.shape[1] != self.atoms.shape[1]:
            raise UserError(
                f"states are {Z.shape[1]} wide and concepts {self.atoms.shape[1]}: code states of a model of the same width"
            )
        if self.method == "snmf":
            return nonnegative_codes(Z, self.atoms, self.penalty)
        if self.method == "pca":
            return (Z - self.mean) @ self.atoms.T
        # by differences: through products, the distance of a state to itself would not be 0
        return 1 / (1 + torch.cdist(Z, self.atoms, compute_mode="donot_use_mm_for_euclid_dist"))

    def assign(self, Z: Tensor | None = None, *, by: str = "codes") -> Tensor:
        """(M,) the concept of every state (of those it was learnt from by default): the largest code, or by="cosine" the concept
        in whose direction it lies most. PCA's codes are compared by size, as its signs are arbitrary."""
        if by == "codes":
            codes = self.codes if Z is None else self.encode(Z)
            return (codes.abs() if self.method == "pca" else codes).argmax(1)
        if by != "cosine" or Z is None:
            raise UserError(f"states are assigned by 'codes', or by 'cosine' when they are given; got by={by!r}")
        unit = torch.nn.functional.normalize
        return (unit(_widened(Z).to(self.atoms), dim=1) @ unit(self.atoms, dim=1).T).argmax(1)

    def directions(self, *, centre: bool = True) -> Tensor:
        """(K, D) the concepts as directions to be put into words. Cluster centres and samples hold the mean all states share,
        which would give every concept the same words: it is taken off, unless centre=False asks for the papers' way."""
        return self.atoms - self.mean if centre and self.method in ("kmeans", "simple") else self.atoms

    def reconstruct(self, Z: Tensor) -> Tensor:
        """(M, D) the states as the dictionary has them: mixtures (snmf, pca), or the nearest concept (kmeans, simple)."""
        codes = self.encode(Z)
        if self.method in ("kmeans", "simple"):
            return self.atoms[codes.argmax(1)]
        return codes @ self.atoms + (self.mean if self.method == "pca" else 0)


def decompose(
    Z: Tensor, k: int = 20, *, method: str = "snmf", seed: int = 0, penalty: float | None = None, starts: int = 10,
    init: str = "svd", iterations: int = 5000, tol: float = 1e-6,
) -> Dictionary:  # fmt: skip
    """Learns k concepts from states Z (M, D); halves are widened to fp32.

    snmf: semi-NMF with the absolute `penalty` (None: 0.01 times the mean norm of a state), begun at singular vectors
    (init="svd", nothing drawn) or at k samples drawn by the seed (init="samples"). kmeans: k-means++, the best of `starts` starts.
    pca: leading components of the centred states, unit rows, largest score positive. simple: the k states of largest norm, longest
    first, a baseline. Codes are those of the final atoms. Raises UserError, one line, for an unknown method, fewer states than
    concepts, states that are not finite or all the same, or a penalty below 0.
    """
    if method not in METHODS:
        raise UserError(f"concepts are learnt by {', '.join(METHODS)}; got method {method!r}")
    if init not in ("svd", "samples"):
        raise UserError(f"semi-NMF begins at 'svd' or 'samples'; got init {init!r}")
    if penalty is not None and not penalty >= 0:
        raise UserError(
            f"penalty {penalty} must be 0 or more, or None for {RELATIVE_PENALTY} of the mean norm of a state"
        )
    Z = _widened(Z)
    _check(Z, k, method)
    mean, made = Z.mean(0), {}
    if method == "simple":
        atoms = Z[Z.norm(dim=1).sort(descending=True, stable=True).indices[:k]].clone()
    elif method == "kmeans":
        atoms = _centroids(Z, k, seed, starts, iterations)
    elif method == "pca":
        atoms = _components(Z - mean, k)
    else:
        penalty = RELATIVE_PENALTY * Z.norm(dim=1).mean().item() if penalty is None else float(penalty)
        start = None if init == "svd" else _drawn(Z, k, seed)
        fitted = fit_semi_nmf(Z, k, penalty, start=start, seed=seed, iterations=iterations, tol=tol)
        atoms, made = fitted.atoms, {"penalty": penalty, "objective": tuple(fitted.objective)}
    empty = Dictionary(method, atoms.contiguous(), Z.new_zeros(0, k), mean, seed=seed, **made)
    return replace(empty, codes=empty.encode(Z))


def dictionary_quality(dictionary: Dictionary, Z: Tensor) -> dict[str, float]:
    """error: |Z - reconstruction| / |Z| (Frobenius); sparsity: share of codes that are exactly 0."""
    Z, codes = _widened(Z).to(dictionary.atoms), dictionary.encode(Z)
    error = (Z - dictionary.reconstruct(Z)).norm() / Z.norm()
    return {"error": error.item(), "sparsity": (codes == 0).double().mean().item()}


def stability(Z: Tensor, k: int, *, method: str, seeds: Sequence[int] = tuple(range(10)), **options: Any) -> Tensor:
    """(S * (S - 1) / 2,) for every two of the seeds, the mean cosine of best-matched concepts (one to one, Hungarian).

    Semi-NMF begins at drawn samples and k-means with one start, as otherwise nothing would differ. PCA's and "simple"'s are 1:
    they draw nothing. Centres are compared less the mean of all states, which alone would make them alike.
    """
    options = {"starts": 1, "init": "samples"} | options
    found = [decompose(Z, k, method=method, seed=seed, **options).directions() for seed in seeds]
    unit = [torch.nn.functional.normalize(one, dim=1) for one in found]
    pairs = [(unit[i] @ unit[j].T).cpu() for i in range(len(unit)) for j in range(i + 1, len(unit))]
    return torch.stack([cosine[linear_sum_assignment(cosine.numpy(), maximize=True)].mean() for cosine in pairs])


def quality_table(
    Z: Tensor, k: int, *, seeds: Sequence[int] = (0, 1, 2), methods: Sequence[str] = METHODS
) -> pd.DataFrame:
    """One row a method: error, sparsity, stability over seeds with its smallest pair, n states."""
    rows = []
    for method in methods:
        pairs = stability(Z, k, method=method, seeds=seeds)
        quality = dictionary_quality(decompose(Z, k, method=method, seed=seeds[0]), Z)
        rows.append(
            {
                "method": method,
                **quality,
                "stability": pairs.mean().item(),
                "least_stable": pairs.min().item(),
                "n": len(Z),
            }
        )
    return pd.DataFrame(rows)


def _widened(Z: Tensor) -> Tensor:
    if Z.ndim != 2:
        raise UserError(f"states are a matrix (samples, width); got shape {tuple(Z.shape)}")
    if not torch.isfinite(Z).all():
        bad = int((~torch.isfinite(Z)).any(1).sum())
        raise UserError(f"{bad} of {len(Z)} states hold NaN or infinity: leave those samples out, or read them in fp32")
    return Z.detach() if Z.dtype in (torch.float32, torch.float64) else Z.detach().float()


def _check(Z: Tensor, k: int, method: str) -> None:
    if k < 1:
        raise UserError(f"k {k} must be at least 1 concept")
    if len(Z) < k:
        raise UserError(f"{len(Z)} states are fewer than {k} concepts: give more samples, or k of at most {len(Z)}")
    if method == "pca" and k > Z.shape[1]:
        raise UserError(f"states of width {Z.shape[1]} have no {k} components: use k of at most {Z.shape[1]}")
    if len(Z) > 1 and bool((Z[0] == Z).all()):
        raise UserError(
            f"all {len(Z)} states are the same: there are no concepts to tell apart; read another site or word"
        )


def _centroids(Z: Tensor, k: int, seed: int, starts: int, iterations: int) -> Tensor:
    from sklearn.cluster import KMeans

    found = KMeans(k, n_init=starts, max_iter=iterations, random_state=seed).fit(Z.cpu().numpy())
    return torch.as_tensor(found.cluster_centers_).to(Z)


def _components(centred: Tensor, k: int) -> Tensor:
    rows = torch.linalg.svd(centred, full_matrices=False).Vh[:k]
    if len(rows) < k:
        raise UserError(f"{len(centred)} states have no {k} components: give more samples, or a smaller k")
    scores = centred @ rows.T
    largest = scores.gather(0, scores.abs().argmax(0, keepdim=True))[0]
    return rows * torch.where(largest < 0, -1.0, 1.0).to(rows)[:, None]


def _drawn(Z: Tensor, k: int, seed: int) -> Tensor:
    return Z[torch.randperm(len(Z), generator=torch.Generator().manual_seed(seed))[:k].to(Z.device)]

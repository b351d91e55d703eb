"""What tuning did to concepts: the mean move of the states of each, how much they agree, and which concept became which.

Source: Khayatan et al. (arXiv 2501.03012), section 3. All functions are of tensors: a, b (M, D) hold the states of the same M samples
before and after, assignment (M,) the concept of each sample. An empty concept is NaN and disturbs no other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import stdtrit
from torch import Tensor

from ..scenes.errors import UserError
from .intervals import LEVEL, widen

AVERAGES = ("mean", "median", "trimmed")

FLIPS = 500
"""Random signs drawn for the floor of consistency."""


class ConceptShift(NamedTuple):
    """shift: (K, D), NaN for an empty concept. consistency: (K,), NaN for fewer than two samples."""

    shift: Tensor
    consistency: Tensor


def concept_shift(
    a: Tensor, b: Tensor, assignment: Tensor, k: int, *, average: str = "mean", trim: float = 0.1, paired: bool = True
) -> ConceptShift:  # fmt: skip
    """Shift D_k of each concept and its consistency.

    D_k averages d_m = b_m - a_m over the concept's samples: "mean", "median" or "trimmed" (a share `trim` cut off at either end,
    each feature for itself). paired=False averages a and b apart and takes the difference, as the original code does; for the mean
    it is the same. Consistency is the mean cosine of two different d_m of a concept, from |sum of unit d|^2 without the M x M matrix;
    a d of length 0 has cosine 0 with all. Computed in fp64 (fp32 on MPS). Raises UserError for states that do not belong together.
    """
    a, b, assignment = _together(a, b, assignment, k)
    if average not in AVERAGES:
        raise UserError(f"a shift averages by {', '.join(AVERAGES)}; got {average!r}")
    if not 0 <= trim < 0.5:
        raise UserError(f"trim {trim} must be a share from 0 to below 0.5: it is cut off at either end")
    d = b - a
    n = torch.bincount(assignment, minlength=k).to(d)
    if average == "mean":
        shift = _sums(d, assignment, k) / n[:, None]  # 0 / 0 is the NaN of an empty concept
    else:
        shift = d.new_full((k, d.shape[1]), torch.nan)
        for i in torch.nonzero(n).flatten().tolist():
            own = assignment == i
            shift[i] = (
                _average(d[own], average, trim)
                if paired
                else _average(b[own], average, trim) - _average(a[own], average, trim)
            )
    units = torch.nn.functional.normalize(d, dim=1)
    lengths = torch.zeros_like(n).index_add_(0, assignment, units.square().sum(1))
    pairs = torch.where(n > 1, n * (n - 1), torch.nan)
    return ConceptShift(shift, (_sums(units, assignment, k).square().sum(1) - lengths) / pairs)


def shifted_concepts(atoms: Tensor, shift: Tensor, alpha: float = 1.0) -> Tensor:
    """(K, D) u_k + alpha * D_k; a concept without a shift is NaN."""
    return atoms + alpha * shift.to(atoms)


def match_concepts(atoms_a: Tensor, atoms_b: Tensor) -> Tensor:
    """(K,) for each concept of a its partner in b, one to one, so that the sum of cosines is largest (Hungarian).

    A row that is 0 or NaN has cosine 0 with all. Raises UserError for different widths or fewer concepts in b than in a.
    """
    if atoms_a.shape[1] != atoms_b.shape[1]:
        raise UserError(
            f"concepts are {atoms_a.shape[1]} and {atoms_b.shape[1]} wide: match those of models of the same width"
        )
    a, b = (torch.nn.functional.normalize(x.nan_to_num(), dim=1) for x in (atoms_a, atoms_b.to(atoms_a)))
    return best_partners(a @ b.T)


def match_memberships(assignment_a: Tensor, assignment_b: Tensor, k: int) -> Tensor:
    """(K,) as `match_concepts`, by how many samples two concepts share: nothing of where they lie enters."""
    shared = torch.bincount(assignment_a * k + assignment_b, minlength=k * k).view(k, k)
    return best_partners(shared.double())


def best_partners(score: Tensor) -> Tensor:
    """(Ka,) the column of each row in the one-to-one choice of largest sum; score (Ka, Kb), Ka <= Kb."""
    if score.shape[0] > score.shape[1]:
        raise UserError(
            f"{score.shape[0]} concepts cannot each have a partner among {score.shape[1]}: learn as many in both models"
        )
    return torch.as_tensor(linear_sum_assignment(score.cpu().numpy(), maximize=True)[1], device=score.device)


def shift_table(a: Tensor, b: Tensor, assignment: Tensor, k: int, *, seed: int = 0) -> pd.DataFrame:
    """One row a concept: what its shift is made of, with what chance alone would give.

    concept, n; consistency with low, high (delete-one jackknife over samples) and floor: the 97.5 % point of consistency when each
    sample's shift is given a random sign, so that nothing is common; magnitude |D_k|, noise: what |D_k| would be of the samples' spread
    alone, sqrt(trace of their covariance / n), and above: sqrt(|D_k|^2 - noise^2), 0 where it is less; cosine: mean cosine of
    d_m to D_k; dot: mean product of two different d_m. NaN where n is too small.
    """
    shift, consistency = concept_shift(a, b, assignment, k)
    a, b, assignment = _together(a, b, assignment, k)
    generator, rows = torch.Generator().manual_seed(seed), []
    for i in range(k):
        d = (b - a)[assignment == i]
        n, total = len(d), d.sum(0)
        signs = torch.randint(0, 2, (FLIPS, n), generator=generator).to(d) * 2 - 1
        row = {"concept": i, "n": n, "consistency": consistency[i].item(), "magnitude": shift[i].norm().item()}
        if n > 1:
            unit = torch.nn.functional.normalize(d, dim=1)
            flipped = ((signs @ unit).square().sum(1) - unit.square().sum()) / (n * (n - 1))
            spread = (d - shift[i]).square().sum() / (n - 1)
            row |= _jackknife(unit, row["consistency"]) | {
                "floor": flipped.quantile(0.975).item(),
                "noise": (spread / n).sqrt().item(),
                "above": (shift[i].square().sum() - spread / n).clamp(min=0).sqrt().item(),
                "dot": ((total.square().sum() - d.square().sum()) / (n * (n - 1))).item(),
            }
        row["cosine"] = (
            (torch.nn.functional.normalize(d, dim=1) @ torch.nn.functional.normalize(shift[i], dim=0)).mean().item()
        )
        rows.append(row)
    columns = ["concept", "n", "consistency", "low", "high", "floor", "magnitude", "noise", "above", "cosine", "dot"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _jackknife(unit: Tensor, value: float) -> dict[str, float]:
    """95 % interval of the mean pairwise cosine when each of n > 2 samples is left out in turn."""
    n = len(unit)
    if n < 3:
        return {"low": np.nan, "high": np.nan}
    squares = unit.square().sum(1)
    rest = unit.sum(0) - unit
    left_out = (rest.square().sum(1) - (squares.sum() - squares)) / ((n - 1) * (n - 2))
    spread = (left_out - left_out.mean()).square().sum().item()
    half = stdtrit(n - 1, (1 + LEVEL) / 2) * np.sqrt((n - 1) / n * spread)
    return {"low": value - half, "high": value + half}


def _together(a: Tensor, b: Tensor, assignment: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    if a.shape[-1] != b.shape[-1]:
        raise UserError(
            f"the states of the two models are {a.shape[-1]} and {b.shape[-1]} wide: a shift needs models of the same width"
        )
    if a.shape != b.shape or len(assignment) != len(a):
        raise UserError(
            f"{len(a)} and {len(b)} states with {len(assignment)} assignments: give the same samples of both models"
        )
    assignment = assignment.to(a.device)
    if len(a) and not 0 <= int(assignment.min()) <= int(assignment.max()) < k:
        raise UserError(
            f"assignments run from {int(assignment.min())} to {int(assignment.max())}, the concepts from 0 to {k - 1}"
        )
    return widen(a), widen(b.to(a.device)), assignment


def _sums(values: Tensor, assignment: Tensor, k: int) -> Tensor:
    return values.new_zeros(k, values.shape[1]).index_add_(0, assignment, values)


def _average(values: Tensor, average: str, trim: float) -> Tensor:
    """(D,) feature by feature; the median of an even number is the mean of the middle two."""
    ordered, n = values.sort(0).values, len(values)
    cut = (n - 1) // 2 if average == "median" else int(trim * n)
    return ordered[cut : n - cut].mean(0)

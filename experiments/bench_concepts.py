"""Speed of semi-NMF, fitting and coding, beside scikit-learn's dictionary learning with non-negative codes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..probes.concepts import decompose
from ..probes.semi_nmf import objective
from .bench import FULL, Row, Size
from .timing import Ratio, interleave

STATES, WIDTH, CONCEPTS, PENALTY = 5000, 512, 20, 0.1
THEIRS = 10
"""Iterations scikit-learn is given; with its default of 1000 it takes minutes, so it is let off early."""


def planted_states(n: int, width: int, k: int, seed: int = 0) -> Tensor:
    """(n, width) sparse non-negative mixtures of k random unit concepts, with noise."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(k, width, generator=generator), dim=1)
    codes = (torch.randn(n, k, generator=generator) - 0.5).clamp(min=0)
    return codes @ atoms + 0.05 * torch.randn(n, width, generator=generator)


def rows(size: Size) -> Iterator[Row]:
    """Fit and codes of both on the same states; the objectives are of what each returns."""
    from sklearn.decomposition import DictionaryLearning

    n = STATES if size == FULL else STATES // 50
    Z = planted_states(n, WIDTH, CONCEPTS)
    numbers, reached = Z.numpy(), {}

    def ours() -> None:
        found = decompose(Z, CONCEPTS, method="snmf", penalty=PENALTY)
        reached["ours"] = objective(Z, found.atoms, found.codes, PENALTY)

    def theirs() -> None:
        learner = DictionaryLearning(
            CONCEPTS, alpha=PENALTY, max_iter=THEIRS, fit_algorithm="cd", transform_algorithm="lasso_cd",
            transform_alpha=PENALTY, positive_code=True, random_state=0,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it would like to go on
            codes = learner.fit_transform(numbers)
        atoms = torch.from_numpy(np.asarray(learner.components_, np.float32))
        reached["theirs"] = objective(Z, atoms, torch.from_numpy(np.asarray(codes, np.float32)), PENALTY)

    found = interleave({"ours": ours, "theirs": theirs}, min(size.scene_rounds, 2), warm=0)
    what, against = (
        f"semi-NMF, fit and codes, {n} x {WIDTH}, K = {CONCEPTS}",
        f"scikit-learn DictionaryLearning, {THEIRS} iterations",
    )
    yield Row(what, against, found.ratio("ours", "theirs"), f"{found.milliseconds('ours'):.0f} ms", 0.5)
    detail = f"{reached['ours']:.1f} and {reached['theirs']:.1f}; on planted concepts, non-negative codes"
    yield Row("its objective", against, Ratio.of([reached["ours"] / reached["theirs"]]), detail, 1.0)

"""Speed and memory of the streaming ridge beside scikit-learn's `RidgeCV` on stored states."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..probes.cross_validation import ALPHAS, cross_validate
from ..probes.embedding_scores import explained
from ..probes.ridge import Moments, moments
from .bench import FULL, Row, Size
from .timing import Ratio, allocation_peak, interleave

LAYERS, WIDTH, OUTPUTS, TOKENS, FOLDS = 6, 128, 27, 64, 4
"""As the organism's: input, four blocks and norm, depth and 26 classes, 64 visual tokens a picture."""


def rows(size: Size) -> Iterator[Row]:
    """All layers and the whole path of penalties, four folds by picture, the penalty chosen on the other three.

    scikit-learn has the same folds and grid: in each fold `RidgeCV` chooses on the three others, and is scored on the fold.
    """
    pictures = 200 if size == FULL else 16
    states, targets = planted(pictures)
    batches = [slice(start, start + 8) for start in range(0, pictures, 8)]
    scores: dict[str, Tensor] = {}

    def streaming() -> None:
        scores["ours"] = stream(states, targets, batches)

    def stored(folds_of: Callable | None) -> Callable[[], None]:
        def step() -> None:
            name = "theirs" if folds_of else "loo"
            scores[name] = refit(states, targets, folds_of)

        return step

    steps = {"ours": streaming, "theirs": stored(inner_folds), "loo": stored(None)}
    found = interleave(steps, min(size.scene_rounds, 3) if size == FULL else 1, warm=0)
    what, detail = (
        f"ridge, {LAYERS} layers, {len(ALPHAS)} penalties, {pictures} pictures: ",
        f"{found.milliseconds('ours'):.0f} ms",
    )
    folds, loo = "RidgeCV per layer, folds by picture", "RidgeCV per layer, leave one token out"
    yield Row(what + "time", folds, found.ratio("ours", "theirs"), detail, 0.33)
    yield Row(what + "time", loo, found.ratio("ours", "loo"), f"{found.milliseconds('loo'):.0f} ms")
    held = states.numel() * 4 + targets.numel() * 4  # scikit-learn needs all states at once, a stream one batch
    ours, theirs = allocation_peak(streaming), held + numpy_peak(steps["theirs"])
    mib = 2**20
    yield Row(what + "memory", f"{folds}, stored states", Ratio.of([ours / theirs]), f"{ours / mib:.1f} of {theirs / mib:.1f} MiB", 0.2)  # fmt: skip
    apart = float((scores["ours"] - scores["theirs"]).abs().max())
    yield Row("largest difference of R² between layers' scores", folds, Ratio.of([apart]), "the same: 0", 1e-3)


def planted(pictures: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """States (LAYERS, pictures, TOKENS, WIDTH) with fewer and fewer directions of the targets (pictures, TOKENS, OUTPUTS)."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(pictures, TOKENS, OUTPUTS, generator=generator)
    mix = torch.randn(LAYERS, OUTPUTS, WIDTH, generator=generator) / OUTPUTS**0.5
    noise = torch.randn(LAYERS, pictures, TOKENS, WIDTH, generator=generator)
    return noise + (targets[None] @ mix[:, None]) / (1 + torch.arange(LAYERS))[:, None, None, None], targets


def penalties(targets: Tensor) -> list[float]:
    """The same for both, in scikit-learn's units: rows times what is usual."""
    return [alpha * targets.shape[0] * TOKENS for alpha in ALPHAS]


def fold_of(pictures: int) -> Tensor:
    return torch.arange(pictures) % FOLDS


def stream(states: Tensor, targets: Tensor, batches: list[slice]) -> Tensor:
    """(LAYERS,) R² from sums: every batch is added to its folds' sums and forgotten."""
    sums: list[Moments | None] = [None] * FOLDS
    fold = fold_of(len(targets))
    for batch in batches:
        for f in range(FOLDS):
            own = torch.nonzero(fold[batch] == f).flatten() + batch.start
            if len(own):
                part = moments(states[:, own].flatten(1, 2), targets[own].flatten(0, 1))
                sums[f] = part if sums[f] is None else sums[f].plus(part)
    folds = Moments(*(torch.stack(parts) for parts in zip(*sums, strict=True)))
    found = []
    for layer in range(LAYERS):
        own = folds._replace(x=folds.x[:, layer], xx=folds.xx[:, layer], xy=folds.xy[:, layer])
        done = cross_validate(own, [slice(0, OUTPUTS)], penalties(targets), relative=False, standardise=False)
        found.append(explained(done.error.sum(0), own.sum().centred().yy, uniform=False))
    return torch.stack(found)


def inner_folds(fold: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The other folds, each in turn to choose the penalty on."""
    return [(np.nonzero(fold != f)[0], np.nonzero(fold == f)[0]) for f in np.unique(fold)]


def refit(states: Tensor, targets: Tensor, folds_of: Callable | None) -> Tensor:
    """(LAYERS,) R² with scikit-learn. folds_of: how the penalty is chosen; None: its own way, leaving out one row."""
    from sklearn.linear_model import RidgeCV

    fold, y = fold_of(len(targets)).repeat_interleave(TOKENS).numpy(), targets.flatten(0, 1).numpy().astype(np.float64)
    total, found = ((y - y.mean(0)) ** 2).sum(), []
    for layer in states:
        x, error = layer.flatten(0, 1).numpy().astype(np.float64), 0.0
        for f in range(FOLDS):
            rest = fold != f
            choose = None if folds_of is None else folds_of(fold[rest])
            scoring = None if folds_of is None else "neg_mean_squared_error"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fitted = RidgeCV(penalties(targets), cv=choose, scoring=scoring).fit(x[rest], y[rest])
            error += ((fitted.predict(x[~rest]) - y[~rest]) ** 2).sum()
        found.append(1 - error / total)
    return torch.tensor(found)


def numpy_peak(step: Callable[[], None]) -> int:
    """The most bytes of numpy's arrays alive at once during a step."""
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

"""Metrics of many answers with intervals by the bootstrap, the image as the unit.

Questions about one image stand or fall together, so images are drawn, not questions. Every metric here is a function of
sums over items (a share, F1, CHAIR_i, …) and is computed anew from the sums of each draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..scenes.errors import UserError
from .intervals import LEVEL

DRAWS = 10_000
_AT_ONCE = 1_000_000  # numbers drawn at a time, so that memory does not grow with the draws


class Tally(NamedTuple):
    """What one system's answers come to, before any average.

    counts: (items, c) numbers of each item. metrics: sums of counts (..., c) -> {metric: (...)}. shares: the metrics that are
    the mean over all items of a 0/1 column, and which one; these have an exact paired test. sizes: n of the metrics that are
    about some of the items only.
    """

    counts: np.ndarray
    metrics: Callable[[np.ndarray], dict[str, np.ndarray]]
    shares: Mapping[str, int] = {}
    sizes: Mapping[str, int] = {}


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def harmonic_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """2ab / (a + b), 0 where both are 0."""
    return ratio(2 * a * b, a + b)


def units(images: Sequence | None, n: int) -> np.ndarray:
    """(n,) the number of each item's image, from 0; each item its own where there are no images. Raises UserError."""
    if not n:
        raise UserError("there are no answers to score: give at least one")
    if images is None:
        return np.arange(n)
    if len(images) != n:
        raise UserError(f"{len(images)} images for {n} answers: give the image of each answer, in the same order")
    numbers = pd.factorize(pd.Series(list(images), dtype=object))[0]
    if (numbers < 0).any():
        raise UserError(f"answer {int(np.argmax(numbers < 0))} has no image: name the image of each answer, or of none")
    return numbers


def sums_by_image(counts: np.ndarray, images: Sequence | None = None) -> np.ndarray:
    """(items, c) -> (images, c), images in the order they are first met."""
    numbers = units(images, len(counts))
    sums = np.zeros((numbers.max() + 1, counts.shape[1]))
    np.add.at(sums, numbers, counts)
    return sums


def drawn_sums(sums: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """Sums over images drawn with replacement, (some draws, c) at a time, from (images, c)."""
    rng, n = np.random.default_rng(seed), len(sums)
    for many in chunks(draws, n):
        drawn = rng.integers(0, n, (many, n), dtype=np.int32) + n * np.arange(many, dtype=np.int32)[:, None]
        yield (
            np.bincount(drawn.ravel(), minlength=many * n).reshape(many, n) @ sums
        )  # how often each image is in each draw


def chunks(draws: int, n: int) -> Iterator[int]:
    """Sizes of the parts in which to draw n numbers so many times."""
    step = max(1, _AT_ONCE // n)
    return (min(step, draws - start) for start in range(0, draws, step))


def percentile_interval(values: np.ndarray, n: int) -> np.ndarray:
    """(draws, ...) -> (2, ...) ends of the 95 % percentile interval; NaN where the draws are of one image only."""
    ends = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return ends if n > 1 else np.full_like(ends, np.nan)


def estimates(
    tally: Tally, images: Sequence | None = None, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, float]]:
    """{metric: {"mean", "low", "high", "n"}}: 95 % percentile intervals, images drawn with replacement.

    images: the image of each item; each its own where there are none. n: items. A system that is always right has the
    interval [1, 1], since no draw can hold what no item shows; one image has no interval (NaN).
    """
    sums = sums_by_image(tally.counts, images)
    whole = tally.metrics(sums.sum(0))
    drawn = [tally.metrics(part) for part in drawn_sums(sums, draws=draws, seed=seed)]
    found = {}
    for name, mean in whole.items():
        low, high = percentile_interval(np.concatenate([part[name] for part in drawn]), len(sums))
        n = tally.sizes.get(name, len(tally.counts))
        found[name] = {"mean": float(mean), "low": float(low), "high": float(high), "n": int(n)}
    return found


def nested(flat: Mapping[str, dict[str, float]]) -> dict[str, dict]:
    """{"group/metric": …} -> {"group": {"metric": …}}; names without a group stay."""
    found: dict[str, dict] = {}
    for name, value in flat.items():
        group, _, metric = name.rpartition("/")
        if group:
            found.setdefault(group, {})[metric] = value
        else:
            found[metric] = value
    return found

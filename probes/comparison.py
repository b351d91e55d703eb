"""Several systems on the same items: paired differences from the plain one, with intervals, tests and what n could show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom, norm

from ..scenes.errors import UserError
from .bootstrap import DRAWS, Tally, chunks, drawn_sums, percentile_interval, sums_by_image
from .intervals import LEVEL

POWER = 0.8
COLUMNS = (
    "method", "metric", "mean", "low", "high", "n", "difference", "difference_low", "difference_high", "p", "p_holm",
    "p_mcnemar", "detectable",
)  # fmt: skip
_ROUNDING = 1e-12


def comparison(
    plain: Sequence[Any],
    changed: Mapping[str, Sequence[Any]],
    images: Sequence | None,
    metric: Callable[[Sequence[Any]], Tally],
    *,
    name: str = "plain",
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a method and metric, the plain system's first.

    plain: its answers, one an item; changed: the answers of each other method to the same items, in the same order. images:
    the image of each item, or None. metric: answers -> `Tally`, e.g. `lambda answers: pope_tally(answers, labels)`.

    Columns: method, metric; mean, low, high, n as in `estimates`; difference (method minus plain) with its interval from the
    same draws of images as all others; p of the sign-flip test by image (`sign_flip_p`), which for a share whose items have
    an image each is computed exactly, as McNemar's; p_holm: p corrected over the methods within a metric (over models
    and splits: join the tables, then `table.groupby("metric")["p"].transform(holm)`); p_mcnemar: the exact test over items,
    too small where items share images, for shares only; detectable: the smallest difference these items would show
    (`smallest_effect`), NaN where the two never differ. Empty for the plain system. Raises UserError.
    """
    if not changed or name in changed:
        raise UserError(
            f"changed names the methods to compare with {name!r}, got {list(changed)}: give each its own name"
        )
    systems = {name: metric(plain)} | {method: metric(answers) for method, answers in changed.items()}
    tallies = list(systems.values())
    for method, tally in systems.items():
        if tally.counts.shape != tallies[0].counts.shape:
            raise UserError(
                f"{method!r} has {len(tally.counts)} answers, {name!r} has {len(tallies[0].counts)}: compare them on the same items"
            )
    metrics, width = tallies[0].metrics, tallies[0].counts.shape[1]
    joined = np.concatenate([tally.counts for tally in tallies], 1)  # so that all see the same draws
    sums = sums_by_image(joined, images)
    drawn: dict[str, list] = {}
    for part in drawn_sums(sums, draws=draws, seed=seed):
        for what, values in metrics(part.reshape(len(part), len(systems), width)).items():
            drawn.setdefault(what, []).append(values)
    parted = sums.reshape(len(sums), len(systems), width)
    whole = metrics(parted.sum(0))
    tests = [
        {},
        *(_tests(tallies[0], t, parted[:, 0], parted[:, i], draws, seed) for i, t in enumerate(tallies[1:], 1)),
    ]
    rows = []
    for i, method in enumerate(systems):
        for what, means in whole.items():
            values = np.concatenate(drawn[what])
            low, high = percentile_interval(values[:, i], len(sums))
            row = {"method": method, "metric": what, "mean": means[i], "low": low, "high": high}
            row["n"] = tallies[0].sizes.get(what, len(tallies[0].counts))
            if i:
                difference = values[:, i] - values[:, 0]
                row["difference"] = means[i] - means[0]
                row["difference_low"], row["difference_high"] = percentile_interval(difference, len(sums))
                row["detectable"] = smallest_effect(difference.std()) if difference.any() else np.nan
            rows.append(row | tests[i].get(what, {}))
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    table["p_holm"] = table.groupby("metric")["p"].transform(holm)
    return table


def _tests(plain: Tally, changed: Tally, a: np.ndarray, b: np.ndarray, draws: int, seed: int) -> dict[str, dict]:
    """{metric: {"p", "p_mcnemar"}} of two systems, from their items and from their sums by image, a and b."""
    exact = {what: mcnemar_p(plain.counts[:, c], changed.counts[:, c]) for what, c in plain.shares.items()}
    flipped = sign_flip_p(b, a, plain.metrics, draws=draws, seed=seed)
    # with an image for each item McNemar's is the same test, without drawing
    best = flipped | exact if len(a) == len(plain.counts) else flipped
    return {what: {"p": p, "p_mcnemar": exact.get(what, np.nan)} for what, p in best.items()}


def mcnemar_p(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided McNemar test of two systems, right (1) or wrong (0) on the same items, (n,) each.

    Of the items on which they differ, half should go either way: 2 P(X <= min), X ~ Binomial(those, 1/2), at most 1.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(min(1.0, 2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def sign_flip_p(
    a: np.ndarray,
    b: np.ndarray,
    metrics: Callable[[np.ndarray], dict[str, np.ndarray]],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, float]:
    """Two-sided permutation p of each metric's difference: were the systems alike, any image's results could change hands.

    a, b: (images, c) sums of the two systems. For a mean this flips the sign of each image's difference. p is
    (1 + draws at least as far from 0) / (1 + draws), so it is never 0 and 1 for identical systems.
    """
    rng = np.random.default_rng(seed)
    observed = _gap(metrics, a.sum(0), b.sum(0))
    differ = (a != b).any(1)
    gaps = (a - b)[differ]  # swapping the others changes nothing
    beyond = dict.fromkeys(observed, 0)
    for many in chunks(draws, max(1, len(gaps))):
        swapped = (rng.random((many, len(gaps)), dtype=np.float32) < 0.5).astype(float) @ gaps
        for what, drawn in _gap(metrics, a.sum(0) - swapped, b.sum(0) + swapped).items():
            beyond[what] += int((np.abs(drawn) >= np.abs(observed[what]) - _ROUNDING).sum())
    return {what: (1 + count) / (1 + draws) for what, count in beyond.items()}


def _gap(metrics, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    return {what: first - second for (what, first), second in zip(metrics(a).items(), metrics(b).values(), strict=True)}


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction of several p-values, in their order; NaN (no test) stays and does not count."""
    p = np.asarray(p, float)
    order = np.argsort(p)  # NaN last
    many = int(np.isfinite(p).sum())
    adjusted = np.full(len(p), np.nan)
    raised = np.maximum.accumulate((many - np.arange(many)) * p[order[:many]])
    adjusted[order[:many]] = np.minimum(1, raised)
    return adjusted


def smallest_effect(error: float, *, power: float = POWER) -> float:
    """The difference a two-sided test at 5 % finds with this power, from its standard error: 2.80 errors at 80 %."""
    return float((norm.ppf((1 + LEVEL) / 2) + norm.ppf(power)) * error)

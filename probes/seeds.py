"""Several trainings of one thing against one model: means over items and over training seeds, with intervals that know of both.

Items tell how far a result would be another on other pictures, seeds how far it would be another had training begun elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from ..scenes.errors import UserError
from .bootstrap import DRAWS, Tally, drawn_sums, percentile_interval, ratio, sums_by_image
from .comparison import smallest_effect
from .intervals import LEVEL

COLUMNS = (
    "metric", "before", "before_low", "before_high", "after", "low", "high", "difference", "difference_low",
    "difference_high", "n", "seeds", "sd", "least", "most", "detectable",
)  # fmt: skip


def over_seeds(
    after: Sequence[Tally],
    before: Tally | None = None,
    images: Sequence | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a metric: the mean over trainings, and what it is more than before, on the same items.

    after: a tally for each training seed; before: that of the model before tuning (None: there is nothing to compare with);
    images: the image of each item. Columns: after with low, high; before with its own; difference (after minus before) with its
    own; n items, seeds; sd, least, most of the trainings; detectable: the smallest difference that this many would show.

    Intervals are the two-way percentile bootstrap: every draw draws images with replacement, the same for all models, and
    trainings, one fewer than there are, which gives the mean over trainings its unbiased variance (drawing all of them would
    make three trainings look a third too alike). One training: images alone. Raises UserError.
    """
    tallies = [*([] if before is None else [before]), *after]
    if not after or any(tally.counts.shape != tallies[0].counts.shape for tally in tallies):
        raise UserError(f"{[len(tally.counts) for tally in tallies]} answers: compare models on the same items")
    metrics, width, k = tallies[0].metrics, tallies[0].counts.shape[1], len(after)
    sums = sums_by_image(np.concatenate([tally.counts for tally in tallies], 1), images)
    rng, drawn = np.random.default_rng((seed, 1)), {}
    for part in drawn_sums(sums, draws=draws, seed=seed):
        weights = rng.multinomial(max(1, k - 1), [1 / k] * k, size=len(part)) / max(1, k - 1)
        for name, values in metrics(part.reshape(len(part), len(tallies), width)).items():
            pair = (values[:, -k:] * weights).sum(1), values[:, 0]
            drawn.setdefault(name, []).append(np.stack(pair, 1))
    rows = []
    for name, values in metrics(sums.reshape(len(sums), len(tallies), width).sum(0)).items():
        draw, each = np.concatenate(drawn[name]), values[-k:]
        row = {
            "metric": name,
            "after": each.mean(),
            "n": tallies[0].sizes.get(name, len(tallies[0].counts)),
            "seeds": k,
        }
        row["low"], row["high"] = percentile_interval(draw[:, 0], len(sums))
        row |= {"sd": each.std(ddof=1) if k > 1 else np.nan, "least": each.min(), "most": each.max()}
        if before is not None:
            change = draw[:, 0] - draw[:, 1]
            row |= {"before": values[0], "difference": (each - values[0]).mean()}
            row["before_low"], row["before_high"] = percentile_interval(draw[:, 1], len(sums))
            row["difference_low"], row["difference_high"] = percentile_interval(change, len(sums))
            row["detectable"] = smallest_effect(change.std()) if change.any() else np.nan
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def each_training(after: Mapping[str, Tally], before: Tally | None = None) -> pd.DataFrame:
    """The values behind `over_seeds`: one row a training (column model) and metric, with after, before and difference."""
    kept = None if before is None else before.metrics(before.counts.sum(0))
    rows = []
    for name, tally in after.items():
        for metric, value in tally.metrics(tally.counts.sum(0)).items():
            row = {
                "model": name,
                "metric": metric,
                "after": float(value),
                "n": tally.sizes.get(metric, len(tally.counts)),
            }
            if kept is not None:
                row |= {"before": float(kept[metric]), "difference": float(value - kept[metric])}
            rows.append(row)
    return pd.DataFrame(rows)


def mean_tally(values: dict[str, np.ndarray]) -> Tally:
    """Means of numbers of each item: {metric: (N,)} as a tally."""
    counts = np.column_stack([np.ones(len(next(iter(values.values())))), *values.values()]).astype(float)
    names = list(values)
    return Tally(counts, lambda s: {name: ratio(s[..., i], s[..., 0]) for i, name in enumerate(names, 1)})


def crossed_mean(values: np.ndarray) -> dict[str, float]:
    """The mean of values (seeds, items) with an interval over both, for few items: blocks of samples, say.

    Two-way random effects: the variance of the mean is (MS_items + MS_seeds - MS_rest) / (seeds x items), at least the larger
    of its first two parts, with Satterthwaite's degrees of freedom for Student's t. One seed: Student's interval over items.
    Items without a value for some seed are left out, and counted out of n. Returns mean, low, high, n, seeds, sd (of the seeds'
    means).
    """
    values = np.atleast_2d(np.asarray(values, float))
    values = values[:, np.isfinite(values).all(0)]
    k, n = values.shape
    found = {"mean": np.nan, "low": np.nan, "high": np.nan, "n": n, "seeds": k, "sd": np.nan}
    if not n:
        return found
    rows, columns, mean = values.mean(1), values.mean(0), values.mean()
    found |= {"mean": mean, "sd": rows.std(ddof=1) if k > 1 else np.nan}
    if n == 1:
        return found
    items = k * columns.var(ddof=1)
    if k == 1:
        parts = [(items, n - 1)]
    else:
        seeds = n * rows.var(ddof=1)
        rest = ((values - rows[:, None] - columns + mean) ** 2).sum() / ((k - 1) * (n - 1))
        parts = [(items, n - 1), (seeds, k - 1), (-rest, (k - 1) * (n - 1))]
        if sum(part for part, _ in parts) < max(items, seeds):
            parts = [max(parts[:2])]
    total = sum(part for part, _ in parts)
    spread = sum(part**2 / df for part, df in parts)
    half = stdtrit(total**2 / spread, (1 + LEVEL) / 2) * np.sqrt(total / (k * n)) if spread else 0.0
    return found | {"low": mean - half, "high": mean + half}

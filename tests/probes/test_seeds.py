"""Means over trainings: intervals by hand, what items and what seeds add, and refusals."""

import numpy as np
import pytest
from chiasm.probes.comparison import comparison
from chiasm.probes.hallucination import pope_tally
from chiasm.probes.seeds import crossed_mean, mean_tally, over_seeds
from chiasm.scenes.errors import UserError
from scipy.stats import t


def numbers(*each):
    return [mean_tally({"x": np.array(values, float)}) for values in each]


def test_values_by_hand():
    before, *after = numbers([0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1])
    row = over_seeds(after, before).set_index("metric").loc["x"]
    assert row["before"] == 0.5 and row["after"] == pytest.approx(0.875) and row["difference"] == pytest.approx(0.375)
    assert (row["least"], row["most"], row["n"], row["seeds"]) == (0.75, 1, 4, 2)
    assert row["sd"] == pytest.approx(np.std([0.75, 1], ddof=1))


def test_one_training_is_the_paired_bootstrap_over_images():
    rng = np.random.default_rng(0)
    said = [rng.choice(["yes", "no"], 60).tolist() for _ in range(2)]
    labels, images = ["yes", "no"] * 30, np.arange(60) // 3
    ours = over_seeds([pope_tally(said[1], labels)], pope_tally(said[0], labels), images).set_index("metric")
    theirs = comparison(said[0], {"after": said[1]}, images, lambda s: pope_tally(s, labels)).set_index(
        ["method", "metric"]
    )
    for metric in ("accuracy", "f1", "yes_ratio"):
        row = theirs.loc["after", metric]
        names = ("difference", "difference_low", "difference_high", "detectable")
        assert ours.loc[metric, list(names)].tolist() == pytest.approx(row[list(names)].tolist())
    assert ours["sd"].isna().all()


def test_the_same_model_differs_by_exactly_nothing():
    same = numbers([0, 1, 2, 5])[0]
    row = over_seeds([same, same], same).iloc[0]
    assert (row["difference"], row["difference_low"], row["difference_high"], row["sd"]) == (0, 0, 0, 0)


def test_seeds_that_differ_widen_the_interval_of_items_that_do_not():
    before, *after = numbers(np.zeros(50), np.zeros(50), np.ones(50), 2 * np.ones(50))
    row = over_seeds(after, before).iloc[0]
    assert row["difference"] == 1 and row["difference_low"] == 0 and row["difference_high"] == 2


def test_the_variance_over_seeds_is_that_of_their_mean():
    """Drawing one fewer of K with replacement: var / K, not (K - 1) var / K squared."""
    values = np.array([0.0, 1.0, 5.0])
    rng = np.random.default_rng(0)
    drawn = (rng.multinomial(2, [1 / 3] * 3, size=200_000) / 2) @ values
    assert drawn.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.02)


def test_one_model_by_itself_has_no_difference():
    row = over_seeds(numbers([1, 2, 3])).iloc[0]
    assert row["after"] == 2 and np.isnan(row["difference"]) and np.isnan(row["before"])


def test_other_items_are_refused():
    with pytest.raises(UserError, match="same items"):
        over_seeds(numbers([1, 2, 3]), numbers([1, 2])[0])


def test_crossed_mean_of_one_seed_is_students():
    found = crossed_mean(np.array([1.0, 2.0, 3.0, np.nan]))
    half = t.ppf(0.975, 2) / np.sqrt(3)
    assert (found["mean"], found["n"], found["seeds"]) == (2, 3, 1)
    assert (found["low"], found["high"]) == pytest.approx((2 - half, 2 + half))


def test_crossed_mean_by_hand():
    # items' means 1, 3: MS = 2 * 2 = 4; seeds' means 1.5, 2.5: MS = 2 * 0.5 = 1; rest: all residuals 0.5: MS = 1
    found = crossed_mean(np.array([[1.0, 2.0], [1.0, 4.0]]))
    df = (4 + 1 - 1) ** 2 / (4**2 + 1 + 1)
    half = t.ppf(0.975, df) * np.sqrt(4 / 4)
    assert found["mean"] == 2 and (found["low"], found["high"]) == pytest.approx((2 - half, 2 + half))
    assert found["sd"] == pytest.approx(np.std([1.5, 2.5], ddof=1))


def test_crossed_mean_of_seeds_alone_has_the_degrees_of_freedom_of_seeds():
    found = crossed_mean(np.repeat([[0.0], [1.0], [2.0]], 8, 1))
    half = t.ppf(0.975, 2) / np.sqrt(3)
    assert (found["low"], found["high"]) == pytest.approx((1 - half, 1 + half))
    assert crossed_mean(np.zeros((3, 5)))["low"] == 0 and np.isnan(crossed_mean(np.array([[1.0]]))["low"])


def test_crossed_mean_covers_what_it_says():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        values = rng.normal(size=(4, 1)) + rng.normal(size=(1, 8)) + rng.normal(size=(4, 8))
        found = crossed_mean(values)
        hits += found["low"] <= 0 <= found["high"]
    assert 0.92 <= hits / 400 <= 0.99

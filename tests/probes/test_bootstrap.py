"""Intervals with the image as the unit: by hand, by how often they cover, by how long they take."""

import math
import time

import numpy as np
import pytest
from chiasm.probes.bootstrap import Tally, drawn_sums, estimates, harmonic_mean, nested, ratio, sums_by_image, units
from chiasm.scenes.errors import UserError
from scipy import stats


def share(values) -> Tally:
    values = np.asarray(values, float)
    return Tally(np.column_stack([np.ones(len(values)), values]), lambda s: {"mean": ratio(s[..., 1], s[..., 0])})


def test_ratios_without_a_denominator_are_0():
    np.testing.assert_array_equal(ratio([1, 2, 0], [2, 0, 0]), [0.5, 0, 0])
    np.testing.assert_array_equal(harmonic_mean(np.array([0, 0.5, 1]), np.array([0, 0.5, 0.5])), [0, 0.5, 2 / 3])


def test_sums_by_image_in_the_order_met_whatever_the_names():
    counts = np.array([[1.0, 0], [2, 1], [4, 1]])
    np.testing.assert_array_equal(sums_by_image(counts, ["b", "a", "b"]), [[5, 1], [2, 1]])
    np.testing.assert_array_equal(sums_by_image(counts, [1, "1", 2]), counts)
    np.testing.assert_array_equal(sums_by_image(counts), counts)


@pytest.mark.parametrize(
    ("images", "n", "told"), [(["a"], 2, "1 images for 2"), (["a", None], 2, "answer 1"), (None, 0, "no answers")]
)
def test_images_that_do_not_fit_are_refused(images, n, told):
    with pytest.raises(UserError, match=told):
        units(images, n)


def test_draws_are_of_as_many_images_as_there_are_and_seeded():
    sums = np.column_stack([np.ones(7), np.arange(7)])
    drawn = np.concatenate(list(drawn_sums(sums, draws=4000, seed=1)))
    assert drawn.shape == (4000, 2) and (drawn[:, 0] == 7).all()
    assert drawn[:, 1].mean() == pytest.approx(21, abs=0.4)
    assert drawn[:, 1].var() == pytest.approx(7 * np.arange(7).var(), rel=0.1)  # variance of a sum of 7 draws
    np.testing.assert_array_equal(drawn, np.concatenate(list(drawn_sums(sums, draws=4000, seed=1))))


def test_against_scipys_percentile_bootstrap_of_a_ratio():
    rng = np.random.default_rng(0)
    part, whole = rng.integers(0, 4, 200).astype(float), rng.integers(3, 9, 200).astype(float)
    found = estimates(Tally(np.column_stack([part, whole]), lambda s: {"r": ratio(s[..., 0], s[..., 1])}))["r"]
    theirs = stats.bootstrap(
        (part, whole), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found["mean"] == pytest.approx(part.sum() / whole.sum()) and found["n"] == 200
    assert (found["low"], found["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.004)


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_cover_a_known_mean_at_the_nominal_rate(clustered):
    rng, covered, runs = np.random.default_rng(0), 0, 1000
    for _ in range(runs):
        chance = rng.beta(1.4, 0.6, 150)  # mean 0.7; questions about one image share it
        answers = rng.random((150, 4 if clustered else 1)) < chance[:, None]
        images = np.repeat(np.arange(150), answers.shape[1])
        found = estimates(share(answers.ravel()), images, draws=500)["mean"]
        covered += found["low"] <= 0.7 <= found["high"]
    assert covered / runs == pytest.approx(0.95, abs=0.02)


def test_questions_about_one_image_are_not_independent():
    answers = np.repeat(np.random.default_rng(0).random(100) < 0.5, 6)
    by_image = estimates(share(answers), np.repeat(np.arange(100), 6))["mean"]
    alone = estimates(share(answers))["mean"]
    assert (by_image["high"] - by_image["low"]) / (alone["high"] - alone["low"]) == pytest.approx(
        math.sqrt(6), rel=0.15
    )


def test_one_image_has_no_interval():
    found = estimates(share([1, 0, 1]), ["a"] * 3)["mean"]
    assert found["mean"] == pytest.approx(2 / 3) and math.isnan(found["low"]) and math.isnan(found["high"])


def test_three_thousand_answers_take_less_than_a_second():
    values = np.random.default_rng(0).random(3000)
    began = time.process_time()
    estimates(share(values))
    assert time.process_time() - began < 1


def test_nested_names():
    assert nested({"a": 1, "b/c": 2, "b/d": 3}) == {"a": 1, "b": {"c": 2, "d": 3}}

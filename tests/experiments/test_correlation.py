"""Rank correlation over a few models: against scipy, and honest where there is little to go on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from chiasm.experiments.correlation import correlate, partial_spearman, spearman
from scipy.stats import spearmanr


def test_spearman_is_scipys_along_the_last_axis():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 9)).round(1), rng.normal(size=(3, 9)).round(1)
    assert spearman(x, y) == pytest.approx([spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_a_constant_side_has_no_correlation():
    assert math.isnan(spearman(np.arange(5.0), np.ones(5)))
    assert math.isnan(correlate(np.arange(5.0), np.ones(5)).value)


def test_two_that_only_follow_the_step_have_no_partial_correlation():
    rng = np.random.default_rng(1)
    step = np.arange(400.0)
    x, y = step + rng.normal(0, 120, 400), step + rng.normal(0, 120, 400)
    assert spearman(x, y) > 0.4
    assert abs(partial_spearman(x, y, step)) < 0.15
    assert partial_spearman(x, x + 0.01 * y, step) > 0.9


def test_partial_is_undefined_where_a_side_is_the_step():
    step = np.arange(8.0)
    assert math.isnan(partial_spearman(step, np.sin(step), step))


def test_exact_permutation_p():
    found = correlate([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
    assert found.value == pytest.approx(1) and found.n == 5
    assert found.p == pytest.approx(2 / 120)


def test_interval_and_p_of_many():
    rng = np.random.default_rng(2)
    x = rng.normal(size=40)
    related, unrelated = correlate(x, x + rng.normal(size=40)), correlate(x, rng.normal(size=40))
    assert related.low > 0 and related.p < 0.01 and related.low < related.value < related.high
    assert unrelated.low < 0 < unrelated.high and unrelated.p > 0.05


def test_too_few_models_and_gaps():
    assert math.isnan(correlate([1, 2, 3], [1, 2, 3]).value)
    found = correlate([1, 2, 3, 4, 5, np.nan], [1, 3, 2, 4, 5, 6])
    assert found.n == 5
    assert math.isnan(correlate([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [np.nan] * 5).value)


def test_the_same_seed_gives_the_same_interval():
    x, y = np.arange(9.0), np.array([2, 1, 4, 3, 6, 5, 8, 9, 7.0])
    assert correlate(x, y, seed=3) == correlate(x, y, seed=3)

"""Intervals from sums, the choice of samples by hash: against scipy, by hand, and by how often they cover."""

import math

import numpy as np
import pytest
import torch
from chiasm.probes.intervals import BLOCKS, jackknife, mean_of_groups, mean_over_samples, powers, proportion
from chiasm.probes.keys import Kept, sample_keys
from chiasm.scenes.sample import Sample
from scipy import stats

from .fakes import inputs_of, spans_of


def test_mean_over_samples_is_students_interval():
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mean_over_samples(powers(x).sum(0))
    low, high = stats.t.interval(0.95, 8, loc=x.mean(0), scale=stats.sem(x, axis=0))
    np.testing.assert_allclose(found.low, low, atol=1e-12)
    np.testing.assert_allclose(found.high, high, atol=1e-12)
    np.testing.assert_allclose(found.sd, x.std(0), atol=1e-12)
    assert found.n.tolist() == [9, 9]


def test_values_that_are_not_finite_are_no_samples_and_one_sample_has_no_interval():
    found = mean_over_samples(powers(torch.tensor([[math.nan, 1.0, math.nan], [math.inf, 3.0, 5.0]])).sum(0))
    assert found.n.tolist() == [0, 2, 1]
    assert math.isnan(found.mean[0]) and found.mean[1:].tolist() == [2, 5]
    assert math.isnan(found.low[2]) and math.isnan(found.sd[2]) and np.isfinite(found.low[1])


def test_mean_of_groups_leaves_empty_ones_out():
    x = torch.tensor([[1.0, 2, 3], [5, 6, 7], [math.nan] * 3]).T
    found = mean_of_groups(mean_over_samples(powers(x).sum(0)))
    assert found.mean == 4 and found.n == 6
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)  # of either group
    assert found.high - found.mean == pytest.approx(math.sqrt(2) * half / 2)


def test_wilson_against_statsmodels_formula_and_within_0_and_1():
    found = proportion(torch.tensor([[1.0] * 8 + [0] * 2, [1.0] * 10]))
    low, high = stats.binomtest(8, 10).proportion_ci(method="wilson")
    assert (found.low[0], found.high[0]) == pytest.approx((low, high), abs=1e-6)
    assert found.high[1] <= 1 + 1e-12 and found.low[1] == pytest.approx(0.7225, abs=1e-4)


def _block_sums(x: torch.Tensor, generator: torch.Generator) -> tuple[dict, torch.Tensor]:
    block = torch.randint(0, BLOCKS, (len(x),), generator=generator)
    sums = torch.zeros(BLOCKS, x.shape[1], dtype=torch.float64).index_add_(0, block, x.double())
    return {"sum": sums, "count": block.bincount(minlength=BLOCKS).double()}, block.bincount(minlength=BLOCKS)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    g = torch.Generator().manual_seed(0)
    widths = []
    for _ in range(30):
        x = torch.randn(3200, 1, generator=g)
        sums, n = _block_sums(x, g)
        found = jackknife(lambda s: s["sum"] / s["count"], sums, n)
        assert found.mean == pytest.approx(x.mean().item(), abs=1e-6) and found.n == 3200
        widths.append((found.high - found.mean).item())
    assert np.mean(widths) == pytest.approx(stats.t.ppf(0.975, BLOCKS - 1) / math.sqrt(3200), rel=0.06)


def test_the_jackknife_interval_covers_for_what_is_no_mean():
    """Of 300 draws of 150 samples, the interval of the product of two means holds the truth about as often as it says."""
    g, hits = torch.Generator().manual_seed(1), 0
    for _ in range(300):
        sums, n = _block_sums(torch.randn(150, 2, generator=g) + 1.0, g)
        found = jackknife(lambda s: (s["sum"] / s["count"]).prod(), sums, n)
        hits += bool(found.low <= 1 <= found.high)
    assert 0.91 < hits / 300 < 0.985


def test_the_jackknife_needs_two_blocks():
    sums, n = {"sum": torch.tensor([[2.0], [0.0]]), "count": torch.tensor([1.0, 0.0])}, torch.tensor([1, 0])
    found = jackknife(lambda s: s["sum"] / s["count"], sums, n)
    assert found.mean == 2 and np.isnan(found.low).all() and np.isnan(found.high).all()


def test_keys_depend_on_the_sample_alone():
    rows = ["bxxIIyy", "bxIIyyyy", "bxIIyy"]
    samples = tuple(Sample(f"s{i}", row) for i, row in enumerate(rows))
    mark = torch.tensor([0.5, 0.25, 0.125])
    keys = sample_keys(inputs_of(spans_of(rows), samples=samples), mark)
    back = sample_keys(inputs_of(spans_of(rows[::-1], side="left", width=20), samples=samples[::-1]), mark * 7)
    assert (
        keys.tolist() == back.flip(0).tolist()
        and len(set(keys.tolist())) == 3
        and (keys >= 0).all()
        and (keys < 2**48).all()
    )
    bare = sample_keys(inputs_of(spans_of(rows)), mark)
    padded = sample_keys(inputs_of(spans_of(rows, side="left", width=12)), mark * (1 + 1e-6))
    assert bare.tolist() == padded.tolist()
    assert bare[0] != sample_keys(inputs_of(spans_of(rows)), mark * 2)[0]  # same text, another picture


def test_kept_are_the_smallest_keys_in_any_order_and_over_processes():
    g = torch.Generator().manual_seed(0)
    keys = torch.randint(0, 2**48, (50,), generator=g)
    rows = torch.arange(50.0)[:, None].expand(-1, 3) + 0.25
    kept = Kept(8, 3)
    wanted = rows[keys.argsort()[:8]]
    for order in (torch.arange(50), torch.arange(49, -1, -1)):
        store = kept.empty()
        for at in order.split(7):
            store = kept.add(store, keys[at], rows[at])
        assert store.shape == (8 * 5,) and torch.equal(kept.rows(store), wanted)
    halves = [kept.add(kept.empty(), keys[i::2], rows[i::2]) for i in (0, 1)]
    joined = torch.cat(halves)  # what a reduction over processes gives
    assert torch.equal(kept.rows(joined), wanted)
    more = kept.add(joined, keys[:0], rows[:0])
    assert more.shape == (8 * 5,) and torch.equal(kept.rows(more), wanted)


def test_less_samples_than_room():
    kept = Kept(8, 1)
    store = kept.add(kept.empty(), torch.tensor([5, 3]), torch.tensor([[50.0], [30.0]]))
    assert kept.rows(store).tolist() == [[30.0], [50.0]] and len(kept.rows(kept.empty())) == 0

"""Scores, the choice of outliers and what is said of maps, by hand, by scipy and by simulation."""

import math

import numpy as np
import pytest
import torch
from chiasm.models import open_vlm
from chiasm.probes.logistic import auc, auc_interval, logistic_regression
from chiasm.probes.map_statistics import (
    descending,
    entropy_share,
    jaccard,
    jensen_shannon,
    outlier_mass,
    overlap,
    overlap_chance,
    ranks,
    spearman,
    top_shares,
)
from chiasm.probes.outliers import choose_k, outlier_scores, outlier_set, select_outliers
from chiasm.scenes.errors import UserError
from scipy.spatial.distance import jensenshannon
from scipy.stats import hypergeom, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ..models.families import build


def parts(n=12, heads=4, size=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(heads * size, generator=g), torch.randn(n + 1, heads * size, generator=g)


# -- scores ------------------------------------------------------------------------------------------------------------


def test_headmean_by_hand():
    query, keys = parts()
    expected = torch.zeros(12)
    for h in range(4):
        at = slice(6 * h, 6 * h + 6)
        expected += torch.softmax(keys[:, at] @ query[at] / math.sqrt(6), 0)[1:] / 4
    found = outlier_scores(query, keys, heads=4)
    torch.testing.assert_close(found, expected)
    assert found.sum() < 1 and found.dtype == torch.float32


def test_released_is_one_softmax_over_the_undivided_width_and_a_power_of_the_heads_products():
    query, keys = parts()
    found = outlier_scores(query, keys, heads=4, mode="released")
    torch.testing.assert_close(found, torch.softmax(keys @ query / math.sqrt(24), 0)[1:])
    z = torch.stack([keys[:, 6 * h : 6 * h + 6] @ query[6 * h : 6 * h + 6] / math.sqrt(6) for h in range(4)])
    torch.testing.assert_close(found, torch.softmax(math.sqrt(6 / 24) * z.sum(0), 0)[1:])
    assert found.sum() < 1 and not torch.equal(found.argsort(), outlier_scores(query, keys, heads=4).argsort())


def test_scores_are_what_a_trace_gives_for_the_projections_of_a_real_layer():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    attention, kept = vlm.anatomy.vision_blocks[1].self_attn, {}
    hooks = [
        getattr(attention, name).register_forward_hook(lambda _m, _a, out, name=name: kept.__setitem__(name, out[0]))
        for name in ("q_proj", "k_proj")
    ]
    trace = vlm.trace(vlm.from_tensors(**tensors), ["vision.blocks.1.cls_attention"])
    [hook.remove() for hook in hooks]
    found = outlier_scores(kept["q_proj"][0], kept["k_proj"], heads=4)
    torch.testing.assert_close(found, trace["vision.blocks.1.cls_attention"][0].mean(0), atol=1e-6, rtol=0)


def test_permuting_patches_permutes_scores_and_choice_and_cls_is_never_chosen():
    query, keys = parts()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = torch.cat([keys[:1], keys[1:][order]])
    for mode in ("headmean", "released"):
        plain, moved = (outlier_scores(query, k, heads=4, mode=mode) for k in (keys, shuffled))
        torch.testing.assert_close(moved, plain[order])
        assert torch.equal(order[select_outliers(moved, k=3)], select_outliers(plain, k=3))
    keys[0] = 10 * query  # CLS attends to itself above all: no patch is called the first for it
    assert torch.equal(select_outliers(outlier_scores(query, keys, heads=4), k=12).sort().values, torch.arange(12))


def test_a_planted_key_is_found_at_its_own_index():
    query, keys = parts()
    keys[1 + 7] = 3 * query
    for mode in ("headmean", "released"):
        assert select_outliers(outlier_scores(query, keys, heads=4, mode=mode), k=1).tolist() == [7]


def test_scores_of_half_precision_are_made_in_single():
    query, keys = parts()
    half = outlier_scores(query.bfloat16(), keys.bfloat16(), heads=4)
    torch.testing.assert_close(half, outlier_scores(query.bfloat16().float(), keys.bfloat16().float(), heads=4))


@pytest.mark.parametrize(
    "change", [dict(heads=5), dict(mode="mean"), dict(keys=torch.zeros(3, 5)), dict(query=torch.zeros(2, 2))]
)
def test_wrong_shapes_and_modes_are_refused(change):
    query, keys = parts()
    with pytest.raises(ValueError, match=r"are needed|is not known"):
        outlier_scores(change.pop("query", query), change.pop("keys", keys), **{"heads": 4} | change)


# -- the choice --------------------------------------------------------------------------------------------------------


def test_ties_go_to_the_lower_index_and_the_best_comes_first():
    assert select_outliers(torch.tensor([1.0, 3, 2, 3, 2]), k=4).tolist() == [1, 3, 2, 4]
    with pytest.raises(UserError, match=r"k 6 is outside 1\.\.5"):
        select_outliers(torch.ones(5), k=6)
    with pytest.raises(UserError, match="1 of 5 patch scores are not finite"):
        select_outliers(torch.tensor([1.0, torch.nan, 1, 1, 1]), k=1)


def test_rules_for_the_number_of_outliers():
    assert choose_k(torch.rand(576)) == 10 and choose_k(torch.rand(256)) == 4  # N / 60
    assert choose_k(torch.rand(576), rule="fixed", value=7) == 7 and choose_k(torch.rand(3), rule="fixed", value=7) == 3
    scores = torch.tensor([1.0, 1, 2, 2, 3, 3, 50, 60])
    assert choose_k(scores, rule="threshold") == 2  # median 2, MAD 1: above 8
    assert choose_k(torch.ones(8), rule="threshold") == 1
    assert choose_k(scores, rule="mass", value=0.49) == 1 and choose_k(scores, rule="mass", value=0.5) == 2
    assert choose_k(scores, rule="mass", value=1.0) == 8
    # tokens merged from 4 patches: max(1, round(10 / 4 * 2)) of 144 tokens
    assert choose_k(torch.rand(144), patches=4) == 5 == choose_k(torch.rand(144), rule="fixed", value=10, patches=4)
    assert choose_k(torch.rand(16), rule="fixed", value=1, patches=16) == 1


@pytest.mark.parametrize(
    ("rule", "value", "told"),
    [("best", None, "is not known: use one of fixed"), ("mass", 1.5, "a share"), ("fixed", 2.5, "whole number"),
     ("ratio", 0, "above 0"), ("threshold", -1, "above 0")],
)  # fmt: skip
def test_rules_that_make_no_sense_are_refused(rule, value, told):
    with pytest.raises(UserError, match=told):
        choose_k(torch.rand(8), rule=rule, value=value)


def test_every_tile_has_its_own_outliers():
    scores = torch.tensor([9.0, 8, 7, 1, 2, 3])
    tiles = torch.tensor([0, 0, 0, 1, 1, 1])
    assert outlier_set(scores, tiles, rule="fixed", value=1).tolist() == [True, False, False, False, False, True]


# -- maps --------------------------------------------------------------------------------------------------------------


def test_overlap_of_independent_maps_is_k_over_n_within_its_error_and_of_identical_maps_one():
    n, k, maps = 64, 4, 4000
    g = torch.Generator().manual_seed(0)
    chosen = torch.zeros(maps, n, dtype=torch.bool)
    chosen.scatter_(1, torch.rand(maps, n, generator=g).argsort(1)[:, :k], True)
    found = overlap(torch.rand(maps, n, generator=g), chosen).double()
    mean, deviation = overlap_chance(n, k)
    assert mean == k / n
    assert float(deviation) == pytest.approx(hypergeom(n, k, k).std() / k)
    assert abs(found.mean() - mean) < 3 * deviation / math.sqrt(maps)
    assert float(found.std()) == pytest.approx(float(deviation), rel=0.1)
    scores = torch.rand(n, generator=g)
    same = torch.zeros(n, dtype=torch.bool)
    same[select_outliers(scores, k=k)] = True
    assert overlap(scores, same) == 1 and spearman(scores, scores) == 1 and jensen_shannon(scores, scores) == 0


def test_overlap_with_ties_is_one_for_identical_maps():
    scores = torch.ones(10)
    same = torch.zeros(10, dtype=torch.bool)
    same[select_outliers(scores, k=3)] = True
    assert overlap(scores, same) == 1


def test_chance_of_many_numbers_at_once_and_where_everything_is_chosen():
    mean, deviation = overlap_chance(10, torch.tensor([2, 10]))
    assert mean.tolist() == [0.2, 1.0] and deviation[1] == 0


def test_mass_ranks_and_concentration_against_scipy():
    g = torch.Generator().manual_seed(0)
    maps, scores = torch.rand(3, 20, generator=g), torch.rand(20, generator=g)
    chosen = scores > 0.8
    for i in range(3):
        p = maps[i] / maps[i].sum()
        assert float(spearman(maps, scores)[i]) == pytest.approx(spearmanr(maps[i], scores).statistic, abs=1e-6)
        assert float(jensen_shannon(maps, scores)[i]) == pytest.approx(jensenshannon(maps[i], scores, base=2), abs=1e-6)
        assert float(outlier_mass(maps, chosen)[i]) == pytest.approx(float(p[chosen].sum()))
        assert float(entropy_share(maps)[i]) == pytest.approx(float(-(p * p.log()).sum() / math.log(20)), abs=1e-6)
        for k, share in zip((1, 3, 10, 99), top_shares(maps, (1, 3, 10, 99)), strict=True):
            assert float(share[i]) == pytest.approx(float(p.sort(descending=True).values[:k].sum()), abs=1e-6)
    even, one = torch.ones(8), torch.eye(8)[2]
    assert float(entropy_share(even)) == pytest.approx(1) and entropy_share(one) == 0
    assert float(jensen_shannon(one, torch.eye(8)[3])) == pytest.approx(1)
    assert jaccard(torch.tensor([True, True, False]), torch.tensor([False, True, True])) == pytest.approx(1 / 3)
    assert torch.equal(ranks(torch.tensor([1.0, 3, 2, 3])), torch.tensor([3, 0, 2, 1]))


# -- regression --------------------------------------------------------------------------------------------------------


def clustered(n_clusters=300, size=6, effect=0.0, seed=0):
    """Events whose outcome and covariate share a cluster's own part."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(n_clusters), size)
    own = rng.normal(size=n_clusters)[clusters], rng.normal(size=n_clusters)[clusters]
    x = own[0] + 0.3 * rng.normal(size=len(clusters))
    y = rng.random(len(x)) < 1 / (1 + np.exp(-(effect * x + 1.5 * own[1])))
    return x, y.astype(float), clusters


def test_the_order_of_single_precision_is_that_of_a_stable_sort_with_ties_signs_and_both_zeros():
    values = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    values[0, 0, :6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-45, -1e-45])
    for maps in (values, values.double(), values[..., :1]):
        assert torch.equal(descending(maps), maps.argsort(dim=-1, descending=True, stable=True))


def test_coefficients_are_those_of_scikit_learn_without_penalty():
    x, y, clusters = clustered(effect=0.8)
    both = np.column_stack([x, np.sin(np.arange(len(x)))])
    ours = [c.mean for c in logistic_regression(both, y, clusters)]
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(both, y).coef_[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_clusters_are_allowed_for():
    """With no effect the 95 % interval holds 0 about that often; events taken as independent, far less."""
    inside, naive = 0, 0
    for seed in range(120):
        x, y, clusters = clustered(60, seed=seed)
        one = logistic_regression(x[:, None], y, clusters)[0]
        inside += one.low <= 0 <= one.high
        alone = logistic_regression(x[:, None], y, np.arange(len(y)))[0]
        naive += alone.low <= 0 <= alone.high
    assert inside / 120 > 0.87 and naive < inside - 12


def test_what_separates_two_kinds_is_finite_and_one_kind_is_refused():
    x = np.arange(20.0)[:, None]
    one = logistic_regression(x, (x[:, 0] > 9).astype(float), np.arange(20), ridge=0.1)[0]
    assert np.isfinite([one.mean, one.low, one.high]).all() and one.mean > 0
    with pytest.raises(UserError, match="both outcomes and two clusters, got 20 events"):
        logistic_regression(x, np.ones(20), np.arange(20))


def test_auc_is_scikit_learns_and_its_interval_holds_it():
    x, y, clusters = clustered(effect=1.0)
    x = x.round(1)  # with ties
    value, low, high = auc_interval(x, y > 0, clusters, draws=200)
    assert value == pytest.approx(roc_auc_score(y, x)) and low < value < high
    assert math.isnan(auc(x, np.zeros(len(x), bool))) and auc(np.ones(4), np.array([1, 0, 1, 0])) == 0.5

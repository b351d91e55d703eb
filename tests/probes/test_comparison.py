"""Paired differences: tests by hand and against scipy, corrections, and the table experiments print."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from chiasm.probes.bootstrap import ratio
from chiasm.probes.comparison import COLUMNS, comparison, holm, mcnemar_p, sign_flip_p, smallest_effect
from chiasm.probes.hallucination import chair_tally, pope_tally
from chiasm.scenes.errors import UserError
from scipy import stats


def mean(s):
    return {"mean": ratio(s[..., 1], s[..., 0])}


def ones(values):
    return np.column_stack([np.ones(len(values)), values]).astype(float)


def test_mcnemar_by_hand_and_against_the_binomial_test():
    assert mcnemar_p([1, 0, 1], [1, 0, 1]) == 1  # nothing differs
    assert mcnemar_p([1, 1, 0, 0, 1], [0, 0, 1, 1, 1]) == 1  # as many either way
    assert mcnemar_p([1, 1, 1, 1], [0, 0, 0, 0]) == pytest.approx(2 / 16)
    assert mcnemar_p([1, 1, 1, 1, 0], [0, 0, 0, 0, 1]) == pytest.approx(2 * (1 + 5) / 32)
    for b, c in itertools.product(range(1, 9), range(9)):
        a, other = [1] * b + [0] * c, [0] * b + [1] * c
        assert mcnemar_p(a, other) == pytest.approx(stats.binomtest(b, b + c).pvalue), (b, c)


def test_sign_flips_against_all_of_them():
    gaps = np.array([3.0, -1, 2, 2, 0, 1])
    flips = [abs(np.dot(signs, gaps)) for signs in itertools.product((1, -1), repeat=6)]
    exact = np.mean([flip >= 7 for flip in flips])
    found = sign_flip_p(ones(gaps), ones(np.zeros(6)), mean, draws=20_000)["mean"]
    assert found == pytest.approx(exact, abs=0.01)


def test_identical_systems_have_p_1():
    a = ones(np.arange(5))
    assert sign_flip_p(a, a, mean, draws=100) == {"mean": 1.0}


def test_the_sign_flip_test_is_right_at_its_level_when_items_cluster_and_mcnemar_is_not():
    rng, flipped, exact, runs = np.random.default_rng(0), 0, 0, 300
    for _ in range(runs):
        a, b = (
            np.repeat(rng.random(40) < 0.5, 6) for _ in range(2)
        )  # all six answers about an image stand or fall together
        sums = [ones(x).reshape(40, 6, 2).sum(1) for x in (a, b)]
        flipped += sign_flip_p(*sums, mean, draws=300)["mean"] < 0.05
        exact += mcnemar_p(a, b) < 0.05
    assert flipped / runs < 0.09 and exact / runs > 0.2


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1, 1])
    np.testing.assert_allclose(holm([math.nan, 0.02, 0.01]), [math.nan, 0.02, 0.02])
    assert holm([]).shape == (0,) and np.isnan(holm([math.nan])).all()


def test_the_smallest_effect_of_pope():
    error = math.sqrt(0.85 * 0.15 / 3000)
    assert error == pytest.approx(0.0065, abs=5e-5)
    assert smallest_effect(error) == pytest.approx(2.8016 * error, rel=1e-4)
    assert 1 - stats.norm.cdf(1.959964 - smallest_effect(1)) == pytest.approx(0.8, abs=1e-5)


LABELS = ["yes", "no"] * 60
IMAGES = [i // 6 for i in range(120)]


def pope(answers):
    return pope_tally(answers, LABELS)


def test_identical_systems_differ_by_nothing():
    answers = ["yes", "no", "no", "maybe"] * 30
    table = comparison(answers, {"same": list(answers)}, IMAGES, pope).set_index(["method", "metric"])
    same = table.loc["same"]
    assert (same[["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    assert (same["p"] == 1).all() and (same["p_holm"] == 1).all() and same["detectable"].isna().all()
    assert same.loc["accuracy", "p_mcnemar"] == 1 and math.isnan(same.loc["f1", "p_mcnemar"])
    assert (same[["mean", "low", "high"]] == table.loc["plain", ["mean", "low", "high"]]).all(axis=None)


def test_the_table_by_hand():
    plain, better = ["yes"] * 120, ["yes", "yes", "yes", "no"] * 30
    table = comparison(plain, {"better": better, "worse": ["no"] * 120}, IMAGES, pope)
    assert tuple(table.columns) == COLUMNS and isinstance(table, pd.DataFrame)
    assert list(table["method"].unique()) == ["plain", "better", "worse"] and (table["n"] == 120).all()
    rows = table.set_index(["method", "metric"])
    assert rows.loc[("plain", "accuracy"), "mean"] == 0.5 and rows.loc[("better", "accuracy"), "mean"] == 0.75
    accuracy = rows.loc[("better", "accuracy")]
    assert accuracy["difference"] == 0.25 and accuracy["difference_low"] < 0.25 < accuracy["difference_high"]
    assert accuracy["p_mcnemar"] == pytest.approx(2 / 2**30) and accuracy["p"] == pytest.approx(1 / 10_001)
    assert accuracy["p_holm"] == pytest.approx(2 * accuracy["p"])
    assert rows.loc[("worse", "accuracy"), "p"] == 1  # the other half is right
    assert rows.loc[("better", "f1"), "difference"] == pytest.approx(120 / 150 - 120 / 180)
    assert rows.loc["plain"][["difference", "p", "p_holm", "detectable"]].isna().all(axis=None)


def test_with_an_image_for_each_item_the_test_of_a_share_is_mcnemars():
    plain, other = ["yes"] * 120, ["yes", "yes", "yes", "no"] * 30
    rows = comparison(plain, {"other": other}, None, pope).set_index(["method", "metric"]).loc["other"]
    assert rows.loc["accuracy", "p"] == rows.loc["accuracy", "p_mcnemar"] == pytest.approx(2 / 2**30)
    assert 0 < rows.loc["f1", "p"] < 1e-3


def test_the_difference_is_paired():
    rng = np.random.default_rng(0)
    wrong = rng.random(120) < 0.4
    plain = [("no" if label == "yes" else "yes") if w else label for label, w in zip(LABELS, wrong, strict=True)]
    changed = [LABELS[0], *plain[1:]]
    rows = comparison(plain, {"one answer": changed}, IMAGES, pope).set_index(["method", "metric"])
    found = rows.loc[("one answer", "accuracy")]
    assert found["difference_high"] - found["difference_low"] <= 0.03 < found["high"] - found["low"]


def test_the_detectable_difference_is_detected_as_often_as_it_says():
    rng, found, told = np.random.default_rng(1), 0, []
    for _ in range(120):
        plain = rng.random(400) < 0.5
        changed = np.where(rng.random(400) < 0.2, rng.random(400) < 0.5 + 0.22, plain)
        answers = [[LABELS[0] if right else "no" for right in one] for one in (plain, changed)]
        row = comparison(answers[0], {"x": answers[1]}, None, lambda a: pope_tally(a, ["yes"] * 400), draws=400).query(
            "method == 'x' and metric == 'accuracy'"
        )
        told.append(row["detectable"].iloc[0])
        found += row["p"].iloc[0] < 0.05
    assert np.mean(told) == pytest.approx(0.2 * 0.22, rel=0.15)  # what was planted is about what n can show
    assert 0.68 < found / 120 < 0.9  # exact McNemar is a little timid


def test_captions_compare_too():
    truth = [["dog"], ["cat"], ["dog"], ["car"]] * 5
    plain = ["a dog and a cat", "a cat", "two dogs", "a bus"] * 5
    rows = comparison(plain, {"silent": [""] * 20}, None, lambda c: chair_tally(c, truth)).set_index(
        ["method", "metric"]
    )
    assert rows.loc[("plain", "chair_s"), "mean"] == 0.5 and rows.loc[("plain", "chair_i"), "mean"] == pytest.approx(
        0.4
    )
    assert rows.loc[("silent", "chair_i"), "mean"] == 0 and rows.loc[("silent", "recall"), "difference"] == -0.75


@pytest.mark.parametrize(
    ("changed", "told"),
    [({}, "changed names"), ({"plain": ["yes"] * 120}, "own name"), ({"short": ["yes"] * 3}, "3 answers, 120 labels")],
)
def test_what_is_refused(changed, told):
    with pytest.raises(UserError, match=told):
        comparison(["yes"] * 120, changed, IMAGES, pope)


def test_systems_counted_on_different_items_are_refused():
    with pytest.raises(UserError, match="'x' has 2 answers, 'plain' has 3"):
        comparison([1, 2, 3], {"x": [1, 2]}, None, lambda a: pope_tally(["yes"] * len(a), ["yes"] * len(a)))

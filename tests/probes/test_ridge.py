"""Streaming ridge against scikit-learn, refits and explicit predictions; nested cross-validation; description length."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from chiasm.probes.cross_validation import ALPHAS, cross_validate
from chiasm.probes.description_length import saved_bits
from chiasm.probes.embeddings import StreamingRidge
from chiasm.probes.ridge import Moments, moments, ridge_at, ridge_path, squared_error
from chiasm.scenes.errors import UserError
from sklearn.linear_model import Ridge

EXACT = dict(rtol=0, atol=1e-8)


def data(n=120, d=9, m=3, seed=0, noise=0.3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.linspace(0.3, 4, d) + 5
    a = torch.randn(d, m, generator=g, dtype=torch.float64)
    return x, x @ a + 2 + noise * torch.randn(n, m, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("n", [120, 7])  # 7 rows of 9 features: the dual form
@pytest.mark.parametrize("alpha", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("batches", [(120,), (1, 2, 50, 67), (40, 40, 40)])
def test_streaming_is_sklearn(n, alpha, batches):
    x, y = data(n)
    ridge = StreamingRidge(9, 3)
    for a, b in zip(x.split(batches[0]), y.split(batches[0]), strict=True):
        ridge.update(a, b)
    coef, intercept = ridge.solve(alpha)
    known = Ridge(alpha=alpha).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(coef.numpy(), known.coef_.T, **EXACT)
    np.testing.assert_allclose(intercept.numpy(), known.intercept_, **EXACT)


def test_order_and_size_of_batches_change_nothing_and_float32_is_widened():
    x, y = data()
    x, y = x.float(), y.float()
    one, other = StreamingRidge(9, 3), StreamingRidge(9, 3)
    one.update(x, y)
    for part in torch.randperm(120, generator=torch.Generator().manual_seed(1)).split(11):
        other.update(x[part], y[part])
    known = Ridge(alpha=0.5).fit(x.double().numpy(), y.double().numpy())
    for coef, intercept in (one.solve(0.5), other.solve(0.5)):
        np.testing.assert_allclose(coef.numpy(), known.coef_.T, **EXACT)
        np.testing.assert_allclose(intercept.numpy(), known.intercept_, **EXACT)


def test_a_constant_column_is_as_sklearn_has_it():
    x, y = data()
    x[:, 2] = 3.0
    ridge = StreamingRidge(9, 3)
    ridge.update(x, y)
    np.testing.assert_allclose(ridge.solve(1.0)[0].numpy(), Ridge(alpha=1.0).fit(x, y).coef_.T, **EXACT)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf")])
def test_penalties_that_are_not_positive_are_refused(alpha):
    x, y = data()
    ridge = StreamingRidge(9, 3)
    ridge.update(x, y)
    with pytest.raises(UserError, match="must be positive"):
        ridge.solve(alpha)


def test_bad_rows_are_one_line():
    ridge = StreamingRidge(2, 1)
    with pytest.raises(UserError, match="features hold NaN"):
        ridge.update(torch.full((3, 2), torch.nan), torch.ones(3, 1))
    with pytest.raises(UserError, match=r"give x \(n, 2\)"):
        ridge.update(torch.ones(3, 5), torch.ones(3, 1))
    with pytest.raises(UserError, match="no rows"):
        ridge.solve(1.0)
    for rows in (2, 6):
        ridge = StreamingRidge(2, 1)
        ridge.update(torch.full((rows, 2), 7.0), torch.randn(rows, 1))
        with pytest.raises(UserError, match=f"all 2 features are constant over {rows} rows"):
            ridge.solve(1.0)


def folds_of(x, y, k=4):
    parts = [moments(a, b) for a, b in zip(x.chunk(k), y.chunk(k), strict=True)]
    return Moments(*(torch.stack(v) for v in zip(*parts, strict=True)))


def test_taking_a_fold_away_is_fitting_without_it():
    x, y = data()
    folds = folds_of(x, y)
    path = ridge_path(folds.sum().minus(folds.at(1)), ALPHAS)
    rest = torch.cat([x[:30], x[60:]]), torch.cat([y[:30], y[60:]])
    for i, alpha in enumerate(ALPHAS):
        known = Ridge(alpha=alpha).fit(*rest)
        np.testing.assert_allclose(path.coef[i].numpy(), known.coef_.T, **EXACT)
        np.testing.assert_allclose(path.intercept[i].numpy(), known.intercept_, rtol=0, atol=1e-7)


def test_error_from_sums_is_that_of_explicit_predictions():
    x, y = data()
    folds = folds_of(x, y)
    path = ridge_path(folds.sum().minus(folds.at(2)), [0.1, 10.0])
    for i in range(2):
        pred = x[60:90] @ path.coef[i] + path.intercept[i]
        torch.testing.assert_close(
            squared_error(folds.at(2), path.coef, path.intercept)[i], (pred - y[60:90]).square().sum(0)
        )


def test_weights_are_repeated_rows_and_layers_are_stacked():
    x, y = data(40)
    weight = torch.randint(1, 4, (40,), generator=torch.Generator().manual_seed(0))
    again = torch.repeat_interleave(torch.arange(40), weight)
    stacked = moments(torch.stack([x, x.flip(1)]), y, weight.double())
    for layer, rows in enumerate((x, x.flip(1))):
        one = moments(rows[again], y[again])
        for name in ("n", "y", "yy"):
            torch.testing.assert_close(getattr(stacked, name), getattr(one, name))
        for name in ("x", "xx", "xy"):
            torch.testing.assert_close(getattr(stacked, name)[layer], getattr(one, name))


def test_a_large_common_mean_costs_no_digits_in_float32():
    x, y = data(400, noise=0.0)
    x = x.float() + 3000  # a massive activation: squares of 1e7, and a variance of 1
    exact, quick = moments(x.double(), y).centred(), moments(x, y.float()).centred()
    torch.testing.assert_close(quick.xx, exact.xx, rtol=1e-4, atol=0.1)


def test_extremes_of_the_penalty():
    x, y = data(noise=0.0)
    folds = folds_of(x, y)
    mean = cross_validate(folds, [slice(0, 3)], [1e9])
    r2 = 1 - mean.error.sum(0) / folds.sum().centred().yy
    assert (r2 <= 0).all() and (r2 > -0.2).all()  # the mean of the other folds
    exact = cross_validate(folds, [slice(0, 3)], [1e-12])
    torch.testing.assert_close(1 - exact.error.sum(0) / folds.sum().centred().yy, torch.ones(3).double())


def test_rotation_changes_no_prediction_and_standardising_no_scale():
    x, y = data()
    q = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    plain, turned = (ridge_path(moments(v, y), [2.0]) for v in (x, x @ q))
    torch.testing.assert_close(x @ plain.coef[0] + plain.intercept[0], x @ q @ turned.coef[0] + turned.intercept[0])
    scale = torch.ones(9).double()
    scale[4] = 1e3
    plain, scaled = (ridge_path(moments(v, y), [2.0], standardise=True) for v in (x, x * scale))
    torch.testing.assert_close(
        x @ plain.coef[0] + plain.intercept[0], (x * scale) @ scaled.coef[0] + scaled.intercept[0]
    )


def test_nested_cross_validation_is_the_loop_written_out():
    x, y = data(100, noise=8.0)
    grid = (1e-3, 1e-1, 1e1)
    found = cross_validate(folds_of(x, y), [slice(0, 1), slice(1, 3)], grid, standardise=False)
    xs, ys = x.chunk(4), y.chunk(4)
    for f in range(4):
        for g, group in enumerate((slice(0, 1), slice(1, 3))):
            errors = []
            for alpha in grid:
                error = 0.0
                for v in set(range(4)) - {f}:
                    rest = [i for i in range(4) if i not in (f, v)]
                    error += _error(torch.cat([xs[i] for i in rest]), torch.cat([ys[i][:, group] for i in rest]), xs[v], ys[v][:, group], alpha)  # fmt: skip
                errors.append(error)
            best = grid[int(np.argmin(errors))]
            assert found.alpha[f, g] == best
            rest = [i for i in range(4) if i != f]
            known = _error(torch.cat([xs[i] for i in rest]), torch.cat([ys[i][:, group] for i in rest]), xs[f], ys[f][:, group], best)  # fmt: skip
            assert found.error[f, group].sum().item() == pytest.approx(known, rel=1e-9)


def _error(x, y, new_x, new_y, relative):
    alpha = relative * (x - x.mean(0)).square().sum().item() / x.shape[1]
    pred = Ridge(alpha=alpha).fit(x, y).predict(new_x).reshape(new_y.shape)
    return float(((new_y.numpy() - pred) ** 2).sum())


def blocks_of(x, y):
    ends = [len(x) * k // 32 for k in (1, 2, 4, 8, 16, 32)]
    parts = zip([0, *ends[:-1]], ends, strict=True)
    return [moments(x[a:b], y[a:b]) for a, b in parts]


def test_the_online_code_compresses_a_planted_signal_the_more_the_longer_and_nothing_else():
    saved = []
    for n in (320, 1280, 5120):
        x, y = data(n, noise=0.0)
        found = saved_bits(blocks_of(x, y), [slice(0, 3)])
        saved.append(float(found))
        nothing = saved_bits(
            blocks_of(x, y[torch.randperm(n, generator=torch.Generator().manual_seed(1))]), [slice(0, 3)]
        )
        assert nothing <= 1e-3
    assert 0 < saved[0] < saved[1] < saved[2]


def test_the_online_code_is_the_sum_of_its_blocks():
    x, y = data(320, m=1, noise=2.0)
    ends = [10, 20, 40, 80, 160, 320]
    mean, prior, saved, last = y.mean(), y.var(correction=0), 0.0, None
    for start, end in pairwise(ends):
        sx, sy = x[:start], y[:start]
        sd = sx.std(0, correction=0)
        errors = []
        for relative in ALPHAS:
            known = Ridge(alpha=relative * start).fit(sx / sd, sy)
            errors.append(((y[start:end, 0].numpy() - known.predict((x[start:end] / sd)).ravel()) ** 2).sum())
        if last is not None:
            best = int(np.argmin(last[0]))
            variance = (last[0][best] + prior.item()) / (last[1] + 1)
            plain = 0.5 * np.log2(prior.item()) * (end - start) + ((y[start:end] - mean) ** 2).sum().item() / (
                2 * np.log(2) * prior.item()
            )
            saved += plain - 0.5 * np.log2(variance) * (end - start) - errors[best] / (2 * np.log(2) * variance)
        last = (errors, end - start)
    assert float(saved_bits(blocks_of(x, y), [slice(0, 1)])) == pytest.approx(saved / 320, rel=1e-6)


@pytest.mark.parametrize("standardise", [False, True])
def test_solutions_with_a_penalty_for_each_group_are_those_of_the_path(standardise):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 40, 6, generator=g).double() * 5, torch.randn(40, 5, generator=g).double()
    x[1, :, 2] = 7.0  # does not vary
    x[2, :, 5] = x[2, :, 4]  # the smallest penalty is lost in its rounding
    sums, grid, groups = moments(x, y), [1e-18, 1e-2, 10.0], [slice(0, 2), slice(2, 5)]
    path = ridge_path(sums, grid, relative=True, standardise=standardise)
    chosen = torch.tensor([[0, 2], [1, 0], [0, 1]])
    coef, intercept = ridge_at(
        sums, torch.tensor(grid).double()[chosen], groups, relative=True, standardise=standardise
    )
    for layer in range(3):
        for index, group in zip(chosen[layer].tolist(), groups, strict=True):
            pred, expected = (
                x[layer] @ a[layer][:, group] + b[layer][group]
                for a, b in ((coef, intercept), (path.coef[index], path.intercept[index]))
            )
            torch.testing.assert_close(pred, expected, rtol=1e-8, atol=1e-8)

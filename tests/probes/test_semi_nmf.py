"""Semi-NMF: a descent to the optimum that scikit-learn finds, in the unit ball, without a minus in the codes."""

import numpy as np
import pytest
import torch
from chiasm.experiments.bench_concepts import planted_states
from chiasm.probes.semi_nmf import fit_semi_nmf, nonnegative_codes, objective, singular_start
from scipy.optimize import linear_sum_assignment, nnls
from sklearn.decomposition import DictionaryLearning
from sklearn.linear_model import Lasso


def states(n=60, width=12, seed=0, dtype=torch.float64):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def best_cosines(a, b):
    cosine = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
    return cosine[linear_sum_assignment(cosine.numpy(), maximize=True)]


@pytest.mark.parametrize("penalty", [0.05, 0.5])
def test_codes_are_the_non_negative_lasso_of_scikit_learn(penalty):
    Z, atoms = states(), torch.nn.functional.normalize(states(5, seed=1), dim=1)
    ours = nonnegative_codes(Z, atoms, penalty, tol=1e-12)
    # sklearn divides the squared error by the number of "samples", which are the features here
    lasso = Lasso(alpha=penalty / Z.shape[1], positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
    theirs = np.stack([lasso.fit(atoms.T.numpy(), row).coef_ for row in Z.numpy()])
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-8)


def test_codes_without_penalty_are_non_negative_least_squares():
    Z, atoms = states(), states(4, seed=2)
    expected = np.stack([nnls(atoms.T.numpy(), row)[0] for row in Z.numpy()])
    np.testing.assert_allclose(nonnegative_codes(Z, atoms, 0.0, tol=1e-13).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_never_rises_and_atoms_stay_in_the_unit_ball(seed):
    Z = states(80, 10, seed)
    found = fit_semi_nmf(Z, 6, 0.3, seed=seed, start=states(6, 10, seed + 9))
    steps = np.diff(found.objective)
    assert len(steps) > 10 and (steps <= 1e-9 * found.objective[0]).all()
    assert (found.atoms.norm(dim=1) <= 1 + 1e-12).all()
    codes = nonnegative_codes(Z, found.atoms, 0.3, tol=1e-10)
    assert (codes >= 0).all() and objective(Z, found.atoms, codes, 0.3) <= found.objective[-1] + 1e-9


def test_the_objective_told_is_the_objective():
    Z = states()
    found = fit_semi_nmf(Z, 4, 0.2, iterations=1)
    again = fit_semi_nmf(Z, 4, 0.2, iterations=2)
    codes = nonnegative_codes(Z, singular_start(Z, 4), 0.2, sweeps=4, tol=0.0)
    assert found.objective[0] == pytest.approx(objective(Z, found.atoms, codes, 0.2), rel=1e-10)
    assert again.objective[0] == found.objective[0] > again.objective[1]


def test_a_large_penalty_leaves_nothing_and_enough_concepts_without_one_leave_no_error():
    Z = states(8, 12)
    assert nonnegative_codes(Z, fit_semi_nmf(Z, 3, 1e4, iterations=20).atoms, 1e4).abs().max() == 0
    errors = []
    for k in (4, 8):  # the second: as many concepts as states
        found = fit_semi_nmf(Z, k, 1e-6, iterations=1000, tol=1e-12)
        codes = nonnegative_codes(Z, found.atoms, 1e-6, sweeps=5000, tol=1e-12)
        errors.append(((Z - codes @ found.atoms).norm() / Z.norm()).item())
    assert errors[1] < 1e-3 < errors[0]


@pytest.mark.parametrize("start", ["svd", "samples"])
def test_a_planted_mixture_is_found(start):
    k, width = 6, 40
    Z = planted_states(400, width, k, seed=3)
    atoms = torch.nn.functional.normalize(
        torch.randn(k, width, generator=torch.Generator().manual_seed(3)), dim=1
    )  # those that were planted
    found = fit_semi_nmf(Z, k, 0.05, start=None if start == "svd" else Z[:k])
    assert best_cosines(atoms, found.atoms).mean() > 0.95


def test_dead_atoms_are_revived_from_what_is_fitted_worst():
    Z = torch.cat([torch.eye(3, 8), 5 * torch.eye(8)[5:6].expand(4, 8)]).repeat(5, 1)
    start = torch.stack([torch.eye(8)[0], -torch.ones(8)])  # no state has a positive product with the second
    found = fit_semi_nmf(Z, 2, 0.01, start=start)
    assert found.atoms[:, 5].max() > 0.99


def test_fp32_reaches_what_fp64_reaches():
    Z = planted_states(300, 32, 5, seed=1)
    single, double = fit_semi_nmf(Z, 5, 0.1), fit_semi_nmf(Z.double(), 5, 0.1)
    assert single.objective[-1] == pytest.approx(double.objective[-1], rel=1e-4)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scikit_learn_does_not_reach_a_lower_objective():
    Z, penalty = planted_states(200, 24, 5, seed=2), 0.1
    learner = DictionaryLearning(
        5, alpha=penalty, max_iter=100, fit_algorithm="cd", transform_algorithm="lasso_cd", transform_alpha=penalty,
        positive_code=True, random_state=0,
    )  # fmt: skip
    codes = torch.from_numpy(learner.fit_transform(Z.numpy())).float()
    theirs = objective(Z, torch.from_numpy(learner.components_).float(), codes, penalty)
    ours = fit_semi_nmf(Z, 5, penalty)
    assert objective(Z, ours.atoms, nonnegative_codes(Z, ours.atoms, penalty), penalty) <= theirs * (1 + 1e-3)

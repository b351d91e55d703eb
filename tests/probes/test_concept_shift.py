"""Shift arithmetic against closed forms, and recovery: circular where the papers' is, honest on halves."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.probes.concept_recovery import KINDS, recovery, recovery_metrics, split_halves
from chiasm.probes.concept_shift import (
    concept_shift,
    match_concepts,
    match_memberships,
    shift_table,
    shifted_concepts,
)
from chiasm.probes.concepts import decompose
from chiasm.scenes.errors import UserError
from scipy.stats import trim_mean

K = 4


def clouds(n=80, width=12, seed=0):
    """(states, which of K clouds each is in), clouds far apart."""
    g = torch.Generator().manual_seed(seed)
    member = torch.arange(n) % K
    centres = 10 * torch.randn(K, width, generator=g, dtype=torch.float64)
    return centres[member] + torch.randn(n, width, generator=g, dtype=torch.float64), member


def noise(n, width, seed=1):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairwise_consistency(d):
    cosine = lambda x, y: float(x @ y / (x.norm() * y.norm())) if x.norm() and y.norm() else 0.0  # noqa: E731
    return np.mean([cosine(x, y) for x, y in itertools.combinations(d, 2)])


def test_shift_and_consistency_are_those_of_the_definition():
    a, member = clouds()
    b = a + 1 + noise(*a.shape)
    shift, consistency = concept_shift(a, b, member, K)
    for k in range(K):
        d = (b - a)[member == k]
        torch.testing.assert_close(shift[k], d.mean(0))
        assert consistency[k].item() == pytest.approx(pairwise_consistency(d), abs=1e-12)


def test_orthogonal_shifts_count_as_zero_and_are_not_dropped():
    d = torch.eye(3, 5)
    assert concept_shift(torch.zeros(3, 5), d, torch.zeros(3, dtype=torch.long), 1).consistency.item() == 0
    d = torch.tensor([[1.0, 0], [0, 1.0], [1.0, 0]])  # cosines 0, 1, 0
    assert concept_shift(0 * d, d, torch.zeros(3, dtype=torch.long), 1).consistency.item() == pytest.approx(1 / 3)


def test_no_tuning_is_no_shift_and_no_gain():
    a, member = clouds()
    shift, _ = concept_shift(a, a, member, K)
    assert shift.abs().max() == 0
    found = decompose(a, K, method="kmeans")
    table = recovery(a, a, found, split=False, matching="original", n_images=5, words=fake_words, n_words=4)
    own = table[table["kind"] == "shift"]
    assert own[["distance_gain", "cosine_gain", "cosine_share"]].abs().max().max() < 1e-9
    assert (own["words_before"] == own["words_after"]).all() and (own["images_before"] == own["images_after"]).all()
    assert (own["words_before"] == 100).all() and (own["images_before"] == 100).all()


def test_one_constant_shift_is_found_in_every_concept_and_recovered_exactly():
    a, member = clouds()
    c = noise(1, 12)[0]
    shift, consistency = concept_shift(a, a + c, member, K)
    torch.testing.assert_close(shift, c.expand(K, -1))
    torch.testing.assert_close(consistency, torch.ones(K, dtype=torch.float64))
    assert shift_table(a, a + c, member, K)["cosine"].to_numpy() == pytest.approx(1)
    found = decompose(a, K, method="kmeans")
    table = recovery(a, a + c, found, split=False, matching="original")
    own = table[table["kind"] == "shift"]
    assert own["distance_gain"].to_numpy() == pytest.approx(c.norm().item())
    assert own["distance_share"].to_numpy() == pytest.approx(1)
    # every concept moved alike, so one shift for all is as good, and so are the others'
    for kind in ("global", "permuted"):
        np.testing.assert_allclose(table[table["kind"] == kind]["distance_gain"], own["distance_gain"])


def test_independent_shifts_have_no_consistency_and_the_length_of_their_noise():
    n, width, sigma = 4000, 50, 2.0
    member = torch.arange(n) % 2
    a, d = noise(n, width), sigma * noise(n, width, 2)
    table = shift_table(a, a + d, member, 2)
    assert table["consistency"].abs().max() < 0.002
    expected = sigma * (width / (n / 2)) ** 0.5
    assert table["noise"].to_numpy() == pytest.approx(expected, rel=0.03)
    assert table["magnitude"].to_numpy() == pytest.approx(expected, rel=0.25)
    assert (table["above"] < 0.75 * expected).all() and (table["consistency"] < table["floor"] + 0.001).all()
    real = shift_table(a, a + d + 1.0, member, 2)  # length sqrt(50) on top of the noise
    assert real["above"].to_numpy() == pytest.approx(50**0.5, rel=0.02)
    assert (real["consistency"] > 10 * real["floor"]).all()


def test_the_interval_of_consistency_is_the_delete_one_jackknife():
    d = noise(9, 6) + 0.5
    row = shift_table(0 * d, d, torch.zeros(9, dtype=torch.long), 1).iloc[0]
    left_out = np.array([pairwise_consistency(torch.cat([d[:i], d[i + 1 :]])) for i in range(9)])
    se = np.sqrt(8 / 9 * ((left_out - left_out.mean()) ** 2).sum())
    assert (row["high"] - row["low"]) / 2 == pytest.approx(2.306004 * se, rel=1e-5)
    dots = [float(x @ y) for x, y in itertools.combinations(d, 2)]
    assert row["dot"] == pytest.approx(np.mean(dots)) and row["low"] < row["consistency"] < row["high"]


def test_shifts_are_linear_in_alpha():
    a, member = clouds()
    shift, _ = concept_shift(a, a + 1 + noise(*a.shape), member, K)
    atoms = noise(K, 12, 5)
    assert torch.equal(shifted_concepts(atoms, shift, 0.0), atoms)
    torch.testing.assert_close(
        shifted_concepts(atoms, shift, 3.0) - atoms, 3 * (shifted_concepts(atoms, shift) - atoms)
    )


def test_the_shifts_of_k_means_add_up_to_the_mean_shift():
    a, _ = clouds()
    b = a + noise(*a.shape)
    member = decompose(a, K, method="kmeans").assign()
    shift, _ = concept_shift(a, b, member, K)
    n = torch.bincount(member, minlength=K).double()
    torch.testing.assert_close(n @ shift, len(a) * (b - a).mean(0))


def test_empty_and_single_concepts_are_nan_and_disturb_no_other():
    a, member = clouds()
    b, alone = a + noise(*a.shape), member.clone()
    plain, consistency = concept_shift(a, b, member, K)
    alone[0] = K + 1  # concept K has none, K + 1 has one
    shift, found = concept_shift(a, b, alone, K + 2)
    assert shift[K].isnan().all() and found[K].isnan() and found[K + 1].isnan()
    torch.testing.assert_close(shift[K + 1], (b - a)[0])
    torch.testing.assert_close(shift[1:K], plain[1:])
    torch.testing.assert_close(found[1:K], consistency[1:])
    table = shift_table(a, b, alone, K + 2)
    assert table["n"].tolist()[-2:] == [0, 1] and table.loc[1 : K - 1].notna().all().all()
    assert table.loc[K, ["consistency", "low", "floor", "noise", "magnitude", "cosine"]].isna().all()
    # a concept that keeps no sample is NaN in recovery, and the others are what they were
    dictionary = decompose(a, K, method="kmeans")
    far = replace(
        dictionary, atoms=torch.cat([dictionary.atoms[: K - 1], torch.full((1, 12), 1e6, dtype=torch.float64)])
    )
    own = recovery(a, b, far, split=False, matching="original")
    own = own[own["kind"] == "shift"].set_index("concept")
    assert np.isnan(own.loc[K - 1, "cosine_gain"]) and own.loc[: K - 2, "cosine_gain"].notna().all()


@pytest.mark.parametrize("average", ["median", "trimmed"])
def test_robust_shifts_are_paired_unless_the_original_is_asked_for(average):
    a, member = clouds(84)
    b = a + 1 + noise(*a.shape) ** 3
    of = {"median": lambda x: np.median(x, 0), "trimmed": lambda x: trim_mean(x, 0.1)}[average]
    paired = concept_shift(a, b, member, K, average=average).shift
    apart = concept_shift(a, b, member, K, average=average, paired=False).shift
    for k in range(K):
        x, y = a[member == k].numpy(), b[member == k].numpy()
        np.testing.assert_allclose(paired[k], of(y - x), atol=1e-12)
        np.testing.assert_allclose(apart[k], of(y) - of(x), atol=1e-12)
    assert not torch.allclose(paired, apart)
    means = [concept_shift(a, b, member, K, paired=p).shift for p in (True, False)]
    torch.testing.assert_close(*means)


def test_concepts_are_matched_by_direction_one_to_one():
    atoms = noise(5, 12)
    order = torch.tensor([3, 0, 4, 1, 2])
    lengths = torch.arange(1.0, 6.0)[:, None]  # no matter how long they are
    permutation = match_concepts(atoms, (lengths * atoms)[order])
    assert torch.equal(order[permutation], torch.arange(5))
    cosine = torch.nn.functional.normalize(noise(4, 3), dim=1) @ torch.nn.functional.normalize(noise(4, 3, 9), dim=1).T
    best = max(itertools.permutations(range(4)), key=lambda p: sum(float(cosine[i, j]) for i, j in enumerate(p)))
    assert match_concepts(noise(4, 3), noise(4, 3, 9)).tolist() == list(best)
    assert match_memberships(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]), 2).tolist() == [1, 0]


@pytest.mark.parametrize("matching", ["membership", "original", "shifted"])
def test_the_order_of_the_tuned_concepts_changes_nothing(matching, monkeypatch):
    a, _ = clouds()
    b = a + 2 + noise(*a.shape)
    found = decompose(a, K, method="kmeans")
    plain = recovery(a, b, found, matching=matching, words=fake_words, n_words=3, n_images=6)

    def turned(*args, **kwargs):
        made = decompose(*args, **kwargs)
        return replace(made, atoms=made.atoms.flip(0), codes=made.codes.flip(1))

    monkeypatch.setattr("chiasm.probes.concept_recovery.decompose", turned)
    again = recovery(a, b, found, matching=matching, words=fake_words, n_words=3, n_images=6)
    columns = [c for c in plain if c != "partner"]
    pd.testing.assert_frame_equal(plain[columns], again[columns])
    assert plain["partner"].tolist() == (K - 1 - again["partner"]).tolist()


def test_recovery_metrics_by_hand():
    atoms, targets = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    found = recovery_metrics(atoms, torch.tensor([[0.0, 1.0]]), targets)
    assert found["distance_gain"].item() == pytest.approx(5**0.5 - 1)
    assert found["distance_share"].item() == pytest.approx(1 - 1 / 5**0.5)
    assert found["cosine_gain"].item() == 1 and found["cosine_share"].isnan().item()  # divided by 0 otherwise


def test_halves_keep_random_moves_from_looking_like_recovery():
    """The papers' way rewards a shift for the very samples it is judged on; on halves, noise gains nothing over one for all."""
    n, width = 120, 40
    a, _ = clouds(n, width)
    b = a + 3 * noise(n, width)
    found = decompose(a, K, method="kmeans")

    def advantage(**how):
        table = recovery(a, b, found, matching="original", **how).groupby("kind")["distance_gain"].mean()
        return table["shift"] - table["global"]

    assert advantage(split=False) > 1 and advantage(split=True) < 0.5 * advantage(split=False)


def test_own_shifts_beat_every_baseline_where_concepts_move_apart():
    a, member = clouds()
    b = a + 6 * torch.nn.functional.normalize(noise(K, 12, 3), dim=1)[member]
    table = recovery(a, b, decompose(a, K, method="kmeans"))
    gain = table.groupby("kind")["distance_share"].mean()
    assert set(table["kind"]) == set(KINDS) and set(table["half"]) == {0, 1} and len(table) == 2 * 4 * K
    assert gain["shift"] > 0.8 and gain["shift"] > gain["global"] + 0.3 and gain["global"] > gain["permuted"]
    own = table[table["kind"] == "shift"]
    assert own["n"].sum() == len(a)  # each half's shift is of the other half


def test_halves_are_even_and_repeatable():
    member = torch.tensor([0] * 7 + [1] * 6 + [2])
    one, other = split_halves(member, 3)
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(14)) and len(one) == len(other)
    assert abs(int((member[one] == 0).sum()) - int((member[other] == 0).sum())) <= 1
    assert torch.equal(one, split_halves(member, 3)[0])


@pytest.mark.parametrize("method", ["snmf", "pca"])
def test_other_dictionaries_are_recovered_too(method):
    a, member = clouds(80)
    b = a + 2 * noise(K, 12, 3)[member]
    table = recovery(a, b, decompose(a, 3, method=method, iterations=100), words=fake_words, n_words=3, n_images=6)
    assert len(table) == 2 * 4 * 3 and table[["cosine_gain", "words_after", "images_after"]].notna().all().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, m: concept_shift(a, a[:, :5], m, K), "12 and 5 wide: a shift needs models of the same width"),
        (lambda a, m: concept_shift(a, a[:5], m, K), "80 and 5 states"),
        (lambda a, m: concept_shift(a, a, m, 2), "run from 0 to 3, the concepts from 0 to 1"),
        (lambda a, m: concept_shift(a, a, m, K, average="mode"), "got 'mode'"),
        (lambda a, m: concept_shift(a, a, m, K, average="trimmed", trim=0.5), "trim 0.5"),
        (lambda a, m: match_concepts(a[:3], a[:2]), "3 concepts cannot each have a partner among 2"),
        (lambda a, m: match_concepts(a[:3], a[:3, :4]), "12 and 4 wide"),
        (lambda a, m: recovery(a, a, decompose(a, 50, method="simple")), "halves of 40, fewer than 50 concepts"),
        (lambda a, m: recovery(a, a, decompose(a, 2, method="pca"), matching="luck"), "got 'luck'"),
    ],
)
def test_bad_input_is_told_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as told:
        call(*clouds())
    assert "\n" not in str(told.value)


def fake_words(when: str, directions: torch.Tensor) -> list[list[str]]:
    """The largest entries of each direction, as if every one were a word."""
    return [[str(i) for i in row] for row in directions.topk(4, dim=1).indices.tolist()]

"""Concept dictionaries of four kinds: what each promises, coding again, reproducibility, and files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from chiasm.probes.concept_files import load_dictionary, load_shift, save_dictionary, save_shift
from chiasm.probes.concepts import (
    METHODS,
    Dictionary,
    concept_shift,
    decompose,
    dictionary_quality,
    quality_table,
    stability,
)
from chiasm.scenes.errors import UserError
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

EVERY = pytest.mark.parametrize("method", METHODS)


def states(n=80, width=16, seed=0, dtype=torch.float32):
    """Five clouds around points far from 0, as states after a norm are."""
    g = torch.Generator().manual_seed(seed)
    centres = 6 * torch.randn(5, width, generator=g) + 4
    return (centres[torch.arange(n) % 5] + torch.randn(n, width, generator=g)).to(dtype)


@EVERY
def test_coding_the_training_states_again_gives_their_codes(method):
    Z = states()
    found = decompose(Z, 5, method=method)
    assert found.atoms.shape == (5, 16) and found.codes.shape == (80, 5)
    assert torch.equal(found.encode(Z), found.codes)


@EVERY
def test_permuted_states_have_permuted_codes(method):
    Z, order = states(dtype=torch.float64), torch.randperm(80, generator=torch.Generator().manual_seed(1))
    one, other = decompose(Z, 5, method=method), decompose(Z[order], 5, method=method)
    close = torch.cdist(one.atoms, other.atoms)
    assert close.min(1).values.max() < 1e-3 and sorted(close.argmin(1).tolist()) == list(range(5))
    torch.testing.assert_close(other.codes[:, close.argmin(1)], one.codes[order], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(one.encode(Z[order]), one.codes[order], atol=1e-9, rtol=0)


@EVERY
def test_the_same_seed_gives_the_same_concepts_and_halves_are_widened(method):
    Z = states()
    assert torch.equal(decompose(Z, 4, method=method, seed=3).atoms, decompose(Z, 4, method=method, seed=3).atoms)
    assert decompose(Z.half(), 4, method=method).atoms.dtype == torch.float32
    big = decompose((Z * 60).half(), 4, method=method)  # norms whose squares do not fit fp16
    assert torch.isfinite(big.atoms).all() and torch.isfinite(big.codes).all()


def test_semi_nmf_is_non_negative_and_its_penalty_is_relative_unless_told():
    Z = states()
    found = decompose(Z, 5, method="snmf")
    assert (found.codes >= 0).all() and (found.atoms.norm(dim=1) <= 1 + 1e-6).all()
    assert found.penalty == pytest.approx(0.01 * Z.norm(dim=1).mean().item())
    assert decompose(Z, 5, penalty=2.0).penalty == 2.0
    scaled, found = (
        decompose(Z * 100, 5, iterations=100),
        decompose(Z, 5, iterations=100),
    )  # relative: nothing changes with the unit
    torch.testing.assert_close(scaled.codes / 100, found.codes, atol=1e-3, rtol=1e-3)
    assert dictionary_quality(decompose(Z, 5, penalty=1e5), Z) == {"error": 1.0, "sparsity": 1.0}


def test_pca_is_orthonormal_and_its_error_is_the_discarded_spectrum():
    Z = states(dtype=torch.float64)
    found = decompose(Z, 4, method="pca")
    torch.testing.assert_close(found.atoms @ found.atoms.T, torch.eye(4, dtype=torch.float64), atol=1e-10, rtol=0)
    spectrum = torch.linalg.svdvals(Z - Z.mean(0))
    error = dictionary_quality(found, Z)["error"] * Z.norm()
    torch.testing.assert_close(error**2, spectrum[4:].square().sum(), rtol=1e-10, atol=0)
    theirs = PCA(4).fit(Z.numpy())
    np.testing.assert_allclose(np.abs(found.atoms.numpy() @ theirs.components_.T), np.eye(4), atol=1e-8)
    np.testing.assert_allclose(np.abs(found.encode(Z).numpy()), np.abs(theirs.transform(Z.numpy())), atol=1e-8)
    assert (found.codes.abs().max(0).values == found.codes.max(0).values).all()  # signs: the largest score is positive


def test_k_means_activation_is_one_at_a_centroid_and_ten_starts_are_no_worse_than_one():
    Z = states(dtype=torch.float64)
    found = decompose(Z, 5, method="kmeans")
    assert ((found.codes > 0) & (found.codes <= 1)).all()
    assert torch.equal(found.encode(found.atoms).diagonal(), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(1 / found.codes - 1, torch.cdist(Z, found.atoms), atol=1e-9, rtol=0)
    error = lambda d: (Z - d.reconstruct(Z)).square().sum().item()  # noqa: E731
    theirs = KMeans(5, n_init=20, random_state=1).fit(Z.numpy()).inertia_
    assert error(found) <= error(decompose(Z, 5, method="kmeans", starts=1)) + 1e-9
    assert error(found) == pytest.approx(theirs, rel=1e-6)


def test_simple_takes_the_longest_states_longest_first():
    Z = torch.diag(torch.tensor([1.0, 5.0, 3.0, 4.0]))
    found = decompose(Z, 3, method="simple")
    assert torch.equal(found.atoms, Z[[1, 3, 2]]) and found.assign().tolist()[1:] == [0, 2, 1]


@EVERY
def test_other_concepts_can_be_coded_with(method):
    Z = states()
    found = decompose(Z, 5, method=method)
    turned = replace(found, atoms=found.atoms.flip(0))
    torch.testing.assert_close(turned.encode(Z), found.codes.flip(1), atol=1e-3, rtol=1e-3)
    assert turned.codes is found.codes and turned.mean is found.mean  # PCA keeps the mean it needs


def test_assignment_by_codes_or_by_cosine():
    atoms = torch.tensor([[10.0, 0.0], [0.0, 1.0]])
    found = Dictionary("kmeans", atoms, torch.zeros(0, 2), torch.zeros(2))
    Z = torch.tensor([[1.0, 0.5], [9.0, 1.0]])  # the first is nearer to the second centre, but points to the first
    assert found.assign(Z).tolist() == [1, 0] and found.assign(Z, by="cosine").tolist() == [0, 0]
    signed = Dictionary("pca", torch.eye(2), torch.tensor([[0.1, -3.0]]), torch.zeros(2))
    assert signed.assign().tolist() == [1]  # by size: a PCA sign is arbitrary
    with pytest.raises(UserError, match="by='colour'"):
        found.assign(Z, by="colour")


def test_directions_leave_the_shared_mean_out_of_centres_only():
    Z = states()
    for method in METHODS:
        found = decompose(Z, 5, method=method)
        shared = found.atoms - found.directions()
        expected = Z.mean(0) if method in ("kmeans", "simple") else torch.zeros(16)
        torch.testing.assert_close(shared, expected.expand(5, 16), atol=1e-5, rtol=0)
        assert torch.equal(found.directions(centre=False), found.atoms)


def test_stability_over_seeds():
    clear, noise = states(200), torch.randn(200, 16, generator=torch.Generator().manual_seed(5))
    assert len(stability(clear, 5, method="snmf", seeds=(0, 1, 2))) == 3
    assert stability(clear, 5, method="kmeans", seeds=(0, 1), starts=10).min() > 0.999
    assert stability(noise, 8, method="kmeans", seeds=(0, 1, 2)).max() < 0.95
    assert stability(noise, 3, method="pca", seeds=(0, 1)).tolist() == pytest.approx([1.0])
    table = quality_table(clear, 5, seeds=(0, 1)).set_index("method")
    assert list(table.index) == list(METHODS) and table.loc["pca", "error"] < table.loc["simple", "error"]
    assert (table["n"] == 200).all() and table["least_stable"].le(table["stability"] + 1e-9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(method="nmf"), "snmf, kmeans, pca, simple; got method 'nmf'"),
        (dict(k=81), "80 states are fewer than 81 concepts"),
        (dict(k=0), "k 0 must be at least 1"),
        (dict(k=17, method="pca"), "width 16 have no 17 components"),
        (dict(penalty=-1.0), "penalty -1.0 must be 0 or more"),
        (dict(penalty=float("nan")), "penalty nan must be 0 or more"),
        (dict(init="zero"), "got init 'zero'"),
        (dict(Z=torch.full((80, 16), torch.nan)), "80 of 80 states hold NaN"),
        (dict(Z=torch.ones(80, 16)), "all 80 states are the same"),
        (dict(Z=torch.ones(16)), r"got shape \(16,\)"),
    ],
)
def test_bad_input_is_told_in_one_line(change, message):
    with pytest.raises(UserError, match=message) as told:
        decompose(**({"Z": states(), "k": 5} | change))
    assert "\n" not in str(told.value)


def test_states_of_another_width_are_refused():
    with pytest.raises(UserError, match="states are 12 wide and concepts 16"):
        decompose(states(), 3).encode(states(width=12))


@EVERY
def test_dictionaries_are_saved_and_loaded(tmp_path, method):
    Z = states()
    found, card = (
        decompose(Z, 4, method=method, seed=2),
        {"model": "m", "model_hash": "abc", "site": "final", "words": ["dog"], "n": 80},
    )
    written = save_dictionary(tmp_path / "dog.v1", found, card)
    assert written.name == "dog.v1.json" and sorted(p.name for p in tmp_path.iterdir()) == [
        "dog.v1.json",
        "dog.v1.safetensors",
    ]
    back, told = load_dictionary(tmp_path / "dog.v1")
    assert torch.equal(back.encode(Z), found.codes) and torch.equal(back.codes, found.codes) and back.seed == 2
    assert {**card, "method": method, "seed": 2, "k": 4}.items() <= told.items()


def test_shifts_are_saved_and_loaded_with_their_gaps(tmp_path):
    a = states()
    shift = concept_shift(a, a + 1, torch.zeros(80, dtype=torch.long), 2)
    save_shift(tmp_path / "s", shift, {"model": "m"})
    back, card = load_shift(tmp_path / "s")
    assert torch.equal(back.shift[0], shift.shift[0]) and back.shift[1].isnan().all() and card["model"] == "m"


def test_damaged_and_foreign_files_are_told(tmp_path):
    found = decompose(states(), 4)
    save_dictionary(tmp_path / "d", found, {})
    with pytest.raises(UserError, match="there is no dictionary"):
        load_dictionary(tmp_path / "e")
    with pytest.raises(UserError, match="is a dictionary of format 1, not a shift"):
        load_shift(tmp_path / "d")
    kept = (tmp_path / "d.json").read_text()
    save_dictionary(tmp_path / "d", decompose(states(seed=1), 4), {})
    (tmp_path / "d.json").write_text(kept)  # as if the second saving had ended half-way
    with pytest.raises(UserError, match="not of one saving"):
        load_dictionary(tmp_path / "d")
    (tmp_path / "d.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="damaged"):
        load_dictionary(tmp_path / "d")

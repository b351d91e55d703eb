"""Directions: differences by hand, files and their refusals, from states and from pairs of prompts."""

import json

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.probes.concept_files import load_dictionary, load_shift, save_dictionary, save_shift
from chiasm.probes.concept_shift import concept_shift
from chiasm.probes.concepts import decompose
from chiasm.probes.extraction import extract
from chiasm.scenes.benchmarks import caption_set, scene_samples
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import BadSample
from chiasm.steering import AddDirection, Direction, select_directions, steer, try_directions
from chiasm.steering.directions import (
    checked_vector,
    concept_directions,
    difference_direction,
    direction_between,
    direction_from_pairs,
    direction_from_samples,
    direction_from_shift,
    directions_of_concepts,
    last_states,
)

from ..models.families import build

WIDTH = 128


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


@pytest.fixture
def direction(organism):
    base, target = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    return direction_between(organism, base, target, 2, words=["cat"])


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_the_coarse_direction_leads_from_the_mean_of_base_to_that_of_target():
    base, target = torch.tensor([[0.0, 0.0], [2.0, 4.0]]), torch.tensor([[5.0, 1.0]])
    assert difference_direction(base, target).tolist() == [4.0, -1.0]
    assert torch.equal(difference_direction(base, target), -difference_direction(target, base))
    assert not difference_direction(base, base).any()
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(1, 3\)"):
        difference_direction(base, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="no mean"):
        difference_direction(base, torch.zeros(0, 2))


def test_means_of_thousands_of_half_precision_states_are_taken_in_fp32():
    states = torch.full((5000, 2), 100.0, dtype=torch.float16)
    assert difference_direction(torch.zeros_like(states), states).tolist() == [100.0, 100.0]  # 5e5 is beyond fp16
    assert difference_direction(states, states).dtype == torch.float32


def test_fine_directions_are_antisymmetric_add_up_and_have_mean_zero():
    atoms = torch.randn(4, 6, dtype=torch.float64).float()
    s = concept_directions(atoms)
    assert s.shape == (4, 4, 6) and torch.equal(s[1, 3], atoms[3] - atoms[1])
    assert torch.equal(s, -s.transpose(0, 1)) and not s.diagonal().any()
    torch.testing.assert_close(s[:, :, None] + s[None], s[:, None].expand(4, 4, 4, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(s.mean((0, 1)), torch.zeros(6), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="must be"):
        concept_directions(atoms[0])


def test_directions_are_scaled_and_turned_round(direction):
    assert torch.equal((2 * direction).vector, direction.vector * 2) and torch.equal(
        -direction.vector, (-direction).vector
    )
    assert (direction * 0.5).layer == 2 and (direction * 0.5).card == direction.card
    half = Direction(direction.vector.half().requires_grad_(), 1)
    assert half.vector.dtype == torch.float32 and not half.vector.requires_grad
    assert "difference of means, layer 2 of organism" in repr(direction)


# -- cards and files ---------------------------------------------------------------------------------------------------


def test_the_card_says_of_what_it_was_made(organism, direction):
    card = direction.card
    assert card["model"]["weights"] == organism.fingerprint() and card["model"]["name"] == "organism"
    assert card["method"] == "difference of means" and card["n"] == [6, 6] and card["words"] == ["cat"]
    base, target = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    assert card["state_norm"] == pytest.approx(float(torch.cat([base, target]).norm(dim=-1).mean()))
    assert direction_between(organism, base, target, -1).layer == organism.anatomy.n_layers - 1
    with pytest.raises(UserError, match="layer 9 is outside"):
        direction_between(organism, base, target, 9)


@pytest.mark.parametrize("name", ["cat", "cat.safetensors", "cat.json", "cat.v2"])
def test_saved_and_loaded_it_is_the_same_by_any_of_its_names(direction, tmp_path, name):
    written = direction.save(tmp_path / name)
    assert written.suffix == ".safetensors" and written.exists()
    for stem in (name, written.name):
        again = Direction.load(tmp_path / stem)
        assert torch.equal(again.vector, direction.vector) and again.layer == 2
        assert {k: again.card[k] for k in direction.card} == dict(direction.card)
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_and_missing_files_are_one_line(direction, tmp_path):
    with pytest.raises(UserError, match="there is no direction"):
        Direction.load(tmp_path / "nothing")
    path = direction.save(tmp_path / "cat")
    whole, card = path.read_bytes(), path.with_suffix(".json").read_text()
    path.write_bytes(whole[:-7])
    with pytest.raises(UserError, match="is damaged"):
        Direction.load(path)
    path.write_bytes(whole)
    path.with_suffix(".json").write_text(card[:40])
    with pytest.raises(UserError, match="is damaged"):
        Direction.load(path)
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in json.loads(card).items() if k != "layer"}))
    with pytest.raises(UserError, match="its card has no layer"):
        Direction.load(path)
    path.with_suffix(".json").write_text(card.replace('"kind": "direction"', '"kind": "shift"'))
    with pytest.raises(UserError, match=r"is a shift .* not a direction"):
        Direction.load(path)
    path.unlink()
    with pytest.raises(UserError, match="there is no direction"):
        Direction.load(tmp_path / "cat")


def test_a_direction_of_another_model_width_or_without_numbers_is_refused(organism, direction):
    other = open_vlm(model=build("llava")[0])
    with pytest.raises(UserError, match=r"the direction is \(128,\), the states of .* are \(32,\)"):
        checked_vector(direction, other)
    tuned = open_vlm("organism/aligned", device="cpu")
    with (
        pytest.raises(UserError, match=r"was made on organism \(weights .*pass its .vector"),
        steer(tuned, AddDirection(direction)),
    ):
        raise AssertionError("was opened")
    assert torch.equal(checked_vector(direction.vector, tuned), direction.vector)
    with pytest.raises(UserError, match="not finite"):
        checked_vector(direction * float("inf"), organism)
    with pytest.raises(UserError, match="the direction is str"):
        checked_vector("cat", organism)
    with pytest.raises(UserError, match=r"is \(1, 128\)"):
        checked_vector(direction.vector[None], organism)


def test_a_direction_of_another_dtype_is_refused_and_told(organism, direction):
    half = open_vlm("organism", device="cpu", dtype="bf16")
    with pytest.raises(
        UserError, match=r"made on organism \(weights \w+, float32\), this is organism \(weights \w+, bfloat16\)"
    ):
        checked_vector(direction, half)
    assert (
        checked_vector(direction.vector.half(), half).dtype == torch.float32
    )  # of any floating type, where it has no card
    for kind in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(UserError, match=rf"the direction is of {kind}: give floating-point"):
            checked_vector(torch.ones(WIDTH, dtype=kind), organism)


# -- made of states ----------------------------------------------------------------------------------------------------


def test_last_states_are_those_that_predict_the_answer_whatever_the_batch(organism):
    samples = list(scene_samples(3, "test", "colour"))
    images, prompts = [s.images for s in samples], [s.prompt for s in samples]
    prompts[1] = "what color is the very big cat in the picture ?"
    states = last_states(organism, images, prompts, 1)
    for k in range(3):
        inputs = organism.prepare(images[k : k + 1], prompts[k : k + 1])
        alone = organism.trace(inputs, ["blocks.1.resid_post"])["blocks.1.resid_post"][0, -1]
        torch.testing.assert_close(states[k], alone, atol=1e-4, rtol=1e-4)
    final = organism.anatomy.norm(last_states(organism, images, prompts, -1))
    ids = organism.generate_ids(organism.prepare(images, prompts), max_new_tokens=1)
    assert torch.equal(organism.anatomy.unembed(final).argmax(-1), ids[:, 0])


def test_a_direction_from_pairs_is_the_mean_difference_over_pictures_and_pairs(organism):
    images = [s.images[0] for s in scene_samples(3, "test")]
    pairs = [("is there a cup ?", "is there a cat ?"), ("describe the image .", "what place is this ?")]
    found = direction_from_pairs(organism, images, pairs, 1, batch_size=4, about="cats")
    base, target = (
        torch.cat([last_states(organism, [image], [pair[k]], 1) for image in images for pair in pairs]) for k in (0, 1)
    )
    torch.testing.assert_close(found.vector, target.mean(0) - base.mean(0), atol=1e-4, rtol=1e-4)
    assert found.layer == 1 and found.card["n"] == [6, 6] and found.card["method"] == "contrast pairs"
    assert found.card["pairs"] == [list(pair) for pair in pairs] and found.card["about"] == "cats"
    back = direction_from_pairs(organism, images, [pair[::-1] for pair in pairs], 1)
    torch.testing.assert_close(back.vector, -found.vector, atol=1e-4, rtol=1e-4)


def test_pictures_of_pairs_may_be_one_or_none(organism):
    image, pairs = next(scene_samples(1, "test")).images[0], [("is there a cup ?", "is there a cat ?")]
    one = direction_from_pairs(organism, image, pairs, 1)
    assert torch.equal(one.vector, direction_from_pairs(organism, [image], pairs, 1).vector)
    none = direction_from_pairs(organism, None, pairs, 1)
    assert torch.equal(none.vector, direction_from_pairs(organism, [], pairs, 1).vector)
    assert not torch.allclose(one.vector, none.vector, atol=1e-3)
    with pytest.raises(UserError, match="pairs is empty"):
        direction_from_pairs(organism, [image], [], 1)


# -- made of samples, of concepts and of their shift -------------------------------------------------------------------


def test_a_direction_from_samples_leads_from_one_set_to_the_other(organism):
    samples = list(scene_samples(12, "train", "existence"))
    base, target = ([s for s in samples if s.answer == word] for word in ("yes", "no"))
    found = direction_from_samples(organism, [*base, BadSample("x", "is broken")], target, 1, batch_size=5, about="no")
    states = [last_states(organism, [s.images for s in some], [s.prompt for s in some], 1) for some in (base, target)]
    torch.testing.assert_close(found.vector, states[1].mean(0) - states[0].mean(0), atol=1e-4, rtol=1e-4)
    assert found.layer == 1 and found.card["n"] == [len(base), len(target)] and found.card["about"] == "no"
    assert found.card["states"] == "last_prompt" and found.card["state_norm"] > 0
    same = direction_from_samples(organism, base, base, 1)
    assert not same.vector.any()
    with pytest.raises(UserError, match="target holds no sample"):
        direction_from_samples(organism, base, [BadSample("x", "is broken")], 1)
    with pytest.raises(UserError, match="states='words' must be one of last_prompt, caption"):
        direction_from_samples(organism, base, target, 1, states="words")
    with pytest.raises(UserError, match="layer 9 is outside"):
        direction_from_samples(organism, base, target, 9)


def test_a_direction_from_captions_is_of_means_over_what_is_said(organism):
    base, target = (caption_set(4, "train", style) for style in ("neutral", "colour"))
    found = direction_from_samples(organism, base, target, 2, states="caption")
    site = "blocks.2.resid_post"
    means = [extract(organism, some, None, sites=site)[site].mean(0) for some in (base, target)]
    torch.testing.assert_close(found.vector, means[1] - means[0], atol=1e-3, rtol=1e-3)


def told(organism, site: str = "blocks.1.resid_post") -> dict:
    return {"model": organism.name, "model_hash": organism.fingerprint(), "site": site, "words": ["cat"], "n": 12}


def test_fine_directions_of_a_saved_dictionary(organism, tmp_path):
    found = decompose(torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(0)), 3, method="kmeans")
    save_dictionary(tmp_path / "cat", found, told(organism) | {"concept_words": [["a"], ["b"], ["c"]]})
    every = directions_of_concepts(*load_dictionary(tmp_path / "cat"))
    assert list(every) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    torch.testing.assert_close(every[0, 2].vector, found.atoms[2] - found.atoms[0])
    card = every[0, 2].card
    assert every[0, 2].layer == 1 and card["concepts"] == [0, 2] and card["n"] == 12 and card["dictionary"] == "kmeans"
    assert card["concept_words"] == [["a"], ["c"]] and card["method"] == "difference of concepts"
    again = Direction.load(every[0, 2].save(tmp_path / "fine"))
    assert torch.equal(checked_vector(again, organism), every[0, 2].vector)
    with pytest.raises(UserError, match="was made on organism"):
        checked_vector(again, open_vlm("organism/aligned", device="cpu"))
    samples = list(scene_samples(2, "train", "colour"))
    before, after = try_directions(organism, samples, list(every.values()), max_new_tokens=2)
    assert sum(before.values()) == 2 and len(after) == 6
    select_directions(before, after)
    with pytest.raises(UserError, match="of 'final', which is not steered: learn them at blocks"):
        directions_of_concepts(found, told(organism, "final"))
    with pytest.raises(UserError, match="does not say 'model'"):
        directions_of_concepts(found, {"site": "blocks.1.resid_post"})


def test_what_tuning_did_to_a_concept_as_a_direction(organism, tmp_path):
    """Added to the model before it was tuned, it moves the concept's mean state to where tuning moved it."""
    a = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))
    moved = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    assignment = torch.tensor([0, 2] * 4)
    shift = concept_shift(a, a + moved[assignment // 2], assignment, 3)
    card = told(organism) | {
        "model": "tuned",
        "model_hash": "f00",
        "from": organism.name,
        "from_hash": organism.fingerprint(),
    }
    save_shift(tmp_path / "cat", shift, card)
    found = direction_from_shift(*load_shift(tmp_path / "cat"), 2)
    torch.testing.assert_close(found.vector, moved[1], atol=1e-5, rtol=1e-5)
    assert (
        found.layer == 1 and found.card["concept"] == 2 and found.card["tuned"] == {"name": "tuned", "weights": "f00"}
    )
    assert torch.equal(checked_vector(found, organism), found.vector)
    for concept in (1, 3, -1):
        with pytest.raises(UserError, match=f"concept {concept} has no shift: use one of 0, 2"):
            direction_from_shift(shift, card, concept)

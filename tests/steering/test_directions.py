"""Directions: differences by hand, files and their refusals, from states and from pairs of prompts."""

import json

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.steering import AddDirection, Direction, steer
from chiasm.steering.directions import (
    checked_vector,
    concept_directions,
    difference_direction,
    direction_between,
    direction_from_pairs,
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

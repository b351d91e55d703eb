"""Interventions on the residual stream: each formula on real states, on every type, at the positions it names."""

import math

import numpy as np
import pytest
import torch
from chiasm.models import open_vlm
from chiasm.probes.concepts import decompose
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.steering import (
    AblateDirection,
    AddDirection,
    AffineAblate,
    Direction,
    NormPreservingAdd,
    Rotate,
    When,
    steer,
)

from ..models.families import FAMILIES, batch

SITE = "blocks.1.resid_post"


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


@pytest.fixture(scope="module")
def inputs(organism):
    samples = list(scene_samples(2, "test", "colour"))
    return organism.prepare([s.images for s in samples], [s.prompt for s in samples])


@pytest.fixture(scope="module")
def plain(organism, inputs):
    return organism.trace(inputs, [SITE])[SITE]


def vector(seed: int = 0, width: int = 128) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def states(vlm, inputs, *interventions, site: str = SITE) -> torch.Tensor:
    with steer(vlm, *interventions):
        return vlm.trace(inputs, [site])[site]


# -- adding ------------------------------------------------------------------------------------------------------------


def test_alpha_then_minus_alpha_is_the_identity(organism, inputs, plain):
    v = vector()
    back = states(organism, inputs, AddDirection(v, 1, 3.0), AddDirection(v, 1, -3.0))
    torch.testing.assert_close(back, plain, atol=1e-4, rtol=0)  # states are of length 500
    assert not torch.allclose(states(organism, inputs, AddDirection(v, 1, 3.0)), plain, atol=0.1)


@pytest.mark.parametrize("name", FAMILIES)
def test_added_after_the_last_block_the_logits_are_those_of_the_moved_states(name):
    """Closed form: logits = W_U norm(h + v)."""
    model, tensors, _ = batch(name, "left")
    vlm = open_vlm(model=model)
    inputs, last = vlm.from_tensors(**tensors), vlm.anatomy.n_layers - 1
    v, site = vector(width=vlm.anatomy.hidden_size), f"blocks.{last}.resid_post"
    with torch.no_grad():
        h = vlm.trace(inputs, [site])[site] + v
        want = vlm.anatomy.unembed(vlm.anatomy.norm(h))
        with steer(vlm, AddDirection(v, last)):
            got = vlm.forward(inputs).logits
    real = inputs.spans.real
    torch.testing.assert_close(got[real], want[real], atol=1e-5, rtol=1e-5)


def test_units_of_the_mean_state_norm(organism, inputs, plain):
    v = 7 * vector()
    card = Direction(v, 1, {"state_norm": 12.0})
    for change, length in [
        (AddDirection(card, units="norm"), 12.0),
        (AddDirection(card, scale=-0.5, units="norm"), -6.0),
        (AddDirection(card, units="norm", norm=3.0), 3.0),
        (AddDirection(v, 1, 2.0, units="norm", norm=1.0), 2.0),
    ]:
        moved = states(organism, inputs, change) - plain
        torch.testing.assert_close(moved[0, -1], length * v / v.norm(), atol=1e-4, rtol=0)
    assert torch.equal(states(organism, inputs, AddDirection(card, scale=0.0, units="norm")), plain)
    assert torch.equal(states(organism, inputs, AddDirection(0 * v, 1, units="norm", norm=5.0)), plain)


def test_a_directions_own_layer_several_layers_and_numbers_of_numpy(organism, inputs, plain):
    v = vector()
    own = states(organism, inputs, AddDirection(Direction(v, 1)))
    assert torch.equal(own, states(organism, inputs, AddDirection(v, np.int64(1), np.float32(1))))
    assert torch.equal(own, states(organism, inputs, AddDirection(v, (1, -3, 1))))
    twice = states(organism, inputs, AddDirection(v, (1, 2)), site="blocks.2.resid_post")
    assert not torch.allclose(twice, states(organism, inputs, AddDirection(v, 1), site="blocks.2.resid_post"), atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_reckoned_with_in_fp32(dtype):
    model, tensors, _ = batch("llava", "left")
    vlm = open_vlm(model=model.to(dtype))
    inputs, v = vlm.from_tensors(**tensors), vector(width=32)
    h = states(vlm, inputs)
    unit = v / v.norm()
    along = (h.float() @ unit)[..., None] * unit
    moved = h.float() + 1.5 * v
    for change, want in [
        (AddDirection(v, 1, 1.5), moved),
        (AblateDirection(v, 1), h.float() - along),
        (NormPreservingAdd(v, 1, 1.5), moved / moved.norm(dim=-1, keepdim=True) * h.float().norm(dim=-1, keepdim=True)),
    ]:
        got = states(vlm, inputs, change)
        assert got.dtype == dtype
        assert torch.equal(got[inputs.spans.real], want.to(dtype)[inputs.spans.real])
    # a vector of norm 300, squared, is beyond fp16; the result is not
    big = states(vlm, inputs, NormPreservingAdd(300 * unit, 1))[inputs.spans.real].float()
    assert big.isfinite().all()
    torch.testing.assert_close(big.norm(dim=-1), h[inputs.spans.real].float().norm(dim=-1), atol=0, rtol=0.01)


# -- ablation ----------------------------------------------------------------------------------------------------------


def test_ablation_leaves_nothing_along_the_direction_and_all_else(organism, inputs, plain):
    v = 3 * vector()
    unit = v / v.norm()
    once = states(organism, inputs, AblateDirection(v, 1))[inputs.spans.real]
    before = plain[inputs.spans.real]
    assert (before @ unit).abs().max() > 0.5 and (once @ unit).abs().max() < 1e-4
    other = vector(1) - (vector(1) @ unit) * unit
    torch.testing.assert_close(once @ other, before @ other, atol=1e-4, rtol=1e-4)
    twice = states(organism, inputs, AblateDirection(v, 1), AblateDirection(-v, 1))[inputs.spans.real]
    torch.testing.assert_close(twice, once, atol=1e-4, rtol=0)


def test_affine_ablation_puts_the_mean_of_the_base_along_it(organism, inputs, plain):
    v, mean = vector(), vector(1)
    unit = v / v.norm()
    got = states(organism, inputs, AffineAblate(v, mean, 1))[inputs.spans.real]
    torch.testing.assert_close(got @ unit, (mean @ unit).expand(len(got)), atol=1e-4, rtol=0)
    again = states(organism, inputs, AffineAblate(v, mean, 1), AffineAblate(v, mean, 1))[inputs.spans.real]
    torch.testing.assert_close(again, got, atol=1e-4, rtol=0)
    zero = states(organism, inputs, AffineAblate(v, 0 * mean, 1))
    torch.testing.assert_close(zero, states(organism, inputs, AblateDirection(v, 1)), atol=1e-4, rtol=0)
    across = plain[inputs.spans.real] - (plain[inputs.spans.real] @ unit)[:, None] * unit
    torch.testing.assert_close(got - (got @ unit)[:, None] * unit, across, atol=1e-4, rtol=0)


# -- length and angle --------------------------------------------------------------------------------------------------


def test_norm_preserving_addition_has_the_sums_direction_at_the_old_length(organism, inputs, plain):
    v, real = vector(), inputs.spans.real
    got, before = states(organism, inputs, NormPreservingAdd(v, 1, 2.0))[real], plain[real]
    torch.testing.assert_close(got.norm(dim=-1), before.norm(dim=-1), rtol=1e-5, atol=0)
    cosine = torch.nn.functional.cosine_similarity(got, before + 2 * v, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-5, rtol=0)
    assert torch.equal(states(organism, inputs, NormPreservingAdd(v, 1, 0.0)), plain)


def angle(h: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.rad2deg(torch.acos(torch.nn.functional.cosine_similarity(h.double(), v.double(), dim=-1).clamp(-1, 1)))


@pytest.mark.parametrize("degrees", [30.0, 90.0, -20.0])
def test_rotation_turns_by_so_many_degrees_in_the_plane_of_both(organism, inputs, plain, degrees):
    v, real = vector(), inputs.spans.real
    got, before = states(organism, inputs, Rotate(v, degrees, 1))[real], plain[real]
    torch.testing.assert_close(got.norm(dim=-1), before.norm(dim=-1), rtol=1e-5, atol=0)
    torch.testing.assert_close(angle(got, before), torch.full((len(got),), abs(degrees)).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(angle(got, v), (angle(before, v) - degrees).abs(), atol=0.05, rtol=0)
    if degrees < 90:  # which leads some states past the direction, from where "towards" is the other way
        back = states(organism, inputs, Rotate(v, degrees, 1), Rotate(v, -degrees, 1))
        torch.testing.assert_close(back, plain, atol=1e-3, rtol=1e-4)


def rotated(h: torch.Tensor, v: torch.Tensor, degrees: float) -> torch.Tensor:
    """What Rotate makes of states (..., D) given, in a model of any width."""
    from types import SimpleNamespace

    from chiasm.steering.where import Where

    block = torch.nn.Identity()
    anatomy = SimpleNamespace(hidden_size=len(v), blocks=[block], check_layer=lambda i: i, image_in_sequence=True)
    (edit,) = Rotate(v, degrees, 0).edits(SimpleNamespace(anatomy=anatomy, name="fake"))
    return edit.after(h, Where(None, 0, h.shape[1], h.shape[0]))


def test_rotation_by_hand():
    v = torch.tensor([0.0, 2.0, 0.0])
    h = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, -5.0, 0.0], [0.0, 0.0, 0.0]]])
    got = rotated(h, v, 90.0)[0]
    torch.testing.assert_close(got[0], torch.tensor([0.0, 3.0, 0.0]), atol=1e-6, rtol=0)
    assert torch.equal(got[1:], h[0, 1:])  # along it, opposite, and nothing at all
    root = 3 / math.sqrt(2)
    torch.testing.assert_close(rotated(h, v, 45.0)[0, 0], torch.tensor([root, root, 0.0]), atol=1e-6, rtol=0)
    assert torch.equal(rotated(h, v, 0.0), h)


@pytest.mark.parametrize("tilt", [0.0, 1e-7, 1e-6, 3e-6, 1e-5, 1e-4, 1e-3])
def test_states_close_to_the_direction_keep_their_length(tilt):
    v, other = vector(width=8192), vector(1, 8192)
    h = 3.7 * (v / v.norm() + tilt * other / other.norm())
    for sign in (1, -1):
        got = rotated(sign * h[None, None], v, 45.0)
        assert float(got.norm()) == pytest.approx(float(h.norm()), rel=1e-3)


# -- conditions --------------------------------------------------------------------------------------------------------


def test_a_condition_limits_a_change_to_positions_where_a_concept_is_active(organism, inputs, plain):
    v, concept = vector(), vector(1)
    activity = plain @ (concept / concept.norm())
    threshold = float(activity[inputs.spans.real].median())
    change = When(AddDirection(v, 1), concept, threshold)
    moved = (states(organism, inputs, change) - plain).abs().sum(-1) > 1e-3
    assert torch.equal(moved, (activity > threshold) & inputs.spans.real)
    assert moved.any() and not moved[inputs.spans.real].all()
    assert torch.equal(states(organism, inputs, change)[~moved], plain[~moved])
    by_function = When(AddDirection(v, 1, positions="image"), lambda h: -h[..., 5])
    moved = (states(organism, inputs, by_function) - plain).abs().sum(-1) > 1e-3
    assert torch.equal(moved, (plain[..., 5] < 0) & inputs.spans.visual)


@pytest.mark.parametrize("method", ["kmeans", "snmf"])
def test_a_condition_on_a_concept_of_a_dictionary(organism, inputs, plain, method):
    dictionary = decompose(plain[inputs.spans.real], 3, method=method)
    codes = dictionary.encode(plain.flatten(0, 1))[:, 1].view(plain.shape[:2])
    threshold = float(codes[inputs.spans.real].quantile(0.7))
    change = When(AddDirection(vector(), 1), lambda h: dictionary.encode(h)[:, 1], threshold)
    moved = (states(organism, inputs, change) - plain).abs().sum(-1) > 1e-3
    assert torch.equal(moved, (codes > threshold) & inputs.spans.real) and moved.any()


def test_conditions_nest_and_look_at_what_inner_changes_made(organism, inputs, plain):
    v, a, b = vector(), vector(1), vector(2)
    both = When(When(AddDirection(v, 1), a), b)
    moved = (states(organism, inputs, both) - plain).abs().sum(-1) > 1e-3
    assert torch.equal(moved, (plain @ a > 0) & (plain @ b > 0) & inputs.spans.real)
    never = states(organism, inputs, AblateDirection(a, 1), When(AddDirection(v, 1), a, 0.01))
    assert torch.equal(never, states(organism, inputs, AblateDirection(a, 1)))


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_before_anything_is_changed(organism):
    v = vector()
    for change, words in [
        (AblateDirection(0 * v, 1), "0 everywhere: nothing lies along it"),
        (Rotate(0 * v, 10.0, 1), "0 everywhere"),
        (Rotate(v, float("nan"), 1), "angle=nan must be a finite number"),
        (Rotate(v, True, 1), "angle=True"),
        (AffineAblate(v, v[:3], 1), r"the direction is \(3,\)"),
        (NormPreservingAdd(v, 1, "2"), "scale='2' must be a finite number"),
        (NormPreservingAdd(v), "layer= is missing"),
        (When(AddDirection(v, 1), v, float("inf")), "threshold=inf"),
        (When(AddDirection(v, 1), 0 * v), "0 everywhere"),
        (AblateDirection(v, (0, 7)), "layer 7 is outside"),
        (AblateDirection(v, 1, positions="everything"), "positions='everything'"),
    ]:
        with pytest.raises(UserError, match=words), steer(organism, change):
            raise AssertionError("was opened")

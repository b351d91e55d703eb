"""Patching on every family: what is put back, where, in which rows; a whole site brings back the whole run; refusals."""

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.models.trace import Trace
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.steering import Patch, steer
from chiasm.steering.dropping import dropped_at

from ..models.families import FAMILIES, batch
from .pairs import two_pictures

EVERY = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


def logits(vlm, inputs, *interventions):
    with steer(vlm, *interventions), torch.no_grad():
        return vlm.forward(inputs, use_cache=False).logits


@EVERY
def test_the_projector_put_back_is_the_picture_put_back(name):
    vlm, clean, other = two_pictures(name)
    source = vlm.trace(clean, ["projector"])
    want, plain = logits(vlm, clean), logits(vlm, other)
    assert not torch.allclose(want, plain, atol=1e-6)
    got = logits(vlm, other, Patch(source, "projector"))
    if name == "qwen3_vl":  # deeper layers of its tower are added behind the first blocks too
        assert not torch.allclose(got, want, atol=1e-6) and not torch.allclose(got, plain, atol=1e-6)
    else:
        torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


@EVERY
def test_a_whole_layer_put_back_is_the_run_put_back(name):
    vlm, clean, other = two_pictures(name)
    site = f"blocks.{vlm.anatomy.n_layers - 1}.resid_post"
    source = vlm.trace(clean, [site, "embed"])
    want = logits(vlm, clean)
    assert torch.equal(logits(vlm, other, Patch(source, site, "all")), want)
    if name not in ("qwen3_vl", "mllama"):
        assert torch.equal(logits(vlm, other, Patch(source, "embed", "image")), want)


@EVERY
def test_a_run_patched_with_itself_stays_as_it_is_to_the_bit(name):
    vlm, clean, _ = two_pictures(name)
    source = vlm.trace(clean, ["embed", "blocks.*.resid_post", "blocks.*.attn_out", "projector"])
    plain = logits(vlm, clean)
    for site in source:
        assert torch.equal(logits(vlm, clean, Patch(source, site, "all")), plain), site


@EVERY
@pytest.mark.parametrize("kind", ["resid_post", "attn_out", "mlp_out", "embed"])
def test_the_positions_named_have_the_sources_values_and_all_others_their_own(name, kind):
    vlm, clean, other = two_pictures(name)
    site = kind if kind == "embed" else f"blocks.{vlm.anatomy.n_layers - 1}.{kind}"
    if name == "blip2" and kind == "mlp_out":
        return  # OPT has no such module
    source = vlm.trace(clean, [site])
    plain = vlm.trace(other, [site])[site]
    spans = clean.spans
    named = {"text": None}
    if kind == "resid_post":
        named |= {"last_prompt": None, -2: None, "before": spans.mask("before")}
    if name != "mllama":
        named["image"] = spans.visual
    for positions, mask in named.items():
        if mask is None:
            n = spans.labels.shape[1]
            mask = {
                "last_prompt": torch.arange(n) == n - 1,
                "text": ~spans.mask("image")[0],
                -2: torch.arange(n) >= n - 2,
            }
            mask = mask[positions][None]
        with steer(vlm, Patch(source, site, positions)):
            got = vlm.trace(other, [site])[site]
        assert torch.equal(got, torch.where(mask[..., None], source[site], plain)), positions
    with steer(vlm, Patch(source, site, mask)):
        assert torch.equal(vlm.trace(other, [site])[site], got)


@EVERY
def test_one_source_serves_all_rows_or_those_that_are_named(name):
    model, tensors, _ = batch(name, "left")
    vlm = open_vlm(model=model)
    inputs, site = vlm.from_tensors(**tensors), "blocks.1.resid_post"
    own = vlm.trace(inputs, [site])[site]
    values = torch.randn_like(own[:1])
    mask = torch.zeros(1, own.shape[1], dtype=torch.bool)
    mask[:, -1] = True
    with steer(vlm, Patch({site: values}, site, mask)):
        both = vlm.trace(inputs, [site])[site]
    assert torch.equal(both[:, -1], values[:, -1].expand(2, -1)) and torch.equal(both[:, :-1], own[:, :-1])
    with steer(vlm, Patch({site: values}, site, mask, rows=[1])):
        one = vlm.trace(inputs, [site])[site]
    assert torch.equal(one[0], own[0]) and torch.equal(one[1], both[1])


def test_rows_of_the_projector(organism):
    samples = list(scene_samples(3, "test", "colour"))
    inputs = organism.prepare([s.images for s in samples], ["what place is this ?"] * 3)
    single = organism.prepare([samples[2].images], ["what place is this ?"])
    source = organism.trace(single, ["projector"])
    got = logits(organism, inputs, Patch(source, "projector", rows=[1]))
    plain = logits(organism, inputs)
    torch.testing.assert_close(got[[0, 2]], plain[[0, 2]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], plain[2], atol=1e-4, rtol=1e-4)


def test_generation_goes_on_from_the_patched_prompt(organism):
    a, b = scene_samples(2, "test", "caption")
    clean, other = (organism.prepare([s.images], ["describe the image ."]) for s in (a, b))
    patch = Patch(organism.trace(clean, ["embed"]), "embed", "image")
    want = organism.generate_ids(clean, max_new_tokens=10)
    with steer(organism, patch):
        for more in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            assert torch.equal(organism.generate_ids(other, max_new_tokens=10, **more), want)
        beams = organism.generate_ids(other, max_new_tokens=10, num_beams=3)
    assert torch.equal(beams, organism.generate_ids(clean, max_new_tokens=10, num_beams=3))


def test_positions_that_were_taken_out_are_left_out(organism):
    a, b = scene_samples(2, "test", "caption")
    clean, other = (organism.prepare([s.images], ["describe the image ."]) for s in (a, b))
    patch = Patch(organism.trace(clean, ["blocks.1.resid_post"]), "blocks.1.resid_post", "image")
    found = []
    for by in ("slice", "mask"):

        class Out:
            def edits(self, vlm, by=by):
                return dropped_at(vlm, 1, lambda where: where.spans.visual & (where.spans.col % 2 == 0), by=by)

        found.append(logits(organism, other, Out(), patch)[:, -1])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], logits(organism, other, Out())[:, -1], atol=1e-2)


def test_bad_input_is_one_line(organism):
    image = next(scene_samples(1, "test")).images
    inputs, longer = (organism.prepare([image], [p]) for p in ("is there a cat ?", "is there a cat in the picture ?"))
    moved = organism.prepare([image], ["is <image> there a cat ?"])
    source = organism.trace(inputs, ["blocks.1.resid_post", "embed"])
    site = "blocks.1.resid_post"
    for patch, words in [
        (Patch(source, "blocks.2.resid_post"), r"the source has no 'blocks.2.resid_post'.*it has embed"),
        (Patch(source, "blocks.1.attn_mass"), "cannot be patched; those of the kinds resid_post"),
        (Patch(source, "vision.blocks.0.resid_post"), "cannot be patched"),
        (Patch(source, "blocks.9.resid_post"), "layer 9 is outside"),
        (Patch(source, site, "picture"), "positions='picture' must be one of all, image"),
    ]:
        with pytest.raises(UserError, match=words), steer(organism, patch):
            raise AssertionError("was opened")
    for other, patch, words in [
        (
            longer,
            Patch(source, site),
            rf"has {inputs.spans.labels.shape[1]} positions, this prompt {longer.spans.labels.shape[1]}",
        ),
        (moved, Patch(source, site), "positions='image' are not the same"),
        (inputs, Patch(source, site, torch.ones(1, 3)), r"the mask is \(1, 3\)"),
        (inputs, Patch({site: source[site].repeat(2, 1, 1)}, site), "the source has 2 rows, this run 1"),
        (organism.prepare([None], ["hello"]), Patch(Trace({"projector": torch.zeros(1, 5, 4)}), "projector"), None),
        (inputs, Patch(Trace({"projector": torch.zeros(1, 5, 4)}), "projector"), "pictures of the same size"),
    ]:
        with steer(organism, patch):
            if words is None:  # no picture, nothing to write
                organism.forward(other)
                continue
            with pytest.raises(UserError, match=words):
                organism.forward(other)
    mllama, clean, _ = two_pictures("mllama")
    with (
        pytest.raises(UserError, match="enter by cross-attention"),
        steer(mllama, Patch(mllama.trace(clean, ["embed"]), "embed")),
    ):
        pass

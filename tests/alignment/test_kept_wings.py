"""Wings that stay on a model: the same numbers as while they are attached, in copies and threads, and what would lose them."""

from __future__ import annotations

import copy

import pytest
import torch
from chiasm.alignment.kept_wings import keep
from chiasm.alignment.wings import Wings, WingsConfig
from chiasm.models import VLM, open_vlm
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError

from ..models.families import FAMILIES, build


def trained(vlm) -> Wings:
    torch.manual_seed(0)
    wings = Wings(vlm, WingsConfig(rank=4))
    for parameter in wings.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return wings


@pytest.fixture(scope="module")
def found():
    """A model with wings kept, a prompt, the batch with answers, and what the wings attached said of both."""
    vlm = open_vlm("organism", device="cpu")
    wings, samples = trained(vlm), list(scene_samples(2, "test"))
    inputs = vlm.prepare_samples(samples)
    prompt = vlm.prepare([s.images for s in samples], [s.prompt for s in samples])
    before = vlm.fingerprint()
    with wings.attached(vlm), torch.no_grad():
        said = {"logits": vlm.forward(inputs).logits, "text": vlm.generate(prompt, max_new_tokens=8)}
        said["trace"] = vlm.trace(inputs, ["blocks.3.resid_post"])["blocks.3.resid_post"]
    return keep(vlm, wings), inputs, prompt, said | {"fingerprint": before}


def test_every_pass_goes_through_them(found):
    vlm, inputs, prompt, said = found
    with torch.no_grad():
        assert torch.equal(vlm.forward(inputs).logits, said["logits"])
        assert torch.equal(vlm.model(**inputs.tensors).logits, said["logits"])
    assert vlm.generate(prompt, max_new_tokens=8) == said["text"]
    assert torch.equal(vlm.trace(inputs, ["blocks.3.resid_post"])["blocks.3.resid_post"], said["trace"])
    one = vlm.prepare([inputs.samples[0].images], [inputs.samples[0].prompt])
    assert "".join(vlm.stream(one, max_new_tokens=8)).strip() == said["text"][0]  # a thread of its own


def test_a_copy_has_its_own(found):
    vlm, inputs, _, said = found
    other = VLM(copy.deepcopy(vlm.model), vlm.processor)
    with torch.no_grad():
        vlm_says = other.forward(inputs).logits
        assert torch.equal(vlm_says, said["logits"])
        other.model.wings.learners["0"]["visual"].B_o.weight.zero_()
        assert not torch.equal(other.forward(inputs).logits, said["logits"])
        assert torch.equal(vlm.forward(inputs).logits, said["logits"])


def test_they_are_a_part_of_the_model(found):
    vlm, *_, said = found
    assert vlm.fingerprint() != said["fingerprint"]
    assert any(name.startswith("wings.") for name in vlm.model.state_dict())


def test_the_same_wings_may_be_attached_again_to_be_trained_and_others_may_not(found):
    vlm, inputs, _, said = found
    with vlm.model.wings.attached(vlm), torch.no_grad():
        assert torch.equal(vlm.forward(inputs).logits, said["logits"])
    with trained(vlm).attached(vlm), pytest.raises(UserError, match="attached already"):
        vlm.forward(inputs)


def test_what_would_lose_them_is_refused(found, tmp_path):
    vlm = found[0]
    with pytest.raises(UserError, match=r"wings\.save"):
        vlm.save(tmp_path)
    with pytest.raises(UserError, match="decoder alone"):
        vlm.anatomy.decoder(inputs_embeds=torch.zeros(1, 3, 128))
    with pytest.raises(UserError, match="wings already"):
        keep(vlm, vlm.model.wings)
    with pytest.raises(UserError, match="made for"):
        keep(open_vlm(model=build("llava")[0]), vlm.model.wings)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mllama"])
def test_every_family_keeps_them(name):
    model, row = build(name)
    vlm = open_vlm(model=model)
    wings, inputs = trained(vlm), vlm.from_tensors(**row)
    with torch.no_grad():
        with wings.attached(vlm):
            wanted = vlm.forward(inputs, use_cache=False).logits
        keep(vlm, wings)
        assert torch.equal(vlm.forward(inputs, use_cache=False).logits, wanted)

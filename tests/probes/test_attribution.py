"""Direct logit attribution: parts sum to the model's logits on every family, and TransformerLens says the same."""

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.probes.attribution import direct_attribution, frozen_norm, transformer_lens_attribution
from chiasm.scenes.errors import UserError
from torch import nn

from ..models.families import FAMILIES, batch

BLOCKS_IN_ONE = {"gemma3", "blip2", "mllama", "qwen3_5"}
"""Norms behind the sublayers, no `mlp` module, gates, linear attention."""


@pytest.mark.parametrize("width", [8, 9])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_the_frozen_norm_is_linear_and_sums_to_the_norm(kind, width):
    torch.manual_seed(0)
    norm = kind(width)
    for parameter in norm.parameters():
        parameter.data = torch.randn_like(parameter)
    parts = torch.randn(4, 3, width)
    found, bias = frozen_norm(norm, parts.sum(0), parts)
    torch.testing.assert_close(found.sum(0) + bias, norm(parts.sum(0)))
    torch.testing.assert_close(frozen_norm(norm, parts.sum(0), 2 * parts)[0], 2 * found)


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_sum_to_the_models_logits(name):
    model, joined, _ = batch(name, "left")
    vlm = open_vlm(model=model)
    torch.manual_seed(1)
    for parameter in vlm.anatomy.norm.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    inputs = vlm.from_tensors(**joined)
    with torch.no_grad():
        logits = vlm.forward(inputs, use_cache=False).logits[:, -1]
    found = direct_attribution(vlm, inputs)
    assert torch.equal(found.tokens, logits.argmax(-1))
    torch.testing.assert_close(found.logits, logits.amax(-1))
    torch.testing.assert_close(found.values.sum(1) + found.constant, found.logits, rtol=1e-3, atol=1e-4)
    both = 1 + 2 * vlm.anatomy.n_layers
    assert (len(found.parts) < both) if name in BLOCKS_IN_ONE else (len(found.parts) == both)


@pytest.mark.parametrize("name", ["llava", "idefics3", "qwen2_5_vl"])
def test_transformer_lens_agrees(name):
    pytest.importorskip("transformer_lens")
    model, joined, _ = batch(name, "right")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    tokens, positions = torch.tensor([7, 50]), torch.tensor([2, 9])
    ours = direct_attribution(vlm, inputs, tokens=tokens, positions=positions)
    theirs = transformer_lens_attribution(vlm, inputs, tokens=tokens, positions=positions)
    assert ours.parts == theirs.parts and len(ours.parts) == 1 + 2 * vlm.anatomy.n_layers
    torch.testing.assert_close(ours.values, theirs.values, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)


def test_by_hand_with_the_scale_transformer_lens_caches():
    pytest.importorskip("transformer_lens")
    model, joined, _ = batch("llava", "right")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    tensors = dict(inputs.tensors)
    with torch.no_grad():
        _, cache = vlm.transformer_lens().run_with_cache(tensors.pop("input_ids"), **tensors)
    found = direct_attribution(vlm, inputs, tokens=torch.tensor([7, 50]), positions=torch.tensor([2, 9]))
    for row, (token, at) in enumerate(((7, 2), (50, 9))):
        direction = vlm.anatomy.norm.weight * vlm.anatomy.unembedding.weight[token]
        part = cache["blocks.1.hook_mlp_out"][row, at] @ direction / cache["ln_final.hook_scale"][row, at, 0]
        assert found.values[row, found.parts.index("blocks.1.mlp_out")].item() == pytest.approx(part.item(), rel=1e-3)


def test_bad_input_is_one_line():
    model, joined, _ = batch("llava", "right")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    with pytest.raises(UserError, match="positions"):
        direct_attribution(vlm, inputs, positions=torch.tensor([0, 999]))
    with pytest.raises(UserError, match="tokens"):
        direct_attribution(vlm, inputs, tokens=torch.tensor([0]))
    model, joined, _ = batch("smolvlm", "right")
    vlm = open_vlm(model=model)
    with pytest.raises(UserError, match="no bridge"):
        transformer_lens_attribution(vlm, vlm.from_tensors(**joined))

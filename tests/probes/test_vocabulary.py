"""The logit lens and its measures: by hand, against scipy, and against every family's own logits."""

import math

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.probes.vocabulary import decode_logits, decode_states, entropy, kl_divergence, widened
from scipy.stats import entropy as scipy_entropy
from torch import nn

from ..models.families import FAMILIES, build


def distributions(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double().mul(3).softmax(-1)


def test_entropy_and_divergence_are_scipys():
    p, q = distributions(4, 7), distributions(4, 7, seed=1)
    torch.testing.assert_close(entropy(p), torch.tensor(scipy_entropy(p.numpy(), axis=-1)))
    torch.testing.assert_close(kl_divergence(p, q), torch.tensor(scipy_entropy(p.numpy(), q.numpy(), axis=-1)))
    assert (kl_divergence(p, p) == 0).all()
    assert entropy(torch.full((9,), 1 / 9)).item() == pytest.approx(math.log(9), abs=1e-6)


def test_zero_probabilities_count_nothing():
    p, q = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.25, 0.0, 0.75, 0.0])
    assert entropy(p).item() == pytest.approx(math.log(2)) and entropy(torch.tensor([1.0, 0.0])) == 0
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(2))
    assert torch.isfinite(kl_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])))


def test_a_weight_and_its_module_decode_alike_and_a_bias_counts():
    torch.manual_seed(0)
    linear, norm, x = nn.Linear(6, 11), nn.LayerNorm(6), torch.randn(3, 6)
    bare = nn.Linear(6, 11, bias=False)
    bare.weight = linear.weight
    by_hand = torch.softmax(norm(x) @ linear.weight.T + linear.bias, -1)
    torch.testing.assert_close(decode_states(x, linear, norm), by_hand)
    torch.testing.assert_close(decode_states(x, linear.weight, norm), decode_states(x, bare, norm))
    torch.testing.assert_close(decode_states(norm(x), linear, None), by_hand)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_decoded_in_fp32(dtype):
    torch.manual_seed(0)
    linear, norm = nn.Linear(16, 50, bias=False).to(dtype), nn.RMSNorm(16).to(dtype)
    x = (torch.randn(4, 16) * 3000).to(dtype)  # the square overflows in fp16
    found = decode_states(x, linear, norm)
    y = x.double()
    y = y / (y.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), (y @ linear.weight.double().T).softmax(-1), rtol=1e-4, atol=1e-7)
    assert linear.weight.dtype == dtype and norm.weight.dtype == dtype
    assert decode_states(x, linear.weight, norm).dtype == torch.float32


def test_what_is_wide_already_is_not_copied():
    linear = nn.Linear(4, 5)
    widened(linear)(torch.randn(2, 4)).sum().backward()
    assert linear.weight.grad is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_block_decodes_to_the_models_own_logits(name):
    model, inputs = build(name)
    vlm = open_vlm(model=model)
    anatomy, batch = vlm.anatomy, vlm.from_tensors(**inputs)
    torch.manual_seed(1)
    for parameter in anatomy.norm.parameters():  # random gains and biases: a norm left out or taken twice cannot pass
        parameter.data += torch.randn_like(parameter)
    trace = vlm.trace(batch, ["blocks.*.resid_post", "final"])
    last = trace[f"blocks.{anatomy.n_layers - 1}.resid_post"]
    with torch.no_grad():
        logits = vlm.forward(batch, use_cache=False).logits
        torch.testing.assert_close(decode_logits(last, anatomy.unembedding, anatomy.norm), logits)
        torch.testing.assert_close(decode_logits(trace["final"], anatomy.unembedding, None), logits)
        assert not torch.allclose(decode_logits(last, anatomy.unembedding, None), logits, atol=1e-3)
        assert not torch.allclose(decode_logits(trace["final"], anatomy.unembedding, anatomy.norm), logits, atol=1e-3)

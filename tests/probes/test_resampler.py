"""The resampler: shapes, sizes, what it is blind to, and attention written out."""

import pytest
import torch
from chiasm.probes.embeddings import Resampler


def make(**more):
    torch.manual_seed(0)
    return Resampler(12, 8, 5, **more).eval()


def states(batch=2, length=7, seed=0):
    return torch.randn(batch, length, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 7, 40])
def test_queries_out_whatever_comes_in(length):
    assert make()(states(3, length)).shape == (3, 5, 8)


def test_the_order_of_the_states_does_not_matter():
    x, order = states(), torch.randperm(7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(make()(x), make()(x[:, order]))


def test_output_tokens_have_mean_0_and_variance_1_unless_asked_not_to():
    with torch.no_grad():
        out, plain = make()(states()), make(normalise_output=False)(states())
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(-1, correction=0), torch.ones(2, 5), atol=1e-3, rtol=0)
    assert (plain.var(-1, correction=0) - 1).abs().max() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen(side):
    x, rubbish = states(), 100 * states(2, 3, seed=9)
    real, none = torch.ones(2, 7, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    padded, mask = (
        (torch.cat([rubbish, x], 1), torch.cat([none, real], 1)) if side == "left" else (torch.cat([x, rubbish], 1), torch.cat([real, none], 1))
    )  # fmt: skip
    model = make()
    torch.testing.assert_close(model(padded, mask), model(x, real))
    torch.testing.assert_close(model(x, real), model(x))
    assert torch.isfinite(model(x, torch.zeros(2, 7, dtype=torch.bool))).all()  # queries remain as keys


def test_parameters_at_the_papers_sizes():
    """Of the published configuration: width and output 1024 (1536 for segmentation), 4096 in."""
    for out, queries, known in ((1024, 1, 7_875_584), (1024, 576, 8_464_384), (1536, 576, 15_055_872)):
        with torch.device("meta"):
            model = Resampler(4096, out, queries)
        assert sum(p.numel() for p in model.parameters()) == known


def test_attention_written_out():
    model, x = make(heads=2, head_dim=3, width=6), states(1)
    z, s = model.queries[None], model.proj_in(x)
    keys = torch.cat([model.norm_states(s), model.norm_queries(z)], 1)
    q, (k, v) = model.to_q(model.norm_queries(z)), model.to_kv(keys).split(6, -1)
    mixed = []
    for h in (slice(0, 3), slice(3, 6)):
        mixed.append(((q[..., h] @ k[..., h].mT) / 3**0.5).softmax(-1) @ v[..., h])
    z = z + model.to_out(torch.cat(mixed, -1))
    z = z + model.feed_forward(z)
    torch.testing.assert_close(model(x), model.norm_out(model.proj_out(z)))

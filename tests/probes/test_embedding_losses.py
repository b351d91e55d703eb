"""The losses against their formulas written out, and what masked rows may not do."""

import math

import pytest
import torch
from chiasm.probes.embeddings import embedding_loss, info_nce


def pair(n=4, seed=0, shape=(3, 5)):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=g), torch.randn(n, *shape, generator=g)


def test_info_nce_written_out():
    p, t = pair()
    a, b = (torch.nn.functional.normalize(x.flatten(1), dim=1) for x in (p, t))
    logits = math.exp(2.0) * a @ b.T
    known = torch.stack([torch.logsumexp(logits[i], 0) - logits[i, i] for i in range(4)])
    torch.testing.assert_close(info_nce(p, t, 2.0), known)
    assert (info_nce(p, t, 2.0) >= 0).all()
    back = torch.stack([torch.logsumexp(logits[:, i], 0) - logits[i, i] for i in range(4)])
    torch.testing.assert_close(info_nce(p, t, 2.0, symmetric=True), (known + back) / 2)


def test_info_nce_at_its_ends():
    p, t = pair()
    torch.testing.assert_close(info_nce(p, t, -50.0), torch.full((4,), math.log(4)))
    torch.testing.assert_close(info_nce(p[:1], t[:1], 2.0), torch.zeros(1))
    torch.testing.assert_close(info_nce(p, t, math.log(100)), info_nce(p, t, 1000.0))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(info_nce(p[order], t[order], 2.0), info_nce(p, t, 2.0)[order])


def test_shards_are_the_whole():
    p, t = pair(6)
    parts = [info_nce(p[i : i + 2], t[i : i + 2], 2.0, candidates=t, offset=i) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), info_nce(p, t, 2.0))


def test_the_same_picture_is_no_negative():
    p, t = pair(3)
    t[2] = t[0]
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    assert info_nce(p, t, 2.0, duplicate=same)[0] == pytest.approx(float(info_nce(p[:2], t[:2], 2.0)[0]), rel=1e-6)


def test_total_and_parts():
    p, t = pair()
    total, smooth, contrastive = embedding_loss(p, t, torch.ones(4), torch.tensor(2.0))
    off = (p - t).abs()
    torch.testing.assert_close(smooth, torch.where(off < 1, 0.5 * off**2, off - 0.5).mean())
    torch.testing.assert_close(contrastive, 0.3 * info_nce(p, t, 2.0).mean())
    torch.testing.assert_close(total, smooth + contrastive)
    assert embedding_loss(p, t, torch.ones(4), 2.0, 0.0)[2] == 0


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1)])
def test_masked_rows_are_as_if_absent_even_when_they_are_nan(shape):
    p, t = pair()
    t[1] = torch.nan
    p.requires_grad_()
    mask = torch.tensor([1, 0, 1, 1]).view(shape)
    found = embedding_loss(p, t, mask, 2.0)
    keep = [0, 2, 3]
    for a, b in zip(found, embedding_loss(p[keep], t[keep], torch.ones(3), 2.0), strict=True):
        torch.testing.assert_close(a, b)
    found[0].backward()
    assert torch.isfinite(p.grad).all() and (p.grad[1] == 0).all() and (p.grad[0] != 0).any()


def test_nothing_to_learn_is_zero_with_a_zero_gradient():
    p, t = pair()
    p.requires_grad_()
    scale = torch.tensor(2.0, requires_grad=True)
    found = embedding_loss(p, torch.full_like(t, torch.nan), torch.zeros(4), scale)
    assert [float(x.detach()) for x in found] == [0, 0, 0]
    sum(found).backward()
    assert (p.grad == 0).all() and scale.grad == 0


def test_shapes_that_do_not_fit():
    p, t = pair()
    with pytest.raises(ValueError, match="do not fit"):
        embedding_loss(p, t[:3], torch.ones(4), 2.0)

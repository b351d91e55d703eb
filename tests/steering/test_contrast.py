"""The formula of the contrast, and schedules of alpha, by hand."""

import math

import pytest
import torch
from chiasm.scenes.errors import UserError
from chiasm.steering.contrast import contrast
from chiasm.steering.schedules import M3ID, guidance

INF = torch.inf
POSITIVE = torch.tensor([[2.0, 1.0, 0.0, -3.0]])
NEGATIVE = torch.tensor([[2.5, 0.0, 1.0, -9.0]])


def rows(n=5, v=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, v, generator=generator) * 3, torch.randn(n, v, generator=generator) * 3


def test_by_hand():
    found = contrast(POSITIVE, NEGATIVE, alpha=2.0, beta=0.1)
    # 3 l+ - 2 l-; ln 0.1 = -2.30, so that what lies below 2 - 2.30 is out
    torch.testing.assert_close(found, torch.tensor([[1.0, 3.0, -2.0, -INF]]))
    assert contrast(POSITIVE, NEGATIVE, alpha=2.0, beta=None)[0, 3] == 3 * -3 - 2 * -9
    assert found.dtype == torch.float32 == contrast(POSITIVE.half(), NEGATIVE.half(), alpha=1.0, beta=None).dtype


def test_without_strength_it_is_the_positive_branch():
    positive, negative = rows()
    assert torch.equal(contrast(positive, negative, alpha=0.0, beta=None), positive)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 3.0])
def test_beta_one_leaves_the_best_token(alpha):
    positive, negative = rows()
    found = contrast(positive, negative, alpha=alpha, beta=1.0)
    assert torch.equal(torch.isfinite(found).sum(-1), torch.ones(5).long())
    assert torch.equal(found.argmax(-1), positive.argmax(-1))


@pytest.mark.parametrize("alpha", [0.0, 0.7, 50.0])
def test_equal_branches_give_the_positive_to_the_bit(alpha):
    positive, _ = rows()
    found = contrast(positive, positive.clone(), alpha=alpha, beta=0.1)
    kept = torch.isfinite(found)
    assert torch.equal(found[kept], positive[kept])


def test_constants_of_a_row_change_nothing():
    positive, negative = rows()
    plain = contrast(positive, negative, alpha=1.5, beta=0.2).softmax(-1)
    for moved in (
        contrast(positive + 7, negative, alpha=1.5, beta=0.2),
        contrast(positive, negative - 4, alpha=1.5, beta=0.2),
        contrast(positive.log_softmax(-1), negative.log_softmax(-1), alpha=1.5, beta=0.2),
    ):
        torch.testing.assert_close(moved.softmax(-1), plain, atol=1e-5, rtol=0)


def test_the_mask_is_of_the_positive_branch_and_shrinks_with_beta():
    positive, negative = rows()
    sizes = []
    for beta in (1e-6, 0.01, 0.1, 0.5, 1.0):
        kept = torch.isfinite(contrast(positive, negative, alpha=1.0, beta=beta))
        assert torch.equal(kept, torch.isfinite(contrast(positive, negative.flip(0), alpha=3.0, beta=beta)))
        p = positive.softmax(-1)
        assert torch.equal(kept, p >= beta * p.amax(-1, keepdim=True) * (1 - 1e-6))
        assert kept.gather(1, positive.argmax(-1, keepdim=True)).all()
        sizes.append(int(kept.sum()))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] == len(positive)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("beta", [None, 0.1])
def test_infinities_never_meet(alpha, beta):
    positive = torch.tensor([[1.0, -INF, -INF, 0.9]])
    negative = torch.tensor([[0.5, -INF, 2.0, -INF]])
    found = contrast(positive, negative, alpha=alpha, beta=beta)
    assert not found.isnan().any() and (found[0, 1:3] == -INF).all()
    assert found[0, 3] == pytest.approx(0.9)  # forbidden in the negative alone: not contrasted


def test_a_strength_for_each_row():
    positive, negative = rows(2)
    found = contrast(positive, negative, alpha=torch.tensor([[0.0], [2.0]]), beta=None)
    assert torch.equal(found[0], positive[0])
    torch.testing.assert_close(found[1], 3 * positive[1] - 2 * negative[1])


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf"), "1"])
def test_alpha_out_of_range(alpha):
    with pytest.raises(UserError, match=r"alpha=.* must be 0"):
        contrast(POSITIVE, NEGATIVE, alpha=alpha, beta=None)


@pytest.mark.parametrize("beta", [0, 0.0, -1, 1.0001, float("nan")])
def test_beta_out_of_range(beta):
    with pytest.raises(UserError, match=r"beta=.* must be in \(0, 1\], or None"):
        contrast(POSITIVE, NEGATIVE, alpha=1.0, beta=beta)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(1, 3\)"):
        contrast(POSITIVE, NEGATIVE[:, :3], alpha=1.0, beta=None)


def test_m3id_grows_from_the_first_token_on():
    assert M3ID(0.02)(1, POSITIVE) == pytest.approx(math.exp(0.02) - 1)
    gamma = math.exp(-0.02 * 100)
    assert M3ID(0.02)(100, POSITIVE) == pytest.approx((1 - gamma) / gamma)
    assert M3ID(0.0)(5, POSITIVE) == 0


def test_m3id_gated_by_confidence_contrasts_unsure_rows_only():
    logits = torch.tensor([[9.0, 0, 0], [0.1, 0, 0]])
    alpha = M3ID(0.5, confidence=0.6)(2, logits)
    torch.testing.assert_close(alpha, torch.tensor([[0.0], [math.expm1(1.0)]]))


def test_schedules_out_of_range():
    with pytest.raises(UserError, match="decay"):
        M3ID(-1)
    with pytest.raises(UserError, match="confidence"):
        M3ID(confidence=2)
    assert guidance(1.1) == pytest.approx(0.1)
    with pytest.raises(UserError, match="guidance"):
        guidance(0.5)

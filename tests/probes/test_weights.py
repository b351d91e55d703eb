"""Wanda scores, masks and their overlap, by hand and by the page's checks."""

import pytest
import torch
from chiasm.probes.weights import chance_iou, common_mask, kept_iou, prune_mask, wanda_scores
from chiasm.scenes.errors import UserError


def test_scores_by_hand():
    found = wanda_scores(torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([4.0, 36.0]), 4)
    assert found.tolist() == [[1.0, 6.0], [3.0, 1.5]]


def test_each_row_prunes_the_floor_and_ties_the_lower_index():
    mask = prune_mask(torch.tensor([[1.0, 1, 1, 1, 0]]), sparsity=0.5)
    assert mask.tolist() == [[True, False, False, False, True]]
    for sparsity, wanted in ((0.3, 3), (0.7, 7), (0.55, 5), (0, 0)):
        assert (prune_mask(torch.rand(4, 10), sparsity=sparsity).sum(1) == wanted).all()


def test_equal_norms_are_magnitude_and_scalings_change_nothing():
    g = torch.Generator().manual_seed(0)
    w, s = torch.randn(6, 20, generator=g), torch.rand(20, generator=g)
    mask = prune_mask(wanda_scores(w, s, 3), sparsity=0.5)
    assert torch.equal(prune_mask(wanda_scores(w, torch.ones(20), 3), sparsity=0.3), prune_mask(w.abs(), sparsity=0.3))
    assert torch.equal(mask, prune_mask(wanda_scores(w, 16 * s, 3), sparsity=0.5))
    assert torch.equal(mask, prune_mask(wanda_scores(w * torch.tensor([[4.0]] * 6), s, 3), sparsity=0.5))


def test_iou_and_the_common_subnetwork():
    g = torch.Generator().manual_seed(0)
    a, b, c = (prune_mask(torch.rand(300, 400, generator=g), sparsity=0.5) for _ in range(3))
    assert kept_iou(a, a) == 1 and kept_iou(a, ~a) == 0 and kept_iou(a, b) == kept_iou(b, a)
    assert kept_iou(a, b).item() == pytest.approx(chance_iou(0.5), abs=0.01)
    common = common_mask([a, b, c])
    assert torch.equal(common, common_mask([c, a, b])) and torch.equal(common, common_mask([common, a]))
    assert common.sum() >= a.sum()
    assert kept_iou(common, a) == (~common).sum().double() / (~a).sum()
    assert (~common).double().mean().item() == pytest.approx(0.5**3, abs=0.01)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_bad_sparsity_is_one_line(sparsity):
    with pytest.raises(UserError, match="at least 0 and less than 1"):
        prune_mask(torch.rand(2, 3), sparsity=sparsity)

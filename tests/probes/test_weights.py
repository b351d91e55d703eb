"""Wanda scores, masks and their overlap, by hand and by the page's checks."""

import pytest
import torch
from chiasm.probes.weights import (
    chance_iou,
    common_mask,
    drawn,
    exclusive_mask,
    kept_iou,
    pack,
    prune_mask,
    prune_n_of_m,
    prune_whole,
    unpack,
    wanda_scores,
)  # fmt: skip
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


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_masks_are_those_of_a_stable_sort(sparsity, levels):
    g = torch.Generator().manual_seed(0)
    for shape in ((5, 17), (3, 200)):
        scores = torch.randint(0, levels, shape, generator=g).float()
        count = int(shape[1] * sparsity + 1e-9)
        wanted = torch.zeros(shape, dtype=torch.bool).scatter_(1, scores.argsort(dim=1, stable=True)[:, :count], True)
        assert torch.equal(prune_mask(scores, sparsity=sparsity), wanted)


def test_n_of_m_prunes_the_lowest_of_every_group():
    scores = torch.tensor([[4.0, 1, 3, 2, 9, 9, 9, 1], [1, 2, 3, 4, 4, 3, 2, 1]])
    assert prune_n_of_m(scores, 2, 4).int().tolist() == [[0, 1, 0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0, 1, 1]]
    for n, m in ((4, 4), (1, 3), (-1, 4)):
        with pytest.raises(UserError, match=f"{n}:{m} sparsity"):
            prune_n_of_m(scores, n, m)


def test_one_threshold_for_the_whole_matrix():
    scores = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    assert prune_whole(scores, sparsity=0.5).tolist() == [[True] * 4, [False] * 4]
    g = torch.Generator().manual_seed(0)
    assert prune_whole(torch.rand(50, 60, generator=g), sparsity=0.3).sum() == 900


def test_drawn_and_exclusive_places():
    a = torch.tensor([[True, False, True, False]])  # pruned
    b = torch.tensor([[True, True, False, False]])
    assert exclusive_mask(a, b).tolist() == [[False, True, False, False]]
    g = torch.Generator().manual_seed(0)
    among = torch.rand(20, 30, generator=g) > 0.5
    mask = drawn(among, 50, g)
    assert mask.sum() == 50 and not (mask & ~among).any()
    with pytest.raises(UserError, match="601 weights cannot be drawn"):
        drawn(torch.ones(20, 30), 601, g)


def test_bits_come_back():
    mask = torch.rand(7, 11, generator=torch.Generator().manual_seed(0)) > 0.5
    assert len(pack(mask)) == 10 and pack(mask).dtype == torch.uint8
    assert torch.equal(unpack(pack(mask), (7, 11)), mask)


def test_independent_norms_overlap_far_more_than_random_masks():
    """Gaussian weights, log-normal norms of sigma 0.5: 0.65 at sparsity 0.5, 0.81 at 0.3."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(400, 400, generator=g)
    norms = [torch.randn(400, generator=g).mul(0.5).exp().square() for _ in range(2)]
    for sparsity, wanted in ((0.5, 0.65), (0.3, 0.81)):
        masks = [prune_mask(wanda_scores(weight, s, 1), sparsity=sparsity) for s in norms]
        assert kept_iou(*masks).item() == pytest.approx(wanted, abs=0.015)
        assert kept_iou(*masks) > chance_iou(sparsity) + 0.2

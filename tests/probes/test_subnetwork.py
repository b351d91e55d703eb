"""Removal masks of equal size, bits, and a model put back as it was."""

import pytest
import torch
from chiasm.models.linear_inputs import linear_sites
from chiasm.probes.subnetwork import KINDS, removal_mask, sequential_masks, weights_removed
from chiasm.probes.weights import pack, prune_mask, prune_n_of_m, unpack, wanda_scores
from chiasm.scenes.errors import UserError

from .measuring import sample, tiny_vlm


def test_controls_are_of_equal_size():
    g = torch.Generator().manual_seed(0)
    w, s = torch.randn(7, 11, generator=g), torch.rand(2, 11, generator=g)
    masks = [removal_mask(w, s, 3, sparsity=0.5, kind=kind) for kind in KINDS]
    assert len({int(m.sum()) for m in masks}) == 1 and masks[0].sum() >= 7 * 5
    assert w.abs()[masks[1]].max() <= w.abs()[~masks[1]].min()
    with pytest.raises(UserError, match="'best' is not one of"):
        removal_mask(w, s, 3, sparsity=0.5, kind="best")


def test_weights_are_removed_and_put_back_on_errors_too():
    linears = linear_sites(tiny_vlm().anatomy)
    before = {site: m.weight.clone() for site, m in linears.items()}
    masks = {site: pack(w > 0) for site, w in before.items()}
    with pytest.raises(RuntimeError), weights_removed(linears, masks):
        assert all((m.weight <= 0).all() for m in linears.values())
        raise RuntimeError
    assert all(torch.equal(m.weight, before[site]) for site, m in linears.items())


def test_sequential_masks_are_of_inputs_behind_the_pruned_blocks():
    vlm = tiny_vlm()
    batches = [vlm.prepare_samples([sample(0), sample(1)]), vlm.prepare_samples([sample(5)])]
    before = vlm.fingerprint()
    masks = sequential_masks(vlm, batches, sparsity=0.5, group="image")
    assert vlm.fingerprint() == before
    linears = linear_sites(vlm.anatomy)
    assert list(masks) == list(linears)

    def by_hand(site):
        total = 0
        for inputs in batches:
            x = vlm.trace(inputs, [site])[site][inputs.spans.visual].double()
            total = total + x.square().sum(0)
        return prune_mask(wanda_scores(linears[site].weight, total, 3), sparsity=0.5)

    first, third = (f"blocks.{i}.in.mlp.down_proj" for i in (0, 2))
    assert torch.equal(unpack(masks[first], linears[first].weight.shape), by_hand(first))
    dense = by_hand(third)
    with weights_removed(linears, {k: v for k, v in masks.items() if not k.startswith("blocks.2.")}):
        pruned = by_hand(third)
    assert torch.equal(unpack(masks[third], linears[third].weight.shape), pruned) and not torch.equal(pruned, dense)


def test_sequential_variants():
    vlm = tiny_vlm()
    batches = [vlm.prepare_samples([sample(0)])]
    linears = linear_sites(vlm.anatomy)
    masks = sequential_masks(vlm, batches, sparsity=lambda site: 0.25 if ".mlp." in site else 0.5, group="both")
    shares = {site: unpack(bits, linears[site].weight.shape).double().mean() for site, bits in masks.items()}
    assert all(share == (0.25 if ".mlp." in site else 0.5) for site, share in shares.items())
    masks = sequential_masks(
        vlm, batches, sparsity=0.5, group="text", prune=lambda scores, sparsity: prune_n_of_m(scores, 2, 4)
    )
    for site, bits in masks.items():
        assert (unpack(bits, linears[site].weight.shape).reshape(-1, 4).sum(1) == 2).all()
    with pytest.raises(UserError, match="'all' is not one of"):
        sequential_masks(vlm, batches, sparsity=0.5, group="all")

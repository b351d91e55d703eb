"""Removal masks of equal size, bits, and a model put back as it was."""

import pytest
import torch
from chiasm.models.trace import linear_sites
from chiasm.probes.subnetwork import KINDS, pack, removal_mask, unpack, weights_removed
from chiasm.scenes.errors import UserError

from .measuring import tiny_vlm


def test_bits_and_equal_sizes():
    g = torch.Generator().manual_seed(0)
    w, s = torch.randn(7, 11, generator=g), torch.rand(2, 11, generator=g)
    masks = [removal_mask(w, s, 3, sparsity=0.5, kind=kind) for kind in KINDS]
    assert len({int(m.sum()) for m in masks}) == 1 and masks[0].sum() >= 7 * 5
    assert all(torch.equal(unpack(pack(m), (7, 11)), m) and len(pack(m)) == 10 for m in masks)
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

"""The weights that image and text share, controls of equal size, and a model with the rest removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..scenes.errors import UserError
from .weights import common_mask, prune_mask, wanda_scores

KINDS = ("common", "magnitude", "random")


def pack(mask: Tensor) -> np.ndarray:
    """A bool mask as bits, an eighth of a byte a weight."""
    return np.packbits(mask.cpu().numpy(), axis=None)


def unpack(bits: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits, count=int(np.prod(shape))).astype(bool)).view(shape)


def removal_mask(weight: Tensor, squares: Tensor, n: int, *, sparsity: float, kind: str, seed: int = 0) -> Tensor:
    """What to remove from weight (out, in): all but what image and text masks both keep ("common"; squares (2, in)), or as
    many weights of the matrix, the smallest ("magnitude") or drawn ("random"). The common one is sparser than `sparsity`."""
    if kind not in KINDS:
        raise UserError(f"removal kind {kind!r} is not one of {', '.join(KINDS)}")
    common = common_mask([prune_mask(wanda_scores(weight, s, n), sparsity=sparsity) for s in squares])
    if kind == "common":
        return common
    generator = torch.Generator().manual_seed(seed)
    by = weight.detach().abs().float().cpu() if kind == "magnitude" else torch.rand(weight.shape, generator=generator)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[by.flatten().argsort(stable=True)[: int(common.sum())]] = True
    return mask.view(weight.shape)


@contextmanager
def weights_removed(linears: dict[str, nn.Linear], masks: dict[str, np.ndarray]) -> Iterator[None]:
    """While open, the masked weights (bit-packed by `pack`, by site) are zero; restored bit for bit, on errors too."""
    kept = {}
    try:
        with torch.no_grad():
            for site, bits in masks.items():
                weight = linears[site].weight
                mask = unpack(bits, tuple(weight.shape)).to(weight.device)
                kept[site] = mask, weight[mask].clone()
                weight[mask] = 0
        yield
    finally:
        with torch.no_grad():
            for site, (mask, values) in kept.items():
                linears[site].weight[mask] = values

"""Minimum description length of targets given states, as an online code from cumulative sums.

Source: Voita and Titov (arXiv 2003.12298), with Gaussian code lengths in the place of classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .cross_validation import ALPHAS
from .ridge import Moments, ridge_path, squared_error


def saved_bits(blocks: Sequence[Moments], groups: Sequence[slice], alphas: Sequence[float] = ALPHAS) -> Tensor:
    """(..., G) bits saved for each target number by an online code, against the Gaussian of all targets' mean and variance.

    blocks: moments of consecutive parts of the data, none of them empty; groups: outputs that belong together and have one
    variance. Each block is sent in a Gaussian code about the ridge prediction from all blocks before it. Its variance, and
    the penalty, are those with which the block before was predicted best, one sample's worth of the marginal variance
    added, so that a target which has been constant so far has a finite code; the first two blocks, which have no such
    predecessor, are sent in the marginal code. Above 0 the states compress the targets, and more data more; for targets
    that have nothing to do with them it is at most 0. NaN for targets that do not vary.
    """
    whole = blocks[0]
    for block in blocks[1:]:
        whole = whole.plus(block)
    n, mean = whole.n[..., None], whole.y / whole.n[..., None]
    prior = _grouped(whole.centred().yy / n, groups)
    saved = torch.zeros_like(prior)
    prefix, path, last = blocks[0], None, None
    for block in blocks[1:]:
        path = ridge_path(prefix, alphas, relative=True, standardise=True)
        error = _grouped(squared_error(block, path.coef, path.intercept), groups)  # (A, ..., G)
        count = block.n[..., None]
        if last is not None:
            before, size = last
            best = before.argmin(0, keepdim=True)
            variance = (before.gather(0, best)[0] + prior) / (size + 1)
            spent = 0.5 * torch.log2(variance) * count + error.gather(0, best)[0] / (2 * math.log(2) * variance)
            about = block.yy - 2 * mean * block.y + count * mean.square()
            plain = 0.5 * torch.log2(prior) * count + _grouped(about, groups) / (2 * math.log(2) * prior)
            saved = saved + plain - spent
        last, prefix = (error, count), prefix.plus(block)
    return torch.where(prior > 0, saved / n, torch.nan)


def _grouped(values: Tensor, groups: Sequence[slice]) -> Tensor:
    """(..., M) -> (..., G) means over the outputs of each group."""
    return torch.stack([values[..., group].mean(-1) for group in groups], -1)

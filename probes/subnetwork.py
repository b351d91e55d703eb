"""The weights that image and text share, controls of equal size, and a model with the rest removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..models.linear_inputs import has_adapter, linear_sites
from ..scenes.errors import UserError
from .overlaps import SETS
from .weight_overlap import WeightOverlap
from .weights import common_mask, drawn, pack, prune_mask, prune_whole, unpack, wanda_scores

KINDS = ("common", "magnitude", "random")


def removal_mask(weight: Tensor, squares: Tensor, n: int, *, sparsity: float, kind: str, seed: int = 0) -> Tensor:
    """What to remove from weight (out, in): all but what image and text masks both keep ("common"; squares (2, in)), or as
    many weights of the matrix, the smallest ("magnitude") or drawn ("random"). The common one is sparser than `sparsity`."""
    if kind not in KINDS:
        raise UserError(f"removal kind {kind!r} is not one of {', '.join(KINDS)}")
    common = common_mask([prune_mask(wanda_scores(weight, s, n), sparsity=sparsity) for s in squares])
    if kind == "common":
        return common
    count = int(common.sum())
    if kind == "random":
        return drawn(torch.ones_like(common), count, torch.Generator().manual_seed(seed))
    return prune_whole(weight.detach().abs().float(), sparsity=count / common.numel())


@contextmanager
def weights_removed(linears: dict[str, nn.Module], masks: dict[str, Tensor]) -> Iterator[None]:
    """While open, the masked weights (by site, bit-packed by `weights.pack`) are zero; restored bit for bit, on errors too.

    Raises UserError for a linear with an adapter on it, whose weights are not its own.
    """
    kept = {}
    if adapted := next((site for site in masks if has_adapter(linears[site])), None):
        raise UserError(f"{adapted} carries an adapter, which would stay: merge it first (model.merge_and_unload())")
    try:
        with torch.no_grad():
            for site, bits in masks.items():
                weight = linears[site].weight
                mask = unpack(bits, weight.shape).to(weight.device)
                kept[site] = mask, weight[mask].clone()
                weight[mask] = 0
        yield
    finally:
        with torch.no_grad():
            for site, (mask, values) in kept.items():
                linears[site].weight[mask] = values


def sequential_masks(
    vlm,
    batches: Sequence,
    *,
    sparsity: float | Callable[[str], float],
    group: str,
    prune: Callable[..., Tensor] = prune_mask,
) -> dict[str, Tensor]:
    """Wanda masks of one set of tokens made block after block, each from inputs that have gone through the pruned blocks
    before it, as the source does: by site, bit-packed. `WeightOverlap` measures the dense model instead.

    batches: `Inputs`, read once a block. sparsity: one share, or a function of the site, for another one in the MLP. group:
    "image", "text" or "both". prune: `prune_mask`, or any function of scores and sparsity. The model is as it was
    afterwards. Raises UserError for another group, or one without tokens.
    """
    if group not in SETS:
        raise UserError(f"group {group!r} is not one of {', '.join(SETS)}")
    linears, found = linear_sites(vlm.anatomy), {}
    with ExitStack() as stack:
        for layer in range(vlm.anatomy.n_layers):
            probe = WeightOverlap()
            probe.sites = (f"blocks.{layer}.squares.*",)
            probe.attach(vlm.anatomy)
            for inputs in batches:
                probe.update(vlm.trace(inputs, probe.sites), inputs)
            squares, n = probe.input_squares()
            masks = {}
            for site, (image, text) in squares.items():
                if site.startswith(f"blocks.{layer}."):
                    of = {"image": image, "text": text, "both": image + text}[group]
                    share = sparsity(site) if callable(sparsity) else sparsity
                    masks[site] = pack(prune(wanda_scores(linears[site].weight, of, n), sparsity=share))
            stack.enter_context(weights_removed(linears, masks))
            found |= masks
    return found

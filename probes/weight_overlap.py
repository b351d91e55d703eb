"""Do pictures and text use the same weights of the language model?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from ..models.linear_inputs import square_sites, weight_of
from ..scenes.errors import UserError
from .keys import sample_keys
from .overlaps import Overlaps
from .probe import Probe
from .weights import check_sparsity

BLOCKS = 8
"""Blocks of samples for the jackknife; fewer than elsewhere, as every one costs a mask of every matrix."""


class WeightOverlap(Probe):
    """IoU of the weights kept by Wanda masks of visual tokens, text tokens and both, from one pass.

    Source: Shukor and Cord (arXiv 2405.16700). The inputs' squares are summed for every linear of the decoder whose input
    is the sequence (keys of cross-attention read patches and are left out), padding left out by its label.

    The table has one row a value. Columns:

    - quantity: "iou" (of the kept weights of two sets of tokens); "layers" (of one set's mask in a layer and in the layer
      `interval` later, of equal shape); "rank" (Spearman's correlation, over inputs, of the two sets' sums of squares: the
      activations alone, without weights or sparsity).
    - sparsity; pair ("image-text", "image-both", "text-both"; "image", "text", "both" for "layers"); layer (empty: mean over
      layers); matrix (its path in the block; empty: mean over matrices).
    - mean, low, high: with a jackknife interval over 8 blocks of samples; n: samples; chance: random masks, k / (2 - k);
      null: the same |W| with each set's input norms shuffled (independent activations), which overlap far more than random
      masks do; adjusted: (mean - null) / (1 - null).

    The dense model is measured: inputs are not recomputed after a layer was pruned (see `subnetwork.sequential_masks`).
    Cost: every input is squared once, where the model reads it; `compute` makes 6 masks of every matrix 10 times, of `rows` output rows at most.
    """

    name = "weight_overlap"
    sites = ("blocks.*.squares.*",)

    def __init__(
        self, *, sparsity: Sequence[float] = (0.3, 0.5), interval: int = 2, rows: int | None = 512, seed: int = 0
    ):  # fmt: skip
        """sparsity: shares of each row to prune. interval: layers between two whose masks are compared. rows: output rows of
        a matrix, evenly spaced, that IoU is taken of; None for all. seed: of the null's shuffles. Raises UserError."""
        super().__init__()
        if interval < 1 or (rows is not None and rows < 1):
            raise UserError(f"interval {interval} and rows {rows} must be 1 or more (rows: or None)")
        self.sparsity, self.interval = tuple(check_sparsity(s) for s in sparsity), interval
        self.rows, self.seed = rows, seed

    def attach(self, anatomy) -> None:
        self.use_device_of(anatomy)
        self._weights, self._at, start = {}, {}, 0
        for site, linear in square_sites(anatomy).items():
            site = site.replace(".squares.", ".in.", 1)
            self._weights[site] = weight_of(linear)
            self._at[site] = slice(start, start + linear.in_features)
            start += linear.in_features
        if not self._weights:
            raise UserError(f"weight overlap needs linear layers; the decoder of this {anatomy.family} has none")
        self.add_sum("squares", BLOCKS, 2, start)
        self.add_sum("count", BLOCKS, dtype=torch.long)

    def update(self, trace, inputs) -> None:
        spans = inputs.spans
        groups = torch.stack([spans.visual, spans.real & ~spans.mask("image")], 1)  # (B, 2, T)
        block = (sample_keys(inputs, groups.sum((1, 2)).double()) % BLOCKS).to(self.count.device)
        self.count.index_add_(0, block, torch.ones_like(block))
        dealt = torch.nn.functional.one_hot(block, BLOCKS).T.float()
        summed: dict[int, Tensor] = {}  # q, k and v have one tensor, gate and up another
        parts = []
        for site, at in self._at.items():
            site = site.replace(".in.", ".squares.", 1)
            if site not in trace:  # a cross-attention layer that had no picture to look at
                parts.append(dealt.new_zeros(BLOCKS, 2, at.stop - at.start))
                continue
            value = trace[site]
            if id(value) not in summed:
                own = dealt.to(value.device) @ value.flatten(1)
                summed[id(value)] = own.view(BLOCKS, 2, -1).to(dealt.device)
            parts.append(summed[id(value)])
        self.squares += torch.cat(parts, -1).to(self.squares)

    def input_squares(self) -> tuple[dict[str, Tensor], int]:
        """What was summed: by site (2, in), squares of image's and text's inputs over all tokens, fp64; and how many samples.
        Raises UserError where one of the two has no tokens."""
        n, sums = int(self.count.sum()), self.squares.sum(0).cpu()
        for group, total in zip(("image", "text"), sums.sum(1), strict=True):
            if not total > 0:
                raise UserError(f"weight overlap: no {group} tokens in {n} samples: give samples with both")
        return {site: sums[:, at] for site, at in self._at.items()}, n

    def compute(self) -> pd.DataFrame:
        self.input_squares()
        return self._overlaps().table(self.squares.cpu(), self.count.cpu(), self.seed)

    def against(self, other: WeightOverlap) -> pd.DataFrame:
        """The table with this one's image tokens as "image" and the other's as "text": whether two kinds of pictures use the
        same weights. Both must have measured the same samples (by id and prompt) on the same model."""
        if not torch.equal(self.count, other.count):
            raise UserError(f"two measurements of the same samples are needed: of {int(self.count.sum())} and {int(other.count.sum())}, dealt alike")  # fmt: skip
        squares = torch.stack([self.squares[:, 0], other.squares[:, 0]], 1).cpu()
        return self._overlaps().table(squares, self.count.cpu(), self.seed)

    def _overlaps(self) -> Overlaps:
        return Overlaps(self._weights, self._at, sparsity=self.sparsity, interval=self.interval, most_rows=self.rows)

"""Do pictures and text use the same weights of the language model?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..models.trace import linear_sites
from ..scenes.errors import UserError
from .intervals import jackknife
from .keys import sample_keys
from .probe import Probe
from .weights import chance_iou, check_sparsity, kept_iou, prune_mask, wanda_scores

BLOCKS = 8
"""Blocks of samples for the jackknife; fewer than elsewhere, as every one costs a mask of every matrix."""

PAIRS = (("image", "text"), ("image", "both"), ("text", "both"))


class WeightOverlap(Probe):
    """IoU of the weights kept by Wanda masks of visual tokens, text tokens and both, from one pass.

    Source: Shukor and Cord (arXiv 2405.16700). The inputs' squares are summed for every linear of the decoder whose input
    is the sequence (keys of cross-attention read patches and are left out), padding left out by its label.

    Rows: sparsity, pair ("image-text", "image-both", "text-both"), layer (empty: mean over layers), matrix (its path in the
    block; empty: mean over matrices); mean, low, high: IoU with a jackknife interval over 8 blocks of samples; n: samples;
    chance: random masks, k / (2 - k); null: the same |W| with each set's input norms shuffled (independent activations);
    adjusted: (IoU - null) / (1 - null). The dense model is measured: inputs are not recomputed after pruning a layer.
    """

    name = "weight_overlap"
    sites = ("blocks.*.in.*",)

    def __init__(self, *, sparsity: Sequence[float] = (0.3, 0.5), seed: int = 0):
        """sparsity: shares of each row to prune. seed: of the null's shuffles. Raises UserError."""
        super().__init__()
        self.sparsity, self.seed = tuple(check_sparsity(s) for s in sparsity), seed

    def attach(self, anatomy) -> None:
        self.use_device_of(anatomy)
        self._weights, self._at, start = {}, {}, 0
        for site, linear in linear_sites(anatomy).items():
            layer = int(site.split(".")[1])
            path = site.split(".in.")[1]
            if anatomy.attention_kinds[layer] == "cross" and path.split(".")[-1] in ("k_proj", "v_proj"):
                continue
            self._weights[site] = linear.weight
            self._at[site] = slice(start, start + linear.in_features)
            start += linear.in_features
        if not self._weights:
            raise UserError(f"weight overlap needs linear layers; the decoder of this {anatomy.family} has none")
        self.add_sum("squares", BLOCKS, 2, start)
        self.add_sum("count", BLOCKS, dtype=torch.long)

    def update(self, trace, inputs) -> None:
        spans = inputs.spans
        text = spans.real & ~spans.mask("image")
        groups = torch.stack([spans.visual, text], 1)  # (B, 2, T)
        block = (sample_keys(inputs, groups.sum((1, 2)).double()) % BLOCKS).to(self.count.device)
        self.count.index_add_(0, block, torch.ones_like(block))
        seen: dict[int, Tensor] = {}  # q, k and v read one tensor: its squares are summed once
        for site, at in self._at.items():
            if site not in trace:
                continue
            value = trace[site]
            if id(value) not in seen:
                rows = value.reshape(*spans.labels.shape, value.shape[-1])
                wide = torch.where(spans.real[..., None].to(rows.device), rows, 0).to(self.wide).square()
                seen[id(value)] = (groups.to(wide) @ wide).to(self.squares.device)
            self.squares[:, :, at] += torch.zeros_like(self.squares[:, :, at]).index_add_(0, block, seen[id(value)])

    def compute(self) -> pd.DataFrame:
        n = self.count.cpu()
        whole = self.squares.sum((0, 2)).cpu()
        for group, total in zip(("image", "text"), whole, strict=True):
            if not total > 0:
                raise UserError(f"weight overlap: no {group} tokens in {int(n.sum())} samples: give samples with both")
        sums = {"squares": self.squares.cpu(), "n": n}
        found = jackknife(self._ious, sums, n)
        null = self._ious({k: v.sum(0) for k, v in sums.items()}, shuffle=True).numpy()
        layers = np.array([int(site.split(".")[1]) for site in self._at])
        matrices = [site.split(".in.")[1] for site in self._at]
        rows = []
        for s, sparsity in enumerate(self.sparsity):
            for p, pair in enumerate(PAIRS):
                for m in range(found.mean.shape[-1]):
                    own = m < len(layers)
                    layer = layers[m] if own else None
                    if not own and m < found.mean.shape[-1] - 1:
                        layer = sorted(set(layers))[m - len(layers)]
                    value, base = found.mean[s, p, m], null[s, p, m]
                    rows.append({
                        "sparsity": sparsity, "pair": "-".join(pair), "layer": layer, "matrix": matrices[m] if own else None,
                        "mean": value, "low": found.low[s, p, m], "high": found.high[s, p, m], "n": int(n.sum()),
                        "chance": chance_iou(sparsity), "null": base,
                        "adjusted": (value - base) / (1 - base) if base < 1 else np.nan,
                    })  # fmt: skip
        return pd.DataFrame(rows).astype({"layer": "Int64"})

    def _ious(self, sums: dict[str, Tensor], shuffle: bool = False) -> Tensor:
        """(sparsities, pairs, matrices + layers + 1): of every matrix, the mean of each layer, the mean over layers."""
        generator = torch.Generator().manual_seed(self.seed)
        columns = []
        for site, at in self._at.items():
            image, text = sums["squares"][:, at]
            if shuffle:
                image, text = (x[torch.randperm(len(x), generator=generator)] for x in (image, text))
            sets = {"image": image, "text": text, "both": image + text}
            scores = {k: wanda_scores(self._weights[site], v, int(sums["n"])) for k, v in sets.items()}
            of = []
            for sparsity in self.sparsity:
                masks = {k: prune_mask(v, sparsity=sparsity) for k, v in scores.items()}
                of.append(torch.stack([kept_iou(masks[a], masks[b]).cpu() for a, b in PAIRS]))
            columns.append(torch.stack(of))
        found = torch.stack(columns, -1)
        layer = torch.tensor([int(site.split(".")[1]) for site in self._at])
        means = torch.stack([found[..., layer == i].mean(-1) for i in layer.unique()], -1)
        return torch.cat([found, means, means.mean(-1, keepdim=True)], -1)

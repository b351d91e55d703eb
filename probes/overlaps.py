"""How far the Wanda masks of two sets of tokens, or of two layers, agree: from the sums of squares of every linear's inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from .intervals import jackknife
from .weights import chance_iou, prune_masks, wanda_scores

SETS = ("image", "text", "both")
AT_ONCE = 1 << 24
"""Scores made at a time."""
PAIRS = (("image", "text"), ("image", "both"), ("text", "both"))


class Overlaps:
    """The statistics of `WeightOverlap` for the linears of one decoder.

    weights: by site, in the order of the layers; at: where each one's inputs are in the sums (2, total) of squares of image
    and text. interval: layers between two that are compared; most_rows: output rows of a matrix that are looked at.
    """

    def __init__(
        self, weights: dict[str, Tensor], at: dict[str, slice], *, sparsity: Sequence[float], interval: int, most_rows: int | None
    ):  # fmt: skip
        self.weights, self.at, self.sparsity = weights, at, tuple(sparsity)
        self.interval, self.most_rows = interval, most_rows
        self.layers = torch.tensor([int(site.split(".")[1]) for site in at])
        self.matrices = [site.split(".in.")[1] for site in at]
        self.rows = [
            (quantity, s, pair) for s in self.sparsity
            for quantity, pairs in (("iou", ["-".join(p) for p in PAIRS]), ("layers", SETS)) for pair in pairs
        ] + [("rank", None, "image-text")]  # fmt: skip

    def __call__(self, squares: Tensor, n: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """squares: (R, 2, total), n: (R,), of R choices of samples -> (R, rows, matrices + layers + 1): of every matrix, the
        mean of each layer, the mean over layers. generator: each set's squares are shuffled first, which is what independent
        activations give."""
        found = squares.new_full((len(squares), len(self.rows), len(self.at)), torch.nan)
        earlier: dict[tuple, tuple] = {}  # masks are held as bits, until the layer they are compared with
        for m, (site, at) in enumerate(self.at.items()):
            image, text = squares[:, :, at].unbind(1)
            if generator is not None:
                image, text = (x[:, torch.randperm(x.shape[1], generator=generator)] for x in (image, text))
            sets = torch.stack([image, text, image + text], 1)  # (R, 3, in)
            found[:, :-1, m] = self._of_masks(site, int(self.layers[m]), self.matrices[m], sets, n, earlier)
            found[:, -1, m] = _rank(image, text)
        means = torch.stack([found[..., self.layers == i].nanmean(2) for i in self.layers.unique()], 2)
        return torch.cat([found, means, means.nanmean(2, keepdim=True)], 2)

    def _of_masks(self, site: str, layer: int, matrix: str, sets: Tensor, n: Tensor, earlier: dict) -> Tensor:
        """(R, 6 x sparsities) IoU of one matrix; see `rows`."""
        weight = self._some_rows(self.weights[site])
        counts = np.zeros((len(self.sparsity), 2, 2, len(sets), 3))  # pairs / layers; in both / in any
        step = max(1, AT_ONCE // sets.numel())
        for start in range(0, len(weight), step):
            part = weight[start : start + step]
            scores = wanda_scores(part, sets, n[:, None, None])  # (R, 3, out, in)
            for i, (s, pruned) in enumerate(
                zip(self.sparsity, prune_masks(scores.flatten(0, 2), self.sparsity), strict=True)
            ):
                bits = np.packbits(~pruned.view(len(sets), 3, part.numel()).cpu().numpy(), axis=2)
                counts[i, 0] += _shared(bits[:, [0, 0, 1]], bits[:, [1, 2, 2]])
                shape, before = earlier.pop((matrix, s, start, layer - self.interval), (None, None))
                if shape == weight.shape:
                    counts[i, 1] += _shared(before, bits)
                earlier[matrix, s, start, layer] = weight.shape, bits
        with np.errstate(invalid="ignore"):  # 0 / 0 where no layer of that shape is `interval` before
            iou = counts[:, :, 0] / counts[:, :, 1]
        return torch.from_numpy(iou.transpose(2, 0, 1, 3).reshape(len(sets), -1))

    def _some_rows(self, weight: Tensor) -> Tensor:
        n = len(weight)
        if self.most_rows is None or n <= self.most_rows:
            return weight
        return weight[torch.arange(self.most_rows, device=weight.device) * n // self.most_rows]

    def table(self, squares: Tensor, n: Tensor, seed: int) -> pd.DataFrame:
        """See `WeightOverlap`. squares: (blocks, 2, total), n: (blocks,) samples."""
        found = jackknife(lambda sums: self(sums["squares"], sums["n"]), {"squares": squares, "n": n}, n, at_once=True)
        null = self(squares.sum(0)[None], n.sum()[None], torch.Generator().manual_seed(seed))[0].numpy()
        layers = self.layers.tolist()
        places = [*zip(layers, self.matrices, strict=True), *((i, None) for i in sorted(set(layers))), (None, None)]
        rows = []
        for r, (quantity, sparsity, pair) in enumerate(self.rows):
            for m, (layer, matrix) in enumerate(places):
                value, base = found.mean[r, m], null[r, m]
                if quantity == "layers" and not np.isfinite(value):
                    continue
                masks = sparsity is not None
                rows.append({
                    "quantity": quantity, "sparsity": sparsity, "pair": pair, "layer": layer, "matrix": matrix,
                    "interval": self.interval if quantity == "layers" else None, "mean": value, "low": found.low[r, m],
                    "high": found.high[r, m], "n": int(n.sum()), "chance": chance_iou(sparsity) if masks else 0.0,
                    "null": base, "adjusted": (value - base) / (1 - base) if masks and base < 1 else np.nan,
                })  # fmt: skip
        return pd.DataFrame(rows).astype({"layer": "Int64", "interval": "Int64"})


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(2, R, 3) how many weights both keep, and how many any of the two: a, b (R, 3, bytes) bits of what each keeps."""
    return np.stack([np.bitwise_count(x).sum(2, dtype=np.int64) for x in (a & b, a | b)])


def _rank(image: Tensor, text: Tensor) -> Tensor:
    """(R,) Spearman's correlation of (R, in) each; NaN where all inputs are equal."""
    a, b = (torch.from_numpy(rankdata(x.numpy(), axis=1)).double() for x in (image, text))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()

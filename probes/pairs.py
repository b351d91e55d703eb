"""What needs pairs of samples: whether a picture is nearer to its own text than to the others'."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .intervals import Estimate, proportion
from .similarity import units

TOP = (1, 5)


def centred_units(pooled: Tensor, variant: str) -> Tensor:
    """Unit vectors of pooled states (n, 2, layers, D) less their mean over samples: of both groups, or of each."""
    if not len(pooled):
        return pooled
    mean = pooled.mean(0, keepdim=True)
    return units(pooled - (mean.mean(1, keepdim=True) if variant == "centred_both" else mean))


def pair_matrix(vectors: Tensor) -> Tensor:
    """Cosines of every picture with every text: (n, 2, layers, D) unit vectors -> (layers, n, n)."""
    return torch.einsum("ild,jld->lij", vectors[:, 0], vectors[:, 1])


def pair_spread(vectors: Tensor) -> Tensor:
    """Standard deviation between all n x n pairs, by layer."""
    if len(vectors) < 2:
        return vectors.new_full((vectors.shape[2],), torch.nan)
    return pair_matrix(vectors).flatten(1).std(1)


def permutation_p(vectors: Tensor, permutations: int, seed: int) -> Tensor:
    """Probability, by layer, of so large a mean similarity of matched pairs if texts were dealt to pictures by chance.

    One-sided, (1 + hits) / (1 + permutations); the same permutations at every layer. NaN for less than two samples.
    """
    n, layers = len(vectors), vectors.shape[2]
    if n < 2:
        return vectors.new_full((layers,), torch.nan)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.rand(permutations, n, generator=generator).argsort(1)  # (R, n)
    pairs = pair_matrix(vectors)
    own = pairs.diagonal(dim1=1, dim2=2).mean(1)
    rows = torch.arange(n)
    # permutations that change nothing must count as reaching the value, whatever the order of summation
    hits = torch.stack(
        [(layer[rows, shuffled].mean(1) >= value - 1e-12).sum() for layer, value in zip(pairs, own, strict=True)]
    )
    return (1 + hits.double()) / (1 + permutations)


def retrieval(vectors: Tensor) -> Iterator[tuple[str, int, Estimate]]:
    """(pair, k, share by layer): how often a sample's own text is among the k nearest of all n.

    "P-T": a picture looks for its text; "T-P": the reverse. Ties count by their share: with the own text and t - 1 others
    of one similarity, of which only s fit into the first k, the sample counts s / t.
    """
    n = len(vectors)
    if n < 2:
        return
    pairs = pair_matrix(vectors)
    for pair, table in (("P-T", pairs), ("T-P", pairs.transpose(1, 2))):
        own = table.diagonal(dim1=1, dim2=2)[..., None]
        tied = (table - own).abs() <= 1e-12
        above = ((table > own) & ~tied).sum(2)
        for k in TOP:
            if k < n:
                share = ((k - above) / tied.sum(2)).clamp(0, 1)
                yield pair, k, proportion(share)

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


def _by_layer(vectors: Tensor) -> Iterator[Tensor]:
    """Cosines of every picture with every text, (n, n) a layer, from unit vectors (n, 2, layers, D). One layer at a time:
    all of them at once would make the peak of memory grow with the number of samples."""
    for layer in range(vectors.shape[2]):
        yield vectors[:, 0, layer] @ vectors[:, 1, layer].T


def pair_spread(vectors: Tensor) -> Tensor:
    """Standard deviation between all n x n pairs, by layer."""
    if len(vectors) < 2:
        return vectors.new_full((vectors.shape[2],), torch.nan)
    return torch.stack([pairs.std() for pairs in _by_layer(vectors)])


def permutation_p(vectors: Tensor, permutations: int, seed: int) -> Tensor:
    """Probability, by layer, of so large a mean similarity of matched pairs if texts were dealt to pictures by chance.

    One-sided, (1 + hits) / (1 + permutations); the same permutations at every layer. NaN for less than two samples and
    for no permutations.
    """
    n, layers = len(vectors), vectors.shape[2]
    if n < 2 or permutations < 1:
        return vectors.new_full((layers,), torch.nan)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([torch.randperm(n, generator=generator) for _ in range(permutations)]).to(torch.int32)
    hits = []
    for pairs in _by_layer(vectors):
        # permutations that change nothing must count as reaching the value, whatever the order of summation
        least = pairs.diagonal().mean() - 1e-12
        chance = [pairs.gather(1, part.T.long()).mean(0) for part in shuffled.split(200)]
        hits.append((torch.cat(chance) >= least).sum())
    return (1 + torch.stack(hits).double()) / (1 + permutations)


def retrieval(vectors: Tensor) -> Iterator[tuple[str, int, Estimate]]:
    """(pair, k, share by layer): how often a sample's own text is among the k nearest of all n.

    "P-T": a picture looks for its text; "T-P": the reverse. Ties count by their share: with the own text and t - 1 others
    of one similarity, of which only s fit into the first k, the sample counts s / t.
    """
    n = len(vectors)
    if n < 2:
        return
    for turn, pair in enumerate(("P-T", "T-P")):
        ranks = []
        for pairs in _by_layer(vectors):
            apart = (pairs.T if turn else pairs) - pairs.diagonal()[:, None]
            ranks.append(torch.stack([(apart > 1e-12).sum(1), (apart.abs() <= 1e-12).sum(1)]))
        above, tied = torch.stack(ranks, 1)  # (layers, n) each
        for k in TOP:
            if k < n:
                yield pair, k, proportion(((k - above) / tied).clamp(0, 1))

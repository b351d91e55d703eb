"""The logit lens on some positions of a batch, at every layer: what is read from the logits before they are dropped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .vocabulary import Map, decode_logits, kl_divergence

MOMENTS = (
    ("entropy", "P"), ("entropy", "T"), ("to_final", "P"), ("to_final", "T"), ("agreement", "P"), ("agreement", "T"),
    ("kl", "P-T"), ("kl", "P-P"), ("kl", "T-T"),
)  # fmt: skip
"""What is read of a sample at a layer, in this order; see `VocabularyView`."""


def chosen(groups: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Positions (B, G, K) of the tokens of groups (B, G, T), `most` of each spread evenly over it, and which of them are
    real (a group that has fewer is filled up with position 0)."""
    count = groups.sum(2, keepdim=True)
    k = int(count.max()) if most is None else min(most, int(count.max()))
    order = groups.to(torch.int8).argsort(dim=2, descending=True, stable=True)  # members first, in their order
    i = torch.arange(k, device=groups.device)
    rank = torch.where(count > k, i * count // k, i)
    real = i < count
    return order.gather(2, rank).masked_fill(~real, 0), real


def read_words(
    states: Sequence[Tensor], real: Tensor, unembed: Map, norm: Map, *, vocabulary: int, chunk: int, matched: bool
) -> tuple[Tensor, Tensor]:
    """states: one (B, 2, K, D) a layer, picture's and text's tokens, the last block's output last; real: (B, 2, K) which
    count, at least one of each group. Returns `MOMENTS` of every sample (M, layers, B) and the top words (layers, B, 2, K).

    At most `chunk` logits are made at a time, whatever B, K and the vocabulary are. matched: see `VocabularyView`.
    """
    batch, _, k = real.shape
    rows = max(1, chunk // (2 * k * vocabulary))
    width = max(1, min(k, chunk // (2 * vocabulary)))
    found = []
    for start in range(0, batch, rows):
        some = slice(start, start + rows)
        parts = []
        for at in range(0, k, width):
            part = slice(at, at + width)
            final = decode_logits(states[-1][some, :, part], unembed, norm).log_softmax(-1)
            inside, last = real[some].to(final.device), final.argmax(-1)
            averaging = averages(inside)[..., part]
            layers = []
            for x in states[:-1]:
                logs = decode_logits(x[some, :, part], unembed, norm).log_softmax(-1)
                layers.append(_of_tokens(logs, logs.argmax(-1), final, last, averaging, matched))
            layers.append(_of_tokens(final, last, final, last, averaging, matched))
            parts.append([torch.stack(values) for values in zip(*layers, strict=True)])
        found.append(_of_samples(parts, inside, matched))
    return torch.cat([moments for moments, _ in found], 2), torch.cat([top for _, top in found], 1)


def averages(real: Tensor) -> Tensor:
    """(B, 2, 3, K) weights of the mean over a group's tokens, over every second of them, and over the others (NaN where a
    single token leaves none)."""
    odd = torch.arange(real.shape[2], device=real.device) % 2 == 1
    sets = torch.stack([real, real & ~odd, real & odd], 2).float()
    return sets / sets.sum(3, keepdim=True)


def _of_tokens(
    logs: Tensor, top: Tensor, final: Tensor, last: Tensor, averaging: Tensor, matched: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one layer's log-probabilities (B, 2, K, V): each token's entropy, KL to its last layer and whether its top word is
    that of the last layer, (3, B, 2, K); the top words (B, 2, K); the mean distributions (B, 2, 3, V), or, matched, the KL
    of the picture's token to the text's of the same number (B, K)."""
    p = logs.exp()
    negative = torch.linalg.vecdot(p, logs)  # log p is finite, so that p = 0 adds 0
    to_final = negative - torch.linalg.vecdot(p, final)
    between = negative[:, 0] - torch.linalg.vecdot(p[:, 0], logs[:, 1]) if matched else averaging.to(p.dtype) @ p
    return torch.stack([-negative, to_final, (top == last).to(p.dtype)]), top, between


def _of_samples(parts: list[list[Tensor]], real: Tensor, matched: bool) -> tuple[Tensor, Tensor]:
    """(M, layers, B) moments and (layers, B, 2, K) top words, from what `_of_tokens` gives at the layers, by parts along
    the tokens."""
    values, top = (torch.cat([part[i] for part in parts], -1) for i in (0, 1))
    values = (values * averages(real)[:, :, 0]).sum(-1)  # (layers, 3, B, 2)
    if matched:
        both = real.all(1)
        across = (torch.cat([part[2] for part in parts], -1) * both).sum(-1) / both.sum(-1)
        between = torch.stack([across, *across.new_full((2, *across.shape), torch.nan)])
    else:
        means = torch.stack([part[2] for part in parts]).sum(0)  # (layers, B, 2, 3, V)
        pairs = means[:, :, [0, 0, 1], [0, 1, 1]], means[:, :, [1, 0, 1], [0, 2, 2]]
        one = real.sum(2) < 2  # a token alone has no other half
        alone = torch.stack([torch.zeros_like(one[:, 0]), *one.T])
        between = kl_divergence(*pairs).movedim(2, 0).masked_fill(alone[:, None], torch.nan)
    return torch.cat([values.permute(1, 3, 0, 2).flatten(0, 1), between]), top

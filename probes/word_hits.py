"""Which words tokens say, and whether they are the sample's own: from the top words and the answers of some samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from .intervals import LEVEL, Estimate, mean_over_samples, powers

KEPT_TOKENS = 32
"""Top words kept of each group, sample and layer."""

ANSWER_IDS = 96
"""Different tokens of an answer that are kept, those of the highest ids (the rarest, in most tokenizers)."""

COMMON = 0.5
"""A token that stands in more than this share of the other answers is no content word."""


def content_words(answers: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (U,) that stand in any answer, and (n, U) bool whether each is a content word of each; answers: (n, A) ids, -1
    for none."""
    ids = answers[answers >= 0].unique()
    has = (answers[:, :, None] == ids).any(1) if len(ids) else torch.zeros(len(answers), 0, dtype=torch.bool)
    others = has.sum(0) - has.int()
    return ids, has & (others <= COMMON * (len(answers) - 1))


def word_shares(words: Tensor, ids: Tensor) -> Tensor:
    """(n, U) share of each sample's words (n, K), -1 for none, that are each of the ids (U,), which ascend."""
    found = torch.searchsorted(ids, words.contiguous()).clamp(max=max(len(ids) - 1, 0))
    hit = (ids[found] == words if len(ids) else torch.zeros_like(words, dtype=torch.bool)) & (words >= 0)
    shares = torch.zeros(len(words), len(ids), dtype=torch.float64)
    if len(ids):
        shares.scatter_add_(1, found, hit.double())
    return shares / (words >= 0).sum(1, keepdim=True)


def hit_rates(words: Tensor, answers: Tensor) -> dict[str, Estimate]:
    """Share of words (n, layers, K) that are content words of the own answer ("own"), of the other samples' answers
    ("others", all pairs), and the "difference"; each an `Estimate` by layer. Samples whose answer has no content word take
    no part. Intervals: a jackknife over samples, as every sample stands in many pairs."""
    ids, content = content_words(answers)
    part = content.any(1)
    content, words = content[part].double(), words[part]
    hits = [word_shares(words[:, layer], ids) @ content.T for layer in range(words.shape[1])]
    return {
        name: _jackknifed([_left_out(one, name) for one in hits], len(words))
        for name in ("own", "others", "difference")
    }


def _left_out(hits: Tensor, name: str) -> tuple[float, Tensor]:
    """The statistic of hits (n, n), and (n,) the same with each sample left out of both axes."""
    n, own = len(hits), hits.diagonal()
    pairs = hits.sum() - own.sum()
    rest = pairs - (hits.sum(0) + hits.sum(1) - 2 * own)
    nan = torch.full((n,), torch.nan, dtype=hits.dtype)
    mine = (own.mean(), (own.sum() - own) / (n - 1) if n > 1 else nan)
    theirs = (
        pairs / (n * (n - 1)) if n > 1 else torch.tensor(torch.nan),
        rest / ((n - 1) * (n - 2)) if n > 2 else nan,
    )
    if name == "own":
        return mine
    return theirs if name == "others" else (mine[0] - theirs[0], mine[1] - theirs[1])


def _jackknifed(found: list[tuple[Tensor, Tensor]], n: int) -> Estimate:
    mean = np.array([float(value) for value, _ in found])
    if n < 2:
        nan = np.full(len(found), np.nan)
        return Estimate(mean, nan, nan, nan, np.full(len(found), n))
    out = torch.stack([values for _, values in found]).numpy()
    half = stdtrit(n - 1, (1 + LEVEL) / 2) * np.sqrt((n - 1) / n * ((out - out.mean(1, keepdims=True)) ** 2).sum(1))
    return Estimate(mean, mean - half, mean + half, np.full(mean.shape, np.nan), np.full(mean.shape, n))


def top_words(words: Tensor, most: int) -> Iterator[tuple[int, int, int, Estimate]]:
    """(layer, rank, id, share of tokens over samples) of the `most` frequent of words (n, layers, K), -1 for none."""
    for layer in range(words.shape[1]):
        ids = words[:, layer][words[:, layer] >= 0].unique()
        shares = word_shares(words[:, layer], ids)
        share = mean_over_samples(powers(shares).sum(0))
        order = np.argsort(-share.mean, kind="stable")[:most]
        for rank, i in enumerate(order, 1):
            yield layer, rank, int(ids[i]), Estimate(*(x[i] for x in share))

"""The most similar other pictures: exact search by cosine, leaving out the picture itself and its duplicates."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..scenes.errors import UserError

BLOCK = 512
FAISS, FAISS_FROM = "faiss", 100_000
"""Optional: used when it is installed and there are at least so many pictures."""


def unit_rows(vectors: Tensor) -> Tensor:
    """(N, D) fp32 rows of length 1. Raises UserError for a row that is zero or not finite: its cosine would mean nothing."""
    vectors = vectors.float()
    length = vectors.norm(dim=1, keepdim=True)
    if not (torch.isfinite(length) & (length > 0)).all():
        row = int((~(torch.isfinite(length) & (length > 0))).flatten().nonzero()[0])
        raise UserError(f"the embedding of picture {row} is zero or not finite: use another encoder")
    return vectors / length


def nearest(
    vectors: Tensor,
    k: int,
    groups: Sequence[Sequence[Hashable]] = (),
    *,
    faiss: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Each row's k most similar other rows: indices (N, k) and cosines (N, k), best first, ties by index; -1 and NaN where there
    are fewer.

    vectors: (N, D), any length. groups: labels (N) of one or more kinds (hash of the picture, graph of its scene); a row never gets
    one that shares a label with it. faiss: force or forbid FAISS's exact index; default: see `FAISS_FROM`. Raises UserError.
    """
    if k < 1:
        raise UserError(f"k={k} neighbours: give a whole number from 1 up (10 is usual)")
    unit, n = unit_rows(vectors), len(vectors)
    alike = _alike(n, groups)
    if faiss is None:
        faiss = n >= FAISS_FROM and importlib.util.find_spec(FAISS) is not None
    widest = max((len(rows) for rows in alike.values()), default=1)
    return _by_faiss(unit, k, alike, widest) if faiss else _by_blocks(unit, k, alike)


def _alike(n: int, groups: Sequence[Sequence[Hashable]]) -> dict[int, list[int]]:
    """Of each row that has duplicates: all rows that share a label with it, itself among them."""
    found: dict[int, set[int]] = {}
    for labels in groups:
        if len(labels) != n:
            raise ValueError(f"{len(labels)} labels for {n} rows")
        members: dict[Hashable, list[int]] = {}
        for row, label in enumerate(labels):
            members.setdefault(label, []).append(row)
        for rows in members.values():
            if len(rows) > 1:
                for row in rows:
                    found.setdefault(row, {row}).update(rows)
    return {row: sorted(rows) for row, rows in found.items()}


def _by_blocks(unit: Tensor, k: int, alike: dict[int, list[int]]) -> tuple[Tensor, Tensor]:
    n = len(unit)
    index = torch.full((n, k), -1)
    score = torch.full((n, k), float("nan"))
    most = min(k, n)
    for start in range(0, n, BLOCK):
        cosine = unit[start : start + BLOCK] @ unit.T
        rows = torch.arange(len(cosine))
        cosine[rows, start + rows] = -torch.inf
        for row in range(start, start + len(cosine)):
            if row in alike:
                cosine[row - start, alike[row]] = -torch.inf
        best, at = _top(cosine, most)
        index[start : start + BLOCK, :most] = torch.where(best.isneginf(), -1, at)
        score[start : start + BLOCK, :most] = torch.where(best.isneginf(), torch.nan, best)
    return index, score


def _top(cosine: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of each row, ties by index."""
    best, at = cosine.topk(min(k + 1, cosine.shape[1]))
    at, order = at.sort(dim=1)
    best, place = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    at = at.gather(1, place)
    if best.shape[1] > k:  # which of several equal ones `topk` took at the edge is not defined
        for row in (best[:, k - 1] == best[:, k]).nonzero().flatten().tolist():
            order = cosine[row].argsort(descending=True, stable=True)[:k]
            at[row, :k], best[row, :k] = order, cosine[row, order]
    return best[:, :k], at[:, :k]


def _by_faiss(unit: Tensor, k: int, alike: dict[int, list[int]], widest: int) -> tuple[Tensor, Tensor]:
    index = importlib.import_module(FAISS).IndexFlatIP(unit.shape[1])
    vectors = unit.contiguous().numpy()
    index.add(vectors)
    score, at = index.search(vectors, min(k + widest, len(unit)))
    found, scores = torch.full((len(unit), k), -1), torch.full((len(unit), k), float("nan"))
    for row in range(len(unit)):
        barred = set(alike.get(row, (row,)))
        pairs = sorted((-s, i) for s, i in zip(score[row].tolist(), at[row].tolist(), strict=True) if i not in barred)
        for place, (negative, i) in enumerate(pairs[:k]):
            found[row, place], scores[row, place] = i, -negative
    return found, scores

"""Exact image retrieval among ten thousand pictures: seconds against the bar, and beside the bare product of the vectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..alignment.retrieval import BLOCK, nearest
from .bench import FULL, Row, Size
from .timing import Ratio, interleave

BAR_SECONDS = 2.0
DIMS, NEIGHBOURS = 128, 10


def rows(size: Size) -> Iterator[Row]:
    """Top 10 of 10,000 vectors as the organism's tower gives them, with duplicates to leave out, after embedding."""
    n = 10_000 if size.rounds == FULL.rounds else 500
    vectors = torch.randn(n, DIMS, generator=torch.Generator().manual_seed(0))
    pictures = [i // 2 if i < n // 10 else i for i in range(n)]  # every tenth has a twin
    unit = vectors / vectors.norm(dim=1, keepdim=True)

    def product() -> None:
        for start in range(0, n, BLOCK):
            unit[start : start + BLOCK] @ unit.T

    found = interleave(
        {"nearest": lambda: nearest(vectors, NEIGHBOURS, [pictures]), "product": product}, size.long_rounds, warm=1
    )
    what = f"exact top {NEIGHBOURS} of {n:,} pictures"
    seconds = Ratio.of([spent / BAR_SECONDS for spent in found.seconds["nearest"]])
    yield Row(f"{what}: time", f"{BAR_SECONDS:g} s", seconds, f"{found.milliseconds('nearest'):.0f} ms", 1.0)
    yield Row(f"{what}: time", "product of the vectors alone", found.ratio("nearest", "product"))

"""Which positions of a prompt stay when only a few visual tokens of each picture do, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..models.patch_scores import PictureScores
from ..models.spans import Spans

ORDERS = ("released", "raster")


@dataclass(frozen=True)
class Chosen:
    """Of one picture the indices (k,) of the candidates that stay, tile by tile, best first."""

    picture: PictureScores
    best: Tensor


def text_positions(spans: Spans) -> list[Tensor]:
    """Per row the positions that belong to no picture."""
    return spans.without_images()[1]


def kept_positions(spans: Spans, chosen: Sequence[Chosen], *, order: str, grid: str) -> list[Tensor]:
    """Per row the positions that stay: text, the chosen visual tokens, and of markers and newlines those that still divide.

    order: "released", each stretch of tokens by score, best first, as in DAMRO's code, or "raster". grid: how visual tokens
    lie on the picture (see `Layout`). A newline stays behind a row that is not empty; so does the break behind a row of
    Mistral's pictures. The name of a tile stays in front of a tile that is not empty. What opens and closes a picture stays.
    """
    by_row: dict[int, list[Chosen]] = {}
    for one in chosen:
        by_row.setdefault(one.picture.row, []).append(one)
    kept = []
    for row, labels in enumerate(spans.labels):
        stays: list[int] = []
        of = {one.picture.picture: one for one in by_row.get(row, ())}
        real = torch.nonzero(labels >= 0).flatten().tolist()
        index, visual = spans.image_index[row].tolist(), spans.visual[row].tolist()
        for number, stretch in groupby(real, key=lambda t: index[t]):
            if number in of:
                stays += _of_picture(list(stretch), of[number], visual, order, grid)
            else:
                stays += stretch
        kept.append(torch.tensor(stays, device=spans.labels.device))
    return kept


def _of_picture(positions: list[int], chosen: Chosen, visual: list[bool], order: str, grid: str) -> list[int]:
    """What stays of one picture, given its positions in order."""
    picture = chosen.picture
    fine = dict(zip(picture.positions.tolist(), (picture.tiles > 0).tolist(), strict=True))
    rank = {int(picture.positions[i]): n for n, i in enumerate(chosen.best.tolist())}
    # in "anyres" the whole picture and the first row of its tiles touch; only there do tiles share a stretch otherwise
    kinds = {
        t: ("token", fine[t] and grid == "anyres") if t in fine else ("newline" if visual[t] else "marker",)
        for t in positions
    }
    stretches = [(kind[0], list(part)) for kind, part in groupby(positions, key=kinds.get)]
    stays = [
        sorted((t for t in part if t in rank), key=rank.get if order == "released" else None) for _, part in stretches
    ]
    tiled = grid == "anyres" and any(fine[t] for t in rank)
    out: list[int] = []
    for i, (kind, part) in enumerate(stretches):
        before, behind = stays[i - 1] if i else [], stays[i + 1] if i + 1 < len(stays) else []
        if kind == "token":
            out += stays[i]
        elif kind == "newline":
            # the newline closes a row of tiles; of the whole picture alone it is the one behind it (released)
            first = not any(k == "newline" for k, _ in stretches[:i])
            alone = first and not tiled and any(stays[:i])
            out += part if alone or (before and fine[before[0]]) else []
        elif grid == "rows" and 0 < i < len(stretches) - 1:
            out += part if before else []
        elif grid == "tiles" and i < len(stretches) - 1:
            out += part if behind else []
        else:
            out += part
    return out

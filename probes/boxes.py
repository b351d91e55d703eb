"""Means of a map over boxes: what a token is to know is what the map shows where the token looks."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class _Lattice(NamedTuple):
    """Boxes as pairs of a row and a column interval. down: (rows, H), across: (columns, W) share of the interval in each cell,
    NaN for an interval without a length; row, column: (N,) which."""

    down: Tensor
    across: Tensor
    row: Tensor
    column: Tensor


def box_means(maps: Tensor, boxes: Tensor) -> Tensor:
    """(..., N, C) mean over each box of maps (..., C, H, W), exactly, parts of cells by their area.

    boxes: (N, 4) x0, y0, x1, y1 in cells of the map, clipped to it; NaN for a box without a place or outside the map. A box
    smaller than a cell gets the cell's value. Tokens lie on lattices: means are taken over every interval of rows, then of
    columns, that occurs, which is little work where boxes share them, and a lattice is worked out once.
    """
    boxes = boxes.detach().to("cpu", torch.float32).contiguous()
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    lattice = _lattice(boxes.numpy().tobytes(), *maps.shape[-2:], maps.dtype)
    down, across, row, column = (part.to(maps.device) for part in lattice)
    return (down @ maps @ across.T)[..., row, column].mT


@lru_cache(maxsize=256)
def _lattice(content: bytes, height: int, width: int, dtype: torch.dtype) -> _Lattice:
    boxes = torch.frombuffer(bytearray(content), dtype=torch.float32).view(-1, 4).double()
    boxes = torch.where(boxes.isfinite().all(1, keepdim=True), boxes, 0)  # an interval of no length: NaN below
    sides = []
    for intervals, size in ((boxes[:, 1::2], height), (boxes[:, 0::2], width)):
        some, index = intervals.unique(dim=0, return_inverse=True)
        cell = torch.arange(size)
        inside = (torch.minimum(some[:, 1:], cell + 1) - torch.maximum(some[:, :1], cell)).clamp(min=0)
        sides += [(inside / inside.sum(1, keepdim=True)).to(dtype), index]
    down, row, across, column = sides
    return _Lattice(down, across, row, column)


def scaled(boxes: Tensor, size: tuple[int, int], maps: Tensor) -> Tensor:
    """Boxes in pixels of a picture of `size` (width, height), in cells of maps (..., H, W) that cover all of it."""
    height, width = maps.shape[-2:]
    return boxes * boxes.new_tensor([width / size[0], height / size[1]] * 2)


def divided(boxes: Tensor, parts: int) -> Tensor:
    """(N * parts^2, 4): every box cut into parts x parts, row by row."""
    step = torch.arange(parts + 1, dtype=boxes.dtype, device=boxes.device) / parts
    x = boxes[:, 0:1] + step * (boxes[:, 2:3] - boxes[:, 0:1])  # (N, parts + 1)
    y = boxes[:, 1:2] + step * (boxes[:, 3:4] - boxes[:, 1:2])
    x0, x1 = (v[:, None, :].expand(-1, parts, -1) for v in (x[:, :-1], x[:, 1:]))
    y0, y1 = (v[:, :, None].expand(-1, -1, parts) for v in (y[:, :-1], y[:, 1:]))
    return torch.stack([x0, y0, x1, y1], -1).flatten(0, 2)

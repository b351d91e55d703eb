"""Features beside the language model's: the picture's pixels and the vision tower at the places of the visual tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .boxes import box_means, divided, scaled

PIXELS = 4
"""A token's pixels are averaged to so many a side, times three colours."""

LARGEST = 512
"""Pictures are made smaller than this before they are averaged."""

PLACES = 24
"""Places on a picture are told apart on a grid of so many a side."""


def pixel_features(images: Sequence[Image.Image], boxes: Sequence[Tensor]) -> list[Tensor]:
    """(N, 48) for each image: mean colours in 0..1 of its boxes (N, 4) in pixels, each cut into 4 x 4; 0 outside the picture.

    Images of one size with the same boxes are averaged together.
    """
    alike: dict[tuple, list[int]] = {}
    for i, (image, own) in enumerate(zip(images, boxes, strict=True)):
        alike.setdefault((image.size, own.numpy().tobytes()), []).append(i)
    found: list[Tensor] = [boxes[0]] * len(images)
    for (size, _), members in alike.items():
        arrays = [np.asarray(_small(images[i]).convert("RGB")) for i in members]
        colours = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        own = boxes[members[0]]
        means = box_means(colours, divided(scaled(own, size, colours), PIXELS)).nan_to_num(0)
        for i, values in zip(members, means.reshape(len(members), len(own), -1), strict=True):
            found[i] = values
    return found


def _small(image: Image.Image) -> Image.Image:
    if max(image.size) <= LARGEST:
        return image
    image = image.copy()
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return image


def place_index(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N,) number of the cell of a 24 x 24 grid over the picture in which each box has its centre."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / boxes.new_tensor(size)
    cell = (centre * PLACES).long().clamp(0, PLACES - 1)
    return cell[:, 1] * PLACES + cell[:, 0]


def tower_site(anatomy) -> str | None:
    """The site of the vision tower that the projector reads, or None for families in which its patches cannot be matched
    with the visual tokens: query tokens, cross-attention, unpadded tiles with newlines, windows in an order of their own."""
    if anatomy.layout.grid not in ("square", "tiles", "merged", "rows") or anatomy.family == "qwen2_5_vl":
        return None
    chosen = getattr(anatomy.model.config, "vision_feature_layer", -1)
    layer = chosen if isinstance(chosen, int) else -1
    # it counts hidden states, of which the first is the embedding: block i gives state i + 1
    block = layer + anatomy.n_vision_layers if layer < 0 else layer - 1
    return f"vision.blocks.{min(max(block, 0), anatomy.n_vision_layers - 1)}.resid_post"


def tower_width(anatomy) -> int:
    """Width of the tower's states, from the first norm or bias of its last block."""
    return next(p.shape[0] for p in anatomy.vision_blocks[-1].parameters() if p.ndim == 1)


def tower_features(states: Tensor, spans, anatomy) -> Tensor | None:
    """(V, D) the tower's states of the batch's V visual tokens, in their order; patches that are merged into one token are
    averaged. None where the numbers do not fit. states: as the tower's block gives them."""
    merge, grid, n = anatomy.merge, anatomy.layout.grid, int(spans.visual.sum())
    if grid == "merged":  # patches that are merged stand one behind the other
        rows = states.reshape(-1, merge * merge, states.shape[-1]).float().mean(1)
    elif grid == "rows":
        rows = _pooled_rows(states.reshape(-1, states.shape[-1]), spans, merge)
    else:
        patches = states.reshape(-1, *states.shape[-2:])[:, anatomy.layout.prefix :]
        side = math.isqrt(patches.shape[1])
        if side * side != patches.shape[1] or side % merge:
            return None
        rows = _pooled(patches, side, side, merge).flatten(0, 1)
    return rows if rows is not None and len(rows) == n else None


def _pooled(patches: Tensor, height: int, width: int, merge: int) -> Tensor:
    """(N, height * width, D) patches -> (N, tokens, D), means of merge x merge."""
    blocks = patches.float().reshape(len(patches), height // merge, merge, width // merge, merge, -1)
    return blocks.mean((2, 4)).flatten(1, 2)


def _pooled_rows(patches: Tensor, spans, merge: int) -> Tensor | None:
    """Patches of pictures of different shapes, one picture behind the other, each row by row."""
    parts, start = [], 0
    for b in range(len(spans.visual)):
        for k in range(int(spans.image_index[b].max()) + 1):
            own = spans.visual[b] & (spans.image_index[b] == k)
            height, width = (merge * (int(place[b][own].max()) + 1) for place in (spans.row, spans.col))
            part = patches[start : start + height * width]
            if len(part) != height * width:
                return None
            parts.append(_pooled(part[None], height, width, merge)[0])
            start += height * width
    return torch.cat(parts) if parts else None


def projection(n: int, width: int, seed: int) -> Tensor | None:
    """(n, width) with orthonormal columns, the same for a seed; None where nothing is to be projected."""
    if n <= width:
        return None
    drawn = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn).Q

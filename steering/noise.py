"""The noise of VCD: pictures cut into what is noised by itself, and a generator for each."""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

import torch
from torch import Tensor

from ..models.anatomy import Anatomy
from ..models.diffusion import noised, signal_share

__all__ = ["noised", "pictures", "seeded", "signal_share"]


def pictures(anatomy: Anatomy, tensors: dict[str, Tensor]) -> Iterator[Tensor]:
    """Views of `pixel_values`: every tile, or every picture where these are of different sizes. Padding is left out."""
    pixels = tensors["pixel_values"]
    if anatomy.layout.grid == "merged":  # loose patches, one picture behind the other
        views = pixels.split(tensors["image_grid_thw"].prod(-1).tolist())
    elif anatomy.layout.grid == "rows" and "image_sizes" in tensors:
        views = (one[:, :h, :w] for one, (h, w) in zip(pixels, tensors["image_sizes"].tolist(), strict=True))
    else:
        views = pixels.view(-1, *pixels.shape[-3:])
    return (view for view in views if view.any())


def seeded(seed: int, content: Tensor) -> torch.Generator:
    """A generator that hangs on the seed and on what is in a picture, not on its place in the batch."""
    # into one 32-bit number: torch's generator of the CPU looks at no more
    data = content.detach().float().cpu().contiguous().numpy().tobytes()
    return torch.Generator().manual_seed(crc32(data, crc32(str(seed).encode())))

"""The noise of VCD: a diffusion's forward process on normalised pixels, and pictures cut into what is noised by itself."""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

import torch
from torch import Tensor

from ..models.anatomy import Anatomy
from ..scenes.errors import UserError

STEPS = 1000


def signal_share(step: int) -> float:
    """sqrt of alpha-bar at a step of 0..999: how much of the picture is left. Source: VCD's release (sigmoid schedule)."""
    if not (isinstance(step, int) and 0 <= step < STEPS):
        raise UserError(f"noise step {step} is outside 0..{STEPS - 1} (VCD uses 500)")
    betas = torch.linspace(-6, 6, STEPS, dtype=torch.float64).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    return float((1 - betas)[: step + 1].prod().sqrt())


def noised(pixels: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """sqrt(a) x + sqrt(1 - a) e for normalised pixels x of any shape, e drawn from the generator (of the CPU)."""
    share = signal_share(step)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return (share * pixels.float() + (1 - share**2) ** 0.5 * noise).to(pixels.dtype)


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

"""A diffusion's forward process on pixels: how a picture drowns in noise, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

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

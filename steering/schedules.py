"""How strong a contrast is at each token: schedules of alpha."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..scenes.errors import UserError

Schedule = Callable[[int, Tensor], float | Tensor]
"""(t, logits (B, V) of the full-picture branch) -> alpha, a number or one a row (B, 1); t counts new tokens from 1."""


class M3ID:
    """alpha_t = e^(decay t) - 1: the further from the prompt, the more the picture has to be called back to mind.

    decay: the paper's lambda. confidence: contrast only the rows whose most likely token has less probability than this;
    None for every row, as the published reimplementation does, which masks by beta instead. Source: Favero et al., "M3ID"
    (CVPR 2024, arXiv 2403.14003).
    """

    def __init__(self, decay: float = 0.02, *, confidence: float | None = None):
        if not (math.isfinite(decay) and decay >= 0):
            raise UserError(f"decay {decay} of M3ID must be 0 or more (0.02 in its paper)")
        if confidence is not None and not 0 < confidence <= 1:
            raise UserError(f"confidence {confidence} of M3ID is a probability: give a number in (0, 1], or None")
        self.decay, self.confidence = decay, confidence

    def __repr__(self) -> str:
        return f"M3ID({self.decay}, confidence={self.confidence})"

    def __call__(self, t: int, positive: Tensor) -> float | Tensor:
        alpha = math.expm1(self.decay * t)
        if self.confidence is None:
            return alpha
        sure = positive.float().softmax(-1).amax(-1, keepdim=True) >= self.confidence
        return torch.where(sure, 0.0, alpha)


def guidance(gamma: float) -> float:
    """The alpha of a guidance scale gamma, in which score = gamma l+ - (gamma - 1) l- (classifier-free guidance, PAI)."""
    if gamma < 1:
        raise UserError(f"guidance scale {gamma} must be 1 or more: 1 is no contrast, PAI uses 1.1")
    return gamma - 1

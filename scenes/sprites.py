"""Drawings turned into pixels: one cached sprite for every thing of a category and size, whatever its colour."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from PIL import Image

from .pen import ROLES, Pen
from .shapes import DRAWINGS


@lru_cache(maxsize=64)
def _role_map(category: str, pixels: int) -> np.ndarray:
    pen = Pen(pixels)
    DRAWINGS[category](pen)
    return pen.roles()


@cache
def aspect(category: str) -> tuple[float, float]:
    """Width and height of a category's drawing, outline included, relative to its longer side."""
    height, width = _role_map(category, 256).shape
    return width / max(width, height), height / max(width, height)


@lru_cache(maxsize=2048)
def sprite(category: str, width: int, height: int) -> np.ndarray:
    """(height, width, len(ROLES) - 1) float32: the share of each pixel that each paint role covers."""
    roles = _role_map(category, 256 if max(width, height) <= 64 else 1024)
    layers = [
        np.asarray(Image.fromarray((roles == code).astype(np.float32)).resize((width, height), Image.Resampling.BOX))
        for code in range(1, len(ROLES))
    ]
    return np.stack(layers, axis=-1)


@lru_cache(maxsize=2048)
def silhouette(category: str, width: int, height: int) -> np.ndarray:
    """bool (height, width): the pixels of a sprite that belong to the thing, at least half covered by it."""
    return sprite(category, width, height).sum(-1) >= 0.5

"""How the places of the world look: one pale, wide backdrop per place, of which each picture shows another part.

Backdrops are pale and nearly flat on purpose: the places must be told apart at a glance, yet no patch of a backdrop may
pass for a thing or for a thing's colour.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

WIDE, HIGH = 1.5, 1.12
"""Size of a backdrop in pictures: the room a picture has to slide about in."""

HORIZON = 0.55
"""Height of the horizon (or of the floor's edge) in a backdrop, in pictures from the top."""


class _Brush:
    """Draws in units of one picture, on a canvas of `pixels` a picture."""

    def __init__(self, pixels: int):
        self._n = pixels
        self.image = Image.new("RGB", (round(WIDE * pixels), round(HIGH * pixels)))
        self._draw = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int]) -> None:
        if x1 > x0 and y1 > y0:
            self._draw.rectangle([v * self._n for v in (x0, y0, x1, y1)], fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: tuple[int, int, int]) -> None:
        self._draw.ellipse([v * self._n for v in (x - rx, y - ry, x + rx, y + ry)], fill=fill)

    def line(self, points: list[tuple[float, float]], width: float, fill: tuple[int, int, int]) -> None:
        self._draw.line(
            [(x * self._n, y * self._n) for x, y in points], fill=fill, width=max(1, round(width * self._n))
        )

    def halves(self, upper: tuple[int, int, int], lower: tuple[int, int, int]) -> None:
        self.box(0, 0, WIDE, HORIZON, upper)
        self.box(0, HORIZON, WIDE, HIGH, lower)


def _meadow(brush: _Brush, rng: np.random.Generator) -> None:
    brush.halves((196, 222, 240), (178, 214, 158))
    for x in (0.1, 0.65, 1.25):
        brush.oval(x, HORIZON + 0.06, 0.45, 0.18, (190, 219, 172))
    brush.box(0, HORIZON, WIDE, HIGH, (178, 214, 158))
    for x, y in rng.random((90, 2)):
        x, y = x * WIDE, HORIZON + 0.03 + y * (HIGH - HORIZON)
        brush.line([(x, y), (x + 0.012, y - 0.035)], 0.008, (152, 194, 134))


def _kitchen(brush: _Brush, rng: np.random.Generator) -> None:
    brush.halves((240, 233, 214), (214, 190, 160))
    for i in range(20):
        brush.line([(i * 0.125, 0), (i * 0.125, HORIZON)], 0.008, (222, 214, 194))
    for i in range(6):
        brush.line([(0, i * 0.125), (WIDE, i * 0.125)], 0.008, (222, 214, 194))
    brush.box(0, HORIZON - 0.025, WIDE, HORIZON + 0.02, (190, 164, 134))


def _street(brush: _Brush, rng: np.random.Generator) -> None:
    brush.halves((206, 206, 212), (168, 168, 172))
    for i in range(6):
        shade = int(rng.integers(188, 202))
        brush.box(i * 0.26, 0.06 + 0.1 * rng.random(), i * 0.26 + 0.24, HORIZON, (shade, shade, shade + 5))
        for j in range(8):
            x, y = i * 0.26 + 0.05 + 0.1 * (j % 2), 0.2 + 0.09 * (j // 2)
            brush.box(x, y, x + 0.045, y + 0.05, (214, 216, 220))
    brush.box(0, HORIZON, WIDE, HORIZON + 0.07, (196, 194, 190))
    for i in range(6):
        brush.box(i * 0.28, 0.86, i * 0.28 + 0.14, 0.885, (214, 214, 208))


def _beach(brush: _Brush, rng: np.random.Generator) -> None:
    brush.halves((214, 234, 244), (240, 224, 184))
    brush.box(0, HORIZON - 0.17, WIDE, HORIZON, (158, 206, 216))
    for x, y in rng.random((26, 2)):
        x, y = x * WIDE, HORIZON - 0.15 + 0.12 * y
        brush.line([(x, y), (x + 0.07, y)], 0.01, (188, 224, 230))
    for i in range(10):
        brush.oval(i * 0.17, HORIZON, 0.1, 0.025, (240, 224, 184) if i % 2 else (226, 240, 240))
    for x, y in rng.random((150, 2)):
        brush.oval(x * WIDE, HORIZON + 0.04 + y * (HIGH - HORIZON), 0.006, 0.006, (222, 202, 160))


def _bedroom(brush: _Brush, rng: np.random.Generator) -> None:
    brush.halves((232, 218, 232), (196, 170, 148))
    for i in range(11):
        brush.box(i * 0.15, 0, i * 0.15 + 0.07, HORIZON, (222, 204, 224))
    brush.box(0, HORIZON - 0.03, WIDE, HORIZON, (244, 238, 240))
    for i in range(1, 6):
        y = HORIZON + i * 0.1
        brush.line([(0, y), (WIDE, y)], 0.008, (180, 154, 132))
        for j in range(5):
            x = (j + 0.5 * (i % 2)) * 0.34
            brush.line([(x, y), (x, y + 0.1)], 0.008, (180, 154, 132))


_PAINT = {"meadow": _meadow, "kitchen": _kitchen, "street": _street, "beach": _beach, "bedroom": _bedroom}


@lru_cache(maxsize=32)
def backdrop(place: str, size: int) -> np.ndarray:
    """(about HIGH * size, about WIDE * size, 3) float32 in 0..255, the whole backdrop of a place, without noise."""
    over = max(1, 512 // size)  # drawn large and shrunk, for smooth edges
    brush = _Brush(size * over)
    _PAINT[place](brush, np.random.default_rng(list(_PAINT).index(place)))
    wide, high = round(WIDE * size), round(HIGH * size)
    array = np.asarray(brush.image.resize((wide, high), Image.Resampling.BOX), dtype=np.float32)
    array.setflags(write=False)  # cached, so nobody may draw on it
    return array

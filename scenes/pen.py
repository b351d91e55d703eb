"""A pen for the drawings of things: it says *where* paint goes and in which role.

"main" takes the thing's colour, "white" stays white, and so on. The outline is part of every drawing: without it a
green tree on a green meadow would have no edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

ROLES = ("none", "main", "shade", "detail", "white", "wood", "leaf", "glass", "outline")
_CODE = {role: code for code, role in enumerate(ROLES)}
_EDGE = 0.035
"""Half the outline's width as a share of the drawing, about one pixel for a thing of the 64-pixel picture."""

Points = Sequence[tuple[float, float]]


class Pen:
    """Draws primitives in unit coordinates (x right, y down); outlines first, fills over them."""

    def __init__(self, pixels: int):
        self._n = pixels
        self._margin = 0.1
        self._marks: list[tuple[str, str, object, float]] = []

    def area(self, role: str, points: Points) -> None:
        """A filled polygon."""
        self._marks.append(("area", role, tuple(points), 0.0))

    def oval(self, role: str, x: float, y: float, rx: float, ry: float) -> None:
        """A filled ellipse around (x, y)."""
        turns = (2 * math.pi * i / 48 for i in range(48))
        self.area(role, [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns])

    def box(self, role: str, x0: float, y0: float, x1: float, y1: float) -> None:
        """A filled rectangle."""
        self.area(role, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])

    def line(self, role: str, points: Points, width: float) -> None:
        """A stroke with round joints and ends."""
        self._marks.append(("line", role, tuple(points), width))

    def arc(self, role: str, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float) -> None:
        """A stroke along an ellipse, from `start` to `end` degrees, clockwise from the right."""
        turns = (math.radians(start + (end - start) * i / 32) for i in range(33))
        self.line(role, [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns], width)

    def roles(self) -> np.ndarray:
        """The drawing as a uint8 map of role codes, cropped to what was painted."""
        full = round(self._n * (1 + 2 * self._margin))
        canvas = Image.new("L", (full, full), 0)
        draw = ImageDraw.Draw(canvas)
        for kind, role, points, width in self._marks:
            if role not in ("detail", "white", "glass"):  # inner marks need no edge of their own
                self._stroke(draw, points, _CODE["outline"], width + 2 * _EDGE, closed=kind == "area")
        for kind, role, points, width in self._marks:
            if kind == "area":
                draw.polygon([self._at(p) for p in points], fill=_CODE[role])
            else:
                self._stroke(draw, points, _CODE[role], width, closed=False)
        return np.asarray(canvas.crop(canvas.getbbox()))

    def _at(self, point: tuple[float, float]) -> tuple[float, float]:
        return (point[0] + self._margin) * self._n, (point[1] + self._margin) * self._n

    def _stroke(self, draw: ImageDraw.ImageDraw, points: Points, code: int, width: float, closed: bool) -> None:
        corners = [self._at(p) for p in points]
        radius = width * self._n / 2
        draw.line(corners + corners[:1] if closed else corners, fill=code, width=round(2 * radius))
        for x, y in corners:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=code)

"""The things of the world: what kinds there are, what they may look like, and the room each takes in a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .sprites import aspect, silhouette

Box = tuple[float, float, float, float]

TYPICAL: dict[str, tuple[str, ...]] = {
    "meadow": ("tree", "flower", "sheep", "kite", "rabbit"),
    "kitchen": ("cup", "bottle", "apple", "pot", "clock"),
    "street": ("car", "house", "bicycle", "bus", "cone"),
    "beach": ("boat", "umbrella", "fish", "ball", "starfish"),
    "bedroom": ("bed", "lamp", "book", "chair", "sock"),
}
"""The things each place suggests, most frequent first; a thing is typical for exactly one place."""

PLACES = tuple(TYPICAL)
CATEGORIES = tuple(category for things in TYPICAL.values() for category in things)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
SIZES = ("small", "big")
COLUMNS = ("left", "middle", "right")
ROWS = ("top", "bottom")

HOME = {category: place for place, things in TYPICAL.items() for category in things}
"""The one place each category is typical for."""

_EXTENT = {"small": 0.235, "big": 0.41}  # longer side as a share of the picture: about 15 and 26 of 64 pixels


@dataclass(frozen=True)
class Thing:
    """One object: (x, y) is its centre in 0..1 of the picture, y down; depth runs from 0 near to 1 far."""

    category: str
    colour: str
    size: str
    x: float
    y: float
    depth: float

    @property
    def column(self) -> str:
        """left, middle or right: the third of the picture the centre is in."""
        return COLUMNS[min(2, int(self.x * 3))]

    @property
    def row(self) -> str:
        """top or bottom: the half of the picture the centre is in."""
        return ROWS[int(self.y >= 0.5)]

    @cached_property
    def box(self) -> Box:
        """x0, y0, x1, y1 in 0..1 of the picture, outline included. Far things are drawn a tenth smaller."""
        half = _EXTENT[self.size] * (1.05 - 0.1 * self.depth) / 2
        wide, high = aspect(self.category)
        return self.x - half * wide, self.y - half * high, self.x + half * wide, self.y + half * high

    def pixels(self, size: int) -> tuple[int, int, int, int]:
        """left, top, width, height of its drawing in a picture of `size` pixels."""
        x0, y0, x1, y1 = (size * v for v in self.box)
        return round(x0), round(y0), max(1, round(x1 - x0)), max(1, round(y1 - y0))


def area(box: Box) -> float:
    """The area of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(a: Box, b: Box) -> float:
    """The area two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def hidden_pixels(near: Thing, far: Thing, size: int = 64) -> int:
    """How many pixels of `far` lie under `near`, whatever else stands before them."""
    a, b = near.pixels(size), far.pixels(size)
    left, top = max(a[0], b[0]), max(a[1], b[1])
    right, bottom = min(a[0] + a[2], b[0] + b[2]), min(a[1] + a[3], b[1] + b[3])
    if right <= left or bottom <= top:
        return 0
    under, over = (
        silhouette(t.category, *p[2:])[top - p[1] : bottom - p[1], left - p[0] : right - p[0]]
        for t, p in ((near, a), (far, b))
    )
    return int((under & over).sum())

"""What a figure shows, apart from how it is drawn: panels of series, from which both the picture and the interactive one come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from ..style import Look

Numbers = Sequence[float]


@dataclass(frozen=True)
class Line:
    """A curve with an optional band. label: written at its end ("" for none)."""

    x: Numbers
    y: Numbers
    label: str
    look: Look
    low: Numbers | None = None
    high: Numbers | None = None


@dataclass(frozen=True)
class Points:
    """Points with optional whiskers on either axis, and a text beside each."""

    x: Numbers
    y: Numbers
    label: str
    look: Look
    x_low: Numbers | None = None
    x_high: Numbers | None = None
    y_low: Numbers | None = None
    y_high: Numbers | None = None
    texts: Sequence[str] | None = None


@dataclass(frozen=True)
class Areas:
    """Shares stacked on each other: heights by name, one list over x each, with looks by name."""

    x: Numbers
    heights: dict[str, Numbers]
    looks: dict[str, Look]


@dataclass(frozen=True)
class Heat:
    """A matrix: values[i][j] at rows[i], columns[j]. texts: what a cell says in the place of its value; strong: cells that are
    written in bold, the others faint (None: all alike); framed: cells (i, j) with a frame; signed: colours part at 0.
    """

    values: Sequence[Numbers]
    rows: Sequence[str]
    columns: Sequence[str]
    label: str
    limits: tuple[float, float] | None = None
    texts: Sequence[Sequence[str]] | None = None
    strong: Sequence[Sequence[bool]] | None = None
    framed: Sequence[tuple[int, int]] = ()
    signed: bool = False

    @property
    def range(self) -> tuple[float, float]:
        """Limits of the colours: those given, or the smallest and largest value; as far below 0 as above, if signed."""
        if self.limits is not None:
            return self.limits
        values = np.asarray(self.values, float)
        low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if np.isfinite(values).any() else (0.0, 1.0)
        return (-max(-low, high), max(-low, high)) if self.signed else (low, high)

    def text(self, i: int, j: int) -> str:
        if self.texts is not None:
            return self.texts[i][j]
        return f"{self.values[i][j]:.2f}" if math.isfinite(self.values[i][j]) else ""


@dataclass(frozen=True)
class Overlay:
    """A picture with values, words or outlines laid over the regions its tokens see.

    image: (H, W, 3) uint8. boxes: (N, 4) pixels x0, y0, x1, y1 of it. values: one a box, drawn as a translucent heat map,
    the mean where boxes overlap; None for none. words: one a box ("" for none). outlined: boxes to be framed, by index.
    """

    image: np.ndarray
    boxes: Sequence[Numbers]
    values: Numbers | None = None
    label: str = ""
    limits: tuple[float, float] | None = None
    words: Sequence[str] | None = None
    outlined: Sequence[int] = ()

    @property
    def range(self) -> tuple[float, float]:
        """Limits of the colours: those given, or the smallest and largest value."""
        if self.limits is not None:
            return self.limits
        values = np.asarray(self.values, float)
        low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if np.isfinite(values).any() else (0.0, 1.0)
        return low, high if high > low else low + 1.0

    def map(self) -> np.ndarray:
        """(H, W) mean of the values whose boxes hold a pixel's centre; NaN where none does."""
        return over_boxes(self.image.shape[:2], self.boxes, self.values)


def over_boxes(size: tuple[int, int], boxes: Sequence[Numbers], values) -> np.ndarray:
    """(..., H, W) of values (..., N): at each pixel the mean over the boxes (N, 4) that hold its centre; NaN where none does.
    Values that are not finite count as absent, as do boxes without a place."""
    values = np.asarray(values, float)
    there = np.isfinite(values)
    values = np.where(there, values, 0)[..., None, None]
    total, count = (np.zeros((*there.shape[:-1], *size)) for _ in range(2))
    for i, (x0, y0, x1, y1) in enumerate(np.asarray(boxes, float)):
        if np.isfinite([x0, y0, x1, y1]).all():
            rows, columns = (slice(round(a), round(b)) for a, b in ((y0, y1), (x0, x1)))
            total[..., rows, columns] += values[..., i, :, :]
            count[..., rows, columns] += there[..., i, None, None]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Strip:
    """Small pictures of one size side by side, each (H, W, 3) uint8, and lines of text below."""

    pictures: Sequence[np.ndarray]
    lines: Sequence[str] = ()

    def montage(self, gap: int = 3) -> np.ndarray:
        """(H, W, 3) uint8: the pictures in a row with white between."""
        white = np.full((self.pictures[0].shape[0], gap, 3), 255, np.uint8)
        return np.concatenate([part for picture in self.pictures for part in (picture, white)][:-1], 1)


@dataclass(frozen=True)
class Panel:
    """One pair of axes. level: a horizontal line at a value that means something (0, chance), with its name."""

    title: str
    x_label: str
    y_label: str
    marks: Sequence[Line | Points | Areas | Heat | Overlay | Strip]
    level: tuple[float, str] | None = None
    upright: tuple[float, str] | None = None
    y_limits: tuple[float, float] | None = None
    x_limits: tuple[float, float] | None = None
    x_ticks: tuple[Numbers, Sequence[str]] | None = None
    y_ticks: tuple[Numbers, Sequence[str]] | None = None
    logarithmic: bool = False
    direct: bool = True
    """Labels at the ends of lines; otherwise a legend."""

    def y_range(self) -> tuple[float, float]:
        """The limits given, or what holds every value, band and level with a little room."""
        if self.y_limits is not None:
            return self.y_limits
        values: list[float] = [] if self.level is None else [self.level[0]]
        for mark in self.marks:
            if isinstance(mark, Line):
                values += [
                    *mark.y,
                    *(mark.low if mark.low is not None else ()),
                    *(mark.high if mark.high is not None else ()),
                ]
            elif isinstance(mark, Points):
                values += [
                    *mark.y,
                    *(mark.y_low if mark.y_low is not None else ()),
                    *(mark.y_high if mark.y_high is not None else ()),
                ]
            elif isinstance(mark, Areas):
                values += [0.0, 1.0]
        return with_room(values, logarithmic=self.logarithmic)


@dataclass(frozen=True)
class Chart:
    """A figure: panels in rows of `columns`. note: n and what the band is, written below; height: inches of one row."""

    panels: Sequence[Panel]
    note: str
    columns: int = 2
    height: float | None = None
    shared_y: bool = False
    widths: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Panels that share an axis get limits that hold all of them."""
        if self.shared_y:
            ranges = [panel.y_range() for panel in self.panels]
            limits = (min(low for low, _ in ranges), max(high for _, high in ranges))
            object.__setattr__(self, "panels", [replace(panel, y_limits=limits) for panel in self.panels])


@dataclass(frozen=True)
class Figure:
    """A chart with the words that go with it: a title, two sentences on how to read it, a text in the place of the picture."""

    name: str
    title: str
    reading: str
    alt: str
    chart: Chart = field(repr=False)


def with_room(values: Sequence[float], *, logarithmic: bool = False, room: float = 0.06) -> tuple[float, float]:
    """Limits a little wider than the finite values; (0, 1) when there are none."""
    finite = [float(v) for v in values if v is not None and math.isfinite(v) and (v > 0 or not logarithmic)]
    if not finite:
        return (0.1, 1.0) if logarithmic else (0.0, 1.0)
    low, high = min(finite), max(finite)
    if logarithmic:
        return low / 1.25, high * 1.25
    span = (high - low) or abs(high) or 1.0
    return low - room * span, high + room * span


def spread(places: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Places moved as little as needed so that neighbours are `gap` apart and all lie within low..high, order kept."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for pushing in range(60):
        done = True
        for a, b in pairwise(order):
            lack = gap - (moved[b] - moved[a])
            if lack > gap * 1e-3:
                moved[a], moved[b], done = moved[a] - lack / 2, moved[b] + lack / 2, False
        for i in order:
            inside = min(max(moved[i], low), high)
            done &= abs(inside - moved[i]) < gap * 1e-3
            moved[i] = inside
        if done or pushing == 59:
            break
    return moved

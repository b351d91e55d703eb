"""Figures: one function a figure, drawn from a probe's table and from nothing else.

Each function takes a table and gives a `Figure`: a chart with its words, or None where the table has nothing for it. The
chart is drawn twice, by matplotlib and by plotly.
"""

from __future__ import annotations

from dataclasses import dataclass

from .chart import Areas, Chart, Figure, Heat, Line, Overlay, Panel, Points
from .interactive import draw_interactive
from .picture import draw_picture

__all__ = [
    "Areas", "Chart", "Drawn", "Figure", "Heat", "Line", "Overlay", "Panel", "Points", "draw", "draw_interactive",
    "draw_picture",
]  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A figure, drawn: `picture` is a matplotlib figure, `interactive` a plotly one (None for a user's own drawing)."""

    name: str
    title: str
    reading: str
    alt: str
    note: str
    picture: object
    interactive: object | None


def draw(figure: Figure) -> Drawn:
    """Both drawings of a figure."""
    return Drawn(
        figure.name, figure.title, figure.reading, figure.alt, figure.chart.note, draw_picture(figure.chart),
        draw_interactive(figure.chart),
    )  # fmt: skip

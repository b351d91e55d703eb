"""Figures: one function a figure, drawn from a probe's table and from nothing else.

Each function takes a table and gives a `Figure`: a chart with its words, or None where the table has nothing for it. The
chart is drawn twice, by matplotlib and by plotly.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from . import attention_shift, implicit_alignment
from .chart import Areas, Chart, Figure, Heat, Line, Overlay, Panel, Points
from .interactive import draw_interactive
from .picture import draw_picture

__all__ = [
    "FIGURES", "Areas", "Chart", "Drawn", "Figure", "Heat", "Line", "Overlay", "Panel", "Points", "draw", "draw_interactive",
    "draw_picture", "figures_of",
]  # fmt: skip

FIGURES = {
    "implicit_alignment": implicit_alignment.FIGURES,
    "attention_shift": attention_shift.FIGURES,
}
"""Figure functions by the name of the probe whose table they draw."""


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


def figures_of(probe: str, table: pd.DataFrame) -> list[Figure]:
    """Every figure of a built-in probe that its table has something for; none for another probe."""
    made = (function(table) for function in FIGURES.get(probe, ()))
    return [figure for figure in made if figure is not None]

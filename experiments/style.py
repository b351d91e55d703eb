"""One look for every figure: the same constants make matplotlib's settings and plotly's template.

Colours are Okabe and Ito's (2008), which readers with any common colour blindness can tell apart; yellow is left out, as it
vanishes on paper. No series is told by colour alone: each look also has a marker and a dash.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

INK, SOFT, FAINT, PAPER = "#1d2129", "#5b6370", "#e3e6ea", "#ffffff"
"""Text, secondary text, grid lines, background."""

FONT_SIZE = 10.0
"""Points, at a width of `WIDTH` inches: still about 5 points when a figure is shown at half its size."""

WIDTH, PANEL_HEIGHT, DPI = 7.6, 2.9, 200
"""Inches, inches, and pixels an inch of the PNG files (twice what a screen shows)."""

_MARKERS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
}
_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}


@dataclass(frozen=True)
class Look:
    """How a series is drawn: colour, marker and dash in matplotlib's notation ("" for none), line width in points."""

    colour: str
    marker: str = "o"
    dash: str = "-"
    width: float = 1.8

    @property
    def plotly_marker(self) -> str:
        return _MARKERS.get(self.marker, "circle")

    @property
    def plotly_dash(self) -> str:
        return _DASHES.get(self.dash, "solid")

    def with_(self, **changes) -> Look:
        return replace(self, **changes)


BLACK, BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, GREY = (
    "#1d2129", "#0072b2", "#d55e00", "#009e73", "#b0568f", "#56b4e9", "#c98a00", "#8a919c",
)  # fmt: skip

LOOKS: tuple[Look, ...] = (
    Look(BLUE, "o", "-"),
    Look(VERMILION, "s", "--"),
    Look(GREEN, "^", "-."),
    Look(PURPLE, "D", ":"),
    Look(BLACK, "v", "-"),
    Look(ORANGE, "P", "--"),
    Look(SKY, "X", "-."),
)
"""For series without a meaning of their own, in this order."""

PICTURE, TEXT, BOTH, NULL = (
    Look(BLUE, "o", "-"),
    Look(VERMILION, "s", "--"),
    Look(BLACK, "D", "-"),
    Look(GREY, "", ":", 1.3),
)
"""The picture's side, the text's side, something between the two, and what a baseline or null model gives."""

SEGMENTS: dict[str, Look] = {
    "bos": Look(GREY, "v", ":"),
    "sink": Look(GREY, "v", ":"),
    "system": Look(SKY, "X", "-."),
    "before": Look(GREEN, "^", "-."),
    "image": PICTURE,
    "after": TEXT,
    "answer": Look(PURPLE, "D", ":"),
    "generated": Look(ORANGE, "P", "--"),
}
"""Every figure draws a span in the same look; the sink is the first position, which spans call bos."""

SCALE = ("#f4f7fb", "#0b4f8a")
"""Light to dark of heat maps: one hue, so that grey print keeps the order."""

SIGNED_SCALE = ("#c8531a", "#f6f7f9", "#0b65a8")
"""Below, at and above 0: vermilion and blue, which every reader can tell apart."""


def look(index: int) -> Look:
    """The look of the index-th of a number of series; after the last the first comes again."""
    return LOOKS[index % len(LOOKS)]


@contextmanager
def matplotlib_style() -> Iterator[None]:
    """Figures made inside look like all others; settings of the caller's session are left as they were."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


_RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a figure is the same on every machine
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE + 0.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": FONT_SIZE,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#aab1bb",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": FONT_SIZE - 1,
    "ytick.labelsize": FONT_SIZE - 1,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.markersize": 4.5,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "chiasm",
}


@cache
def plotly_template():
    """The plotly template with the same fonts, colours and grid."""
    import plotly.graph_objects as go

    axis = dict(
        gridcolor=FAINT, linecolor="#aab1bb", zeroline=False, ticks="outside", ticklen=4, tickcolor="#aab1bb",
        tickfont=dict(size=12, color=SOFT), title=dict(font=dict(size=13, color=SOFT)), showline=True,
    )  # fmt: skip
    return go.layout.Template(
        layout=dict(
            font=dict(family="system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", size=13, color=INK),
            paper_bgcolor=PAPER,
            plot_bgcolor=PAPER,
            colorway=[one.colour for one in LOOKS],
            xaxis={**axis, "showgrid": False},
            yaxis={**axis, "showline": False, "ticks": ""},
            margin=dict(l=64, r=24, t=46, b=84),
            hoverlabel=dict(bgcolor=PAPER, bordercolor=FAINT, font=dict(color=INK)),
            legend=dict(orientation="h", y=-0.25),
        )
    )

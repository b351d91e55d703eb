"""The report's page: plain values in, one HTML file without any outside part out."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd
from jinja2 import Environment

from .figures import Drawn

SHOWN = 50
"""Most skipped samples listed on the page."""


@dataclass(frozen=True)
class Card:
    """One key number. interval: its 95 % interval and n in words; means: what it says, in one line."""

    name: str
    value: str
    interval: str
    means: str


@dataclass(frozen=True)
class Claim:
    """A claim of a paper and what this run says of it. holds: True, False, or None where the interval does not decide."""

    claim: str
    source: str
    here: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        return {True: "✓ so here", False: "✗ not so here", None: "○ open"}[self.holds]

    @property
    def mark(self) -> str:
        return {True: "holds", False: "fails", None: "open"}[self.holds]


@dataclass(frozen=True)
class ShownSpan:
    """A stretch of one example's sequence: its label, its text, and the colour of the label."""

    label: str
    text: str
    colour: str


@dataclass(frozen=True)
class Example:
    """One sample as the model met it. pictures: PNG, base64."""

    id: str
    pictures: Sequence[str]
    question: str
    said: str
    answer: str
    spans: Sequence[ShownSpan]
    tokens: int


@dataclass(frozen=True)
class PageFigure:
    """A figure as the page holds it. png: base64; data: plotly's JSON, safe inside a script element, or ""."""

    id: str
    title: str
    reading: str
    alt: str
    note: str
    png: str
    data: str


@dataclass(frozen=True)
class PageTable:
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One probe's or experiment's part of the page."""

    id: str
    title: str
    intro: Sequence[str] = ()
    figures: Sequence[PageFigure] = ()
    tables: Sequence[PageTable] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """Everything the page says. Texts are escaped when the page is written."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    versions: str
    sections: Sequence[Section]
    limits: Sequence[str]
    footer: str
    cards: Sequence[Card] = ()
    claims: Sequence[Claim] = ()
    examples: Sequence[Example] = ()
    examples_intro: str = ""
    skipped: Sequence[tuple[str, str]] = ()
    skipped_total: int = 0
    plotly: str = field(default="", repr=False)


def write_page(page: Page) -> str:
    """The page as HTML. It loads nothing: pictures and plotly's script are inside."""
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(page=page)


def page_figure(section: str, drawn: Drawn, png: bytes | None = None) -> PageFigure:
    """A drawn figure for the page; png: its picture, where it has been written already."""
    interactive = getattr(drawn, "interactive", None)
    return PageFigure(
        f"{section}-{drawn.name}".replace("_", "-"), drawn.title, drawn.reading, drawn.alt, drawn.note,
        base64.b64encode(png if png is not None else png_of(drawn.picture)).decode(),
        "" if interactive is None else script_json(interactive.to_plotly_json()),
    )  # fmt: skip


def png_of(picture, dpi: int | None = None) -> bytes:
    """A matplotlib figure, or a PIL picture, as PNG."""
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", **({} if dpi is None else {"dpi": dpi}))
    else:
        picture.save(buffer, format="png")
    return buffer.getvalue()


def script_json(value) -> str:
    """JSON that cannot end the script element it stands in. Numbers that are not finite become null."""
    import plotly.io as pio

    text = pio.json.to_json_plotly(value)
    json.loads(text)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def shown_table(caption: str, table: pd.DataFrame, most: int = 40) -> PageTable:
    """The first rows of a table, numbers to three digits."""
    rows = [[_shown(value) for value in row] for row in table.head(most).itertuples(index=False)]
    more = f"; the first {most} of {len(table)} rows" if len(table) > most else ""
    return PageTable(caption + more, [str(name) for name in table.columns], rows)


def _shown(value) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, float | np.floating):
        return number(float(value))
    return str(value)


def number(value: float) -> str:
    """A number as a page shows it: three significant digits, a true minus sign."""
    if not np.isfinite(value):
        return "–"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        text = f"{value:.2e}"
    else:
        text = f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return text.replace("-", "−")


def interval(low: float, high: float, n: int | None = None) -> str:
    """The 95 % interval and n in words."""
    count = "" if n is None else f", n = {int(n):,}"
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"no interval{count}"
    return f"95 %: {number(low)} to {number(high)}{count}"


@cache
def packed_plotly() -> str:
    """plotly's script, compressed and in base64: under 2 MB, unpacked by the browser when a figure is opened."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()

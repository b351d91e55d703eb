"""The numbers that a chart shows, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..experiments.figures.chart import Areas, Chart, Heat, Line, Overlay, Points, Strip

if TYPE_CHECKING:
    import pandas as pd


def chart_table(chart: Chart) -> pd.DataFrame:
    """One row a point, cell or region: the panel, the series, where it is, its value and its interval."""
    import pandas as pd

    rows = []
    for panel in chart.panels:
        title = " ".join(panel.title.split())
        for mark in panel.marks:
            rows += [{"panel": title, **row} for row in _rows(mark)]
    return pd.DataFrame(rows)


def _rows(mark: Any) -> Iterator[dict[str, Any]]:
    if isinstance(mark, Line):
        for i, (x, y) in enumerate(zip(mark.x, mark.y, strict=True)):
            yield {"series": mark.label, "x": x, "y": y, **_ends("", i, mark.low, mark.high)}
    elif isinstance(mark, Points):
        for i, (x, y) in enumerate(zip(mark.x, mark.y, strict=True)):
            ends = _ends("x_", i, mark.x_low, mark.x_high) | _ends("", i, mark.y_low, mark.y_high)
            yield {"series": mark.label, "x": x, "y": y, **ends} | ({"text": mark.texts[i]} if mark.texts else {})
    elif isinstance(mark, Areas):
        for name, heights in mark.heights.items():
            yield from ({"series": name, "x": x, "y": y} for x, y in zip(mark.x, heights, strict=True))
    elif isinstance(mark, Heat):
        for i, row in enumerate(mark.rows):
            for j, column in enumerate(mark.columns):
                said = {"text": mark.texts[i][j]} if mark.texts else {}
                yield {"series": _line(row), "x": _line(column), "y": mark.values[i][j], **said}
    elif isinstance(mark, Overlay):
        for i, box in enumerate(mark.boxes):
            row = dict(zip(("x", "y", "x_high", "y_high"), map(float, box), strict=True)) | {
                "framed": i in mark.outlined
            }
            row |= {} if mark.values is None else {"value": float(mark.values[i])}
            yield row | ({"text": mark.words[i]} if mark.words else {})
    elif isinstance(mark, Strip):
        yield {"text": " ".join(mark.lines)}


def _ends(prefix: str, i: int, low, high) -> dict[str, Any]:
    return {} if low is None or high is None else {f"{prefix}low": low[i], f"{prefix}high": high[i]}


def _line(text: Any) -> str:
    return " ".join(str(text).split())

"""A figure on a page: its panels as interactive drawings that stack in a narrow window, its words, and downloads."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

import streamlit as st

from ..experiments.style import BLUE, FAINT, GREEN, INK, PAPER, PURPLE, SOFT, VERMILION

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..experiments.figures import Figure
    from ..experiments.figures.chart import Chart, Panel

NIGHT = {
    INK: "#e8eaee", SOFT: "#a9b1bd", FAINT: "#323842", PAPER: "#14171c", "#aab1bb": "#596270",
    BLUE: "#4aa3df", VERMILION: "#f0803c", GREEN: "#2fc296", PURPLE: "#d68cbb",
}  # fmt: skip
"""Colours on a dark page: text, grid and paper turned round, the dark ones of the series as far from it as they are from white."""

EDGE = 96
"""Pixels right of a panel for the names of its curves."""


def show(
    figure: Figure, table: pd.DataFrame | None = None, *, key: str, framed: bool = True, columns: int | None = None
) -> None:
    """Draws a figure on the page, a panel a drawing, so that they stack in a narrow window.

    table: what the CSV download holds; default: the numbers in the chart. key: one of its own for every figure of a page.
    framed: with a border and the title, which where the figure is a part of something else are told there. columns: of panels, where
    a wide window has room for more than paper.
    """
    chart = figure.chart if columns is None else replace(figure.chart, columns=columns)
    with st.container(border=framed, key=f"figure-{key}"):
        if framed:
            st.markdown(f"##### {escaped(figure.title)}")
        for row in _rows(chart):
            places = st.columns(list(chart.widths or [1] * len(row))[: len(row)] if len(row) == chart.columns else chart.columns)  # fmt: skip
            for place, (i, panel) in zip(places, row, strict=False):
                with place:
                    _panel(chart, panel, f"{key}-{i}")
        for line in chart.note.splitlines():
            st.caption(escaped(line))
        st.markdown(f"**How to read this.** {escaped(figure.reading)}")
        downloads(figure, table, key=key)


def fold(figure: Figure, *, key: str, opened: bool, columns: int | None = None) -> None:
    """The figure under its title, drawn when it is opened: a page of ten figures is there at once."""

    @st.fragment
    def folded() -> None:
        box = st.expander(f"**{escaped(figure.title)}**", expanded=opened, key=f"fold-{key}", on_change="rerun")
        if box.open:
            with box:
                show(figure, key=key, framed=False, columns=columns)

    folded()


def downloads(figure: Figure, table: pd.DataFrame | None = None, *, key: str) -> None:
    """Three buttons; a file is made when its button is pressed."""
    from .values import chart_table

    def csv() -> bytes:
        return (chart_table(figure.chart) if table is None else table).to_csv(index=False).encode()

    with st.container(horizontal=True, gap="small"):
        for label, mime, make in (
            ("PNG", "image/png", lambda: picture(figure, "png")),
            ("SVG", "image/svg+xml", lambda: picture(figure, "svg")),
            ("CSV", "text/csv", csv),
        ):
            st.download_button(
                label, make, f"{figure.name}.{label.lower()}", mime, key=f"{key}-{label}", on_click="ignore",
                icon=":material/download:", type="tertiary",
            )  # fmt: skip


def is_dark() -> bool:
    """Whether the window is in its dark colours."""
    return st.context.theme.type == "dark"


def drawn(chart: Chart, *, dark: bool = False) -> go.Figure:
    """The interactive drawing, in the colours of a light or a dark page."""
    import plotly.graph_objects as go

    from ..experiments.figures import draw_interactive

    made = draw_interactive(chart)
    if not dark:
        return made
    text = made.to_json()
    for day, night in NIGHT.items():
        text = text.replace(f'"{day}"', f'"{night}"').replace(_rgb(day), _rgb(night))
    return go.Figure(json.loads(text), skip_invalid=True)


def picture(figure: Figure, kind: str) -> bytes:
    """The figure as for paper: kind is "png" or "svg"."""
    from ..experiments.figures import draw_picture

    buffer = BytesIO()
    draw_picture(figure.chart).savefig(buffer, format=kind)
    return buffer.getvalue()


def escaped(text: str) -> str:
    """Markdown reads signs in it that a text means as they are."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#+$~:|" else sign for sign in text)


def _rows(chart: Chart) -> list[list[tuple[int, Panel]]]:
    numbered = list(enumerate(chart.panels))
    columns = min(chart.columns, len(numbered))
    return [numbered[i : i + columns] for i in range(0, len(numbered), columns)]


def _panel(chart: Chart, panel: Panel, key: str) -> None:
    if panel.title:
        st.markdown(f"**{escaped(' '.join(panel.title.split()))}**")
    alone = replace(chart, panels=[replace(panel, title="")], columns=1, note="", widths=None, shared_y=False)
    st.plotly_chart(
        _drawing(alone, is_dark()), theme=None, width="stretch", key=f"chart-{key}",
        config={"displaylogo": False, "displayModeBar": False},
    )  # fmt: skip


@st.cache_resource(max_entries=256, show_spinner=False)
def _drawing(chart: Chart, dark: bool) -> go.Figure:
    """A chart of one panel as a page shows it; kept, as a page is drawn anew at every change of a control."""
    panel = chart.panels[0]
    made = drawn(chart, dark=dark)
    named = any(getattr(mark, "label", "") and hasattr(mark, "high") for mark in panel.marks) and panel.direct
    made.update_layout(margin=dict(l=8, r=EDGE if named else 8, t=8, b=8), height=_height(chart, panel))
    if not panel.direct and any(getattr(mark, "label", "") for mark in panel.marks):
        made.for_each_trace(lambda trace: trace.update(showlegend=trace.showlegend is not False and bool(trace.name)))
        made.update_layout(showlegend=True, legend=dict(orientation="h", x=0, xanchor="left", y=1, yanchor="bottom"))
    made.update_xaxes(automargin=True)
    made.update_yaxes(automargin=True)
    return made


def _height(chart: Chart, panel: Panel) -> int:
    """Pixels: as high as in the report, with room for each row that is named."""
    from ..experiments.figures.chart import Heat

    rows = max([len(mark.rows) for mark in panel.marks if isinstance(mark, Heat)] + [len((panel.y_ticks or [()])[0])])
    return int(min(900, max(112 * (chart.height or 2.6), 60 + 26 * rows)))


def _rgb(colour: str) -> str:
    return "rgba({},{},{},".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))

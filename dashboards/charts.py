"""A figure on a page: its interactive drawing, how to read it, what its n and interval are, and downloads."""

from __future__ import annotations

import json
from io import BytesIO
from typing import TYPE_CHECKING

import streamlit as st

from ..experiments.style import FAINT, INK, PAPER, SOFT

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..experiments.figures import Figure

NIGHT = {INK: "#e8eaee", SOFT: "#a9b1bd", FAINT: "#323842", PAPER: "#14171c", "#aab1bb": "#596270"}
"""What the colours of text, grid and paper become on a dark page; those of series are readable on both."""


def show(figure: Figure, table: pd.DataFrame | None = None, *, key: str) -> None:
    """Draws a figure on the page. table: what the CSV download holds; key: one of its own for every figure of a page."""
    with st.container(border=True, key=f"figure-{key}"):
        st.markdown(f"**{figure.title}**")
        st.plotly_chart(
            drawn(figure, dark=is_dark()),
            theme=None,
            width="stretch",
            key=f"chart-{key}",
            config={"displaylogo": False},
        )
        st.caption(f"**How to read this.** {figure.reading}")
        with st.container(horizontal=True, gap="small"):
            _download("PNG", "image/png", lambda: picture(figure, "png"), f"{figure.name}.png", key)
            _download("SVG", "image/svg+xml", lambda: picture(figure, "svg"), f"{figure.name}.svg", key)
            if table is not None:
                _download("CSV", "text/csv", lambda: table.to_csv(index=False).encode(), f"{figure.name}.csv", key)


def is_dark() -> bool:
    """Whether the window is in its dark colours."""
    return st.context.theme.type == "dark"


def drawn(figure: Figure, *, dark: bool = False) -> go.Figure:
    """The interactive drawing, in the colours of a light or a dark page."""
    import plotly.graph_objects as go

    from ..experiments.figures import draw_interactive

    made = draw_interactive(figure.chart)
    if not dark:
        return made
    text = made.to_json()
    for day, night in NIGHT.items():
        text = text.replace(f'"{day}"', f'"{night}"')
    return go.Figure(json.loads(text), skip_invalid=True)


def picture(figure: Figure, kind: str) -> bytes:
    """The figure as for paper: kind is "png" or "svg"."""
    from ..experiments.figures import draw_picture

    buffer = BytesIO()
    draw_picture(figure.chart).savefig(buffer, format=kind)
    return buffer.getvalue()


def _download(label: str, mime: str, make, name: str, key: str) -> None:
    st.download_button(
        label, make, name, mime, key=f"{key}-{label}", on_click="ignore", icon=":material/download:", type="tertiary",
        help=f"Download as {label}",
    )  # fmt: skip

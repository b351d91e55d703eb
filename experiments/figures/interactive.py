"""Charts as plotly figures: the same panels, with values on hover."""

from __future__ import annotations

import math
from base64 import b64encode
from io import BytesIO

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from ..style import INK, PANEL_HEIGHT, PAPER, SCALE, SIGNED_SCALE, SOFT, VERMILION, plotly_template
from .chart import Areas, Chart, Heat, Line, Overlay, Panel, Points, Strip, spread
from .picture import faded, line_ends

ROW_HEIGHT = 330
"""Pixels of one row of panels that names no height of its own; others have as many pixels an inch."""

STRIP_HEIGHT = 165
"""The same of strips of small pictures."""


def draw_interactive(chart: Chart) -> go.Figure:
    """The chart as a plotly figure; its width is that of the page."""
    columns = min(chart.columns, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    strips = any(
        isinstance(mark, Strip) for panel in chart.panels for mark in panel.marks
    )  # low, with text between the rows
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=[panel.title for panel in chart.panels], column_widths=chart.widths,
        shared_yaxes=chart.shared_y, horizontal_spacing=0.03 if strips else min(0.17, 0.34 / columns),
        vertical_spacing=(0.4 if strips else 0.22) / max(1, rows - 0.5),
    )  # fmt: skip
    figure.for_each_annotation(lambda title: title.update(font=dict(size=14), x=title.x, xanchor="center"))
    for i, panel in enumerate(chart.panels):
        _draw_panel(figure, panel, i // columns + 1, i % columns + 1)
    figure.add_annotation(
        text=chart.note, xref="paper", yref="paper", x=0, y=0, yshift=-66, xanchor="left", showarrow=False, align="left",
        font=dict(size=11, color=SOFT),
    )  # fmt: skip
    figure.update_layout(
        template=plotly_template(),
        height=(STRIP_HEIGHT if strips else ROW_HEIGHT * (chart.height or PANEL_HEIGHT) / PANEL_HEIGHT) * rows + 60,
        showlegend=False,
        margin_r=90,
    )
    return figure


def _draw_panel(figure: go.Figure, panel: Panel, row: int, column: int) -> None:
    at = dict(row=row, col=column)
    for mark in panel.marks:
        if isinstance(mark, Line):
            _draw_line(figure, mark, at)
        elif isinstance(mark, Points):
            _draw_points(figure, mark, at)
        elif isinstance(mark, Areas):
            _draw_areas(figure, mark, at)
        elif isinstance(mark, Heat):
            _draw_heat(figure, mark, at)
        elif isinstance(mark, Overlay):
            _draw_overlay(figure, mark, at)
        elif isinstance(mark, Strip):
            _draw_strip(figure, mark, at)
    figure.update_xaxes(title_text=panel.x_label, title_standoff=6, **at)
    figure.update_yaxes(title_text=panel.y_label, title_standoff=8, **at)
    if any(isinstance(mark, Heat | Overlay | Strip) for mark in panel.marks):
        return
    low, high = panel.y_range()
    if panel.logarithmic:
        figure.update_yaxes(type="log", range=[math.log10(low), math.log10(high)], **at)
    else:
        figure.update_yaxes(range=[low, high], **at)
    if panel.x_limits is not None:
        figure.update_xaxes(range=list(panel.x_limits), **at)
    if panel.x_ticks is not None:
        figure.update_xaxes(tickvals=list(panel.x_ticks[0]), ticktext=list(panel.x_ticks[1]), **at)
    if panel.y_ticks is not None:
        figure.update_yaxes(
            tickvals=list(panel.y_ticks[0]), ticktext=list(panel.y_ticks[1]), showgrid=False, automargin=True, **at
        )
        figure.update_xaxes(showgrid=True, **at)
    if panel.level is not None:
        figure.add_hline(panel.level[0], line=dict(color="#8a919c", width=1, dash="dot"), **at)
    if panel.upright is not None:
        figure.add_vline(panel.upright[0], line=dict(color="#8a919c", width=1, dash="dot"), **at)
    _label_lines(figure, panel, low, high, at)


def _draw_line(figure, line: Line, at: dict) -> None:
    if line.low is not None and line.high is not None:
        band = dict(mode="lines", line=dict(width=0), hoverinfo="skip", showlegend=False)
        figure.add_scatter(x=_list(line.x), y=_list(line.low), **band, **at)
        figure.add_scatter(
            x=_list(line.x), y=_list(line.high), fill="tonexty", fillcolor=_faded(line.look.colour), **band, **at
        )
    interval = "" if line.low is None or line.high is None else " [%{customdata[0]:.3f}, %{customdata[1]:.3f}]"
    figure.add_scatter(
        x=_list(line.x), y=_list(line.y), name=line.label, mode="lines+markers" if line.look.marker else "lines",
        line=dict(color=line.look.colour, width=2.2, dash=line.look.plotly_dash),
        marker=dict(symbol=line.look.plotly_marker, size=7, line=dict(color=PAPER, width=1)),
        customdata=None if not interval else np.column_stack([line.low, line.high]).astype(float).tolist(),
        hovertemplate=f"%{{x}}: %{{y:.3f}}{interval}<extra>{_plain(line.label)}</extra>", **at,
    )  # fmt: skip


def _draw_points(figure, points: Points, at: dict) -> None:
    whiskers = {}
    for name, values, low, high in (
        ("error_x", points.x, points.x_low, points.x_high),
        ("error_y", points.y, points.y_low, points.y_high),
    ):
        if low is not None and high is not None:
            centre = np.asarray(values, float)
            whiskers[name] = dict(
                array=_list(np.asarray(high, float) - centre), arrayminus=_list(centre - np.asarray(low, float)),
                width=0, thickness=1.6, color=points.look.colour,
            )  # fmt: skip
    figure.add_scatter(
        x=_list(points.x), y=_list(points.y), name=points.label, mode="markers+text" if points.texts else "markers",
        text=None if not points.texts else [_plain(text) for text in points.texts], textposition=[("top right", "bottom right", "top left", "bottom left")[i % 4] for i in range(len(points.x))],
        marker=dict(color=points.look.colour, symbol=points.look.plotly_marker, size=10, line=dict(color=PAPER, width=1)),
        hovertemplate=f"%{{x:.3f}}, %{{y:.3f}}<extra>{_plain(points.label)}</extra>", **whiskers, **at,
    )  # fmt: skip


def _draw_areas(figure, areas: Areas, at: dict) -> None:
    for name, heights in areas.heights.items():
        figure.add_scatter(
            x=_list(areas.x), y=_list(heights), name=name, mode="lines", stackgroup=f"{at['row']}-{at['col']}",
            line=dict(width=1, color=PAPER), fillcolor=areas.looks[name].colour,
            hovertemplate=f"%{{x}}: %{{y:.3f}}<extra>{_plain(name)}</extra>", **at,
        )  # fmt: skip


def _draw_heat(figure, heat: Heat, at: dict) -> None:
    low, high = heat.range
    colours = SIGNED_SCALE if heat.signed else SCALE
    names = [[str(name).replace("\n", "<br>") for name in each] for each in (heat.columns, heat.rows)]
    told = "layer %{x}, head %{y}: %{z:.3f}" if heat.texts is None else "%{y}, %{x}: %{text} (%{z:.2f})"
    figure.add_heatmap(
        z=[_list(row) for row in heat.values], x=names[0], y=names[1],
        colorscale=[[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)], zmin=low, zmax=high, xgap=1, ygap=1,
        text=None if heat.texts is None else [[_cell(heat, i, j) for j in range(len(row))] for i, row in enumerate(heat.texts)],
        texttemplate=None if heat.texts is None else "%{text}",
        colorbar=dict(title=dict(text=heat.label, side="right"), thickness=12, outlinewidth=0),
        hovertemplate=f"{told}<extra></extra>", **at,
    )  # fmt: skip
    for i, j in heat.framed:
        box = dict(x0=j - 0.46, x1=j + 0.46, y0=i - 0.46, y1=i + 0.46)
        figure.add_shape(type="rect", **box, line=dict(color=INK, width=2), **at)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, automargin=True, **at)
    figure.update_xaxes(type="category", **at)


def _cell(heat: Heat, i: int, j: int) -> str:
    bold = heat.strong is not None and heat.strong[i][j]
    return f"<b>{_plain(heat.text(i, j))}</b>" if bold else _plain(heat.text(i, j))


def _draw_overlay(figure, overlay: Overlay, at: dict) -> None:
    height, width = overlay.image.shape[:2]
    kept = overlay.image if overlay.values is None else faded(overlay.image)
    half = dict(x0=0.5, y0=0.5, dx=1, dy=1)  # pixel i reaches from i to i + 1
    figure.add_image(source=_png(kept), hoverinfo="skip", **half, **at)
    if overlay.values is not None:
        low, high = overlay.range
        figure.add_heatmap(
            z=[_list(row) for row in overlay.map().round(6)], colorscale=[[0, SCALE[0]], [1, SCALE[1]]], zmin=low, zmax=high,
            opacity=0.6, showscale=False, hovertemplate=f"{_plain(overlay.label)} %{{z:.4f}}<extra></extra>", **half, **at,
        )  # fmt: skip
    if len(overlay.outlined):  # one line with gaps: plotly takes seconds for a hundred shapes
        x0, y0, x1, y1 = np.asarray(overlay.boxes, float)[list(overlay.outlined)].T
        gap = np.full_like(x0, np.nan)
        figure.add_scatter(
            x=_list(np.stack([x0, x1, x1, x0, x0, gap], 1).ravel()), y=_list(np.stack([y0, y0, y1, y1, y0, gap], 1).ravel()),
            mode="lines", line=dict(color=VERMILION, width=2), hoverinfo="skip", **at,
        )  # fmt: skip
    if overlay.words:
        boxes = np.asarray(overlay.boxes, float)
        figure.add_scatter(
            x=_list((boxes[:, 0] + boxes[:, 2]) / 2), y=_list((boxes[:, 1] + boxes[:, 3]) / 2), mode="text",
            text=[_plain(word) for word in overlay.words], textfont=dict(size=9, color=INK), hoverinfo="skip", **at,
        )  # fmt: skip
    _bare(figure, width, height, at)


def _draw_strip(figure, strip: Strip, at: dict) -> None:
    montage = strip.montage()
    height, width = montage.shape[:2]
    figure.add_image(source=_png(montage), hoverinfo="skip", x0=0.5, y0=0.5, dx=1, dy=1, **at)
    figure.add_annotation(
        text="<br>".join(_plain(line) for line in strip.lines), x=0, y=height, xanchor="left", yanchor="top", showarrow=False,
        align="left", font=dict(size=11, color=INK), **at,
    )  # fmt: skip
    _bare(figure, width, height, at)


def _bare(figure, width: int, height: int, at: dict) -> None:
    """No axes; pixels are square."""
    figure.update_xaxes(visible=False, range=[0, width], constrain="domain", **at)
    axis = figure.get_subplot(at["row"], at["col"]).xaxis.plotly_name.replace("xaxis", "x")
    figure.update_yaxes(visible=False, range=[height, 0], scaleanchor=axis, constrain="domain", **at)


def _png(image: np.ndarray) -> str:
    """A picture as a data URI."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()


def _label_lines(figure, panel: Panel, low: float, high: float, at: dict) -> None:
    ends = line_ends(panel)
    if not ends:
        return
    subplot = figure.get_subplot(at["row"], at["col"])
    name = subplot.yaxis.plotly_name.replace("yaxis", "y")
    down, up = (math.log(low), math.log(high)) if panel.logarithmic else (low, high)
    heights = [math.log(y) if panel.logarithmic else y for _, y, _ in ends]
    shares = spread([(h - down) / (up - down) for h in heights], 0.0, 1.0, 0.075)
    x_domain = subplot.xaxis.domain
    y_domain = subplot.yaxis.domain
    for (_, _, line), share in zip(ends, shares, strict=True):
        figure.add_annotation(
            text=_plain(line.label), xref="paper", x=x_domain[1], xanchor="left", xshift=4, yref="paper",
            y=y_domain[0] + share * (y_domain[1] - y_domain[0]), showarrow=False, align="left",
            font=dict(size=11, color=line.look.colour), name=name,
        )  # fmt: skip


def _list(values) -> list[float | None]:
    """JSON has no NaN: a gap is null."""
    return [None if v is None or not math.isfinite(v) else float(v) for v in values]


def _plain(text: str) -> str:
    """plotly reads a little HTML in its labels; a name from a user is text."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"

"""Charts as matplotlib figures, for paper and for a page that opens without scripts."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ..style import (
    DPI,
    FONT_SIZE,
    INK,
    PANEL_HEIGHT,
    PAPER,
    SCALE,
    SIGNED_SCALE,
    SOFT,
    VERMILION,
    WIDTH,
    matplotlib_style,
)
from .chart import Areas, Chart, Heat, Line, Overlay, Panel, Points, Strip, spread

MOST_NUMBERS = 120
"""Cells of a heat map up to which each shows its value."""


def draw_picture(chart: Chart) -> Figure:
    """The chart as a matplotlib figure of the house's width. It belongs to no global state, so nothing has to be closed."""
    columns = min(chart.columns, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    with matplotlib_style():
        figure = Figure(figsize=(WIDTH, rows * (chart.height or PANEL_HEIGHT) + 0.32), dpi=DPI, layout="constrained")
        axes = figure.subplots(
            rows, columns, squeeze=False, sharey=chart.shared_y, width_ratios=chart.widths or [1] * columns
        ).flatten()
        for axis, panel in zip(axes, chart.panels, strict=False):
            _draw_panel(axis, panel)
        for axis in axes[len(chart.panels) :]:
            axis.set_visible(False)
        if chart.shared_y:
            for i, axis in enumerate(axes):
                if i % columns:
                    axis.set_ylabel("")
        figure.supxlabel(chart.note, x=0.01, ha="left", fontsize=FONT_SIZE - 1.5, color=SOFT)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.07, wspace=0.04, hspace=0.06)
    return figure


def _draw_panel(axis, panel: Panel) -> None:
    axis.set_title(panel.title)
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    if panel.logarithmic:
        axis.set_yscale("log")
    heat = [mark for mark in panel.marks if isinstance(mark, Heat)]
    if heat:
        _draw_heat(axis, heat[0])
        return
    overlays = [mark for mark in panel.marks if isinstance(mark, Overlay)]
    if overlays:
        _draw_overlay(axis, overlays[0])
        return
    strips = [mark for mark in panel.marks if isinstance(mark, Strip)]
    if strips:
        _draw_strip(axis, strips[0])
        return
    low, high = panel.y_range()
    axis.set_ylim(low, high)
    if panel.level is not None:
        axis.axhline(panel.level[0], color="#8a919c", linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    if panel.upright is not None:
        axis.axvline(panel.upright[0], color="#8a919c", linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    for mark in panel.marks:
        if isinstance(mark, Line):
            _draw_line(axis, mark)
        elif isinstance(mark, Points):
            _draw_points(axis, mark)
        elif isinstance(mark, Areas):
            _draw_areas(axis, mark)
    if panel.x_limits is not None:
        axis.set_xlim(*panel.x_limits)
    if panel.x_ticks is not None:
        axis.set_xticks(*panel.x_ticks)
    elif any(isinstance(mark, Line | Areas) for mark in panel.marks):
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if panel.y_ticks is not None:
        axis.set_yticks(*panel.y_ticks)
        axis.grid(False, axis="y")
        axis.grid(True, axis="x")
    if panel.direct:
        _label_lines(axis, panel)
    elif any(getattr(mark, "label", "") for mark in panel.marks):
        axis.legend(fontsize=FONT_SIZE - 1.5, loc="best", handlelength=2.4)
    if panel.level is not None and panel.level[1]:
        axis.annotate(
            panel.level[1], (0.0, panel.level[0]), xycoords=("axes fraction", "data"), xytext=(4, 3),
            textcoords="offset points", fontsize=FONT_SIZE - 2, color=SOFT,
        )  # fmt: skip
    if panel.upright is not None and panel.upright[1]:
        axis.annotate(
            panel.upright[1], (panel.upright[0], 1.0), xycoords=("data", "axes fraction"), xytext=(4, -9),
            textcoords="offset points", fontsize=FONT_SIZE - 2, color=SOFT,
        )  # fmt: skip


def _draw_line(axis, line: Line) -> None:
    many = len(line.x) > 40
    axis.plot(
        line.x, line.y, color=line.look.colour, linestyle=line.look.dash, linewidth=line.look.width, label=line.label or None,
        marker="" if many else line.look.marker, markeredgecolor=PAPER, markeredgewidth=0.6, zorder=3,
    )  # fmt: skip
    if line.low is not None and line.high is not None:
        axis.fill_between(line.x, line.low, line.high, color=line.look.colour, alpha=0.18, linewidth=0, zorder=2)


def _draw_points(axis, points: Points) -> None:
    whiskers = {}
    for name, values, low, high in (
        ("xerr", points.x, points.x_low, points.x_high),
        ("yerr", points.y, points.y_low, points.y_high),
    ):
        if low is not None and high is not None:
            centre = np.asarray(values, float)
            below, above = centre - np.asarray(low, float), np.asarray(high, float) - centre
            whiskers[name] = np.nan_to_num(np.maximum([below, above], 0))
    axis.errorbar(
        points.x, points.y, **whiskers, fmt=points.look.marker or "o", color=points.look.colour, markersize=6,
        markeredgecolor=PAPER, markeredgewidth=0.7, elinewidth=1.4, capsize=0, label=points.label or None, zorder=3,
    )  # fmt: skip
    named = [(x, y, text) for x, y, text in zip(points.x, points.y, points.texts or (), strict=False) if text]
    for i, (x, y, text) in enumerate(sorted(named, key=lambda one: one[0])):
        above = (6, -14, 18, -26)[i % 4]  # neighbours along x at different heights, as points may coincide
        axis.annotate(text, (x, y), xytext=(6, above), textcoords="offset points", fontsize=FONT_SIZE - 1.5, color=INK)


def _draw_areas(axis, areas: Areas) -> None:
    x, base = np.asarray(areas.x, float), np.zeros(len(areas.x))
    for name, heights in areas.heights.items():
        top = base + np.nan_to_num(np.asarray(heights, float))
        axis.fill_between(x, base, top, color=areas.looks[name].colour, alpha=0.82, linewidth=0, zorder=2)
        axis.plot(x, top, color=PAPER, linewidth=1.2, zorder=3)
        at, middle = int(np.argmax(top - base)), len(x) // 2
        if (top - base)[middle] > 0.7 * (top - base)[at]:
            at = middle
        if (top - base)[at] > 0.07:
            side = "left" if at == 0 else "right" if at == len(x) - 1 else "center"
            axis.annotate(
                name, (x[at], (base[at] + top[at]) / 2), ha=side, va="center", color=PAPER, fontweight="bold",
                xytext=(6 if side == "left" else -6 if side == "right" else 0, 0), textcoords="offset points",
                fontsize=FONT_SIZE - 1, zorder=4,
            )  # fmt: skip
        base = top
    axis.set_xlim(x.min(), x.max() if len(x) > 1 else x.min() + 1)
    axis.grid(False)


def _draw_heat(axis, heat: Heat) -> None:
    values = np.asarray(heat.values, float)
    colours = LinearSegmentedColormap.from_list("chiasm", SIGNED_SCALE if heat.signed else SCALE)
    low, high = heat.range
    image = axis.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    for ticks, names in ((axis.set_xticks, heat.columns), (axis.set_yticks, heat.rows)):
        step = max(1, math.ceil(len(names) / 12))
        ticks(range(0, len(names), step), [str(name) for name in names][::step])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if values.size <= MOST_NUMBERS:
        for i, j in np.ndindex(values.shape):
            strong = heat.strong is None or heat.strong[i][j]
            share = (np.clip(values[i, j], low, high) - low) / ((high - low) or 1)
            dark = (abs(2 * share - 1) if heat.signed else share) > 0.55
            axis.text(
                j, i, heat.text(i, j), ha="center", va="center", fontsize=FONT_SIZE - 2,
                fontweight="bold" if strong and heat.strong is not None else "normal",
                color=PAPER if dark else INK if strong else SOFT,
            )  # fmt: skip
    for i, j in heat.framed:
        axis.add_patch(
            Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.6, clip_on=False)
        )
    bar = axis.figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
    bar.set_label(heat.label, fontsize=FONT_SIZE - 1)
    bar.outline.set_visible(False)


def _draw_overlay(axis, overlay: Overlay) -> None:
    height, width = overlay.image.shape[:2]
    grey = overlay.image if overlay.values is None else faded(overlay.image)
    axis.imshow(grey, extent=(0, width, height, 0), interpolation="nearest")
    if overlay.values is not None:
        low, high = overlay.range
        colours = LinearSegmentedColormap.from_list("chiasm", SCALE)
        shown = axis.imshow(
            overlay.map(), cmap=colours, vmin=low, vmax=high, alpha=0.6, extent=(0, width, height, 0),
            interpolation="nearest",
        )  # fmt: skip
        bar = axis.figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02)
        bar.set_label(overlay.label, fontsize=FONT_SIZE - 1)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=FONT_SIZE - 2)
    for i in overlay.outlined:
        x0, y0, x1, y1 = overlay.boxes[i]
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=VERMILION, linewidth=1.4))
    for (x0, y0, x1, y1), word in zip(overlay.boxes, overlay.words or (), strict=False):
        if word:
            axis.text(
                (x0 + x1) / 2, (y0 + y1) / 2, word, ha="center", va="center", fontsize=FONT_SIZE - 3.5, color=INK,
                clip_on=True,
            )  # fmt: skip
    _bare(axis)


def _draw_strip(axis, strip: Strip) -> None:
    axis.imshow(strip.montage(), interpolation="nearest")
    axis.set_xlabel("\n".join(strip.lines), loc="left", fontsize=FONT_SIZE - 1.5, color=INK)
    _bare(axis)


def _bare(axis) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def faded(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 in light grey, so that colours laid over it can be read off."""
    grey = image.astype(float).mean(-1, keepdims=True)
    return (90 + grey * 165 / 255).repeat(3, -1).astype(np.uint8)


def _label_lines(axis, panel: Panel) -> None:
    """Names at the right ends of the lines, moved apart where they would touch."""
    ends = line_ends(panel)
    if not ends:
        return
    low, high = axis.get_ylim()
    if panel.logarithmic:
        low, high = np.log(low), np.log(high)
    # a line of text takes this share of the axis: panels are about two inches high inside
    gap = (FONT_SIZE + 1.5) / 72 / (axis.get_position().height * axis.figure.get_figheight() * 0.78)
    heights = [(np.log(y) if panel.logarithmic else y) for _, y, _ in ends]
    shares = spread([(h - low) / (high - low) for h in heights], 0.02, 0.98, gap)
    for (_, _, line), share in zip(ends, shares, strict=True):
        axis.annotate(
            line.label, (1.0, share), xycoords="axes fraction", xytext=(5, 0), textcoords="offset points", va="center",
            fontsize=FONT_SIZE - 1.5, color=line.look.colour,
        )  # fmt: skip


def line_ends(panel: Panel) -> list[tuple[float, float, Line]]:
    """The last finite point of every line that has a label."""
    ends = []
    for mark in panel.marks:
        if isinstance(mark, Line) and mark.label:
            finite = [(x, y) for x, y in zip(mark.x, mark.y, strict=True) if np.isfinite(y)]
            if finite:
                ends.append((*finite[-1], mark))
    return ends

"""The same figure of several tables in one: curves laid over each other, or panels beside each other."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace

from ..style import NULL, look
from .chart import Areas, Chart, Figure, Heat, Line, Panel, Points

TITLE = 30
"""Letters of a panel's title in a line."""

COLUMNS = 3

CURVES = (
    "Here each panel has one curve of the figure, and in it a line a run; where the words below name a colour, they mean "
    "the figure of a single run."
)


def can_overlay(figure: Figure) -> bool:
    """Whether it is of curves alone."""
    marks = [mark for panel in figure.chart.panels for mark in panel.marks]
    return bool(marks) and all(isinstance(mark, Line) for mark in marks)


def together(figures: Mapping[str, Figure]) -> Figure:
    """One panel for every curve of the figure, in it a line for each of the tables, which `figures` has by name.

    A curve without a name (a chance level) goes with the named one before it.
    """
    panels: dict[tuple[str, str], Panel] = {}
    alone = {title: len(series) < 2 for title, series in _series(figures).items()}
    limits = _limits(figures)
    for i, (name, figure) in enumerate(figures.items()):
        for panel in figure.chart.panels:
            key = None
            for line in panel.marks:
                key = (panel.title, line.label) if line.label or key is None else key
                title = panel.title if alone[panel.title] or not key[1] else f"{panel.title}: {key[1]}"
                drawn = panels.setdefault(key, replace(panel, title=_wrapped(title), marks=[], y_limits=limits[panel.title]))  # fmt: skip
                own = line.label or not drawn.marks or drawn.marks[-1].label != name
                style = look(i) if own else NULL.with_(colour=look(i).colour)
                label = name if own and name not in {mark.label for mark in drawn.marks} else ""
                ticks = panel.x_ticks if drawn.x_ticks == panel.x_ticks else None  # models of different depth
                panels[key] = replace(
                    drawn, marks=[*drawn.marks, replace(line, label=label, look=style)], x_ticks=ticks
                )
    chart = Chart(list(panels.values()), _note(figures), columns=COLUMNS, height=2.6)
    return _compared(figures, chart, f"{CURVES} ")


def beside(figures: Mapping[str, Figure]) -> Figure:
    """The panels of each table, those of one title in a row and on one scale."""
    limits, colours = _limits(figures), _colours(figures)
    panels = []
    for title in dict.fromkeys(panel.title for figure in figures.values() for panel in figure.chart.panels):
        for name, figure in figures.items():
            for panel in figure.chart.panels:
                if panel.title == title:
                    marks = [replace(m, limits=colours[title]) if isinstance(m, Heat) else m for m in panel.marks]
                    told = f"{name}: {title[:1].lower()}{title[1:]}" if title else name
                    panels.append(replace(panel, title=_wrapped(told), marks=marks, y_limits=limits[title]))
    heights = [figure.chart.height for figure in figures.values() if figure.chart.height]
    columns = min(len(figures), COLUMNS)
    return _compared(figures, Chart(panels, _note(figures), columns=columns, height=max(heights, default=None)))


def _series(figures: Mapping[str, Figure]) -> dict[str, set[str]]:
    """The names of curves in the panels of each title."""
    found: dict[str, set[str]] = {}
    for figure in figures.values():
        for panel in figure.chart.panels:
            found.setdefault(panel.title, set()).update(mark.label for mark in panel.marks if mark.label)
    return found


def _limits(figures: Mapping[str, Figure]) -> dict[str, tuple[float, float] | None]:
    """By title of panel, an axis that holds every table's values; None for pictures and matrices, which have none."""
    found: dict[str, tuple[float, float] | None] = {}
    for figure in figures.values():
        for panel in figure.chart.panels:
            if not all(isinstance(mark, Line | Points | Areas) for mark in panel.marks):
                found[panel.title] = panel.y_limits
                continue
            low, high = panel.y_range()
            before = found.get(panel.title) or (low, high)
            found[panel.title] = (min(low, before[0]), max(high, before[1]))
    return found


def _colours(figures: Mapping[str, Figure]) -> dict[str, tuple[float, float]]:
    """By title of panel, limits of the colours of its matrices."""
    found: dict[str, tuple[float, float]] = {}
    for figure in figures.values():
        for panel in figure.chart.panels:
            for mark in panel.marks:
                if isinstance(mark, Heat):
                    low, high = mark.range
                    before = found.get(panel.title, (low, high))
                    found[panel.title] = (min(low, before[0]), max(high, before[1]))
    return found


def _compared(figures: Mapping[str, Figure], chart: Chart, how: str = "") -> Figure:
    first = next(iter(figures.values()))
    alt = f"{first.alt} Compared: {', '.join(figures)}."
    return Figure(f"{first.name}-compared", first.title, how + first.reading, alt, chart)


def _note(figures: Mapping[str, Figure]) -> str:
    """The notes, said once where all say the same."""
    notes = {name: figure.chart.note for name, figure in figures.items()}
    if len(set(notes.values())) == 1:
        return next(iter(notes.values()))
    return "\n".join(f"{name}: {note}" for name, note in notes.items())


def _wrapped(title: str) -> str:
    return "\n".join(textwrap.wrap(title, TITLE))

"""The same figure of several tables in one: curves laid over each other, or panels beside each other."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..style import NULL, look
from .chart import Areas, Chart, Figure, Heat, Line, Panel, Points

LETTERS = {1: 80, 2: 35, 3: 21}
"""Columns of panels -> letters of a line that is as wide as one."""

CURVES = (
    "Here each panel has one curve of the figure, and in it a line a run; where the words below name a colour, they mean "
    "the figure of a single run."
)


def can_overlay(figure: Figure) -> bool:
    """Whether any panel is of curves alone."""
    return any(map(_of_curves, figure.chart.panels))


def together(figures: Mapping[str, Figure]) -> Figure:
    """One panel for every curve of the figure, in it a line for each of the tables, which `figures` has by name.

    Levels (vision tower, chance) go with the curves of their panel: once, where they are the same for all tables. What is no curve
    stands beside, a panel a table.
    """
    found: dict[tuple[str, str], dict[str, tuple[Panel, Line, list[Line]]]] = {}
    for name, figure in figures.items():
        for panel in filter(_of_curves, figure.chart.panels):
            for curve, levels in _curves(panel):
                found.setdefault((panel.title, curve.label), {})[name] = panel, curve, levels
    limits, titles = _limits(figures), [title for title, _ in found]
    panels = []
    for (title, label), lines in found.items():
        told = f"{title}: {label}" if label and titles.count(title) > 1 else title
        first = next(iter(lines.values()))[0]
        ticks = first.x_ticks if all(panel.x_ticks == first.x_ticks for panel, _, _ in lines.values()) else None
        marks = [replace(curve, label=name, look=look(list(figures).index(name))) for name, (_, curve, _) in lines.items()]  # fmt: skip
        marks += _levels({name: levels for name, (_, _, levels) in lines.items()}, list(figures))
        panels.append(replace(first, title=_wrapped(told, 2), marks=marks, y_limits=limits[title], x_ticks=ticks))
    panels += _beside(figures, [panel.title for figure in figures.values() for panel in figure.chart.panels if not _of_curves(panel)], 2)  # fmt: skip
    chart = Chart(panels, _note(figures), columns=2, height=2.6)
    return _compared(figures, chart, f"{CURVES} ")


def beside(figures: Mapping[str, Figure]) -> Figure:
    """The panels of each table, those of one title in a row and on one scale."""
    columns = min(len(figures), max(LETTERS))
    panels = _beside(figures, [panel.title for figure in figures.values() for panel in figure.chart.panels], columns)
    heights = [figure.chart.height for figure in figures.values() if figure.chart.height]
    return _compared(figures, Chart(panels, _note(figures), columns=columns, height=max(heights, default=None)))


def _beside(figures: Mapping[str, Figure], titles: Sequence[str], columns: int) -> list[Panel]:
    limits, colours = _limits(figures), _colours(figures)
    panels = []
    for title in dict.fromkeys(titles):
        for name, figure in figures.items():
            for panel in figure.chart.panels:
                if panel.title == title:
                    marks = [replace(m, limits=colours[title]) if isinstance(m, Heat) else m for m in panel.marks]
                    told = f"{name}: {title[:1].lower()}{title[1:]}" if title else name
                    words = {"title": _wrapped(told, columns), "x_label": _wrapped(panel.x_label, columns)}
                    panels.append(replace(panel, **words, marks=marks, y_limits=limits[title]))
    return panels


def _of_curves(panel: Panel) -> bool:
    return bool(panel.marks) and all(isinstance(mark, Line) for mark in panel.marks)


def _is_level(line: Line) -> bool:
    return not line.look.marker and len(set(line.y)) == 1


def _curves(panel: Panel) -> list[tuple[Line, list[Line]]]:
    """Each curve with its levels: one without a name, or named "<curve>, …", is that of one curve; others are for all."""
    curves: list[tuple[Line, list[Line]]] = []
    shared = []
    for line in panel.marks:
        if line.label and not _is_level(line):
            curves.append((line, []))
        elif not line.label and curves:
            curves[-1][1].append(line)
        elif owner := [levels for curve, levels in curves if line.label.startswith(f"{curve.label},")]:
            owner[0].append(line)
        else:
            shared.append(line)
    if not curves:
        return [(line, []) for line in panel.marks]
    return [(curve, levels + shared) for curve, levels in curves]


def _levels(levels: Mapping[str, Sequence[Line]], names: Sequence[str]) -> list[Line]:
    """Levels of one place in the panel: one line where all tables agree on it, else one a table in the table's colour."""
    marks = []
    for i in range(max(map(len, levels.values()))):
        lines = {name: each[i] for name, each in levels.items() if i < len(each)}
        first = next(iter(lines.values()))
        if all(list(line.y) == list(first.y) and list(line.x) == list(first.x) for line in lines.values()):
            marks.append(replace(first, look=first.look if first.label else NULL))
            continue
        for name, line in lines.items():
            marks.append(replace(line, label=line.label if line is first else "", look=line.look.with_(colour=look(names.index(name)).colour)))  # fmt: skip
    return marks


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


def _wrapped(text: str, columns: int) -> str:
    return "\n".join(textwrap.wrap(text, LETTERS[columns]))

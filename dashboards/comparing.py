"""Tables of several runs beside each other: what they are called, their key numbers, and one figure of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from ..experiments.figures import Figure, implicit_alignment
from ..experiments.figures.comparison import beside, can_overlay, together
from ..experiments.lenses import LENSES
from ..scenes.errors import UserError
from .store import Source

LONGEST = 14
"""Letters of a name at the end of a curve."""

MORE = {"implicit_alignment": (implicit_alignment.matrix,)}
"""Figures of a lens that only the page shows."""

Function = Callable[[pd.DataFrame], Figure | None]


def functions(lens: str) -> tuple[Function, ...]:
    """What draws the lens's figures, each from its table."""
    return (*LENSES[lens].figures, *MORE.get(lens, ()))


def described(source: Source) -> str:
    """What a list says of a table: who, which run, when, how many samples."""
    manifest = source.run.manifest
    n = manifest.get("n")
    when = str(manifest.get("started", ""))[:16].replace("T", " ")
    partial = "" if source.run.state == "complete" else f" · {source.run.state}"
    told = [source.who, source.run.experiment, when, f"n = {n}" if n else ""]
    return " · ".join(dict.fromkeys(filter(None, told))) + partial


def first_choice(sources: Sequence[Source]) -> list[str]:
    """The newest table, and the newest of another model where there is one."""
    chosen = [source for source in sources if source.run.state == "complete"] or list(sources)
    other = [source for source in chosen if source.who != chosen[0].who]
    return [source.key for source in (*chosen[:1], *other[:1])]


def labelled(sources: Sequence[Source]) -> dict[str, Source]:
    """Short names that tell the tables apart: the model, with a number where it comes again."""
    names: dict[str, Source] = {}
    for source in sources:
        name, i = source.who[:LONGEST], 1
        while name in names:
            i += 1
            name = f"{source.who[: LONGEST - 3]} ({i})"
        names[name] = source
    return names


def key_numbers(lens: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a key number of the report, one column a table: the value and its interval in words."""
    rows: dict[str, dict[str, str]] = {}
    for name, table in tables.items():
        for card in LENSES[lens].cards(table):
            rows.setdefault(card.name, {})[name] = f"{card.value}  ({card.interval})"
    return pd.DataFrame([{"key number": card, **values} for card, values in rows.items()])


def compared(function: Function, tables: Mapping[str, pd.DataFrame], *, overlaid: bool) -> Figure | None:
    """The figure of every table in one; of a single table as it is; None where none has something for it.

    Raises UserError when a table does not have what the figure needs, as one of an old version.
    """
    figures = {}
    for name, table in tables.items():
        try:
            figure = function(table)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"the table of {name!r} cannot be drawn as {function.__name__!r} ({type(error).__name__}: {error}): measure again"
            ) from error
        if figure is not None:
            figures[name] = figure
    if len(figures) < 2:
        return next(iter(figures.values()), None)
    return together(figures) if overlaid and all(map(can_overlay, figures.values())) else beside(figures)

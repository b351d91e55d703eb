"""Taking from a long table what a figure needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..style import Look
from .chart import Line

LEVEL = "95 % interval"


def pick(table: pd.DataFrame, **where) -> pd.DataFrame:
    """Rows in which every column named has the value given; a list means any of its values, None an empty cell.

    A column that the table does not have is empty everywhere.
    """
    keep = np.ones(len(table), bool)
    for name, value in where.items():
        if name not in table:
            keep &= value is None
        elif value is None:
            keep &= table[name].isna().to_numpy()
        elif isinstance(value, list | tuple):
            keep &= table[name].isin(value).to_numpy()
        else:
            keep &= (table[name] == value).fillna(False).to_numpy(bool)
    return table[keep]


def curve(rows: pd.DataFrame, label: str, look: Look, *, along: str = "layer", band: bool = True) -> list[Line]:
    """A line of `mean` along the layers with its interval; none when there is nothing finite to draw."""
    rows = rows[np.isfinite(rows["mean"].astype(float))].sort_values(along)
    if rows.empty:
        return []
    x, y = rows[along].astype(int).tolist(), rows["mean"].astype(float).tolist()
    bounds = [rows[name].astype(float).tolist() if band and name in rows else None for name in ("low", "high")]
    return [Line(x, y, label, look, *bounds)]


def layer_ticks(layers: Sequence[int], n_layers: int) -> tuple[list[int], list[str]] | None:
    """Ticks that name the input and the final norm; None (numbers alone) where there are too many layers to name."""
    layers = sorted({int(layer) for layer in layers})
    if not layers or len(layers) > 12:
        return None
    names = {0: "input", n_layers + 1: "norm"}
    return layers, [names.get(layer, str(layer)) for layer in layers]


def samples_note(rows: pd.DataFrame, band: str = LEVEL, more: str = "") -> str:
    """The line below a figure: how many samples, and what the bands are."""
    n = rows["n"].dropna().astype(int) if "n" in rows else pd.Series(dtype=int)
    n = n[n > 0]
    if n.empty:
        count = "n unknown"
    elif n.min() == n.max():
        count = f"n = {n.max():,} samples"
    else:
        count = f"n = {n.min():,} to {n.max():,} samples"
    return f"{count}; band: {band}" + (f"; {more}" if more else "")

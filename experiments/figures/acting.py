"""Figure of the acting experiment: what every lens sees of every intervention."""

from __future__ import annotations

import math

import pandas as pd

from .chart import Chart, Figure, Heat, Panel

LIMIT = 4.0
"""Standard deviations at which the colours end."""


def changes(table: pd.DataFrame) -> Figure:
    """Interventions as columns, the lenses' numbers as rows; own cells framed, changes whose interval leaves 0 out in bold."""
    columns, rows = (list(dict.fromkeys(table[name])) for name in ("intervention", "quantity"))
    cells = table.set_index(["quantity", "intervention"])
    at = [[cells.loc[(row, column)] for column in columns] for row in rows]
    heat = Heat(
        [[float(cell["standardised"]) for cell in line] for line in at],
        [f"{row}  {line[0]['before'] + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−") for row, line in zip(rows, at, strict=True)],
        ["\n".join(column.rsplit(" ", 1)) if len(column) > 6 else column for column in columns],
        "change, plain SDs between blocks", (-LIMIT, LIMIT),
        texts=[[_signed(cell) for cell in line] for line in at],
        strong=[[_sure(cell) for cell in line] for line in at],
        framed=[(i, j) for i, line in enumerate(at) for j, cell in enumerate(line) if cell["own"]],
        signed=True,
    )  # fmt: skip
    n, blocks = int(table["n"].max()), int(table["blocks"].max())
    return Figure(
        "acting",
        "Does it act where it says?",
        "Every row is a number of a lens, with its plain value; every cell says by how much an intervention (column) changes it. Bold: the 95 % interval leaves 0 out; a frame: "
        "here the intervention says it acts, or that it leaves things as they are. Colours set changes against how much the plain value differs between blocks of scenes. "
        "A good intervention is bold in its frame and faint elsewhere; what the random direction moves as well is no achievement.",
        "Heat map of changes of every lens’s numbers under eight interventions, with the changes’ values.",
        Chart(
            [Panel("Change under each intervention", "", "", [heat])],
            f"n = {n} scenes in {blocks} blocks; bold: paired 95 % interval over blocks leaves 0 out ({0.05 * len(table):.0f} of {len(table)} would by chance)",
            columns=1,
            height=1.1 + 0.3 * len(rows),
        ),
    )  # fmt: skip


def _sure(cell) -> bool:
    return bool(cell["low"] > 0 or cell["high"] < 0)


def _signed(cell) -> str:
    """The change to two digits, with its sign; one too small for three decimals is 0, unless its interval says that it is not."""
    value = float(cell["change"])
    if not math.isfinite(value):
        return "–"
    if abs(value) < 5e-4:
        return f"{value:+.0e}".replace("e-0", "e-").replace("-", "−") if _sure(cell) else "0"
    text = f"{value:+.1f}" if abs(value) >= 10 else f"{value:+.2f}" if abs(value) >= 0.095 else f"{value:+.3f}"
    return text.replace("-", "−")

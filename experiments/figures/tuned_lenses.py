"""The figure of where tuning acted: the change of every lens by layer, for several ways of tuning."""

from __future__ import annotations

import pandas as pd

from .against import BY_BLOCK, folded
from .chart import Chart, Figure, Line, Panel
from .preferences import LOOK
from .rows import pick


def layers(table: pd.DataFrame) -> Figure:
    """A panel a quantity, a line with its band for each way."""
    rows, panels = pick(table, model="mean"), []
    arms = [arm for arm in LOOK if arm in set(rows["arm"])]
    for quantity in dict.fromkeys(rows["quantity"]):
        marks = []
        for arm in arms:
            some = pick(rows, quantity=quantity, arm=arm).sort_values("layer")
            label, look = LOOK[arm]
            look = look.with_(dash="-" if arm == "rdpo" else "--")
            x = some["layer"].astype(int).tolist()
            marks.append(Line(x, some["change"].tolist(), "" if panels else label, look, some["low"].tolist(), some["high"].tolist()))  # fmt: skip
        where = "block" if some["lens"].iloc[0] in BY_BLOCK else "layer"
        name = quantity[0].upper() + quantity[1:]
        panels.append(
            Panel(folded(name), where, "change" if len(panels) % 3 == 0 else "", marks, level=(0, ""), direct=False)
        )
    first = rows.iloc[0]
    return Figure(
        "layers_changed", "Where did tuning act?",
        "Each panel is one quantity of a lens, layer by layer: the tuned organism minus the organism before, on the same scenes. Where a band leaves the line at 0 the lens sees that way of tuning. "
        "Layer 0 is the input, which adapters in the decoder cannot change; blocks are counted from 0.",
        "Small multiples: change of each lens's quantity over layers for DPO and rDPO, with intervals.",
        Chart(panels, f"n = {int(first['n'])} scenes in {int(first['blocks'])} blocks, mean over {int(first['seeds'])} trainings; bands: 95 % interval over blocks and trainings", columns=3, height=2.15),
    )  # fmt: skip

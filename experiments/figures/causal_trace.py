"""Figure of causal tracing, from its table: what brings the answer back, by block."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..style import GREEN, GREY, ORANGE, PICTURE, PURPLE, SKY, TEXT, Look
from .chart import Chart, Figure, Line, Panel
from .rows import curve, pick

LOOKS = {
    "the thing": PICTURE,
    "the picture": Look(GREEN, "^", "-."),
    "as many others": Look(GREY, "s", "--"),
    "the question": Look(PURPLE, "D", ":"),
    "last position": TEXT,
}
PARTS = {"attn_out": ("attention", "-"), "mlp_out": ("MLP", ":")}
LAYER = "decoder block"


def carried(table: pd.DataFrame) -> Figure:
    """Share of the answer brought back, by what is put back: states (left), and what attention and MLP write into them (right)."""
    table = table.assign(x=table["layer"].fillna(-1).astype(int))
    stream, last = pick(table, site=["embed", "resid_post"]), int(table["x"].max())
    blocks = sorted({round(x) for x in np.linspace(0, last, min(last + 1, 9))})
    ticks = ([-1, *blocks], ["input", *map(str, blocks)])
    lines: list[Line] = []
    for span in dict.fromkeys(stream["span"]):
        lines += curve(pick(stream, span=span), span, LOOKS[span], along="x")
    parts: list[Line] = []
    for site, (name, dash) in PARTS.items():
        for span in dict.fromkeys(pick(table, site=site)["span"]):
            look = LOOKS[span].with_(
                dash=dash, **({} if site == "attn_out" else {"colour": ORANGE if span == "last position" else SKY})
            )
            parts += curve(pick(table, site=site, span=span), f"{name}, {span}", look, along="x")
    limits = (-0.08, 1.08)
    panels = [
        Panel("Where is the answer kept?", LAYER, "share brought back", lines, level=(0, ""), y_limits=limits, x_ticks=ticks),
        Panel("What moves it?", LAYER, "share brought back", parts, level=(0, ""), y_limits=limits, x_ticks=(blocks, [str(b) for b in blocks])),
    ]  # fmt: skip
    n = int(table["n"].max())
    return Figure(
        "causal_trace",
        "Which tokens carry the answer, layer by layer?",
        "A thing was painted in another colour, and states of the run with the old picture are put back, one group of positions behind one block at a time; "
        "1 brings the old answer back whole, 0 does nothing. Left, the picture’s curve falls where the answer leaves the picture, and that of the last position "
        "rises where it reaches the position that answers; between the thing and the whole picture lies what its tokens have passed on to others. Right, only what attention or the MLP of one block "
        "writes is put back: a high point is a block that moves the answer.",
        "Left: share of the answer brought back by states of the thing’s tokens, of other tokens, of the question and of the last position, by block. Right: the "
        "same for the outputs of attention and MLP.",
        Chart(panels, f"n = {n} pairs of pictures; band: 95 % interval (jackknife over pairs)", height=3.2),
    )  # fmt: skip

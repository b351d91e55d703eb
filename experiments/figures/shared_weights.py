"""Figures of the experiment on shared weights, from its tables."""

from __future__ import annotations

import pandas as pd

from ..style import BOTH, NULL, look
from .chart import Chart, Figure, Line, Panel, Points
from .rows import curve, pick


def overlap(table: pd.DataFrame) -> Figure:
    """IoU of the image's and the text's masks by layer, with its null."""
    panels = []
    for sparsity in sorted(set(table["sparsity"])):
        rows = pick(table, sparsity=sparsity, pair="image-text", matrix=None)
        rows = rows[rows["layer"].notna()].sort_values("layer")
        null = Line(rows["layer"].astype(int).tolist(), rows["null"].tolist(), "independent", NULL)
        panels.append(
            Panel(
                f"Sparsity {sparsity:g}", "block", "IoU", [*curve(rows, "image, text", BOTH), null],
                level=(float(rows["chance"].iloc[0]), "random"), y_limits=(0, 1),
            )
        )  # fmt: skip
    return Figure(
        "overlap", "Do pictures and text use the same weights?",
        "IoU of the weights kept for image tokens and for text tokens. Independent: same weights, shuffled input norms; only what is above it is shared use.",
        "Overlap of the two masks by block, above the null of independent inputs.",
        Chart(panels, f"n = {int(table['n'].max())} samples; band: 95 % interval"),
    )  # fmt: skip


def removal(table: pd.DataFrame) -> Figure:
    """Perplexity and skill with all but the common subnetwork removed, and the controls."""
    names = list(dict.fromkeys(table["removed"]))
    panels = []
    for what, title in (("perplexity", "Perplexity of answers"), ("skill", "Skill of seeing")):
        marks = []
        for i, name in enumerate(names):
            rows = pick(table, removed=name)
            marks.append(
                Points(
                    (100 * rows["share_removed"]).tolist(), rows[what].tolist(), name, look(i),
                    y_low=rows[f"{what}_low"].tolist(), y_high=rows[f"{what}_high"].tolist(),
                )
            )  # fmt: skip
        panels.append(Panel(title, "weights removed (%)", what, marks, direct=False, logarithmic=what == "perplexity"))
    return Figure(
        "removal", "Does what they share carry the model?",
        "Each point is the model with as many weights removed: outside the common subnetwork, the smallest, or random ones.",
        "Perplexity and skill against the share of weights removed, by kind of removal.",
        Chart(panels, f"n = {int(table['n'].max())} answers, {int(table['skill_n'].max())} questions; whiskers: 95 % intervals"),
    )  # fmt: skip

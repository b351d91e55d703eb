"""Figures of the experiment on attention shift and forgetting, from its tables."""

from __future__ import annotations

import pandas as pd

from ..style import BLACK, BLUE, SEGMENTS, VERMILION, Look
from .chart import Chart, Figure, Line, Panel, Points
from .rows import pick

MANY = 8
READ = (
    ("picture", "With pictures", Look(BLUE, "o", "-")),
    ("text_only", "Same texts, no pictures", Look(VERMILION, "s", "--")),
)


def scatter(shifts: pd.DataFrame, drops: pd.DataFrame, correlations: pd.DataFrame) -> Figure:
    """Shift against text-only drop, a point a model; with pictures and without."""
    lost = drops.set_index("stage")
    names = list(lost.index)
    panels = []
    for read, title, look in READ:
        rows = pick(shifts, read=read).set_index("stage").loc[names]
        found = pick(correlations, read=read, given="nothing").iloc[0]
        told = f"ρ = {found['value']:.2f}" if found["value"] == found["value"] else "ρ undefined"
        texts = names if len(names) <= MANY else [names[0], *[""] * (len(names) - 2), names[-1]]
        panels.append(
            Panel(
                f"{title}: {told}, n = {int(found['n'])}", "attention shift (1 − Pearson ρ)", "text-only drop (points)",
                [Points(rows["mean"].tolist(), (100 * lost["mean"]).tolist(), "", look, rows["low"].tolist(), rows["high"].tolist(), (100 * lost["low"]).tolist(), (100 * lost["high"]).tolist(), texts)],
                level=(0, ""), direct=False,
            )
        )  # fmt: skip
    return Figure(
        "shift_against_drop",
        "Do models whose attention shifted more forget more?",
        "Each point is one model: its attention shift across, the text-only skill it lost against the base language model up. The published claim is a "
        "rise on the left; if the right, read without any picture, shows the same, the shift is in the weights and not in the picture’s place.",
        "Scatter plots of attention shift against loss of text-only skill, one point a model, read with pictures and without.",
        Chart(panels, f"{len(names)} models; n = {int(lost['n'].max())} text-only tasks each; whiskers: 95 % intervals", shared_y=True, height=3.1),
    )  # fmt: skip


def stages(shifts: pd.DataFrame, drops: pd.DataFrame) -> Figure:
    """Shift and drop of each model in the order of training."""
    lost = drops.set_index("stage")
    names = list(lost.index)
    steps = lost["step"].astype(float)
    grown = bool(steps.notna().all())
    x = steps.tolist() if grown else list(range(len(names)))
    ticks = None if grown else (x, names)
    label = "training step" if grown else "model"
    lines = []
    for read, _, look in READ:
        rows = pick(shifts, read=read).set_index("stage").loc[names]
        lines.append(
            Line(
                x,
                rows["mean"].tolist(),
                "with pictures" if read == "picture" else "text only",
                look,
                rows["low"].tolist(),
                rows["high"].tolist(),
            )
        )
    down = Line(
        x,
        (100 * lost["mean"]).tolist(),
        "",
        Look(BLACK, "D", "-"),
        (100 * lost["low"]).tolist(),
        (100 * lost["high"]).tolist(),
    )
    panels = [
        Panel("Attention shift", label, "1 − Pearson ρ", lines, x_ticks=ticks),
        Panel("Text-only drop", label, "points", [down], level=(0, "base model"), x_ticks=ticks),
    ]
    return Figure(
        "stages",
        "Shift and drop in the order of training",
        "Left the attention shift, read with pictures and on the same texts without; right what is lost of sums, facts and sequences. If the drop came with the "
        "shift, both would turn at the same model.",
        "Left: attention shift of each model in the order of training, with and without pictures. Right: loss of text-only skill.",
        Chart(panels, f"n = {int(lost['n'].max())} tasks and {int(shifts['n'].max())} scenes a model; bands: 95 % intervals", height=3.1),
    )  # fmt: skip


def curves(table: pd.DataFrame) -> Figure:
    """Attention to the text before and behind the picture over layers, a panel a model."""
    names = list(dict.fromkeys(table["stage"]))
    chosen = names if len(names) <= 6 else [names[i * (len(names) - 1) // 5] for i in range(6)]
    panels = []
    for name in chosen:
        lines = []
        for segment in ("before", "after"):
            rows = pick(table, stage=name, segment=segment).sort_values("layer")
            lines.append(
                Line(
                    rows["layer"].astype(int).tolist(),
                    rows["mean"].tolist(),
                    segment,
                    SEGMENTS[segment],
                    rows["low"].tolist(),
                    rows["high"].tolist(),
                )
            )
        panels.append(Panel(name, "block", "share of attention", lines))
    top = max(panel.y_range()[1] for panel in panels)
    panels = [
        Panel(p.title, p.x_label, p.y_label if i % 3 == 0 else "", p.marks, y_limits=(0, top))
        for i, p in enumerate(panels)
    ]
    return Figure(
        "before_after_by_stage",
        "Do the texts before and behind the picture keep one course?",
        "Each panel is one model: attention to the text before and to the text behind the picture, block by block. The shift is small where the two curves "
        "rise and fall together.",
        "Small multiples, one a model: attention mass on the text before and after the picture over blocks.",
        Chart(panels, f"n = {int(table['n'].max())} scenes a model; bands: 95 % intervals; queries behind the picture", columns=3, shared_y=True, height=2.3),
    )  # fmt: skip

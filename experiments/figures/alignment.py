"""Figures of the experiment on alignment across checkpoints, from its tables."""

from __future__ import annotations

import pandas as pd

from ..style import BLACK, BLUE, GREEN, LOOKS, ORANGE, PURPLE, VERMILION, Look
from .chart import Chart, Figure, Line, Panel, Points
from .rows import pick

VARIANTS = (
    ("raw", "raw", Look(BLACK, "D", "-")),
    ("centred_both", "centred", Look(GREEN, "^", "-.")),
    ("without_outliers", "no outliers", Look(PURPLE, "v", ":")),
)
MANY = 8
"""Points above which only the first and the last are named."""


def scatter(scores: pd.DataFrame, skill: pd.DataFrame, correlations: pd.DataFrame) -> Figure:
    """IMA score against skill, a point a stage, one panel a version of the score."""
    panels = []
    seen = pick(skill, kind="all").set_index("stage")
    for variant, name, look in VARIANTS[:2]:
        rows = pick(scores, variant=variant, score="ima_same_layer").set_index("stage").loc[list(seen.index)]
        found = pick(correlations, variant=variant, score="ima_same_layer", given="nothing").iloc[0]
        told = (
            f"ρ = {found['value']:.2f}, n = {int(found['n'])}"
            if found["value"] == found["value"]
            else f"ρ undefined, n = {int(found['n'])}"
        )
        names = list(seen.index)
        texts = names if len(names) <= MANY else [names[0], *[""] * (len(names) - 2), names[-1]]
        panels.append(
            Panel(
                f"{name.capitalize()}: {told}", f"IMA score ({name} cosine, mean over layers)", "share of questions right",
                [Points(rows["mean"].tolist(), seen["mean"].tolist(), "", look, rows["low"].tolist(), rows["high"].tolist(), seen["low"].tolist(), seen["high"].tolist(), texts)],
                y_limits=(-0.1, 1.1), direct=False,
            )
        )  # fmt: skip
    n = int(seen["n"].max())
    return Figure(
        "scatter",
        "Does a better aligned model see better?",
        "Each point is one model: its IMA score across, its share of right answers about pictures up, with 95 % whiskers. A rise in the raw "
        "panel that is gone in the centred one is a drift of the common mean, and two quantities that both grow with training correlate "
        "without any link: see the partial correlation below.",
        "Scatter plots of the IMA score of each stage, raw and centred, against its share of questions about pictures answered right.",
        Chart(
            panels,
            f"{len(seen)} models; skill: n = {n} questions each; whiskers: 95 % intervals",
            shared_y=True,
            height=3.1,
        ),
    )


def growth(scores: pd.DataFrame, skill: pd.DataFrame) -> Figure:
    """Score and skill along the series."""
    seen = pick(skill, kind="all")
    order = list(seen["stage"])
    steps = seen["step"].astype(float).tolist()
    grown = all(step == step for step in steps)
    x = steps if grown else list(range(len(order)))
    ticks = None if grown else (x, order)
    label = "training step" if grown else "model"
    lines = []
    for variant, name, look in VARIANTS:
        rows = pick(scores, variant=variant, score="ima_same_layer").set_index("stage").loc[order]
        lines.append(Line(x, rows["mean"].tolist(), name, look, rows["low"].tolist(), rows["high"].tolist()))
    looks = (
        Look(BLACK, "D", "-", 2.4),
        Look(BLUE, "o", "-"),
        Look(VERMILION, "s", "--"),
        Look(ORANGE, "P", ":"),
        LOOKS[3],
    )
    kinds = [("all", "all"), *[(kind, kind) for kind in skill["kind"].unique() if kind != "all"]]
    right = []
    for (kind, name), look in zip(kinds, looks, strict=False):
        rows = pick(skill, kind=kind).set_index("stage").loc[order]
        right.append(
            Line(
                x,
                rows["mean"].tolist(),
                name,
                look,
                *((rows["low"].tolist(), rows["high"].tolist()) if kind == "all" else (None, None)),
            )
        )
    panels = [
        Panel("IMA score", label, "cosine, mean over layers", lines, level=(0, ""), x_ticks=ticks),
        Panel("Skill of seeing", label, "share right", right, y_limits=(-0.03, 1.05), x_ticks=ticks),
    ]  # fmt: skip
    return Figure(
        "growth",
        "Score and skill along the series",
        "Left the alignment score in three versions, right the share of questions about pictures answered right, over the same models. "
        "Look for whether the two change at the same place, not only in the same direction.",
        "Left: IMA scores of the stages in three versions. Right: share of questions about pictures answered right, by kind.",
        Chart(
            panels,
            f"n = {int(seen['n'].max())} questions and {int(scores['n'].max())} scenes a model; bands: 95 % intervals",
            height=3.1,
        ),
    )


def layers(curves: pd.DataFrame) -> Figure:
    """P-T similarity over layers of the first, the middle and the last stages."""
    stages = list(dict.fromkeys(curves["stage"]))
    chosen = stages if len(stages) <= 5 else [stages[i * (len(stages) - 1) // 4] for i in range(5)]
    panels = []
    for variant, name, _ in VARIANTS[:2]:
        lines = []
        for i, stage in enumerate(chosen):
            rows = pick(curves, stage=stage, variant=variant).sort_values("layer")
            lines.append(
                Line(
                    rows["layer"].astype(int).tolist(),
                    rows["mean"].tolist(),
                    stage,
                    LOOKS[i],
                    rows["low"].tolist(),
                    rows["high"].tolist(),
                )
            )
        panels.append(
            Panel(name.capitalize(), "layer (0: input, last: final norm)", "cosine similarity", lines, level=(0, ""))
        )
    return Figure(
        "layers",
        "Where in depth does alignment grow?",
        "Each curve is one stage’s picture-text similarity over layers. Growth at layer 0 is the projector’s work; growth between layers is the decoder’s.",
        "Line charts of picture-text similarity over layers, one curve a stage, raw and centred.",
        Chart(panels, f"n = {int(curves['n'].max())} scenes a model; bands: 95 % intervals", height=3.1),
    )  # fmt: skip

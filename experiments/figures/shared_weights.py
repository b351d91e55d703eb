"""Figures of the probe `weight_overlap` and of the experiment on shared weights, from their tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..style import BOTH, GREY, NULL, PICTURE, PURPLE, Look, look
from .chart import Chart, Figure, Heat, Line, Panel, Points
from .rows import curve, pick, samples_note

LAYER = "block"
ASIDE = 1.2
"""Points of a hundred by which models with as many weights removed are drawn apart."""


def _by_layer(table: pd.DataFrame, **where) -> pd.DataFrame:
    rows = pick(table, matrix=None, **where)
    return rows[rows["layer"].notna()].sort_values("layer")


def _flat(rows: pd.DataFrame, column: str, label: str, look: Look) -> list[Line]:
    return (
        [Line(rows["layer"].astype(int).tolist(), rows[column].astype(float).tolist(), label, look)]
        if len(rows)
        else []
    )


def overlap(table: pd.DataFrame, noise: pd.DataFrame | None = None) -> Figure | None:
    """IoU of the image's and the text's masks by layer, with its null; noise: the same with pictures of noise, and how far
    the masks of pictures and of noise agree ("image-noise")."""
    panels, least = [], pick(table, quantity="iou")["chance"].min() - 0.05
    for sparsity in sorted(set(table["sparsity"].dropna())):
        rows = _by_layer(table, quantity="iou", sparsity=sparsity, pair="image-text")
        if rows.empty:
            continue
        lines = curve(rows, "image, text", BOTH) + _flat(rows, "null", "independent", NULL)
        if noise is not None:
            lines += curve(
                _by_layer(noise, quantity="iou", sparsity=sparsity, pair="noise-text"),
                "noise, text",
                Look(GREY, "v", "--"),
            )
            lines += curve(
                _by_layer(noise, quantity="iou", sparsity=sparsity, pair="image-noise"),
                "image, noise",
                Look(PURPLE, "^", "-."),
            )
        panels.append(
            Panel(
                f"{100 * sparsity:g} % pruned", LAYER, "IoU of kept weights", lines, y_limits=(least, 1.01),
                level=(float(rows["chance"].iloc[0]), "random masks"),
            )
        )  # fmt: skip
    if not panels:
        return None
    more = (
        " Masks of pictures of noise tell what is due to pictures as such, whatever they show."
        if noise is not None
        else ""
    )
    return Figure(
        "weight_overlap" if noise is None else "overlap",
        "Do pictures and text use the same weights?",
        "IoU of the weights that Wanda keeps for image tokens and for text tokens, by block. Both masks share |W|, so independent inputs (the same weights, "
        f"shuffled input norms) already overlap far more than random masks: only what lies above that is shared use.{more}",
        "Overlap of the masks of image and text tokens by block, above the null of independent inputs and that of random masks.",
        Chart(panels, samples_note(pick(table, quantity="iou")), shared_y=True),
    )  # fmt: skip


def weight_use(table: pd.DataFrame) -> Figure | None:
    """Rank correlation of the inputs' norms by layer, and the adjusted overlap by matrix and layer."""
    ranks = _by_layer(table, quantity="rank")
    sparsity = table["sparsity"].max()
    cells = pick(table, quantity="iou", sparsity=sparsity, pair="image-text")
    cells = cells[cells["matrix"].notna()]
    if ranks.empty or cells.empty:
        return None
    grid = cells.pivot(index="matrix", columns="layer", values="adjusted")
    grid = grid.loc[list(dict.fromkeys(cells["matrix"]))]
    names = [str(name).rpartition(".")[2].removesuffix("_proj") for name in grid.index]
    heat = Heat(
        grid.to_numpy(float).tolist(), names, [str(layer) for layer in grid.columns], "(IoU − null) / (1 − null)"
    )
    low = min(0.0, float(np.nanmin(ranks["low"].fillna(ranks["mean"]))))
    panels = [
        Panel("Inputs alone", LAYER, "rank correlation", curve(ranks, "", PICTURE), level=(0, "independent"), y_limits=(low - 0.05, 1.05)),
        Panel(f"Overlap above the null, {100 * sparsity:g} % pruned", LAYER, "", [heat]),
    ]  # fmt: skip
    return Figure(
        "weight_use",
        "Do they drive the same inputs, and where?",
        "Left, whether the inputs that are large for image tokens are large for text tokens too, over all linears of a block: activations alone, no weights. "
        "Right, the overlap of the masks as a share of what the null leaves, by matrix and block.",
        "Left: rank correlation of input norms of image and text by block. Right: heat map of the adjusted overlap by matrix and block.",
        Chart(panels, samples_note(ranks), widths=(1, 1.35)),
    )


def between_layers(table: pd.DataFrame) -> Figure | None:
    """IoU of one set's masks in two layers, against chance."""
    panels = []
    for sparsity in sorted(set(table["sparsity"].dropna())):
        lines = []
        for i, name in enumerate(("image", "text")):
            rows = _by_layer(table, quantity="layers", sparsity=sparsity, pair=name)
            lines += curve(rows, name, look(i)) + (_flat(rows, "null", "independent", NULL) if i else [])
        if lines:
            chance = float(pick(table, sparsity=sparsity)["chance"].iloc[0])
            panels.append(
                Panel(
                    f"{100 * sparsity:g} % pruned",
                    "later block",
                    "IoU of kept weights",
                    lines,
                    level=(chance, "random masks"),
                )
            )
    if not panels:
        return None
    interval = int(table["interval"].dropna().iloc[0])
    return Figure(
        "weight_layers",
        f"Do blocks {interval} apart keep the same places?",
        "IoU of one set’s mask in a block with its mask of the same matrix some blocks before. Other weights stand there, so it is near what random masks give "
        "unless whole input channels are large in both.",
        "Overlap of the masks of two blocks by block, for image and text tokens, with random masks.",
        Chart(panels, samples_note(pick(table, quantity="layers"))),
    )  # fmt: skip


def removal(table: pd.DataFrame) -> Figure:
    """Perplexity and skill with all but the common subnetwork removed, and the controls."""
    names = list(dict.fromkeys(table["removed"]))
    panels = []
    for what, title, unit in (
        ("perplexity", "Perplexity of answers", "perplexity"),
        ("skill", "Skill of seeing", "share of questions right"),
    ):
        if table[what].isna().all():
            continue
        marks = []
        for i, name in enumerate(names):
            rows = pick(table, removed=name)
            marks.append(
                Points(
                    (100 * rows["share_removed"] + (i - 2) * ASIDE * (i > 0)).tolist(), rows[what].tolist(), name, look(i),
                    y_low=rows[f"{what}_low"].tolist(), y_high=rows[f"{what}_high"].tolist(),
                )
            )  # fmt: skip
        panels.append(Panel(title, "weights removed (%)", unit, marks, direct=False, logarithmic=what == "perplexity"))
    asked = "" if table["skill"].isna().all() else f", {int(table['skill_n'].max())} questions"
    return Figure(
        "removal", "Does what they share carry the model?",
        "Each point is the model with as many weights removed: outside what image and text both keep, the smallest ones, or random ones. The common "
        "subnetwork must do better than both controls at the same share. The three lie a little apart sideways so that none hides another.",
        "Perplexity and skill against the share of weights removed, by kind of removal.",
        Chart(panels, f"n = {int(table['n'].max())} answers{asked}; whiskers: 95 % intervals"),
    )  # fmt: skip


FIGURES = (overlap, weight_use, between_layers)

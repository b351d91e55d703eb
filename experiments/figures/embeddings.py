"""Figures of the embedding probe, and of the experiment on what layers know, from their tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..style import BLACK, BLUE, GREEN, GREY, LOOKS, ORANGE, PURPLE, SKY, VERMILION, Look
from .chart import Chart, Figure, Line, Panel, Points
from .rows import curve, layer_ticks, pick, samples_note

READOUTS = {
    "ridge": Look(BLUE, "o", "-"),
    "mlp": Look(GREEN, "^", "-."),
    "resampler": Look(PURPLE, "D", ":"),
}
REFERENCES = (
    ("tower", "vision tower", Look(BLACK, "", "--", 1.5)),
    ("pixels", "pixels", Look(ORANGE, "", "-.", 1.5)),
    ("place", "place alone", Look(GREY, "", ":", 1.5)),
)
RANDOM, SHUFFLED = Look(VERMILION, "s", "--", 1.4), Look(SKY, "X", ":", 1.4)
ACROSS = "layer (0: input, last: final norm)"


def layers(table: pd.DataFrame) -> Figure | None:
    """Held-out R² by layer, one panel a target, with all reference levels."""
    panels = [_panel(table, target, "r2", "R² on unseen pictures") for target in _targets(table)]
    if not panels:
        return None
    return Figure(
        "layers", f"What does each layer know of {_told(table)}?",
        "Share of the target's variance that a linear probe of each visual token's state predicts in pictures it has not seen. A curve "
        "above “place alone” knows the picture; one above “vision tower” holds more than the decoder was given; the distance to "
        "“shuffled” is what the probe does not owe to itself. Below “random decoder”, the blocks have let go of what mere copying would have kept.",
        f"Held-out R² of probes for {_told(table)} by layer, beside vision tower, pixels, place alone and shuffled targets.",
        Chart(panels, samples_note(pick(table, quantity="r2", features="layer")), height=3.3),
    )  # fmt: skip


def _panel(table: pd.DataFrame, target: str, quantity: str, label: str) -> Panel:
    rows = pick(table, target=target, quantity=quantity)
    true = pick(rows, labels="true")
    marks: list[Line] = []
    readouts = [name for name in READOUTS if len(pick(true, features="layer", readout=name))]
    for name in readouts:
        marks += curve(pick(true, features="layer", readout=name), "states" if len(readouts) == 1 else f"states ({name})", READOUTS[name])  # fmt: skip
    marks += curve(pick(true, features="random decoder"), "random decoder", RANDOM)
    shuffled = pick(rows, labels="shuffled", features="layer", readout=readouts[0] if readouts else None)
    marks += curve(shuffled, "shuffled", SHUFFLED, band=False)
    span = sorted({x for mark in marks for x in mark.x}) or [0, 1]
    for features, name, look in REFERENCES:
        found = pick(true, features=features)
        if len(found) and np.isfinite(found["mean"].iloc[0]):
            marks.append(Line([span[0], span[-1]], [float(found["mean"].iloc[0])] * 2, name, look))
    ticks = layer_ticks(span, span[-1] - 1)
    return Panel(target.capitalize(), ACROSS, label, marks, level=(0, ""), x_ticks=ticks)


def cosines(table: pd.DataFrame) -> Figure | None:
    """The paper's flat cosine beside the centred one: what a cosine is worth without a zero point."""
    panels = []
    for target in _targets(table):
        marks, span = [], [0, 1]
        for quantity, name, look in (
            ("cos_flat", "flat", LOOKS[0]),
            ("cos_centred", "centred", LOOKS[2]),
        ):
            rows = pick(table, target=target, quantity=quantity, labels="true", readout="ridge")
            marks += curve(pick(rows, features="layer"), name, look)
            span = [marks[0].x[0], marks[0].x[-1]] if marks else span
            reference = pick(rows, features="place")
            if len(reference):
                value = float(reference["mean"].iloc[0])
                marks.append(Line(span, [value] * 2, f"{name}, place", look.with_(marker="", dash=":", width=1.3)))
        if marks:
            ticks = layer_ticks(marks[0].x, marks[0].x[-1] - 1)
            panels.append(Panel(target.capitalize(), ACROSS, "cosine", marks, level=(0, ""), x_ticks=ticks, y_limits=(-0.08, 1.08)))  # fmt: skip
    if not panels:
        return None
    return Figure(
        "cosines", "A cosine of 0.9 can be nothing",
        "The flat cosine compares whole maps and is high for any map that resembles the average one: its dotted level knows only where "
        "on the picture it is. Centred cosines have the mean at each place taken from both, and that level is at 0.",
        "Flat and centred cosine of predictions and targets by layer, with the level of the mean map.",
        Chart(panels, samples_note(pick(table, quantity="cos_flat", features="layer")), height=3.0, shared_y=True),
    )  # fmt: skip


def bits(table: pd.DataFrame) -> Figure | None:
    """Selectivity and description length by layer."""
    panels = []
    for quantity, title, label in (
        ("selectivity", "Selectivity", "R², true less shuffled"),
        ("saved_bits", "Online code", "bits saved a number"),
    ):
        marks = []
        for target, look in zip(_targets(table), LOOKS, strict=False):
            rows = pick(table, quantity=quantity, target=target, features="layer", readout="ridge")
            marks += curve(pick(rows, labels="true" if quantity == "saved_bits" else None), target, look)
            if quantity == "saved_bits":
                marks += curve(pick(rows, labels="shuffled"), f"{target}, shuffled", look.with_(dash=":", width=1.1, marker=""))  # fmt: skip
        if marks:
            ticks = layer_ticks(marks[0].x, marks[0].x[-1] - 1)
            panels.append(Panel(title, ACROSS, label, marks, level=(0, ""), x_ticks=ticks))
    if not panels:
        return None
    return Figure(
        "bits", "Is it the layer or the probe?",
        "Left, what the probe loses when each picture's targets are exchanged for another's: near 0, it found nothing of its own in the "
        "states. Right, how many bits the states save in sending the targets, the probe's own cost included; below 0 they cost more than they tell.",
        "Left: selectivity by layer. Right: bits saved by an online code by layer, true and shuffled targets.",
        Chart(panels, samples_note(pick(table, quantity="selectivity", features="layer"), more="right: one code, no interval"), height=3.1),
    )  # fmt: skip


FIGURES = (layers, cosines, bits)
"""Of the probe's table."""


def growth(quality: pd.DataFrame, skill: pd.DataFrame) -> Figure:
    """Probe quality and skill along the series."""
    seen = pick(skill, kind="all")
    order, steps = list(seen["stage"]), seen["step"].astype(float).tolist()
    grown = bool(np.isfinite(steps).all())
    x = steps if grown else list(range(len(order)))
    where = {"x_ticks": None if grown else (x, order)}
    across = "training step" if grown else "model"
    lines = []
    for target, look in zip(dict.fromkeys(quality["target"]), LOOKS, strict=False):
        for at, name in (("last block", "last block"), ("input", "input")):
            rows = pick(quality, target=target, at=at).set_index("stage").loc[order]
            style = look if at == "last block" else look.with_(dash=":", width=1.2)
            lines.append(Line(x, rows["mean"].tolist(), f"{target}, {name}", style, rows["low"].tolist(), rows["high"].tolist()))  # fmt: skip
    right = [Line(x, seen["mean"].tolist(), "", Look(BLACK, "D", "-"), seen["low"].tolist(), seen["high"].tolist())]
    panels = [
        Panel("What is in the states", across, "R² on unseen pictures", lines, level=(0, ""), **where),
        Panel("Skill of seeing", across, "share right", right, y_limits=(-0.03, 1.05), **where),
    ]
    return Figure(
        "growth", "Does the model know more as it sees better?",
        "Left, what linear probes read at the input (the projector's work, dotted) and after the last block; right, the share of questions "
        "about pictures answered right, over the same models. What is at the input but not after the last block was dropped, or used up.",
        "Left: probe R² of the stages at input and last block. Right: skill of the stages.",
        Chart(panels, f"n = {int(quality['n'].max())} pictures, {int(seen['n'].max())} questions a model; bands: 95 % intervals", height=3.2),
    )  # fmt: skip


def scatter(quality: pd.DataFrame, skill: pd.DataFrame, correlations: pd.DataFrame) -> Figure:
    """Probe quality against skill, a point a model."""
    seen = pick(skill, kind="all").set_index("stage")
    names = list(seen.index)
    texts = names if len(names) <= 8 else [names[0], *[""] * (len(names) - 2), names[-1]]
    panels = []
    for target, look in zip(dict.fromkeys(quality["target"]), LOOKS, strict=False):
        rows = pick(quality, target=target, at="mean of blocks").set_index("stage").loc[names]
        found = pick(correlations, target=target, at="mean of blocks", given="nothing").iloc[0]
        told = f"ρ = {found['value']:.2f}" if np.isfinite(found["value"]) else "ρ undefined"
        point = Points(
            rows["mean"].tolist(), seen["mean"].tolist(), "", look, rows["low"].tolist(), rows["high"].tolist(),
            seen["low"].tolist(), seen["high"].tolist(), texts,
        )  # fmt: skip
        panels.append(Panel(f"{target.capitalize()}: {told}, n = {int(found['n'])}", "R², mean over blocks", "share of questions right", [point], y_limits=(-0.05, 1.08), direct=False))  # fmt: skip
    return Figure(
        "scatter", "Does what can be read go with what is answered?",
        "Each point is one model: what probes read from its blocks across, its right answers about pictures up, with 95 % whiskers. Both "
        "grow with training, so a correlation here is no proof that one makes the other.",
        "Probe R² against skill, a point a model, one panel a target.",
        Chart(panels, f"n = {len(names)} models, {int(seen['n'].max())} questions each", shared_y=True, height=3.1),
    )  # fmt: skip


def _targets(table: pd.DataFrame) -> list[str]:
    rows = pick(table, quantity="r2", features="layer", labels="true")
    return list(dict.fromkeys(rows.loc[np.isfinite(rows["mean"].astype(float)), "target"].dropna()))


def _told(table: pd.DataFrame) -> str:
    return " and ".join(_targets(table))

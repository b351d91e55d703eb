"""Figures of the steering experiment, from its tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..style import BLUE, GREEN, GREY, VERMILION, Look, look
from .chart import Chart, Figure, Line, Panel, Points
from .rows import pick

STEERED, ASKED, SHUFFLED, RANDOM = (
    Look(BLUE, "o", "-", 2.0), Look(VERMILION, "D", ""), Look(GREEN, "^", "-.", 1.4), Look(GREY, "s", ":", 1.4),
)  # fmt: skip


TICKS = ([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "0.2", "0.4", "0.6", "0.8", "1"])


def trade(sweep: pd.DataFrame) -> Figure:
    """Success against what is retained, a panel a task, one curve over scale."""
    panels = [_trade(name, rows, i == 0) for i, (name, rows) in enumerate(sweep.groupby("task", sort=False))]
    n = pick(sweep, what="value", measure=["success", "retained"])["n"]
    draws = pick(sweep, kind="random")["draw"].nunique()
    return Figure(
        "steering_trade",
        "What steering changes, and what it costs",
        "Each point of the blue curve is one scale of the same direction: up is what was wanted, right is what stayed as it was, and the numbers are lengths "
        "in state norms; a good direction goes straight up before it turns left. Grey: random directions of the same lengths, with their range; green: "
        "differences of the same states under shuffled labels. The orange diamond is the plain model that is told in its prompt what to say.",
        "Panels, one a task: success against what is retained over the scale of steering, with random directions, shuffled labels and prompting.",
        Chart(panels, f"n = {n.min():,} to {n.max():,} scenes a value; whiskers: 95 % interval over scenes; grey band: range of {draws} random directions", height=3.2),
    )  # fmt: skip


def _trade(name: str, rows: pd.DataFrame, named: bool) -> Panel:
    rows = pick(rows, what="value")
    one = rows.iloc[0]
    random, shuffled = (_control(rows, kind) for kind in ("random", "shuffled"))
    success, retained = (pick(rows, kind="steered", measure=m).sort_values("scale") for m in ("success", "retained"))
    x, y, scales = retained["mean"].tolist(), success["mean"].tolist(), success["scale"].tolist()
    whiskers = [retained["low"].tolist(), retained["high"].tolist(), success["low"].tolist(), success["high"].tolist()]
    told = [pick(rows, kind="asked", measure=m).iloc[0] for m in ("retained", "success")]
    label = (lambda text: text) if named else (lambda _: "")
    marks = [
        Line(random["retained"], random["mean"], label("random directions"), RANDOM, random["low"], random["high"]),
        Line(shuffled["retained"], shuffled["mean"], label("shuffled labels"), SHUFFLED),
        Line(x, y, label("steered"), STEERED),
        Points(x, y, "", STEERED, *whiskers),
        *_named(x, y, scales, float(one["chosen"])),
        Points([told[0]["mean"]], [told[1]["mean"]], label("asked in the prompt"), ASKED, *([told[i][side]] for i in (0, 1) for side in ("low", "high"))),
    ]  # fmt: skip
    title = f"{name} (layer {int(one['layer'])})"
    return Panel(title, one["retained"], one["success"], marks, y_limits=(-0.05, 1.15), x_limits=(-0.05, 1.24),
        x_ticks=TICKS, direct=False)  # fmt: skip


def _control(rows: pd.DataFrame, kind: str) -> dict[str, list[float]]:
    """Means over draws at each scale, from the plain model on, and the range of success."""
    plain = {m: pick(rows, kind="steered", measure=m, scale=0.0)["mean"].iloc[0] for m in ("success", "retained")}
    by = {m: pick(rows, kind=kind, measure=m).groupby("scale")["mean"] for m in plain}
    success, retained = by["success"], by["retained"].mean().tolist()
    return {
        "retained": [plain["retained"], *retained],
        **{name: [plain["success"], *getattr(success, how)().tolist()] for name, how in (("mean", "mean"), ("low", "min"), ("high", "max"))},
    }  # fmt: skip


def _named(x: list[float], y: list[float], scales: list[float], chosen: float, apart: float = 0.12) -> list[Points]:
    """The scale beside each point that no point named before is near; the plain model and the scale chosen come first."""
    named, marks = [], []
    for i in sorted(range(len(x)), key=lambda i: (scales[i] not in (chosen, 0), abs(scales[i]))):
        if all(np.hypot(x[i] - x[j], y[i] - y[j]) > apart for j in named):
            named.append(i)
            text = "plain" if scales[i] == 0 else f"{scales[i]:g}".replace("-", "−") + " chosen" * (scales[i] == chosen)
            marks.append(
                Points([x[i]], [y[i]], "", STEERED, texts=[text])
            )  # apart, so that each stands above its point
    return marks


SIDES = (
    ("perplexity_ratio", "minus plain", "Perplexity of true captions", "ratio to plain"),
    ("repetition", "value", "Repeated trigrams", "share of a caption's"),
    ("unparsed", "value", "Answers that are none", "share of questions"),
)


def side_effects(sweep: pd.DataFrame) -> Figure:
    """What happens to the rest of the model's language, over scale: a panel a measure, a line a task."""
    tasks, steered = list(dict.fromkeys(sweep["task"])), pick(sweep, kind="steered")
    panels = []
    for i, (measure, what, title, y_label) in enumerate(SIDES):
        lines = []
        for j, task in enumerate(tasks):
            rows = pick(steered, task=task, measure=measure, what=what).sort_values("scale")
            columns = (rows[name].tolist() for name in ("scale", "mean", "low", "high"))
            x, y, low, high = columns
            lines.append(Line(x, y, task if i == 1 else "", look(j), low, high))
        ratio = measure == "perplexity_ratio"
        panels.append(
            Panel(title, "scale (state norms)", y_label, lines, direct=False, logarithmic=ratio, level=(1.0, "") if ratio else None,
                  y_limits=None if ratio else (-0.03, 1.03), x_ticks=([-0.5, 0, 0.5, 1, 1.5, 2], ["−0.5", "0", "0.5", "1", "1.5", "2"]))
        )  # fmt: skip
    n = pick(steered, measure=[measure for measure, *_ in SIDES])["n"]
    return Figure(
        "steering_side_effects",
        "What steering does to the rest of the model's language",
        "Left: how much less likely true captions become when they are fed to the steered model, on a logarithmic axis; 1 is the plain model. Middle: the "
        "share of three-word runs that a caption says again, which is how strong steering breaks. Right: the share of one-word questions that get an "
        "answer which is none. A direction is usable where all three are flat.",
        "Three panels over the scale of steering, a line a task: perplexity ratio, repeated trigrams, answers that cannot be parsed.",
        Chart(panels, f"n = {n.min():,} to {n.max():,} scenes a value; bands: 95 % interval over scenes", columns=3, height=3.0),
    )  # fmt: skip

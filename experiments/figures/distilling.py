"""Figures of the distillation experiment, from its tables."""

from __future__ import annotations

import pandas as pd

from ..style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, Look
from .chart import Chart, Figure, Line, Panel, Points
from .rows import curve, layer_ticks, pick

LOOKS = {
    "plain": Look(BLACK, "o", "-"), "distilled": Look(BLUE, "s", "--"), "shuffled targets": Look(VERMILION, "^", "-."),
    "organism/aligned": Look(BLACK, "o", "-"), "organism/ola": Look(BLUE, "s", "--"),
}  # fmt: skip
REFERENCES = {
    "tower": Look(GREEN, "", "--", 1.3), "pixels": Look(ORANGE, "", "-.", 1.3), "place": Look(GREY, "", ":", 1.3),
}  # fmt: skip


def layers(table: pd.DataFrame, references: pd.DataFrame) -> Figure:
    """R² by layer of each arm, a panel a target, beside the reference levels."""
    n, seeds = int(table["pictures"].max()), int(table["seeds"].max())
    return Figure(
        "distilling_layers",
        "Does distillation leave more of the picture in the layers?",
        "Each curve is the mean over trainings of what ridge regression reads from the visual tokens. Distillation adds to what layers know if its curve lies above the plain one, and it is "
        "the targets that do it if it lies above the one with shuffled targets, too. A curve above “tower” would hold more than the projector was given.",
        "Held-out R² of depth and segmentation by layer for three ways of training, with reference levels.",
        Chart(_panels(table, references), f"{seeds} trainings an arm; n = {n} pictures; bands: 95 % interval over trainings", height=3.3),
    )  # fmt: skip


def members(table: pd.DataFrame, references: pd.DataFrame) -> Figure:
    """The same of the two shipped members."""
    rows = pick(table, quantity="r2").assign(labels="true")
    return Figure(
        "distilling_members",
        "The shipped members: the same stage to its end, without and with distillation",
        "What ridge regression reads from the visual tokens of the aligned model and of the one that was distilled while it was aligned. The language model is the same, frozen in both: what differs "
        "was put there by the projector. One training each, so the distance is not one between methods until the trainings above agree.",
        "Held-out R² of depth and segmentation by layer for the aligned and the distilled member, with reference levels.",
        Chart(_panels(rows, references), f"n = {int(rows['n'].max())} pictures; bands: 95 % interval over pictures; one training each", height=3.3),
    )  # fmt: skip


def _panels(table: pd.DataFrame, references: pd.DataFrame) -> list[Panel]:
    panels, span = [], sorted(table["layer"].dropna().astype(int).unique())
    for target, rows in pick(table, labels="true").groupby("target", sort=False):
        marks = [line for arm, look in LOOKS.items() for line in curve(pick(rows, arm=arm), arm.removeprefix("organism/"), look)]  # fmt: skip
        for row in pick(references, target=target).to_dict("records"):
            marks.append(Line([span[0], span[-1]], [row["mean"]] * 2, row["features"], REFERENCES[row["features"]]))
        ticks = layer_ticks(span, span[-1] - 1)
        panels.append(Panel(target.capitalize(), "layer (0: input, last: final norm)", "R² on unseen pictures", marks, level=(0, ""), x_ticks=ticks))  # fmt: skip
    return panels


def effects(table: pd.DataFrame) -> Figure:
    """Differences between arms: probe quality, caption loss and F1."""
    pairs = list(dict.fromkeys(zip(table["arm"], table["against"], strict=True)))
    at = list(range(len(pairs)))[::-1]
    groups = (
        ("Probe quality", "difference in R², blocks", [q for q in dict.fromkeys(table["quantity"]) if q.endswith("blocks")]),
        ("Caption loss", "difference, nats a token", ["caption loss"]), ("Caption F1", "difference", ["caption F1"]),
    )  # fmt: skip
    looks = (Look(BLUE, "o", ""), Look(VERMILION, "s", ""))
    panels = []
    for number, (title, label, quantities) in enumerate(groups):
        marks = []
        for i, (quantity, look) in enumerate(zip(quantities, looks, strict=False)):
            rows = [pick(table, arm=arm, against=other, quantity=quantity).iloc[0] for arm, other in pairs]
            name = quantity.removeprefix("R² of ").removesuffix(", blocks") if len(quantities) > 1 else ""
            y = [place + 0.14 - 0.28 * i if len(quantities) > 1 else place for place in at]
            marks.append(Points([row["mean"] for row in rows], y, name, look if len(quantities) > 1 else Look(BLACK, "D", ""), [row["low"] for row in rows], [row["high"] for row in rows]))  # fmt: skip
        names = [f"{arm}\nless {other}" for arm, other in pairs] if number == 0 else [""] * len(pairs)
        panels.append(Panel(title, label, "", marks, upright=(0, ""), y_limits=(-0.6, len(pairs) + 0.3), y_ticks=(at, names), direct=False))  # fmt: skip
    seeds, n = int(table["seeds"].max()), int(table["n"].max())
    return Figure(
        "distilling_effects",
        "What distillation changed, and what its control changed as well",
        "Each point is one way of training less another, with the same training data. Right of 0 on the left and on the right, and left of 0 in the middle, is better. What the second row "
        "shows, too, is owed to the task tokens and the extra loss, whatever the targets are.",
        "Differences between arms in probe quality, caption loss and caption F1, with intervals.",
        Chart(panels, f"{seeds} trainings an arm; n = {n} captions; whiskers: 95 % interval over trainings (left) and over captions and trainings", columns=3, height=2.7, widths=[1.5, 1, 1]),
    )  # fmt: skip

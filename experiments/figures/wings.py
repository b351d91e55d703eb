"""Figures of the experiment on learners and text-only forgetting, from its tables."""

from __future__ import annotations

import pandas as pd

from ..style import BLACK, BLUE, GREY, VERMILION, Look
from .chart import Chart, Figure, Panel, Points
from .rows import pick

SHOWN = (
    ("text loss", "Text-only tasks", "loss of the answer (nats a token)"),
    ("seeing loss", "Picture questions", "loss of the answer (nats a token)"),
    ("shift", "Attention shift", "1 − Pearson ρ"),
)
MEAN, EACH = Look(BLUE, "D", ""), Look(GREY, "o", "", 1.0)
EFFECTS = {"text loss": Look(VERMILION, "s", ""), "seeing loss": Look(BLUE, "o", ""), "shift": Look(BLACK, "D", "")}


def outcomes(table: pd.DataFrame, steps: int) -> Figure:
    """Each arm's losses and shift, with every training."""
    arms = list(dict.fromkeys(table["arm"]))
    panels = []
    for quantity, title, label in SHOWN:
        rows = pick(table, quantity=quantity).set_index("arm").loc[arms]
        each = [name for name in rows if name.startswith("training_")]
        dots = [(i + 0.22, value) for i, arm in enumerate(arms) for value in rows.loc[arm, each].dropna()]
        wide = rows.copy() if quantity != "shift" else rows.assign(low=float("nan"), high=float("nan"))
        panels.append(
            Panel(
                title, "", label,
                [Points([x for x, _ in dots], [y for _, y in dots], "", EACH),
                 Points(list(range(len(arms))), rows["mean"].tolist(), "", MEAN, y_low=wide["low"].tolist(), y_high=wide["high"].tolist())],
                level=(float(rows.loc["before", "mean"]), ""), x_limits=(-0.5, len(arms) - 0.4),
                x_ticks=(list(range(len(arms))), [_broken(arm) for arm in arms]), direct=False,
            )
        )  # fmt: skip
    n = int(table["n"].max())
    return Figure(
        "wings_outcomes",
        "What tuning on pictures did to text, with and without learners",
        "Diamonds are means over trainings, grey dots the trainings; the dotted line is the model before. Learners keep text skill if “wings” lies lower than “plain” on the left; "
        "they cost nothing if it does not lie higher in the middle. “plain, slow” has no learners, only the smaller rate that the published comparison gives to them.",
        "Three panels: loss on text-only tasks, loss on questions about pictures, and attention shift, one point an arm with each training beside it.",
        Chart(panels, f"{steps} steps; n = {n} questions at most; whiskers: 95 % interval over questions and trainings (none for the shift)", columns=2 if len(arms) < 6 else 1, height=2.8),
    )  # fmt: skip


def effects(table: pd.DataFrame) -> Figure:
    """Differences between arms, paired."""
    names = list(dict.fromkeys(table["effect"]))
    panels = []
    for quantity, title, label in SHOWN:
        rows = pick(table, quantity=quantity).set_index("effect").loc[names]
        at = list(range(len(names)))[::-1]
        points = Points(rows["mean"].tolist(), at, "", EFFECTS[quantity], rows["low"].tolist(), rows["high"].tolist())
        panels.append(
            Panel(title, f"difference, {'nats a token' if 'loss' in quantity else label}", "", [points], upright=(0, ""), y_limits=(-0.6, len(names) - 0.4), y_ticks=(at, [_broken(n, 16) for n in names] if quantity == SHOWN[0][0] else [""] * len(names)), direct=False)
        )  # fmt: skip
    seeds = int(table["seeds"].max())
    return Figure(
        "wings_effects",
        "What is the learners’ doing, and what the learning rate’s?",
        "Each point is one arm minus another, on the same questions and with the same training data; left of 0 is less loss. The first row is the learners alone, the second the smaller "
        "rate alone. Where the second row reaches as far left as the row that has both, the learners did not do it.",
        "Paired differences between arms in text-only loss, loss on pictures and attention shift, with intervals.",
        Chart(panels, f"{seeds} trainings an arm; n = {int(table['n'].max())} questions at most; whiskers: 95 % interval over questions and trainings", columns=3, height=0.9 + 0.5 * len(names), widths=[1.5, 1, 1]),
    )  # fmt: skip


def _broken(name: str, width: int = 6) -> str:
    """A name in lines of about so many letters."""
    lines = [""]
    for word in name.split():
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [*lines, word]
    return "\n".join(line for line in lines if line)

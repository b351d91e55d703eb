"""Figures of the preferences experiment: ways of tuning against the model before and against each other."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ..style import BLUE, GREEN, GREY, PURPLE, SKY, VERMILION, Look
from .chart import Chart, Figure, Panel, Points
from .rows import pick

LOOK = {
    "sft": ("SFT", Look(GREEN, "^", "")), "dpo": ("DPO", Look(VERMILION, "s", "")), "rdpo": ("rDPO", Look(BLUE, "o", "")),
    "anchored": ("rDPO, anchored", Look(SKY, "P", "")), "unfiltered": ("rDPO, no filters", Look(PURPLE, "D", "")),
}  # fmt: skip
EACH = Look(GREY, "v", "")
PANELS = (
    ("POPE: accuracy", "more is better", (("pope-scenes", "random", "accuracy", "random"), ("pope-scenes", "popular", "accuracy", "popular"), ("pope-scenes", "adversarial", "accuracy", "adversarial"))),
    ("Descriptions", "", (("chair-scenes", "all", "chair_i", "CHAIR_i (less is better)"), ("chair-scenes", "same length", "chair_i", "the same at equal length"), ("chair-scenes", "all", "recall", "objects mentioned (more)"))),
    ("Skill elsewhere: accuracy", "more is better", (("elsewhere", "colour", "accuracy", "colour"), ("elsewhere", "number", "accuracy", "number"), ("elsewhere", "position", "accuracy", "position"))),
    ("Text alone: accuracy", "more is better", (("text alone", "sums", "accuracy", "sums"), ("text alone", "facts", "accuracy", "facts"), ("text alone", "sequences", "accuracy", "sequences"))),
)  # fmt: skip
"""Title, which way is better, and of every line: part, split, metric, name."""

Tables = Mapping[str, pd.DataFrame]


def drawable(tables: Tables) -> list[Figure]:
    return [ways(tables["scores"]), against(tables["contrasts"]), margins(tables["margins"])]


def ways(table: pd.DataFrame) -> Figure:
    """Every way of tuning against the model before; the trainings as small grey marks."""
    arms = [arm for arm in LOOK if arm in set(table["arm"])]
    panels = []
    for title, better, lines in PANELS:
        at = [float(len(lines) - 1 - i) for i in range(len(lines))]
        marks = []
        for k, arm in enumerate(arms):
            place = _beside(at, k, len(arms))
            rows = [pick(table, part=p, split=s, metric=m, arm=arm) for p, s, m, _ in lines]
            each = [
                (100 * v, y) for y, r in zip(place, rows, strict=True) for v in r[r["model"] != "mean"]["difference"]
            ]
            if each:
                x, y = zip(*each, strict=True)
                marks.append(Points(x, y, "" if panels or k else "each training", EACH))
            name, look = LOOK[arm]
            marks.append(_points([pick(r, model="mean").iloc[0] for r in rows], place, "" if panels else name, look))
        label = "change, points" + (f" ({better})" if better else "")
        panels.append(Panel(title, label, "", marks, upright=(0.0, ""), y_ticks=(at, [name for *_, name in lines]), y_limits=(-0.6, len(lines) - 0.4), direct=False))  # fmt: skip
    n = int(pick(table, part="pope-scenes", split="adversarial")["n"].max())
    return Figure(
        "ways", "What does each way of tuning change?",
        "Every point is a tuned organism minus the organism before, on the same questions. A gain in CHAIR_i counts where it stays at equal length and the share of objects mentioned does not fall with it. "
        "Text alone shows what was forgotten: nothing in the pairs is without a picture.",
        "Changes in POPE, CHAIR, skill and text-only accuracy for SFT, DPO, rDPO and rDPO without filters, with intervals.",
        Chart(panels, f"n = {n:,} adversarial questions, {_seeds(table)} trainings each; whiskers: 95 % interval over scenes and trainings", height=3.1),
    )  # fmt: skip


def against(table: pd.DataFrame) -> Figure:
    """Ways against each other, seed by seed."""
    names = list(dict.fromkeys(table["contrast"]))
    told = {name: " − ".join(LOOK[arm][0] for arm in name.split(" − ")) for name in names}
    panels = []
    for part, split, metric, title in (
        ("pope-scenes", "adversarial", "accuracy", "POPE adversarial, accuracy"), ("chair-scenes", "all", "chair_i", "CHAIR_i"),
        ("chair-scenes", "all", "recall", "Objects mentioned"), ("text alone", "all", "accuracy", "Text alone, accuracy"),
    ):  # fmt: skip
        at = [float(len(names) - 1 - i) for i in range(len(names))]
        rows = [pick(table, part=part, split=split, metric=metric, contrast=name).iloc[0] for name in names]
        marks = [_points(rows, at, "", Look(BLUE, "o", ""), "after", "low", "high")]
        better = "less is better" if metric == "chair_i" else "more is better"
        panels.append(Panel(title, f"points ({better})", "", marks, upright=(0.0, ""), y_ticks=(at, [told[n] for n in names]), y_limits=(-0.6, len(names) - 0.4), direct=False))  # fmt: skip
    n = int(pick(table, part="pope-scenes", split="adversarial")["n"].max())
    return Figure(
        "against", "Which way is better than which?",
        "Every point is one way of tuning minus another, from the same seed, hence the same pairs in the same order, on the same questions. What the visual term buys is rDPO − DPO; what the filters buy is "
        "the last row.",
        "Differences between ways of tuning in POPE adversarial accuracy, CHAIR_i, recall and text-only accuracy, with intervals.",
        Chart(panels, f"n = {n:,} adversarial questions, {_seeds(table)} trainings each; whiskers: 95 % interval over scenes and trainings", height=2.3),
    )  # fmt: skip


def margins(table: pd.DataFrame) -> Figure:
    """Margins of held-out pairs, over the rejected answer and over the rejected picture, and chosen answers that lost."""
    arms = [arm for arm in LOOK if arm in set(table["arm"])]
    panels = []
    for title, label, lines, by in (
        ("Margin over …", "reward, β × log-ratio", (("text_margin", "rejected answer"), ("visual_margin", "rejected picture")), 1),
        ("Share of pairs", "%", (("text_accuracy", "margin over answer"), ("visual_accuracy", "margin over picture"), ("displaced", "chosen answer less likely")), 100),
    ):  # fmt: skip
        at = [float(len(lines) - 1 - i) for i in range(len(lines))]
        marks = []
        for k, arm in enumerate(arms):
            place = _beside(at, k, len(arms))
            rows = [pick(table, arm=arm, model="mean", metric=metric, kind="all").iloc[0] for metric, _ in lines]
            name, look = LOOK[arm]
            marks.append(_points(rows, place, "" if panels else name, look, "after", "low", "high", by))
        upright = (0.0 if by == 1 else 50.0, "")
        panels.append(Panel(title, label, "", marks, upright=upright, y_ticks=(at, [name for _, name in lines]), y_limits=(-0.6, len(lines) - 0.4), direct=False))  # fmt: skip
    return Figure(
        "margins", "What did each way learn of held-out pairs?",
        "Left: how much more than before the chosen answer is preferred over the rejected one, and under its own picture over the rejected one. Right: in how many pairs, and in how many the chosen answer itself "
        "became less likely, which preference tuning permits as long as the other falls faster.",
        "Reward margins and shares of held-out pairs for SFT, DPO, rDPO and rDPO without filters.",
        Chart(panels, f"n = {int(table['n'].max())} held-out pairs, {_seeds(table)} trainings each; whiskers: 95 % interval over pairs and trainings", height=2.9),
    )  # fmt: skip


def _beside(at: list[float], k: int, ways: int) -> list[float]:
    """Heights of the k-th of several ways around the lines at `at`, the first on top."""
    return [y + 0.33 - 0.66 * k / max(ways - 1, 1) for y in at]


def _points(
    rows, at, label: str, look: Look, value="difference", low="difference_low", high="difference_high", by: float = 100
) -> Points:
    return Points(
        [by * row[value] for row in rows],
        at,
        label,
        look,
        [by * row[low] for row in rows],
        [by * row[high] for row in rows],
    )


def _seeds(table: pd.DataFrame) -> int:
    return int(table["seeds"].max())

"""Figures of the compute experiment, from its tables: quality against time and FLOPs, and where visual tokens may leave."""

from __future__ import annotations

import pandas as pd

from ..style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, Look
from .chart import Chart, Figure, Line, Panel, Points
from .rows import pick

LOOKS = {
    "prune": Look(BLUE, "o", "-"),
    "random tokens": Look(GREY, "s", ":"),
    "exit": Look(ORANGE, "^", "-."),
    "skip FFN": Look(GREEN, "D", "--"),
    "skip block": Look(PURPLE, "v", "--"),
}
PLAIN, FRONT = Look(BLACK, "X", ""), Look("#c9ced6", "", "-", 5.0)


def pareto(table: pd.DataFrame) -> Figure:
    """Accuracy against measured time and against the decoder's FLOPs, a line an operator, the best settings on a grey front."""
    panels = [
        _panel(table, "time_ratio", "Measured time", "time of a prompt, ratio to plain", named=True),
        _panel(table, "flops_ratio", "Estimated FLOPs of the decoder", "FLOPs, ratio to plain", named=False),
    ]
    one = table.iloc[0]
    return Figure(
        "compute_pareto",
        "What do fewer visual tokens save, and what do they cost?",
        "Left is cheaper, up is better; the grey front joins the settings, named on the right, that no other beats in both. Points along a line are the settings of one operator: of visual tokens 0.1, 0.25 "
        "and 0.5 are kept, all leave behind an early or a late block, or they are skipped from an early or a late block on. Pruning must beat random tokens to have "
        "chosen well, and saved FLOPs become saved time only as far as the decoder is what takes the time.",
        "Two panels of accuracy against cost, measured time and FLOPs, for pruning, random tokens, exits and skips, with the front of best settings.",
        Chart(
            panels,
            f"n = {int(one['n'])} questions, vertical: 95 % interval; {int(one['prompts'])} prompts, {int(one['rounds'])} rounds, horizontal: their middle half",
            height=3.9,
        ),
    )  # fmt: skip


def _panel(table: pd.DataFrame, cost: str, title: str, x_label: str, *, named: bool) -> Panel:
    best = table.iloc[front(table[cost].tolist(), table["accuracy"].tolist())]
    x, y = best[cost].tolist(), best["accuracy"].tolist()
    names = [f"{row.method} {row.setting}".strip() for row in best.itertuples()]
    marks: list = [Line(x, y, "front" if named else "", FRONT), Points(x, y, "", FRONT, texts=None if named else names)]
    for method, look in LOOKS.items():
        rows = pick(table, method=method).sort_values("flops_ratio")
        x, y = rows[cost].tolist(), rows["accuracy"].tolist()
        sides = [rows[name].tolist() for name in ("time_low", "time_high")] if cost == "time_ratio" else [None, None]
        marks += [
            Line(x, y, method if named else "", look),
            Points(x, y, "", look, *sides, rows["low"].tolist(), rows["high"].tolist()),
        ]
    plain = pick(table, method="plain")
    marks.append(Points(plain[cost].tolist(), plain["accuracy"].tolist(), "plain" if named else "", PLAIN))
    lowest = max(0.0, float(table["low"].min()) - 0.05)
    return Panel(
        title, x_label, "questions answered right" if named else "", marks, y_limits=(lowest, 1.14), direct=False
    )


def front(costs: list[float], values: list[float]) -> list[int]:
    """Indices of the settings that none beats: no other costs as little or less and is as good or better (ties: the first stays),
    the cheapest first."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -values[i]))
    best, kept = float("-inf"), []
    for i in order:
        if values[i] > best:
            best, kept = values[i], [*kept, i]
    return kept


def safe_exits(layers: pd.DataFrame) -> Figure:
    """Share of samples whose visual tokens may leave behind each block."""
    rows = layers.sort_values("layer")
    x = rows["layer"].astype(int).tolist()
    safe = Line(x, rows["safe_share"].tolist(), "safe", LOOKS["exit"], rows["low"].tolist(), rows["high"].tolist())
    agreed = Line(x, rows["agreement"].tolist(), "tokens that agree", Look(BLUE, "o", ":"))
    return Figure(
        "safe_exits",
        "How early may all visual tokens leave?",
        "For each block, the share of questions for which all visual tokens may leave the decoder behind it: the best tokens of the answer stay the same and its loss is at most 3 % higher. "
        "The dotted line counts agreeing tokens alone. Behind the last block nothing is left to change, so both end at 1.",
        "Share of samples for which a visual-token exit is safe, by block.",
        Chart(
            [Panel("Leaving behind a block", "block (0 is the first)", "share of questions", [safe, agreed], y_limits=(-0.03, 1.05))],
            f"n = {int(rows['n'].max())} questions; band: 95 % interval (Wilson’s)",
            columns=1,
            height=2.7,
        ),
    )  # fmt: skip

"""Figures of the probe `attention_shift`, each from its table alone."""

from __future__ import annotations

import pandas as pd

from ..style import BLACK, BLUE, GREY, NULL, ORANGE, SEGMENTS, Look
from .chart import Areas, Chart, Figure, Heat, Line, Panel, Points
from .rows import LEVEL, curve, pick, samples_note

BLOCK, MASS = "block", "share of attention"
ORDER = ("sink", "system", "before", "image", "after")
"""Segments that add up to 1 (“answer” is a part of “after”)."""


def mass_rows(table: pd.DataFrame, **where) -> pd.DataFrame:
    """Mass by segment and layer, mean over heads, of queries behind the picture."""
    return pick(table, **{"quantity": "mass", "run": "vlm", "version": "raw", "queries": "post", **where})


def curve_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The two curves whose relation the shift is: mass on the text before and on the text after, by layer."""
    rows = mass_rows(table, segment=["before", "after"])
    return rows[["segment", "layer", "mean", "low", "high", "n"]].reset_index(drop=True)


def shift_row(table: pd.DataFrame, *, text_only: bool = False) -> dict:
    """The default shift (Pearson, per sample then mean), read with pictures or on the same texts without; NaN where undefined."""
    rows = _shift(table, run="text" if text_only else "vlm")
    if rows.empty:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    row = rows.iloc[0]
    return {"mean": float(row["mean"]), "low": float(row["low"]), "high": float(row["high"]), "n": int(row["n"])}


def _shift(table: pd.DataFrame, **where) -> pd.DataFrame:
    default = {
        "run": "vlm",
        "version": "raw",
        "queries": "post",
        "comparator": "pearson",
        "order": "per_sample_then_mean",
    }
    rows = pick(table, **{"quantity": "shift", **default, **where})
    return rows[rows["mean"].astype(float).notna()]


def segments(table: pd.DataFrame) -> Figure | None:
    """Mass per segment over layers, stacked, beside what uniform attention would give."""
    rows = mass_rows(table)
    rows = rows[rows["mean"].astype(float).notna()]
    if rows.empty:
        return None
    present = [name for name in ORDER if rows.loc[rows["segment"] == name, "mean"].max() > 1e-6]
    layers = sorted(rows["layer"].astype(int).unique())

    def heights(chosen: pd.DataFrame) -> dict[str, list[float]]:
        wide = chosen.assign(layer=chosen["layer"].astype(int)).pivot_table(
            index="layer", columns="segment", values="mean", observed=True
        )
        return {name: wide[name].reindex(layers).fillna(0).tolist() for name in present if name in wide}

    lines = [line for name in present for line in curve(rows[rows["segment"] == name], name, SEGMENTS[name])]
    panels = [
        Panel("All of attention, stacked", BLOCK, MASS, [Areas(layers, heights(rows), SEGMENTS)], y_limits=(0, 1)),
        Panel(
            "The same, each with its interval",
            BLOCK,
            MASS,
            lines,
            y_limits=(0, max(0.05, *(v for line in lines for v in line.high or line.y)) * 1.06),
        ),
    ]
    return Figure(
        "segments",
        "Where does attention go?",
        "For every query behind the picture, attention is summed over the keys of each span, then averaged over queries, heads and samples; the shares "
        "of one block add up to 1. Look at how much the first token (the sink) takes, and in which blocks the picture is read.",
        "Left: stacked areas of the share of attention on each span of the sequence over blocks. Right: the same shares as lines with intervals.",
        Chart(panels, samples_note(rows, more="queries behind the picture")),
    )  # fmt: skip


def before_and_after(table: pd.DataFrame) -> Figure | None:
    """The curves before, image, after, each with its structural baseline; and the same texts without the picture."""
    panels = []
    used = []
    for source, title in (("vlm", "With the picture"), ("text", "Same texts, no picture")):
        lines: list[Line] = []
        for segment in ("before", "image", "after"):
            rows = mass_rows(table, segment=segment, run=source)
            rows = rows[rows["mean"].astype(float).fillna(0) > 1e-9]
            if rows.empty:
                continue
            used.append(rows)
            lines += curve(rows, segment, SEGMENTS[segment])
            level = pick(table, quantity="uniform", queries="post", segment=segment if source == "vlm" else "none")
            level = level[level["mean"].astype(float).notna()]
            if len(level):
                value = float(level["mean"].mean())
                layers = sorted(rows["layer"].astype(int))
                lines.append(Line(layers, [value] * len(layers), "", NULL.with_(colour=SEGMENTS[segment].colour)))
        if lines:
            panels.append(Panel(title, BLOCK, MASS, lines))
    if not panels:
        return None
    top = max(panel.y_range()[1] for panel in panels)
    panels = [Panel(p.title, p.x_label, p.y_label, p.marks, y_limits=(0, top)) for p in panels]
    return Figure(
        "before_and_after",
        "Do the texts before and behind the picture keep one course?",
        "The shift asks whether the green and the red curve rise and fall together over blocks; their heights do not enter it. The dotted line of the same "
        "colour is what attention spread evenly over all earlier tokens would give, so only what is off that line is the model’s choice.",
        "Line charts of the share of attention on the text before, the picture and the text after over blocks, with the level of uniform attention; "
        "beside it the same texts without the picture.",
        Chart(panels, samples_note(pd.concat(used), more="dotted: uniform attention; queries behind the picture"), shared_y=len(panels) > 1),
    )  # fmt: skip


CHOICES = (
    ("default: Pearson, queries behind", {}),
    ("all queries, as published", {"queries": "all"}),
    ("without the sink", {"version": "without_sink"}),
    ("log-ratio to the picture", {"version": "log_ratio"}),
    ("of the mean curves", {"order": "curve_of_means"}),
    ("Spearman", {"comparator": "spearman"}),
    ("cosine", {"comparator": "cosine"}),
    ("same texts, no picture", {"run": "text"}),
)
"""What the figure of shifts shows: each row changes one choice of the default measure."""


def shift(table: pd.DataFrame) -> Figure | None:
    """The shift with one choice changed at a time, the text-only contrast, and the nulls of turned curves and of dealt labels."""
    names, marks, used = [], [], []
    shown = [(name, _shift(table, **where)) for name, where in CHOICES]
    for name, quantity in (("null: one curve turned", "null_circular"), ("null: labels dealt anew", "null_labels")):
        null = pick(table, quantity=quantity, run="vlm", queries="post")
        shown.append((name, null[null["mean"].astype(float).notna()]))
    for name, rows in reversed(shown):
        if rows.empty:
            continue
        place = len(names)
        names.append(name)
        if name.startswith("null"):
            marks.append(Points(rows["mean"].tolist(), [place] * len(rows), "", Look(GREY, "v", ":")))
            continue
        look = (
            Look(ORANGE, "s", "-")
            if name.startswith("same")
            else Look(BLACK, "D", "-")
            if name.startswith("default")
            else Look(BLUE, "o", "-")
        )
        marks.append(Points(rows["mean"].tolist(), [place], "", look, rows["low"].tolist(), rows["high"].tolist()))
        used.append(rows)
    if not used:
        return None
    panel = Panel(
        "0: the curves move together, 1: unrelated, 2: opposite", "1 − correlation over blocks (cosine: 1 − cosine)", "", marks,
        y_ticks=(list(range(len(names))), names), y_limits=(-0.6, len(names) - 0.4), x_limits=(-0.05, 2.05), upright=(1.0, ""), direct=False,
    )  # fmt: skip
    count = samples_note(pd.concat(used)).split(";")[0]
    return Figure(
        "shift",
        "How large is the shift, and against what?",
        "The black point is the default; each blue one changes a single choice (the published measure takes all queries), and the orange one is the same texts without their pictures. "
        "Read it against the grey triangles, where one curve is turned by some blocks, or words before and behind the picture trade places: a shift that differs from neither says nothing about the two texts.",
        "Dot chart of the attention shift under several choices of measure, on texts without pictures, and of its two nulls, with 95 % intervals.",
        Chart(
            [panel],
            f"{count}; whiskers: {LEVEL}; triangles: means of the nulls; few blocks make any correlation coarse",
            columns=1,
            height=0.9 + 0.27 * len(names),
        ),
    )


def heads(table: pd.DataFrame) -> Figure | None:
    """Mass on the picture by head and layer."""
    rows = pick(table, quantity="head_mass", segment="image", queries="post", version="raw")
    rows = rows[rows["head"].notna() & rows["mean"].astype(float).notna()] if "head" in rows else rows.iloc[:0]
    if rows.empty:
        return None
    wide = rows.assign(layer=rows["layer"].astype(int), head=rows["head"].astype(int)).pivot_table(
        index="head", columns="layer", values="mean"
    )
    heat = Heat(
        wide.to_numpy().tolist(),
        [str(h) for h in wide.index],
        [str(la) for la in wide.columns],
        MASS,
        (0.0, max(0.05, float(wide.to_numpy().max()))),
    )
    panel = Panel("Attention on the picture, by head", BLOCK, "head", [heat])
    return Figure(
        "heads",
        "Which heads look at the picture?",
        "Each cell is one head: the share of its attention that queries behind the picture give to visual tokens. A few dark cells in a light field mean that "
        "a handful of heads carry the picture into the text; the mean over heads, which the curves show, hides them.",
        "Heat map of the share of attention on the picture for every head and block.",
        Chart([panel], samples_note(rows, more="queries behind the picture").replace("band: 95 % interval", "means (95 % intervals in the table)"), columns=1, height=min(6.0, 1.4 + 0.3 * len(wide))),
    )  # fmt: skip


FIGURES = (segments, before_and_after, shift, heads)

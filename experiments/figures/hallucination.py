"""Figures of the hallucination experiment, from its tables: what each way of decoding changes against greedy."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from ..style import BLACK, BLUE, GREY, LOOKS, ORANGE, PURPLE, SKY, Look
from .chart import Chart, Figure, Line, Panel, Points
from .rows import pick

MITIGATIONS = {"damro": "DAMRO", "vcd": "VCD", "pai": "PAI", "m3id": "M3ID"}
CONTROLS = {"no-image-a1": "no picture", "random-tokens-a1": "random tokens", "yes": "tuned bias to yes"}
SAMPLED = {"sampling": "sampling", "sampling-b0.1": "sampling, mask only", "sampling-t0.5": "sampling, T = 0.5"}
LOOK = {"mitigation": Look(BLUE, "o", ""), "control": Look(ORANGE, "s", ""), "sampled": Look(GREY, "^", "")}
SWEPT = {
    "damro": ("DAMRO", LOOKS[0]),
    "no-image": ("no picture", LOOKS[1]),
    "random-tokens": ("random tokens", LOOKS[2]),
}


POINTS = {
    "greedy": ("greedy", Look(BLACK, "D", "")),
    "sampling": ("sampling", Look(GREY, "^", "")),
    "vcd": ("VCD", Look(PURPLE, "v", "")),
    "pai": ("PAI", Look(SKY, "P", "")),
    "m3id": ("M3ID", Look(ORANGE, "X", "")),
}


def named(method: str) -> tuple[str, str] | None:
    """(name for people, kind) of a method; None for one that is only a point of a sweep."""
    key = "yes" if method.startswith("yes") else method
    for kind, names in (("mitigation", MITIGATIONS), ("control", CONTROLS), ("sampled", SAMPLED)):
        if key in names:
            return names[key], kind
    return None


def pope(table: pd.DataFrame) -> Figure | None:
    """Differences from greedy in accuracy and in the share of yes, mean over the three splits; None where nothing is compared."""
    if not _compared(pick(table, split="mean", metric="accuracy")):
        return None
    panels = _differences(
        pick(table, split="mean"), {"accuracy": "Accuracy", "yes_ratio": "Share of yes"}, "points, against greedy", 100
    )
    greedy = pick(table, split="mean", method="greedy", metric="accuracy").iloc[0]
    return Figure(
        "pope",
        "Do mitigations answer better than greedy decoding?",
        "Each point is one way of decoding, against greedy decoding on the same questions: left its accuracy, right how often it says yes. A mitigation helps where "
        "its interval lies right of 0, and its own story is needed only where it also lies right of the controls. A shift of yes without a gain in accuracy is a moved threshold.",
        "Differences from greedy decoding in POPE accuracy and yes-ratio for mitigations, controls and sampling, with intervals.",
        Chart(
            panels,
            f"n = {int(greedy['n']):,} questions, greedy accuracy {greedy['mean']:.3f}; whiskers: paired 95 % interval over pictures",
            height=1.2 + 0.26 * len(panels[0].y_ticks[0]),
        ),
    )


def chair(table: pd.DataFrame) -> Figure | None:
    """Share of mentions made up against share of the picture's objects mentioned; contrasts as curves over their strength. None for a
    table of other scores."""
    if not _compared(pick(table, split="all", metric="chair_i")):
        return None
    rows = {metric: pick(table, split="all", metric=metric).set_index("method") for metric in ("chair_i", "recall")}
    made: list = []
    for key, (label, look) in SWEPT.items():
        names = [n for n in (f"{key}-a0.5", key, f"{key}-a1", f"{key}-a2") if n in rows["recall"].index]
        x, y = ([float(rows[metric].loc[n, "mean"]) * 100 for n in names] for metric in ("recall", "chair_i"))
        if len(names) > 1:
            made.append(Line(x, y, f"{label}, strength 0.5, 1, 2", look))
    for method, (label, look) in POINTS.items():
        if method not in rows["recall"].index:
            continue
        x, y = (
            100 * rows[metric].loc[method, ["mean", "low", "high"]].astype(float) for metric in ("recall", "chair_i")
        )
        whiskers = [[v] for v in (x["low"], x["high"], y["low"], y["high"])] if method == "greedy" else []
        made.append(Points([x["mean"]], [y["mean"]], label, look, *whiskers))
    n = int(rows["recall"]["n"].max())
    return Figure(
        "chair_against_recall",
        "Fewer objects made up at equal recall?",
        "Down is fewer objects made up, right is more of the picture’s objects mentioned. Curves are contrasts at strength 0.5, 1 and 2; a mitigation is better only where it lies "
        "below greedy and below the control curves at the same recall. Moving left and down is saying less.",
        "CHAIR_i against recall for greedy, sampling, mitigations, and curves over strength for DAMRO, no picture and random tokens.",
        Chart(
            [Panel("Descriptions of scenes", "objects of the picture mentioned (%)", "mentions made up, CHAIR_i (%)", made, direct=False)],
            f"n = {n:,} descriptions a method; whiskers of greedy: 95 % interval over pictures (paired ones: next figure)",
            columns=1,
            height=3.9,
        ),
    )  # fmt: skip


def length(table: pd.DataFrame) -> Figure | None:
    """Differences from greedy in CHAIR_i: captions as they are, and cut to equal length; None where nothing is compared."""
    if not _compared(pick(table, split="same length", metric="chair_i")):
        return None
    panels = []
    for split, title in (("all", "As they are"), ("same length", "At equal length")):
        (panel,) = _differences(pick(table, split=split), {"chair_i": title}, "CHAIR_i, points against greedy", 100)
        panels.append(panel if not panels else _bare(panel))
    n = int(table["n"].max())
    return Figure(
        "at_equal_length",
        "What is left when descriptions are equally long?",
        "Left of 0, fewer of the mentioned objects are made up than by greedy decoding. On the right all descriptions of a picture are cut to as many sentences as the shortest of them has, "
        "so that saying less earns nothing. A gain that vanishes there was a gain of brevity.",
        "Differences in CHAIR_i from greedy decoding, for captions as they are and cut to equal length.",
        Chart(
            panels,
            f"n = {n:,} descriptions a method; whiskers: paired 95 % interval over pictures",
            height=1.2 + 0.26 * len(panels[0].y_ticks[0]),
        ),
    )


def _compared(rows: pd.DataFrame) -> bool:
    """Whether methods with a name are there beside greedy."""
    methods = set(rows["method"])
    return "greedy" in methods and any(named(method) for method in methods) and rows["difference"].notna().any()


def _differences(table: pd.DataFrame, metrics: dict[str, str], x_label: str, scale: float) -> list[Panel]:
    """A panel a metric: methods from top to bottom, their difference from greedy with its interval."""
    methods = {method: named(method) for method in dict.fromkeys(table["method"])}
    methods = {method: name for method, name in methods.items() if name is not None}
    kinds = list(LOOK)
    order = sorted(methods, key=lambda m: kinds.index(methods[m][1]), reverse=True)
    places = {method: float(i) for i, method in enumerate(order)}
    panels = []
    for i, (metric, title) in enumerate(metrics.items()):
        marks = []
        for kind in kinds:
            rows = pick(table, metric=metric, method=[m for m in order if methods[m][1] == kind])
            values = [
                (scale * rows[c]).astype(float).tolist() for c in ("difference", "difference_low", "difference_high")
            ]
            if len(rows):
                at = [places[m] for m in rows["method"]]
                marks.append(
                    Points(
                        values[0],
                        at,
                        {"mitigation": "mitigation", "control": "control", "sampled": "sampling"}[kind],
                        LOOK[kind],
                        values[1],
                        values[2],
                    )
                )
        ticks = (list(places.values()), [methods[m][0] for m in order])
        panel = Panel(
            title, x_label, "", marks, upright=(0.0, ""), y_ticks=ticks, y_limits=(-0.7, len(order) + 2.2), direct=False
        )
        panels.append(_bare(panel) if i else panel)
    return panels


def _bare(panel: Panel) -> Panel:
    """The panel beside another one with the same rows: without their names and without a legend."""
    marks = [replace(mark, label="") for mark in panel.marks]
    return replace(panel, marks=marks, y_ticks=(panel.y_ticks[0], [""] * len(panel.y_ticks[0])))

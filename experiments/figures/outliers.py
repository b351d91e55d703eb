"""Figures and key numbers of the probe `outlier_overlap` and of the experiment on outliers, from tables alone."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ..page import Card, Claim, interval, number
from ..style import BOTH, ORANGE, PICTURE, Look, look
from .chart import Chart, Figure, Heat, Overlay, Panel, Points
from .rows import curve, pick, samples_note

SOURCE = "arXiv 2410.04514"
NAMES = {
    "overlap": "overlap with outliers", "lift": "mass on outliers over chance", "spearman": "rank agreement with scores",
    "image_share": "attention on the picture", "entropy": "evenness of attention", "position": "position in the caption",
    "random": "a random number",
}  # fmt: skip
KINDS = {"cls": "CLS", "pool": "pooling head", "received": "received", "norm": "norm"}
MOST = 5
"""Layers shown beside the encoder's map."""


def summary(table: pd.DataFrame, quantity: str):
    """The row of the mean map over heads and blocks 2 to the last, None where there is none."""
    rows = pick(table, quantity=quantity, layer=None, head=None)
    rows = rows[rows["mean"].astype(float).map(math.isfinite)]
    return rows.iloc[0] if len(rows) else None


def by_layer(table: pd.DataFrame) -> Figure | None:
    """Overlap, and mass on the outliers, by block, against chance and another picture's outliers."""
    panels, used = [], []
    for quantity, title, label in (
        ("overlap", "Top patches that are outliers", "overlap H(k)"),
        ("lift", "Attention on the outliers", "lift over k/N"),
    ):
        rows = _layers(table, quantity)
        if rows.empty:
            return None
        used.append(rows)
        marks = curve(rows, "own picture", PICTURE)
        if quantity == "overlap":
            marks += curve(_layers(table, "overlap_other"), "another picture’s", Look(ORANGE, "s", "--"))
        panels.append(
            Panel(title, "block", label, marks, level=(float(rows["chance"].iloc[0]), "chance"), direct=False)
        )
    kind, k, n = table["score"].iloc[0], summary(table, "k"), summary(table, "candidates")
    return Figure(
        "by_layer", "Does the language model look where the encoder’s outliers are?",
        "Each point is the mean map of a block’s heads: left, how many of its strongest patches are among the encoder’s outliers; right, its attention on them over "
        "that of an even map. Above the dotted line is more than chance; only what is also above another picture’s outliers is about this picture and not about a place.",
        "Overlap of decoder attention and encoder outliers by block, with chance and the outliers of another picture.",
        Chart(panels, samples_note(pd.concat(used), more=f"outliers by {KINDS.get(kind, kind)}: {k['mean']:.3g} of {n['mean']:.4g} tokens")),
    )  # fmt: skip


def by_head(table: pd.DataFrame) -> Figure | None:
    """Overlap above chance of every head."""
    rows = pick(table, quantity="excess")
    rows = rows[rows["head"].notna() & rows["mean"].astype(float).map(math.isfinite)]
    if rows.empty:
        return None
    wide = rows.assign(layer=rows["layer"].astype(int), head=rows["head"].astype(int))
    wide = wide.pivot_table(index="head", columns="layer", values="mean")
    clear = int(((rows["low"] > 0) | (rows["high"] < 0)).sum())
    chance = float(pick(table, quantity="overlap")["chance"].iloc[0])
    heat = Heat(
        wide.to_numpy().tolist(), [str(h) for h in wide.index], [str(c) for c in wide.columns], "overlap less chance"
    )
    return Figure(
        "by_head", "Which heads look at the outliers?",
        "Each cell is one head: the share of its strongest patches that are outliers, less what chance gives. "
        f"Of {len(rows)} heads {clear} have an interval without 0; about {max(1, round(len(rows) / 20))} would by luck alone.",
        "Heat map of the overlap with encoder outliers above chance for every head and block.",
        Chart(
            [Panel("Overlap above chance, by head", "block", "head", [heat])],
            f"n = {int(rows['n'].max()):,} samples; chance {number(chance)}; means (95 % intervals in the table)",
            columns=1, height=min(6.0, 1.4 + 0.3 * len(wide)),
        ),
    )  # fmt: skip


def agreement(table: pd.DataFrame) -> Figure | None:
    """Whether the kinds of score name the same outliers."""
    pairs = pick(table, quantity="score_spearman")
    if pairs.empty:
        return None
    names = [f"{KINDS[a]}, {KINDS[b]}" for a, b in zip(pairs["score"], pairs["other"], strict=True)]
    panels = []
    for quantity, title, label in (
        ("score_spearman", "Ranks of all patches", "Spearman’s ρ"),
        ("score_jaccard", "Outliers alone", "intersection over union"),
    ):
        rows = pick(table, quantity=quantity)
        values = [rows[name].astype(float).tolist() for name in ("mean", "low", "high")]
        mark = Points(values[0], list(range(len(rows))), "", BOTH, values[1], values[2])
        left = min(-0.05, min(values[1], default=0.0) - 0.05)
        panels.append(
            Panel(
                title, label, "", [mark], y_ticks=(list(range(len(names))), names), y_limits=(-0.6, len(names) - 0.4),
                x_limits=(left, 1.05), upright=(float(rows["chance"].iloc[0]), ""), direct=False,
            )
        )  # fmt: skip
    return Figure(
        "agreement", "Is “outlier” a stable notion for this encoder?",
        "Each point compares two ways to score a patch: CLS attention, the pooling head’s, attention received from other patches, length of its feature. "
        "At 1 they agree; the dotted line is chance. Where points are low, which patches are outliers is a matter of definition.",
        "Rank correlation and overlap of outliers between kinds of patch score.",
        Chart(panels, samples_note(pairs).replace("band", "whiskers"), height=1.1 + 0.34 * len(names)),
    )  # fmt: skip


FIGURES = (by_layer, by_head, agreement)


def pictures(image, boxes, scores, chosen, attention, layers, kind: str, name: str) -> Figure:
    """Encoder scores and decoder attention over one picture, outliers framed.

    image: (H, W, 3) uint8. boxes: (N, 4) pixels. scores, chosen: (N,). attention: (L + 1, N), the mean over heads of each
    of `layers`, then the summary.
    """
    framed = np.flatnonzero(np.asarray(chosen)).tolist()
    some = np.unique(np.linspace(0, len(layers) - 1, min(MOST - 1, len(layers))).round().astype(int)).tolist()
    maps = [(f"Encoder: {KINDS.get(kind, kind)}", scores, "score")]
    shares = [f"{float(one.sum()):.0%}".replace("%", " %") for one in attention]
    maps += [(f"Decoder block {layers[i]}: {shares[i]}", attention[i], "attention") for i in some]
    maps.append((f"Blocks 2 to last: {shares[-1]}", attention[-1], "attention"))
    panels = [
        Panel(title, "", "", [Overlay(image, boxes, np.asarray(values, float), label, outlined=framed)])
        for title, values, label in maps
    ]
    return Figure(
        "picture_" + "".join(c if c.isalnum() else "_" for c in name)[:40], f"Outliers and attention on {name}",
        "Left above, what the encoder’s own score makes of each patch, its outliers framed; then the language model’s attention, mean over heads, when it "
        "is about to answer, and how much of it is on the picture. If the dark patches of the other maps lie in the frames, the language model looks at the outliers.",
        f"Heat maps of encoder score and decoder attention over {name}, with the {len(framed)} outliers framed.",
        Chart(panels, f"one picture; {len(framed)} outliers framed; every map has its own scale", columns=3, height=2.15),
    )  # fmt: skip


def detectors(table: pd.DataFrame) -> Figure:
    """Each diagnostic as a detector of words that are made up, alone and given the covariates."""
    names = [name for name in reversed(NAMES) if name in set(table["diagnostic"])]
    places = list(range(len(names)))
    alone = pick(table, given="nothing").set_index("diagnostic").loc[names]
    area = Points(alone["auc"].tolist(), places, "", PICTURE, alone["auc_low"].tolist(), alone["auc_high"].tolist())
    odds = []
    for i, (given, label) in enumerate(
        (("nothing", "alone"), ("position", "given position"), ("position and word", "given position, word"))
    ):
        rows = pick(table, given=given).set_index("diagnostic")
        here = [(p, rows.loc[name]) for p, name in zip(places, names, strict=True) if name in rows.index]
        x, low, high = ([float(row[c]) for _, row in here] for c in ("mean", "low", "high"))
        odds.append(Points(x, [p + 0.22 - 0.22 * i for p, _ in here], label, look(i), low, high))
    ticks = {
        "y_ticks": (places, [NAMES[name] for name in names]),
        "y_limits": (-0.6, len(names) + 1.4),
        "direct": False,
    }
    panels = [
        Panel("AUC for made-up words", "0.5: no better than guessing", "", [area], upright=(0.5, ""), **ticks),
        Panel("Log odds of being made up", "a standard deviation", "", odds, upright=(0.0, ""), **ticks | {"y_ticks": (places, [""] * len(names))}),
    ]  # fmt: skip
    n, made_up = int(table["n"].max()), int(table["made_up"].max())
    return Figure(
        "detectors", "Does attention on outliers tell words that are made up?",
        "Left, each number as a detector of object words that are not in the picture; right, what it adds to the odds, alone and with the word’s position in the "
        "caption and the word itself held fixed. Words late in a caption are made up more often and have less attention on the picture, so only what stays given position counts.",
        "AUC and log odds of several attention diagnostics for made-up words, with 95 % intervals.",
        Chart(panels, f"n = {n:,} words, {made_up:,} made up; whiskers: 95 % interval, pictures as clusters", height=1.2 + 0.36 * len(names), widths=[1, 1]),
    )  # fmt: skip


def cards(table: pd.DataFrame) -> list[Card]:
    """Overlap with the outliers, and how far the kinds of score agree."""
    made = []
    row, other = summary(table, "overlap"), summary(table, "overlap_other")
    if row is not None:
        more = f"; another picture’s outliers {number(other['mean'])}" if other is not None else ""
        means = f"Share of the strongest patches of the mean attention map that are encoder outliers; chance {number(row['chance'])}{more}."
        made.append(
            Card(
                "Overlap with outliers", number(row["mean"]), interval(max(row["low"], 0), row["high"], row["n"]), means
            )
        )
    pairs = pick(table, quantity="score_jaccard")
    pairs = pairs[pairs["mean"].astype(float).map(math.isfinite)]
    if len(pairs):
        best = pairs.iloc[0]
        means = f"Outliers that {KINDS[best['score']]} and {KINDS[best['other']]} scores share (intersection over union); chance {number(best['chance'])}."
        made.append(
            Card(
                "Agreement on outliers",
                number(best["mean"]),
                interval(max(best["low"], 0), best["high"], best["n"]),
                means,
            )
        )
    return made


def numbers(table: pd.DataFrame) -> dict[str, float]:
    """Overlap above chance, and attention on the outliers over chance, of the mean map."""
    rows = {name: summary(table, quantity) for name, quantity in (("overlap with outliers", "excess"), ("attention on outliers (lift)", "lift"))}  # fmt: skip
    return {name: math.nan if row is None else float(row["mean"]) for name, row in rows.items()}


def claims(table: pd.DataFrame) -> list[Claim]:
    """Whether the decoder looks at the encoder's outliers more than chance, and than place alone, has it."""
    row, other = summary(table, "overlap"), summary(table, "overlap_other")
    if row is None or not math.isfinite(row["low"]):
        return []
    here = f"overlap of the mean map {number(row['mean'])} [{number(row['low'])} to {number(row['high'])}], chance {number(row['chance'])} (n = {int(row['n'])})."
    holds = True if row["low"] > row["chance"] else False if row["high"] <= row["chance"] else None
    made = [
        Claim(
            "The language model looks at the encoder’s outlier patches",
            f"{SOURCE}, section 3; measure ours",
            here,
            holds,
        )
    ]
    if other is not None and math.isfinite(other["high"]):
        apart = True if row["low"] > other["high"] else False if row["high"] < other["low"] else None
        here = f"own outliers {number(row['mean'])}, another picture’s {number(other['mean'])} [{number(other['low'])} to {number(other['high'])}]."
        made.append(Claim("… at those of this picture, not at a place", "our control", here, apart))
    on = summary(table, "on_things")
    if on is not None and math.isfinite(on["high"]):
        here = f"{number(on['mean'])} of the outliers lie on things [{number(on['low'])} to {number(on['high'])}], {number(on['chance'])} of all tokens (n = {int(on['n'])})."
        holds = True if on["high"] < on["chance"] else False if on["low"] > on["chance"] else None
        made.append(Claim("Outliers are patches of the background", f"{SOURCE}, section 3; measure ours", here, holds))
    return made


def found(table: pd.DataFrame) -> list[str]:
    """What the table says, in sentences with n and intervals."""
    row = summary(table, "overlap")
    if row is None:
        return ["Overlap with outliers: not measured, no sample has a picture."]
    told = [claim.claim + ": " + claim.here for claim in claims(table)]
    on = summary(table, "on_things")
    if on is not None:
        told.append(
            f"Of the outliers {number(on['mean'])} ({number(on['low'])} to {number(on['high'])}) lie on things, of all tokens "
            f"{number(on['chance'])} (n = {int(on['n'])})."
        )
    k, n, share = (summary(table, what) for what in ("k", "candidates", "image_share"))
    told.append(
        f"{k['mean']:.3g} outliers of {n['mean']:.4g} tokens a picture, which get {number(share['mean'])} of all attention "
        f"({number(share['low'])} to {number(share['high'])})."
    )
    return told


def _layers(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    rows = pick(table, quantity=quantity, head=None)
    return rows[rows["layer"].notna() & rows["mean"].astype(float).map(math.isfinite)]

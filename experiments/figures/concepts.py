"""Figures of the experiment on concepts: what they are in words and pictures, and whether their shifts lead where tuning led."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..style import BLACK, BLUE, GREY, VERMILION, Look
from .chart import Chart, Figure, Line, Panel, Points, Strip
from .rows import pick

SHOWN_CONCEPTS, SHOWN_PICTURES, SHOWN_WORDS = 5, 4, 6
STYLE_LOOKS = {"colour": Look(VERMILION, "s", ""), "place": Look(BLUE, "o", "")}
KIND_NAMES = {
    "shift": "own shift",
    "global": "one shift for all",
    "permuted": "other concepts' shifts",
    "random": "random, same length",
}
METHOD_NAMES = {"snmf": "semi-NMF", "kmeans": "k-means", "pca": "PCA", "simple": "samples"}


def cards(table: pd.DataFrame, pictures: Sequence[np.ndarray | None], style: str) -> Figure:
    """The concepts with most samples before, shifted and after, in words and, where the table tells which, in the pictures that
    have most of them. table: one row a concept (`concept_rows`); pictures: (H, W, 3) uint8 of every sample."""
    titles = {"before": "before tuning", "shifted": "shifted", "after": "after tuning"}
    largest = table.sort_values("n", ascending=False, kind="stable").head(SHOWN_CONCEPTS)
    panels = []
    for row in largest.to_dict("records"):
        for when, title in titles.items():
            most = [pictures[int(i)] for i in row[f"pictures_{when}"].split()]
            shown = [picture for picture in most if picture is not None][:SHOWN_PICTURES]
            words = ", ".join(row[f"words_{when}"].split(", ")[:SHOWN_WORDS]) or "(no words)"
            name = f"{row['concept'] + 1}: {title}" + (f", n = {row['n']}" if when == "before" else "")
            panels.append(Panel(name, "", "", [Strip(shown, textwrap.wrap(words, 38)[:2])]))
    told = "; ".join(", ".join(words.split(", ")[:3]) for words in largest["words_before"])
    return Figure(
        f"cards-{style}", f"Concepts and their shift: {style}",
        "A row is one concept: its words and the pictures that have most of it in the base model, moved by its shift, and in the tuned "
        "model's concept that holds most of the same pictures. Where the shift is right the last two columns agree.",
        f"Pictures and words of {len(largest)} concepts before, shifted and after tuning on {style} captions: {told}.",
        Chart(panels, f"n = {int(table['n'].sum())} pictures; the {len(largest)} concepts with most of them of {len(table)}", columns=3, height=1.32),
    )  # fmt: skip


def consistency(concepts: pd.DataFrame, recovered: pd.DataFrame, correlations: pd.DataFrame) -> Figure:
    """Recovery of each concept against the consistency and against the length of its shift."""
    gains = recovered.groupby(["style", "kind", "concept"])["cosine_gain"].mean().reset_index()
    top, bottom = gains["cosine_gain"].max(), min(0.0, pick(gains, kind=["shift", "global"])["cosine_gain"].min())
    panels = []
    for against, name, label in (
        ("consistency", "consistency", "mean cosine of its samples' shifts"),
        ("above", "length above noise", "length (units of the states)"),
    ):
        marks = []
        for style, look in STYLE_LOOKS.items():
            of = pick(concepts, style=style).set_index("concept")
            own, common = (
                pick(gains, style=style, kind=kind).set_index("concept").loc[of.index, "cosine_gain"]
                for kind in ("shift", "global")
            )
            whiskers = (of["low"].tolist(), of["high"].tolist()) if against == "consistency" else (None, None)
            named = not panels  # one legend is enough
            marks.append(
                Points(
                    of[against].tolist(),
                    common.tolist(),
                    f"{style}: one shift for all" * named,
                    look.with_(colour=GREY),
                )
            )
            marks.append(Points(of[against].tolist(), own.tolist(), f"{style}: own shift" * named, look, *whiskers))
        row = pick(correlations, style="both", against=against, kind="pearson").iloc[0]
        rank = pick(correlations, style="both", against=against, kind="spearman").iloc[0]
        title = f"{name.capitalize()}: r = {row['value']:.2f}, ρ = {rank['value']:.2f}"
        limits = (bottom - 0.05 * top, 1.55 * top) if top > 0 else None
        panels.append(
            Panel(title, label, "recovery: gain in cosine", marks, level=(0, ""), y_limits=limits, direct=False)
        )
    row = pick(correlations, style="both", against="consistency", kind="pearson").iloc[0]
    return Figure(
        "consistency", "Are concepts whose samples shift alike recovered better?",
        "Each point is one concept; upwards, its shift brings it nearer to the tuned model's concept, on pictures it was not estimated from. "
        "Grey: the same concepts moved by one shift for all, so only what lies above grey is the concept's own.",
        f"Scatter of recovery against consistency and against length of the shift; Pearson r with consistency {row['value']:.2f}.",
        Chart(
            panels,
            f"n = {int(row['n'])} concepts of two styles; r: 95 % {row['low']:.2f} to {row['high']:.2f} (consistency); squares: colour, circles: place; whiskers: jackknife",
            height=3.3, shared_y=True,
        ),
    )  # fmt: skip


def baselines(summary: pd.DataFrame) -> Figure:
    """Mean recovery by kind of shift."""
    names = list(KIND_NAMES)
    places = list(range(len(names)))[::-1]
    panels = []
    for title, label, measure in (
        ("Closeness", "gain in cosine", "cosine_gain"),
        ("Words in common", "gain, points of 100", "words_gain"),
        ("Pictures in common", "gain, points of 100", "images_gain"),
    ):
        marks = []
        for i, (style, look) in enumerate(STYLE_LOOKS.items()):
            rows = pick(summary, style=style, measure=measure, what="mean").set_index("kind").loc[names]
            heights = [place + 0.13 - 0.26 * i for place in places]
            marks.append(
                Points(
                    rows["mean"].tolist(),
                    heights,
                    style if not panels else "",
                    look,
                    x_low=rows["low"].tolist(),
                    x_high=rows["high"].tolist(),
                )
            )
        panels.append(
            Panel(title, label, "", marks, upright=(0.0, ""), y_ticks=(places, KIND_NAMES.values() if not panels else [""] * len(names)),
                  y_limits=(-0.6, len(names) + 0.4), direct=False)
        )  # fmt: skip
    n = int(summary["n"].max())
    return Figure(
        "baselines", "Does a concept's own shift lead to the tuned model's concept?",
        "To the right of the line the moved concept is nearer to its partner in the tuned model, or shares more of 15 words and of the top pictures with it, than "
        "before. A concept's own shift says something only where it beats one shift for all.",
        "Mean recovery in cosine, words and pictures for the concept's own shift and its baselines, both styles.",
        Chart(panels, f"n = {n} concepts a style, halves judged in turn; squares: colour, circles: place; whiskers: 95 % intervals over concepts", columns=3, widths=[1, 1, 1], height=3.1),
    )  # fmt: skip


def dictionaries(table: pd.DataFrame) -> Figure:
    """The four ways to learn concepts beside each other."""
    table = table.set_index("method")
    places = list(range(len(table)))[::-1]
    names = [METHOD_NAMES[method] for method in table.index]
    look, control = Look(BLACK, "o", ""), Look(GREY, "D", "")
    bars = [
        ("True words", "share of its words", [
            Points(table["true_mean"].tolist(), places, "concept's", look, x_low=table["true_low"].tolist(), x_high=table["true_high"].tolist()),
            Points(table["random_mean"].tolist(), places, "random", control, x_low=table["random_low"].tolist(), x_high=table["random_high"].tolist()),
        ]),
        ("Stability", "cosine between seeds", [Points(table["stability"].tolist(), places, "", look, x_low=table["least_stable"].tolist(), x_high=table["stability"].tolist())]),
        ("Overlap", "share of words", [Points(table["overlap"].tolist(), places, "", look)]),
        ("Error", "|Z − VU| / |Z|", [Points(table["error"].tolist(), places, "", look)]),
    ]  # fmt: skip
    panels = [
        Panel(title, label, "", marks, y_ticks=(places, names if i == 0 else [""] * len(names)), y_limits=(-0.6, len(names) + 0.5),
              x_limits=(0, 1.05 if i else 1.25 * float(table["true_high"].max())), direct=False)
        for i, (title, label, marks) in enumerate(bars)
    ]  # fmt: skip
    return Figure(
        "dictionaries", "Which dictionary has concepts worth the name?",
        "Left: how many of a concept's words are true of pictures it was not learnt from, beside words of random directions. Then whether another seed finds "
        "the same concepts (whisker: worst pair), how many words concepts share (low is good), and what the dictionary leaves out.",
        "True words, stability over seeds, overlap of words and reconstruction error of semi-NMF, k-means, PCA and plain samples.",
        Chart(panels, f"n = {int(table['true_n'].max())} held-out pictures, {int(table['n'].max())} states; grey: random words; left whiskers: 95 % intervals", columns=4, height=2.5),
    )  # fmt: skip


def layers(table: pd.DataFrame) -> Figure:
    """Where in depth concepts are worth their words."""
    table = table.sort_values("layer")
    x = table["layer"].tolist()
    names = ["norm" if site == "final" else site.split(".")[1] for site in table["site"]]
    ticks = (x, names) if len(x) <= 16 else None
    lines = [
        Line(x, table[f"{name}_mean"].tolist(), label, look, table[f"{name}_low"].tolist(), table[f"{name}_high"].tolist())
        for name, label, look in (("true", "concepts", Look(BLACK, "o")), ("random", "random directions", Look(GREY, "D", ":")))
    ]  # fmt: skip
    overlap = Line(x, table["overlap"].tolist(), "", Look(BLACK, "o"))
    last, first = table.iloc[-1], table.iloc[0]
    return Figure(
        "layers", "Where in depth do concepts come into words?",
        "Concepts of the state that predicts the word, learnt at each block and put into words through the final norm: how many of their words are true of held-out "
        "pictures, and how many words they share. Where the first is no better than random, the state cannot be read by the unembedding yet.",
        f"True words by block, from {first['true_mean']:.2f} to {last['true_mean']:.2f}, beside random directions; overlap of words by block.",
        Chart(
            [Panel("True words", "block", "share of a concept's words", lines, x_ticks=ticks),
             Panel("Overlap between concepts", "block", "share of words", [overlap], x_ticks=ticks, y_limits=(0, 1))],
            f"semi-NMF; n = {int(last['true_n'])} held-out pictures; bands: 95 % intervals", height=2.7,
        ),
    )  # fmt: skip

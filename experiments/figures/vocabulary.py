"""Figures of the probe `vocabulary_view` and of the experiment on what image tokens say, from their tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..style import BOTH, GREEN, GREY, LOOKS, PICTURE, TEXT, Look
from .chart import Chart, Figure, Overlay, Panel
from .rows import curve, pick, samples_note

LAYER = "layer"
LONGEST = 9
"""Letters of a word that fit into the box of a token, in a grid of eight by eight."""
DENSE = 100
"""Tokens of a picture above which only the surest of each region is named."""


def _ticks(table: pd.DataFrame):
    layers = sorted(table["layer"].dropna().astype(int).unique())
    return (layers, ["input", *map(str, layers[1:])]) if 1 < len(layers) <= 12 else None


def certainty(table: pd.DataFrame) -> Figure | None:
    """Entropy of the decoded distributions, and how many have settled, by layer."""
    rows = pick(table, quantity="entropy")
    if rows.empty:
        return None
    ticks, uniform = _ticks(rows), float(rows["limit"].max())
    settled = pick(table, quantity="agreement")
    panels = [
        Panel(
            "How sure is a token?", LAYER, "entropy (nats)",
            curve(pick(rows, pair="P"), "picture", PICTURE) + curve(pick(rows, pair="T"), "text", TEXT),
            level=(uniform, "uniform"), y_limits=(-0.05 * uniform, 1.1 * uniform), x_ticks=ticks,
        ),
        Panel(
            "Has it settled?", LAYER, "share with the last layer’s word",
            curve(pick(settled, pair="P"), "picture", PICTURE) + curve(pick(settled, pair="T"), "text", TEXT),
            y_limits=(-0.03, 1.06), x_ticks=ticks,
        ),
    ]  # fmt: skip
    return Figure(
        "vocabulary_certainty",
        "How sure are tokens when they are read as words?",
        "Every state goes through the final norm and the unembedding, as the last one does; low entropy means that it points at few words. "
        "Texts are sure of themselves at the input, where each is its own word, and settle on the next word layer by layer: compare the picture with that.",
        "Left: entropy of the decoded distributions of visual and text tokens by layer. Right: share of tokens whose top word is that of the last layer.",
        Chart(panels, samples_note(rows)),
    )


def content(table: pd.DataFrame) -> Figure | None:
    """KL between picture and text with its floors, and how often a visual token says a word of its own answer."""
    rows = pick(table, quantity="kl")
    if rows.empty:
        return None
    ticks = _ticks(rows)
    floors = (("P-P", "within picture", PICTURE), ("T-T", "within text", TEXT), ("P-T", "across", BOTH))
    panels = [
        Panel(
            "How far is the picture from the text?", LAYER, "KL divergence (nats)",
            [line for pair, name, look in reversed(floors) for line in curve(pick(rows, pair=pair), name, look)],
            level=(0, ""), x_ticks=ticks,
        )
    ]  # fmt: skip
    hits = pick(table, quantity="hits")
    if not hits.empty:
        lines = curve(pick(hits, variant="own"), "own answer", Look(GREEN, "o", "-"))
        lines += curve(pick(hits, variant="others"), "others’ answers", Look(GREY, "s", "--"))
        panels.append(
            Panel(
                "Does it say what is there?",
                LAYER,
                "share of visual tokens",
                lines,
                x_ticks=ticks,
                y_limits=(-0.02, 1.02),
            )
        )
    n = f"hits: n = {int(hits['n'].max())}" if len(hits) else "no answers, so no hits"
    return Figure(
        "vocabulary_content",
        "Do visual tokens say what is in their picture?",
        "Left, words of the picture’s tokens against words of the text’s: only what lies above both halves-against-halves curves separates the two. "
        "Right, visual tokens whose top word is a content word of the answer to their own picture; the grey curve is the same words held against "
        "answers to other pictures.",
        "Left: KL divergence between the word distributions of picture and text by layer, with both floors. Right: share of visual tokens that say a word "
        "of the own and of other answers.",
        Chart(panels, samples_note(rows, more=n)),
    )  # fmt: skip


def top_words(table: pd.DataFrame) -> Figure | None:
    """The most frequent top words of visual tokens, a column a layer."""
    rows = pick(table, quantity="word", pair="P")
    if rows.empty:
        return None
    layers = sorted(rows["layer"].astype(int).unique())
    layers = [layers[i] for i in np.linspace(0, len(layers) - 1, min(7, len(layers))).round().astype(int)]
    rows = rows[rows["layer"].isin(layers) & (rows["rank"] <= 8)]
    n_rows, wide = 1 + int(rows["rank"].max()), 100
    high = max(1, round(0.31 * wide * len(layers) / n_rows))  # the table fills its panel
    boxes, values, words = [], [], []
    for column, layer in enumerate(layers):
        boxes.append((wide * column, 0, wide * (column + 1), high))
        values.append(np.nan)
        words.append("input" if layer == 0 else f"layer {layer}")
        for row in rows[rows["layer"] == layer].itertuples():
            top = high * int(row.rank)
            boxes.append((wide * column, top, wide * (column + 1), top + high))
            values.append(100 * row.mean)
            words.append(_shown(row.word, 14))
    image = np.full((high * n_rows, wide * len(layers), 3), 255, np.uint8)
    shares = Overlay(image, boxes, values, "% of visual tokens", (0, 1.6 * float(np.nanmax([0.01, *values]))), words)
    return Figure(
        "vocabulary_words",
        "Which words do visual tokens say most?",
        "Each column is a layer, with the words that most visual tokens decode to, the most frequent on top; the darker, the more of them. "
        "Words that come with every picture say nothing about one.",
        "Table of the most frequent top words of visual tokens, a column a layer.",
        Chart(
            [Panel("Most frequent top words", "layer", "", [shares])],
            f"n = {int(rows['n'].max()):,} samples; shares without their intervals, which the table has",
            columns=1,
            height=2.4,
        ),
    )


def patches(
    name: str, image: np.ndarray, views: Sequence, framed: Sequence[Sequence[int]], told: str, frames: str
) -> Figure | None:
    """The word of every visual token of one picture (H, W, 3 uint8), a panel a layer; views: `PatchWords` with boxes in pixels
    of this image; framed: tokens to be framed in each; told: what the picture is; frames: what frames mean. None where
    tokens have no place."""
    panels = []
    pale = (0.45 * image + 0.55 * 255).astype(np.uint8)
    for view, chosen in zip(views, framed, strict=True):
        boxes = np.asarray(view.boxes, float)
        if not np.isfinite(boxes).all(1).any():
            return None
        named = _surest(boxes, view.probabilities, image.shape[:2])
        words = [_shown(word, LONGEST) if i in named else "" for i, word in enumerate(view.words)]
        title = "Input" if view.layer == 0 else f"Layer {view.layer}"
        overlay = Overlay(pale, view.boxes, words=words, outlined=tuple(chosen))
        panels.append(Panel(f"{title}: {len(chosen)} of {len(view.words)} framed", "", "", [overlay]))
    return Figure(
        name,
        "What does each part of the picture say?",
        f"The word that each visual token decodes to, written over what it sees: {told}. Framed: {frames}.",
        "A picture with the top word of every visual token written over what the token sees, at several layers.",
        Chart(panels, "n = 1 picture", columns=2, height=3.95),
    )


def grounded(table: pd.DataFrame) -> Figure:
    """Whether tokens on a thing say its name and colour, against the same words anywhere in the picture; by model."""
    stages = list(dict.fromkeys(table["stage"]))
    panels = []
    for said, title in (("category", "Its name"), ("colour", "Its colour")):
        lines = []
        for i, stage in enumerate(stages):
            rows = pick(table, stage=stage, said=said)
            lines += curve(pick(rows, where="there"), stage.rpartition("/")[2], LOOKS[i % len(LOOKS)])
            lines += curve(
                pick(rows, where="anywhere"), "", LOOKS[i % len(LOOKS)].with_(dash=":", marker="", width=1.3)
            )
        panels.append(Panel(title, LAYER, "share of tokens on a thing", lines, x_ticks=_ticks(table)))
    return Figure(
        "grounded",
        "Do the tokens on a thing say what it is?",
        "Of the visual tokens whose middle lies on a thing, the share that decode to its name, and to its colour. The dotted curve of the same colour is "
        "the share of all the picture’s tokens that say so: what is above it is said at the right place.",
        "Share of visual tokens on a thing that decode to its category and colour by layer and model, with the share anywhere in the picture.",
        Chart(panels, f"n = {int(table['n'].max())} scenes; dotted: the same word anywhere in the picture; band: 95 % interval", height=3.1),
    )  # fmt: skip


def _shown(word: str, longest: int) -> str:
    word = word.replace("$", r"\$")  # two of them would begin a formula
    return word if len(word) <= longest else word[: longest - 1] + "…"


def _surest(boxes: np.ndarray, probabilities: Sequence[float], size: tuple[int, int]) -> set[int]:
    """The tokens to name: all, or where there are many the surest of each of eight by eight regions."""
    placed = [i for i in range(len(boxes)) if np.isfinite(boxes[i]).all()]
    if len(placed) <= DENSE:
        return set(placed)
    best: dict[tuple[int, int], int] = {}
    for i in sorted(placed, key=lambda i: probabilities[i]):
        x, y = (boxes[i, :2] + boxes[i, 2:]) / 2
        best[int(8 * y / size[0]), int(8 * x / size[1])] = i
    return set(best.values())


FIGURES = (certainty, content, top_words)

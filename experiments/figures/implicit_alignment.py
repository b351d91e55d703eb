"""Figures of the probe `implicit_alignment`, each from its table alone."""

from __future__ import annotations

import pandas as pd

from ..style import BLACK, BOTH, GREEN, GREY, LOOKS, NULL, PICTURE, PURPLE, TEXT, Look
from .chart import Chart, Figure, Heat, Line, Panel
from .rows import curve, layer_ticks, pick, samples_note

LAYER = "layer"
COSINE = "cosine similarity"


def _similarity(table: pd.DataFrame, **where) -> pd.DataFrame:
    return pick(table, **{"quantity": "similarity", "pooling": "avg", "variant": "raw", **where})


def _depth(table: pd.DataFrame) -> int:
    """Number of blocks: the layers run from 0, the input, to this plus one, the final norm."""
    return int(_similarity(table, pair="P-T")["layer"].max()) - 1


def _ticks(table: pd.DataFrame):
    last = _depth(table) + 1
    return layer_ticks(range(last + 1), last - 1)


def alignment(table: pd.DataFrame) -> Figure | None:
    """P-T similarity over layers: raw, centred, without sinks and top channels; same layer and input anchor."""
    rows = _similarity(table, pair="P-T")
    if rows.empty:
        return None
    versions = (
        ("raw", "raw", BOTH),
        ("centred_both", "centred", LOOKS[2]),
        ("without_outliers", "no outliers", Look(PURPLE, "v", ":")),
    )
    same = [
        line for key, name, look in versions for line in curve(_similarity(table, pair="P-T", variant=key), name, look)
    ]
    anchored = curve(rows, "same layer", BOTH) + curve(
        pick(table, quantity="anchored", pair="P-T", pooling="avg", variant="raw"),
        "anchored",
        Look("#0072b2", "s", "--"),
    )
    panels = [
        Panel("Picture and text, same layer", LAYER, COSINE, same, level=(0, ""), x_ticks=_ticks(table)),
        Panel("Same layer or input anchor (raw)", LAYER, COSINE, anchored, level=(0, ""), x_ticks=_ticks(table)),
    ]
    return Figure(
        "alignment",
        "How alike are picture and text, layer by layer?",
        "Read the black curve for the published score: the cosine between the average visual token and the average text token, over "
        "all pairs of samples. Alignment that is more than a drift of the common mean must survive centring (green), and must not hang "
        "on a few sink tokens or huge channels (purple).",
        "Two line charts of picture-text cosine similarity over layers: left the raw, centred and outlier-free versions; right the "
        "same-layer and the input-anchored version.",
        Chart(
            panels,
            samples_note(rows, more="layer 0 is the input of the first block, “norm” the output of the final norm"),
        ),
    )


def cones(table: pd.DataFrame) -> Figure | None:
    """Within-modality similarity against P-T: raw, and without outliers."""
    panels = []
    series = (
        ("p-p", "pictures", PICTURE), ("t-t", "texts", TEXT), ("P-T", "across", BOTH),
        ("P-P", "pictures, 2 sets", Look("#56b4e9", "X", "-.")), ("T-T", "texts, 2 sets", Look("#c98a00", "P", ":")),
    )  # fmt: skip
    for variant, title in (("raw", "Raw"), ("without_outliers", "Without sinks and top channels")):
        lines = [
            line
            for pair, name, look in series
            for line in curve(_similarity(table, pair=pair, variant=variant), name, look)
        ]
        if lines:
            panels.append(Panel(title, LAYER, COSINE, lines, level=(0, ""), x_ticks=_ticks(table)))
    if not panels:
        return None
    return Figure(
        "cones",
        "Do pictures and texts keep to their own cones?",
        "Each curve is the mean cosine between pooled tokens of different samples: within pictures, within texts, and across. "
        "Two narrow cones show as high blue and red curves with a low black one; where black rises to meet them the two modalities are no "
        "longer apart.",
        "Line charts over layers of the similarity within pictures, within texts and across the two, raw and without outliers.",
        Chart(panels, samples_note(_similarity(table, pair=["p-p", "t-t", "P-T"])), shared_y=len(panels) > 1),
    )


def matching(table: pd.DataFrame) -> Figure | None:
    """Matched against mismatched pairs, and their difference."""
    chosen = dict(pooling="avg", variant="centred_each", pair="P-T")
    matched = pick(table, quantity="matched", **chosen)
    if matched.empty:
        return None
    pairs = curve(matched, "own text", Look(GREEN, "o", "-")) + curve(
        pick(table, quantity="mismatched", **chosen), "others’ text", Look(GREY, "s", "--")
    )
    versions = (
        ("raw", "raw", BOTH),
        ("centred_each", "centred", LOOKS[2]),
        ("without_outliers", "no outliers", Look(PURPLE, "v", ":")),
    )
    gain = [
        line
        for key, name, look in versions
        for line in curve(pick(table, quantity="semantic", pooling="avg", variant=key, pair="P-T"), name, look)
    ]
    panels = [Panel("Own against others’ text (centred)", LAYER, COSINE, pairs, level=(0, ""), x_ticks=_ticks(table))]
    if gain:
        panels.append(Panel("Difference", LAYER, "own minus others’", gain, level=(0, ""), x_ticks=_ticks(table)))
    p = pick(table, quantity="semantic", pooling="avg", variant="centred_each", pair="P-T")
    least = p["p"].dropna() if "p" in p else pd.Series(dtype=float)
    tested = (
        f"permutation test of the difference (centred): smallest p over layers {least.min():.2g}" if len(least) else ""
    )
    return Figure(
        "matching",
        "Is a picture nearer to its own text than to others’?",
        "Only what differs between own and others’ text is about the content; where the difference stays at zero, a high similarity says "
        "that the two modalities share a direction, not a meaning. Judge the input first: from the first block on attention carries a picture into "
        "the text behind it, in an untrained model too.",
        "Left: similarity of pictures with their own and with other samples’ texts over layers. Right: the difference for three versions.",
        Chart(panels, samples_note(matched, more=tested)),
    )


def retrieval(table: pd.DataFrame) -> Figure | None:
    """Retrieval of the own text (picture) among all kept samples, by layer and k, with chance."""
    found = pick(table, quantity="retrieval")
    if found.empty:
        return None
    variants = [v for v in ("centred_each", "raw", "centred_both") if not pick(found, variant=v).empty]
    found = pick(found, variant=variants[0]) if variants else found
    poolings = found["pooling"].dropna().unique() if "pooling" in found else []
    if len(poolings):
        found = pick(found, pooling="avg" if "avg" in poolings else poolings[0])
    panels = []
    for pair, title in (("P-T", "Pictures find their text"), ("T-P", "Texts find their picture")):
        lines: list[Line] = []
        for i, k in enumerate(sorted(found["k"].dropna().unique())):
            rows = pick(found, pair=pair, k=k).sort_values("layer")
            look = (Look(BLACK, "o", "-"), LOOKS[0].with_(marker="s", dash="--"), LOOKS[2], LOOKS[3])[i % 4]
            lines += curve(rows, f"top {int(k)}", look)
            if len(rows) and rows["chance"].notna().any():
                lines.append(
                    Line(
                        rows["layer"].astype(int).tolist(),
                        rows["chance"].astype(float).tolist(),
                        "",
                        NULL.with_(colour=look.colour),
                    )
                )
        if lines:
            panels.append(
                Panel(title, LAYER, "share found", lines, x_ticks=_ticks(table), y_limits=(-0.02, _top(lines)))
            )
    if not panels:
        return None
    return Figure(
        "retrieval",
        "Can a picture find its own text?",
        "Each curve is the share of samples whose partner is among the k most similar of all kept samples; the dotted line of the same "
        "colour is what guessing finds. At the input a curve above its dotted line is the projector’s work; deeper, attention has "
        "carried pictures into the texts behind them, so read it together with an untrained model.",
        "Line charts over layers of the share of pictures that find their text, and texts their picture, among the top k, with chance.",
        Chart(
            panels,
            samples_note(
                found, more=f"dotted: chance; states {'centred' if variants[:1] == ['centred_each'] else 'raw'}"
            ),
            shared_y=True,
        ),
    )


def consecutive(table: pd.DataFrame) -> Figure | None:
    """Cosine of a token's state with its own state some layers later, pictures and texts."""
    rows = pick(table, quantity="consecutive", variant="matched")
    poolings = rows["pooling"].dropna().unique() if "pooling" in rows else []
    if len(poolings):
        rows = pick(rows, pooling="mean" if "mean" in poolings else poolings[0])
    panels = []
    for pair, title in (("P", "Visual tokens"), ("T", "Text tokens")):
        lines = []
        for i, n in enumerate(sorted(rows["interval"].dropna().unique())):
            chosen = pick(rows, pair=pair, interval=n)
            lines += curve(chosen, f"{int(n)} later" if n > 1 else "next layer", LOOKS[i % len(LOOKS)])
        if lines:
            panels.append(
                Panel(title, "from layer", COSINE, lines, x_ticks=layer_ticks(range(_depth(table)), _depth(table)))
            )
    if not panels:
        return None
    return Figure(
        "consecutive",
        "Where do representations change?",
        "Each point compares a token at one layer with the same token some layers later; 1 means the layers between changed nothing but "
        "its length. A dip shows where the model rewrites its tokens: in published models texts change sharply in the first layers, pictures slowly.",
        "Line charts over layers of the cosine between a token’s state and its own state one or more layers later, for visual and text tokens.",
        Chart(panels, samples_note(rows), shared_y=True),
    )


def norms(table: pd.DataFrame) -> Figure | None:
    """Token norms of pictures and texts by layer, and the norm of their mean token."""
    rows = pick(table, quantity="norm")
    if "variant" in rows and not pick(rows, variant="raw").empty:
        rows = pick(rows, variant="raw")
    panels = []
    for pooling, title in (("median", "Median token"), ("pooled", "Mean token (pooled first)")):
        lines = curve(pick(rows, pooling=pooling, pair="P"), "picture", PICTURE) + curve(
            pick(rows, pooling=pooling, pair="T"), "text", TEXT
        )
        if lines:
            panels.append(Panel(title, LAYER, "L2 norm (log scale)", lines, x_ticks=_ticks(table), logarithmic=True))
    if not panels:
        return None
    return Figure(
        "norms",
        "How long are the tokens’ vectors?",
        "Left is the median length of single tokens, right the length of the averaged token, which shrinks where tokens point different "
        "ways. A picture whose tokens are many times longer than the text’s moves little in each layer and weighs most in pooled cosines.",
        "Line charts over layers, on a log scale, of the norms of visual and text tokens: median token and pooled token.",
        Chart(panels, samples_note(rows)),
    )


def matrix(table: pd.DataFrame) -> Figure | None:
    """The similarity of every kind of pair (a row) at every layer (a column), raw and centred; not in the report, where curves show it."""
    kinds = {"p-p": "pictures", "t-t": "texts", "P-T": "across", "P-P": "pictures, 2 sets", "T-T": "texts, 2 sets"}
    panels = []
    for variant, title in (("raw", "Raw"), ("centred_both", "Centred")):
        rows = _similarity(table, pair=list(kinds), variant=variant)
        wide = rows[rows["mean"].notna()].pivot_table(index="pair", columns="layer", values="mean", observed=True)
        if wide.empty:
            continue
        wide = wide.loc[[kind for kind in kinds if kind in wide.index]]
        names = {0: "input", _depth(table) + 1: "norm"}
        columns = [names.get(int(layer), str(layer)) for layer in wide.columns]
        heat = Heat(wide.to_numpy(float).tolist(), [kinds[k] for k in wide.index], columns, COSINE, (-1.0, 1.0), signed=True)  # fmt: skip
        panels.append(Panel(title, LAYER, "", [heat]))
    if not panels:
        return None
    return Figure(
        "matrix",
        "How similar is what, and where?",
        "Each cell is the mean cosine between pooled tokens of different samples: pictures with pictures, texts with texts, and across. "
        "Where the row “across” has the colour of the other two the modalities share one cone; what remains after centring is not owed to a common mean.",
        "Matrices of cosine similarity by kind of pair and layer, raw and centred.",
        Chart(panels, samples_note(_similarity(table, pair=list(kinds))).replace("band: 95 % interval", "means (95 % intervals: figure “cones”)"), height=2.0),
    )  # fmt: skip


def _top(lines: list[Line]) -> float:
    highest = max((v for line in lines for v in (line.high or line.y) if v == v), default=1.0)
    return min(1.05, highest * 1.12 + 0.02)


FIGURES = (alignment, cones, matching, retrieval, consecutive, norms)

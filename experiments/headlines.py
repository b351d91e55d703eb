"""Key numbers and verdicts on published claims, from the probes' tables alone.

Cards show them to people; `..._numbers` are those that a comparison of models or of interventions re-measures: one number each,
means over blocks where a card shows the block at which it is largest, so that nothing is chosen anew in every comparison.
"""

from __future__ import annotations

import math

import pandas as pd

from .figures.rows import pick
from .page import Card, Claim, interval, number

IMA = "arXiv 2405.16700"


def alignment_cards(table: pd.DataFrame) -> list[Card]:
    """IMA score raw and centred, own against others' text and retrieval after the last block."""
    cards = []
    score, centred = _score(table, "raw"), _score(table, "centred_both")
    if score is not None:
        more = (
            f" Centred: {number(centred['mean'])} ({number(centred['low'])} to {number(centred['high'])})."
            if centred is not None
            else ""
        )
        cards.append(
            _card("IMA score (same layer)", score, f"Cosine of pooled picture and text tokens, mean over layers.{more}")
        )
    last = _last(table)
    own = _own_text(table)
    if {0, last} <= set(own.index):
        semantic, before = own.loc[last], own.loc[0]
        p = f" (permutation p = {before['p']:.2g})" if _finite(before.get("p")) else ""
        means = f"How much nearer a picture is to its own text, centred, before any attention{p}. After the last block, where texts have read pictures: {number(semantic['mean'])}."
        cards.append(_card("Own minus others’ text", before, means))
    found = pick(table, quantity="retrieval", pair="P-T", variant="centred_each")
    first = found["k"].min() if len(found) else None
    start = _one(found, k=first, layer=0) if len(found) else None
    if start is not None:
        end = _one(found, k=first, layer=last)
        more = (
            f" After the last block, where texts have read pictures: {number(end['mean'])}." if end is not None else ""
        )
        means = f"Share of pictures whose own text is nearest, before any attention; guessing finds {number(start['chance'])}.{more}"
        cards.append(_card(f"Retrieval in {int(first)}", start, means))
    return cards


def alignment_numbers(table: pd.DataFrame) -> dict[str, float]:
    """IMA score raw and centred, and own minus others' text, mean over blocks."""
    own = _own_text(table)
    scores = {name: _score(table, variant) for name, variant in (("IMA score", "raw"), ("IMA score, centred", "centred_both"))}  # fmt: skip
    return {name: math.nan if row is None else float(row["mean"]) for name, row in scores.items()} | {
        "own minus others’ text": float(own["mean"][(own.index > 0) & (own.index <= _last(table))].mean())
    }


def alignment_claims(table: pd.DataFrame) -> list[Claim]:
    """The claims of Shukor and Cord that one model can speak to."""
    claims = []
    last = _last(table)
    across = _curve(table, quantity="similarity", pair="P-T", pooling="avg", variant="raw")
    within = {
        pair: _curve(table, quantity="similarity", pair=pair, pooling="avg", variant="raw") for pair in ("p-p", "t-t")
    }
    if len(across) and all(len(rows) for rows in within.values()):
        layers = across.index
        apart = [
            all(rows["low"].get(layer, math.nan) > across["high"][layer] for rows in within.values())
            for layer in layers
        ]
        touching = [
            any(rows["high"].get(layer, math.nan) < across["low"][layer] for rows in within.values())
            for layer in layers
        ]
        holds = True if all(apart) else False if any(touching) else None
        claims.append(
            Claim("Pictures and texts stay in separate narrow cones at every layer", f"{IMA}, figure 2",
                  f"within-modality similarity is above the cross similarity, intervals apart, at {sum(apart)} of {len(layers)} layers (n = {int(across['n'].max())}).", holds)
        )  # fmt: skip
    for variant, claim, source in (
        ("raw", "Picture-text similarity rises with depth", f"{IMA}, figure 7"),
        ("centred_both", "… also when the common mean is taken away", "our control"),
    ):
        rows = _curve(table, quantity="similarity", pair="P-T", pooling="avg", variant=variant)
        if 0 in rows.index and last in rows.index:
            first, end = rows.loc[0], rows.loc[last]
            here = f"{number(first['mean'])} [{_span(first)}] at the input, {number(end['mean'])} [{_span(end)}] after the last block (n = {int(end['n'])})."
            holds = True if end["low"] > first["high"] else False if end["high"] < first["low"] else None
            claims.append(Claim(claim, source, here, holds))
    norm = {pair: _curve(table, quantity="norm", pair=pair, pooling="median") for pair in ("P", "T")}
    if all(0 in rows.index for rows in norm.values()):
        picture, text = (norm[pair].loc[0] for pair in ("P", "T"))
        holds = True if picture["low"] > text["high"] else False if picture["high"] < text["low"] else None
        here = f"median token norm at the input: pictures {number(picture['mean'])} [{_span(picture)}], texts {number(text['mean'])} [{_span(text)}] (n = {int(picture['n'])})."
        claims.append(
            Claim("Visual tokens enter with much larger norms than text tokens", f"{IMA}, figure 3", here, holds)
        )
    own = _own_text(table)
    semantic = own.loc[0] if 0 in own.index else None
    if semantic is not None and _finite(semantic["low"]):
        holds = True if semantic["low"] > 0 else False if semantic["high"] < 0 else None
        here = (
            f"own minus others’ text at the input, centred: {number(semantic['mean'])} [{_span(semantic)}], n = {int(semantic['n'])}. Decided there, since "
            "behind the first block attention carries a picture into its own text in any model, trained or not."
        )
        claims.append(
            Claim(
                "The alignment is about the content: a picture enters nearer to its own text",
                "our control",
                here,
                holds,
            )
        )
    return claims


def attention_cards(table: pd.DataFrame) -> list[Card]:
    """Mass on the picture at the block that reads it most, and the shift with its contrast."""
    cards = []
    mass = _mass(table)
    if len(mass):
        top = mass["mean"].astype(float).idxmax()
        row = mass.loc[top]
        means = f"Of queries behind it, at block {top}, where it is largest; mean over blocks {number(mass['mean'].mean())}."
        cards.append(_card("Attention on the picture", row, means))
    shift = _shift(table, "vlm")
    if shift is not None:
        text = _shift(table, "text")
        more = f" Same texts without pictures: {number(text['mean'])}." if text is not None else ""
        p = f" p = {shift['p']:.2g} against turned curves." if _finite(shift.get("p")) else ""
        cards.append(
            _card(
                "Attention shift",
                shift,
                f"1 − Pearson ρ of attention to the text before and after, over blocks; 0 together, 1 unrelated.{more}{p}",
            )
        )
    return cards


def attention_numbers(table: pd.DataFrame) -> dict[str, float]:
    """Attention of text behind the picture on it and on the first position, mean over blocks, and the shift."""
    shift = _shift(table, "vlm")
    return {
        "attention on the picture": float(_mass(table)["mean"].mean()),
        "attention on the sink": float(_mass(table, "sink")["mean"].mean()),
        "attention shift": math.nan if shift is None else float(shift["mean"]),
    }


def attention_claims(table: pd.DataFrame) -> list[Claim]:
    """What one model can say of the shift: whether the picture's presence changes it."""
    row = _one(
        table, quantity="difference", version="raw", queries="post", comparator="pearson", order="per_sample_then_mean"
    )
    if row is None or not _finite(row["low"]):
        return []
    holds = True if row["low"] > 0 else False if row["high"] < 0 else None
    here = f"shift with the picture minus shift of the same texts without, paired: {number(row['mean'])} [{_span(row)}], n = {int(row['n'])}."
    return [
        Claim(
            "A picture in the middle makes attention to the two texts drift apart",
            "arXiv 2406.03496; contrast ours",
            here,
            holds,
        )
    ]


def _score(table: pd.DataFrame, variant: str):
    return _one(table, quantity="ima_same_layer", pooling="avg", variant=variant)


def _own_text(table: pd.DataFrame) -> pd.DataFrame:
    """By layer, how much nearer a picture is to its own text than to others', centred."""
    return _curve(table, quantity="semantic", pooling="avg", variant="centred_each", pair="P-T")


def _mass(table: pd.DataFrame, segment: str = "image") -> pd.DataFrame:
    return _curve(table, quantity="mass", run="vlm", version="raw", queries="post", segment=segment)


def _shift(table: pd.DataFrame, run: str):
    alike = {"version": "raw", "queries": "post", "comparator": "pearson", "order": "per_sample_then_mean"}
    return _one(table, quantity="shift", run=run, **alike)


def _card(name: str, row, means: str) -> Card:
    low, high = row["low"], row["high"]
    if "Retrieval" in name:  # Student's interval of a share may pass its ends
        low, high = max(low, 0.0), min(high, 1.0)
    return Card(name, number(row["mean"]), interval(low, high, row["n"]), means)


def _one(table: pd.DataFrame, **where):
    """The one row with these values and a finite mean, or None."""
    rows = pick(table, **where)
    rows = rows[rows["mean"].astype(float).map(math.isfinite)]
    return rows.iloc[0] if len(rows) else None


def _curve(table: pd.DataFrame, **where) -> pd.DataFrame:
    rows = pick(table, **where)
    rows = rows[rows["mean"].astype(float).map(math.isfinite)]
    return rows.assign(layer=rows["layer"].astype(int)).set_index("layer").sort_index()


def _last(table: pd.DataFrame) -> int:
    """The layer after the last block, before the final norm."""
    return int(pick(table, quantity="similarity", pair="P-T")["layer"].max()) - 1


def _span(row) -> str:
    return f"{number(row['low'])} to {number(row['high'])}"


def _finite(value) -> bool:
    return value is not None and not pd.isna(value) and math.isfinite(value)

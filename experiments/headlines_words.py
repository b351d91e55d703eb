"""Key numbers and verdicts of the vocabulary view, from its table alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .figures.rows import pick
from .page import Card, Claim, interval, number


def best_hits(table: pd.DataFrame) -> tuple[pd.Series, float, float] | None:
    """The layer's row at which visual tokens say most of their own answer above others', and both shares; None without."""
    rows = _hits(table)
    if rows.empty:
        return None
    best = rows.loc[rows["mean"].idxmax()]
    shares = (pick(table, quantity="hits", variant=v, layer=best["layer"])["mean"].item() for v in ("own", "others"))
    return best, *shares


def word_numbers(table: pd.DataFrame) -> dict[str, float]:
    """Own answer's words in visual tokens above others', mean over the layers behind a block."""
    rows = _hits(table)
    return {"true words in visual tokens": float(rows["mean"][rows["layer"] > 0].mean())}


def word_cards(table: pd.DataFrame) -> list[Card]:
    """True words of visual tokens above others', and how sure they are at the input beside the text."""
    cards = []
    if (found := best_hits(table)) is not None:
        best, own, others = found
        means = f"At layer {int(best['layer'])} of {int(table['layer'].max())}, {number(own)} of visual tokens decode to a content word of their own answer, {number(others)} to one of another picture's."
        cards.append(
            Card(
                "True words in visual tokens",
                number(best["mean"]),
                interval(best["low"], best["high"], best["n"]),
                means,
            )
        )
    for row in pick(table, quantity="entropy", pair="P", layer=0).itertuples():
        text = pick(table, quantity="entropy", pair="T", layer=0)["mean"].item()
        means = f"Nats of a visual token read as a word before the first block; a text token has {number(text)}, a uniform choice {number(row.limit)}."
        cards.append(Card("Entropy of visual tokens", number(row.mean), interval(row.low, row.high, row.n), means))
    return cards


def word_claims(table: pd.DataFrame) -> list[Claim]:
    """What one model says of the claim that pictures decode to other distributions than texts."""
    across, within = pick(table, quantity="kl", pair="P-T"), pick(table, quantity="kl", pair=["P-P", "T-T"])
    if across.empty or within.empty:
        return []
    floor = within.groupby("layer")["high"].max()
    above = sum(low > floor.get(layer, np.inf) for layer, low in zip(across["layer"], across["low"], strict=True))
    here = f"KL of picture to text is above both floors (halves of one group), intervals apart, at {above} of {len(across)} layers (n = {int(across['n'].max())})."
    holds = True if above == len(across) else False if above == 0 else None
    return [
        Claim("Visual tokens decode to other distributions over words than text does", "arXiv 2405.16700", here, holds)
    ]


def _hits(table: pd.DataFrame) -> pd.DataFrame:
    return pick(table, quantity="hits", variant="difference").dropna(subset=["mean"])

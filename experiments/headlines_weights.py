"""Key numbers and verdicts of the weight overlap, from its table alone."""

from __future__ import annotations

import pandas as pd

from .figures.rows import pick
from .page import Card, Claim, interval, number


def weight_cards(table: pd.DataFrame) -> list[Card]:
    """The overlap of the sparsest masks beside its nulls."""
    return [
        Card(
            "Shared weights (IoU)", number(row.mean), interval(row.low, row.high, row.n),
            f"Of the weights kept for image and text tokens with {100 * row.sparsity:g} % pruned. Independent inputs give {number(row.null)}, random masks "
            f"{number(row.chance)}; of what the null leaves, {number(row.adjusted)} is shared.",
        )
        for row in _sparsest(table).itertuples()
    ]  # fmt: skip


def weight_numbers(table: pd.DataFrame) -> dict[str, float]:
    """The overlap of the sparsest masks."""
    values = _sparsest(table)["mean"]
    return {"shared weights (IoU)": float(values.iloc[0])} if len(values) else {}


def _sparsest(table: pd.DataFrame) -> pd.DataFrame:
    return pick(table, quantity="iou", pair="image-text", layer=None, matrix=None).sort_values("sparsity").tail(1)


def weight_claims(table: pd.DataFrame) -> list[Claim]:
    """Whether image and text share more weights than masks do that share |W| alone."""
    made = []
    for row in pick(table, quantity="iou", pair="image-text", layer=None, matrix=None).itertuples():
        holds = True if row.low > row.null else False if row.high < row.null else None
        here = f"IoU {number(row.mean)} [{number(row.low)} to {number(row.high)}] against {number(row.null)} of independent inputs (n = {row.n})."
        name = f"Image and text tokens use the same weights ({100 * row.sparsity:g} % pruned)"
        made.append(Claim(name, "arXiv 2405.16700, with our null", here, holds))
    return made

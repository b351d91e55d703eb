"""Key numbers and verdicts of the embedding probe, from its table alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .figures.rows import pick
from .page import Card, Claim, interval, number

SOURCE = "arXiv 2412.09585"


def embedding_cards(table: pd.DataFrame) -> list[Card]:
    """Of each target, what the best layer knows of it, beside its references."""
    cards = []
    for target in dict.fromkeys(table["target"].dropna()):
        rows = _layers(table, target, "r2")
        if rows.empty:
            continue
        best, last = rows.loc[rows["mean"].idxmax()], rows.iloc[-2 if len(rows) > 1 else -1]
        beside = [f"{name} {number(value)}" for name, value in (("the vision tower", _reference(table, target, "tower")), ("place alone", _reference(table, target, "place"))) if np.isfinite(value)]  # fmt: skip
        means = f"Share of variance a linear probe reads at layer {int(best['layer'])} in unseen pictures; after the last block {number(last['mean'])}; {', '.join(beside)}."
        cards.append(
            Card(
                f"{target.capitalize()} in the states (R²)",
                number(best["mean"]),
                interval(best["low"], best["high"], best["n"]),
                means,
            )
        )
    return cards


def embedding_numbers(table: pd.DataFrame) -> dict[str, float]:
    """R² of each target, mean over the layers behind a block."""
    targets = dict.fromkeys(table["target"].dropna())
    rows = {target: _layers(table, target, "r2") for target in targets}
    return {
        f"{target} in the states (R²)": float(one["mean"].iloc[1:-1].mean()) for target, one in rows.items() if len(one)
    }


def embedding_claims(table: pd.DataFrame) -> list[Claim]:
    """The claims of OLA-VLM that one model can speak to, and the controls the paper has not."""
    claims = []
    for target in dict.fromkeys(table["target"].dropna()):
        rows = _layers(table, target, "cos_flat")
        if len(rows) < 4:
            continue
        first, middle = rows.iloc[1], rows.iloc[2:-1]
        top = middle.loc[middle["mean"].idxmax()]
        apart = top["low"] > first["high"] or top["high"] < first["low"]
        claims.append(
            Claim(
                f"Probes of {target} get better from the first block to the middle",
                SOURCE,
                f"Cosine {number(first['mean'])} after block 1, at most {number(top['mean'])} later (layer {int(top['layer'])}; n = {int(top['n'])}; linear probe).",
                bool(top["mean"] > first["mean"]) if apart else None,
            )
        )
        own = _layers(table, target, "r2")
        last, place = own.iloc[-2], _reference(table, target, "place")
        claims.append(
            Claim(
                f"After the last block states still hold {target} of the picture, not only where things usually are",
                "our control",
                f"R² {number(last['mean'])} ({interval(last['low'], last['high'], last['n'])}); place alone {number(place)}.",
                True if last["low"] > place else False if last["high"] < place else None,
            )
        )
    return claims


def _layers(table: pd.DataFrame, target: str, quantity: str) -> pd.DataFrame:
    rows = pick(table, target=target, quantity=quantity, labels="true", features="layer")
    rows = rows[np.isfinite(rows["mean"])]
    return rows[rows["readout"].eq(rows["readout"].iloc[0])].sort_values("layer") if len(rows) else rows


def _reference(table: pd.DataFrame, target: str, features: str) -> float:
    found = pick(table, target=target, quantity="r2", labels="true", features=features)["mean"]
    return float(found.iloc[0]) if len(found) else np.nan

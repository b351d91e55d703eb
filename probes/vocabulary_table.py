"""The table of the vocabulary view, from its sums and the samples that were kept."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from torch import Tensor

from .intervals import mean_over_samples
from .word_hits import ANSWER_IDS, KEPT_TOKENS, hit_rates, top_words
from .word_readings import MOMENTS

REASONS = ("no visual token", "no text behind the picture")


def vocabulary_table(
    moments: Tensor, kept: Tensor, skipped: Tensor, *, vocabulary: int, top: int, pairing: str, tokenizer=None
) -> pd.DataFrame:
    """See `VocabularyView`. moments: (M, layers, 3); kept: (n, 2 * layers * KEPT_TOKENS + ANSWER_IDS)."""
    n_states = moments.shape[1]
    rows: list[dict] = []

    def add(quantity: str, layer: int, mean, low, high, n, **more) -> None:
        site = "embed" if layer == 0 else f"blocks.{layer - 1}.resid_post"
        rows.append({
            "quantity": quantity, "layer": layer, "site": site, "depth": layer / (n_states - 1), "mean": mean, "low": low,
            "high": high, "n": n, **more,
        })  # fmt: skip

    found = mean_over_samples(moments)
    for m, (quantity, pair) in enumerate(MOMENTS):
        more = {"variant": pairing} if quantity == "kl" else {}
        more |= {"limit": math.log(vocabulary)} if quantity == "entropy" else {}
        for layer in range(n_states):
            if found.n[m, layer]:
                values = (x[m, layer] for x in (found.mean, found.low, found.high, found.n))
                add(quantity, layer, *values, pair=pair, **more)
    words = kept[:, : 2 * n_states * KEPT_TOKENS].long().view(len(kept), 2, n_states, KEPT_TOKENS)
    answers = kept[:, -ANSWER_IDS:].long()
    if (answers >= 0).any():
        for variant, share in hit_rates(words[:, 0], answers).items():
            for layer in range(n_states):
                add(
                    "hits",
                    layer,
                    share.mean[layer],
                    share.low[layer],
                    share.high[layer],
                    share.n[layer],
                    pair="P",
                    variant=variant,
                )
    for group, pair in enumerate("PT"):
        for layer, rank, token, share in top_words(words[:, group], top) if len(words) else ():
            add(
                "word", layer, share.mean, share.low, share.high, share.n, pair=pair, rank=rank, token=token,
                word=word_of(token, tokenizer),
            )  # fmt: skip
    for reason, n in zip(REASONS, skipped.tolist(), strict=True):
        rows.append({"quantity": "skipped", "n": n, "mean": np.nan, "reason": reason})
    columns = (
        "quantity", "pair", "variant", "layer", "site", "depth", "rank", "token", "word", "mean", "low", "high", "n", "limit", "reason",
    )  # fmt: skip
    table = pd.DataFrame(rows).reindex(columns=list(columns))
    return table.astype({"layer": "Int64", "rank": "Int64", "token": "Int64", "n": "int64"})


def word_of(token: int, tokenizer=None) -> str:
    """A token as it is shown: its text without the spaces around it; what has no text, or no tokenizer, by its id."""
    text = tokenizer.decode([token]).strip() if tokenizer is not None else ""
    return text if text and text.isprintable() else f"#{token}"

"""Tables of the experiment on concepts: what moved, whether the move leads anywhere, and what dictionaries are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import pearsonr
from torch import Tensor

from ..probes.concepts import METHODS, decompose, quality_table
from ..probes.extraction import WordStates
from ..probes.grounding import ground_words, overlap_score, random_words
from ..probes.grounding_scores import true_words, word_scores
from ..probes.intervals import mean_over_samples, powers
from ..probes.word_concepts import TunedConcepts
from ..scenes.errors import UserError
from .correlation import FEWEST, correlate
from .figures.rows import pick

SEEDS = (0, 1, 2)
MEASURES = (
    "cosine_gain",
    "distance_share",
    "words_gain",
    "images_gain",
    "words_before",
    "words_after",
    "images_before",
    "images_after",
)


def concept_rows(pair: TunedConcepts) -> pd.DataFrame:
    """One row a concept: its shift's statistics, and before, shifted and after its words, and the pictures that have most of it
    (places among the samples, as text)."""
    words = {f"words_{when}": [", ".join(row) for row in rows] for when, rows in pair.words.items()}
    pictures = {f"pictures_{when}": [" ".join(map(str, row)) for row in rows] for when, rows in pair.pictures.items()}
    return pair.shifts.assign(partner=pair.partner.tolist(), **words, **pictures)


def summary(recovered: pd.DataFrame) -> pd.DataFrame:
    """Mean of each measure over concepts (halves averaged first), by style and kind of shift, and of the paired difference of the
    own shift to each kind; Student's interval over concepts."""
    gains = {f"{what}_gain": recovered[f"{what}_after"] - recovered[f"{what}_before"] for what in ("words", "images")}
    each = recovered.assign(**gains).groupby(["style", "kind", "concept"], sort=False)[list(MEASURES)].mean()
    rows = []
    for (style, kind), group in each.groupby(["style", "kind"], sort=False):
        own = each.loc[style, "shift"]
        for measure in MEASURES:
            values = group.droplevel(["style", "kind"])[measure]
            for what, numbers in (("mean", values), ("own minus this", own[measure] - values)):
                estimate = mean_over_samples(powers(torch.tensor(numbers.to_numpy(float))).sum(0))
                rows.append({
                    "style": style, "kind": kind, "measure": measure, "what": what, "mean": float(estimate.mean),
                    "low": float(estimate.low), "high": float(estimate.high), "n": int(estimate.n),
                })  # fmt: skip
    return pd.DataFrame(rows)


def correlations(concepts: pd.DataFrame, recovered: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Over concepts, recovery (held-out cosine gain of the own shift) against consistency and against the shift's length above its
    noise; by style and for both together. Pearson with Fisher's interval, Spearman with a bootstrap's."""
    gain = pick(recovered, kind="shift").groupby(["style", "concept"])["cosine_gain"].mean().rename("gain")
    joined = concepts.join(gain, on=["style", "concept"])
    rows = []
    for style in (*dict.fromkeys(concepts["style"]), "both"):
        of = joined if style == "both" else pick(joined, style=style)
        for against in ("consistency", "above"):
            use = of[np.isfinite(of[against]) & np.isfinite(of["gain"])]
            told = {"style": style, "against": against, "n": len(use)}
            rank = correlate(use[against], use["gain"], seed=seed)
            rows.append(
                told | {"kind": "spearman", "value": rank.value, "low": rank.low, "high": rank.high, "p": rank.p}
            )
            straight = dict.fromkeys(("value", "low", "high", "p"), np.nan)
            if len(use) >= FEWEST and use[against].nunique() > 1 and use["gain"].nunique() > 1:
                result = pearsonr(use[against], use["gain"])
                low, high = result.confidence_interval()
                straight = {"value": result.statistic, "low": low, "high": high, "p": result.pvalue}
            rows.append(told | {"kind": "pearson"} | straight)
    return pd.DataFrame(rows)


def dictionaries(
    vlm, states: WordStates, samples: Sequence, k: int, *, site: str = "final", seed: int = 0
) -> pd.DataFrame:
    """One row a method: `quality_table`, the overlap of words between concepts, and `truth` of what half of the states give."""
    Z, truths = states[site], [true_words(samples[i]) for i in states.index.tolist()]
    table = quality_table(Z, k, seeds=SEEDS).set_index("method")
    for method in METHODS:
        found = truth(vlm, Z, truths, k, method=method, seed=seed)
        for name, value in found.items():
            table.loc[method, name] = value
    return table.reset_index()


def by_layer(
    vlm, states: WordStates, samples: Sequence, k: int, *, method: str = "snmf", seed: int = 0
) -> pd.DataFrame:
    """`truth` of every site that was read, in forward order; states from before the final norm are put through it."""
    truths, rows = [true_words(samples[i]) for i in states.index.tolist()], []
    for layer, (site, Z) in enumerate(states.states.items(), 1):
        rows.append(
            {
                "layer": layer,
                "site": site,
                **truth(vlm, Z, truths, k, method=method, seed=seed, final_norm=site != "final"),
            }
        )
    return pd.DataFrame(rows)


def truth(
    vlm, Z: Tensor, truths: Sequence[frozenset[str]], k: int, *, method: str, seed: int = 0, final_norm: bool = False
) -> dict:
    """Concepts learnt from every second state, judged on the others: the share of the active concept's words that are true of the
    picture (true_mean, _low, _high, _n), the same of random directions' words (random_...), and overlap of words between concepts."""
    learnt, judged = Z[0::2], Z[1::2]
    if len(judged) < k:
        raise UserError(
            f"{len(Z)} samples make halves of {len(judged)}, fewer than {k} concepts: give more samples, or a smaller k"
        )
    dictionary = decompose(learnt, k, method=method, seed=seed)
    words, codes = ground_words(vlm, dictionary.directions(), final_norm=final_norm), dictionary.encode(judged)
    found = {"overlap": overlap_score(words)}
    for name, told in (("true", words), ("random", random_words(vlm, k, seed=seed, final_norm=final_norm))):
        estimate = mean_over_samples(powers(word_scores(told, codes, truths[1::2])).sum(0))
        found |= {f"{name}_{what}": float(getattr(estimate, what)) for what in ("mean", "low", "high", "n")}
    return found

"""Whether the texts alone give away which one is rejected: then a model need not look to learn the preference."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..probes.intervals import proportion

FEWEST = 20


def giveaway(
    chosen: Sequence[str],
    rejected: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy of a text-only classifier in telling a pair's rejected text from its chosen one, by cross-validation: 0.5 is wanted.

    A logistic regression on words and pairs of words (tf-idf) and length; of each held-out pair the text with the higher score is
    called rejected, a tie is half right. groups: pairs that share one (the picture) are held out together. Returns mean, low, high
    (Wilson's 95 %), n; NaN with fewer than 20 pairs.
    """
    import numpy as np
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    n = len(chosen)
    groups = [str(i) for i in range(n)] if groups is None else list(groups)
    if n < FEWEST or len(set(groups)) < folds:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": n}
    texts, label = [*chosen, *rejected], np.repeat([0, 1], n)
    hits = torch.zeros(n)
    for train, test in GroupKFold(folds, shuffle=True, random_state=seed).split(np.arange(n), groups=groups):
        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\S+", sublinear_tf=True)
        rows, held = np.concatenate([train, train + n]), np.concatenate([test, test + n])
        words.fit([texts[i] for i in rows])

        def features(which, words=words):
            some = [texts[i] for i in which]
            return hstack([words.transform(some), csr_matrix([[len(text.split()) / 10] for text in some])])

        model = LogisticRegression(max_iter=1000, C=1.0).fit(features(rows), label[rows])
        score = model.decision_function(features(held))
        gap = torch.from_numpy(score[len(test) :] - score[: len(test)])
        hits[torch.from_numpy(test)] = (gap > 0).float() + 0.5 * (gap == 0).float()
    found = proportion(hits)
    return {name: float(getattr(found, name)) for name in ("mean", "low", "high")} | {"n": n}

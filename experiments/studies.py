"""Every experiment, at the size at which the report runs it."""

from __future__ import annotations

import logging
import time

from .lineage import is_organism, lineage
from .study import Study

logger = logging.getLogger("chiasm")


def own_studies(vlm, *, seed: int, limit: int | None, root, device=None, dtype=None) -> list[Study]:
    """The experiments on the bundled family, as large as `limit` allows; none for other models."""
    if not is_organism(vlm):
        return []
    from . import (
        acting,
        alignment,
        causal_trace,
        compute,
        concepts,
        distilling,
        embeddings,
        forgetting,
        hallucination,
        image_words,
        outliers,
        preferences,
        shared_weights,
        steering,
        tuned_lenses,
        wings,
    )

    series = lineage()
    few = None if limit is None else max(8, limit // 2)
    fewer = None if limit is None else max(6, limit // 4)
    some = {"seed": seed, "root": root, "limit": few}
    placed = some | {"device": device, "dtype": dtype}
    trained = {"seed": seed, "root": root, "device": device, "dtype": dtype}
    asked = {} if limit is None else {"questions": max(8, min(60, limit // 2))}
    every = {
        "alignment": lambda: alignment.study(series, **placed, **asked),
        "forgetting": lambda: forgetting.study(series, **placed, **asked),
        "outliers": lambda: outliers.study(vlm, **some | {"limit": few or 48}, captions=few or 100),
        "embeddings": lambda: embeddings.study(series, **placed, **asked),
        "concepts": lambda: concepts.study(**placed | {"limit": few or 150}),
        "image_words": lambda: image_words.study(**placed),
        "shared_weights": lambda: shared_weights.study(vlm, **some, **asked),
        "causal_trace": lambda: causal_trace.study(vlm, **some | {"limit": fewer and min(fewer, 24)}),
        "steering": lambda: steering.study(vlm, **some | {"limit": fewer}),
        "hallucination": lambda: hallucination.study(
            vlm, **some | {"limit": fewer or 40}, batch_size=64, seeds=5 if limit is None else 2
        ),
        "acting": lambda: acting.study(vlm, **some | {"limit": max(24, fewer or 24)}),
        "compute": lambda: compute.study(vlm, **some | {"limit": fewer or 30}),
        "preferences": lambda: preferences.study(vlm, **some | {"limit": fewer or 24}),
        "tuned_lenses": lambda: tuned_lenses.study(vlm, **some | {"limit": max(16, fewer or 24)}),
        "wings": lambda: wings.study(**trained | wings.REPORT),
        "distilling": lambda: distilling.study(**trained | distilling.REPORT),
    }
    studies = []
    for name, study in every.items():
        began = time.monotonic()
        studies.append(study())
        logger.info(f"experiment {name}: {time.monotonic() - began:.0f} s")
    return studies

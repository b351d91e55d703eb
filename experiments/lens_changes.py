"""Where tuning acted: every lens before and after on the same scenes, by layer, and what moved in the states that predict a word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from ..models import VLM
from ..probes.concept_shift import concept_shift, shift_table
from ..probes.concepts import decompose
from ..probes.extraction import WordStates, extract, matched
from ..probes.grounding import ground_words
from ..probes.seeds import crossed_mean
from ..scenes.benchmarks import caption_set
from ..scenes.sample import Sample
from .before_after import MEAN, After, trainings
from .concepts import THINGS
from .lens_values import lens_values, split
from .study import framed_scenes

SCENES, BLOCKS, SMALLEST = 48, 6, 8
"""Scenes, blocks they are split into, and scenes a block has at least (fewer blocks where there are fewer scenes)."""

CAPTIONS, CONCEPTS = 120, 6


def lens_tables(
    before: VLM, after: After, scenes: Sequence[Sample] | None = None, *, batch_size: int = 32, seed: int = 0
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Tables "lenses", each lens's key numbers, and "layers", its curves (column layer; attention, outliers and weights count blocks
    from 0, the others layers, 0 being the input).

    scenes: rendered ones with text on both sides of the picture (default: 48 unseen ones). Columns: lens, quantity, model ("mean" over
    trainings, then each), before, after, change with low, high (paired: differences within blocks of scenes; for the mean
    over blocks and trainings, see `crossed_mean`), sd over trainings, blocks, n scenes, standardised: the change over the SD of before
    between blocks. Raises UserError.
    """
    models = trainings(before, after)
    scenes = list(framed_scenes(SCENES, seed)) if scenes is None else list(scenes)
    blocks = split(scenes, min(BLOCKS, max(2, len(scenes) // SMALLEST)))
    how = {"batch_size": batch_size, "seed": seed}
    plain = lens_values(before, blocks, **how)
    tuned = {name: lens_values(model, blocks, **how) for name, model in models.items()}
    tables = {}
    for table, what in (("lenses", "numbers"), ("layers", "curves")):
        rows = []
        for key, values in getattr(plain, what).items():
            each = {name: getattr(found, what)[key] for name, found in tuned.items()}
            groups = {MEAN: list(each.values())} | (
                {name: [one] for name, one in each.items()} if len(each) > 1 else {}
            )
            rows += [_row(key, name, values, np.stack(some)) for name, some in groups.items()]
        tables[table] = pd.DataFrame(rows).assign(n=len(scenes))
    return tables


def _row(key: tuple, model: str, before: np.ndarray, after: np.ndarray) -> dict:
    """One quantity: before (blocks,), after (trainings, blocks)."""
    found, sd = crossed_mean(after - before), np.nanstd(before, ddof=1) if len(before) > 1 else np.nan
    place = dict(zip(("lens", "quantity", "layer"), key, strict=False))
    return place | {
        "model": model, "before": np.nanmean(before), "after": np.nanmean(after), "change": found["mean"], "low": found["low"],
        "high": found["high"], "sd": found["sd"], "seeds": found["seeds"], "blocks": found["n"],
        "standardised": found["mean"] / sd if sd > 0 else np.nan,
    }  # fmt: skip


def concept_tables(
    before: VLM, after: After, samples: Sequence[Sample] | None = None, *, words: str | Sequence[str] | None = THINGS,
    k: int | None = None, batch_size: int = 32, seed: int = 0,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Tables of the states that predict a word, matched sample by sample: those in which both models say it of the same picture.

    "concept_shift": one row a training and concept (k-means of the states before, at `final`): its words before, and
    `probes.concept_shift.shift_table`. "state_shift": one row a site and training (and their mean): move, the mean length of a
    sample's move over that of its state; common, the length of the mean move over the same; consistency, the mean cosine of two
    samples' moves; n. words: several count as the first one said (default: the first thing a caption names); None: the mean over the caption. samples:
    default 120 scenes to caption. k: default 6, fewer for few samples. Raises UserError when no sample has the word in both.
    """
    models = trainings(before, after)
    samples = caption_set(CAPTIONS, "test", "neutral", seed) if samples is None else list(samples)
    read = {"sites": ["blocks.*.resid_post", "final"], "batch_size": batch_size}
    first = extract(before, samples, words, **read)
    k = k or int(np.clip(len(first) // 12, 2, CONCEPTS))
    dictionary = decompose(first["final"], k, method="kmeans", seed=seed)
    assignment, said = dictionary.assign(), ground_words(before, dictionary.directions(), n=8)
    concepts, sites = [], []
    for name, model in models.items():
        second = extract(model, samples, words, **read)
        a, b = matched(first, second)
        table = shift_table(first["final"][a], second["final"][b], assignment[a], k, seed=seed)
        concepts.append(table.assign(model=name, words=[", ".join(row) for row in said]))
        sites += [{"model": name, **_moved(site, first, second, a, b)} for site in first.states]
    sites = pd.DataFrame(sites)
    if len(models) > 1:
        numbers = ["move", "common", "consistency", "n"]
        mean = sites.groupby(["layer", "site"], sort=False, as_index=False)[numbers].mean().assign(model=MEAN)
        sites = pd.concat([mean, sites], ignore_index=True)
    else:
        sites["model"] = MEAN
    return {"concept_shift": pd.concat(concepts, ignore_index=True), "state_shift": sites}


def _moved(site: str, first: WordStates, second: WordStates, a: torch.Tensor, b: torch.Tensor) -> dict:
    x, y = first[site][a].double(), second[site][b].double()
    moved, size = y - x, x.norm(dim=1).mean()
    whole = concept_shift(x, y, torch.zeros(len(x), dtype=torch.long), 1)
    return {
        "layer": list(first.states).index(site) + 1, "site": site, "move": (moved.norm(dim=1).mean() / size).item(),
        "common": (whole.shift[0].norm() / size).item(), "consistency": whole.consistency[0].item(), "n": len(x),
    }  # fmt: skip

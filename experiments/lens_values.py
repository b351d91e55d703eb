"""Every lens on the same blocks of scenes: its numbers, and its curves over layers, once a block, so that models can be compared in pairs.

Most of these numbers are of a set of scenes, not of one: an overlap of masks, a probe's R². So scenes are split into blocks, each
is measured by itself, and what a change did is told by the differences within blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..models import VLM
from ..models.patch_scores import score_kinds
from ..probes.attention_shift import AttentionShift
from ..probes.embedding_probe import EmbeddingProbe
from ..probes.implicit_alignment import ImplicitAlignment
from ..probes.measure import measure
from ..probes.outlier_overlap import OutlierOverlap
from ..probes.targets import scene_targets
from ..probes.vocabulary_view import VocabularyView
from ..probes.weight_overlap import WeightOverlap
from ..scenes.sample import Sample
from .figures.rows import pick
from .lenses import LENSES


@dataclass(frozen=True)
class LensValues:
    """numbers: {(lens, quantity): (blocks,)}; curves: {(lens, quantity, layer): (blocks,)}, NaN where a block has none."""

    numbers: dict[tuple[str, str], np.ndarray]
    curves: dict[tuple[str, str, int], np.ndarray]


def lens_values(vlm: VLM, blocks: Sequence[Sequence[Sample]], *, batch_size: int = 32, seed: int = 0) -> LensValues:
    """All lenses of `instruments`, in one pass over each block. Raises UserError for a sample that cannot be measured."""
    numbers, curves = [], []
    for block in blocks:
        tables = measure(
            vlm, block, instruments(vlm), batch_size=batch_size, progress=False, seed=seed, strict=True
        ).tables
        numbers.append({(LENSES[name].title, quantity): value for name, table in tables.items() for quantity, value in LENSES[name].numbers(table).items()})  # fmt: skip
        curves.append(
            {
                (LENSES[name].title, quantity, int(layer)): value
                for name, table in tables.items()
                for quantity, along in CURVES[name](table).items()
                for layer, value in along.items()
            }
        )
    return LensValues(_stacked(numbers), _stacked(curves))


def _stacked(blocks: Sequence[dict]) -> dict:
    keys = dict.fromkeys(key for block in blocks for key in block)
    return {key: np.array([block.get(key, np.nan) for block in blocks], float) for key in keys}


def split(samples: Sequence[Sample], blocks: int) -> list[list[Sample]]:
    """The samples in blocks of nearly one size, in their order."""
    return [[samples[i] for i in part] for part in np.array_split(np.arange(len(samples)), blocks)]


def instruments(vlm: VLM) -> list:
    """Every built-in lens that this model has something for, without what its numbers here do not need: permutations, texts without
    pictures, a second target."""
    within, scored = vlm.anatomy.image_in_sequence, bool(score_kinds(vlm.anatomy))
    return [
        *([AttentionShift()] if within else []),
        ImplicitAlignment(permutations=1),
        *([VocabularyView(vlm.writer.tokenizer)] if within else []),
        *([OutlierOverlap(agreement=False)] if scored else []),
        EmbeddingProbe([target for target in scene_targets() if target.name == "depth"]),
        *([WeightOverlap(sparsity=(0.5,))] if within else []),
    ]


# -- curves over layers, from the probes' tables -----------------------------------------------------------------------


def _alignment(table: pd.DataFrame) -> dict[str, pd.Series]:
    alike = {"pooling": "avg", "pair": "P-T"}
    return {
        "picture-text similarity": _along(table, quantity="similarity", variant="raw", **alike),
        "picture-text similarity, centred": _along(table, quantity="similarity", variant="centred_both", **alike),
        "own minus others’ text": _along(table, quantity="semantic", variant="centred_each", **alike),
    }


def _attention(table: pd.DataFrame) -> dict[str, pd.Series]:
    read = {"quantity": "mass", "run": "vlm", "version": "raw", "queries": "post"}
    return {
        f"attention on the {name}": _along(table, segment=segment, **read)
        for segment, name in (("image", "picture"), ("sink", "sink"))
    }


def _outliers(table: pd.DataFrame) -> dict[str, pd.Series]:
    names = {"excess": "overlap with outliers", "lift": "attention on outliers (lift)"}
    return {name: _along(table, quantity=quantity, head=None) for quantity, name in names.items()}


def _embeddings(table: pd.DataFrame) -> dict[str, pd.Series]:
    return {
        f"{target} in the states (R²)": _along(table, target=target, quantity="r2", labels="true", features="layer")
        for target in dict.fromkeys(table["target"].dropna())
    }


def _words(table: pd.DataFrame) -> dict[str, pd.Series]:
    return {
        "true words in visual tokens": _along(table, quantity="hits", variant="difference"),
        "entropy of visual tokens (nats)": _along(table, quantity="entropy", pair="P"),
    }


def _weights(table: pd.DataFrame) -> dict[str, pd.Series]:
    return {"shared weights (IoU)": _along(table, quantity="iou", pair="image-text", matrix=None)}


def _along(table: pd.DataFrame, **where) -> pd.Series:
    """The means by layer; where there are several rows of one (readouts), the first."""
    rows = pick(table, **where)
    rows = rows[rows["layer"].notna() & np.isfinite(rows["mean"].astype(float))].drop_duplicates("layer")
    return rows.set_index(rows["layer"].astype(int))["mean"].astype(float).sort_index()


CURVES: dict[str, Callable[[pd.DataFrame], dict[str, pd.Series]]] = {
    "implicit_alignment": _alignment,
    "attention_shift": _attention,
    "outlier_overlap": _outliers,
    "embeddings": _embeddings,
    "vocabulary_view": _words,
    "weight_overlap": _weights,
}
"""By the name of the probe: its table → curves over layers by quantity."""

"""Preference pairs of rendered scenes, by scene truth, for experiments that need some."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..models import VLM
from ..scenes.benchmarks import description_set
from ..scenes.sample import Sample


def scene_pairs(vlm: VLM, samples: Iterable[Sample], folder: str | Path, *, filters: bool = True, seed: int = 0):
    """The pairs that scene truth makes of scenes, as `alignment.pairs.build_pairs` does; a `datasets.Dataset`."""
    from ..alignment.encoders import open_encoder
    from ..alignment.judges import SceneJudge
    from ..alignment.masking import SceneMasker
    from ..alignment.pair_config import PairConfig
    from ..alignment.pairs import build_pairs
    from ..alignment.scene_truth import SceneTruth

    return build_pairs(
        samples, folder, backend=SceneTruth(), encoder=open_encoder("tower", vlm), judge=SceneJudge(), masker=SceneMasker(),
        config=PairConfig(chat=vlm.writer.templated, seed=seed, filters=filters), progress=False,
    ).dataset()  # fmt: skip


def held_out_pairs(vlm: VLM, n: int, folder: str | Path, seed: int = 0):
    """Preference pairs of `n` unseen scenes, no fewer because some give none.

    Those a model was tuned on are of training scenes, and are not held out.
    """
    made = scene_pairs(vlm, description_set(n + max(4, n // 8), seed=seed), folder, seed=seed)
    return made.select(range(min(n, len(made))))

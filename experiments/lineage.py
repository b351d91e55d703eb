"""The organism's stages in the order they grew: the checkpoints of its growth series, or the family that is shipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from ..models import VLM, open_vlm
from ..scenes.benchmarks import pope_questions, skill_set
from ..scenes.errors import UserError
from ..scenes.sample import Sample
from ..scenes.world import make_scene, split_seeds

SHIPPED = ("lm", "aligned", "tuned", "colour", "place")
ENOUGH = 12
"""Checkpoints from which a growth series is used in place of the family."""

SEEING = ("existence", "colour", "number", "position")
"""Questions about a picture that make up the skill of seeing; existence in POPE's random sampling."""

TEXT = ("sums", "facts", "sequences")
"""Tasks without a picture that make up text skill."""

BATCH = 50
"""Questions answered together."""


@dataclass(frozen=True)
class Stage:
    """One model of a series. step: its training step, NaN where the series has none (the shipped family)."""

    name: str
    step: float
    load: Callable[[], tuple]

    def open(self, device=None, dtype=None) -> VLM:
        model, processor = self.load()
        vlm = open_vlm(model=model, processor=processor, device=device)
        vlm.name = f"organism/{self.name}"
        return vlm if dtype in (None, "fp32", "float32") else _cast(vlm, dtype)


@dataclass(frozen=True)
class Lineage:
    """A series of stages. growth: whether these are checkpoints along training; told: what the series is, in one sentence."""

    stages: Sequence[Stage]
    growth: bool
    told: str


def lineage(growth: str | Path | None = None) -> Lineage:
    """The growth series in a folder (default: the cache's), where it has enough checkpoints; else the shipped family.

    Raises UserError for a folder that was named and holds too few.
    """
    from ..models.organism import load_organism
    from ..models.organism.family import cache_folder, growth_steps, load_growth

    folder = Path(growth) if growth is not None else cache_folder()
    steps = growth_steps(folder) if folder.is_dir() else []
    if len(steps) >= ENOUGH:
        stages = [Stage(f"step {step}", step, lambda step=step: load_growth(folder, step)) for step in steps]
        return Lineage(
            stages,
            True,
            f"{len(steps)} checkpoints of the organism's growth: projector alone, then projector and decoder",
        )
    if growth is not None:
        raise UserError(
            f"growth series {str(growth)!r} has {len(steps)} checkpoints, {ENOUGH} are needed: grow one with `chiasm organism grow`"
        )
    stages = [Stage(name, float("nan"), lambda name=name: load_organism(name)) for name in SHIPPED]
    told = (
        f"the {len(SHIPPED)} models that are shipped ({', '.join(SHIPPED)}), since no growth series of {ENOUGH} or more checkpoints is "
        f"here (`chiasm organism grow` makes one)"
    )
    return Lineage(stages, False, told)


def seeing_questions(n: int, split: str = "test", seed: int = 0) -> dict[str, list[Sample]]:
    """About `n` questions of each kind with a picture, the same for every stage."""
    scenes = [make_scene(s) for s in split_seeds(split, max(1, n // 4))]
    asked = {"existence": pope_questions(scenes, "random", seed)[:n]}
    return asked | {kind: skill_set(kind, n, split, seed) for kind in SEEING[1:]}


def text_questions(n: int, split: str = "test", seed: int = 0) -> dict[str, list[Sample]]:
    """`n` tasks of each kind without a picture, the same for every stage."""
    return {kind: skill_set(kind, n, split, seed) for kind in TEXT}


def score(vlm: VLM, questions: dict[str, list[Sample]]) -> dict[str, np.ndarray]:
    """1 where the first word of the greedy answer is the right one, by kind and question."""
    right = {}
    for kind, samples in questions.items():
        right[kind] = np.zeros(len(samples))
        order = sorted(range(len(samples)), key=lambda i: len(samples[i].prompt))  # little padding
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            inputs = vlm.prepare([samples[i].images for i in some], [samples[i].prompt for i in some])
            told = vlm.generate(inputs, max_new_tokens=4)
            right[kind][some] = [text.split()[:1] == [samples[i].answer] for i, text in zip(some, told, strict=True)]
    return right


def skill_rows(stage: Stage, right: dict[str, np.ndarray]) -> list[dict]:
    """Rows of a table: each kind, and "all" with equal weight per question; shares with Wilson's interval."""
    rows = []
    for kind, values in {**right, "all": np.concatenate(list(right.values()))}.items():
        bounds = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
        rows.append({"stage": stage.name, "step": stage.step, "kind": kind, "mean": values.mean(), "low": bounds.low, "high": bounds.high, "n": len(values)})  # fmt: skip
    return rows


def is_organism(model) -> bool:
    """Whether a name, or an open model, is of the family these experiments are about."""
    return str(getattr(model, "name", model)).split("/")[0] == "organism"


def check_organism(model, experiment: str) -> None:
    if not is_organism(model):
        name = getattr(model, "name", model)
        raise UserError(
            f"experiment {experiment!r} compares the stages of the bundled family, got model {str(name)!r}: use --model organism, and "
            "`chiasm report` for other models"
        )


def drop(before: dict[str, np.ndarray], after: dict[str, np.ndarray], seed: int = 0) -> dict:
    """Share right before minus after, on the same tasks, with a paired bootstrap interval over tasks."""
    difference = np.concatenate([before[kind] - after[kind] for kind in before])
    rng = np.random.default_rng(seed)
    means = np.array([difference[rng.integers(0, len(difference), len(difference))].mean() for _ in range(2000)])
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": difference.mean(), "low": low, "high": high, "n": len(difference)}


def _cast(vlm: VLM, dtype) -> VLM:
    from ..models.open import pick_dtype

    vlm.model.to(pick_dtype(dtype))
    return vlm

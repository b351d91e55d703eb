"""What every experiment hands to the report: its run, its figures and what it found, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd

from ..scenes.readers.scene_data import SceneData
from ..scenes.sample import BadSample, Sample
from .figures import Drawn, Figure, draw
from .page import Claim
from .run import Run

DPI = 200
"""Pixels an inch of the figures' PNG files."""


@dataclass(frozen=True)
class Study:
    """A finished experiment. found: sentences with n; claims: what it says of published claims."""

    title: str
    path: Path
    intro: Sequence[str]
    found: Sequence[str]
    claims: Sequence[Claim]
    figures: Sequence[Drawn]
    tables: dict[str, pd.DataFrame]


def first_good(samples: Iterable, n: int = 1, limit: int | None = None) -> list[Sample]:
    """The first `n` samples that could be read, among the first `limit` items of the data."""
    good = (sample for sample in islice(samples, limit) if not isinstance(sample, BadSample))
    return list(islice(good, n))


def framed_scenes(n: int, seed: int = 0) -> SceneData:
    """`n` unseen scenes to describe, with long text in front of and behind the picture, and a true description as answer.

    Both probes can read them: a text of its own for every picture, and enough text on either side of it.
    """
    return SceneData(kind="description", n=n, split="test", seed=seed, frame="long")


def keep_figures(run: Run, figures: Sequence[Figure]) -> list[Drawn]:
    """Draws figures and writes them into the run."""
    drawn = [draw(figure) for figure in figures]
    for one in drawn:
        run.figure(one.name, one.picture, one.interactive, dpi=DPI)
    return drawn

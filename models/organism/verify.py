"""Checking that the shipped family still is what its card says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ...scenes.world import World
from .card import judged
from .family import FILES, card
from .traits import measure_traits


def verify(n: int = 1000, folder: Path | str = FILES, progress: Callable[[str], None] = print) -> pd.DataFrame:
    """Measure a family again: columns trait, card, now, low, high, n, bar, met; low and high are those of now."""
    known = card(folder)
    world = World.from_dict(known["recipe"]["world"])
    now = judged(measure_traits(n, folder, world, progress=progress)).rename(columns={"mean": "now"})
    now.insert(1, "card", now["trait"].map({row["trait"]: row["mean"] for row in known["traits"]}))
    return now

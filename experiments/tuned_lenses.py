"""Experiment: where did preference tuning act? Every lens before and after, by layer, for DPO and rDPO trained alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ..models import VLM
from ..scenes.benchmarks import caption_set
from .before_after import MEAN
from .figures import tuned_lenses as figures
from .figures.against import states
from .figures.rows import pick
from .lens_changes import concept_tables, lens_tables
from .lineage import check_organism
from .page import Claim, number
from .preference_arms import NAMES, SEEDS, shipped
from .run import Run
from .study import Study, framed_scenes, keep_figures

ARMS = ("dpo", "rdpo")
SCENES = 48
"""Scenes the lenses see where nothing else is asked; twice as many captions have their states matched."""

ASKED = "our question; the papers measure no lens"
EXPECTED = (
    ("IMA score", "rDPO raises the alignment score"),
    ("IMA score, centred", "… and the centred one, from which the mean state is taken"),
    ("attention on the picture", "rDPO turns attention to the picture"),
)
"""Numbers of the lenses in which tuning for visual preferences could be expected to show."""


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, growth=None,
) -> Path:  # fmt: skip
    """Measures the organism before and after DPO and rDPO and writes a run; returns its folder. Raises UserError for another model."""
    check_organism(model, "tuned_lenses")
    from .options import open_model

    vlm = open_model(model, device=device, dtype=dtype)
    return study(vlm, limit=limit, seed=seed, root=root, batch_size=batch_size).path


def study(
    vlm: VLM, *, limit: int | None = None, seed: int = 0, root: str | Path = "runs", batch_size: int = 32,
    trainings: int = SEEDS,
) -> Study:  # fmt: skip
    """`run` for an open organism, with what the report needs. limit: scenes; trainings: of each way, at most three."""
    n = max(16, limit or SCENES)
    config = {"limit": limit, "seed": seed, "arms": ARMS, "trainings": trainings}
    with Run.create("tuned_lenses", config, root) as kept:
        kept.note_model(vlm)
        arms = {arm: dict(list(each.items())[:trainings]) for arm, each in shipped(vlm, ARMS).items()}
        scenes, captions = list(framed_scenes(n, seed)), caption_set(2 * n, "test", "neutral", seed)
        how, parts = {"batch_size": batch_size, "seed": seed}, {}
        for arm, models in arms.items():
            made = lens_tables(vlm, models, scenes, **how) | concept_tables(vlm, models, captions, **how)
            for name, table in made.items():
                parts.setdefault(name, []).append(table.assign(arm=arm))
        tables = {name: pd.concat(each, ignore_index=True) for name, each in parts.items()}
        for name, table in tables.items():
            kept.table(name, table)
        moved = [pick(tables[name], arm="rdpo") for name in ("state_shift", "concept_shift")]
        drawn = keep_figures(kept, [figures.layers(tables["layers"]), states(*moved)])
        kept.note(n=n, trainings=trainings * len(ARMS))
    intro = (
        f"The organism before and after DPO and rDPO ({trainings} trainings each, the same pairs, steps and learning rate), read by every lens on the same {n} unseen scenes. "
        "Differences are paired, block of scenes by block of scenes.",
    )  # fmt: skip
    return Study("Where did preference tuning act?", kept.path, intro, found(tables), claims(tables), drawn, tables)


def found(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What moved, with intervals and n; which layers moved most."""
    sentences = []
    for arm in ARMS:
        rows = pick(tables["lenses"], model=MEAN, arm=arm)
        moved = rows[(rows["low"] > 0) | (rows["high"] < 0)]
        said = "; ".join(_told(row) for row in moved.to_dict("records")) or "none"
        sentences.append(
            f"{NAMES[arm]}: of {len(rows)} numbers of the lenses {len(moved)} move (about {0.05 * len(rows):.1f} would by chance): {said} (n = {int(rows['n'].max())} scenes)."
        )
    for arm in ARMS:
        rows = pick(tables["state_shift"], model=MEAN, arm=arm).sort_values("layer")
        first, last = rows.iloc[0], rows.iloc[-1]
        sentences.append(
            f"{NAMES[arm]}: states that predict the first thing named move by {100 * first['move']:.0f} % of their length behind the first block and {100 * last['move']:.0f} % at the final norm; "
            f"{100 * last['common'] / max(last['move'], 1e-9):.0f} % of that is one shift common to all (n = {int(rows['n'].max())} captions)."
        )
    return sentences


def _told(row: Mapping) -> str:
    return f"{row['quantity']} {number(row['before'])} → {number(row['after'])} (change {number(row['low'])} to {number(row['high'])})"


def claims(tables: Mapping[str, pd.DataFrame]) -> list[Claim]:
    made = []
    for quantity, claim in EXPECTED:
        rows = pick(tables["lenses"], model=MEAN, arm="rdpo", quantity=quantity)
        if len(rows):
            row = rows.iloc[0].to_dict()
            holds = True if row["low"] > 0 else False if row["high"] < 0 else None
            made.append(Claim(claim, ASKED, f"{_told(row)}, n = {int(row['n'])} scenes.", holds))
    return made

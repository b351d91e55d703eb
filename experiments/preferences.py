"""Experiment: rDPO against DPO against plain fine-tuning, at equal steps on equal pairs, over several seeds; and what filters buy."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from ..models import VLM
from ..probes.bootstrap import Tally
from ..probes.seeds import over_seeds
from ..scenes.benchmarks import skill_set
from ..scenes.errors import UserError
from .before_after import KINDS, MEAN, answered, compared, preference_tables, scored
from .benchmarks import open_benchmark
from .figures import preferences as figures
from .figures.rows import pick
from .hallucination import first_scenes
from .lineage import check_organism, text_questions
from .options import open_model
from .page import Claim, number
from .preference_arms import ARMS, NAMES, SEEDS, SETTINGS, STEPS, Arms, opened, shipped, train
from .run import Run
from .scene_pairs import held_out_pairs
from .study import Study, keep_figures

CONTRASTS = (("dpo", "sft"), ("rdpo", "sft"), ("rdpo", "dpo"), ("anchored", "rdpo"), ("rdpo", "unfiltered"))
"""Ways that are compared with each other."""
DESCRIBED = 100
"""Scenes described where nothing else is asked; the other parts in proportion."""


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, growth=None, steps: int | None = None,
) -> Path:  # fmt: skip
    """Compares the trainings that come with the organism, or new ones of so many steps, and writes a run; returns its folder.

    The world's own pairs are used: data and growth are not. Raises UserError for another model.
    """
    check_organism(model, "preferences")
    if steps is not None and steps < 1:
        raise UserError(
            f"--steps {steps} must be at least 1, or left out to compare the trainings that come with the organism"
        )
    vlm = open_model(model, device=device, dtype=dtype)
    return study(vlm, limit=limit, seed=seed, root=root, batch_size=batch_size, steps=steps).path


def study(
    vlm: VLM, *, limit: int | None = None, seed: int = 0, root: str | Path = "runs", batch_size: int = 32,
    steps: int | None = None,
) -> Study:  # fmt: skip
    """`run` for an open organism, with what the report needs. limit: scenes described."""
    n = limit or DESCRIBED
    config = {"limit": limit, "seed": seed, "steps": steps or STEPS, "trained": steps is not None, "settings": SETTINGS}
    with Run.create("preferences", config, root) as kept:
        kept.note_model(vlm)
        arms = shipped(vlm) if steps is None else opened(vlm, train(vlm, kept.path / "arms", steps=steps, log=kept.log))
        tables = compare(vlm, arms, n, kept.path / "pairs", batch_size=batch_size, seed=seed)
        for name, table in tables.items():
            kept.table(name, table)
        drawn = keep_figures(kept, figures.drawable(tables))
        kept.note(n=int(tables["scores"]["n"].max()), trainings=len(ARMS) * SEEDS)
    intro = (
        f"The organism tuned on preference pairs of rendered scenes in five ways, each with {SEEDS} seeds, {config['steps']} steps of "
        f"{SETTINGS['per_device_train_batch_size']} pairs at the same learning rate; a seed sees the same pairs in the same order in every way. "
        "SFT is trained on the chosen answers alone; “anchored” is rDPO with an anchor of 0.5 that holds the chosen answers up. “No filters” is rDPO on pairs of the same scenes of which nothing was checked.",
        "Questions and scenes are unseen ones. Intervals are over scenes and seeds; differences between ways are taken seed by seed on the same questions.",
    )  # fmt: skip
    return Study("Preferences: rDPO, DPO and SFT", kept.path, intro, found(tables), claims(tables), drawn, tables)


# -- comparing ---------------------------------------------------------------------------------------------------------


def compare(
    vlm: VLM, arms: Arms, n: int, folder: Path, *, batch_size: int = 32, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Tables: scores (each arm against the model before), contrasts (arms against each other), margins of held-out pairs."""
    models = {f"{arm}-{name}": model for arm, each in arms.items() for name, model in each.items()}
    how = {"batch_size": batch_size}
    benchmarks = [
        first_scenes(open_benchmark("pope-scenes", seed=seed), max(2, round(0.6 * n))),
        open_benchmark("chair-scenes", limit=n, seed=seed),
    ]
    asked = max(8, round(0.6 * n))
    groups = {
        "text alone": text_questions(asked, seed=seed),
        "elsewhere": {kind: skill_set(kind, asked, "test", seed) for kind in KINDS},
    }
    rows, against = [], []
    parts = chain(
        (
            ((one.name, split), tallies, images)
            for one in benchmarks
            for split, tallies, images in scored(vlm, models, one, **how)
        ),
        (
            ((group, kind), *rest)
            for group, questions in groups.items()
            for kind, *rest in answered(vlm, models, questions)
        ),
    )
    for (part, split), tallies, images in parts:
        first = tallies.pop("before")
        each = {arm: {name: tallies[f"{arm}-{name}"] for name in names} for arm, names in arms.items()}
        for arm, own in each.items():
            rows.append(compared(own, first, images, seed=seed, part=part, split=split, arm=arm))
        for a, b in CONTRASTS:
            if a in each and b in each:
                told = [difference(each[a][name], each[b][name]) for name in each[a]]
                against.append(
                    over_seeds(told, None, images, seed=seed).assign(part=part, split=split, contrast=f"{a} − {b}")
                )
    pairs = held_out_pairs(vlm, max(12, round(0.6 * n)), folder, seed)
    margins = [
        preference_tables(vlm, dict(each), pairs, pictures=("own",), seed=seed)["margins"].assign(arm=arm)
        for arm, each in arms.items()
    ]
    return {
        "scores": pd.concat(rows, ignore_index=True),
        "contrasts": pd.concat(against, ignore_index=True),
        "margins": pd.concat(margins, ignore_index=True),
    }


def difference(a: Tally, b: Tally) -> Tally:
    """What `a` scores less what `b` scores, item by item drawn together."""
    width = a.counts.shape[1]

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        one, other = a.metrics(sums[..., :width]), b.metrics(sums[..., width:])
        return {name: one[name] - other[name] for name in one}

    return Tally(np.concatenate([a.counts, b.counts], 1), metrics, sizes=a.sizes)


# -- in words ----------------------------------------------------------------------------------------------------------

WHAT = (
    ("pope-scenes", "adversarial", "accuracy", "POPE accuracy, adversarial"),
    ("chair-scenes", "all", "chair_i", "CHAIR_i"),
    ("chair-scenes", "same length", "chair_i", "CHAIR_i at equal length"),
    ("chair-scenes", "all", "recall", "objects mentioned"),
    ("elsewhere", "all", "accuracy", "skill elsewhere"),
    ("text alone", "all", "accuracy", "skill in text alone"),
)
"""What is told of every arm: part, split, metric, name."""


def found(tables: dict[str, pd.DataFrame]) -> list[str]:
    sentences = []
    for part, split, metric, name in WHAT:
        rows = pick(tables["scores"], part=part, split=split, metric=metric, model=MEAN)
        if len(rows):
            told = "; ".join(f"{NAMES[row['arm']]} {_change(row)}" for _, row in rows.iterrows())
            sentences.append(
                f"{name}, points against the model before ({number(100 * rows['before'].iloc[0])}): {told} (n = {int(rows['n'].iloc[0]):,}, {SEEDS} seeds)."
            )
    for a, b in CONTRASTS[2:]:
        told = "; ".join(f"{name} {_change(row)}" for row, name in _contrast(tables, a, b))
        sentences.append(f"{NAMES[a]} less {NAMES[b]}: {told}.")
    return sentences


def _contrast(tables, a: str, b: str):
    for part, split, metric, name in WHAT:
        rows = pick(tables["contrasts"], part=part, split=split, metric=metric, contrast=f"{a} − {b}")
        if len(rows):
            row = rows.iloc[0]
            yield {"difference": row["after"], "difference_low": row["low"], "difference_high": row["high"]}, name


def _change(row) -> str:
    values = (number(100 * row[name]) for name in ("difference", "difference_low", "difference_high"))
    return "{} ({} to {})".format(*values)


def claims(tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """What Re-Align says of rDPO, and whether it is so here."""

    def against(a: str, b: str, name: str):
        return next((row for row, told in _contrast(tables, a, b) if told == name), None)

    made = []
    rdpo = {
        name: pick(tables["scores"], part=part, split=split, metric=metric, model=MEAN, arm="rdpo")
        for part, split, metric, name in WHAT
    }
    chair, pope = rdpo["CHAIR_i"].iloc[0], rdpo["POPE accuracy, adversarial"].iloc[0]
    fewer, better = chair["difference_high"] < 0, pope["difference_low"] > 0
    worse = chair["difference_low"] > 0 or pope["difference_high"] < 0
    source = "Re-Align, arXiv 2502.13146"
    made.append(
        Claim(
            "rDPO lowers hallucination",
            source,
            f"POPE adversarial {_change(pope)}, CHAIR_i {_change(chair)} points",
            True if fewer and better else False if worse else None,
        )
    )
    row = against("rdpo", "dpo", "CHAIR_i")
    asked = against("rdpo", "dpo", "POPE accuracy, adversarial")
    if row and asked:
        holds = (
            True
            if row["difference_high"] < 0 and asked["difference_low"] >= 0
            else False
            if row["difference_low"] > 0 or asked["difference_high"] < 0
            else None
        )
        made.append(
            Claim(
                "The visual term lowers hallucination beyond DPO",
                source,
                f"CHAIR_i {_change(row)}, POPE adversarial {_change(asked)} points",
                holds,
            )
        )
    skill, text = rdpo["skill elsewhere"].iloc[0], rdpo["skill in text alone"].iloc[0]
    lost = min(skill["difference_high"], text["difference_high"]) < 0
    kept = min(skill["difference_low"], text["difference_low"]) > -0.02
    made.append(
        Claim(
            "and keeps general skill",
            source,
            f"elsewhere {_change(skill)}, text alone {_change(text)} points",
            True if kept else False if lost else None,
        )
    )
    return made

"""Experiment: do the models whose attention to text has shifted most also forget most of their text skill?

Source of the claim: Lu et al., "Wings" (arXiv 2406.03496): over more than 100 models the text-only drop grows with the shift.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from ..probes.attention_shift import AttentionShift
from ..probes.measure import measure
from .alignment import smallest_p, told
from .correlation import correlate
from .figures import forgetting as figures
from .figures.attention_shift import curve_rows, shift_row
from .lineage import Lineage, Stage, check_organism, drop, lineage, score, skill_rows, text_questions
from .page import Claim, number
from .run import Run
from .study import Study, framed_scenes, keep_figures

TASKS = 80
"""Text-only tasks of each kind; three kinds."""


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, questions: int = TASKS, growth: str | Path | None = None,
) -> Path:  # fmt: skip
    """Measures the base language model and every stage on the same scenes and tasks and writes a run; returns its folder.

    data: samples with text on both sides of the picture (default: `limit`, or 100, framed scenes). growth: folder of a growth
    series. Raises UserError for a model that is not of the bundled family.
    """
    check_organism(model, "forgetting")
    return study(
        lineage(growth), data, device=device, dtype=dtype, limit=limit, seed=seed, root=root, batch_size=batch_size, questions=questions
    ).path  # fmt: skip


def study(
    series: Lineage, data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0, root: str | Path = "runs",
    batch_size: int = 32, questions: int = TASKS,
) -> Study:  # fmt: skip
    """`run` for a given series of stages, with what the report needs. The drop is against the language model the series began with."""
    samples = framed_scenes(limit or 100, seed) if data is None or data == "scenes" else data
    asked = text_questions(questions, seed=seed)
    stages = [base_stage(), *[stage for stage in series.stages if stage.name != "lm"]]
    config = {
        "stages": [stage.name for stage in stages],
        "limit": limit,
        "seed": seed,
        "questions": questions,
        "growth": series.growth,
    }
    shifts, curves, skill, drops, base = [], [], [], [], None
    with Run.create("forgetting", config, root) as kept:
        for stage in stages:
            vlm = stage.open(device, dtype)
            table = measure(
                vlm, samples, [AttentionShift(text_only=True)], run=kept, part=stage.name.replace(" ", "-"), batch_size=batch_size, limit=limit,
                progress=False, seed=seed,
            ).tables["attention_shift"]  # fmt: skip
            for read in ("picture", "text_only"):
                row = shift_row(table, text_only=read == "text_only")
                shifts.append({"stage": stage.name, "step": stage.step, "read": read, **row})
            curves.append(curve_rows(table).assign(stage=stage.name))
            right = score(vlm, asked)
            base = right if base is None else base
            skill += skill_rows(stage, right)
            drops.append({"stage": stage.name, "step": stage.step, **drop(base, right, seed)})
            kept.log(f"{stage.name}: text skill {skill[-1]['mean']:.3f}")
        tables = {
            "shifts": pd.DataFrame(shifts),
            "drops": pd.DataFrame(drops),
            "skill": pd.DataFrame(skill),
            "curves": pd.concat(curves, ignore_index=True),
        }
        tables["correlations"] = correlations(tables["shifts"], tables["drops"], seed)
        for name, table in tables.items():
            kept.table(name, table)
        drawn = keep_figures(
            kept,
            [
                figures.scatter(tables["shifts"], tables["drops"], tables["correlations"]),
                figures.stages(tables["shifts"], tables["drops"]),
                figures.curves(tables["curves"]),
            ],
        )
    intro = (
        f"Attention shift against the drop in text-only skill, over {series.told}; n = {len(stages)} models with the base language model. The drop is "
        "the share of sums, facts and sequences solved by the base model minus that of the stage, on the same tasks without any picture.",
        "Each model is also read on the same texts without their pictures: a shift that stays there is a change of the weights, one that goes away "
        "is the picture’s place in the sequence.",
    )  # fmt: skip
    return Study(
        "Attention shift and forgetting", kept.path, intro, found(tables), claims(tables["correlations"]), drawn, tables
    )


def base_stage() -> Stage:
    """The language model before it ever saw a picture; its pictures come through an untrained projector."""
    from ..models.organism import load_organism

    return Stage("lm", 0.0, lambda: load_organism("lm"))


def correlations(shifts: pd.DataFrame, drops: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Spearman of the drop with the shift, read with pictures and without, plain and given the training step."""
    lost = drops.set_index("stage")
    rows = []
    for read, group in shifts.groupby("read", sort=False):
        x = group.set_index("stage").loc[lost.index, "mean"]
        for given, z in (("nothing", None), ("training step", lost["step"])):
            result = correlate(x, lost["mean"], z, seed=seed)
            rows.append({"read": read, "given": given, "value": result.value, "low": result.low, "high": result.high, "p": result.p, "n": result.n})  # fmt: skip
    return pd.DataFrame(rows)


def found(tables: dict[str, pd.DataFrame]) -> list[str]:
    """What came out, with n and intervals."""
    table, lost = tables["correlations"], tables["drops"]
    sentences = []
    for read, name in (("picture", "with pictures"), ("text_only", "the same texts without pictures")):
        row = table[(table["read"] == read) & (table["given"] == "nothing")].iloc[0]
        sentences.append(f"Shift ({name}) and text-only drop: {told(row)}")
    row = table[(table["read"] == "picture") & (table["given"] == "training step")].iloc[0]
    if row["n"] >= 4:
        sentences.append(f"The same (with pictures) given the training step: {told(row)}")
    most = lost.loc[lost["mean"].idxmax()]
    sentences.append(
        f"Largest drop: {most['stage']}, {number(100 * most['mean'])} points (95 %: {number(100 * most['low'])} to {number(100 * most['high'])}, "
        f"n = {int(most['n'])} tasks). A stage with the base model’s own decoder, such as “aligned”, drops by exactly 0: only its projector was trained."
    )
    n = len(lost)
    if n < 20:
        sentences.append(
            f"With n = {n} models nothing is claimed of the correlation; the smallest p that a perfect order can have is {smallest_p(n)}."
        )
    return sentences


def claims(table: pd.DataFrame) -> list[Claim]:
    """Whether the drop grows with the shift."""
    row = table[(table["read"] == "picture") & (table["given"] == "nothing")].iloc[0]
    enough = row["n"] >= 12 and math.isfinite(row["value"])
    holds = None if not enough or row["low"] <= 0 <= row["high"] else bool(row["low"] > 0)
    here = told(row) + ("" if row["n"] >= 12 else " Too few models to decide.")
    return [
        Claim(
            "Models with a larger attention shift lose more text-only skill",
            "arXiv 2406.03496, over 100 models",
            here,
            holds,
        )
    ]

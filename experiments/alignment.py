"""Experiment: does the alignment score follow skill over the organism's stages, and does it survive its controls?

Source of the claim: Shukor and Cord (arXiv 2405.16700), figure 9: checkpoints and variants of LLaVA-1.5, positive correlation.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from ..probes.implicit_alignment import ImplicitAlignment
from ..probes.measure import measure
from .correlation import correlate
from .figures import alignment as figures
from .figures.rows import pick
from .lineage import Lineage, check_organism, lineage, score, seeing_questions, skill_rows
from .page import Claim, number
from .run import Run
from .study import Study, framed_scenes, keep_figures

SCORES = ("ima_same_layer", "ima_input_anchor")
VARIANTS = ("raw", "centred_both", "without_outliers")
QUESTIONS = 60
"""Of each kind; four kinds."""


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, questions: int = QUESTIONS, growth: str | Path | None = None,
) -> Path:  # fmt: skip
    """Measures every stage on the same scenes and questions and writes a run; returns its folder.

    data: samples to measure alignment on (default: `limit`, or 100, framed scenes). growth: folder of a growth series. Raises
    UserError for a model that is not of the bundled family.
    """
    check_organism(model, "alignment")
    return study(
        lineage(growth), data, device=device, dtype=dtype, limit=limit, seed=seed, root=root, batch_size=batch_size, questions=questions
    ).path  # fmt: skip


def study(
    series: Lineage, data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0, root: str | Path = "runs",
    batch_size: int = 32, questions: int = QUESTIONS,
) -> Study:  # fmt: skip
    """`run` for a given series of stages, with what the report needs."""
    samples = framed_scenes(limit or 100, seed) if data is None or data == "scenes" else data
    asked = seeing_questions(questions, seed=seed)
    config = {
        "stages": [stage.name for stage in series.stages],
        "limit": limit,
        "seed": seed,
        "questions": questions,
        "growth": series.growth,
    }
    scores, curves, skill = [], [], []
    with Run.create("alignment", config, root) as kept:
        for stage in series.stages:
            vlm = stage.open(device, dtype)
            part = stage.name.replace(" ", "-")
            table = measure(
                vlm, samples, [ImplicitAlignment(permutations=200)], run=kept, part=part, batch_size=batch_size, limit=limit,
                progress=False, seed=seed,
            ).tables["implicit_alignment"]  # fmt: skip
            scores += _scores(table, stage)
            chosen = pick(table, quantity="similarity", pair="P-T", pooling="avg", variant=list(VARIANTS))
            curves.append(chosen[["variant", "layer", "mean", "low", "high", "n"]].assign(stage=stage.name))
            skill += skill_rows(stage, score(vlm, asked))
            kept.log(f"{stage.name}: skill {skill[-1]['mean']:.3f}")
        tables = {
            "scores": pd.DataFrame(scores),
            "skill": pd.DataFrame(skill),
            "curves": pd.concat(curves, ignore_index=True),
        }
        tables["correlations"] = correlations(tables["scores"], tables["skill"], seed)
        for name, table in tables.items():
            kept.table(name, table)
        drawn = keep_figures(
            kept,
            [
                figures.scatter(tables["scores"], tables["skill"], tables["correlations"]),
                figures.growth(tables["scores"], tables["skill"]),
                figures.layers(tables["curves"]),
            ],
        )
    n = len(series.stages)
    intro = (
        f"The IMA score against the share of questions about pictures answered right, over {series.told}; n = {n} models. The score is the "
        "same-layer cosine of average-pooled tokens, mean over all layers and the final norm.",
    )
    return Study(
        "Alignment across layers and checkpoints",
        kept.path,
        intro,
        found(tables["correlations"]),
        claims(tables["correlations"]),
        drawn,
        tables,
    )


def _scores(table: pd.DataFrame, stage) -> list[dict]:
    rows = pick(table, quantity=list(SCORES), pooling="avg", variant=list(VARIANTS))
    return [
        {"stage": stage.name, "step": stage.step, "score": row.quantity, "variant": row.variant, "mean": row.mean, "low": row.low, "high": row.high, "n": row.n}
        for row in rows.itertuples()
    ]  # fmt: skip


def correlations(scores: pd.DataFrame, skill: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Spearman of each score and variant with skill, plain and given the training step."""
    right = pick(skill, kind="all").set_index("stage")
    rows = []
    for (name, variant), group in scores.groupby(["score", "variant"], sort=False):
        x = group.set_index("stage").loc[right.index, "mean"]
        for given, z in (("nothing", None), ("training step", right["step"])):
            result = correlate(x, right["mean"], z, seed=seed)
            rows.append({"score": name, "variant": variant, "given": given, "value": result.value, "low": result.low, "high": result.high, "p": result.p, "n": result.n})  # fmt: skip
    return pd.DataFrame(rows)


def found(table: pd.DataFrame) -> list[str]:
    """What the correlations say, with n, an interval and p each."""
    sentences = []
    for variant, name in (("raw", "raw"), ("centred_both", "centred"), ("without_outliers", "without outliers")):
        plain = pick(table, score="ima_same_layer", variant=variant, given="nothing").iloc[0]
        sentences.append(f"IMA score ({name}) and skill: {told(plain)}")
    partial = pick(table, score="ima_same_layer", variant="raw", given="training step").iloc[0]
    if partial["n"]:
        sentences.append(f"The same (raw) given the training step, which both follow: {told(partial)}")
    else:
        sentences.append(
            "Given the training step: not computed, the shipped models are not points of one training curve."
        )
    n = int(table["n"].max())
    if n < 12:
        sentences.append(
            f"With n = {n} models no claim is made: even a perfect order has a permutation p no smaller than {smallest_p(n)}."
        )
    return sentences


def told(row) -> str:
    if not math.isfinite(row["value"]):
        return f"undefined (n = {int(row['n'])})."
    return (
        f"Spearman ρ = {number(row['value'])} (bootstrap over models, 95 %: {number(row['low'])} to {number(row['high'])}; "
        f"permutation p = {row['p']:.3f}; n = {int(row['n'])} models)."
    )


def smallest_p(n: int) -> str:
    return f"{2 / math.factorial(n):.3f}" if n <= 7 else f"{1 / 10_001:.4f}"


def claims(table: pd.DataFrame) -> list[Claim]:
    """Whether a better aligned model sees better, raw and given its controls."""
    rows = []
    for variant, name, given, what in (
        ("raw", "raw", "nothing", "A higher alignment score goes with more skill"),
        ("centred_both", "centred", "nothing", "… after centring"),
        ("raw", "raw", "training step", "… given the training step"),
    ):
        row = pick(table, score="ima_same_layer", variant=variant, given=given).iloc[0]
        if not row["n"]:
            continue
        enough = row["n"] >= 12 and math.isfinite(row["value"])
        holds = None if not enough or (row["low"] <= 0 <= row["high"]) else bool(row["low"] > 0)
        source = "arXiv 2405.16700, figure 9" if given == "nothing" and variant == "raw" else "our control"
        rows.append(
            Claim(
                what, source, f"{name}: {told(row)}" + ("" if row["n"] >= 12 else " Too few models to decide."), holds
            )
        )
    return rows

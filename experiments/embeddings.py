"""Experiment: what does each layer know of depth and segmentation, and does a model that sees better know more?

Source of the claims: Jain et al., "OLA-VLM" (arXiv 2412.09585): probe quality peaks in the middle and goes with benchmark scores.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import torch

from ..models import VLM
from ..probes.embedding_probe import EmbeddingProbe
from ..probes.measure import measure
from ..probes.targets import Target
from ..probes.teachers import Teacher
from ..scenes.errors import UserError
from ..scenes.sample import BadSample
from .alignment import smallest_p, told
from .correlation import correlate
from .figures import embeddings as figures
from .figures.rows import pick
from .headlines_embeddings import embedding_claims
from .lineage import Lineage, is_organism, lineage, score, seeing_questions, skill_rows
from .page import Claim, number
from .run import Run
from .study import Study, framed_scenes, keep_figures

SCENES, QUESTIONS, FITTED = 100, 60, 48
"""Scenes measured, questions of each of four kinds, and pictures a teacher's components are found on."""

SUBJECT = "tuned"
ENOUGH = 8
"""Models below which a correlation decides nothing."""


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, questions: int = QUESTIONS, growth: str | Path | None = None,
    teacher: str | Path | None = None, cache: str | Path | None = None, readouts: Sequence[str] = ("ridge",),
) -> Path:  # fmt: skip
    """Measures and writes a run; returns its folder.

    The organism: every stage of its series on the same scenes, with its skill. Any other model: its layers alone, on `data`
    (samples, or what `open_samples` takes) with `teacher`, a vision model's folder or hub id, for targets; without a teacher,
    on rendered scenes. cache: folder for the teacher's maps. readouts: see `EmbeddingProbe`. Raises UserError.
    """
    more = {"limit": limit, "seed": seed, "root": root, "batch_size": batch_size, "readouts": readouts}
    if isinstance(data, str) and data != "scenes":
        from .options import open_samples

        data = open_samples(data, limit=limit, seed=seed)
    if teacher is not None and (data is None or data == "scenes"):
        data = framed_scenes(limit or SCENES, seed)
    targets = None if teacher is None else (fitted_teacher(teacher, data, cache, device),)
    if is_organism(model):
        return study(
            lineage(growth), data, device=device, dtype=dtype, questions=questions, targets=targets, **more
        ).path
    from .options import open_model

    vlm = open_model(model, device=device, dtype=dtype) if isinstance(model, str) else model
    return of_model(vlm, data, targets=targets, **more).path


def study(
    series: Lineage, data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0, root: str | Path = "runs",
    batch_size: int = 32, questions: int = QUESTIONS, targets: Sequence[Target] | None = None, readouts: Sequence[str] = ("ridge",),
) -> Study:  # fmt: skip
    """`run` for a given series of stages, with what the report needs. The random decoder is of the last stage that is no adapter."""
    samples = framed_scenes(limit or SCENES, seed) if data is None or data == "scenes" else data
    asked = seeing_questions(questions, seed=seed)
    names = [stage.name for stage in series.stages]
    subject = SUBJECT if SUBJECT in names else names[-1]
    config = {"stages": names, "limit": limit, "seed": seed, "questions": questions, "readouts": list(readouts)}
    tables, skill = [], []
    with Run.create("embeddings", config, root) as kept:
        options = {"run": kept, "batch_size": batch_size, "limit": limit, "progress": False, "seed": seed}
        for stage in series.stages:
            vlm = stage.open(device, dtype)
            if stage.name == subject:
                table = with_random(vlm, samples, targets, readouts, options)
            else:
                probe = EmbeddingProbe(targets, seed=seed)
                table = measure(vlm, samples, [probe], part=stage.name.replace(" ", "-"), **options).tables[probe.name]
            tables.append(table.assign(stage=stage.name))
            skill += skill_rows(stage, score(vlm, asked))
            kept.log(f"{stage.name}: skill {skill[-1]['mean']:.3f}")
        probes, seen = pd.concat(tables, ignore_index=True), pd.DataFrame(skill)
        quality = quality_of(probes)
        found = {
            "embeddings": probes, "quality": quality, "skill": seen, "correlations": correlations(quality, seen, seed),
        }  # fmt: skip
        for name, table in found.items():
            kept.table(name, table)
        own = probes[probes["stage"] == subject]
        every = [draw(own) for draw in figures.FIGURES]
        every += (
            [figures.growth(quality, seen), figures.scatter(quality, seen, found["correlations"])]
            if len(quality)
            else []
        )
        drawn = keep_figures(kept, [figure for figure in every if figure is not None])
    intro = (
        f"Curves are of {subject!r}, on pictures no probe has seen, beside a decoder with random weights; then probe quality against the share of "
        f"questions about pictures answered right, over {series.told}; n = {len(names)} models.",
    )
    claims = [*embedding_claims(own), *_claims(found["correlations"])]
    return Study(
        "What each layer knows of depth and segmentation", kept.path, intro, told_of(own, found["correlations"]), claims, drawn, found,
    )  # fmt: skip


def of_model(
    vlm: VLM, data=None, *, targets: Sequence[Target] | None = None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 8, readouts: Sequence[str] = ("ridge",),
) -> Study:  # fmt: skip
    """The layers of one open model, beside the same model with random decoder weights."""
    samples = framed_scenes(limit or SCENES, seed) if data is None or data == "scenes" else data
    config = {"model": vlm.name, "limit": limit, "seed": seed, "readouts": list(readouts)}
    with Run.create("embeddings", config, root) as kept:
        options = {"run": kept, "batch_size": batch_size, "limit": limit, "progress": False, "seed": seed}
        table = with_random(vlm, samples, targets, readouts, options)
        kept.table("embeddings", table)
        drawn = keep_figures(kept, [figure for draw in figures.FIGURES if (figure := draw(table)) is not None])
    what = " and ".join(dict.fromkeys(table["target"].dropna())) or "nothing: no picture had a target"
    intro = (f"Linear probes of every layer of {vlm.name}, on pictures none of them has seen; targets: {what}.",)
    return Study(
        "What each layer knows", kept.path, intro, told_of(table), embedding_claims(table), drawn, {"embeddings": table}
    )


def with_random(vlm: VLM, samples, targets, readouts: Sequence[str], options: dict) -> pd.DataFrame:
    """The probe's table of a model, with rows "random decoder" of the same model with random weights in its blocks."""
    seed = options["seed"]
    probe = EmbeddingProbe(targets, readouts=readouts, seed=seed)
    table = measure(vlm, samples, [probe], part="trained", **options).tables[probe.name]
    control = EmbeddingProbe(targets, seed=seed)
    found = measure(random_decoder(vlm, seed), samples, [control], part="random", **options).tables[control.name]
    found = pick(found, features="layer")
    return pd.concat([table, found.assign(features="random decoder")], ignore_index=True)


def random_decoder(vlm: VLM, seed: int = 0) -> VLM:
    """A copy of a model whose blocks have random weights: each matrix normal, with the mean square it had; norms, embeddings,
    tower and projector are the model's own."""
    other = VLM(copy.deepcopy(vlm.model), vlm.processor, name=f"{vlm.name} with a random decoder")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.anatomy.blocks.parameters():
            if parameter.ndim > 1 and parameter.is_floating_point():
                size = parameter.float().square().mean().sqrt()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size.cpu())
    return other


def fitted_teacher(source, data, cache, device=None) -> Teacher:
    """A teacher whose features are reduced on the first pictures of the data."""
    if iter(data) is data:
        raise UserError("the data can be read once only, a teacher needs them twice: give a list, a folder or a file")
    good = (sample for sample in data if not isinstance(sample, BadSample) and sample.images)
    return Teacher(source, cache=cache, device=device).fit(islice(good, FITTED))


def quality_of(table: pd.DataFrame) -> pd.DataFrame:
    """R² of each stage and target at the input, after the last block, and as a mean over the blocks (whose interval is the
    mean of theirs: the layers share their pictures)."""
    rows = []
    own = pick(table, quantity="r2", features="layer", labels="true", readout="ridge").dropna(subset=["mean"])
    for (stage, target), group in own.groupby(["stage", "target"], sort=False):
        group = group.sort_values("layer")
        blocks = group.iloc[1:-1]
        for at, part in (("input", group.iloc[:1]), ("last block", blocks.iloc[-1:]), ("mean of blocks", blocks)):
            means = part[["mean", "low", "high"]].mean()
            rows.append({"stage": stage, "target": target, "at": at, **means, "n": int(group["n"].max())})
    return pd.DataFrame(rows, columns=["stage", "target", "at", "mean", "low", "high", "n"])


def correlations(quality: pd.DataFrame, skill: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Spearman of probe quality and skill over the stages, plain and given the training step."""
    right, rows = pick(skill, kind="all").set_index("stage"), []
    for (target, at), group in quality.groupby(["target", "at"], sort=False):
        x = group.set_index("stage").reindex(right.index)["mean"]
        for given, z in (("nothing", None), ("training step", right["step"])):
            found = correlate(x, right["mean"], z, seed=seed)
            rows.append({"target": target, "at": at, "given": given, "value": found.value, "low": found.low, "high": found.high, "p": found.p, "n": found.n})  # fmt: skip
    return pd.DataFrame(rows, columns=["target", "at", "given", "value", "low", "high", "p", "n"])


def told_of(table: pd.DataFrame, found: pd.DataFrame | None = None) -> list[str]:
    """What was found, with n and intervals."""
    sentences = []
    for target in dict.fromkeys(table["target"].dropna()):
        rows = pick(table, target=target, quantity="r2", labels="true", readout="ridge").dropna(subset=["mean"])
        own = pick(rows, features="layer").sort_values("layer")
        if len(own) < 2:
            continue
        random = pick(rows, features="random decoder").set_index("layer")["mean"]
        parts = [
            f"R² of {target} is {number(own['mean'].iloc[0])} at the input and {number(own['mean'].iloc[-2])} after the last block "
            f"(95 %: {number(own['low'].iloc[-2])} to {number(own['high'].iloc[-2])}; n = {int(own['n'].max())} pictures)"
        ]
        if len(random) > 1:
            parts.append(f"with random decoder weights {number(random[own['layer'].iloc[-2]])} is left there")
        references = pick(rows, features=["tower", "pixels", "place"]).set_index("features")["mean"]
        parts.append(", ".join(f"{name} {number(value)}" for name, value in references.items()))
        sentences.append("; ".join(parts) + ".")
    if found is not None:
        for row in pick(found, at="mean of blocks", given="nothing").to_dict("records"):
            sentences.append(f"Probe quality ({row['target']}, mean of blocks) and skill: {told(row)}")
        if len(found) and (n := int(found["n"].max())) < ENOUGH:
            sentences.append(
                f"With n = {n} models no claim is made: even a perfect order has a permutation p no smaller than {smallest_p(n)}."
            )
    return sentences


def _claims(found: pd.DataFrame) -> list[Claim]:
    claims = []
    for row in pick(found, at="mean of blocks").to_dict("records"):
        if row["given"] != "nothing" and not row["n"]:
            continue
        enough = row["n"] >= ENOUGH and math.isfinite(row["value"])
        holds = None if not enough or row["low"] <= 0 <= row["high"] else bool(row["low"] > 0)
        plain = row["given"] == "nothing"
        what = f"Models from which more {row['target']} can be read answer better" + ("" if plain else ", given the training step")  # fmt: skip
        claims.append(Claim(what, "arXiv 2412.09585" if plain else "our control", told(row) + ("" if enough else " Too few models to decide."), holds))  # fmt: skip
    return claims

"""Experiment: what do mitigations of hallucination buy over greedy decoding, and over controls that have no story?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ..models import VLM
from ..probes.comparison import comparison
from ..probes.hallucination import chair_tally
from ..probes.mentions import scene_synonyms
from ..scenes.errors import UserError
from ..steering.prune import RemoveVisual
from .benchmarks import Benchmark, open_benchmark
from .decoding import Contrasted, Steered, with_controls
from .evaluation import Evaluation, evaluate
from .figures import hallucination as figures
from .figures.rows import pick
from .methods import Greedy, Sampling
from .options import open_model
from .page import Claim, number
from .run import Run
from .study import Study, keep_figures

SCENES = 200
"""Scenes asked about, and described, where nothing else is asked."""

MITIGATIONS = ("damro", "vcd", "pai", "m3id")
SWEPT, STRENGTHS = ("damro", "no-image", "random-tokens"), (0.5, 1.0, 2.0)
"""Contrasts described with at several strengths, so that they can be compared at equal recall."""

DAMRO = "arXiv 2410.04514"
SOURCES = {"damro": DAMRO, "vcd": "arXiv 2311.16922", "pai": "arXiv 2407.21771", "m3id": "arXiv 2403.14003"}


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, growth=None,
) -> Path:  # fmt: skip
    """Asks and describes rendered scenes by greedy decoding, sampling, four mitigations and their controls, and writes a run;
    returns its folder. Published files are for `chiasm evaluate`. Raises UserError."""
    vlm = open_model(model, device=device, dtype=dtype)
    return study(vlm, limit=limit, seed=seed, root=root, batch_size=batch_size).path


def study(
    vlm: VLM,
    *,
    limit: int | None = None,
    seed: int = 0,
    root: str | Path = "runs",
    batch_size: int = 32,
    seeds: int = 5,
) -> Study:
    """`run` for a model that is open, with what the report needs. limit: scenes asked about, and described."""
    n = limit or SCENES
    asking, describing = (first_scenes(open_benchmark(name, seed=seed), n) for name in ("pope-scenes", "chair-scenes"))
    how = {"batch_size": batch_size, "seed": seed, "seeds": seeds, "progress": False}
    with Run.create("hallucination", {"model": vlm.name, "limit": limit, "seed": seed}, root) as kept:
        asked = evaluate(vlm, asking, methods(vlm, asking), **how)
        described = evaluate(vlm, describing, [*methods(vlm, describing), *_swept(), *removed(vlm, describing)], **how)
        tables = {"pope": asked.table, "chair": described.table, "against_controls": against(described)}
        for name, table in tables.items():
            kept.table(name, table)
        made = [figures.pope(asked.table), figures.chair(described.table), figures.length(described.table)]
        pictures = keep_figures(kept, made)
        kept.note(n={"pope": asked.n, "chair": described.n})
    intro = (
        "Mitigations are published against sampling at temperature 1. Here each is held, on the same questions, against greedy decoding, and against controls that "
        "sharpen or shift the distribution without any story: sampling behind the mask alone, sampling at a lower temperature, a bias towards yes tuned on other scenes, "
        "no picture, and random tokens in the place of outliers.",
    )  # fmt: skip
    return Study(
        "Hallucination and what reduces it", kept.path, intro, _found(tables), claims(tables), pictures, tables
    )


def methods(vlm, benchmark: Benchmark) -> list:
    """Greedy, sampling, the mitigations, and the controls of the first of them (the same for all, at alpha 1)."""
    asked = [Greedy(), Sampling(), *(Contrasted(name) for name in MITIGATIONS)]
    return with_controls(asked, vlm, benchmark)


def _swept() -> list[Contrasted]:
    """DAMRO's default strength is 1, and so is that of its controls."""
    return [Contrasted(name, alpha) for name in SWEPT for alpha in STRENGTHS if alpha != 1]


def removed(vlm, benchmark: Benchmark) -> list[Steered]:
    """The causal test of outliers: a tenth of the visual tokens leave, those the encoder attends to most, the longest, or random ones.
    None for a model whose visual tokens cannot be taken out."""
    sample = benchmark.samples[0]
    k = max(1, int(vlm.prepare([sample.images], [sample.prompt]).spans.visual.sum()) // 10)
    every = {
        "outliers": RemoveVisual(k=k),
        "longest": RemoveVisual(k=k, score="norm"),
        "random": RemoveVisual(k=k, which="random"),
    }
    made = [Steered(f"without-{name}", (one,)) for name, one in every.items()]
    try:
        for one in made:
            one.check(vlm)
    except UserError:
        return []
    return made


def against(described: Evaluation) -> pd.DataFrame:
    """Descriptions of DAMRO against sampling and against its two controls, and of a picture without outliers against one without
    as many random tokens. Columns: base, and those of `comparison`."""
    pairs = [("damro", base) for base in ("sampling", "random-tokens-a1", "no-image-a1")]
    pairs += [("without-outliers", base) for base in ("greedy", "without-random", "without-longest")]
    tables = []
    for method, base in pairs:
        if method in described.answers:
            records = described.answers[base][0]
            pair = {name: [r["answer"] for r in described.answers[name][0]] for name in (base, method)}
            table = _compared(pair, base, records)
            tables.append(table[table["method"] == method].assign(base=base))
    return pd.concat(tables, ignore_index=True)


def claims(tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """What one small model says of the published claims; reported figures are of other models and against sampling."""
    controls, asked = tables["against_controls"], tables["pope"]
    made = []
    for base, words, source in (
        ("sampling", "DAMRO makes up fewer objects than sampling", f"{DAMRO}, table 2"),
        ("random-tokens-a1", "… and fewer than with random tokens in the place of outliers", "our control"),
    ):
        row = pick(controls, method="damro", base=base, metric="chair_i").iloc[0]
        made.append(_verdict(words, source, row, f"CHAIR_i against {base}", lower=True))
    row = pick(tables["chair"], split="same length", method="damro", metric="chair_i").iloc[0]
    made.insert(
        1, _verdict("… and fewer than greedy decoding", "our control", row, "CHAIR_i at equal length", lower=True)
    )
    gone = pick(controls, method="without-outliers", base="without-random", metric="chair_i")
    if len(gone):
        words = "Without the patches the encoder attends to most, less is made up than without as many random ones"
        made.append(_verdict(words, f"{DAMRO}, its premise; test ours", gone.iloc[0], "CHAIR_i", lower=True))
    for name in MITIGATIONS:
        row = pick(asked, split="mean", method=name, metric="accuracy").iloc[0]
        title = {"damro": "DAMRO", "vcd": "VCD", "pai": "PAI", "m3id": "M3ID"}[name]
        words = f"{title} answers POPE better than greedy decoding"
        made.append(
            _verdict(words, f"{SOURCES[name]}, there against sampling", row, "accuracy against greedy", lower=False)
        )
    return made


def _verdict(words: str, source: str, row: pd.Series, what: str, *, lower: bool) -> Claim:
    low, high = row["difference_low"], row["difference_high"]
    better, worse = (high < 0, low > 0) if lower else (low > 0, high < 0)
    here = f"{what}: {row['difference']:+.3f} ({low:+.3f} to {high:+.3f}), n = {int(row['n'])}, p = {row['p']:.2g}."
    return Claim(words, source, here, True if better else False if worse else None)


def _compared(captions: dict[str, Sequence[str]], base: str, records) -> pd.DataFrame:
    truth, images = [r["truth"] for r in records], [r["image"] for r in records]
    words = scene_synonyms()
    return comparison(
        captions[base], {k: v for k, v in captions.items() if k != base}, images,
        lambda said: chair_tally(said, truth, synonyms=words), name=base,
    )  # fmt: skip


def first_scenes(benchmark: Benchmark, n: int) -> Benchmark:
    """The questions about the first n scenes."""
    scenes = list(dict.fromkeys(sample.truth["scene"].seed for sample in benchmark.samples))[:n]
    return replace(benchmark, samples=[s for s in benchmark.samples if s.truth["scene"].seed in set(scenes)])


def _found(tables: dict[str, pd.DataFrame]) -> list[str]:
    asked, described = (tables[name] for name in ("pope", "chair"))
    found = []
    for table, metric, split, what in (
        (asked, "accuracy", "mean", "POPE accuracy, mean over splits"),
        (described, "chair_i", "all", "CHAIR_i, share of mentioned objects made up"),
    ):
        rows = pick(table, metric=metric, split=split).set_index("method")
        said = ", ".join(
            f"{method} {number(rows.loc[method, 'mean'])}" for method in ("greedy", "sampling", *MITIGATIONS, "no-image-a1", "random-tokens-a1")
        )  # fmt: skip
        found.append(f"{what}: {said} (n = {int(rows['n'].iloc[0])}).")
    return found

"""Experiment: what did tuning do to concepts? The base organism against its colour and its place style, on the same pictures.

Source of the claims: Khayatan et al. (arXiv 2501.03012): adding a concept's shift leads to a concept of the tuned model, the more so the
more its samples agree on it (LLaVA-1.5-7B tuned on captions about places, colours and sentiments).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from ..probes.concept_files import save_dictionary, save_shift
from ..probes.extraction import extract, logit_check
from ..probes.word_concepts import TunedConcepts, concepts_of, tuned_concepts
from ..scenes.benchmarks import caption_set
from ..scenes.words import PLURALS
from ..scenes.world import CATEGORIES
from .concept_tables import by_layer, concept_rows, correlations, dictionaries, summary
from .figures import concepts as figures
from .figures.rows import pick
from .lineage import check_organism
from .options import open_model
from .page import Claim, number
from .run import Run
from .study import Study, keep_figures

__all__ = ["concepts_of", "run", "study"]

STYLES = ("colour", "place")
SCENES, CONCEPTS = 300, 10
THINGS = (*CATEGORIES, *PLURALS.values())
"""The first thing a caption names: every caption has one, and concepts are kinds of things and places."""

SOURCE = "arXiv 2501.03012"


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, growth=None, word: str | Sequence[str] | None = None, site: str = "final",
    k: int | None = None,
) -> Path:  # fmt: skip
    """Compares concepts of the organism with those of its two styles and writes a run; returns its folder.

    data: samples to caption (default: `limit`, or 300, unseen scenes with the neutral instruction, the same for all three models).
    word: whose predicting states are read (default: the first thing a caption names). k: concepts (default 10, fewer for few samples).
    growth is not used. Raises UserError for another model, a word that is never said, or too few samples.
    """
    check_organism(model, "concepts")
    return study(
        data, device=device, dtype=dtype, limit=limit, seed=seed, root=root, batch_size=batch_size, word=word, site=site, k=k
    ).path  # fmt: skip


def study(
    data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0, root: str | Path = "runs",
    batch_size: int = 32, word: str | Sequence[str] | None = None, site: str = "final", k: int | None = None,
) -> Study:  # fmt: skip
    """`run` with what the report needs."""
    samples = (
        caption_set(limit or SCENES, "test", "neutral", seed)
        if data is None or data == "scenes"
        else list(islice(data, limit))
    )
    words = word or THINGS
    what = "the first thing it names" if word is None else " or ".join([word] if isinstance(word, str) else word)
    config = {
        "limit": limit,
        "seed": seed,
        "word": what,
        "site": site,
        "k": k,
    }
    with Run.create("concepts", config, root) as kept:
        opened = {name: open_model(f"organism/{name}", device=device, dtype=dtype) for name in ("tuned", *STYLES)}
        states = {}
        for name, vlm in opened.items():
            sites = ["blocks.*.resid_post", "final"] if name == "tuned" else site
            states[name] = extract(vlm, samples, words, sites=sites, batch_size=batch_size)
            kept.log(f"{name}: the word is in {len(states[name])} of {states[name].seen} captions")
        fewest = min(len(set(states["tuned"].index.tolist()) & set(states[style].index.tolist())) for style in STYLES)
        k = k or int(np.clip(fewest // 12, 2, CONCEPTS))
        pairs = {
            style: tuned_concepts(opened["tuned"], opened[style], states["tuned"], states[style], k=k, n_images=max(1, fewest // (2 * k)), seed=seed, site=site)
            for style in STYLES
        }  # fmt: skip
        tables = {
            "concepts": pd.concat(
                [concept_rows(pair).assign(style=style) for style, pair in pairs.items()], ignore_index=True
            ),
            "recovered": pd.concat(
                [pair.recovered.assign(style=style) for style, pair in pairs.items()], ignore_index=True
            ),
            "dictionaries": dictionaries(opened["tuned"], states["tuned"], samples, k, site=site, seed=seed),
            "layers": by_layer(opened["tuned"], states["tuned"], samples, k, seed=seed),
        }
        tables["summary"] = summary(tables["recovered"])
        tables["correlations"] = correlations(tables["concepts"], tables["recovered"], seed)
        for name, table in tables.items():
            kept.table(name, table)
        for style, pair in pairs.items():
            _keep(kept, style, pair, opened, site, words)
        pictures = [
            np.asarray(sample.images[0].convert("RGB").resize((64, 64))) if getattr(sample, "images", ()) else None
            for sample in samples
        ]
        blank = np.full((64, 64, 3), 255, np.uint8)
        kept.array("pictures", np.stack([blank if picture is None else picture for picture in pictures]))
        drawn = keep_figures(
            kept,
            [
                *[figures.cards(pick(tables["concepts"], style=style), pictures, style) for style in STYLES],
                figures.consistency(tables["concepts"], tables["recovered"], tables["correlations"]),
                figures.baselines(tables["summary"]),
                figures.dictionaries(tables["dictionaries"]),
                figures.layers(tables["layers"]),
            ],
        )
        said = logit_check(opened["tuned"], states["tuned"])
    return Study(
        "What tuning did to concepts",
        kept.path,
        intro(len(samples), k, what, site),
        found(tables, said),
        claims(tables),
        drawn,
        tables,
    )


def intro(n: int, k: int, what: str, site: str) -> tuple[str, ...]:
    return (
        f"The states (site {site}) from which the organism predicts {what}, over {n} pictures, fall into {k} concepts (k-means). Two adapters "
        "then taught it to talk of colours or of the place. A concept's shift is the mean move of its samples; recovery asks whether the "
        f"shifted concept is one the tuned model has ({SOURCE}).",
        "Shifts are estimated on one half of the pictures and judged on concepts learnt from the other half, in both directions, against one "
        "shift for all concepts, other concepts' shifts, and random vectors of the same length.",
    )


def found(tables: dict[str, pd.DataFrame], said: float) -> list[str]:
    """What came out, with n and intervals."""
    sentences = []
    for style in STYLES:
        rows = pick(tables["summary"], style=style, measure="cosine_gain")
        own, common = (
            pick(rows, kind="shift", what="mean").iloc[0],
            pick(rows, kind="global", what="own minus this").iloc[0],
        )
        words = pick(tables["summary"], style=style, kind="shift", what="mean")
        before, after = (pick(words, measure=f"words_{when}").iloc[0]["mean"] for when in ("before", "after"))
        sentences.append(
            f"{style.capitalize()}: a concept's own shift brings it {number(own['mean'])} (cosine) closer to its partner in the tuned model "
            f"({_interval(own)}), {number(common['mean'])} more than one shift for all ({_interval(common)}); words in common with the "
            f"partner go from {before:.0f} to {after:.0f} %."
        )
    for against, name in (("consistency", "consistency"), ("above", "length of the shift above its noise")):
        row = pick(tables["correlations"], style="both", against=against, kind="pearson").iloc[0]
        rank = pick(tables["correlations"], style="both", against=against, kind="spearman").iloc[0]
        sentences.append(
            f"Recovery against {name}: Pearson r = {number(row['value'])} ({_interval(row)}), Spearman ρ = {number(rank['value'])} "
            f"({_interval(rank)}; permutation p {'< 0.001' if rank['p'] < 1e-3 else format(rank['p'], '= .3f')}). Concepts of one model are not independent: read these as descriptions."
        )
    best = tables["dictionaries"].set_index("method")
    sentences.append(
        "Share of a concept's words that are true of a picture it was not learnt from: "
        + ", ".join(
            f"{method} {best.loc[method, 'true_mean']:.2f} (random words {best.loc[method, 'random_mean']:.2f})"
            for method in best.index
        )
        + f"; n = {int(best['true_n'].max())} pictures."
    )
    sentences.append(
        f"Check: in {100 * said:.1f} % of the captions the state read has the word's token as its largest logit."
    )
    return sentences


def claims(tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """The papers' claims and our control. A correlation over so few concepts has to show in values and in ranks to count."""
    rows = []
    for style in STYLES:
        gains = pick(tables["summary"], style=style, measure="cosine_gain")
        own = pick(gains, kind="shift", what="mean").iloc[0]
        common = pick(gains, kind="global", what="own minus this").iloc[0]
        for what, source, row, name in (
            (f"Adding its shift leads a concept to one of the tuned model ({style})", SOURCE, own, "cosine gain on held-out pictures"),
            ("… more than one shift for all concepts does", "our control", common, "difference of cosine gains"),
        ):  # fmt: skip
            rows.append(Claim(what, source, f"{name} {number(row['mean'])} ({_interval(row)})", _sign(row)))
    both = pick(tables["correlations"], style="both", against="consistency").set_index("kind")
    told = [
        f"{name} {number(both.loc[kind, 'value'])} ({_interval(both.loc[kind])})"
        for kind, name in (("pearson", "Pearson r"), ("spearman", "Spearman ρ"))
    ]
    signs = {_sign(both.loc[kind]) for kind in ("pearson", "spearman")}
    holds = signs.pop() if len(signs) == 1 else None
    rows.append(Claim("Concepts whose samples shift alike are recovered better", SOURCE, "; ".join(told), holds))
    first, last = tables["layers"].iloc[0], tables["layers"].iloc[-1]
    here = " and ".join(
        f"{row['true_mean']:.2f} (95 %: {row['true_low']:.2f} to {row['true_high']:.2f}) {where}"
        for row, where in ((first, "at the first block"), (last, "at the last norm"))
    )
    apart = True if last["true_low"] > first["true_high"] else False if last["true_high"] < first["true_low"] else None
    rows.append(
        Claim(
            "Concepts come into words in the last layers",
            "arXiv 2406.08074, layer sweep",
            f"true words {here}, n = {int(last['true_n'])} pictures",
            apart,
        )
    )
    return rows


def _sign(row) -> bool | None:
    if not (np.isfinite(row["low"]) and np.isfinite(row["high"])) or row["low"] <= 0 <= row["high"]:
        return None
    return bool(row["low"] > 0)


def _interval(row) -> str:
    return f"95 %: {number(row['low'])} to {number(row['high'])}, n = {int(row['n'])} concepts"


def _keep(kept: Run, style: str, pair: TunedConcepts, opened: dict, site: str, words: Sequence[str]) -> None:
    """The dictionaries and the shift, with their cards, among the run's arrays."""
    if not kept.writes:
        return
    words = [words] if isinstance(words, str) else list(words)
    hashes = {name: opened[name].fingerprint() for name in ("tuned", style)}
    common = {"site": site, "words": words, "n": len(pair.index)}
    for name, dictionary in (("tuned", pair.before), (style, pair.after)):
        card = {"model": opened[name].name, "model_hash": hashes[name], **common}
        save_dictionary(kept.path / "arrays" / f"{style}-{'before' if name == 'tuned' else 'after'}", dictionary, card)
    card = {
        "model": opened[style].name,
        "model_hash": hashes[style],
        "from": opened["tuned"].name,
        "from_hash": hashes["tuned"],
        **common,
    }
    card |= {"method": pair.before.method, "seed": pair.before.seed}
    save_shift(kept.path / "arrays" / f"{style}-shift", pair.shift, card)

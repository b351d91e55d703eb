"""Experiment: what did tuning do to concepts? The base organism against its colour and its place style, on the same pictures.

Source of the claims: Khayatan et al. (arXiv 2501.03012): adding a concept's shift leads to a concept of the tuned model, the more so the
more its samples agree on it (LLaVA-1.5-7B tuned on captions about places, colours and sentiments).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import pearsonr

from ..probes.concept_files import save_dictionary, save_shift
from ..probes.concepts import METHODS, decompose, quality_table
from ..probes.extraction import WordStates, extract, logit_check
from ..probes.grounding import ground_words, overlap_score, random_words
from ..probes.grounding_scores import true_words, word_scores
from ..probes.intervals import mean_over_samples, powers
from ..probes.word_concepts import TunedConcepts, concepts_of, tuned_concepts
from ..scenes.benchmarks import caption_set
from ..scenes.errors import UserError
from ..scenes.words import PLURALS
from ..scenes.world import CATEGORIES
from .correlation import FEWEST, correlate
from .figures import concepts as figures
from .figures.rows import pick
from .lineage import check_organism
from .options import open_model
from .page import Claim, number
from .run import Run
from .study import Study, keep_figures

__all__ = ["concepts_of", "run", "study"]

STYLES = ("colour", "place")
SCENES, CONCEPTS, SEEDS = 300, 10, (0, 1, 2)
THINGS = (*CATEGORIES, *PLURALS.values())
"""The first thing a caption names: every caption has one, and concepts are kinds of things and places."""

MEASURES = (
    "cosine_gain",
    "distance_share",
    "words_gain",
    "images_gain",
    "words_before",
    "words_after",
    "images_before",
    "images_after",
)
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
        else list(data)[:limit]
    )
    words = word or THINGS
    config = {
        "limit": limit,
        "seed": seed,
        "word": "the first thing named" if word is None else word,
        "site": site,
        "k": k,
    }
    with Run.create("concepts", config, root) as kept:
        opened = {name: open_model(f"organism/{name}", device=device, dtype=dtype) for name in ("tuned", *STYLES)}
        states = {}
        for name, vlm in opened.items():
            states[name] = extract(vlm, samples, words, sites=site, batch_size=batch_size)
            kept.log(f"{name}: the word is in {len(states[name])} of {states[name].seen} captions")
        fewest = min(len(set(states["tuned"].index.tolist()) & set(states[style].index.tolist())) for style in STYLES)
        k = k or int(np.clip(fewest // 12, 2, CONCEPTS))
        pairs = {
            style: tuned_concepts(opened["tuned"], opened[style], states["tuned"], states[style], k=k, n_images=max(1, fewest // (2 * k)), seed=seed)
            for style in STYLES
        }  # fmt: skip
        tables = {
            "concepts": pd.concat(
                [concept_rows(pair).assign(style=style) for style, pair in pairs.items()], ignore_index=True
            ),
            "recovered": pd.concat(
                [pair.recovered.assign(style=style) for style, pair in pairs.items()], ignore_index=True
            ),
            "dictionaries": dictionaries(opened["tuned"], states["tuned"], samples, k, seed),
        }
        tables["summary"] = summary(tables["recovered"])
        tables["correlations"] = correlations(tables["concepts"], tables["recovered"], seed)
        for name, table in tables.items():
            kept.table(name, table)
        for style, pair in pairs.items():
            _keep(kept, style, pair, opened, site, words)
        pictures = [
            np.asarray(sample.images[0].convert("RGB").resize((64, 64))) if sample.images else None
            for sample in samples
        ]
        drawn = keep_figures(
            kept,
            [
                *[figures.cards(pair, pictures, style) for style, pair in pairs.items()],
                figures.consistency(tables["concepts"], tables["recovered"], tables["correlations"]),
                figures.baselines(tables["summary"]),
                figures.dictionaries(tables["dictionaries"]),
            ],
        )
        said = logit_check(opened["tuned"], states["tuned"]) if site == "final" else float("nan")
    return Study(
        "What tuning did to concepts",
        kept.path,
        intro(len(samples), k),
        found(tables, said),
        claims(tables),
        drawn,
        tables,
    )


def intro(n: int, k: int) -> tuple[str, ...]:
    return (
        f"The states from which the organism predicts the first thing it names, over {n} pictures, fall into {k} concepts (k-means after the "
        "final norm). Two adapters then taught it to talk of colours or of the place. A concept's shift is the mean move of its samples; "
        f"recovery asks whether the shifted concept is one the tuned model has ({SOURCE}).",
        "Shifts are estimated on one half of the pictures and judged on concepts learnt from the other half, in both directions, against one "
        "shift for all concepts, other concepts' shifts, and random vectors of the same length.",
    )


def concept_rows(pair: TunedConcepts) -> pd.DataFrame:
    """One row a concept: its shift's statistics and its words before, shifted and after."""
    words = {f"words_{when}": [", ".join(row) for row in rows] for when, rows in pair.words.items()}
    return pair.shifts.assign(partner=pair.partner.tolist(), **words)


def summary(recovered: pd.DataFrame) -> pd.DataFrame:
    """Mean of each measure over concepts (halves averaged first), by style and kind of shift, and of the paired difference of the
    own shift to each kind; Student's interval over concepts."""
    gains = {f"{what}_gain": recovered[f"{what}_after"] - recovered[f"{what}_before"] for what in ("words", "images")}
    each = recovered.assign(**gains).groupby(["style", "kind", "concept"], sort=False)[list(MEASURES)].mean()
    rows = []
    for (style, kind), group in each.groupby(["style", "kind"], sort=False):
        own = each.loc[style, "shift"]
        for measure in MEASURES:
            values = group.droplevel(["style", "kind"])[measure]
            for what, numbers in (("mean", values), ("own minus this", own[measure] - values)):
                estimate = mean_over_samples(powers(torch.tensor(numbers.to_numpy(float))).sum(0))
                rows.append({
                    "style": style, "kind": kind, "measure": measure, "what": what, "mean": float(estimate.mean),
                    "low": float(estimate.low), "high": float(estimate.high), "n": int(estimate.n),
                })  # fmt: skip
    return pd.DataFrame(rows)


def correlations(concepts: pd.DataFrame, recovered: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Over concepts, recovery (held-out cosine gain of the own shift) against consistency and against the shift's length above its
    noise; by style and for both together. Pearson with Fisher's interval, Spearman with a bootstrap's."""
    gain = pick(recovered, kind="shift").groupby(["style", "concept"])["cosine_gain"].mean().rename("gain")
    joined = concepts.join(gain, on=["style", "concept"])
    rows = []
    for style in (*STYLES, "both"):
        of = joined if style == "both" else pick(joined, style=style)
        for against in ("consistency", "above"):
            use = of[np.isfinite(of[against]) & np.isfinite(of["gain"])]
            told = {"style": style, "against": against, "n": len(use)}
            rank = correlate(use[against], use["gain"], seed=seed)
            rows.append(
                told | {"kind": "spearman", "value": rank.value, "low": rank.low, "high": rank.high, "p": rank.p}
            )
            straight = dict.fromkeys(("value", "low", "high", "p"), np.nan)
            if len(use) >= FEWEST and use[against].nunique() > 1 and use["gain"].nunique() > 1:
                result = pearsonr(use[against], use["gain"])
                low, high = result.confidence_interval()
                straight = {"value": result.statistic, "low": low, "high": high, "p": result.pvalue}
            rows.append(told | {"kind": "pearson"} | straight)
    return pd.DataFrame(rows)


def dictionaries(vlm, states: WordStates, samples: Sequence, k: int, seed: int = 0) -> pd.DataFrame:
    """One row a method: `quality_table`, overlap of words between concepts, and on the half of the samples it was not learnt from
    the share of the active concept's words that are true of the picture, with that of random directions' words."""
    site = next(iter(states.states))
    Z = states[site]
    learnt, judged = torch.arange(0, len(Z), 2), torch.arange(1, len(Z), 2)
    if len(learnt) < k:
        raise UserError(
            f"{len(Z)} samples make halves of {len(learnt)}, fewer than {k} concepts: give more samples, or a smaller k"
        )
    truths = [true_words(samples[i]) for i in states.index[judged].tolist()]
    control = random_words(vlm, k, seed=seed)
    table = quality_table(Z, k, seeds=SEEDS).set_index("method")
    for method in METHODS:
        dictionary = decompose(Z[learnt], k, method=method, seed=seed)
        words, codes = ground_words(vlm, dictionary.directions()), dictionary.encode(Z[judged])
        table.loc[method, "overlap"] = overlap_score(words)
        for name, told in (("true", words), ("random", control)):
            estimate = mean_over_samples(powers(word_scores(told, codes, truths)).sum(0))
            for what in ("mean", "low", "high", "n"):
                table.loc[method, f"{name}_{what}"] = float(getattr(estimate, what))
    return table.reset_index()


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
            f"({_interval(rank)}; permutation p = {rank['p']:.3f}). Concepts of one model are not independent: read these as descriptions."
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
    if np.isfinite(said):
        sentences.append(
            f"Check: in {100 * said:.1f} % of the captions the state read has the word's token as its largest logit."
        )
    return sentences


def claims(tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """The paper's claims, each style by itself, and our control."""
    rows = []
    for style in STYLES:
        gains = pick(tables["summary"], style=style, measure="cosine_gain")
        own, common = (
            pick(gains, kind="shift", what="mean").iloc[0],
            pick(gains, kind="global", what="own minus this").iloc[0],
        )
        line = pick(tables["correlations"], style=style, against="consistency", kind="pearson").iloc[0]
        for what, source, row, name in (
            (
                f"Adding its shift leads a concept to one of the tuned model ({style})",
                SOURCE,
                own,
                "cosine gain on held-out pictures",
            ),
            ("… more than one shift for all concepts does", "our control", common, "difference of cosine gains"),
            (f"Concepts whose samples shift alike are recovered better ({style})", SOURCE, line, "Pearson r"),
        ):
            rows.append(
                Claim(
                    what,
                    source,
                    f"{name} {number(row['mean'] if 'mean' in row else row['value'])} ({_interval(row)})",
                    _sign(row),
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

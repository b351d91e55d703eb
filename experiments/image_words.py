"""Experiment: what do visual tokens say when they are read as words, and do they say it where it is true?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..models import VLM, open_vlm
from ..probes.intervals import mean_over_samples, powers
from ..probes.measure import measure
from ..probes.patch_words import PatchWords, batch_patch_words, patch_words
from ..probes.vocabulary_view import VocabularyView
from ..scenes.benchmarks import scene_samples
from ..scenes.errors import UserError
from ..scenes.readers.scene_data import SceneData
from ..scenes.render import render
from ..scenes.sample import BadSample, Sample
from ..scenes.words import PLURALS, with_article
from .figures import vocabulary as figures
from .figures.rows import pick
from .headlines_words import best_hits
from .lineage import is_organism
from .options import open_model
from .page import Claim, number
from .run import Run
from .study import Study, keep_figures

SCENES, LOCATED, PICTURES = 120, 48, 2
"""Scenes measured, scenes whose tokens are held against the things they lie on, pictures drawn."""
STAGES = ("organism/aligned", "organism/tuned")
BATCH = 16
SIDE = 256
"""Pixels at which a rendered scene is drawn again for people."""


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, growth=None,
) -> Path:  # fmt: skip
    """Reads a model's visual tokens as words and writes a run; returns its folder. The bundled model is compared with itself
    before it learnt to answer about pictures (`organism/aligned`), and its tokens with the things they lie on. Raises UserError."""
    names = STAGES if model == "organism" else (model,)
    vlms = [open_model(name, device=device, dtype=dtype) for name in names]
    return study(vlms, data, limit=limit, seed=seed, root=root, batch_size=batch_size).path


def study(
    vlms: Sequence[VLM] | VLM | None = None, data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32,
) -> Study:  # fmt: skip
    """`run` for models that are open (default: the bundled ones), with what the report needs. The last is the one drawn."""
    if vlms is None:
        vlms = [open_vlm(name, device=device, dtype=dtype) for name in STAGES]
    vlms = [vlms] if isinstance(vlms, VLM) else list(vlms)
    scenes = data is None or data == "scenes"
    samples = SceneData(kind="description", n=limit or SCENES, split="test", seed=seed) if scenes else data
    shown = _first(samples, PICTURES)
    drawn_on = vlms[-1]
    layers = sorted({round(x) for x in np.linspace(0, drawn_on.anatomy.n_layers, 4)})
    config = {"models": [vlm.name for vlm in vlms], "limit": limit, "seed": seed}
    with Run.create("image_words", config, root) as kept:
        words, located = [], []
        for vlm in vlms:
            probe = VocabularyView(vlm.tokenizer)
            part = vlm.name.replace("/", "-")
            table = measure(
                vlm,
                samples,
                [probe],
                run=kept,
                part=part,
                batch_size=batch_size,
                limit=limit,
                progress=False,
                seed=seed,
            ).tables[probe.name]
            words.append(table.assign(stage=vlm.name))
            if scenes and is_organism(vlm):
                some = scene_samples(min(limit or LOCATED, LOCATED), "test", seed=seed)
                located.append(grounded(vlm, list(some)).assign(stage=vlm.name))
            kept.log(f"{vlm.name}: {_told(table)}")
        tables = {"words": pd.concat(words, ignore_index=True)}
        own = words[-1]
        made = [figure for function in figures.FIGURES if (figure := function(own)) is not None]
        if located:
            tables["grounded"] = pd.concat(located, ignore_index=True)
            made.append(figures.grounded(tables["grounded"]))
        for i, sample in enumerate(shown):
            figure = drawn(f"patches_{i}", drawn_on, sample, layers)
            made += [figure] if figure is not None else []
        for name, table in tables.items():
            kept.table(name, table)
        pictures = keep_figures(kept, made)
    found = [f"{vlm.name}: {_told(table)}" for vlm, table in zip(vlms, words, strict=True)]
    found += (
        [f"{stage}: {_placed(rows)}" for stage, rows in tables["grounded"].groupby("stage", sort=False)]
        if located
        else []
    )
    intro = (
        "Every visual token is put through the final norm and the unembedding, at the decoder's input and behind every block, and the word it "
        "comes out as is held against the picture: against the answer, against answers to other pictures, and, where the world is known, against the thing it lies on.",
    )  # fmt: skip
    return Study("What image tokens say", kept.path, intro, found, claims(tables.get("grounded")), pictures, tables)


def grounded(vlm, samples: Sequence[Sample]) -> pd.DataFrame:
    """Of the visual tokens whose middle lies on a thing of a rendered scene (the nearest one), the share that decode to its
    category ("there"), and the share of all tokens of the picture that do ("anywhere"); by layer, for its colour too. Means
    over scenes with Student's interval."""
    n_states, values = vlm.anatomy.n_layers + 1, []
    for start in range(0, len(samples), BATCH):
        some = samples[start : start + BATCH]
        for sample, views in zip(some, batch_patch_words(vlm, some, range(n_states)), strict=True):
            on = _things_under(sample, views[0].boxes)
            counted = [(i, thing) for i, thing in enumerate(on) if thing is not None]
            values.append(torch.full((2, 2, n_states), torch.nan))
            for said, wanted in enumerate((_names, lambda thing: (thing.colour,))):
                for layer, view in enumerate(views if counted else ()):
                    there = [view.words[i] in wanted(thing) for i, thing in counted]
                    shares = {t: np.mean([word in wanted(t) for word in view.words]) for _, t in counted}
                    anywhere = [shares[thing] for _, thing in counted]
                    values[-1][said, :, layer] = torch.tensor([np.mean(there), np.mean(anywhere)])
    found = mean_over_samples(powers(torch.stack(values)).sum(0))
    return pd.DataFrame([
        {"said": said, "where": where, "layer": layer, **{k: float(getattr(found, k)[s, w, layer]) for k in ("mean", "low", "high")}, "n": int(found.n[s, w, layer])}
        for s, said in enumerate(("category", "colour")) for w, where in enumerate(("there", "anywhere")) for layer in range(n_states)
    ])  # fmt: skip


def _names(thing) -> tuple[str, str]:
    return thing.category, PLURALS[thing.category]


def _things_under(sample: Sample, boxes) -> list:
    """For each box (pixels of the sample's picture) the nearest thing whose own box holds its middle, or None."""
    middles = (np.asarray(boxes)[:, :2] + np.asarray(boxes)[:, 2:]) / 2 / sample.images[0].size
    found = []
    for x, y in middles:
        here = [t for t in sample.truth["scene"].things if t.box[0] <= x <= t.box[2] and t.box[1] <= y <= t.box[3]]
        found.append(min(here, key=lambda t: t.depth) if here else None)
    return found


def drawn(name: str, vlm, sample: Sample, layers: Sequence[int]):
    """The figure of one sample's first picture, a rendered scene drawn anew in more pixels."""
    views: list[PatchWords] = patch_words(vlm, sample, layers)
    scene, picture = sample.truth.get("scene") if sample.truth else None, sample.images[0].convert("RGB")
    if scene is not None:
        image, on = np.asarray(render(scene, SIDE).pil.convert("RGB")), _things_under(sample, views[0].boxes)
        told = f"a {scene.place} with {', '.join(with_article(f'{t.colour} {t.category}') for t in scene.things)}"
        says = [
            [i for i, t in enumerate(on) if t is not None and view.words[i] in (*_names(t), t.colour)] for view in views
        ]
        frames = "tokens that say the name or the colour of the thing they lie on"
    else:
        image, told = np.asarray(picture), f"sample {sample.id}"
        answer = set(re.findall(r"\w{3,}", (sample.answer or "").lower()))
        says = [[i for i, word in enumerate(view.words) if word.lower() in answer] for view in views]
        says = [[i for i in chosen if np.isfinite(views[0].boxes[i]).all()] for chosen in says]
        frames = "tokens that say a word of the answer"
    scale = [image.shape[1] / picture.width, image.shape[0] / picture.height] * 2
    views = [replace(view, boxes=(np.asarray(view.boxes) * scale).tolist()) for view in views]
    return figures.patches(name, image, views, says, told, frames)


def _first(samples, n: int) -> list[Sample]:
    if iter(samples) is samples:
        raise UserError("samples that can be read once only are not enough here: give a list or a reader")
    good = (one for one in samples if not isinstance(one, BadSample) and one.images)
    return list(islice(good, n))


def _told(table: pd.DataFrame) -> str:
    """The layer at which visual tokens say most of their own answer, against others'."""
    if (best_found := best_hits(table)) is None:
        return "no answers to hold visual tokens against."
    best, own, others = best_found
    return (
        f"most true words at layer {int(best['layer'])}: {number(own)} of visual tokens say a content word of their own answer, {number(others)} one of another "
        f"picture's (difference {number(best['mean'])}, 95 %: {number(best['low'])} to {number(best['high'])}; n = {int(best['n'])})."
    )  # fmt: skip


def _placed(rows: pd.DataFrame) -> str:
    there = pick(rows, said="category", where="there")
    best = there.loc[there["mean"].idxmax()]
    anywhere = pick(rows, said="category", where="anywhere", layer=best["layer"]).iloc[0]
    return (
        f"tokens on a thing name it most often at layer {int(best['layer'])}: {number(best['mean'])} ({number(best['low'])} to {number(best['high'])}), against "
        f"{number(anywhere['mean'])} of tokens anywhere in the picture (n = {int(best['n'])} scenes)."
    )


def claims(located: pd.DataFrame | None) -> list[Claim]:
    """Whether the tokens on a thing come to say its name on their way up, in the last model."""
    if located is None:
        return []
    rows = pick(located, stage=located["stage"].iloc[-1], said="category", where="there").sort_values("layer")
    first, late = rows.iloc[0], rows[rows["layer"] >= rows["layer"].max() / 2]
    last = late.loc[late["mean"].idxmax()]
    holds = True if last["low"] > first["high"] else False if last["high"] < first["low"] else None
    here = (
        f"{number(first['mean'])} [{number(first['low'])} to {number(first['high'])}] of them at the input, at most {number(last['mean'])} "
        f"[{number(last['low'])} to {number(last['high'])}] from the middle on (n = {int(last['n'])} scenes)."
    )
    return [Claim("Visual tokens on a thing come to say its name in later layers", "arXiv 2410.07149", here, holds)]

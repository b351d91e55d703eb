"""Experiment: where do the encoder's outliers sit, does the decoder look at them, and does it when it makes things up?

Source of the claims: Gong et al., "DAMRO" (EMNLP 2024, arXiv 2410.04514). The release has no analysis; definitions are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..models.geometry import shown_window
from ..probes.logistic import auc_interval, logistic_regression
from ..probes.measure import measure
from ..probes.outlier_maps import batch_maps, looked_at, pictures_of
from ..probes.outlier_overlap import OutlierOverlap
from ..probes.outlier_words import DIAGNOSTICS, Mention, OutlierWords
from ..scenes.benchmarks import description_set
from ..scenes.errors import UserError
from ..scenes.language import mentions
from ..scenes.sample import BadSample, Sample
from .figures import outliers as figures
from .page import Claim, number
from .run import Run
from .study import Study, keep_figures

SCENES, CAPTIONS, PICTURES = 100, 200, 2
"""Scenes measured, scenes captioned for the words, pictures shown, where nothing else is asked."""

TOLD = ("overlap", "lift", "spearman", "image_share", "entropy")
"""Diagnostics that are tried as detectors of words that are made up."""

SOURCE = "arXiv 2410.04514"


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, growth=None, **options,
) -> Path:  # fmt: skip
    """Measures a model on scenes, or on samples of its own, and writes a run; returns its folder.

    data: samples, or what `open_samples` takes. The part on made-up words is run where the truth is known, on rendered
    scenes. options: as in `study`. growth is not used. Raises UserError.
    """
    from .options import open_model, open_samples

    if isinstance(data, str) and data != "scenes":
        data = open_samples(data, limit=limit, seed=seed)
    vlm = open_model(model, device=device, dtype=dtype) if isinstance(model, str) else model
    return study(vlm, data, limit=limit, seed=seed, root=root, batch_size=batch_size, **options).path


def study(
    vlm, data: Iterable[Sample] | str | None = None, *, limit: int | None = None, seed: int = 0, root: str | Path = "runs",
    batch_size: int = 32, captions: int | None = None, score: str | None = None, mode: str = "headmean",
    rule: str = "ratio", value: float | None = None, max_new_tokens: int = 80,
) -> Study:  # fmt: skip
    """`run` for an open model, with what the report needs.

    captions: how many scenes are captioned for the words (default: twice `limit`, at most 200). score, mode, rule, value:
    see `OutlierOverlap`; a picture of fewer than 240 tokens gets 4 outliers unless told otherwise, so that overlap can be
    told from chance.
    """
    known = data is None or data == "scenes"
    samples = description_set(limit or SCENES, "test", seed) if known else data
    samples = samples if isinstance(samples, Sequence) else list(islice(samples, limit))
    if rule == "ratio" and value is None:
        rule, value = _enough(vlm, samples, rule)
    how = {"score": score, "mode": mode, "rule": rule, "value": value}
    asked = {"limit": limit, "seed": seed, "captions": captions, "model": vlm.name, "max_new_tokens": max_new_tokens}
    with Run.create("outliers", asked | how, root) as kept:
        probe = OutlierOverlap(**how)
        options = {"run": kept, "batch_size": batch_size, "limit": limit, "progress": False, "seed": seed}
        tables = {"overlap": measure(vlm, samples, [probe], **options).tables["outlier_overlap"]}
        shown = [figure for sample in _shown(samples) if (figure := picture_figure(vlm, sample, probe)) is not None]
        if known:
            n = captions or min(CAPTIONS, 2 * (limit or CAPTIONS))
            words = caption_words(vlm, n, seed, batch_size, max_new_tokens, how, options)
            tables |= {"words": words, "detectors": detectors(words, seed)}
            kept.table("words", words)
            kept.table("detectors", tables["detectors"])
        every = [*shown, *(figure for draw in figures.FIGURES if (figure := draw(tables["overlap"])) is not None)]
        if known and len(tables["detectors"]):
            every.append(figures.detectors(tables["detectors"]))
        drawn = keep_figures(kept, every)
    return Study(
        "Where do the outliers sit?", kept.path, INTRO, found(tables), [*figures.claims(tables["overlap"]), *claims(tables)],
        drawn, tables,
    )  # fmt: skip


INTRO = (
    "Vision encoders pile attention on a few patches, often of the background, and a language model that looks there for "
    "things that are not there would make them up (Gong et al., arXiv 2410.04514). Encoder scores and decoder attention are "
    "laid over the pictures; their overlap is set against chance, and against the outliers of another picture, which tells "
    "what the mere place of outliers explains.",
)


def _enough(vlm, samples: Sequence, rule: str) -> tuple[str, float | None]:
    """One outlier in a picture is too few to tell overlap from chance: small pictures get four."""
    first = next((s for s in samples if isinstance(s, Sample) and s.images), None)
    if first is None:
        raise UserError("no sample has a picture: outliers are patches of pictures")
    seen = vlm.prepare([first.images], [first.prompt]).spans.visual.sum()
    return ("fixed", 4 * vlm.anatomy.merge**2 / (2 if vlm.anatomy.merge > 1 else 1)) if 8 < seen < 240 else (rule, None)


def _shown(samples: Sequence) -> list[Sample]:
    good = (s for s in samples if not isinstance(s, BadSample) and len(s.images) == 1)
    return list(islice(good, PICTURES))


# -- pictures ----------------------------------------------------------------------------------------------------------


def picture_figure(vlm, sample: Sample, probe: OutlierOverlap):
    """Encoder scores and decoder attention over one picture, outliers framed; None where tokens have no known place."""
    probe.attach(vlm.anatomy)
    inputs = vlm.prepare_samples([sample])
    with torch.no_grad():
        trace = vlm.trace(inputs, probe.sites)
    (one,) = looked_at(pictures_of(trace, inputs, vlm.anatomy, probe._setting), probe._setting)
    first = torch.zeros(1, 1, dtype=torch.long, device=vlm.device)
    maps = next(batch_maps(trace, [one], vlm.anatomy, first, probe.few))
    n_layers = len(probe._layers)
    attention = maps.attention[0, -n_layers - 1 :, 0].float().cpu()  # each layer's mean over heads, then the summary
    boxes = _boxes(vlm, inputs, one, sample)
    if boxes is None:
        return None
    image = np.asarray(sample.images[0].convert("RGB"))
    return figures.pictures(
        image,
        boxes,
        one.scores.float().cpu(),
        one.chosen.cpu(),
        attention,
        probe._layers,
        probe._setting.score,
        sample.id,
    )


def _boxes(vlm, inputs, one, sample: Sample) -> np.ndarray | None:
    """The candidates' boxes in the picture's own pixels."""
    boxes = one.picture.boxes[one.at.to(one.picture.boxes.device)].cpu()
    if not torch.isfinite(boxes).all():
        return None
    if one.picture.positions is None or one.picture.reads is not None:  # in pixels of what the model is shown
        height, width = inputs.tensors["pixel_values"].shape[-2:]
        x0, y0, x1, y1 = shown_window(vlm.processor, *sample.images[0].size)
        scale = torch.tensor([(x1 - x0) / width, (y1 - y0) / height] * 2)
        boxes = boxes * scale + torch.tensor([x0, y0] * 2)
    return boxes.numpy()


# -- words -------------------------------------------------------------------------------------------------------------


def caption_words(
    vlm, n: int, seed: int, batch_size: int, max_new_tokens: int, how: dict, options: dict
) -> pd.DataFrame:
    """Describes n scenes, then reads the descriptions once more as answers, at every thing they mention."""
    scenes = description_set(n, "test", seed)
    told = []
    for start in range(0, n, batch_size):
        some = scenes[start : start + batch_size]
        inputs = vlm.prepare([s.images for s in some], [s.prompt for s in some])
        said = vlm.generate(inputs, max_new_tokens=max_new_tokens)
        told += [replace(sample, answer=text or ".") for sample, text in zip(some, said, strict=True)]
    found = {sample.id: mentioned(vlm.tokenizer, sample.answer, sample.truth["scene"].categories()) for sample in told}
    if not any(found.values()):
        return pd.DataFrame(columns=["sample", "picture", "token", "position", "word", "grounded", *DIAGNOSTICS])
    probe = OutlierWords(found, **how)
    return measure(vlm, told, [probe], **options | {"part": "words", "limit": None}).tables["outlier_words"]


def mentioned(tokenizer, answer: str, present: Iterable[str]) -> list[Mention]:
    """The things an answer mentions, each with the token that begins its word, from the tokens' own text."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    ends = [len(tokenizer.decode(ids[: i + 1]).rstrip()) for i in range(len(ids))]
    written, present, found = tokenizer.decode(ids), set(present), []
    start = 0
    for word in written.split():
        start = written.index(word, start)
        token = next((i for i, end in enumerate(ends) if end > start), None)
        found += [Mention(token, thing, thing in present) for thing in mentions(word) if token is not None]
        start += len(word)
    return found


def detectors(words: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """How well each diagnostic tells words that are made up from those that are not.

    auc: probability that a made-up word has the larger value; interval by bootstrap over pictures. Log odds of being made
    up for one standard deviation: alone, given the position in the caption, and given position and word; intervals by
    cluster-robust standard errors, pictures as clusters. "position" itself, and "random", a number drawn for each word, are
    the controls. Empty where all words, or none, are made up.
    """
    made_up = ~words["grounded"].astype(bool).to_numpy()
    if made_up.all() or not made_up.any():
        return pd.DataFrame(
            columns=["diagnostic", "given", "auc", "auc_low", "auc_high", "mean", "low", "high", "p", "n", "made_up"]
        )
    clusters = words["picture"].to_numpy()
    position = _scaled(words["position"].to_numpy(float))
    common = [word for word, count in words["word"].value_counts().items() if count >= 10][:-1]
    dummies = np.column_stack([np.zeros((len(words), 0)), *[(words["word"] == w).to_numpy(float) for w in common]])
    values = {name: words[name].to_numpy(float) for name in TOLD}
    values |= {
        "position": words["position"].to_numpy(float),
        "random": np.random.default_rng(seed).normal(size=len(words)),
    }
    rows = []
    for name, value in values.items():
        have = np.isfinite(value)
        area = auc_interval(value[have], made_up[have], clusters[have], seed=seed)
        given = {"nothing": []} if name == "position" else {
            "nothing": [], "position": [position[:, None]], "position and word": [position[:, None], dummies],
        }  # fmt: skip
        for what, more in given.items():
            x = np.column_stack([_scaled(value[have])[:, None], *[part[have] for part in more]])
            ridge = 1.0 if what == "position and word" else 1e-6  # a word that is always made up has no finite odds
            one = logistic_regression(x, made_up[have].astype(float), clusters[have], ridge=ridge)[0]
            rows.append({
                "diagnostic": name, "given": what, "auc": area[0], "auc_low": area[1], "auc_high": area[2],
                **one._asdict(), "n": int(have.sum()), "made_up": int(made_up[have].sum()),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _scaled(values: np.ndarray) -> np.ndarray:
    spread = np.nanstd(values)
    return (values - np.nanmean(values)) / (spread if spread > 0 else 1.0)


# -- what it says ------------------------------------------------------------------------------------------------------


def found(tables: dict[str, pd.DataFrame]) -> list[str]:
    """What the tables say, with n and intervals."""
    told = figures.found(tables["overlap"])
    words = tables.get("words")
    if words is None:
        return [*told, "Words that are made up: not measured, the truth about these pictures is not known."]
    made_up = int((~words["grounded"].astype(bool)).sum()) if len(words) else 0
    told.append(f"{len(words)} object words in the captions, {made_up} of them made up.")
    for row in tables["detectors"].itertuples():
        if row.diagnostic in ("overlap", "image_share") and row.given == "position":
            told.append(
                f"{figures.NAMES[row.diagnostic]} as a detector of made-up words: AUC {number(row.auc)} ({number(row.auc_low)} to "
                f"{number(row.auc_high)}); given the position in the caption, log odds {number(row.mean)} a standard deviation "
                f"({number(row.low)} to {number(row.high)}, p = {row.p:.2g})."
            )
    return told


def claims(tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """Whether made-up words are those for which the model looks at outliers, given where they stand in the caption."""
    table = tables.get("detectors")
    if table is None or table.empty:
        return []
    row = table[(table["diagnostic"] == "overlap") & (table["given"] == "position")].iloc[0]
    holds = None if row["low"] <= 0 <= row["high"] else bool(row["mean"] > 0)
    here = (
        f"log odds {number(row['mean'])} a standard deviation of overlap, given the position ({number(row['low'])} to "
        f"{number(row['high'])}; AUC {number(row['auc'])}; {int(row['made_up'])} of {int(row['n'])} words made up)."
    )
    return [
        Claim(
            "Words are made up while the model looks at the outliers", f"{SOURCE}, section 3; measure ours", here, holds
        )
    ]

"""Experiment: do image and text tokens use the same weights, and does what they share carry the model alone?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from ..models import VLM, open_vlm
from ..models.linear_inputs import linear_sites
from ..probes.intervals import mean_over_samples, powers
from ..probes.measure import measure
from ..probes.subnetwork import KINDS, removal_mask, weights_removed
from ..probes.weight_overlap import WeightOverlap
from ..probes.weights import common_mask, drawn, pack, prune_mask, wanda_scores
from ..scenes.benchmarks import scene_samples
from ..scenes.errors import UserError
from ..scenes.sample import BadSample, Sample
from .figures import shared_weights as figures
from .figures.rows import pick
from .lineage import Stage, is_organism, score, seeing_questions, skill_rows
from .options import open_model
from .page import Claim, number
from .run import Run
from .study import Study, framed_scenes, keep_figures

CALIBRATION, HELD_OUT, QUESTIONS = 96, 48, 30
"""Samples the masks are made from, other samples the perplexity is of, questions of each kind."""
ABLATED = 0.015
"""Share of all weights that is removed from what both sets keep, and from anywhere."""


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, questions: int = QUESTIONS, growth=None,
) -> Path:  # fmt: skip
    """Measures overlap and removal and writes a run; returns its folder. Masks and perplexity are of different samples;
    magnitude and random remove as many weights of every matrix as the common subnetwork does. Skill is asked of the bundled
    family only, perplexity needs answers. Raises UserError."""
    vlm = open_model(model, device=device, dtype=dtype)
    return study(vlm, data, limit=limit, seed=seed, root=root, batch_size=batch_size, questions=questions).path


def study(
    vlm: VLM | None = None, data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, questions: int = QUESTIONS,
) -> Study:  # fmt: skip
    """`run` for a model that is open (default: the bundled one), with what the report needs."""
    vlm = open_vlm("organism", device=device, dtype=dtype) if vlm is None else vlm
    samples, held = _split(data, limit, seed)
    asked = seeing_questions(questions, seed=seed) if is_organism(vlm) else {}
    config = {"model": vlm.name, "limit": limit, "seed": seed, "questions": questions if asked else 0}
    with Run.create("shared_weights", config, root) as kept:
        some = {"run": kept, "batch_size": batch_size, "progress": False, "seed": seed}
        probe, on_noise = WeightOverlap(seed=seed), WeightOverlap(seed=seed)
        table = measure(vlm, samples, [probe], **some).tables[probe.name]
        noise = measure(vlm, Noise(samples, seed), [on_noise], part="noise", **some).tables[probe.name]
        tables = {"overlap": table, "noise": _noise_table(noise, probe.against(on_noise))}
        if held:
            tables["removal"], tables["ablation"] = _removals(vlm, probe, held, asked, batch_size, seed, kept)
        for name, one in tables.items():
            kept.table(name, one)
        made = [figures.overlap(table, tables["noise"]), figures.weight_use(table), figures.between_layers(table)]
        made += [figures.removal(tables["removal"])] if held else []
        pictures = keep_figures(kept, [figure for figure in made if figure is not None])
    intro = (
        f"Wanda masks of image tokens and of text tokens, from one pass over {len(samples)} samples, and the model with all removed but what both keep. "
        "The claim is that modalities share their weights; its test is against masks that share |W| alone, and against removing as many weights by size or at random.",
    )  # fmt: skip
    return Study("Shared weights", kept.path, intro, found(tables), claims(tables.get("removal")), pictures, tables)


@dataclass(frozen=True)
class Noise:
    """Samples with every picture replaced by noise of its size, the same each time."""

    samples: Sequence[Sample]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        for i, sample in enumerate(self.samples):
            rng = np.random.default_rng((self.seed, i))
            noise = (rng.integers(0, 256, (one.height, one.width, 3), np.uint8) for one in sample.images)
            yield replace(sample, images=tuple(Image.fromarray(one) for one in noise), truth={})


def _split(data, limit: int | None, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to make masks from, and others, with answers, for perplexity (none where there are no answers)."""
    n = limit or CALIBRATION
    if data is None or data == "scenes":
        samples = list(framed_scenes(n, seed))
        return samples, list(scene_samples(min(n, HELD_OUT), "val", seed=seed, frame="long"))
    most = None if limit is None else limit + min(limit, HELD_OUT)
    good = [x for x in islice(data, CALIBRATION + HELD_OUT if most is None else most) if not isinstance(x, BadSample)]
    if len(good) < 3:
        raise UserError(
            f"shared_weights needs 3 samples or more, to make masks from some and test them on others; got {len(good)}"
        )
    n = min(n, 2 * len(good) // 3 or 1)
    return good[:n], [sample for sample in good[n:] if sample.answer]


def _noise_table(noise: pd.DataFrame, against: pd.DataFrame) -> pd.DataFrame:
    own = pick(noise, pair="image-text").assign(pair="noise-text")
    return pd.concat([own, pick(against, pair="image-text").assign(pair="image-noise")], ignore_index=True)


def _removals(vlm, probe, held, asked, batch_size, seed, kept) -> tuple[pd.DataFrame, pd.DataFrame]:
    linears, (squares, n) = linear_sites(vlm.anatomy), probe.input_squares()
    plain, _ = _row(vlm, held, asked, batch_size, 0.0, "nothing", 0.0)
    rows, ablated = [plain], [plain]

    def without(masks, sparsity: float, kind: str) -> tuple[dict, torch.Tensor]:
        removed = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
        with weights_removed(linears, {site: pack(mask) for site, mask in masks.items()}):
            row, losses = _row(vlm, held, asked, batch_size, sparsity, kind, removed)
        kept.log(f"{kind} at {sparsity}: perplexity {row['perplexity']:.3f}, skill {row['skill']:.3f}")
        return row, losses

    for sparsity in probe.sparsity:
        common = None
        for kind in KINDS:  # the common subnetwork first
            masks = {
                site: removal_mask(linears[site].weight, s, n, sparsity=sparsity, kind=kind, seed=seed)
                for site, s in squares.items()
            }
            row, losses = without(masks, sparsity, kind)
            common = losses if common is None else common
            rows.append(row | _compared(losses - common))
    sparsity, generator = max(probe.sparsity), torch.Generator().manual_seed(seed)
    places: dict[str, dict] = {"of what both keep": {}, "of all": {}}
    for site, s in squares.items():
        weight = linears[site].weight
        both = ~common_mask([prune_mask(wanda_scores(weight, x, n), sparsity=sparsity) for x in s])
        count = min(round(ABLATED * weight.numel()), int(both.sum()))
        for kind, among in zip(places, (both, torch.ones_like(both)), strict=True):
            places[kind][site] = drawn(among, count, generator)
    inside = None
    for kind, masks in places.items():
        row, losses = without(masks, sparsity, kind)
        inside = losses if inside is None else inside
        ablated.append(row | _compared(losses - inside))
    return pd.DataFrame(rows), pd.DataFrame(ablated)


def _row(vlm, held, asked, batch_size, sparsity, kind, removed) -> tuple[dict, torch.Tensor]:
    losses = answer_losses(vlm, held, batch_size)
    loss = mean_over_samples(powers(losses).sum(0))
    skill = (
        skill_rows(Stage(kind, np.nan, lambda: ()), score(vlm, asked))[-1]
        if asked
        else dict.fromkeys(("mean", "low", "high"), np.nan) | {"n": 0}
    )
    row = {
        "sparsity": sparsity, "removed": kind, "share_removed": removed, "expected_removed": 1 - (1 - sparsity) ** 2,
        "perplexity": float(np.exp(loss.mean)), "perplexity_low": float(np.exp(loss.low)), "perplexity_high": float(np.exp(loss.high)),
        "n": int(loss.n), "skill": skill["mean"], "skill_low": skill["low"], "skill_high": skill["high"], "skill_n": skill["n"],
    }  # fmt: skip
    return row, losses


def _compared(difference: torch.Tensor) -> dict:
    """The paired difference in nats an answer's token to the first of a group of models, with its interval."""
    found = mean_over_samples(powers(difference).sum(0))
    return {"worse": float(found.mean), "worse_low": float(found.low), "worse_high": float(found.high)}


def answer_losses(vlm, samples, batch_size: int = 32) -> torch.Tensor:
    """(N,) mean negative log-probability, in nats, of the tokens of each sample's answer; NaN without one."""
    losses = []
    for start in range(0, len(samples), batch_size):
        inputs = vlm.prepare_samples(samples[start : start + batch_size])
        with torch.no_grad():
            logits = vlm.trace(inputs, ["logits"])["logits"][:, :-1].float().log_softmax(-1)
        told = logits.gather(-1, inputs.tensors["input_ids"][:, 1:, None].to(logits.device))[..., 0]
        answer = inputs.spans.mask("answer")[:, 1:].to(told.device)
        losses.append(-torch.where(answer, told, 0).sum(1) / answer.sum(1))
    return torch.cat(losses).cpu()


def found(tables: dict[str, pd.DataFrame]) -> list[str]:
    """What was found, in sentences with n."""
    sentences = []
    for row in pick(tables["overlap"], quantity="iou", pair="image-text", layer=None, matrix=None).itertuples():
        noise = {
            pair: pick(tables["noise"], quantity="iou", sparsity=row.sparsity, pair=pair, layer=None, matrix=None)[
                "mean"
            ].item()
            for pair in ("noise-text", "image-noise")
        }
        sentences.append(
            f"With {100 * row.sparsity:g} % pruned the masks of image and text share {number(row.mean)} (95 %: {number(row.low)} to {number(row.high)}; n = {row.n}); "
            f"independent inputs give {number(row.null)}, random masks {number(row.chance)}, so {number(row.adjusted)} of what is left above the null. "
            f"Pictures of noise and text share {number(noise['noise-text'])}, pictures and noise {number(noise['image-noise'])}."
        )  # fmt: skip
    rank = pick(tables["overlap"], quantity="rank", layer=None, matrix=None).iloc[0]
    sentences.append(
        f"Inputs alone: rank correlation {number(rank['mean'])} (95 %: {number(rank['low'])} to {number(rank['high'])})."
    )
    if "removal" not in tables:
        return [*sentences, "Not run: removal, as no answers were left to take the perplexity of."]
    removal = tables["removal"]
    for sparsity in sorted(set(removal["sparsity"]) - {0.0}):
        rows = pick(removal, sparsity=sparsity).set_index("removed")
        kinds = "; ".join(
            f"{kind} {number(row['perplexity'])}"
            + ("" if np.isnan(row["skill"]) else f", skill {number(row['skill'])}")
            for kind, row in rows.iterrows()
        )
        sentences.append(
            f"Masks at {100 * sparsity:g} %: outside what both keep lie {100 * rows['share_removed'].iloc[0]:.0f} % of the weights ({100 * rows['expected_removed'].iloc[0]:.0f} % if "
            f"they were independent). Perplexity with as many removed: {kinds} (whole model {number(removal['perplexity'].iloc[0])}; n = {int(removal['n'].iloc[0])} answers)."
        )  # fmt: skip
    ablated = tables["ablation"].iloc[1:]
    told = ", ".join(f"{row.removed} {number(row.perplexity)}" for row in ablated.itertuples())
    return [*sentences, f"Perplexity with {100 * ABLATED:g} % of the weights removed at random: {told}."]


def claims(removal: pd.DataFrame | None) -> list[Claim]:
    """Whether what image and text share carries the model better than as many weights chosen by size or at random."""
    made = []
    for row in () if removal is None else removal[removal["removed"].isin(["magnitude", "random"])].itertuples():
        holds = True if row.worse_low > 0 else False if row.worse_high < 0 else None
        here = f"the control's loss is {number(row.worse)} [{number(row.worse_low)} to {number(row.worse_high)}] nats a token higher, paired (n = {row.n} answers)."
        chosen = "by size" if row.removed == "magnitude" else "at random"
        name = f"What both keep carries the model better than as many weights chosen {chosen} ({100 * row.share_removed:.0f} % removed)"
        made.append(Claim(name, "arXiv 2405.16700, figure 12", here, holds))
    return made

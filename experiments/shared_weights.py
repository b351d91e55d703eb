"""Experiment: do image and text tokens use the same weights, and does what they share carry the model alone?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..models.trace import linear_sites
from ..probes.intervals import mean_over_samples, powers
from ..probes.measure import measure
from ..probes.subnetwork import KINDS, pack, removal_mask, weights_removed
from ..probes.weight_overlap import WeightOverlap
from ..scenes.benchmarks import scene_samples
from .figures import shared_weights as figures
from .lineage import Stage, check_organism, score, seeing_questions, skill_rows
from .options import open_model
from .run import Run
from .study import framed_scenes, keep_figures

CALIBRATION, HELD_OUT = 128, 64
"""Scenes the masks are made from, and other scenes the perplexity is of."""


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, questions: int = 60, growth=None,
) -> Path:  # fmt: skip
    """Measures overlap and removal on the organism and writes a run; returns its folder. Masks and perplexity are of
    different scenes; magnitude and random remove as many weights of every matrix as the common subnetwork does."""
    check_organism(model, "shared_weights")
    vlm = open_model(model, device=device, dtype=dtype)
    samples = framed_scenes(limit or CALIBRATION, seed) if data is None or data == "scenes" else data
    held, asked = (
        list(scene_samples(min(limit or HELD_OUT, HELD_OUT), "val", seed=seed, frame="long")),
        seeing_questions(questions, seed=seed),
    )
    config = {"model": model, "limit": limit, "seed": seed, "questions": questions}
    with Run.create("shared_weights", config, root) as kept:
        probe = WeightOverlap(seed=seed)
        result = measure(vlm, samples, [probe], run=kept, batch_size=batch_size, limit=limit, progress=False, seed=seed)
        linears, squares, n = linear_sites(vlm.anatomy), probe.squares.sum(0).cpu(), int(probe.count.sum())
        rows = [_row(vlm, held, asked, batch_size, 0.0, "nothing", 0.0)]
        for sparsity in probe.sparsity:
            for kind in KINDS:
                masks, removed, total = {}, 0, 0
                for site, at in probe._at.items():
                    mask = removal_mask(
                        linears[site].weight, squares[:, at], n, sparsity=sparsity, kind=kind, seed=seed
                    )
                    masks[site], removed, total = pack(mask), removed + int(mask.sum()), total + mask.numel()
                with weights_removed(linears, masks):
                    rows.append(_row(vlm, held, asked, batch_size, sparsity, kind, removed / total))
                kept.log(
                    f"{kind} at {sparsity}: perplexity {rows[-1]['perplexity']:.3f}, skill {rows[-1]['skill']:.3f}"
                )
        removal = pd.DataFrame(rows)
        kept.table("removal", removal)
        keep_figures(kept, [figures.overlap(result.tables["weight_overlap"]), figures.removal(removal)])
    return kept.path


def _row(vlm, held, asked, batch_size, sparsity, kind, removed) -> dict:
    loss = mean_over_samples(powers(answer_losses(vlm, held, batch_size)).sum(0))
    skill = skill_rows(Stage(kind, np.nan, lambda: ()), score(vlm, asked))[-1]
    return {
        "sparsity": sparsity, "removed": kind, "share_removed": removed, "perplexity": float(np.exp(loss.mean)),
        "perplexity_low": float(np.exp(loss.low)), "perplexity_high": float(np.exp(loss.high)), "n": int(loss.n),
        "skill": skill["mean"], "skill_low": skill["low"], "skill_high": skill["high"], "skill_n": skill["n"],
    }  # fmt: skip


def answer_losses(vlm, samples, batch_size: int = 32) -> torch.Tensor:
    """(N,) mean negative log-probability, in nats, of the tokens of each sample's answer."""
    losses = []
    for start in range(0, len(samples), batch_size):
        inputs = vlm.prepare_samples(samples[start : start + batch_size])
        with torch.no_grad():
            logits = vlm.trace(inputs, ["logits"])["logits"][:, :-1].float().log_softmax(-1)
        told = logits.gather(-1, inputs.tensors["input_ids"][:, 1:, None])[..., 0]
        answer = inputs.spans.mask("answer")[:, 1:]
        losses.append(-torch.where(answer, told, 0).sum(1) / answer.sum(1))
    return torch.cat(losses).cpu()

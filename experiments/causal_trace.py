"""Experiment: which layer's tokens carry the answer? A thing of another colour is painted back, one span of one layer at a time.

Sources of the claims: Neo et al. (arXiv 2410.07149): what LLaVA says of a thing hangs on the visual tokens where the thing is; in
later layers the text takes over.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pandas as pd
import torch
from torch import Tensor

from ..models import VLM, open_vlm
from ..models.spans import Spans
from ..scenes.benchmarks import scene_samples
from ..scenes.errors import UserError
from ..scenes.render import render
from ..scenes.sample import Sample
from ..scenes.things import COLOURS
from ..steering.causal_trace import causal_trace
from .figures import causal_trace as figures
from .figures.rows import pick
from .options import open_model
from .page import Claim, number
from .run import Run
from .study import Study, keep_figures

PAIRS = 24
SOURCE = "arXiv 2410.07149"


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, growth=None,
) -> Path:  # fmt: skip
    """Traces where a model keeps the colour of a thing and writes a run; returns its folder. Any model that takes its picture into the
    sequence. limit: pairs of rendered scenes (default 24). growth is not used. Raises UserError, also for data of your own."""
    if data is not None and data != "scenes":
        raise UserError(
            "experiment 'causal_trace' paints its own pairs of scenes: leave --data out; for pairs of your own: steering.causal_trace"
        )
    vlm = open_model(model, device=device, dtype=dtype)
    return study(vlm, limit=limit, seed=seed, root=root, batch_size=batch_size).path


def study(
    vlm: VLM | None = None, data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32,
) -> Study:  # fmt: skip
    """`run` for a model that is open (default: the bundled one), with what the report needs."""
    vlm = open_vlm("organism", device=device, dtype=dtype) if vlm is None else vlm
    clean, corrupted = colour_pairs(limit or PAIRS, seed)
    placed = bool(torch.isfinite(vlm.prepare([clean[0].images], [clean[0].prompt]).spans.boxes).any())
    picture = {"the picture": "image"} | (
        {"the thing": on_the_thing, "as many others": as_many_others} if placed else {}
    )
    text = {"the question": the_question, "last position": "last_prompt"}
    with Run.create("causal_trace", {"models": [vlm.name], "limit": limit, "seed": seed}, root) as kept:
        options = {"batch_size": batch_size}
        stream = causal_trace(vlm, clean, corrupted, sites=("embed", "resid_post"), spans=picture | text, **options)
        parts = {name: (picture | text)[name] for name in ("the thing" if placed else "the picture", "last position")}
        table = pd.concat(
            [stream, causal_trace(vlm, clean, corrupted, sites=("attn_out", "mlp_out"), spans=parts, **options)], ignore_index=True
        )  # fmt: skip
        kept.log(f"{vlm.name}: {told(table)}")
        kept.table("causal_trace", table)
        pictures = keep_figures(kept, [figures.carried(table)])
    intro = (
        "A thing in a rendered scene is painted in another colour and the model is asked for its colour. Then the states of the unchanged picture's run "
        "are put back, at one layer and in one group of positions at a time: where the old answer comes back, that is where it was kept.",
    )  # fmt: skip
    return Study(
        "Which tokens carry the answer",
        kept.path,
        intro,
        [told(table)],
        claims(table),
        pictures,
        {"causal_trace": table},
    )


def colour_pairs(n: int, seed: int = 0) -> tuple[list[Sample], list[Sample]]:
    """`n` questions for the colour of a thing in unseen scenes, and the same with that thing in another colour; all else is kept."""
    rng = random.Random(repr(("colours", seed)))
    clean = list(scene_samples(n, "test", "colour", seed))
    return clean, [_repainted(sample, rng) for sample in clean]


def _repainted(sample: Sample, rng: random.Random) -> Sample:
    scene, (asked,) = sample.truth["scene"], sample.truth["about"]
    colour = rng.choice([c for c in COLOURS if c != sample.answer])
    things = tuple(replace(t, colour=colour) if t.category == asked else t for t in scene.things)
    scene = replace(scene, things=things)
    picture = render(scene, sample.images[0].width).pil
    return Sample(f"{sample.id}-{colour}", sample.prompt, (picture,), colour, {"scene": scene, "about": (asked,)})


def on_the_thing(spans: Spans, sample: Sample) -> Tensor:
    """(1, T): the visual tokens that see a part of the thing asked about."""
    (asked,) = sample.truth["about"]
    (thing,) = (t for t in sample.truth["scene"].things if t.category == asked)
    left, top, right, bottom = (side * sample.images[0].width for side in thing.box)
    x0, y0, x1, y1 = spans.boxes.unbind(-1)  # no comparison holds with the NaN of a token without a place
    return spans.visual & (x0 < right) & (x1 > left) & (y0 < bottom) & (y1 > top)


def as_many_others(spans: Spans, sample: Sample) -> Tensor:
    """(1, T): as many visual tokens that see nothing of it, drawn by the sample's name."""
    thing = on_the_thing(spans, sample)
    others = torch.nonzero((spans.visual & spans.boxes.isfinite().all(-1) & ~thing)[0]).flatten().cpu()
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(crc32(sample.id.encode())))
    mask = torch.zeros_like(thing)
    mask[0, others[order[: int(thing.sum())]]] = True
    return mask


def the_question(spans: Spans, sample: Sample) -> Tensor:
    """(1, T): the text around the picture but for the last position."""
    mask = spans.mask("before", "after")
    mask[0, torch.nonzero(spans.real[0])[-1]] = False
    return mask


def told(table: pd.DataFrame) -> str:
    """Up to which block the picture carries the answer, and from which on the last position does."""
    own, last = (pick(table, site="resid_post", span=span) for span in ("the picture", "last position"))
    kept, moved = own[own["mean"] >= 0.5], last[last["mean"] >= 0.5]
    begin = pick(
        table, site="embed", span=[span for span in ("the thing", "the picture") if span in set(table["span"])][:1]
    ).iloc[0]
    words = f"at the input {begin['span']} brings back {_share(begin)} of the answer"
    words += (
        f"; the whole picture holds at least half of it up to block {kept['layer'].max()}"
        if len(kept)
        else "; behind no block the picture holds half of it"
    )
    if len(moved):
        words += f"; from block {moved['layer'].min()} on the last position does ({_share(moved.iloc[0])})"
    gap = f"logit of the shown over the other colour {number(begin['clean'])} with the old picture, {number(begin['corrupted'])} with the new"
    return f"{words}; {gap} (n = {int(begin['n'])} pairs)."


def _share(row) -> str:
    return f"{number(row['mean'])} [{number(row['low'])} to {number(row['high'])}]"


def claims(table: pd.DataFrame) -> list[Claim]:
    """Whether the answer lies where the thing is, and whether the text takes over on the way up."""
    made = []
    if len(other := pick(table, site="embed", span="as many others")):
        thing, other = pick(table, site="embed", span="the thing").iloc[0], other.iloc[0]
        here = f"put back at the input: tokens on the thing {_share(thing)}, as many others {_share(other)} (n = {int(thing['n'])} pairs)."
        made.append(
            Claim("What is said of a thing hangs on the visual tokens where it is", SOURCE, here, _above(thing, other))
        )
    last = pick(table, site="resid_post", span="last position").sort_values("layer")
    early, late = last.iloc[0], last.iloc[max(0, len(last) - 2)]  # behind the last block nothing else can carry it
    if len(last) > 2:
        here = f"at the last position: {_share(early)} behind the first block, {_share(late)} behind the last but one (n = {int(late['n'])} pairs)."
        made.append(Claim("In later layers the text carries what the picture said", SOURCE, here, _above(late, early)))
    return made


def _above(high, low) -> bool | None:
    return True if high["low"] > low["high"] else False if high["high"] < low["low"] else None

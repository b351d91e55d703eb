"""Causal tracing: how much of a clean run's answer comes back in a corrupted run, by the layer and the span that is put back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..models.inputs import Inputs
from ..models.spans import Spans
from ..models.trace import expand_sites
from ..probes.intervals import BLOCKS, jackknife
from ..scenes.errors import UserError
from ..scenes.sample import Sample
from .patch import KINDS, Patch, check_spans, span_mask
from .steer import steer
from .where import Positions

METRICS = ("logit_difference", "probability")

Span = Positions | Callable[[Spans, Sample], Tensor]
"""Positions by name, or a function of the spans of one clean prompt and its sample that gives a mask (1, T)."""


class Place(NamedTuple):
    """What is put back at once. layer: the decoder block, None for the input and the projector."""

    site: str
    layer: int | None
    span: str


def causal_trace(
    vlm,
    clean: Sequence[Sample],
    corrupted: Sequence[Sample],
    *,
    sites: Sequence[str] = ("resid_post",),
    spans: Sequence[str] | Mapping[str, Span] = ("image", "after", "last_prompt"),
    layers: Sequence[int] | None = None,
    answers: Sequence[tuple[str, str]] | None = None,
    metric: str = "logit_difference",
    batch_size: int = 32,
) -> pd.DataFrame:
    """Runs every corrupted sample with the values of its clean partner put back, at one site, layer and span at a time.

    clean, corrupted: samples in pairs, whose prompts have the same positions; each model run asks for the first token of the
    answer. answers: per pair the (clean, corrupted) answers; default, the samples' own. sites: kinds of `patch.KINDS`; "embed"
    and "projector" have no layer (the projector is put back whole, whatever the span is called). layers: default, all.
    metric: "logit_difference", of the clean over the corrupted answer's first token, or "probability" of the clean one.

    Returns one row a site, layer and span: `mean` is (patched - corrupted) / (clean - corrupted), 0 where putting it back does
    nothing, 1 where it brings back all; of sums over pairs, as single pairs may have next to nothing to bring back, with the
    95 % interval of the jackknife, n pairs, and the metric's means `clean`, `corrupted`, `patched`. A forward pass holds up
    to `batch_size` places of one pair, a row each. Source: Meng et al. (arXiv 2202.05262), section 2; Basu et al.
    (arXiv 2406.04236) for VLMs. Raises UserError for pairs that do not match, and where there is nothing to bring back.
    """
    clean, corrupted = list(clean), list(corrupted)
    if not clean or len(clean) != len(corrupted):
        raise UserError(f"{len(clean)} clean and {len(corrupted)} corrupted samples: give one or more pairs")
    if metric not in METRICS:
        raise UserError(f"metric={metric!r} must be one of {', '.join(METRICS)}")
    answers = (
        [(c.answer, k.answer) for c, k in zip(clean, corrupted, strict=True)] if answers is None else list(answers)
    )
    if len(answers) != len(clean):
        raise UserError(f"{len(answers)} pairs of answers for {len(clean)} pairs of samples: give one each")
    spans = dict(spans) if isinstance(spans, Mapping) else {name: name for name in spans}
    for span in spans.values():
        if not callable(span):
            check_spans(span)
    places = _places(vlm.anatomy, sites, spans, layers)
    found = torch.full((len(clean), 2 + len(places)), torch.nan, dtype=torch.float64)
    for i, (one, other, said) in enumerate(zip(clean, corrupted, answers, strict=True)):
        found[i] = _pair(vlm, one, other, said, places, spans, metric, batch_size)
    return _table(found, places, metric)


def _places(anatomy, sites: Sequence[str], spans: Mapping[str, Span], layers: Sequence[int] | None) -> list[Place]:
    layers = range(anatomy.n_layers) if layers is None else [anatomy.check_layer(i) for i in layers]
    places = []
    for kind in [sites] if isinstance(sites, str) else sites:
        if kind not in KINDS:
            raise UserError(f"site {kind!r} must be one of {', '.join(KINDS)}")
        if kind in ("embed", "projector"):
            named = [(kind, None)]
        else:
            known = set(expand_sites(anatomy, [f"blocks.*.{kind}"]))
            named = [(name, i) for i in layers if (name := f"blocks.{i}.{kind}") in known]
        if kind == "projector":
            places.append(Place(kind, None, "image"))
        else:
            places += [Place(site, layer, span) for site, layer in named for span in spans]
    if not places:
        raise UserError("no place to put back: give one or more sites, spans and layers")
    return places


def _pair(vlm, clean, corrupted, answers, places, spans, metric, batch_size: int) -> Tensor:
    """(2 + places) the metric of the clean run, of the corrupted run, and with each place put back; NaN where a span is empty."""
    own, other = (vlm.prepare([s.images], [s.prompt]) for s in (clean, corrupted))
    lengths = [x.spans.labels.shape[1] for x in (own, other)]
    pair = f"{clean.id!r} and {corrupted.id!r}"
    if lengths[0] != lengths[1]:
        raise UserError(
            f"the prompts of {pair} have {lengths[0]} and {lengths[1]} positions: give prompts of equal length"
        )
    if not torch.equal(own.spans.labels, other.spans.labels):
        raise UserError(
            f"the prompts of {pair} have their picture or their answer at other positions: give prompts alike"
        )
    tokens = [first_token(vlm, clean, answer) for answer in answers]
    if tokens[0] == tokens[1]:
        raise UserError(
            f"the answers of {pair}, {answers[0]!r} and {answers[1]!r}, begin with the same token: nothing tells them"
        )
    source = vlm.trace(own, list(dict.fromkeys(place.site for place in places)))
    values = torch.full((2 + len(places),), torch.nan, dtype=torch.float64)
    values[0], values[1] = (_metric(_last_logits(vlm, x), tokens, metric)[0] for x in (own, other))
    masks = {}
    for name, span in spans.items():
        masks[name] = span(own.spans, clean) if callable(span) else span_mask(own.spans, span)
    filled = [k for k, place in enumerate(places) if place.site == "projector" or masks[place.span].any()]
    for start in range(0, len(filled), batch_size):
        some = filled[start : start + batch_size]
        rows = vlm.prepare([corrupted.images] * len(some), [corrupted.prompt] * len(some))
        patches = []
        for row, k in enumerate(some):
            at = places[k]
            patches.append(Patch(source, at.site, "image" if at.site == "projector" else masks[at.span], rows=[row]))
        with steer(vlm, *patches):
            values[[2 + k for k in some]] = _metric(_last_logits(vlm, rows), tokens, metric)
    return values


def first_token(vlm, sample: Sample, answer: str | None) -> int:
    """The id of the first token of an answer, written behind the sample's prompt as the model's template has it."""
    if not answer:
        raise UserError(f"sample {sample.id!r} has no answer: give answers=")
    inputs = vlm.prepare([sample.images], [sample.prompt], [answer])
    return int(inputs.tensors["input_ids"][inputs.spans.mask("answer")][0])


def _last_logits(vlm, inputs: Inputs) -> Tensor:
    """(B, V), fp32: what each row's last position predicts."""
    options = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(vlm.anatomy.model.forward).parameters:
        options["logits_to_keep"] = 1
    with torch.no_grad():
        return vlm.forward(inputs, **options).logits[:, -1].float()


def _metric(logits: Tensor, tokens: Sequence[int], metric: str) -> Tensor:
    if metric == "probability":
        return logits.softmax(-1)[:, tokens[0]].double().cpu()
    return (logits[:, tokens[0]] - logits[:, tokens[1]]).double().cpu()


def restored(clean: Tensor, corrupted: Tensor, patched: Tensor):
    """The share brought back, of sums over pairs: (N,), (N,), (N, P) -> `Estimate` of (P,); pairs with NaN are left out."""
    have = torch.isfinite(patched)
    gained = torch.where(have, patched - corrupted[:, None], 0)
    room = torch.where(have, (clean - corrupted)[:, None], 0)
    block = torch.arange(len(clean)) % min(BLOCKS, len(clean))
    sums = {
        name: torch.zeros(int(block.max()) + 1, patched.shape[1], dtype=torch.float64).index_add_(
            0, block, values.double()
        )
        for name, values in (("gained", gained), ("room", room))
    }
    found = jackknife(lambda s: s["gained"] / s["room"], sums, torch.bincount(block), at_once=True)
    return found._replace(n=have.sum(0).numpy())


def _table(found: Tensor, places: Sequence[Place], metric: str) -> pd.DataFrame:
    clean, corrupted, patched = found[:, 0], found[:, 1], found[:, 2:]
    if not float((clean - corrupted).mean()) > 0:
        raise UserError(
            f"the clean runs do not favour their answers (mean {metric} {float(clean.mean()):.3g}, corrupted "
            f"{float(corrupted.mean()):.3g}): there is nothing to bring back; check the answers and their spelling"
        )
    empty = sorted({place.span for place, values in zip(places, patched.T, strict=True) if values.isnan().all()})
    if empty:
        raise UserError(
            f"the span {empty[0]!r} holds no position in any pair: leave it out (Mllama has none for 'image')"
        )
    share = restored(clean, corrupted, patched)
    rows = []
    for k, place in enumerate(places):
        have = torch.isfinite(patched[:, k])
        rows.append({
            "site": place.site.rpartition(".")[2], "layer": place.layer, "span": place.span,
            "mean": share.mean[k], "low": share.low[k], "high": share.high[k], "n": int(share.n[k]),
            "clean": float(clean[have].mean()), "corrupted": float(corrupted[have].mean()),
            "patched": float(patched[have, k].mean()), "metric": metric,
        })  # fmt: skip
    return pd.DataFrame(rows).astype({"layer": "Int64", "mean": np.float64})

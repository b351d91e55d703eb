"""What the outlier probes share: the maps of a batch's decoder attention over pictures, and what is said of each map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.patch_scores import PictureScores, picture_scores
from ..models.vision_attention import resampler_attentions
from ..scenes.errors import UserError
from .map_statistics import (
    descending,
    entropy_share,
    jensen_shannon,
    outlier_mass,
    overlap,
    overlap_chance,
    ranks,
    spearman,
    top_shares,
)
from .outliers import outlier_set

QUANTITIES = (
    "overlap", "excess", "z", "lift", "spearman", "jensen_shannon", "entropy", "top_1", "top_3", "top_10",
)  # fmt: skip
FIRST = 2
"""The first decoder block whose attention counts in the summary: the mean map is of blocks 2 to the last, from 0."""


@dataclass(frozen=True)
class Setting:
    """How outliers are found: kind of score, mode of "cls", vision layer, rule and value for their number, which tiles."""

    score: str
    mode: str
    layer: int | None
    rule: str
    value: float
    tiles: str


@dataclass(frozen=True)
class Maps:
    """Pictures with equally many candidates: attention (P, M, Q, N), image share (P, M, Q), both of all maps, the mean of
    each layer's heads and the summary behind the heads; asked (P, Q) which queries there are; scores and outliers (P, N);
    rows: (P,) of the batch."""

    attention: Tensor
    share: Tensor
    asked: Tensor
    scores: Tensor
    chosen: Tensor
    rows: Tensor


def decoder_layers(anatomy, few: bool = False) -> tuple[tuple[int, ...], str]:
    """The blocks that look at pictures, and the kind of site that says how, for all queries or a `few`."""
    here, which = ("full", "sliding") if anatomy.image_in_sequence else ("cross",), "few" if few else "rows"
    layers = [i for i, k in enumerate(anatomy.attention_kinds) if k in here]
    kind = f"attn_{which}" if anatomy.image_in_sequence else f"cross_{which}"
    if not layers:
        raise UserError(f"no layer of this {anatomy.family} has softmax attention between the text and the picture")
    return tuple(layers), kind


def decoder_sites(anatomy, few: bool = False) -> tuple[str, ...]:
    """The sites of the decoder's attention to pictures; with it, where there are query tokens, what these read."""
    layers, kind = decoder_layers(anatomy, few)
    sites = tuple(f"blocks.{i}.{kind}" for i in layers)
    return (*sites, "resampler.attention") if resampler_attentions(anatomy) else sites


def pictures_of(trace, inputs, anatomy, setting: Setting, kind: str | None = None) -> list[PictureScores]:
    """The pictures of a batch with the scores of one kind (default: the setting's own)."""
    kind = kind or setting.score
    layer = setting.layer if kind == setting.score else None
    return picture_scores(trace, inputs, anatomy, kind, mode=setting.mode, layer=layer)


@dataclass(frozen=True)
class Seen:
    """What is looked at of one picture: indices (n,) of its candidates, their scores and which are outliers (n,)."""

    picture: PictureScores
    at: Tensor
    scores: Tensor
    chosen: Tensor


def looked_at(pictures: Sequence[PictureScores], setting: Setting) -> list[Seen]:
    """Of every picture the candidates of all tiles, or of the whole picture alone, with the outliers among them."""
    seen = []
    for picture in pictures:
        keep = picture.tiles == 0 if setting.tiles == "base" else torch.ones_like(picture.tiles, dtype=torch.bool)
        at = torch.nonzero(keep).flatten()
        scores, rule = picture.scores[at], {"rule": setting.rule, "value": setting.value}
        seen.append(Seen(picture, at, scores, outlier_set(scores, picture.tiles[at], patches=picture.patches, **rule)))
    return seen


def batch_maps(trace, looked: Sequence[Seen], anatomy, queries: Tensor, few: bool = False) -> Iterator[Maps]:
    """The maps of all pictures, those with equally many candidates together.

    queries: (B, Q) which of the traced rows are wanted, -1 for none. few: they are of the site that holds a few.
    """
    layers, kind = decoder_layers(anatomy, few)
    groups: dict[int, list[Seen]] = {}
    for one in looked:
        groups.setdefault(len(one.at), []).append(one)
    for same in groups.values():
        attention, share = [], []
        for one in same:
            picture = one.picture
            wanted = queries[picture.row].clamp(min=0)
            rows = torch.stack([trace[f"blocks.{i}.{kind}"][picture.row].to(wanted.device)[:, wanted] for i in layers])
            seen = picture.attention(rows)
            attention.append(_with_means(seen[..., one.at.to(seen.device)], layers))
            whole = seen if picture.positions is None or picture.reads is None else rows[..., picture.positions]
            share.append(_with_means(whole.sum(-1, keepdim=True), layers)[..., 0])
        at = torch.tensor([one.picture.row for one in same], device=queries.device)
        scores, chosen = (
            torch.stack([getattr(one, what) for one in same]).to(at.device) for what in ("scores", "chosen")
        )
        yield Maps(torch.stack(attention), torch.stack(share), queries[at] >= 0, scores, chosen, at)


def _with_means(maps: Tensor, layers: Sequence[int]) -> Tensor:
    """(L, H, Q, N) -> (L * H + L + 1, Q, N): every head, the mean over the heads of each layer, the summary."""
    means = maps.mean(1)
    late = [k for k, layer in enumerate(layers) if layer >= FIRST] or list(range(len(layers)))
    return torch.cat([maps.flatten(0, 1), means, means[late].mean(0, keepdim=True)])


def describe(maps: Tensor, chosen: Tensor, scores: Tensor) -> Tensor:
    """(P, M, Q, N) maps, (P, N) outliers and scores -> (len(QUANTITIES), P, M, Q); NaN for maps that see nothing."""
    order, n = descending(maps), maps.shape[-1]
    places = ranks(maps, order=order)
    chosen, scores = chosen[:, None, None], scores[:, None, None].float()
    chance, deviation = (x.float().to(maps.device) for x in overlap_chance(n, chosen.sum(-1).cpu()))
    found = overlap(maps, chosen, places=places)
    values = [found, found - chance, (found - chance) / deviation, outlier_mass(maps, chosen) / chance]
    values += [spearman(maps, scores, places=places), jensen_shannon(maps, scores), entropy_share(maps)]
    values = torch.stack([*values, *top_shares(maps, (1, 3, 10), order=order)])
    return values.masked_fill(maps.sum(-1) <= 0, torch.nan)

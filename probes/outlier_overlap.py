"""Does the language model look at the patches that stand out in the vision encoder?"""

from __future__ import annotations

from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from ..models.patch_scores import check_kind, score_kinds, score_site
from ..models.spans import FEW, evenly
from ..scenes.errors import UserError
from ..scenes.world import boxes as things_boxes
from .intervals import mean_over_samples, powers
from .map_statistics import jaccard, overlap, ranks
from .outlier_maps import (
    QUANTITIES,
    Setting,
    batch_maps,
    decoder_layers,
    decoder_sites,
    describe,
    looked_at,
    pictures_of,
)
from .outliers import MODES, check_rule
from .probe import Probe

ALL = (*QUANTITIES, "overlap_other", "image_share")
CHANCE = {"excess": 0.0, "z": 0.0, "lift": 1.0, "spearman": 0.0, "entropy": 1.0}
"""What a map that has nothing to do with the outliers gives; an even map's entropy."""


class OutlierOverlap(Probe):
    """Overlap of the encoder's outlier patches with the decoder's attention, by block and head, against chance.

    Source of the question: Gong et al., "DAMRO" (EMNLP 2024, arXiv 2410.04514). The release holds no analysis: the
    definitions are ours. Outliers are the k patches with the largest score (see `models.patch_scores`); attention a_t is
    that of the queries that predict an answer's tokens, of the last token of the prompt where there is no answer.

    The table has one row a value. Columns:

    - quantity: "overlap" H(k) = |top_k(a_t) and outliers| / k; "excess" (less k/N) and "z" (over the hypergeometric
      deviation); "overlap_other" (the same map with the outliers of another picture of the batch: what the place of
      outliers alone explains); "lift" (share of a_t on the outliers over k/N); "spearman" and "jensen_shannon" (distance)
      of a_t and scores; "entropy" (over ln N), "top_1", "top_3", "top_10" (share of a_t); "image_share" (attention on the
      picture of all attention); "score_spearman" and "score_jaccard" (of its outliers), between the kinds of score
      `score` and `other`; "on_things" (share of the outliers whose middle is in the box of a thing, where the scene is
      known); "k" (outliers a picture), "candidates" (N) and "skipped" (`n` samples without a picture).
    - layer, head: a head's own map; head empty: the mean map of a block's heads; both empty: the mean map over heads and
      blocks 2 to the last (counted from 0; all blocks of a model with two or less).
    - mean, low, high, n: over samples (mean over queries, then pictures), Student's 95 % interval; sd between samples.
    - chance: what unrelated maps give, of "on_things" the share of all patches.
    """

    name = "outlier_overlap"
    sites = ("blocks.*.attn_few",)

    def __init__(
        self, *, score: str | None = None, mode: str = "headmean", layer: int | None = None, rule: str = "ratio",
        value: float | None = None, tiles: str = "all", queries: int | None = 8, agreement: bool = True,
    ):  # fmt: skip
        """score: kind of score (default: the best that the model has). mode: "headmean", or "released" as in DAMRO's code
        for LLaVA. layer: of the tower (default: the one whose output is the feature). rule, value: see `choose_k`. tiles:
        "all", k in each, or "base", the whole picture alone. queries: at most so many positions an answer, evenly spaced
        from its first (None: all). agreement: compare all kinds of score. Raises UserError."""
        super().__init__()
        if mode not in MODES:
            raise UserError(f"mode {mode!r} is not known: use one of {', '.join(MODES)}")
        if tiles not in ("all", "base"):
            raise UserError(f"tiles {tiles!r} is not known: use 'all' or 'base'")
        if queries is not None and queries < 1:
            raise UserError(f"queries {queries} must be 1 or more, or None for all")
        self.score, self.mode, self.layer, self.tiles = score, mode, layer, tiles
        self.rule, self.value = check_rule(rule, value)
        self.queries, self.agreement = queries, agreement
        self.few = queries == FEW  # then rows of a few queries are all that is read

    def attach(self, anatomy) -> None:
        self.use_device_of(anatomy)
        kinds = score_kinds(anatomy)
        if not kinds:
            raise UserError(f"outlier_overlap: no patch of the tower of this {anatomy.family} can be scored")
        score = check_kind(anatomy, self.score or kinds[0])
        self._anatomy, self._setting = anatomy, Setting(score, self.mode, self.layer, self.rule, self.value, self.tiles)
        self._kinds = (score, *[kind for kind in kinds if kind != score and self.agreement])
        sites = [score_site(anatomy, kind, self.layer if kind == score else None) for kind in self._kinds]
        self.sites = (*decoder_sites(anatomy, self.few), *sites)
        self._layers, _ = decoder_layers(anatomy)
        maps = len(self._layers) * (anatomy.n_heads + 1) + 1
        self.add_sum("values", len(ALL), maps, 3)
        self.add_sum("counts", 5, 3)
        self.add_sum("agreements", 2, len(self._kinds) * (len(self._kinds) - 1) // 2, 3)
        self.add_sum("skipped", dtype=torch.long)

    def update(self, trace, inputs) -> None:
        pictures = pictures_of(trace, inputs, self._anatomy, self._setting)
        here, size = self.values.device, len(inputs.spans.labels)
        self.skipped += size - len({picture.row for picture in pictures})
        if not pictures:
            return
        wanted = spread_queries(inputs.spans.predicting(FEW if self.few else None), self.queries).to(here)
        looked, found, rows = looked_at(pictures, self._setting), [], []
        for maps in batch_maps(trace, looked, self._anatomy, wanted, self.few):
            values = describe(maps.attention, maps.chosen, maps.scores)
            other = torch.full_like(maps.share, torch.nan)
            if len(maps.chosen) > 1:
                other = overlap(maps.attention, maps.chosen.roll(1, 0)[:, None, None])
            values = torch.cat([values, other[None], maps.share[None]])
            values = values.masked_fill(~maps.asked[:, None], torch.nan)
            found.append(values.nanmean(-1).transpose(0, 1))  # (P, quantities, maps)
            rows.append(maps.rows)
        self.values += powers(_by_sample(torch.cat(found), torch.cat(rows), size)).sum(0).to(self.wide)
        counts = [
            [float(one.chosen.sum()), len(one.at), float(one.chosen.float().mean()), *_on_things(one, inputs)]
            for one in looked
        ]
        rows = torch.tensor([picture.row for picture in pictures], device=here)
        self.counts += powers(_by_sample(torch.tensor(counts, device=here), rows, size)).sum(0).to(self.wide)
        if self.agreements.numel():
            others = [pictures_of(trace, inputs, self._anatomy, self._setting, kind) for kind in self._kinds[1:]]
            agreed = _agreement([looked, *[looked_at(other, self._setting) for other in others]]).to(here)
            self.agreements += powers(_by_sample(agreed, rows, size)).sum(0).to(self.wide)

    def compute(self) -> pd.DataFrame:
        counts, found, agreed = (mean_over_samples(x) for x in (self.counts, self.values, self.agreements))
        share, heads = counts.mean[2], self._anatomy.n_heads
        chance = CHANCE | {"overlap": share, "overlap_other": share}
        layers = [layer for layer in self._layers for _ in range(heads)] + [*self._layers, None]
        head = [*list(range(heads)) * len(self._layers), *[None] * (len(self._layers) + 1)]

        def row(quantity: str, estimate, at, **more) -> dict:
            numbers = {name: getattr(estimate, name)[at] for name in ("mean", "low", "high", "sd", "n")}
            return {"quantity": quantity, "score": self._kinds[0], **more, **numbers}

        rows = [
            row(quantity, found, (q, m), layer=layers[m], head=head[m], chance=chance.get(quantity))
            for q, quantity in enumerate(ALL)
            for m in range(len(layers))
        ]
        for p, (a, b) in enumerate(combinations(self._kinds, 2)):
            rows += [
                row(quantity, agreed, (i, p), score=a, other=b, chance=0.0 if i == 0 else share / (2 - share))
                for i, quantity in enumerate(("score_spearman", "score_jaccard"))
            ]
        rows += [row(quantity, counts, i) for i, quantity in enumerate(("k", "candidates"))]
        if counts.n[3]:
            rows.append(row("on_things", counts, 3, chance=counts.mean[4]))
        rows.append({"quantity": "skipped", "score": self._kinds[0], "n": int(self.skipped)})
        table = pd.DataFrame(rows).reindex(
            columns=["quantity", "score", "other", "layer", "head", "mean", "low", "high", "sd", "n", "chance"]
        )
        return table.astype({"layer": "Int64", "head": "Int64", "chance": float})


def _agreement(kinds) -> Tensor:
    """(P, 2, pairs) Spearman's correlation and Jaccard index of every two kinds of score, picture by picture."""
    found = []
    for same in zip(*kinds, strict=True):
        a, b = zip(*combinations(range(len(same)), 2), strict=True)
        here = same[0].scores.device  # a model may lie on several
        chosen, scores = (torch.stack([getattr(one, what).to(here) for one in same]) for what in ("chosen", "scores"))
        order = torch.corrcoef(ranks(scores).float())[a, b]
        found.append(torch.stack([order, jaccard(chosen[list(a)], chosen[list(b)])]))
    return torch.stack(found)


def _on_things(one, inputs) -> tuple[float, float]:
    """Shares of the outliers, and of all candidates, whose middle lies in the box of a thing; NaN where not known."""
    sample = inputs.samples[one.picture.row] if inputs.samples else None
    place = one.picture.boxes[one.at.to(one.picture.boxes.device)].cpu()
    scene = sample.truth.get("scene") if sample is not None else None
    if scene is None or one.picture.positions is None or not torch.isfinite(place).all():
        return float("nan"), float("nan")
    width, height = sample.images[one.picture.picture].size
    x, y = (place[:, 0] + place[:, 2]) / 2 / width, (place[:, 1] + place[:, 3]) / 2 / height
    x0, y0, x1, y1 = torch.tensor(things_boxes(scene), dtype=x.dtype).view(-1, 4).T[..., None]
    on = ((x >= x0) & (x < x1) & (y >= y0) & (y < y1)).any(0)
    return float(on[one.chosen.cpu()].float().mean()), float(on.float().mean())


def spread_queries(predicting: Tensor, most: int | None) -> Tensor:
    """(B, Q') which columns of `Spans.predicting` (B, Q) to read, -1 for none: at most `most` a row, evenly spaced, the
    first one always."""
    rows = [evenly(n, most) for n in (predicting >= 0).sum(1).tolist()]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def _by_sample(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """(P, ...) of pictures -> (size, ...), the mean over each row's pictures; NaN for a row without."""
    total = values.new_zeros(size, *values.shape[1:]).index_add_(0, rows, values.nan_to_num(0))
    have = torch.isfinite(values).to(values.dtype)
    return total / have.new_zeros(size, *values.shape[1:]).index_add_(0, rows, have)

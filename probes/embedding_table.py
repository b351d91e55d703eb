"""The table of the embedding probe from its sums and the pictures it kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .cross_validation import Validated, cross_validate
from .description_length import saved_bits
from .embedding_scores import (
    class_counts,
    cos_centred,
    cos_flat,
    explained,
    influence,
    linearised,
    mean_iou,
    retrieval_ranks,
)  # fmt: skip
from .intervals import BLOCKS, Estimate, jackknife, mean_over_samples, powers, proportion
from .kept_pictures import Held
from .ridge import Moments, squared_error

COLUMNS = (
    "quantity", "target", "readout", "features", "labels", "layer", "site", "width", "parameters", "mean", "low", "high", "n",
    "chance", "alpha", "sd_seeds", "reason",
)  # fmt: skip
FEW = "needs samples in three of four folds: give more (some dozens)"


class Level(NamedTuple):
    """What one set of features says of the kept pictures. pred: (N, T, 2M); error: (2M,) summed squared error on all pictures, or
    None where it is known of the kept ones only; told: its columns in the table; size: parameters of the readout, None for those
    of a linear one; alpha: (2, targets)."""

    pred: Tensor
    error: Tensor | None
    told: dict
    size: int | None = None
    alpha: Tensor | None = None


def empty_table(skipped: Sequence[tuple[str, int]]) -> pd.DataFrame:
    """A table of nothing but why there is nothing."""
    rows = [{"quantity": "skipped", "n": n, "reason": reason} for reason, n in skipped]
    return _framed(rows or [{"quantity": "skipped", "n": 0, "reason": "no samples"}])


def embedding_table(
    sums: dict[str, Moments], *, rows: Tensor, places: tuple[Tensor, Tensor], held: Held, folds: Sequence[Sequence[int]],
    coded: Sequence[Sequence[int]], targets: Sequence, sites: Sequence[str], tower: str | None, readouts: Sequence[str],
    skipped: Sequence[tuple[str, int]], standardise: bool, seeds: Iterable[int],
) -> pd.DataFrame:  # fmt: skip
    """sums: moments of each bank, the cell as first axis, the layer as second; rows: (cells,); places: counts (cells, P) and
    sums of targets (cells, P, 2M). See `EmbeddingProbe` for the table."""
    filled = [fold for fold in folds if float(rows[list(fold)].sum())]
    table = [{"quantity": "skipped", "n": n, "reason": reason} for reason, n in skipped]
    n = round(float(next(iter(sums.values())).n.sum()))
    if len(filled) < 3:
        return _framed([*table, {"quantity": "r2", "n": n, "reason": FEW}])
    groups = _groups(targets)
    number = {f: i for i, f in enumerate(k for k, fold in enumerate(folds) if fold in filled)}
    held = held._replace(fold=torch.tensor([number[f] for f in held.fold.tolist()]))
    base = _fold_sums(_layer(next(iter(sums.values())), 0), filled)
    whole = base.sum()
    total = whole.centred().yy[0]
    centre = _place_means(places, filled, whole)  # (F, P, 2M)
    scored = _Scored(targets, groups, held, centre, total, n)
    if "ridge" in readouts:
        for level in _references(base, centre, places, filled, held):
            table += scored.rows(level)
        for bank, one in sums.items():
            for layer in range(one.x.shape[1]):
                part = _layer(one, layer)
                told = _told(bank, layer, sites, tower, part)
                if not part.sum().varying().any():
                    table.append({"quantity": "r2", **told, "n": n, "reason": "features are constant"})
                    continue
                found = cross_validate(_fold_sums(part, filled), groups, standardise=standardise)
                level = _ridge_level(found, held, bank, layer, told)
                table += [*scored.rows(level), *scored.code_rows(_code(part, rows, coded, groups), level)]
    trained = [kind for kind in readouts if kind != "ridge"]
    if trained:
        from .trained_readouts import trained_levels  # only when asked for: it trains networks

        for part, levels in trained_levels(held, trained, sites, seeds):
            scored = _Scored(targets, groups, part, centre, None, len(part.fold))
            table += _over_seeds([scored.rows(level) for level in levels])
    return _framed(table)


def _layer(cells: Moments, layer: int) -> Moments:
    """One layer of moments (cells, layers, ...), the axis kept; what the layers share has one already."""
    own = slice(layer, layer + 1)
    return cells._replace(x=cells.x[:, own], xx=cells.xx[:, own], xy=cells.xy[:, own])


def _groups(targets: Sequence) -> list[slice]:
    """Columns of each target, then of each shuffled one."""
    widths = [len(target.labels) for target in targets] * 2
    ends = np.cumsum(widths).tolist()
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def _fold_sums(cells: Moments, folds: Sequence[Sequence[int]]) -> Moments:
    return Moments(*(torch.stack([value[list(fold)].sum(0) for fold in folds]) for value in cells))


def _place_means(places: tuple[Tensor, Tensor], folds: Sequence[Sequence[int]], whole: Moments) -> Tensor:
    """(F, P, 2M) mean target at each place in the other folds; the mean of all where they have none there."""
    counts, values = (torch.stack([part[list(fold)].sum(0) for fold in folds]) for part in places)
    n, y = counts.sum(0) - counts, values.sum(0) - values
    overall = y.sum(1, keepdim=True) / n.sum(1)[:, None, None]
    return torch.where(n[..., None] > 0, y / n.clamp(min=1e-30)[..., None], overall)


def _references(base: Moments, centre: Tensor, places, folds, held: Held) -> list[Level]:
    """The constant mean and the mean at each place."""
    whole = base.sum()
    rest_n, rest_y = whole.n - base.n, whole.y - base.y  # (F, 1), (F, 1, 2M)
    mean = (rest_y / rest_n[..., None])[:, 0]
    empty = base.x.new_zeros(*base.xy.shape)
    error = squared_error(base, empty, mean[:, None])[:, 0].sum(0)
    constant = mean[held.fold][:, None].expand_as(held.y)
    counts, values = (torch.stack([part[list(fold)].sum(0) for fold in folds]) for part in places)
    by_place = base.yy[:, 0] - 2 * (centre * values).sum(1) + (counts[..., None] * centre.square()).sum(1)
    told = {"readout": "ridge"}
    at_place = centre[held.fold[:, None], held.place]
    used = int((counts.sum(0) > 0).sum())
    return [
        Level(constant, error, told | {"features": "mean", "width": 0}),
        Level(at_place, by_place.sum(0), told | {"features": "place", "width": used}),
    ]


def _told(bank: str, layer: int, sites: Sequence[str], tower: str | None, part: Moments) -> dict:
    own = {"layer": layer, "site": sites[layer]} if bank == "layer" else {"site": tower if bank == "tower" else None}
    return {"readout": "ridge", "features": bank, **own, "width": part.x.shape[-1]}


def _ridge_level(found: Validated, held: Held, bank: str, layer: int, told: dict) -> Level:
    coef, intercept = found.coef[:, 0][held.fold], found.intercept[:, 0][held.fold]  # (N, D, 2M), (N, 2M)
    pred = torch.baddbmm(intercept[:, None], held.x[bank][layer].double(), coef)
    return Level(pred, found.error[:, 0].sum(0), told, None, found.alpha[:, 0].median(0).values.view(2, -1))


def _code(cells: Moments, rows: Tensor, coded: Sequence[Sequence[int]], groups: Sequence[slice]) -> Tensor | None:
    """(2 * targets,) bits saved by the online code; None with less than three blocks, as the first two are the prior's."""
    blocks = [list(group) for group in coded if float(rows[list(group)].sum())]
    if len(blocks) < 3:
        return None
    return saved_bits([Moments(*(value[group].sum(0) for value in cells)) for group in blocks], groups)[0]


class _Scored:
    """The scores of levels on the same pictures."""

    def __init__(self, targets, groups, held: Held, centre: Tensor, total: Tensor | None, n: int):
        self.targets, self.groups, self.held, self.n = targets, groups, held, n
        self.centre = centre[held.fold[:, None], held.place]  # (N, T, 2M)
        # deviations are taken from the mean of these pictures, or of all where there are more
        mean = (held.y * held.weight[..., None]).sum((0, 1)) / max(len(held.fold), 1)
        self.spread = (held.weight[..., None] * (held.y - mean).square()).sum(1)  # (N, 2M)
        self.total = self.spread.sum(0) if total is None else total
        there = held.weight > 0
        self.same_places = bool((held.place == held.place[:1]).all() and (there == there[:1]).all())
        self.there = there[..., None]
        # of each group the targets and the means at their places, 0 where there is no token
        self.known = [
            [torch.where(self.there, value[..., group], 0) for value in (held.y, self.centre)] for group in groups
        ]

    def rows(self, level: Level) -> list[dict]:
        """All rows of a level."""
        error = (self.held.weight[..., None] * (level.pred - self.held.y).square()).sum(1)  # (N, 2M)
        all_error = error.sum(0) if level.error is None else level.error
        rows = []
        half = len(self.targets)
        for t, target in enumerate(self.targets):
            effects = []
            for labels, group in (("true", self.groups[t]), ("shuffled", self.groups[half + t])):
                told = self._told(level, target) | {"labels": labels}
                if level.alpha is not None:
                    told["alpha"] = float(level.alpha[0 if labels == "true" else 1, t])
                for quantity, uniform in (("r2", False), ("r2_uniform", True)):
                    value = explained(all_error[group], self.total[group], uniform=uniform)
                    effect = influence(
                        error[:, group], self.spread[:, group], all_error[group], self.total[group], self.n, uniform=uniform
                    )  # fmt: skip
                    rows.append(told | _estimate(quantity, linearised(float(value), effect, self.n)))
                    if not uniform:
                        effects.append((float(value), effect))
                rows += [told | row for row in self._kept_rows(level.pred[..., group], group, target)]
            (real, a), (control, b) = effects
            rows.append(self._told(level, target) | _estimate("selectivity", linearised(real - control, a - b, self.n)))
        return rows

    @staticmethod
    def _told(level: Level, target) -> dict:
        linear = (level.told["width"] + 1) * len(target.labels)
        return {**level.told, "target": target.name, "parameters": linear if level.size is None else level.size}

    def _kept_rows(self, pred: Tensor, group: slice, target) -> list[dict]:
        y, centre = self.known[self.groups.index(group)]
        pred = torch.where(self.there, pred, 0)
        zero = (pred.flatten(1).norm(dim=1) == 0).double()
        rows = [
            _estimate(name, mean_over_samples(powers(values).sum(0)))
            for name, values in (("cos_flat", cos_flat(pred, y)), ("cos_centred", cos_centred(pred, y, centre)))
        ]
        if zero.any():
            rows.append(_estimate("zero", proportion(zero)))
        if target.classes:
            right, both, either = class_counts(pred, y, self.held.weight)
            rows.append(_estimate("accuracy", mean_over_samples(powers(right).sum(0))))
            rows.append(_estimate("miou", _iou(both, either)))
        if self.same_places and len(y) > 1:
            found = retrieval_ranks((pred - centre).flatten(1), (y - centre).flatten(1)) == 0
            # a prediction of nothing is as near to all targets: it finds none
            found &= (pred - centre).flatten(1).norm(dim=1) > 1e-9
            rows.append(_estimate("retrieval", proportion(found.double())) | {"chance": 1 / len(y)})
        return rows

    def code_rows(self, bits: Tensor | None, level: Level) -> list[dict]:
        if bits is None:
            return []
        pairs = [(labels, target) for labels in ("true", "shuffled") for target in self.targets]
        return [
            self._told(level, target) | {"labels": labels, "quantity": "saved_bits", "mean": float(value), "n": self.n}
            for (labels, target), value in zip(pairs, bits, strict=True)
        ]


def _over_seeds(runs: Sequence[list[dict]]) -> list[dict]:
    """Rows that agree but for the seed, joined: means of values and bounds, and the values' standard deviation."""
    joined = []
    for rows in zip(*runs, strict=True):
        means = {name: float(np.mean([row[name] for row in rows])) for name in ("mean", "low", "high")}
        sd = float(np.std([row["mean"] for row in rows], ddof=1)) if len(rows) > 1 else np.nan
        joined.append(rows[0] | means | {"sd_seeds": sd})
    return joined


def _iou(both: Tensor, either: Tensor) -> Estimate:
    """mIoU over all pictures, with a jackknife over blocks of them."""
    block = torch.arange(len(both)) % BLOCKS
    blocks = {
        name: both.new_zeros(BLOCKS, both.shape[1]).index_add_(0, block, value)
        for name, value in (("both", both), ("either", either))
    }
    counts = torch.bincount(block, minlength=BLOCKS)
    return jackknife(lambda sums: mean_iou(sums["both"], sums["either"]), blocks, counts, at_once=True)


def _estimate(quantity: str, found: Estimate) -> dict:
    return {
        "quantity": quantity, "mean": float(found.mean), "low": float(found.low), "high": float(found.high), "n": int(found.n),
    }  # fmt: skip


def _framed(rows: list[dict]) -> pd.DataFrame:
    table = pd.DataFrame([{name: row.get(name) for name in COLUMNS} for row in rows], columns=list(COLUMNS))
    numbers = ["mean", "low", "high", "chance", "alpha", "sd_seeds"]
    table[numbers] = table[numbers].astype(float)
    whole = dict.fromkeys(("layer", "width", "parameters", "n"), "Int64")
    texts = dict.fromkeys(("target", "readout", "features", "labels", "site", "reason"), "str")
    return table.astype(whole | texts)

"""The table of implicit alignment from its sums: similarities by layer, their controls and their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, vmap

from .intervals import BLOCKS, Estimate, jackknife, mean_of_groups, mean_over_samples
from .pairs import centred_units, pair_spread, permutation_p, retrieval
from .similarity import units

COLUMNS = (
    "quantity", "pair", "pooling", "variant", "layer", "site", "depth", "interval", "k",
    "mean", "low", "high", "sd", "n", "chance", "p", "reason",
)  # fmt: skip
POOLINGS = ("avg", "mean")
CURVES = (
    ("similarity", "P-T"), ("similarity", "P-P"), ("similarity", "T-T"), ("similarity", "p-p"), ("similarity", "t-t"),
    ("anchored", "P-T"), ("matched", "P-T"), ("mismatched", "P-T"), ("semantic", "P-T"),
)  # fmt: skip
SCORES = {"ima_same_layer": 0, "ima_input_anchor": 5}
ONE_SET = "between data sets: needs two or more groups"
FEW = "needs two or more samples"


def similarities(sums: dict[str, Tensor], centre: str = "none") -> Tensor:
    """Every curve of CURVES from sums over samples, as (9, layers + 1); the last column is the mean over layers.

    sums: count (S,), unit_sum (S, 2, layers, D), self_dot (S, 2, layers), matched_dot (S, layers), by data set (S) and
    group. The mean over all pairs of samples is a product of mean unit vectors. centre: "none"; "both" or "each": the mean
    unit vector of both groups, or of each, is subtracted, and inner products are divided by the root mean squares of the
    lengths that are left.
    """
    n = sums["count"][:, None]  # NaN where a data set has no sample: it is left out of the means
    n = torch.where(n > 0, n, torch.nan)
    mean = sums["unit_sum"] / n[..., None, None]  # (S, 2, layers, D)
    if centre == "none":
        about, scale = torch.zeros_like(mean[0]), 1
    else:
        about = mean.nanmean(0)
        if centre == "both":
            about = about.mean(0, keepdim=True).expand_as(about)
        # tokens are unit vectors: the mean square of |u - c| is 1 - 2 <u> c + c^2
        scale = (1 - 2 * (mean * about).sum(-1) + about.square().sum(-1)).clamp(min=0).nanmean(0).sqrt()  # (2, layers)
    left = mean - about
    product = scale[0] * scale[1] if centre != "none" else 1
    p, t = left[:, 0], left[:, 1]
    same = (p * t).sum(-1) / product  # (S, layers)
    anchored = (p[:, :1] * t).sum(-1) / (scale[0][0] * scale[1] if centre != "none" else 1)
    dots = sums["matched_dot"] / n  # sum over samples of <P_i - c> <T_i - c>
    dots = dots - (mean[:, 0] * about[1]).sum(-1) - (mean[:, 1] * about[0]).sum(-1) + (about[0] * about[1]).sum(-1)
    matched = dots / product
    mismatched = (n * same - matched) / (n - 1)
    own = sums["self_dot"] / n[..., None] - 2 * (mean * about).sum(-1) + about.square().sum(-1)
    within = (n[..., None] * left.square().sum(-1) - own) / (n[..., None] - 1)  # (S, 2, layers)
    within = within / (scale.square() if centre != "none" else 1)
    curves = [same, _between(left, scale, centre, 0), _between(left, scale, centre, 1), within[:, 0], within[:, 1]]
    curves += [anchored, matched, mismatched, matched - mismatched]
    table = torch.stack([torch.where(torch.isfinite(c), c, torch.nan).nanmean(0) for c in curves])
    return torch.cat([table, table.mean(1, keepdim=True)], 1)


def _between(left: Tensor, scale: Tensor | int, centre: str, group: int) -> Tensor:
    """Similarity of one group between different data sets, by pairs of them: (pairs, layers)."""
    pairs = [(a, b) for a in range(len(left)) for b in range(a)]
    if not pairs:
        return left.new_full((1, left.shape[2]), torch.nan)
    square = scale[group].square() if centre != "none" else 1
    return torch.stack([(left[a, group] * left[b, group]).sum(-1) / square for a, b in pairs])


def alignment_table(
    sums: dict[str, Tensor], rows: Tensor, *, intervals: Sequence[int], n_sets: int, permutations: int, seed: int
) -> pd.DataFrame:
    """sums: the states of `ImplicitAlignment`; rows: (n, 2 + 2 * layers * D) data set, block and pooled states of the
    samples kept. Returns the table its docstring describes."""
    by_block = {
        name: sums[name].unflatten(0, (n_sets, BLOCKS)).transpose(0, 1)
        for name in ("count", "unit_sum", "self_dot", "matched_dot", "state_sum")
    }  # (J, sets, ...)
    n = by_block["count"].sum(1)
    n_layers, width = sums["unit_sum"].shape[-2:]
    table = _Table(n_layers)
    for v, variant in enumerate(("raw", "without_outliers")):
        for p, pooling in enumerate(POOLINGS):
            some = {
                "count": by_block["count"],
                "unit_sum": by_block["unit_sum"][:, :, v, p],
                "self_dot": by_block["self_dot"][:, :, v, p],
                "matched_dot": by_block["matched_dot"][:, :, v, p],
            }
            table.curves(jackknife(vmap(similarities), some, n, at_once=True), pooling, variant, n_sets)
            if (variant, pooling) == ("raw", "mean"):
                for centre in ("both", "each"):
                    found = jackknife(vmap(lambda s, c=centre: similarities(s, c)), some, n, at_once=True)
                    table.curves(found, pooling, f"centred_{centre}", n_sets)
    kept = rows[:, 2:].double().view(len(rows), 2, n_layers, width)
    for variant in ("centred_both", "centred_each"):
        some = _sums_of(centred_units(kept, variant), rows, n_sets)
        found = jackknife(vmap(similarities), some, some["count"].sum(1), at_once=True)
        table.curves(found, "avg", variant, n_sets)
    table.by_layer(
        "global",
        jackknife(vmap(_grand), {k: by_block[k] for k in ("count", "state_sum")}, n, at_once=True),
        pair="P-T",
        pooling="avg",
        variant="raw",
    )

    directions = units(kept)
    table.spread(pair_spread(directions))
    for variant, vectors in (("raw", directions), ("centred_each", centred_units(kept, "centred_each"))):
        table.p_values(permutation_p(vectors, permutations, seed), variant)
        for pair, k, found in retrieval(vectors):
            table.by_layer(
                "retrieval", found, pair=pair, pooling="avg", variant=variant, k=k, chance=k / max(len(rows), 1)
            )

    _sample_means(table, sums, intervals)
    for interval in intervals:
        for p, pooling in enumerate(POOLINGS):

            def all_pairs(s: dict[str, Tensor], interval=interval, p=p) -> Tensor:
                mean = s["unit_sum"][:, 0, p, :, :-1] / s["count"][:, None, None, None]
                return (mean[:, :, : n_layers - 1 - interval] * mean[:, :, interval:]).sum(-1).nanmean(0)

            found = jackknife(vmap(all_pairs), {k: by_block[k] for k in ("count", "unit_sum")}, n, at_once=True)
            for g, pair in enumerate("PT"):
                part = Estimate(*(x[g] for x in found))
                table.by_layer("consecutive", part, pair=pair, pooling=pooling, variant="all", interval=interval)
    for count, reason in zip(sums["skipped"].tolist(), ("no picture in the sample", "no text to compare"), strict=True):
        table.add("skipped", n=int(count), reason=reason)
    return table.frame()


def _sums_of(vectors: Tensor, rows: Tensor, n_sets: int) -> dict[str, Tensor]:
    """Sums by block and data set of unit vectors (n, 2, layers, D), as the streamed ones are."""
    cell = (rows[:, 1] * n_sets + rows[:, 0]).long()
    values = {
        "count": torch.ones(len(rows), dtype=torch.double),
        "unit_sum": vectors,
        "self_dot": vectors.square().sum(-1),
        "matched_dot": (vectors[:, 0] * vectors[:, 1]).sum(-1),
    }
    return {
        name: value.new_zeros(BLOCKS * n_sets, *value.shape[1:])
        .index_add_(0, cell, value)
        .unflatten(0, (BLOCKS, n_sets))
        for name, value in values.items()
    }


def _grand(sums: dict[str, Tensor]) -> Tensor:
    """Cosine of the grand means of both groups, by layer, mean over data sets."""
    mean = units(sums["state_sum"] / sums["count"][:, None, None, None])
    return (mean[:, 0] * mean[:, 1]).sum(-1).nanmean(0)


def _sample_means(table: _Table, sums: dict[str, Tensor], intervals: Sequence[int]) -> None:
    """What is a mean over samples: norms, consecutive layers of the same token, share of sinks."""
    for g, pair in enumerate("PT"):
        for kind, pooling in enumerate(("mean", "median", "pooled")):
            found = mean_of_groups(mean_over_samples(sums["norms"][:, kind, g]))
            table.by_layer("norm", found, pair=pair, pooling=pooling, variant="raw")
        for i, interval in enumerate(intervals):
            for p, pooling in enumerate(POOLINGS):
                found = mean_of_groups(mean_over_samples(sums["consecutive"][:, p, i, g, :-interval]))
                table.by_layer("consecutive", found, pair=pair, pooling=pooling, variant="matched", interval=interval)
        found = mean_of_groups(mean_over_samples(sums["sinks"][:, g]))
        table.by_layer("sinks", found, pair=pair)


class _Table:
    """Rows in the making."""

    def __init__(self, n_layers: int):
        self.n_layers, self.rows = n_layers, []
        self.last = n_layers - 2  # number of blocks
        self.sites = ["embed", *(f"blocks.{i}.resid_post" for i in range(self.last)), "final"]

    def add(self, quantity: str, **columns) -> None:
        self.rows.append({"quantity": quantity, **columns})

    def by_layer(self, quantity: str, found: Estimate, **columns) -> None:
        for layer in range(found.mean.shape[-1]):
            values = {name: x[..., layer].item() for name, x in found._asdict().items()}
            if not np.isfinite(values["mean"]):
                columns = {"reason": FEW} | columns
            self.add(
                quantity,
                **{"layer": layer, "site": self.sites[layer], "depth": min(layer / self.last, 1.0)} | values | columns,
            )

    def curves(self, found: Estimate, pooling: str, variant: str, n_sets: int) -> None:
        for i, (quantity, pair) in enumerate(CURVES):
            part = Estimate(*(x[i, :-1] for x in found))
            more = {"reason": ONE_SET} if pair in ("P-P", "T-T") and n_sets < 2 else {}
            self.by_layer(quantity, part, pair=pair, pooling=pooling, variant=variant, **more)
        for quantity, i in SCORES.items():
            values = {name: x[i, -1].item() for name, x in found._asdict().items()}
            more = {} if np.isfinite(values["mean"]) else {"reason": FEW}
            self.add(quantity, pair="P-T", pooling=pooling, variant=variant, **values, **more)

    def spread(self, sd: Tensor) -> None:
        self._fill(("similarity", "P-T", "avg", "raw"), "sd", sd)

    def p_values(self, p: Tensor, variant: str) -> None:
        self._fill(("semantic", "P-T", "avg", variant), "p", p)

    def _fill(self, which: tuple[str, ...], column: str, values: Tensor) -> None:
        for row in self.rows:
            if (row["quantity"], row.get("pair"), row.get("pooling"), row.get("variant")) == which:
                row[column] = values[row["layer"]].item()

    def frame(self) -> pd.DataFrame:
        frame = pd.DataFrame(self.rows, columns=list(COLUMNS))
        return frame.astype({"layer": "Int64", "interval": "Int64", "k": "Int64", "n": "Int64"})

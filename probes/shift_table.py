"""The table of attention shift from its sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .intervals import Estimate, jackknife, mean_over_samples
from .segment_curves import QUERIES, SEGMENTS, VERSIONS
from .shifts import COMPARATORS, distance

COLUMNS = (
    "quantity", "run", "version", "queries", "segment", "layer", "site", "kind", "head", "comparator", "order", "image", "draw",
    "mean", "low", "high", "sd", "n", "p", "reason",
)  # fmt: skip
SHIFT_VERSIONS = ("raw", "without_sink", "without_image", "log_ratio")
FLOOR = 1e-8
NOBODY = "no sample with text before and after its picture and queries of this kind"
FLAT = "a curve without variance (or a negative one, for js) in every sample"
FEW_LAYERS = "less than two layers with full attention"


def shift_table(
    sums: dict[str, Tensor], *, kinds: Sequence[str], layers: Sequence[int], used: Sequence[int], reasons: Sequence[str]
) -> pd.DataFrame:
    """sums: the states of `AttentionShift`; kinds: of all decoder layers; layers: those with masses; used: which of these
    take part in shifts; reasons: of skipped samples. Returns the table its docstring describes."""
    table = _Table(sums["eligible"].tolist(), len(used))
    place = [{"layer": i, "site": f"blocks.{i}.attn_mass", "kind": kinds[i]} for i in layers]
    version, queries, segment = (
        _axis(*x) for x in (("version", *VERSIONS), ("queries", *QUERIES), ("segment", *SEGMENTS))
    )
    comparator, head = _axis("comparator", *COMPARATORS), _axis("head", *range(sums["head_mass"].shape[1]))
    vlm, per_sample = {"run": "vlm"}, {"order": "per_sample_then_mean"}

    table.block("mass", mean_over_samples(sums["mass"]), version, queries, segment, place, **vlm)
    table.block("uniform", mean_over_samples(sums["uniform"]), queries, segment, version="uniform")
    table.block("head_mass", mean_over_samples(sums["head_mass"]), place, head, queries, segment, version="raw", **vlm)

    versions = _axis("version", *SHIFT_VERSIONS)
    shifts = mean_over_samples(sums["shift"])
    table.shifts("shift", shifts, comparator, versions, queries, **vlm, **per_sample)
    table.shifts("shift", _of_means(sums), comparator, versions, queries, **vlm, order="curve_of_means")
    if len(used) > 1:
        null = mean_over_samples(sums["null"])
        turns = _axis("draw", *range(1, len(used)))
        table.block("null_circular", null, queries, turns, version="raw", comparator="pearson", **vlm, **per_sample)
        dealt = mean_over_samples(sums["null_labels"])
        table.block("null_labels", dealt, queries, version="raw", comparator="pearson", **vlm, **per_sample)
        observed = shifts.mean[COMPARATORS.index("pearson"), 0]
        table.p_values((1 + (null.mean <= observed[:, None]).sum(1)) / (1 + null.mean.shape[1]), observed)
    split = mean_over_samples(sums["split"])
    for k in np.flatnonzero((split.n > 0).any((1, 2))).tolist():
        part = Estimate(*(x[k] for x in split))
        table.block("shift_split", part, comparator, queries, image=k, version="raw", **vlm, **per_sample)

    if "text_mass" in sums:
        two, three = versions[:2], versions[:3]
        table.block("mass", mean_over_samples(sums["text_mass"]), version[:2], queries, segment, place, run="text")
        found = mean_over_samples(sums["text_shift"])
        table.shifts("shift", found, comparator, two, queries, run="text", **per_sample)
        table.shifts("difference", mean_over_samples(sums["difference"]), comparator, two, queries, **per_sample)
        ends = _axis("segment", "before", "after")
        found = mean_over_samples(sums["distance"])
        table.shifts("distance", found, ends, three, queries, comparator="pearson", **per_sample)

    for i, kind in enumerate(kinds):
        if i not in layers:
            table.add("left_out", layer=i, kind=kind, reason="no softmax attention between tokens")
        elif layers.index(i) not in used:
            table.add(
                "left_out", layer=i, kind=kind, reason="a window hides the text before the picture: no part of shifts"
            )
    for count, reason in zip(sums["skipped"].tolist(), reasons, strict=True):
        table.add("skipped", n=int(count), reason=reason)
    return table.frame()


def _of_means(sums: dict[str, Tensor]) -> Estimate:
    """The shift of the mean curves, with the jackknife: (comparators, versions, queries)."""
    if sums["curve_sum"].shape[-1] < 2:
        empty = np.full((len(COMPARATORS), len(SHIFT_VERSIONS), len(QUERIES)), np.nan)
        return Estimate(empty, empty, empty, empty, np.zeros(empty.shape, int))

    def statistic(s: dict[str, Tensor]) -> Tensor:
        curves = s["curve_sum"] / s["curve_count"][:, None, None]  # (3, Q, 3, layers)
        before, image, after = curves.unbind(2)
        ends = [torch.cat([x, ((x[:1] + FLOOR) / (image[:1] + FLOOR)).log()]) for x in (before, after)]
        return torch.stack([distance(*ends, c) for c in COMPARATORS])

    some = {name: sums[name] for name in ("curve_sum", "curve_count")}
    found = jackknife(statistic, some, sums["curve_count"].amax(1))
    n = np.broadcast_to(sums["curve_count"].sum(0).numpy().astype(int), found.mean.shape)
    # the jackknife knows no bounds: every distance is at least 0, and 1 - a correlation at most 2
    most = np.where(np.isin(COMPARATORS, ("pearson", "spearman", "cosine")), 2, np.inf)[:, None, None]
    return found._replace(low=np.maximum(found.low, 0), high=np.minimum(found.high, most), n=n)


def _axis(column: str, *values) -> list[dict]:
    return [{column: value} for value in values]


class _Table:
    """Rows in the making."""

    def __init__(self, eligible: list[int], n_used: int):
        self.eligible, self.n_used, self.rows = eligible, n_used, []

    def add(self, quantity: str, **columns) -> None:
        self.rows.append({"quantity": quantity, **columns})

    def block(self, quantity: str, found: Estimate, *axes: list[dict], **columns) -> None:
        """One row for every cell of an estimate whose axes are what `axes` say."""
        for index in np.ndindex(found.mean.shape):
            values = {name: x[index].item() for name, x in found._asdict().items()}
            where = {k: v for axis, i in zip(axes, index, strict=True) for k, v in axis[i].items()}
            reason = {} if np.isfinite(values["mean"]) else {"reason": NOBODY}
            self.rows.append({"quantity": quantity, **reason, **columns, **where, **values})

    def shifts(self, quantity: str, found: Estimate, *axes: list[dict], **columns) -> None:
        """As `block`, with the number of eligible samples whose value is undefined, and why a mean is."""
        start = len(self.rows)
        self.block(quantity, found, *axes, **columns)
        for row in self.rows[start:]:
            eligible = self.eligible[QUERIES.index(row["queries"])]
            if not np.isfinite(row["mean"]):
                row["reason"] = NOBODY if not eligible else FEW_LAYERS if self.n_used < 2 else FLAT
            if (
                quantity == "shift"
                and row["order"] == "per_sample_then_mean"
                and row["run"] == "vlm"
                and self.n_used > 1
            ):
                missing = eligible - row["n"]
                which = {name: row[name] for name in ("run", "version", "queries", "comparator")}
                self.rows.append({"quantity": "undefined", **which, "n": missing})

    def p_values(self, p: np.ndarray, observed: np.ndarray) -> None:
        for row in self.rows:
            is_plain = row.get("order") == "per_sample_then_mean" and row.get("version") == "raw"
            if row["quantity"] == "shift" and is_plain and row["comparator"] == "pearson":
                q = QUERIES.index(row["queries"])
                row["p"] = p[q] if np.isfinite(observed[q]) else np.nan

    def frame(self) -> pd.DataFrame:
        frame = pd.DataFrame(self.rows, columns=list(COLUMNS))
        return frame.astype(dict.fromkeys(("layer", "head", "image", "draw", "n"), "Int64"))

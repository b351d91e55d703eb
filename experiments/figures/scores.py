"""Figures of a table of scores (`experiments.scores`), of one run or of several: each method's value, and what it changes."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ..style import look
from .chart import Chart, Figure, Panel, Points
from .rows import pick

LESS = {"chair_i", "chair_s", "chair", "hal", "cog", "cog_mentioned", "unparsed_rate", "ece"}
"""Metrics of which less is better."""

NEITHER = {"yes_ratio", "mean_length", "objects_per_caption", "mass"}
"""Metrics of which neither more nor less is better by itself."""

COUNTS = {"mean_length": "words", "objects_per_caption": "mentions", "score": "points", "auc": "", "ece": ""}
"""Metrics that are no shares, and their units."""

NAMES = {
    "accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1", "yes_ratio": "Share of yes",
    "unparsed_rate": "Neither yes nor no", "chair_i": "CHAIR_i, mentions made up", "chair_s": "CHAIR_s, texts with one made up",
    "mean_length": "Length", "objects_per_caption": "Objects mentioned", "chair": "CHAIR, mentions made up",
    "cover": "Objects covered", "hal": "Texts with one made up", "cog": "Lures fallen for", "score": "Score",
    "accuracy_plus": "Pictures all right", "figure_accuracy": "Figures all right", "pair_accuracy": "Pairs all right",
    "auc": "AUC", "ece": "Calibration error", "mass": "Probability on yes and no",
}  # fmt: skip
"""Metric → for people."""


def named(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))


def better(metric: str) -> str:
    """Which way is better, in words."""
    return "" if metric in NEITHER else "less is better" if metric in LESS else "more is better"


def values(tables: Mapping[str, pd.DataFrame], metric: str, split: str) -> Figure | None:
    """A row a method and run: the metric with its interval. tables: name of a run → its scores. None where no run has it."""
    return _forest(tables, metric, split, ("mean", "low", "high"), f"{named(metric)} of each method", "scores")


def differences(tables: Mapping[str, pd.DataFrame], metric: str, split: str) -> Figure | None:
    """The same for the difference from the plain method, paired over pictures. None where nothing was compared."""
    columns = ("difference", "difference_low", "difference_high")
    return _forest(tables, metric, split, columns, f"{named(metric)}: what each method changes", "differences")


def _forest(tables, metric: str, split: str, columns: tuple[str, str, str], title: str, kind: str) -> Figure | None:
    scale, unit = (1.0, COUNTS[metric]) if metric in COUNTS else (100.0, "%" if kind == "scores" else "points")
    rows = {name: pick(table, metric=metric, split=split).set_index("method") for name, table in tables.items()}
    rows = {name: found[found[columns[0]].notna()] for name, found in rows.items()}
    methods = dict.fromkeys(method for found in rows.values() for method in found.index)
    lines = [(method, name) for method in methods for name, found in rows.items() if method in found.index]
    if not lines:
        return None
    places = {line: -float(i) for i, line in enumerate(lines)}
    marks = []
    for k, (name, found) in enumerate(rows.items()):
        if len(found):
            at = [places[method, name] for method in found.index]
            numbers = [(scale * found[column].astype(float)).tolist() for column in columns]
            marks.append(
                Points(numbers[0], at, name if len(rows) > 1 else "", look(k).with_(dash=""), numbers[1], numbers[2])
            )
    ticks = [method if len(rows) == 1 else f"{method} · {name}" for method, name in lines]
    n = sorted({int(found["n"].max()) for found in rows.values() if len(found)})
    plain = sorted({method for table in tables.values() for method in _plain(table)})
    against = f", against {', '.join(plain)}" if kind == "differences" and plain else ""
    way = f" {better(metric).capitalize()}." if better(metric) else " Neither more nor less is better by itself."
    reading = {
        "scores": f"Each point is one way of decoding; the whisker is its 95 % interval over pictures.{way}"
        " Two whiskers may overlap although the difference is clear, since all methods answer the same questions: see the differences.",
        "differences": f"Each point is one way of decoding, less the plain one on the same questions.{way}"
        " Where the whisker crosses 0 the method may as well do nothing.",
    }[kind]
    panel = Panel(
        "", f"{named(metric)}{against}" + (f" ({unit})" if unit else ""), "", marks,
        upright=(0.0, "") if kind == "differences" else None, y_ticks=(list(places.values()), ticks),
        y_limits=(-len(lines) + 0.4, 0.6), direct=False,
    )  # fmt: skip
    return Figure(
        f"{kind}_{metric}_{split}".replace(" ", "_"), title, reading,
        f"{title}, with intervals, for {len(methods)} methods" + (f" of {len(rows)} runs." if len(rows) > 1 else "."),
        Chart(
            [panel],
            f"n = {' and '.join(f'{one:,}' for one in n)} answers a method; whiskers: {'paired ' * (kind == 'differences')}95 % interval over pictures",
            columns=1,
            height=0.95 + 0.25 * len(lines),
        ),
    )  # fmt: skip


def _plain(table: pd.DataFrame) -> set[str]:
    """The method that the others were compared with: the one without a difference."""
    compared = table.groupby("method")["difference"].apply(lambda column: column.notna().any())
    return set(compared.index[~compared]) if compared.any() else set()

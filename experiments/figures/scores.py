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
    return _forest(tables, metric, split, ("mean", "low", "high"), f"{named(metric)}: each method", "scores")


def differences(tables: Mapping[str, pd.DataFrame], metric: str, split: str) -> Figure | None:
    """The same for the difference from the plain method, paired over pictures. None where nothing was compared."""
    columns = ("difference", "difference_low", "difference_high")
    return _forest(tables, metric, split, columns, f"{named(metric)}: what each method changes", "differences")


def _forest(tables, metric: str, split: str, columns: tuple[str, str, str], title: str, kind: str) -> Figure | None:
    scale, unit = (1.0, COUNTS[metric]) if metric in COUNTS else (100.0, "%" if kind == "scores" else "points")
    rows = {name: pick(table, metric=metric, split=split).set_index("method") for name, table in tables.items()}
    rows = {name: found[found[columns[0]].notna()] for name, found in rows.items()}
    methods = {
        method: [name for name, found in rows.items() if method in found.index]
        for found in rows.values()
        for method in found.index
    }
    if not methods:
        return None
    places, y = {}, 0.0  # the runs of a method below each other, with more room to the next method
    for method, names in methods.items():
        places |= {(method, name): y - i for i, name in enumerate(names)}
        y -= len(names) + (0.6 if len(rows) > 1 else 0.0)
    marks = []
    for k, (name, found) in enumerate(rows.items()):
        if len(found):
            at = [places[method, name] for method in found.index]
            numbers = [(scale * found[column].astype(float)).tolist() for column in columns]
            label = name if len(rows) > 1 else ""
            marks.append(Points(numbers[0], at, label, look(k).with_(dash=""), numbers[1], numbers[2]))
    middles = [sum(places[method, name] for name in names) / len(names) for method, names in methods.items()]
    n = sorted({int(found["n"].max()) for found in rows.values() if len(found)})
    plain = sorted({method for table in tables.values() for method in _plain(table)})
    against = f", against {', '.join(plain)}" if plain else ""
    way = f" {better(metric).capitalize()}." if better(metric) else " Neither more nor less is better by itself."
    reading = {
        "scores": f"Each point is one way of decoding; the whisker is its 95 % interval over pictures.{way}"
        " Two whiskers may overlap although the difference is clear, since all methods answer the same questions: see the differences.",
        "differences": f"Each point is one way of decoding, less the plain one on the same questions.{way}"
        " Where the whisker crosses 0 the method may as well do nothing.",
    }[kind]
    panel = Panel(
        "", unit + against if kind == "differences" else unit, "", marks, upright=(0.0, "") if kind == "differences" else None,
        y_ticks=(middles, list(methods)), y_limits=(min(places.values()) - 0.6, 0.6 + (len(rows) > 1)), direct=False,
    )  # fmt: skip
    return Figure(
        f"{kind}_{metric}_{split}".replace(" ", "_"), title, reading,
        f"{title}, with intervals, for {len(methods)} methods" + (f" of {len(rows)} runs." if len(rows) > 1 else "."),
        Chart(
            [panel],
            f"n = {' and '.join(f'{one:,}' for one in n)} answers a method; whiskers: {'paired ' * (kind == 'differences')}95 % interval over pictures",
            columns=1,
            height=0.95 + 0.25 * (0.6 - min(places.values())),
        ),
    )  # fmt: skip


def _plain(table: pd.DataFrame) -> set[str]:
    """The method that the others were compared with: the one without a difference."""
    compared = table.groupby("method")["difference"].apply(lambda column: column.notna().any())
    return set(compared.index[~compared]) if compared.any() else set()

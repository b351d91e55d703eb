"""Figures of scores: each method's value with its interval and what it changes, of one run or of several."""

from __future__ import annotations

import numpy as np
import pandas as pd
from chiasm.experiments.figures import draw
from chiasm.experiments.figures.scores import better, differences, named, values

ROWS = {"greedy": (0.5, 0.4, 0.6, np.nan, np.nan, np.nan), "vcd": (0.6, 0.5, 0.7, 0.1, -0.05, 0.2)}
COLUMNS = ["mean", "low", "high", "difference", "difference_low", "difference_high"]


def table(metric="accuracy", n=40, methods=("greedy", "vcd"), split="all"):
    rows = [
        dict(zip(COLUMNS, ROWS[method], strict=True)) | {"method": method, "metric": metric, "split": split, "n": n}
        for method in methods
    ]
    return pd.DataFrame(rows)


def points(figure):
    return figure.chart.panels[0].marks


def test_one_run_has_a_row_a_method_in_per_cent_with_whiskers():
    figure = values({"run": table()}, "accuracy", "all")
    (mark,) = points(figure)
    assert list(mark.x) == [50, 60] and list(mark.x_low) == [40, 50] and list(mark.x_high) == [60, 70]
    assert figure.chart.panels[0].y_ticks[1] == ["greedy", "vcd"] and mark.y[0] > mark.y[1] and mark.label == ""
    assert "n = 40" in figure.chart.note and "interval" in figure.chart.note and "More is better" in figure.reading


def test_differences_leave_the_plain_method_out_and_name_it():
    figure = differences({"run": table("chair_i")}, "chair_i", "all")
    (mark,) = points(figure)
    assert list(mark.x) == [10] and "greedy" in figure.chart.panels[0].x_label and "paired" in figure.chart.note
    assert figure.chart.panels[0].upright == (0.0, "") and "Less is better" in figure.reading


def test_runs_stand_below_each_other_under_their_method():
    figure = values({"a": table(), "b": table(n=30, methods=("greedy",))}, "accuracy", "all")
    first, second = points(figure)
    assert (first.label, second.label) == ("a", "b") and first.look.colour != second.look.colour
    heights = {**{("a", m): y for m, y in zip(("greedy", "vcd"), first.y, strict=True)}, ("b", "greedy"): second.y[0]}
    assert heights["a", "greedy"] > heights["b", "greedy"] > heights["a", "vcd"]
    middles, methods = figure.chart.panels[0].y_ticks
    assert methods == ["greedy", "vcd"] and middles[0] == (heights["a", "greedy"] + heights["b", "greedy"]) / 2
    assert "30 and 40" in figure.chart.note
    draw(figure)


def test_counts_are_no_per_cent_and_what_is_not_there_is_not_drawn():
    assert list(points(values({"run": table("mean_length")}, "mean_length", "all"))[0].x) == [0.5, 0.6]
    assert values({"run": table()}, "f1", "all") is None and values({"run": table()}, "accuracy", "popular") is None
    assert differences({"run": table(methods=("greedy",))}, "accuracy", "all") is None


def test_names_and_directions():
    assert named("chair_i").startswith("CHAIR_i") and named("odd_metric") == "odd metric"
    assert [better(metric) for metric in ("chair_s", "accuracy", "yes_ratio")] == [
        "less is better",
        "more is better",
        "",
    ]

"""Figures of several tables in one: each curve keeps its numbers, levels come once, what is no curve stands beside."""

import pytest
from chiasm.experiments.figures import Chart, Figure, Heat, Line, Panel, Points, draw_interactive, draw_picture
from chiasm.experiments.figures.comparison import beside, can_overlay, together
from chiasm.experiments.style import LOOKS, NULL

LEVEL = LOOKS[4].with_(marker="")


def figure(*marks, title="Depth", note="n = 4; band: 95 % interval", ticks=None):
    panel = Panel(title, "layer", "R²", list(marks), level=(0, ""), x_ticks=ticks)
    return Figure("layers", "What is known?", "Read it so.", "A chart.", Chart([panel], note))


def line(y, label, look=LOOKS[0], **more):
    return Line(list(range(len(y))), y, label, look, **more)


def test_a_curve_of_each_table_is_a_line_in_its_panel():
    a = figure(line([0.1, 0.2], "states", low=[0, 0.1], high=[0.2, 0.3]), line([0.0, 0.1], "shuffled", LOOKS[1]))
    b = figure(line([0.5, 0.9], "states"), line([0.2, 0.2], "shuffled", LOOKS[1]), note="n = 9; band: 95 % interval")
    made = together({"tuned": a, "aligned": b})
    assert [panel.title for panel in made.chart.panels] == ["Depth: states", "Depth: shuffled"]
    states = made.chart.panels[0].marks
    assert [(mark.label, mark.y, mark.look) for mark in states] == [("tuned", [0.1, 0.2], LOOKS[0]), ("aligned", [0.5, 0.9], LOOKS[1])]  # fmt: skip
    assert (states[0].low, states[0].high, states[1].low) == ([0, 0.1], [0.2, 0.3], None)
    low, high = made.chart.panels[0].y_range()
    assert (
        low <= 0 and high >= 0.9 and made.chart.panels[1].y_range() == (low, high)
    )  # panels of one title share their axis
    assert made.chart.note == "tuned: n = 4; band: 95 % interval\naligned: n = 9; band: 95 % interval"
    assert "tuned, aligned" in made.alt and made.reading.endswith("Read it so.")


def test_levels_go_with_their_curves_once_where_tables_agree():
    a = figure(line([0.1, 0.2], "states"), line([0.6, 0.6], "tower", LEVEL), line([0.3, 0.3], "states, place", LEVEL))
    b = figure(line([0.5, 0.9], "states"), line([0.6, 0.6], "tower", LEVEL), line([0.4, 0.4], "states, place", LEVEL))
    (panel,) = together({"a": a, "b": b}).chart.panels
    assert panel.title == "Depth"
    assert [(mark.label, mark.y[0]) for mark in panel.marks] == [("a", 0.1), ("b", 0.5), ("states, place", 0.3), ("", 0.4), ("tower", 0.6)]  # fmt: skip
    assert panel.marks[3].look.colour == LOOKS[1].colour and panel.marks[4].look == LEVEL


def test_a_line_without_a_name_is_the_chance_of_the_curve_before_it():
    a = figure(line([0.1, 0.2], "top 1"), line([0.25, 0.25], "", NULL), line([0.4, 0.6], "top 5", LOOKS[1]))
    panels = together({"a": a, "b": a}).chart.panels
    assert [[mark.y[0] for mark in panel.marks] for panel in panels] == [[0.1, 0.1, 0.25], [0.4, 0.4]]


def test_models_of_different_depth_have_no_ticks_of_one_of_them():
    a = figure(line([0.1, 0.2], "s"), ticks=([0, 1], ["input", "norm"]))
    b = figure(line([0.1, 0.2, 0.3], "s"), ticks=([0, 1, 2], ["input", "1", "norm"]))
    assert together({"a": a, "b": b}).chart.panels[0].x_ticks is None
    assert together({"a": a, "b": a}).chart.panels[0].x_ticks == ([0, 1], ["input", "norm"])


def test_what_is_no_curve_stands_beside_on_one_scale():
    a, b = (figure(Heat([[low, high]], ["r"], ["1", "2"], "share"), title="Heads") for low, high in ((0, 1), (2, 5)))
    assert not can_overlay(a) and can_overlay(figure(line([1, 2], "s")))
    made = beside({"tuned": a, "aligned": b})
    assert [panel.title for panel in made.chart.panels] == [
        "tuned: heads",
        "aligned: heads",
    ] and made.chart.columns == 2
    assert [panel.marks[0].range for panel in made.chart.panels] == [(0, 5), (0, 5)]
    points = [figure(Points([1, 2], [0, y], "", LOOKS[0])) for y in (1, 9)]
    ranges = [panel.y_range() for panel in beside({"a": points[0], "b": points[1]}).chart.panels]
    assert ranges[0] == ranges[1] and ranges[0][1] > 9


@pytest.mark.parametrize("way", [together, beside])
def test_it_can_be_drawn_both_ways(way):
    made = way({name: figure(line([0.1, 0.2], "states"), line([0.6, 0.6], "tower", LEVEL)) for name in "abcd"})
    assert len(draw_picture(made.chart).axes) >= len(made.chart.panels)
    assert len(draw_interactive(made.chart).data) >= 4

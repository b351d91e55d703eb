"""Figures: what is drawn is what the table says, in both forms; looks that can be told apart without colour."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from chiasm.experiments import style
from chiasm.experiments.figures import (
    Areas,
    Chart,
    Heat,
    Line,
    Panel,
    Points,
    draw,
    draw_interactive,
    draw_picture,
)
from chiasm.experiments.figures.chart import spread, with_room
from chiasm.experiments.figures.rows import layer_ticks, pick, samples_note
from chiasm.experiments.lenses import LENSES, built_in, figures_of
from chiasm.experiments.options import PROBES
from chiasm.experiments.page import png_of
from chiasm.probes.measure import measure

from .pages import framed_scene, tiny_vlm


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """Real tables of every built-in probe, on a tiny random model."""
    vlm = tiny_vlm()
    samples = [framed_scene(i) for i in range(12)]
    return measure(vlm, samples, built_in(vlm, samples[0])[0], progress=False).tables


@pytest.fixture(scope="module")
def figures(tables):
    return {(probe, figure.name): figure for probe, table in tables.items() for figure in figures_of(probe, table)}


def test_every_built_in_probe_has_figures():
    assert set(LENSES) == set(PROBES) and all(lens.figures for lens in LENSES.values())


def test_every_figure_function_draws_something(tables):
    for probe, lens in LENSES.items():
        for function in lens.figures:
            assert function(tables[probe]) is not None, function.__name__


def test_words_of_figures(figures):
    assert len({name for _, name in figures}) == len(figures), "names are file names and must differ"
    for figure in figures.values():
        assert figure.title and len(figure.alt) > 30
        sentences = figure.reading.count(". ") + figure.reading.endswith(".")
        assert 2 <= sentences <= 4, figure.reading
        assert "n = 12" in figure.chart.note and "interval" in figure.chart.note, figure.chart.note
        for panel in figure.chart.panels:
            assert panel.x_label and panel.title


def test_both_drawings_hold_the_same_curves(figures):
    for figure in figures.values():
        picture, interactive = draw_picture(figure.chart), draw_interactive(figure.chart)
        axes = [axis for axis in picture.axes if axis.get_visible()]
        drawn = [np.asarray(line.get_ydata(), float) for axis in axes for line in axis.lines]
        traces = [
            np.array([np.nan if v is None else v for v in t.y], float)
            for t in interactive.data
            if t.type == "scatter" and t.y is not None
        ]
        for mark in (mark for panel in figure.chart.panels for mark in panel.marks if isinstance(mark, Line)):
            expected = np.asarray(mark.y, float)
            for found in (drawn, traces):
                assert any(len(y) == len(expected) and np.allclose(y, expected, equal_nan=True) for y in found), (
                    figure.name,
                    mark.label,
                )


def test_alignment_is_the_tables_column(tables, figures):
    chart = figures["implicit_alignment", "alignment"].chart
    table = tables["implicit_alignment"]
    for variant, label in (("raw", "raw"), ("centred_both", "centred"), ("without_outliers", "no outliers")):
        (line,) = [mark for mark in chart.panels[0].marks if mark.label == label]
        rows = pick(table, quantity="similarity", pair="P-T", pooling="avg", variant=variant).sort_values("layer")
        assert list(line.y) == rows["mean"].tolist() and list(line.low) == rows["low"].tolist()


def test_a_table_without_numbers_gives_no_figure(tables):
    for probe, table in tables.items():
        assert figures_of(probe, table.iloc[:0]) == []
        assert figures_of(probe, table.assign(mean=np.nan)) is not None  # and does not fail


def test_png_is_made_at_twice_the_pixels(figures):
    from io import BytesIO

    from PIL import Image

    drawn = draw(next(iter(figures.values())))
    image = Image.open(BytesIO(png_of(drawn.picture)))
    assert image.width == pytest.approx(style.WIDTH * 200, abs=2)


def test_looks_differ_without_colour():
    for looks in (
        style.LOOKS,
        (style.PICTURE, style.TEXT, style.BOTH),
        tuple(look for name, look in style.SEGMENTS.items() if name != "sink"),
    ):
        for one, other in itertools.combinations(looks, 2):
            assert (one.marker, one.dash) != (other.marker, other.dash)
            assert one.colour != other.colour


@pytest.mark.parametrize("background", [style.PAPER])
def test_text_has_contrast(background):
    def light(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        parts = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(parts @ [0.2126, 0.7152, 0.0722])

    for colour in (style.INK, style.SOFT):
        assert (light(background) + 0.05) / (light(colour) + 0.05) > 4.5


def test_spread_keeps_order_and_distance():
    places = spread([0.5, 0.51, 0.52, 0.1], 0.0, 1.0, 0.1)
    assert places[3] == pytest.approx(0.1)
    assert places[0] < places[1] < places[2]
    assert min(np.diff(sorted(places))) > 0.099
    assert spread([0.99, 1.0], 0.0, 1.0, 0.1) == pytest.approx([0.9, 1.0], abs=0.01)


def test_room_around_values():
    assert with_room([]) == (0.0, 1.0)
    assert with_room([float("nan"), 2.0]) == pytest.approx((1.88, 2.12))
    low, high = with_room([1.0, 100.0], logarithmic=True)
    assert 0 < low < 1 and high > 100


def test_every_mark_is_drawn_by_both():
    x = [0, 1, 2]
    panels = [
        Panel(
            "lines",
            "x",
            "y",
            [Line(x, [1, float("nan"), 3], "a", style.look(0), [0, 0, 0], [2, 2, 4])],
            level=(1, "one"),
        ),
        Panel(
            "points",
            "x",
            "y",
            [Points(x, x, "b", style.look(1), [0, 0, 0], [3, 3, 3], texts=["p", "<q>", "r"])],
            upright=(1, "here"),
        ),
        Panel("areas", "x", "y", [Areas(x, {"image": [0.4] * 3, "after": [0.6] * 3}, style.SEGMENTS)]),
        Panel("heat", "x", "y", [Heat([[0.1, 0.9]], ["r"], ["c", "d"], "value")]),
        Panel("log", "x", "y", [Line(x, [1, 10, 100], "c", style.look(2))], logarithmic=True),
    ]
    chart = Chart(panels, "n = 3 samples", columns=3)
    assert png_of(draw_picture(chart), 50).startswith(b"\x89PNG")
    text = draw_interactive(chart).to_json()
    assert "NaN" not in text and "<q>" not in text and "n = 3 samples" in text


def test_the_session_of_the_caller_is_left_alone():
    import matplotlib
    from matplotlib import pyplot

    before, open_figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    draw_picture(Chart([Panel("t", "x", "y", [Line([0, 1], [0, 1], "a", style.look(0))])], "n = 1"))
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == open_figures


def test_ticks_and_notes():
    assert layer_ticks(range(5), 3) == ([0, 1, 2, 3, 4], ["input", "1", "2", "3", "norm"])
    assert layer_ticks(range(34), 32) is None
    assert samples_note(pd.DataFrame({"n": [5, 5]})) == "n = 5 samples; band: 95 % interval"
    assert samples_note(pd.DataFrame({"n": [5, 1200]})).startswith("n = 5 to 1,200 samples")
    table = pd.DataFrame({"a": ["x", None], "k": pd.array([1, None], dtype="Int64")})
    assert len(pick(table, a=None)) == 1 and len(pick(table, k=1)) == 1 and len(pick(table, missing=None)) == 2
    assert pick(table, missing=3).empty

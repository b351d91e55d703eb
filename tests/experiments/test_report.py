"""The report: one page that loads nothing, with every probe's figures, its n, and nobody's markup but its own."""

from __future__ import annotations

import base64
import gzip
import json
import re

import pandas as pd
import pytest
from chiasm.experiments.lenses import figures_of
from chiasm.experiments.options import PROBES
from chiasm.experiments.page import interval, number, packed_plotly, script_json
from chiasm.experiments.report import report
from chiasm.experiments.run import load_run
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import BadSample, Sample

from ..probes.measuring import Norms
from .pages import framed, framed_scene, read, tiny_vlm

EVIL = "<script>alert('x')</script>"


class Drawing(Norms):
    """Norms, drawn by the probe itself."""

    name = "drawing"

    def draw(self, table: pd.DataFrame):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3, 2))
        figure.subplots().plot(table["layer"], table["mean"])
        return figure


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page over 10 good samples, one with markup in its id, prompt and answer, and a bad one; with two probes of a user's."""
    evil = framed(10)
    evil = Sample(f"id{EVIL}", evil.prompt, evil.images, evil.answer, {})
    data = [*[framed_scene(i) for i in range(9)], evil, BadSample(f"bad{EVIL}", f"unreadable {EVIL}")]
    vlm = tiny_vlm()
    vlm.name = f"tiny{EVIL}"
    path = report(vlm, data, tmp_path_factory.mktemp("runs"), probes=[Norms(), Drawing()], progress=False)
    return path, path.read_text(encoding="utf-8")


def test_the_page_loads_nothing(made):
    _, html = made
    page = read(html)
    assert page.loads and all(load.startswith("data:image/png;base64,") for load in page.loads)
    outside = re.findall(
        r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r"<script type=\"text/plain\".*?</script>", "", html, flags=re.DOTALL)
    )
    assert not outside, outside
    assert "@import" not in html and "url(" not in html
    assert "link" not in page.tags and "iframe" not in page.tags


def test_every_picture_is_one_and_has_a_text(made):
    page = read(made[1])
    for load in page.loads:
        assert base64.b64decode(load.split(",", 1)[1]).startswith(b"\x89PNG")
    assert all(len(alt) > 10 for alt in page.alts)


def test_every_figure_of_every_probe_is_there(made):
    path, html = made
    page, run = read(html), load_run(path.parent)
    for probe in PROBES:
        for figure in figures_of(probe, run.read_table(probe)):
            assert f"probe-{probe}-{figure.name}".replace("_", "-") in page.ids
            assert figure.title in page.text and figure.reading in page.text
            assert (path.parent / "figures" / f"{probe}.{figure.name}.png").exists()
            assert (path.parent / "figures" / f"{probe}.{figure.name}.html").exists()


def test_probes_of_a_user_are_shown(made):
    page = read(made[1])
    assert "probe-norms" in page.ids and "Table of probe norms" in page.text
    assert "probe-drawing-drawing" in page.ids


def test_n_and_intervals_stand_beside_numbers(made):
    page = read(made[1])
    assert "10 measured, 1 skipped" in page.text
    cards = re.findall(r"95 %: \S+ to \S+, n = (\d+)", page.text)
    assert len(cards) >= 3 and set(cards) <= {"10", "9"}  # one picture has no scene whose depth is known
    assert all("n = " in alt for alt in page.alts if "Picture of sample" not in alt)
    assert "Only n = 10 samples" in page.text


def test_markup_of_others_is_text(made):
    _, html = made
    assert EVIL not in html
    page = read(html)
    assert page.text.count(EVIL) >= 4  # model, example's id is in its picture's text, skipped id and reason
    assert page.tags.count("script") == sum(1 for name in page.ids if name.startswith("data-")) + 2


def test_skipped_samples_are_listed(made):
    assert f"bad{EVIL}" in read(made[1]).text and "unreadable" in made[1]


def test_examples_show_answers_and_spans(made):
    page = read(made[1])
    assert page.text.count("the model says") == 6 and "16 visual tokens" in page.text
    assert "before" in page.text and "w1" in page.text


def test_interactive_figures_are_plotlys_json(made):
    html = made[1]
    blocks = re.findall(r'<script type="application/json" id="(data-[^"]+)">(.*?)</script>', html, re.DOTALL)
    assert len(blocks) >= 6
    for _, text in blocks:
        figure = json.loads(text)
        assert figure["data"] and "layout" in figure
    packed = re.search(r'id="plotly-packed">(.*?)</script>', html, re.DOTALL)[1]
    assert b"plotly.js" in gzip.decompress(base64.b64decode(packed))[:400]
    assert html.count('id="plotly-packed"') == 1


def test_the_page_lies_in_a_complete_run(made):
    path, _ = made
    run = load_run(path.parent)
    assert run.finished and run.manifest["n"] == 10 and run.manifest["skipped"] == 1
    assert set(PROBES) <= set(run.tables())


def test_without_scripts(tmp_path):
    path = report(tiny_vlm(), [framed(i) for i in range(3)], tmp_path, interactive=False, progress=False)
    html = path.read_text(encoding="utf-8")
    assert "<script" not in html and len(html) < 3_000_000


def test_experiments_are_of_the_bundled_family_alone(made):
    page = read(made[1])
    assert not any(name.startswith("experiment-") for name in page.ids)
    assert "need the stages of one model" in page.text


def test_it_is_light_and_dark_printable_and_narrow(made):
    html = made[1]
    assert "prefers-color-scheme: dark" in html and "@media print" in html and 'name="viewport"' in html


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit, tmp_path):
    with pytest.raises(UserError, match="limit"):
        report(tiny_vlm(), None, tmp_path, limit=limit, progress=False)


def test_json_cannot_end_its_script():
    text = script_json({"a": "</script><!--", "b": float("nan"), "c": "&"})
    assert "<" not in text and json.loads(text) == {"a": "</script><!--", "b": None, "c": "&"}


def test_numbers_in_words():
    assert number(-0.12345) == "−0.123" and number(12345.6) == "12,345.6" and number(float("nan")) == "–"
    assert number(0.00012) == "1.20e−04" and number(0) == "0.000"
    assert interval(0.1, 0.2, 1200) == "95 %: 0.100 to 0.200, n = 1,200"
    assert interval(float("nan"), 1.0, 1) == "no interval, n = 1"


def test_plotly_is_packed_the_same_every_time():
    first = packed_plotly()
    packed_plotly.cache_clear()
    assert packed_plotly() == first and len(first) < 2_500_000

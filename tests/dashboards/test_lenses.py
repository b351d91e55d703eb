"""The page Lenses: every lens of the small store drawn, two models compared, and what happens to what is damaged."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from chiasm.dashboards import charts, comparing, concepts
from chiasm.dashboards.store import Store
from chiasm.dashboards.values import chart_table
from chiasm.experiments.figures import Areas, Chart, Figure, Heat, Line, Overlay, Panel, Points
from chiasm.experiments.lenses import LENSES
from chiasm.experiments.run import Run
from chiasm.experiments.style import INK, LOOKS, PAPER
from chiasm.scenes.errors import UserError
from PIL import Image


@pytest.fixture(scope="module")
def tables(runs_root):
    """kind -> the tables of the two models by short name."""
    store = Store(runs_root)
    return {
        lens: {
            name: store.table(one.run_name, one.table) for name, one in comparing.labelled(store.sources(lens)).items()
        }
        for lens in LENSES
    }


def shown(page):
    """Titles of the figures that are folded or open."""
    return [box.label.strip("*") for box in page.expander]


def test_two_models_are_compared_from_the_start(open_page):
    page = open_page("lenses")
    assert not page.error and not page.exception
    assert len(page.multiselect[0].value) == 2 and {"aligned", "tuned"} == {one.split(" · ")[0] for one in page.multiselect[0].indices and page.multiselect[0].options}  # fmt: skip
    assert list(page.dataframe[0].value.columns) == ["key number", "aligned", "tuned"]
    assert "95 %" in page.dataframe[0].value.iloc[0]["tuned"] and "n = 8" in page.dataframe[0].value.iloc[0]["tuned"]
    assert shown(page)[0] == "How alike are picture and text, layer by layer?" and len(shown(page)) == 7
    told = " ".join(one.value for one in (*page.markdown, *page.caption))
    assert "How to read this." in told and "n = 8 samples" in told and "interval" in told
    assert [one.label for one in page.get("download_button")][:3] == ["PNG", "SVG", "CSV"]


@pytest.mark.parametrize("lens", list(LENSES))
def test_every_lens_has_its_figures(open_page, lens):
    page = open_page("lenses")
    page.button_group(key="lenses_lens").set_value(lens).run()
    assert not page.error and not page.exception and shown(page)
    page.button_group(key="lenses_way").set_value("beside").run()
    assert not page.error and shown(page)
    page.multiselect(key=f"lenses_runs_{lens}").set_value(page.multiselect[0].value[:1]).run()
    assert not page.error and shown(page)
    page.multiselect(key=f"lenses_runs_{lens}").set_value([]).run()
    assert "Choose at least one run" in page.info[0].value and not page.error


@pytest.mark.parametrize("lens", list(LENSES))
@pytest.mark.parametrize("overlaid", [True, False])
def test_every_compared_figure_is_drawn_with_n_and_interval(tables, lens, overlaid):
    made = [comparing.compared(function, tables[lens], overlaid=overlaid) for function in comparing.functions(lens)]
    made = [figure for figure in made if figure is not None]
    assert made
    for figure in made:
        assert "n = " in figure.chart.note and "interval" in figure.chart.note, figure.name
        assert len(chart_table(figure.chart)) and charts.drawn(figure.chart).data
    assert charts.picture(made[-1], "png").startswith(b"\x89PNG")


def test_a_compared_curve_has_the_numbers_of_its_table(tables):
    function = comparing.functions("implicit_alignment")[0]
    made = chart_table(comparing.compared(function, tables["implicit_alignment"], overlaid=True).chart)
    for name, table in tables["implicit_alignment"].items():
        rows = table[
            (table.quantity == "similarity")
            & (table.pair == "P-T")
            & (table.pooling == "avg")
            & (table.variant == "raw")
        ]
        drawn = made[(made.panel == "Picture and text, same layer: raw") & (made.series == name)]
        assert np.allclose(
            drawn[["y", "low", "high"]], rows.sort_values("layer")[["mean", "low", "high"]], equal_nan=True
        )


def test_a_damaged_table_leaves_the_others(open_page, told, runs_root, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(runs_root, root)
    told(runs=str(root))
    broken = sorted((root / "measure").iterdir())[0]
    (broken / "tables/implicit_alignment.parquet").write_bytes(b"PAR1 not really")
    page = open_page("lenses")
    assert "cannot be read" in page.error[0].value and len(shown(page)) == 7 and not page.exception
    pd.DataFrame({"quantity": ["similarity"]}).to_parquet(broken / "tables/implicit_alignment.parquet")
    page.run()
    assert "measure again" in " ".join(error.value for error in page.error) and not page.exception
    shutil.rmtree(broken)  # what was chosen is deleted meanwhile
    page.run()
    assert not page.error and len(page.multiselect[0].value) == 1


def test_an_empty_store_says_what_to_do(open_page, told, tmp_path):
    told(runs=str(tmp_path))
    page = open_page("lenses")
    assert "chiasm report" in page.info[0].value and not page.error


def test_runs_chosen_on_the_page_runs_are_opened(open_page, runs_root):
    page = open_page("lenses")
    name = Store(runs_root).sources("attention_shift")[1].run_name
    page.session_state["lenses_asked"] = [name]
    page.button_group(key="lenses_lens").set_value("attention_shift").run()
    assert page.multiselect[0].value == [f"{name}:attention_shift"] and not page.error
    both = (
        page.multiselect[0]
        .set_value([f"{run.run_name}:attention_shift" for run in Store(runs_root).sources("attention_shift")])
        .run()
    )
    assert len(both.multiselect[0].value) == 2  # what is chosen by hand stays so


def test_names_tell_tables_apart(runs_root):
    one, other = Store(runs_root).sources("embeddings")
    assert list(comparing.labelled([one, other])) == [one.who, other.who]
    assert list(comparing.labelled([one, one, one])) == [one.who, f"{one.who} (2)", f"{one.who} (3)"]
    assert comparing.first_choice([one, one, other]) == [one.key, other.key]


@pytest.fixture
def concept_run(tmp_path):
    """A run of concepts as the experiment writes it, two styles of two concepts."""
    rows = [
        {
            "concept": i, "n": 5 - i, "consistency": 0.5, "low": 0.1, "high": 0.9, "style": style,
            **{f"words_{when}": f"tree, <b>{when}</b>, *x*" for when in concepts.STAGES},
            **{f"pictures_{when}": "0 2 1" for when in concepts.STAGES},
        }
        for style in ("colour", "place")
        for i in range(2)
    ]  # fmt: skip
    with Run.create("concepts", {"limit": 3}, tmp_path) as run:
        run.table("concepts", pd.DataFrame(rows))
        run.array("pictures", np.arange(3)[:, None, None, None] * np.full((3, 8, 8, 3), 50, np.uint8))
    return run


def test_concept_cards_show_words_and_pictures(open_page, told, tmp_path, concept_run):
    told(runs=str(tmp_path))
    page = open_page("lenses")
    page.button_group(key="lenses_lens").set_value("concepts").run()
    assert not page.error and not page.exception
    told_ = " ".join(one.value for one in page.markdown)
    assert "before tuning" in told_ and "shifted" in told_ and "after tuning" in told_
    assert "\\<b\\>before\\</b\\>" in told_ and "\\*x\\*" in told_  # a word from a table is text
    assert len(page.get("imgs")) == 6 or not page.error
    assert any("n = 5 pictures" in one.value for one in page.caption)
    (concept_run.path / "arrays/pictures.safetensors").unlink()  # of an older version
    page.run()
    assert not page.error and "before tuning" in " ".join(one.value for one in page.markdown)
    pd.DataFrame({"concept": [1]}).to_parquet(concept_run.path / "tables/concepts.parquet")
    page.run()
    assert "chiasm run concepts" in page.error[0].value and not page.exception


def test_a_strip_has_the_pictures_asked_for(tmp_path, concept_run):
    store = Store(tmp_path)
    pictures = concepts.kept_pictures(store, store.sources("concepts")[0])
    montage = concepts.strip(pictures, "2 0")
    assert montage.shape == (8, 19, 3) and montage[0, 0, 0] == 100 and montage[0, -1, 0] == 0
    with pytest.raises(UserError, match="do not belong"):
        concepts.strip(pictures, "7")


CHART = Chart(
    [
        Panel("Lines", "layer", "R²", [Line([0, 1], [0.1, 0.2], "a", LOOKS[0], [0, 0.1], [0.2, 0.3])]),
        Panel("Points", "x", "y", [Points([1], [2], "p", LOOKS[1], [0.5], [1.5], texts=["t"])]),
        Panel("Areas", "x", "y", [Areas([0, 1], {"image": [0.5, 1]}, {"image": LOOKS[0]})]),
        Panel("Heat", "x", "y", [Heat([[1, 2]], ["r"], ["a", "b"], "share", texts=[["one", "two"]])]),
        Panel("Map", "", "", [Overlay(np.zeros((4, 4, 3), np.uint8), [(0, 0, 2, 4), (2, 0, 4, 4)], [0.1, 0.9], words=["u", "v"], outlined=(1,))]),
    ],
    "n = 2 | two; band: 95 % interval",
)  # fmt: skip
FIGURE = Figure("fig", "A *title*", "Read <it>.", "alt", CHART)


def test_the_numbers_of_a_chart_are_a_table():
    table = chart_table(CHART)
    assert table.groupby("panel", sort=False).size().to_dict() == {
        "Lines": 2,
        "Points": 1,
        "Areas": 2,
        "Heat": 2,
        "Map": 2,
    }
    assert table.loc[0, ["series", "x", "y", "low", "high"]].tolist() == ["a", 0, 0.1, 0, 0.2]
    assert table.loc[2, ["x", "y", "x_low", "x_high", "text"]].tolist() == [1, 2, 0.5, 1.5, "t"]
    assert table.loc[6, ["series", "x", "y", "text"]].tolist() == ["r", "b", 2, "two"]
    assert table.loc[8, ["x", "x_high", "value", "text", "framed"]].tolist() == [2, 4, 0.9, "v", True]


def test_downloads_are_a_picture_of_each_kind():
    with Image.open(io.BytesIO(charts.picture(FIGURE, "png"))) as image:
        assert image.format == "PNG" and image.width > 1000
    assert b"<svg" in charts.picture(FIGURE, "svg")


def test_a_dark_page_has_light_ink():
    day, night = (charts.drawn(CHART, dark=dark).to_json() for dark in (False, True))
    assert INK in day and PAPER in day
    assert f'"{INK}"' not in night and f'"{PAPER}"' not in night and charts.NIGHT[INK] in night
    assert len(charts.drawn(CHART, dark=True).data) == len(charts.drawn(CHART).data)


def test_text_from_files_is_no_markup():
    assert (
        charts.escaped("a*b* [x](y) <i> $1$ :red[z] # | ~")
        == "a\\*b\\* \\[x\\](y) \\<i\\> \\$1\\$ \\:red\\[z\\] \\# \\| \\~"
    )

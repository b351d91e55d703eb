"""The experiment end to end on the organism and on a photograph, and its parts by hand."""

import numpy as np
import pandas as pd
import pytest
from chiasm.experiments import bench_outliers, outliers
from chiasm.experiments.bench import QUICK
from chiasm.experiments.figures import draw
from chiasm.experiments.figures import outliers as figures
from chiasm.experiments.run import load_run
from chiasm.models import open_vlm
from chiasm.probes.measure import measure
from chiasm.probes.outlier_overlap import OutlierOverlap
from chiasm.probes.outlier_words import DIAGNOSTICS
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample
from PIL import Image
from skimage import data as photographs

from ..models.families import build
from ..models.processors import PROCESSORS


@pytest.fixture(scope="module")
def vlm():
    return open_vlm("organism", device="cpu")


@pytest.fixture(scope="module")
def study(vlm, tmp_path_factory):
    return outliers.study(vlm, limit=8, captions=16, root=tmp_path_factory.mktemp("runs"), max_new_tokens=40)


def test_the_study_has_its_tables_figures_and_words(study):
    kept = load_run(study.path)
    assert {"outlier_overlap", "words", "detectors"} <= {
        path.stem.split(".")[-1] for path in (study.path / "tables").iterdir()
    }
    names = [drawn.name for drawn in study.figures]
    assert names[:2] == ["picture_description_9", "picture_description_19"] and {
        "by_layer",
        "by_head",
        "agreement",
    } < set(names)
    assert kept.finished and all((study.path / "figures" / f"{name}.png").exists() for name in names)
    words = study.tables["words"]
    assert len(words) > 10 and words["overlap"].between(0, 1).all() and set(DIAGNOSTICS) < set(words)
    assert study.tables["overlap"]["quantity"].eq("on_things").sum() == 1
    assert any("made up" in line for line in study.found) and study.claims
    assert figures.cards(study.tables["overlap"])[0].name == "Overlap with outliers"


def test_mentions_are_the_answers_own_words(vlm):
    tokenizer = vlm.tokenizer
    text = "a red cup and two lamps . a cup"
    found = outliers.mentioned(tokenizer, text, ["cup"])
    assert [(m.word, m.grounded) for m in found] == [("cup", True), ("lamp", False), ("cup", True)]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([ids[m.token]]).strip() for m in found] == ["cup", "lamps", "cup"]


def test_detectors_find_what_is_planted_and_allow_for_position():
    """Made-up words come late and have little attention on the picture for that reason alone: given position, no effect."""
    rng = np.random.default_rng(0)
    n = 1500
    position = rng.random(n)
    made_up = rng.random(n) < 1 / (1 + np.exp(3 - 4 * position))
    words = pd.DataFrame({
        "picture": np.arange(n) // 5, "position": position, "word": rng.choice(["cup", "dog", "sheep"], n), "grounded": ~made_up,
        **{name: rng.normal(size=n) for name in DIAGNOSTICS},
    })  # fmt: skip
    words["image_share"] = -position + 0.2 * rng.normal(size=n)
    words["overlap"] = made_up + rng.normal(size=n)
    table = outliers.detectors(words).set_index(["diagnostic", "given"])
    alone, given = table.loc[("image_share", "nothing")], table.loc[("image_share", "position")]
    assert alone["high"] < 0 and alone["auc_high"] < 0.5 and given["low"] < 0 < given["high"]
    assert (table.loc["overlap"]["low"] > 0).all() and len(table.loc["overlap"]) == 3
    assert table.loc[("random", "nothing")]["auc_low"] < 0.5 < table.loc[("random", "nothing")]["auc_high"]
    assert table["n"].eq(n).all() and table["made_up"].eq(made_up.sum()).all()
    assert draw(figures.detectors(table.reset_index())).note.startswith("n = 1,500 words")


def test_nothing_is_tested_where_no_word_is_made_up():
    words = pd.DataFrame(
        {
            "picture": [0, 1],
            "position": [0, 1],
            "word": ["cup", "dog"],
            "grounded": [True, True],
            **dict.fromkeys(DIAGNOSTICS, 0.0),
        }
    )
    assert outliers.detectors(words).empty


def test_a_photograph_is_measured_without_words(vlm, tmp_path):
    pictures = [Image.fromarray(photographs.astronaut()[:200, :300]), Image.fromarray(photographs.coffee()[:160, :160])]
    samples = [Sample(f"photo {i}", "<image> what do you see ?", (picture,)) for i, picture in enumerate(pictures)]
    study = outliers.study(vlm, samples, root=tmp_path)
    assert "words" not in study.tables and any("not known" in line for line in study.found)
    assert study.figures[0].name == "picture_photo_0" and "on_things" not in set(study.tables["overlap"]["quantity"])


def test_the_figure_lays_scores_where_the_patches_are(vlm):
    picture = Image.new("RGB", (128, 128), (90, 120, 90))
    figure = outliers.picture_figure(vlm, Sample("plain", "<image> what do you see ?", (picture,)), OutlierOverlap())
    overlay = figure.chart.panels[0].marks[0]
    assert np.isfinite(overlay.map()).all() and overlay.image.shape == (128, 128, 3)
    best = int(np.argmax(overlay.values))
    assert best in overlay.outlined
    x0, y0, x1, y1 = np.asarray(overlay.boxes[best]).round().astype(int)
    assert overlay.map()[y0, x0] == overlay.map().max() == overlay.map()[y1 - 1, x1 - 1]


def test_data_without_pictures_is_refused_and_leaves_no_run(vlm, tmp_path):
    with pytest.raises(UserError, match="no sample has a picture"):
        outliers.study(vlm, [Sample("bare", "what is one plus one ?")], root=tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_the_bench_rows_can_be_made(monkeypatch):
    monkeypatch.setattr(bench_outliers, "PICTURE", 112)
    rows = list(bench_outliers.rows(QUICK))
    assert [row.bar for row in rows] == [1.05, None, 0.1] and rows[2].ratio.median <= 0.1


@pytest.mark.parametrize("name", PROCESSORS)
def test_photographs_on_every_family(name, tmp_path):
    """Tiles, query tokens, merged patches, cross-attention: measured, and drawn where tokens have a place."""
    tiny = open_vlm(model=build(name)[0], processor=PROCESSORS[name]())
    photo = Image.fromarray(photographs.coffee()[:240, :320]).resize((64, 48))
    samples = [Sample(f"{name} {i}", "what is in the picture ?", (photo.rotate(90 * i),)) for i in range(2)]
    rule, value = outliers._enough(tiny, samples, "ratio")
    probe = OutlierOverlap(rule=rule, value=value)
    table = measure(tiny, samples, [probe], batch_size=2, progress=False).tables["outlier_overlap"]
    assert figures.summary(table, "overlap")["n"] == 2
    figure = outliers.picture_figure(tiny, samples[0], probe)
    overlay = figure.chart.panels[0].marks[0]
    boxes, best = np.asarray(overlay.boxes), int(np.argmax(overlay.values))
    assert best in overlay.outlined and len(boxes) == len(overlay.values)
    assert boxes.min() >= -16 and boxes[:, [0, 2]].max() <= 65 and boxes[:, [1, 3]].max() <= 65
    assert np.isfinite(overlay.map()).mean() > 0.7

"""What image tokens say: the experiment, its hits against things by hand, its figures."""

import numpy as np
import pytest
from chiasm.experiments import image_words
from chiasm.experiments.figures import draw_interactive, draw_picture
from chiasm.experiments.figures import vocabulary as figures
from chiasm.experiments.headlines_words import word_cards, word_claims
from chiasm.experiments.image_words import grounded, study
from chiasm.experiments.run import load_run
from chiasm.models import open_vlm
from chiasm.probes.measure import measure
from chiasm.probes.patch_words import PatchWords
from chiasm.probes.vocabulary_view import VocabularyView
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError

from .pages import framed, tiny_vlm


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


def test_a_complete_run_of_the_organism(tmp_path, organism):
    done = study(organism, limit=6, root=tmp_path)
    kept = load_run(done.path)
    assert kept.finished and len(done.found) == 2 and len(done.claims) == 1
    names = {path.stem for path in (kept.path / "figures").glob("*.png")}
    assert names >= {
        "vocabulary_certainty",
        "vocabulary_content",
        "vocabulary_words",
        "grounded",
        "patches_0",
        "patches_1",
    }
    table = kept.read_table("grounded")
    assert table["mean"].between(0, 1).all() and set(table["stage"]) == {organism.name}
    assert len(table) == 4 * (organism.anatomy.n_layers + 1)


def test_any_model_and_data(tmp_path):
    done = study(tiny_vlm(), [framed(i) for i in range(5)], root=tmp_path)
    assert load_run(done.path).finished and "grounded" not in done.tables
    with pytest.raises(UserError, match="read once only"):
        study(tiny_vlm(), (framed(i) for i in range(5)), root=tmp_path)


def test_tokens_are_held_against_the_thing_under_them(monkeypatch):
    sample = next(scene_samples(1, "test"))
    things = sample.truth["scene"].things
    side = sample.images[0].size[0]
    boxes = [[side * (t.x - 0.01), side * (t.y - 0.01), side * (t.x + 0.01), side * (t.y + 0.01)] for t in things]
    boxes.append([0, 0, 1, 1])  # a corner, where nothing is
    words = [things[0].category, *(t.colour for t in things[1:]), things[0].category]

    class Model:
        class anatomy:
            n_layers = 0

    views = [PatchWords(0, words, [1.0] * len(words), boxes, [0] * len(words))]
    monkeypatch.setattr(image_words, "batch_patch_words", lambda *_: [views])
    found = grounded(Model, [sample]).set_index(["said", "where"])["mean"]
    same = sum(t.category == things[0].category for t in things)
    assert same == 1, "a scene with other things is needed"
    assert found["category", "there"] == pytest.approx(1 / len(things))
    assert found["category", "anywhere"] == pytest.approx(2 / len(words) / len(things))
    assert found["colour", "there"] == pytest.approx((len(things) - 1) / len(things))


def test_figures_and_headlines_are_made_from_the_table_and_only_where_it_has_something():
    table = measure(tiny_vlm(), [framed(i) for i in range(6)], [VocabularyView()], progress=False).tables[
        "vocabulary_view"
    ]
    for function in figures.FIGURES:
        figure = function(table)
        assert draw_picture(figure.chart).axes and draw_interactive(figure.chart).data
        assert function(table[table["quantity"] == "skipped"]) is None
    assert len(word_cards(table)) == 2 and len(word_claims(table)) == 1
    assert word_cards(table.iloc[:0]) == [] and word_claims(table.iloc[:0]) == []


def test_many_tokens_are_named_by_region_and_those_without_a_place_not_at_all():
    side = 24
    boxes = [[x, y, x + 1, y + 1] for y in range(side) for x in range(side)]
    words = ["a very long word"] * side**2
    view = PatchWords(0, words, np.linspace(0, 1, side**2).tolist(), boxes, [0] * side**2)
    image = np.zeros((side, side, 3), np.uint8)
    overlay = figures.patches("x", image, [view], [[0]], "a picture", "nothing").chart.panels[0].marks[0]
    assert sum(word != "" for word in overlay.words) == 64 and overlay.words[-1].endswith("…")
    nowhere = PatchWords(0, words, view.probabilities, np.full((side**2, 4), np.nan).tolist(), [0] * side**2)
    assert figures.patches("x", image, [nowhere], [[]], "a picture", "nothing") is None

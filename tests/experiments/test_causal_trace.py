"""Which tokens carry the answer: the experiment on the organism and on a tiny model, its pairs, its spans, its figure and words."""

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.experiments import causal_trace as experiment
from chiasm.experiments.causal_trace import (
    as_many_others,
    claims,
    colour_pairs,
    on_the_thing,
    study,
    the_question,
    told,
)
from chiasm.experiments.figures import causal_trace as figures
from chiasm.experiments.figures import draw_interactive, draw_picture
from chiasm.experiments.run import load_run
from chiasm.models import open_vlm
from chiasm.scenes.errors import UserError


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


@pytest.fixture(scope="module")
def done(organism, tmp_path_factory):
    return study(organism, limit=3, root=tmp_path_factory.mktemp("runs"))


def test_a_complete_run_of_the_organism(done):
    kept = load_run(done.path)
    assert kept.finished and (kept.path / "figures" / "causal_trace.png").exists()
    table = kept.read_table("causal_trace")
    assert set(table["site"]) == {"embed", "resid_post", "attn_out", "mlp_out"} and (table["n"] == 3).all()
    assert len(done.claims) == 2 and all(claim.holds for claim in done.claims)
    assert "at the input the thing brings back" in done.found[0] and "(n = 3 pairs)" in done.found[0]


def test_pairs_differ_in_the_things_pixels_alone():
    clean, corrupted = colour_pairs(6)
    for one, other in zip(clean, corrupted, strict=True):
        assert one.prompt == other.prompt and one.answer != other.answer
        (thing,) = (t for t in one.truth["scene"].things if t.category == one.truth["about"][0])
        differ = np.abs(np.asarray(one.images[0], int) - np.asarray(other.images[0], int)).sum(-1) > 0
        left, top, wide, high = thing.pixels(one.images[0].width)
        assert differ.any()
        differ[top : top + high, left : left + wide] = False
        assert not differ.any()
    assert [s.answer for s in colour_pairs(6)[1]] == [s.answer for s in corrupted]
    assert [s.answer for s in colour_pairs(6, seed=1)[1]] != [s.answer for s in corrupted]


def test_spans_of_a_sample(organism):
    clean, _ = colour_pairs(4)
    for sample in clean:
        spans = organism.prepare([sample.images], [sample.prompt]).spans
        thing, others, question = (f(spans, sample) for f in (on_the_thing, as_many_others, the_question))
        assert 0 < thing.sum() == others.sum() < spans.visual.sum() / 2
        assert not (thing & others).any() and not ((thing | others) & ~spans.visual).any()
        assert torch.equal(others, as_many_others(spans, sample))
        (box,) = (t.box for t in sample.truth["scene"].things if t.category == sample.truth["about"][0])
        middle = torch.tensor([box[0] + box[2], box[1] + box[3]]) / 2 * sample.images[0].width
        under = (spans.boxes[0, :, :2] <= middle).all(-1) & (spans.boxes[0, :, 2:] > middle).all(-1)
        assert thing[0, under].all() and under.sum() == 1
        assert question.sum() == spans.mask("after").sum() - 1 and not question[0, -1]


def table(values: dict) -> pd.DataFrame:
    rows = [
        {"site": site, "layer": layer, "span": span, "mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 5,
         "clean": 4.0, "corrupted": -3.0}
        for (site, layer, span), mean in values.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def test_words_and_claims_follow_the_table():
    values = {
        ("embed", None, "the thing"): 0.9,
        ("embed", None, "as many others"): 0.05,
        ("embed", None, "the picture"): 1.0,
    }
    for layer, (picture, last) in enumerate([(0.9, 0.0), (0.6, 0.3), (0.1, 0.9)]):
        values |= {("resid_post", layer, "the picture"): picture, ("resid_post", layer, "last position"): last}
    words = told(table(values))
    assert "the thing brings back 0.900" in words and "up to block 1" in words and "from block 2 on" in words
    assert [claim.holds for claim in claims(table(values))] == [True, True]
    values |= {("embed", None, "as many others"): 0.85, ("resid_post", 1, "last position"): -0.3}
    assert [claim.holds for claim in claims(table(values))] == [None, False]


def test_the_figure_has_a_curve_a_span_from_the_input_on(done):
    chart = figures.carried(done.tables["causal_trace"]).chart
    assert draw_picture(chart).axes and draw_interactive(chart).data
    stream, parts = chart.panels
    assert [line.label for line in stream.marks] == [
        "the picture",
        "the thing",
        "as many others",
        "the question",
        "last position",
    ]
    assert all(list(line.x) == [-1, 0, 1, 2, 3] for line in stream.marks)
    assert stream.x_ticks[1][0] == "input" and len(parts.marks) == 4
    assert "n = 3" in chart.note and "interval" in chart.note


def test_models_without_places_of_tokens_and_data_of_ones_own(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="paints its own pairs"):
        experiment.run(data="photos")

    seen = []

    def traced(vlm, clean, corrupted, *, spans, **_):
        seen.append(list(spans))
        raise UserError("stop here")

    vlm = open_vlm("organism", device="cpu")
    monkeypatch.setattr(experiment, "causal_trace", traced)
    spans = vlm.prepare([colour_pairs(1)[0][0].images], ["a"]).spans
    inputs = type("Inputs", (), {"spans": type(spans)(**vars(spans) | {"boxes": spans.boxes * torch.nan})})
    monkeypatch.setattr(vlm, "prepare", lambda *_: inputs)
    with pytest.raises(UserError, match="stop here"):
        study(vlm, limit=1, root=tmp_path)
    assert seen == [["the picture", "the question", "last position"]]

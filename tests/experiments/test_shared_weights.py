"""The experiment on shared weights: a complete run with controls of equal size, on any model."""

import numpy as np
import pytest
import torch
from chiasm.experiments.figures import draw_interactive, draw_picture
from chiasm.experiments.figures import shared_weights as figures
from chiasm.experiments.headlines_weights import weight_cards, weight_claims
from chiasm.experiments.run import load_run
from chiasm.experiments.shared_weights import ABLATED, Noise, answer_losses, run, study
from chiasm.models import open_vlm
from chiasm.probes.measure import measure
from chiasm.probes.weight_overlap import WeightOverlap
from chiasm.scenes.errors import UserError

from .pages import framed, tiny_vlm


def test_a_complete_run_with_controls_of_equal_size(tmp_path):
    kept = load_run(run(limit=6, questions=4, device="cpu", root=tmp_path))
    table = kept.read_table("removal")
    assert kept.finished and len(table) == 7 and table["perplexity"].gt(1).all()
    assert (table.groupby("sparsity")["share_removed"].nunique() == 1).all()
    assert (table["share_removed"] >= table["sparsity"] - 0.01).all()
    assert (table["share_removed"] <= table["expected_removed"] + 0.05).all()
    assert (table[table["removed"] == "common"]["worse"] == 0).all()
    ablation = kept.read_table("ablation")
    assert ablation["share_removed"].tolist()[1:] == pytest.approx([ABLATED] * 2, abs=1e-3)
    noise = kept.read_table("noise")
    assert set(noise["pair"]) == {"noise-text", "image-noise"} and (noise["n"] == 6).all()
    assert {path.stem for path in (kept.path / "figures").glob("*.png")} >= {"overlap", "weight_use", "removal"}


def test_other_models_and_data_have_no_skill_and_may_have_no_answers(tmp_path):
    vlm, samples = tiny_vlm(), [framed(i) for i in range(9)]
    before = vlm.fingerprint()
    done = study(vlm, samples, root=tmp_path)
    assert vlm.fingerprint() == before and done.tables["removal"]["skill"].isna().all()
    assert len(done.claims) == 4 and all("n = " in sentence or "%" in sentence for sentence in done.found)
    assert not any(figure.alt == "" for figure in done.figures)
    from dataclasses import replace

    done = study(vlm, [replace(sample, answer=None) for sample in samples], root=tmp_path)
    assert "removal" not in done.tables and done.found[-1].startswith("Not run")
    with pytest.raises(UserError, match="3 samples or more"):
        study(vlm, samples[:2], root=tmp_path)


def test_noise_is_of_the_pictures_size_and_the_same_each_time():
    noise = Noise([framed(0), framed(1)], seed=3)
    first, again = (list(noise) for _ in range(2))
    assert first[0].images[0].size == (40, 32) and first[0].id == "s0"
    assert np.array_equal(first[1].images[0], again[1].images[0])
    assert not np.array_equal(first[0].images[0], first[1].images[0])


def test_losses_are_the_models_own():
    vlm = open_vlm("organism", device="cpu")
    from chiasm.scenes.benchmarks import scene_samples

    samples = list(scene_samples(2, "val"))
    found = answer_losses(vlm, samples, 2)
    inputs = vlm.prepare_samples(samples[:1])
    labels = torch.where(inputs.spans.mask("answer"), inputs.tensors["input_ids"], -100)
    with torch.no_grad():
        loss = vlm.model(**inputs.tensors, labels=labels).loss
    assert found[0].item() == pytest.approx(loss.item(), rel=1e-4)


def test_figures_and_headlines_are_made_from_the_table():
    table = measure(tiny_vlm(), [framed(i) for i in range(6)], [WeightOverlap()], progress=False).tables[
        "weight_overlap"
    ]
    for function in figures.FIGURES:
        figure = function(table)
        assert draw_picture(figure.chart).axes and draw_interactive(figure.chart).data
        assert function(table.iloc[:0]) is None
    assert len(weight_cards(table)) == 1 and len(weight_claims(table)) == 2 and weight_cards(table.iloc[:0]) == []

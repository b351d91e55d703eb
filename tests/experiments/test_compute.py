"""The compute experiment: its settings and control, fronts and verdicts by hand, and the whole of it on a few questions."""

import pandas as pd
import pytest
import torch
from chiasm.experiments import compute
from chiasm.experiments.compute import claims, quality, questions, settings
from chiasm.experiments.figures.compute import front
from chiasm.experiments.figures.rows import pick
from chiasm.experiments.run import load_run
from chiasm.models import open_vlm
from chiasm.scenes.errors import UserError
from chiasm.steering.cost import report


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


@pytest.fixture(scope="module")
def study(organism, tmp_path_factory):
    return compute.study(organism, limit=4, rounds=2, root=tmp_path_factory.mktemp("runs"))


def test_random_tokens_are_as_many_as_pruning_keeps(organism):
    samples = [one for some in questions(2).values() for one in some]
    inputs = organism.prepare([s.images for s in samples], [s.prompt for s in samples])
    tokens = int(inputs.spans.visual[0].sum())
    kept = {}
    for one in settings(organism.anatomy.n_layers, tokens):
        if one.method in ("prune", "random tokens"):
            kept[one.method, one.setting] = report(organism, inputs, one.change, rounds=1).layers["visual_tokens"][0]
    for share, n in (("0.5", 32), ("0.25", 16), ("0.1", 6)):
        assert kept["prune", share] == kept["random tokens", share] == n


def test_settings_fit_any_depth():
    for depth in (1, 2, 4, 5, 32):
        made = settings(depth, 64)
        assert made[0].method == "plain" and len({one.name for one in made}) == len(made)
        exits = [one.change.after for one in made if one.method == "exit"]
        assert all(0 <= after < depth - 1 for after in exits)
        skipped = [list(one.change.layers) for one in made if one.method.startswith("skip")]
        assert all(layers and layers[-1] == depth - 1 for layers in skipped)


def test_every_question_is_about_a_scene_of_its_own():
    scenes = [one.truth["scene"].seed for some in questions(5).values() for one in some]
    assert len(set(scenes)) == len(scenes) == 15


def test_the_front_by_hand():
    assert front([1.0, 0.5, 0.5, 0.2, 0.7], [1.0, 0.9, 0.8, 0.3, 0.9]) == [3, 1, 0]
    assert front([0.5, 1.0], [1.0, 1.0]) == [0]  # as good and dearer is beaten


def test_quality_is_paired_with_the_plain_model():
    tried = settings(4, 64)[:2]
    right = {"plain": torch.tensor([1.0, 1, 1, 0]), "prune 0.5": torch.tensor([1.0, 0, 1, 0])}
    table = quality(right, tried).set_index("method")
    assert table["accuracy"].tolist() == [0.75, 0.5] and table["difference"].tolist() == [0, -0.25]
    assert table.loc["prune", "difference_high"] == pytest.approx(-0.25 + 3.182446 * 0.25)  # sd 0.5, n 4
    assert table.loc["plain", "difference_high"] > 0  # never a point: none in four differ


def test_every_setting_is_timed_counted_and_scored(study, organism):
    table = study.tables["settings"]
    assert len(table) == len(settings(organism.anatomy.n_layers, 64)) and table["n"].unique() == [12]
    assert table[["time_ratio", "flops_ratio", "accuracy"]].notna().all().all()
    flops = table.set_index(["method", "setting"])["flops_ratio"]
    assert flops["plain", ""] == 1 and flops.drop(("plain", "")).max() < 1
    assert flops["prune", "0.1"] < flops["prune", "0.25"] < flops["prune", "0.5"]
    assert flops["prune", "0.25"] == pytest.approx(flops["random tokens", "0.25"])
    assert flops["exit", "after 0"] < flops["exit", "after 2"]
    assert set(study.tables["against_random"]["keep"]) == set(compute.SHARES)


def test_leaving_behind_the_last_block_is_safe(study, organism):
    layers = study.tables["safe_exits"].set_index("layer")["safe_share"]
    assert len(layers) == organism.anatomy.n_layers and layers.iloc[-1] == 1


def test_claims_are_verdicts_of_intervals(study):
    table = study.tables["settings"].copy()
    at = (table["method"] == "prune") & (table["setting"] == "0.25")
    for low, high, holds in ((-0.04, 0.04, True), (-0.2, -0.06, False), (-0.1, 0.0, None)):
        table.loc[at, ["difference_low", "difference_high"]] = [low, high]
        assert claims(study.tables | {"settings": table})[0].holds is holds
    assert len(study.claims) == 5 and all("n = " in claim.here for claim in study.claims)
    assert pd.notna(pick(study.tables["settings"], method="plain")["milliseconds"]).all()


def test_the_run_holds_its_tables_and_figures(study):
    assert load_run(study.path).finished
    assert {path.stem for path in (study.path / "figures").glob("*.png")} == {"compute_pareto", "safe_exits"}


def test_another_model_is_refused_in_one_line():
    with pytest.raises(UserError, match="compute"):
        compute.run("llava-hf/llava-1.5-7b-hf")

"""The experiments on learners: equal rates where they are said to be equal, sums by hand, and both as a whole at tiny size."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.experiments import distilling, wings
from chiasm.experiments.distilling import DISTILLED, PLAIN, SHUFFLED, OtherScene
from chiasm.experiments.figures.rows import pick
from chiasm.experiments.run import load_run
from chiasm.probes.targets import scene_targets
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError

TINY = {
    "wings": lambda root: wings.study(steps=2, questions=4, scenes=4, seeds=2, batch_size=2, turns=32, arms=wings.ARMS[:2], root=root),
    "distilling": lambda root: distilling.study(steps=2, scenes=16, captions=4, seeds=2, batch_size=2, turns=32, root=root),
}  # fmt: skip


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in TINY.items()}


@pytest.mark.parametrize("name", TINY)
def test_each_writes_a_complete_run(studies, name):
    study = studies[name]
    run = load_run(study.path)
    assert run.finished and study.path.parent.name == name
    for table, values in study.tables.items():
        pd.testing.assert_frame_equal(run.tables()[table], values, check_dtype=False)
    for drawn in study.figures:
        assert (study.path / "figures" / f"{drawn.name}.png").stat().st_size > 5000 and "n = " in drawn.note
    assert study.found and study.claims and all("trainings" in claim.here for claim in study.claims)


@pytest.mark.parametrize("name", TINY)
def test_other_models_are_refused(name):
    with pytest.raises(UserError, match="bundled family"):
        {"wings": wings, "distilling": distilling}[name].run("somebody/else")


def test_the_arms_that_are_compared_differ_in_the_learners_alone():
    arms = {arm.name: arm for arm in wings.ARMS}
    assert arms[wings.WINGS].rate == arms[wings.PLAIN].rate == arms[wings.RELEASED].rate == 1
    assert arms[wings.BOTH].rate == arms[wings.SLOWER].rate == wings.SLOW
    assert arms[wings.PLAIN].wings is None and arms[wings.SLOWER].wings is None
    assert [arm.main for arm in wings.ARMS] == [True] * 4 + [False] * 3


def test_effects_are_paired_over_items_and_trainings():
    values = {
        wings.WINGS: {"text loss": [np.array([1.0, 2.0]), np.array([2.0, 3.0])], "shift": [np.array([1.0]), np.array([2.0])]},
        wings.PLAIN: {"text loss": [np.array([2.0, 3.0]), np.array([3.0, 4.0])], "shift": [np.array([0.0]), np.array([3.0])]},
    }  # fmt: skip
    table = wings.effects(values).set_index("quantity")
    assert table.loc["text loss", ["mean", "low", "high", "n", "seeds"]].tolist() == [-1, -1, -1, 2, 2]
    # trainings alone: differences 1 and -1, sd sqrt(2), half = 12.7062 / sqrt(2) * sqrt(2)
    assert table.loc["shift", "mean"] == 0 and table.loc["shift", "high"] == pytest.approx(12.7062, rel=1e-4)
    holds = {claim.claim: claim.holds for claim in wings.claims(wings.effects(values))}
    assert holds["At equal rates, learners keep text-only skill (a lower loss)"] is True
    assert holds["A model with learners has a smaller attention shift"] is None


def test_tuning_moves_the_losses_and_both_arms_begin_at_the_same_model(studies):
    table = studies["wings"].tables["outcomes"]
    assert set(table["arm"]) == {"before", wings.PLAIN, wings.WINGS}
    losses = pick(table, quantity="seeing loss").set_index("arm")["mean"]
    assert losses["before"] != losses[wings.PLAIN]
    curves = studies["wings"].tables["curves"]
    first = curves[curves["step"] == 1].set_index(["arm", "training"])["loss"]
    for training in (0, 1):  # learners begin as nothing, and the arms learn from the same rows
        assert first[wings.WINGS, training] == pytest.approx(first[wings.PLAIN, training], rel=1e-4)


def test_the_control_learns_of_another_scene_the_same_one_every_time():
    (sample,) = scene_samples(1, "train")
    boxes = torch.tensor([[0.0, 0, 32, 32], [32, 32, 64, 64], [0, 0, 64, 64]])
    for target in scene_targets():
        other = OtherScene(target)
        assert torch.equal(other.at(sample, 0, boxes), other.at(sample, 0, boxes))
        assert not torch.equal(other.at(sample, 0, boxes), target.at(sample, 0, boxes))
        assert (other.name, other.labels, other.classes) == (target.name, target.labels, target.classes)


def test_distillation_is_compared_with_its_controls(studies):
    table = studies["distilling"].tables["effects"]
    assert set(zip(table["arm"], table["against"], strict=True)) == {(DISTILLED, PLAIN), (SHUFFLED, PLAIN), (DISTILLED, SHUFFLED)}  # fmt: skip
    rows = table.set_index(["arm", "against", "quantity"])["mean"]
    name = "R² of depth, blocks"
    assert rows[DISTILLED, PLAIN, name] - rows[SHUFFLED, PLAIN, name] == pytest.approx(rows[DISTILLED, SHUFFLED, name])
    curves = studies["distilling"].tables["curves"]
    assert pick(curves, arm=PLAIN)["distilled"].isna().all() and pick(curves, arm=SHUFFLED)["distilled"].notna().all()
    assert set(studies["distilling"].tables["references"]["features"]) == {"tower", "pixels", "place"}

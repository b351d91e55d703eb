"""Ways of preference tuning compared: what is trained is trained alike, what is compared is paired, and where it acted."""

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.experiments import preference_arms, preferences, tuned_lenses
from chiasm.experiments.figures.rows import pick
from chiasm.experiments.preference_arms import ARMS, SEEDS, opened, shipped, train
from chiasm.experiments.run import load_run
from chiasm.models import open_vlm
from chiasm.probes.seeds import mean_tally, over_seeds
from chiasm.scenes.errors import UserError


def test_a_difference_is_taken_item_by_item():
    a, b = mean_tally({"right": np.array([1.0, 1.0, 0.0, 1.0])}), mean_tally({"right": np.array([1.0, 0.0, 0.0, 1.0])})
    row = over_seeds([preferences.difference(a, b)]).iloc[0]
    assert row["after"] == pytest.approx(0.25) and row["n"] == 4 and row["low"] <= 0.25 <= row["high"]
    same = over_seeds([preferences.difference(a, a)]).iloc[0]
    assert (same["after"], same["low"], same["high"]) == (0, 0, 0)  # the same items are drawn for both


def test_every_arm_sees_the_same_scenes_in_the_same_order(tmp_path, monkeypatch):
    seen = {}

    def record(vlm, pairs, *, folder, method, settings, held_out, seed, progress):
        seen[folder.parent.name, seed] = (pairs["id"], method, settings, held_out)
        (folder / "adapter").mkdir(parents=True)

    monkeypatch.setattr("chiasm.experiments.tune.tune", record)
    adapters = train(open_vlm("organism"), tmp_path, steps=2, seeds=2, scenes=30, log=lambda _: None)
    assert set(adapters) == set(ARMS) and len(seen) == 2 * len(ARMS)
    ids = [pairs for pairs, *_ in seen.values()]
    assert all(one == ids[0] for one in ids) and len(set(ids[0])) == len(ids[0]) > 15
    assert all(int(name.rsplit("-", 1)[1]) % 10 < 8 for name in ids[0])  # of the training split
    assert len({str(sorted(settings.items())) for _, _, settings, _ in seen.values()}) == 1
    assert {arm: method for (arm, _), (_, method, *_) in seen.items()} == {
        arm: method for arm, (method, _) in ARMS.items()
    }


def test_a_training_that_is_there_is_not_trained_again_and_opens(tmp_path):
    vlm = open_vlm("organism")
    few = {"steps": 1, "seeds": 1, "scenes": 24, "log": lambda _: None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preference_arms, "ARMS", {"rdpo": ("rdpo", True)})
        first = train(vlm, tmp_path, **few)
        patch.setattr("chiasm.experiments.tune.tune", None)  # would be called again
        assert train(vlm, tmp_path, **few) == first
    assert opened(vlm, first)["rdpo"]["0"].fingerprint() != vlm.fingerprint()


def test_the_trainings_that_come_along_differ():
    arms = shipped(open_vlm("organism"), ("sft", "rdpo"))
    prints = {model.fingerprint() for each in arms.values() for model in each.values()}
    assert len(prints) == 2 * SEEDS


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preferences, "shipped", lambda vlm: shipped(vlm, ("dpo", "rdpo")))
        return preferences.study(open_vlm("organism"), limit=8, root=tmp_path_factory.mktemp("runs"))


def test_the_comparison_tells_every_part_for_every_arm(compared):
    scores, contrasts = compared.tables["scores"], compared.tables["contrasts"]
    for part, split, metric, _ in preferences.WHAT:
        rows = pick(scores, part=part, split=split, metric=metric, model="mean")
        assert set(rows["arm"]) == {"dpo", "rdpo"} and (rows["seeds"] == SEEDS).all()
        own = rows.set_index("arm")["difference"]
        (row,) = pick(contrasts, part=part, split=split, metric=metric, contrast="rdpo − dpo").to_dict("records")
        assert row["after"] == pytest.approx(own["rdpo"] - own["dpo"]) and row["low"] <= row["after"] <= row["high"]
    assert compared.claims[0].claim == "rDPO lowers hallucination"
    assert len(compared.found) == len(preferences.WHAT) + 3 and load_run(compared.path).finished


def test_a_claim_holds_fails_or_stays_open_with_its_intervals(compared):
    def judged(chair, pope):
        tables = {name: table.copy() for name, table in compared.tables.items()}
        for part, split, metric, (low, high) in (
            ("chair-scenes", "all", "chair_i", chair),
            ("pope-scenes", "adversarial", "accuracy", pope),
        ):
            at = pick(tables["scores"], part=part, split=split, metric=metric, model="mean", arm="rdpo").index
            tables["scores"].loc[at, ["difference_low", "difference_high"]] = low, high
        return preferences.claims(tables)[0].holds

    assert judged((-0.2, -0.1), (0.1, 0.2)) is True
    assert judged((-0.2, 0.1), (0.1, 0.2)) is None
    assert judged((0.1, 0.2), (0.1, 0.2)) is False


def test_where_it_acted_is_told_by_layer_for_both_ways(tmp_path):
    study = tuned_lenses.study(open_vlm("organism"), limit=16, root=tmp_path, trainings=1)
    layers = pick(study.tables["layers"], model="mean")
    assert set(layers["arm"]) == set(tuned_lenses.ARMS)
    first = pick(layers, quantity="picture-text similarity", layer=0)["change"]
    assert len(first) == 2 and (first.abs() < 1e-6).all()  # the input of the decoder is not tuned
    assert isinstance(study.tables["state_shift"], pd.DataFrame) and len(study.claims) == len(tuned_lenses.EXPECTED)
    assert torch.tensor([len(figure.picture.axes) > 0 for figure in study.figures]).all()


@pytest.mark.parametrize("module", [preferences, tuned_lenses])
def test_only_the_organism(module, tmp_path):
    with pytest.raises(UserError, match="organism"):
        module.run("somebody/else", root=tmp_path)


def test_steps_must_be_some(tmp_path):
    with pytest.raises(UserError, match="--steps 0 must be at least 1"):
        preferences.run(steps=0, root=tmp_path)

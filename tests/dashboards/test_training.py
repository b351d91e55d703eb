"""Trainings: which there are, how far each is, and its curves, from tables as a trainer writes them."""

from __future__ import annotations

import os

import pandas as pd
import pytest
from chiasm.dashboards.evaluations import label, shortened
from chiasm.dashboards.store import Store
from chiasm.dashboards.training import CURVES, GIVEN_UP, MORE, SILENT, figure, progress, trainings
from chiasm.experiments.run import Run

LOSS, MARGIN = CURVES[0], CURVES[1]


def history(steps: int) -> pd.DataFrame:
    """What a trainer's history is after so many steps: a row an entry, one of an evaluation at each second step, a summary at 4."""
    rows = []
    for step in range(1, steps + 1):
        rows.append(
            {"step": step, "epoch": step / 4, "loss": 1 / step, "rewards/margins": float(step), "learning_rate": 1e-3}
        )
        if step % 2 == 0:
            rows.append({"step": step, "epoch": step / 4, "eval_loss": 2 / step, "eval_rewards/margins": 0.5})
    return pd.DataFrame(rows)


def begun(root, steps: int | None = 3, **config) -> Run:
    run = Run.create("tune", {"model": "organism", "method": "rdpo", **config}, root)
    run.note(training={"max_steps": 8, "num_train_epochs": 2})
    if steps is not None:
        run.table("training", history(steps))
    return run


def lines(made):
    return {(mark.label, mark.look.dash): (list(mark.x), list(mark.y)) for mark in made.chart.panels[0].marks}


def test_a_curve_is_what_was_logged_with_held_out_pairs_dashed():
    made = figure(LOSS, {"rdpo": history(4)})
    assert lines(made) == {("", "-"): ([1, 2, 3, 4], [1, 1 / 2, 1 / 3, 1 / 4]), ("held out", "--"): ([2, 4], [1, 0.5])}
    assert "n = 4 log entries" in made.chart.note and "held-out" in made.chart.note and "no interval" in made.chart.note


def test_several_trainings_are_drawn_over_each_other_and_one_that_does_not_log_it_is_left_out():
    made = figure(MARGIN, {"a": history(2), "b": history(3), "c": history(2)[["step", "loss"]]})
    assert [mark.label for mark in made.chart.panels[0].marks if mark.look.dash == "-"] == ["a", "b"]
    assert len({mark.look.colour for mark in made.chart.panels[0].marks}) == 2
    assert figure(next(curve for curve in MORE if curve.column == "loss/visual"), {"a": history(2)}) is None


def test_the_running_mean_is_over_entries_and_said():
    made = figure(MARGIN, {"a": history(4)}, smooth=2)
    assert lines(made)["", "-"][1] == [1, 1.5, 2.5, 3.5] and "running mean of 2" in made.chart.note


def test_entries_of_a_resumed_training_and_what_is_no_number_do_not_tear_the_curve():
    table = pd.concat([history(3), pd.DataFrame({"step": [3, 4], "loss": [9.0, None]})], ignore_index=True)
    assert lines(figure(LOSS, {"a": table}))["", "-"] == ([1, 2, 3], [1, 0.5, 9])
    assert figure(LOSS, {"a": pd.DataFrame({"step": [1], "loss": ["odd"]})}) is None


@pytest.mark.parametrize(
    ("training", "share", "told"),
    [
        ({"max_steps": 8, "num_train_epochs": 3}, 0.5, "step 4 of 8"),
        ({"max_steps": -1, "num_train_epochs": 2}, 0.5, "step 4, epoch 1.00 of 2"),
        ({}, None, "step 4"),
    ],
)
def test_how_far_it_is(training, share, told):
    assert progress(history(4), {"training": training}) == (share, told)


def test_how_far_it_is_before_the_first_entry():
    assert progress(pd.DataFrame(), {}) == (None, "no log entry yet")


def test_states_of_trainings(tmp_path):
    begun(tmp_path).finish()
    running, failed = begun(tmp_path), begun(tmp_path)
    failed.note(error="UserError: the loss is not a finite number")
    written = os.stat(running.path / "log.txt").st_mtime if (running.path / "log.txt").exists() else 0
    now = max(written, os.stat(running.path / "tables" / "training.parquet").st_mtime)
    for later, state in ((1, "training"), (SILENT + 9, "silent"), (GIVEN_UP + 9, "stopped")):
        found = {one.run: one for one in trainings(Store(tmp_path).runs(), now + later)}
        states = sorted(one.state for one in found.values())
        assert states == sorted(["trained", state, "stopped"])
        assert sum(one.live for one in found.values()) == (state != "stopped")
    assert any("not a finite number" in one.told for one in found.values())
    assert len({one.label for one in found.values()}) == 3


def test_names_lose_the_words_that_all_share():
    assert shortened(["rdpo organism 10:53", "dpo organism 10:54"]) == {
        "rdpo organism 10:53": "rdpo 10:53",
        "dpo organism 10:54": "dpo 10:54",
    }
    assert shortened(["a b", "a"]) == {"a b": "a b", "a": "a"} and shortened(["a b"]) == {"a b": "a b"}


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (None, "organism "),
        ("runs/tune/20260101-a/adapter/", "organism + 20260101-a "),
        (["x/seed0"], "organism + seed0 "),
        (["a", "b"], "organism + 2 adapters "),
    ],
)
def test_a_run_is_named_by_its_model_and_its_adapters(tmp_path, adapter, told):
    Run.create("evaluate", {"model": "organism", "adapter": adapter}, tmp_path).finish()
    (run,) = Store(tmp_path).runs()
    assert label(run).startswith(told)

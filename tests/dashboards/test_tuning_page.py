"""The page Tuning, as a window opens it, while a training goes on and after."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
from chiasm.dashboards.store import Store
from chiasm.dashboards.training import trainings
from chiasm.experiments.run import Run

from .test_pairs_browser import made  # noqa: F401  the same small set of pairs
from .test_training import begun, history


@pytest.fixture
def opened(told, open_page, tmp_path):
    """opened(): the page over the runs in `tmp_path`."""

    def open_over():
        told(runs=str(tmp_path))
        return open_page("tuning")

    return open_over


def text_of(page) -> str:
    kinds = ("markdown", "caption", "info", "warning", "error")
    words = [str(one.value) for kind in kinds for one in page.get(kind)]
    return "\n".join([*words, *(one.proto.text for one in page.get("progress"))]).replace("\\", "")


def view(page, name):
    page.segmented_control(key="tuning_view").set_value(name)
    return page.run()


def test_without_anything_the_page_says_how_to_begin(opened):
    page = opened()
    assert not page.exception and "chiasm tune" in text_of(page)
    assert "chiasm pairs" in text_of(view(page, "Pairs"))


def test_curves_grow_while_a_training_writes_and_its_end_is_seen(opened, tmp_path):
    run = begun(tmp_path, steps=None)
    page = opened()
    assert not page.exception and not page.error and "no log entry yet" in text_of(page)
    run.table("training", history(3))
    page = page.run()
    assert "step 3 of 8" in text_of(page) and "n = 3 log entries" in text_of(page)
    run.table("training", history(6))
    page = page.run()
    assert "step 6 of 8" in text_of(page) and "n = 6 log entries" in text_of(page) and "training" in text_of(page)
    run.table("training", history(8))
    run.finish()
    page = page.run()
    assert not page.exception and not page.error and "complete · step 8 of 8" in text_of(page)
    assert not page.get("progress")


def test_several_trainings_are_compared_and_smoothed_and_more_is_drawn(opened, tmp_path):
    begun(tmp_path).finish()
    begun(tmp_path, method="dpo", steps=5).finish()
    page = opened()
    runs = page.multiselect(key="tuning_runs")
    page = runs.set_value([one.run for one in trainings(Store(tmp_path).runs())]).run()
    assert not page.error and "n = 3 and 5 log entries" in text_of(page)
    page.slider(key="tuning_smooth").set_value(4)
    page.multiselect(key="tuning_more").set_value(["learning_rate"])
    page = page.run()
    assert not page.error and "running mean of 4" in text_of(page) and "Learning rate" in text_of(page)


def test_a_damaged_table_is_told_and_the_other_training_is_drawn(opened, tmp_path):
    broken, good = begun(tmp_path), begun(tmp_path, method="dpo")
    good.finish()
    (broken.path / "tables" / "training.parquet").write_bytes(b"no table")
    page = opened()
    page = page.multiselect(key="tuning_runs").set_value([one.run for one in trainings(Store(tmp_path).runs())]).run()
    assert not page.exception and "cannot be read" in text_of(page) and "Loss" in text_of(page)


def test_a_training_that_failed_says_why(opened, tmp_path):
    begun(tmp_path).note(error="UserError: the loss is not a finite number after step 3")
    assert "not a finite number after step 3" in text_of(opened())


def test_pairs_are_browsed_with_what_differs_and_why_others_were_dropped(opened, tmp_path, made):  # noqa: F811
    shutil.copytree(made, tmp_path / "mine")
    (tmp_path / "mine" / "dropped.jsonl").write_text('{"id": "a", "reason": "no_fill"}\n')
    page = view(opened(), "Pairs")
    assert not page.exception and not page.error
    html = "\n".join(one.proto.body for one in page.get("html"))
    assert (
        'mark class="good"' in html and 'mark class="bad"' in html and "rejected text, picture: false" in text_of(page)
    )
    assert any("no_fill" in list(frame.value.get("reason", [])) for frame in page.dataframe)
    assert [metric.label for metric in page.metric][:2] == ["Pairs", "Dropped"]
    kinds = page.pills(key="tuning_kind_mine")
    page = kinds.set_value([kinds.options[0]]).run()
    assert not page.error and "pairs" in text_of(page)


def test_damaged_pairs_are_told(opened, tmp_path, made):  # noqa: F811
    shutil.copytree(made, tmp_path / "mine")
    next((tmp_path / "mine").glob("*.arrow")).write_bytes(b"no arrow")
    (tmp_path / "mine" / "report.json").unlink()
    page = view(opened(), "Pairs")
    assert not page.exception and text_of(page).count("cannot be read") == 2


def test_pairs_that_are_being_made_tell_how_far_they_are(opened, tmp_path):
    folder = tmp_path / "mine.incomplete"
    folder.mkdir()
    (folder / "pairs.json").write_text("{}")
    (folder / "records.jsonl").write_text('{"id": "a", "kind": "object"}\n')
    page = view(opened(), "Pairs")
    assert not page.exception and "1 items read, 1 pairs so far" in text_of(page)


def titles(page) -> list[str]:
    """Of the figures that are folded."""
    return [one.label.strip("*") for one in page.expander if one.label.startswith("**")]


def compared(root):
    """A comparison as `experiments.against` writes it, with some of its tables."""
    run = Run.create("against", {"before": "organism", "after": ["after"]}, root)
    one = {"model": "mean", "sd": 0.1, "seeds": 1, "blocks": 6, "n": 48, "standardised": 2.0}
    lens = {"lens": "Attention shift", "before": 0.2, "after": 0.5, "change": 0.3}
    moved, still = {"low": 0.1, "high": 0.5}, {"low": -0.1, "high": 0.7}
    run.table(
        "lenses",
        pd.DataFrame(
            [
                {**one, **lens, **moved, "quantity": "attention shift"},
                {**one, **lens, **still, "quantity": "attention on the sink"},
            ]
        ),
    )
    run.table(
        "layers",
        pd.DataFrame([{**one, **lens, **moved, "quantity": "attention shift", "layer": layer} for layer in range(4)]),
    )
    return run


def test_every_lens_before_and_after_is_listed_and_drawn(opened, tmp_path):
    compared(tmp_path).finish()
    page = view(opened(), "Before and after")
    assert not page.exception and not page.error
    rows = page.dataframe[-1].value
    assert list(rows["moved"]) == ["●", ""] and list(rows["95 % interval"]) == ["+0.100 to +0.500", "-0.100 to +0.700"]
    assert "n = 48 scenes in 6 blocks" in text_of(page) and titles(page) == ["Where did tuning act?"]


def test_a_comparison_that_is_not_complete_or_is_damaged_shows_what_it_has(opened, tmp_path):
    run = compared(tmp_path)
    (run.path / "tables" / "kl.parquet").write_bytes(b"no table")
    run.table("margins", pd.DataFrame({"odd": [1]}))
    page = view(opened(), "Before and after")
    assert not page.exception and "not complete" in text_of(page) and "cannot be read" in text_of(page)
    assert len(page.dataframe[-1].value) == 2 and titles(page) == ["Where did tuning act?"]


def test_without_a_comparison_the_page_says_how_to_make_one(opened):
    assert "--against" in text_of(view(opened(), "Before and after"))

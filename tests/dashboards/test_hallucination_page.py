"""The page Hallucination, as a window opens it."""

from __future__ import annotations

import json
import shutil

import pytest
from chiasm.dashboards.evaluations import evaluated, label
from chiasm.dashboards.store import Store


@pytest.fixture
def opened(told, open_page, evaluations, tmp_path):
    """opened(change): the page over a copy of the evaluations, to which a change may be made first."""

    def open_over(change=lambda root: None):
        root = tmp_path / "runs"
        shutil.copytree(evaluations["pope-scenes"].parent.parent, root)
        change(root)
        told(runs=str(root))
        return open_page("hallucination")

    return open_over


def text_of(page) -> str:
    kinds = ("markdown", "caption", "info", "warning", "error")
    return "\n".join(str(one.value) for kind in kinds for one in page.get(kind)).replace("\\", "")


def html_of(page) -> str:
    return "\n".join(one.proto.body for one in page.get("html"))


def view(page, name, benchmark="chair-scenes"):
    page.segmented_control(key="hallucination_benchmark").set_value(benchmark)
    page.segmented_control(key="hallucination_view").set_value(name)
    return page.run()


def test_without_evaluations_the_page_says_how_to_make_one(told, open_page, tmp_path):
    told(runs=str(tmp_path))
    page = open_page("hallucination")
    assert not page.exception and "chiasm evaluate" in page.info[0].value


def test_scores_are_drawn_with_intervals_and_differences_and_listed(opened):
    page = opened()
    assert not page.exception and not page.error
    page = view(page, "Scores")
    assert "CHAIR_i, mentions made up: each method" in text_of(page) and "what each method changes" in text_of(page)
    assert "n = 4" in text_of(page) and "paired 95 % interval" in text_of(page) and "How to read this" in text_of(page)
    table = page.dataframe[0].value
    assert {"method", "measure", "value", "95 % interval", "n", "difference", "its 95 % interval"} <= set(table)
    page.pills(key="hallucination_split_all_same length").set_value("same length")
    assert not page.run().error


def test_two_runs_are_compared_side_by_side(opened):
    def another(root):
        first = next(
            path for path in (root / "evaluate").iterdir() if "chair-scenes" in (path / "manifest.json").read_text()
        )
        shutil.copytree(first, first.with_name("20990101-000000-abcdef"))

    page = view(opened(another), "Scores")
    runs = page.multiselect(key="hallucination_runs_chair-scenes")
    assert len(runs.options) == 2 == len(set(runs.options))  # of one minute, and told apart all the same
    page = runs.set_value(runs.options).run()
    assert not page.error and "run" in page.dataframe[0].value


def test_answers_are_listed_with_what_is_made_up_and_can_be_filtered(opened):
    page = view(opened(), "Answers")
    assert not page.exception and not page.error
    assert 'class="bad"' in html_of(page) and "made up" in html_of(page)
    pills = next(one for one in page.pills if one.label == "Failures")
    every = pills.set_value(None).run()
    assert "**4** of 4 questions" in text_of(every)
    way = next(one for one in page.selectbox if one.label == "Failing")
    assert way.options == ["any that is shown", "greedy", "sampling-t3, seed 0", "sampling-t3, seed 1"]
    assert sum(button.label == "Open in Look" for button in every.button) == 4


def test_a_question_is_handed_to_the_page_look(opened):
    page = view(opened(), "Answers", "pope-scenes")
    next(one for one in page.pills if one.label == "Failures").set_value(None)
    page.run()
    button = next(one for one in page.button if one.label == "Open in Look")
    button.click().run()
    asked = page.session_state["look_request"]
    assert asked["run"].startswith("evaluate/") and asked["id"] == button.key.removeprefix("hallucination_look_")


def test_damaged_files_are_told_and_the_rest_goes_on(opened):
    def damage(root):
        for run in (root / "evaluate").iterdir():
            (run / "tables" / "scores.parquet").write_bytes(b"not a table")
            (run / "answers" / "greedy.jsonl").write_bytes(b"{broken\n")
        (root / "evaluate" / "20990101-000000-ffffff").mkdir()
        (root / "evaluate" / "20990101-000000-ffffff" / "manifest.json").write_text("{")

    page = view(opened(damage), "Scores")
    assert not page.exception and "cannot be read" in text_of(page)
    page = view(page, "Answers")
    assert (
        not page.exception and "'greedy.jsonl' has 1 damaged line" in text_of(page) and "sampling-t3" in html_of(page)
    )


def test_a_run_that_is_not_complete_shows_its_answers_and_says_that_scores_come_later(opened):
    def stop(root):
        for run in list((root / "evaluate").iterdir()):
            (run / "tables" / "scores.parquet").unlink()
            manifest = run / "manifest.json"
            manifest.write_text(manifest.read_text().replace('"state": "complete"', '"state": "incomplete"'))
            run.rename(run.with_name(run.name + ".partial"))

    page = view(opened(stop), "Scores")
    assert "scores come at its end" in text_of(page) and not page.error
    page = view(page, "Answers")
    assert not page.error and html_of(page)


def test_the_runs_of_both_experiments_are_found_and_odd_manifests_are_not(evaluations):
    store = Store(evaluations["pope-scenes"].parent.parent)
    found = evaluated(store.runs())
    assert {one.benchmark for one in found} == {"pope-scenes", "chair-scenes"} and all(one.answers for one in found)
    assert all(label(run).startswith("organism ") for run in store.runs())


def test_answers_before_and_after_tuning_are_compared_question_by_question(told, open_page, tmp_path):
    from chiasm.experiments.run import Run

    run = Run.create("against", {"before": "organism", "after": ["after"]}, tmp_path)
    (run.path / "answers").mkdir()
    record = {
        "id": "description-9",
        "split": "all",
        "image": "scene-9",
        "truth": ["boat"],
        "answer": "a boat and a ball",
    }
    for name, answer in (("before", "a boat and a ball"), ("after", "a boat")):
        (run.path / "answers" / f"chair-scenes.{name}.jsonl").write_text(json.dumps(record | {"answer": answer}) + "\n")
    run.finish()
    told(runs=str(tmp_path))
    page = open_page("hallucination")
    assert "on the page Tuning" in text_of(page)
    page.segmented_control(key="hallucination_view").set_value("Answers")
    page = page.run()
    assert not page.exception and not page.error
    shown = html_of(page)
    assert shown.index(">before<") < shown.index(">after<") and shown.count('class="bad"') == 1


def test_a_figure_of_two_runs_has_a_legend_and_one_of_one_run_has_none():
    import pandas as pd
    from chiasm.dashboards.charts import _drawing
    from chiasm.experiments.figures.scores import values

    table = pd.DataFrame(
        [
            {
                "method": "greedy",
                "metric": "f1",
                "split": "all",
                "mean": 0.5,
                "low": 0.4,
                "high": 0.6,
                "difference": None,
                "n": 9,
            }
        ]
    )
    for names in (["a"], ["a", "b"]):
        made = _drawing(values(dict.fromkeys(names, table), "f1", "all").chart, False)
        shown = [trace.name for trace in made.data if trace.showlegend]
        assert bool(made.layout.showlegend) == (len(names) > 1) and (len(names) == 1 or shown == names)

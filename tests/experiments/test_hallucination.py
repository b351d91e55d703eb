"""The hallucination experiment on a few scenes: every comparison the page asks for is there, paired, with its figures."""

import pytest
from chiasm.experiments import hallucination
from chiasm.experiments.figures.rows import pick
from chiasm.experiments.run import load_run
from chiasm.models import open_vlm


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return hallucination.study(open_vlm("organism"), limit=3, seeds=2, root=tmp_path_factory.mktemp("runs"))


def test_greedy_sampling_mitigations_and_all_controls_answer_the_same_questions(study):
    methods = set(study.tables["pope"]["method"])
    assert methods >= {"greedy", "sampling", "sampling-b0.1", "sampling-t0.5", "no-image-a1", "random-tokens-a1"}
    assert methods >= set(hallucination.MITIGATIONS)
    assert sum(name.startswith("yes") for name in methods) == 1
    rows = pick(study.tables["pope"], split="mean", metric="accuracy")
    assert rows["n"].nunique() == 1
    assert rows[rows["method"] != "greedy"]["difference"].notna().all()


def test_descriptions_are_compared_at_equal_length_and_at_several_strengths(study):
    table = study.tables["chair"]
    assert {"all", "same length"} <= set(table["split"])
    assert {"damro-a0.5", "damro-a2", "no-image-a0.5", "random-tokens-a2"} <= set(table["method"])
    assert {"chair_i", "chair_s", "recall", "mean_length"} <= set(table["metric"])


def test_damro_is_held_against_sampling_and_its_controls(study):
    table = study.tables["against_controls"]
    assert set(pick(table, method="damro")["base"]) == {"sampling", "random-tokens-a1", "no-image-a1"}
    assert set(pick(table, method="without-outliers")["base"]) == {"greedy", "without-random", "without-longest"}


def test_claims_are_verdicts_of_paired_intervals(study):
    assert len(study.claims) == 8
    for claim in study.claims:
        assert "n = " in claim.here and "p = " in claim.here
    row = pick(study.tables["against_controls"], base="sampling", metric="chair_i").iloc[0]
    holds = True if row["difference_high"] < 0 else False if row["difference_low"] > 0 else None
    assert study.claims[0].holds is holds


def test_the_run_holds_its_tables_and_figures(study):
    run = load_run(study.path)
    assert run.finished
    assert {path.stem for path in (study.path / "figures").glob("*.png")} == {
        "pope",
        "chair_against_recall",
        "at_equal_length",
    }

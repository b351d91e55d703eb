"""The experiment on shared weights: a complete run with controls of equal size."""

import pytest
from chiasm.experiments.run import load_run
from chiasm.experiments.shared_weights import run
from chiasm.scenes.errors import UserError


def test_a_complete_run_with_controls_of_equal_size(tmp_path):
    kept = load_run(run(limit=6, questions=4, device="cpu", root=tmp_path))
    table = kept.read_table("removal")
    assert kept.finished and len(table) == 7 and table["perplexity"].gt(1).all()
    assert (table.groupby("sparsity")["share_removed"].nunique() == 1).all()
    assert (table["share_removed"] >= table["sparsity"] - 0.01).all()
    assert len(list((kept.path / "figures").glob("*.png"))) == 2


def test_other_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="--model organism"):
        run("llava-hf/llava-1.5-7b-hf", root=tmp_path)

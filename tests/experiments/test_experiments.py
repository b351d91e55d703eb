"""The first two experiments on a family of tiny models: their numbers, their honesty about n, what they write."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from chiasm.experiments import alignment, forgetting
from chiasm.experiments import lineage as lineages
from chiasm.experiments.lineage import Lineage, Stage, drop, lineage, score, seeing_questions, text_questions
from chiasm.experiments.run import load_run
from chiasm.models.organism.processor import IMAGE, make_processor
from chiasm.scenes.errors import UserError
from chiasm.scenes.language import vocabulary


def tiny(seed: int):
    """A random Llava that knows the world's words, as `load_organism` gives a member."""
    processor = make_processor(vocabulary(), image_size=16, patch_size=8)
    small = dict(intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(hidden_size=16, image_size=16, patch_size=8, projection_dim=8, **small),
        text_config=hf.LlamaConfig(
            hidden_size=16,
            num_key_value_heads=2,
            vocab_size=len(processor.tokenizer),
            max_position_embeddings=512,
            **small,
        ),
        image_token_id=processor.tokenizer.convert_tokens_to_ids(IMAGE),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hf.LlavaForConditionalGeneration(config)
    return model.eval(), processor


@pytest.fixture(scope="module")
def family() -> Lineage:
    stages = [
        Stage(name, math.nan, lambda seed=seed: tiny(seed))
        for seed, name in enumerate(("lm", "aligned", "tuned", "colour"))
    ]
    return Lineage(stages, False, "four tiny random models")


@pytest.fixture(scope="module")
def studies(family, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "base_stage", lambda: family.stages[0])
        some = dict(limit=8, root=tmp_path_factory.mktemp("runs"), questions=6, device="cpu")
        yield {"alignment": alignment.study(family, **some), "forgetting": forgetting.study(family, **some)}


@pytest.mark.parametrize("name", ["alignment", "forgetting"])
def test_each_writes_a_complete_run(studies, name):
    study = studies[name]
    run = load_run(study.path)
    assert run.finished and study.path.parent.name == name
    assert run.manifest["config"]["stages"] == ["lm", "aligned", "tuned", "colour"]
    tables = run.tables()
    for table in study.tables:
        pd.testing.assert_frame_equal(tables[table], study.tables[table], check_dtype=False)
    for drawn in study.figures:
        assert (study.path / "figures" / f"{drawn.name}.png").stat().st_size > 5000
        assert (study.path / "figures" / f"{drawn.name}.html").exists()


@pytest.mark.parametrize("name", ["alignment", "forgetting"])
def test_n_is_told_and_nothing_claimed_of_few(studies, name):
    study = studies[name]
    assert any("n = 4 models" in line for line in study.found)
    assert all(claim.holds is None for claim in study.claims)
    assert all("n = " in drawn.note or "models" in drawn.note for drawn in study.figures)


def test_alignment_scores_are_the_probes(studies, family):
    study = studies["alignment"]
    run = load_run(study.path)
    for stage in family.stages:
        table = run.read_table(f"{stage.name}.implicit_alignment")
        expected = table[
            (table["quantity"] == "ima_same_layer") & (table["pooling"] == "avg") & (table["variant"] == "raw")
        ]
        scores = study.tables["scores"]
        row = scores[
            (scores["stage"] == stage.name) & (scores["score"] == "ima_same_layer") & (scores["variant"] == "raw")
        ]
        assert row["mean"].item() == expected["mean"].item()
        # the score is the mean over all layers of the curve that is drawn
        curve = study.tables["curves"].query("stage == @stage.name and variant == 'raw'")
        assert curve["mean"].mean() == pytest.approx(row["mean"].item())


def test_the_step_is_controlled_only_where_there_is_one(studies):
    partial = studies["alignment"].tables["correlations"].query("given == 'training step'")
    assert (partial["n"] == 0).all() and partial["value"].isna().all()
    assert any("not computed" in line for line in studies["alignment"].found)


def test_the_base_model_drops_by_nothing(studies):
    drops = studies["forgetting"].tables["drops"].set_index("stage")
    assert drops.loc["lm", ["mean", "low", "high"]].tolist() == [0, 0, 0]
    assert set(drops["n"]) == {18}


def test_shift_is_told_with_and_without_pictures(studies):
    shifts = studies["forgetting"].tables["shifts"]
    assert set(shifts["read"]) == {"picture", "text_only"} and shifts["mean"].between(0, 2).all()
    assert (shifts["n"] > 0).all()


def test_drop_is_paired():
    before = {"a": np.array([1.0, 1, 1, 0])}
    after = {"a": np.array([1.0, 0, 0, 0])}
    found = drop(before, after)
    assert found["mean"] == 0.5 and found["n"] == 4 and found["low"] <= 0.5 <= found["high"]
    same = drop(before, before)
    assert same["low"] == same["high"] == 0


def test_questions_are_the_same_for_every_stage_and_balanced():
    assert [s.id for s in text_questions(5)["sums"]] == [s.id for s in text_questions(5)["sums"]]
    asked = seeing_questions(24)
    assert {kind: len(samples) for kind, samples in asked.items()} == dict.fromkeys(
        ("existence", "colour", "number", "position"), 24
    )
    answers = [s.answer for s in asked["existence"]]
    assert answers.count("yes") == pytest.approx(12, abs=2)


def test_score_counts_right_answers(family, monkeypatch):
    vlm = family.stages[0].open("cpu")
    questions = {"sums": text_questions(7)["sums"]}
    told = {}

    def generate(inputs, **_):
        texts = [
            f"{told[text]} ."
            for text in vlm.tokenizer.batch_decode(inputs.tensors["input_ids"], skip_special_tokens=True)
        ]
        return texts

    for i, sample in enumerate(questions["sums"]):
        (text,) = vlm.tokenizer.batch_decode(
            vlm.prepare([()], [sample.prompt]).tensors["input_ids"], skip_special_tokens=True
        )
        told[text] = sample.answer if i != 3 else "wrong"
    monkeypatch.setattr(vlm, "generate", generate)
    assert score(vlm, questions)["sums"].sum() == sum(told[t] != "wrong" for t in told)


def test_a_growth_series_is_used_when_it_has_enough(tmp_path, monkeypatch):
    for step in range(12):
        (tmp_path / "growth" / f"step-{step * 100:06d}").mkdir(parents=True)
    series = lineage(tmp_path)
    assert series.growth and [stage.step for stage in series.stages] == [100 * i for i in range(12)]
    assert "12 checkpoints" in series.told
    (tmp_path / "growth" / "step-000000").rmdir()
    with pytest.raises(UserError, match="has 11 checkpoints, 12 are needed"):
        lineage(tmp_path)
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "nowhere"))
    shipped = lineage()
    assert not shipped.growth and [stage.name for stage in shipped.stages] == list(lineages.SHIPPED)


@pytest.mark.parametrize("experiment", [alignment, forgetting])
def test_other_models_are_refused(experiment, tmp_path):
    with pytest.raises(UserError, match="--model organism"):
        experiment.run("llava-hf/llava-1.5-7b-hf", root=tmp_path)

"""The trainer of learners: what it moves and what it leaves, the same numbers after a kill, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.alignment.distillation import Distillation, DistillationConfig
from chiasm.alignment.learning import LearningConfig, as_sample, learn, lesson, lessons
from chiasm.alignment.scene_lessons import SceneLessons
from chiasm.alignment.wings import Wings, WingsConfig
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import scene_samples, skill_set
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import BadSample, Sample
from safetensors.torch import load_file

SHORT = LearningConfig(steps=4, batch_size=3, log_steps=1, save_seconds=0.0)


@pytest.fixture(scope="module")
def data():
    return [*scene_samples(4, "train", "colour"), *skill_set("sums", 2, "train")]


def opened():
    return open_vlm("organism/aligned", device="cpu")


def wings_of(vlm) -> Wings:
    torch.manual_seed(0)
    return Wings(vlm, WingsConfig(rank=4))


def distillation_of(vlm) -> Distillation:
    torch.manual_seed(0)
    return Distillation(vlm, DistillationConfig(layers={"depth": (2,)}, tokens=4, grid=4, width=16))


# -- what it moves ---------------------------------------------------------------------------------------------------------


def test_wings_learn_and_the_model_stays(tmp_path, data):
    vlm = opened()
    wings, before = wings_of(vlm), vlm.fingerprint()
    wanted = [p.requires_grad for p in vlm.model.parameters()]
    config = replace(SHORT, steps=8, batch_size=6, learners=1e-2, projector=0.0)
    curves = learn(vlm, data, tmp_path, config, wings=wings)
    assert curves["loss"].iloc[-1] < curves["loss"].iloc[0] and len(curves) == 8
    assert vlm.fingerprint() == before
    assert all(float(part["textual"].B_o.weight.detach().abs().max()) > 0 for part in wings.learners.values())
    assert [p.requires_grad for p in vlm.model.parameters()] == wanted


def test_each_part_has_its_own_rate(tmp_path, data):
    vlm = opened()
    decoder, projector = (
        [p.clone() for p in part.parameters()] for part in (vlm.anatomy.decoder, vlm.anatomy.projector)
    )
    learn(vlm, data, tmp_path, replace(SHORT, steps=1, projector=0.0, decoder=1e-3))
    assert all(torch.equal(a, b) for a, b in zip(projector, vlm.anatomy.projector.parameters(), strict=True))
    moved = [(a - b).abs().max().item() for a, b in zip(decoder, vlm.anatomy.decoder.parameters(), strict=True)]
    assert min(moved) > 0 and max(moved) == pytest.approx(1e-3, rel=0.05)  # AdamW's first step is the rate itself


def test_distillation_is_learnt_beside_the_models_own_loss(tmp_path, data):
    vlm = opened()
    extra = distillation_of(vlm)
    curves = learn(vlm, data[:4], tmp_path, replace(SHORT, steps=8, distillation=1e-2), distillation=extra)
    assert curves["distilled"].iloc[-1] < curves["distilled"].iloc[0]
    np.testing.assert_allclose(curves["loss"], curves["answers"] + curves["distilled"], rtol=1e-5)
    assert "depth_2" in curves


def test_both_at_once(tmp_path, data):
    vlm = opened()
    curves = learn(vlm, data, tmp_path, replace(SHORT, steps=2), wings=wings_of(vlm), distillation=distillation_of(vlm))
    assert np.isfinite(curves["loss"]).all()


def test_a_run_keeps_the_curves(tmp_path, data):
    from chiasm.experiments.run import Run, load_run

    vlm = opened()
    with Run.create("learning", {}, tmp_path / "runs") as run:
        curves = learn(vlm, data, tmp_path / "out", replace(SHORT, steps=2), wings=wings_of(vlm), run=run)
    kept = load_run(run.path)
    pd.testing.assert_frame_equal(kept.read_table("training"), curves)
    assert kept.manifest["learning"]["steps"] == 2


# -- lessons ---------------------------------------------------------------------------------------------------------------


def test_the_answer_and_the_end_of_the_turn_are_to_be_said(data):
    vlm = opened()
    made = lesson(vlm, [data[0], data[-1]])
    for sample, labels in zip((data[0], data[-1]), made.labels, strict=True):
        assert vlm.tokenizer.decode(labels[labels >= 0]).split() == [*sample.answer.split(), vlm.tokenizer.eos_token]


def test_every_sample_comes_once_a_round_and_in_another_order_the_next(data):
    vlm = opened()
    make = lessons(vlm, data, 3, seed=2)
    rounds = [[s.id for step in steps for s in make(step).inputs.samples] for steps in ((0, 1), (2, 3))]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(s.id for s in data) and rounds[0] != rounds[1]
    again = lessons(vlm, iter(data), 3, seed=2)
    assert torch.equal(again(3).labels, make(3).labels)


def test_rows_of_a_data_set_are_samples(data):
    row = {"id": 7, "image": data[0].images[0], "question": data[0].prompt, "answer": data[0].answer}
    assert as_sample(row) == Sample("7", data[0].prompt, data[0].images, data[0].answer)
    assert as_sample({"prompt": "2 + 2 ?", "answer": "4"}).images == ()
    assert as_sample({"prompt": "2 + 2 ?", "answer": None}) is None and as_sample(BadSample("x", "torn")) is None
    with pytest.raises(UserError, match="prompt or question"):
        as_sample({"text": "x"})
    with pytest.raises(UserError, match="holds a str"):
        as_sample("x")


def test_rows_of_the_world_ask_many_things_of_one_picture():
    vlm = opened()
    made = SceneLessons(vlm, batch_size=6, turns=64, text_share=0.5, scenes=20)(0)
    pictured = [bool(sample.images) for sample in made.inputs.samples]
    assert True in pictured and False in pictured
    assert made.inputs.spans.visual.any(1).tolist() == pictured
    ends = (made.labels == vlm.tokenizer.eos_token_id).sum(1)
    assert ends.min() >= 1 and ends.max() > 3
    asked = made.labels >= 0
    assert torch.equal(made.labels[asked], made.inputs.tensors["input_ids"][asked])
    assert torch.equal(SceneLessons(vlm, batch_size=6, turns=64, text_share=0.5, scenes=20)(0).labels, made.labels)


# -- kills and refusals ----------------------------------------------------------------------------------------------------


def killable(folder: str, die_at: int) -> None:
    """A training that kills itself while it makes the batch of a step; with -1 it does not."""
    vlm = opened()
    data = [*scene_samples(4, "train", "colour"), *skill_set("sums", 2, "train")]
    make = lessons(vlm, data, 3)

    def maybe(step: int):
        if step == die_at:
            os.kill(os.getpid(), 9)
        return make(step)

    learn(vlm, maybe, folder, replace(SHORT, decoder=1e-3), wings=wings_of(vlm))


def test_a_killed_training_goes_on_to_the_same_numbers(tmp_path, one_thread):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    code = f"import sys; sys.path.insert(0, {str(os.path.dirname(__file__))!r}); from test_learning import killable; killable({str(tmp_path / 'killed')!r}, 2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == -9, done.stderr[-2000:]
    assert (tmp_path / "killed" / "learning.half.safetensors").exists()
    killable(str(tmp_path / "killed"), -1)
    killable(str(tmp_path / "whole"), -1)
    curves = [pd.read_csv(tmp_path / name / "learning.csv").drop(columns="seconds") for name in ("killed", "whole")]
    pd.testing.assert_frame_equal(*curves)
    weights = [load_file(tmp_path / name / "learning.safetensors") for name in ("killed", "whole")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_finished_training_is_read(tmp_path, data):
    first, second = opened(), opened()
    wings = [wings_of(vlm) for vlm in (first, second)]
    told = [
        learn(vlm, data, tmp_path, replace(SHORT, steps=2), wings=w)
        for vlm, w in zip((first, second), wings, strict=True)
    ]
    pd.testing.assert_frame_equal(*told)
    assert first.fingerprint() == second.fingerprint()
    assert all(torch.equal(a, b) for a, b in zip(wings[0].parameters(), wings[1].parameters(), strict=True))
    with pytest.raises(UserError, match="other settings"):
        learn(first, data, tmp_path, replace(SHORT, steps=3), wings=wings[0])


def test_numbers_that_are_none_stop_it_before_a_weight_moves(tmp_path, data):
    vlm = opened()
    wings, before = wings_of(vlm), vlm.fingerprint()
    own = [p.clone() for p in wings.parameters()]
    make = lessons(vlm, data[:4], 3)

    def spoilt(step: int):
        made = make(step)
        made.inputs.tensors["pixel_values"][0, 0, 0, 0] = float("nan")
        return made

    with pytest.raises(UserError, match=r"step 0.*no weights were changed"):
        learn(vlm, spoilt, tmp_path, SHORT, wings=wings)
    assert vlm.fingerprint() == before and all(torch.equal(a, b) for a, b in zip(own, wings.parameters(), strict=True))


def test_a_gradient_that_is_no_number_stops_it_though_the_loss_is_one(tmp_path, data):
    vlm = opened()
    wings = wings_of(vlm)
    wings.learners["0"]["visual"].B_o.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(UserError, match="a gradient is no number at step 0"):
        learn(vlm, data, tmp_path, SHORT, wings=wings)


def test_nothing_to_learn_from_and_nothing_to_train_are_refused(tmp_path, data):
    vlm = opened()
    for empty in ([], [replace(data[0], answer=None)], [BadSample("x", "torn")]):
        with pytest.raises(UserError, match="no sample with an answer"):
            learn(vlm, empty, tmp_path, SHORT, wings=wings_of(vlm))
    with pytest.raises(UserError, match="nothing would be trained"):
        learn(vlm, data, tmp_path, replace(SHORT, projector=0.0))
    for wrong in ({"steps": 0}, {"learners": -1.0}, {"decoder": float("nan")}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            LearningConfig(**wrong)

"""`chiasm tune`: from pairs on disk to an adapter that every command opens; settings, resuming, and what a user can get wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from chiasm.experiments.cli import app
from chiasm.experiments.run import list_runs, load_run
from chiasm.experiments.tune import before_after, settings_of, tune
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from safetensors.torch import load_file
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    from chiasm.experiments.scene_pairs import scene_pairs

    folder = tmp_path_factory.mktemp("tune") / "pairs"
    scene_pairs(open_vlm("organism"), list(scene_samples(40, "train", "mixed")), folder)
    return folder


def run(*args):
    result = CliRunner().invoke(app, ["tune", *map(str, args)])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return load_run(result.stdout.split()[-1])


def weights(run):
    return load_file(run.path / "adapter" / "adapter_model.safetensors")


FEW = ("--max-steps", 4, "--batch-size", 4, "--held-out", 4, "--device", "cpu")


def test_a_run_with_an_adapter_that_opens_and_answers_otherwise(pairs, tmp_path):
    kept = run("--pairs", pairs, *FEW, "--out", tmp_path, "--set", "logging_steps=1", "--save", tmp_path / "tuned")
    assert kept.finished and kept.manifest["experiment"] == "tune" and kept.manifest["config"]["pairs"] == str(pairs)
    assert kept.manifest["steps"] == 4 and kept.manifest["model"]["name"] == "organism"
    history = kept.read_table("training")
    assert list(history["step"].dropna().unique()) == [0, 1, 2, 3, 4]
    first = history.loc[history["loss"].notna(), "loss"].iloc[0]
    assert first == pytest.approx(2 * torch.log(torch.tensor(2.0)).item(), abs=1e-3)  # rDPO starts at 2 log 2
    held = kept.read_table("held_out").set_index("metric")
    assert held.loc["loss", "before"] == pytest.approx(1.386294, abs=1e-4) and held.loc["loss", "after"] < 1.386
    assert not list((kept.path / "training").glob("checkpoint-*"))
    assert list((kept.path / "training").glob("**/events.out.tfevents.*"))
    assert not [
        path.name for path in (kept.path / "adapter").iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")
    ]
    sample = next(iter(scene_samples(1, "test")))
    plain = open_vlm("organism")
    for adapter in (kept.path, kept.path / "adapter", tmp_path / "tuned"):  # the run stands for its adapter
        tuned = open_vlm("organism", adapter=adapter)
        one = [vlm.forward(vlm.prepare([sample.images], [sample.prompt])).logits for vlm in (plain, tuned)]
        assert not torch.equal(*one)


def test_a_killed_run_goes_on_to_the_same_weights(pairs, tmp_path):
    some = (
        "--pairs",
        pairs,
        "--max-steps",
        6,
        "--batch-size",
        4,
        "--held-out",
        0,
        "--device",
        "cpu",
        "--set",
        "save_steps=1",
    )
    whole = run(*some, "--out", tmp_path / "whole")
    command = [
        sys.executable,
        "-m",
        "chiasm.experiments.cli",
        "tune",
        *map(str, some),
        "--out",
        str(tmp_path / "killed"),
    ]
    process = subprocess.Popen(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 240
    while not list((tmp_path / "killed").glob("tune/*/training/checkpoint-[2-4]/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (broken,) = list_runs(tmp_path / "killed")
    assert broken.state == "incomplete"
    on = run("--resume", "latest", "--out", tmp_path / "killed")
    assert on.finished and on.manifest["resumed"] == 1
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(on).items())
    said = CliRunner().invoke(app, ["tune", "--resume", str(on.path)])
    assert said.exit_code == 0 and "complete" in said.output


def test_settings_come_from_the_file_then_from_set_then_from_options(pairs, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("beta: 0.3\nlearning_rate: 1e-4\nrank: 4\nnum_train_epochs: 2\n")
    kept = run(
        "--pairs",
        pairs,
        *FEW,
        "--config",
        file,
        "--set",
        "rank=2",
        "--set",
        "visual_weight=0.5",
        "--beta",
        0.2,
        "--out",
        tmp_path,
    )
    training = kept.manifest["training"]
    assert training["beta"] == 0.2 and training["learning_rate"] == 1e-4 and training["visual_weight"] == 0.5
    assert json.loads((kept.path / "adapter" / "adapter_config.json").read_text())["r"] == 2


def test_every_method_is_one_code_path():
    vlm = open_vlm("organism")
    got = {name: settings_of(vlm, name) for name in ("rdpo", "dpo", "mdpo", "sft")}
    assert [got[name]["visual_weight"] for name in got] == [1, 0, 1, 0] and got["mdpo"]["anchor_weight"] == 1
    assert got["sft"]["loss_type"] == ["sft"] and "loss_type" not in got["dpo"]


def test_the_model_that_is_given_is_left_as_it_was(pairs, tmp_path):
    from chiasm.alignment.pairs import load_pairs

    vlm = open_vlm("organism")
    before, names = vlm.fingerprint(), [name for name, _ in vlm.model.named_parameters()]
    done = tune(
        vlm,
        load_pairs(pairs).select(range(8)),
        folder=tmp_path,
        method="dpo",
        held_out=0,
        settings={"max_steps": 1, "per_device_train_batch_size": 2},
        progress=False,
    )
    assert vlm.fingerprint() == before and [name for name, _ in vlm.model.named_parameters()] == names
    assert done.steps == 1 and done.held_out.empty and (done.adapter / "adapter_config.json").is_file()


def test_before_and_after_are_the_first_and_last_evaluation():
    history = pd.DataFrame(
        {
            "step": [0, 1, 2],
            "eval_loss": [1.4, None, 1.1],
            "loss": [None, 1.2, None],
            "eval_kl/chosen": [0.0, None, 0.5],
        }
    )
    table = before_after(history).set_index("metric")
    assert table.loc["loss", ["before", "after"]].tolist() == [1.4, 1.1] and table.loc["kl/chosen", "after"] == 0.5
    assert before_after(pd.DataFrame({"loss": [1.0]})).empty


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--method", "ppo"), "method 'ppo' is not known: use rdpo, dpo"),
        (("--set", "learning_rat=1"), "do you mean learning_rate"),
        (("--set", "beta"), "must be NAME=VALUE"),
        (("--config", "nowhere.yaml"), "cannot be read as YAML"),
        (("--batch-size", 0), "--batch-size 0 must be at least 1"),
        (("--save", Path(__file__).parent), "holds no adapter: give another folder"),
        (("--held-out", 1000), "leave none to train on"),
        (("--set", "beta=-1"), "beta"),
    ],
)
def test_one_line_for_what_is_wrong(pairs, tmp_path, args, told):
    with pytest.raises(UserError, match=told) as error:
        run("--pairs", pairs, "--device", "cpu", "--out", tmp_path, *args)
    assert "\n" not in str(error.value)


def test_no_pairs(tmp_path):
    with pytest.raises(UserError, match="holds no finished pairs: make them with `chiasm pairs`"):
        run("--pairs", tmp_path / "none", "--out", tmp_path)


def test_rows_of_ones_own_with_the_columns_of_trl_fall_back_to_dpo_or_are_refused(pairs, tmp_path):
    from chiasm.alignment.pairs import load_pairs

    own = Path(tmp_path) / "own"
    load_pairs(pairs).select(range(12)).select_columns(["images", "prompt", "chosen", "rejected"]).save_to_disk(own)
    with pytest.raises(UserError, match="no rejected_images"):
        run("--pairs", own, *FEW, "--out", tmp_path)
    assert run("--pairs", own, *FEW, "--method", "dpo", "--out", tmp_path).finished

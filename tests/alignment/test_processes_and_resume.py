"""Two processes train as one, a resumed run as one that was not interrupted, and a kill at any moment loses no checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from chiasm.alignment.checkpoints import is_complete, last_complete_checkpoint

from . import tuning
from .tuning import STEPS, history, make

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}


def near(found: list[dict], wanted: list[dict], tolerance: float = 1e-5) -> bool:
    return len(found) == len(wanted) and all(
        f == pytest.approx(w, abs=tolerance) for f, w in zip(found, wanted, strict=True)
    )


def test_two_processes_train_as_one(tmp_path, one_thread):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    done = subprocess.run(
        [*launch, tuning.__file__, str(tmp_path), "--batch", "2"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((tmp_path / "told.json").read_text())
    one = make(tmp_path / "one")
    one.train()
    assert told["processes"] == 2 and near(told["history"], history(one))
    cached = make(tmp_path / "two", reference_cache_dir=str(tmp_path / "one-cache"))
    for name, values in told["columns"].items():
        assert values == pytest.approx(list(cached.train_dataset[name]), abs=1e-5)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed with SIGKILL at its third step, with a checkpoint a step and two of them kept."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, tuning.__file__, str(folder), "--die-at", "3"],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == -9
    return folder


def resumed(folder, **options):
    made = make(folder, save_strategy="steps", save_steps=1, save_total_limit=2, dropout=0.1, **options)
    made.train(resume_from_checkpoint=True)
    return made


def test_a_killed_run_goes_on_as_if_nothing_had_happened(killed, tmp_path, one_thread):
    whole = make(tmp_path / "whole", dropout=0.1)
    whole.train()
    folder = shutil.copytree(killed, tmp_path / "copy")
    assert last_complete_checkpoint(folder).name == "checkpoint-3"
    found = resumed(folder)
    assert near(history(found), history(whole))
    weights = [dict(t.model.named_parameters()) for t in (found, whole)]
    assert all((weights[0][k] - weights[1][k]).abs().max() < 1e-6 for k in weights[0])


def test_a_checkpoint_that_was_being_written_is_passed_over(killed, tmp_path, one_thread):
    folder = shutil.copytree(killed, tmp_path / "copy")
    for left in ("trainer_state.json", "rng_state.pth", "optimizer.pt"):  # last first, as a kill leaves them
        (folder / "checkpoint-3" / left).unlink()
        assert last_complete_checkpoint(folder).name == "checkpoint-2"
    found = resumed(folder)
    whole = make(tmp_path / "whole", dropout=0.1)
    whole.train()
    assert found.state.global_step == STEPS and near(history(found), history(whole))


def test_what_counts_as_complete(killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "copy")
    assert is_complete(folder / "checkpoint-3") and not is_complete(folder / "checkpoint-3", processes=2)
    (folder / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3, "log_')
    assert not is_complete(folder / "checkpoint-3")
    assert last_complete_checkpoint(tmp_path / "nothing") is None


def test_with_no_checkpoint_training_begins_at_the_start(tmp_path):
    found = resumed(tmp_path)
    assert [h["step"] for h in history(found)] == [1, 2, 3, 4]

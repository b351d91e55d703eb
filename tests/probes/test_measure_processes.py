"""Several processes under `accelerate launch` give the result of one, from the beginning and from a checkpoint."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pandas as pd
import pytest
from chiasm.experiments.run import Run, list_runs
from chiasm.probes.measure import measure
from chiasm.probes.processes import from_main, gathered, is_main, n_processes
from chiasm.scenes.errors import UserError
from torchmetrics.utilities import dim_zero_mean

from . import measuring
from .measuring import BAD, SETUP, Contrast, N, Norms, Stream, tiny_vlm


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    """Starts this many processes as `accelerate launch` does: by torch.distributed.run, which it calls itself, except that
    on CPUs accelerate asks for MPI."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        "--master-port",
        str(port),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [*command, measuring.__file__, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


def test_two_processes_give_the_tables_of_one_fresh_and_resumed(tmp_path, one_thread):
    vlm = tiny_vlm()
    whole = measure(vlm, Stream(N, BAD), [Norms(), Contrast()], **SETUP)
    with pytest.raises(KeyboardInterrupt), Run.create("test", {}, tmp_path / "resumed") as begun:
        measure(vlm, Broken(N, BAD), [Norms(), Contrast()], run=begun, **SETUP)

    done = launch(2, "--fresh", str(tmp_path / "fresh"), "--resume", str(begun.path))
    assert done.returncode == 0, done.stderr[-2000:]

    assert "2 processes" in done.stdout
    for kind in ("fresh", "resumed"):
        (run,) = list_runs(tmp_path / kind)  # one folder: only the main process writes
        assert run.state == "complete" and run.manifest["n"] == N - len(BAD)
        read = {path.stem: pd.read_parquet(path) for path in (run.path / "tables").glob("*.parquet")}
        assert read["skipped"].to_dict("list") == whole.skipped.to_dict("list")
        for name, expected in whole.tables.items():
            exact = [column for column in expected if not pd.api.types.is_float_dtype(expected[column])]
            pd.testing.assert_frame_equal(read[name][exact], expected[exact], check_exact=True)  # counts
            pd.testing.assert_frame_equal(read[name], expected, rtol=1e-6, atol=1e-9)
        assert (read["norms"]["max"] == whole.tables["norms"]["max"]).all()


class Broken(Stream):
    def __iter__(self):
        for i, item in enumerate(super().__iter__()):
            if i == 14:
                raise KeyboardInterrupt
            yield item


def test_one_process_is_the_simple_case():
    assert (n_processes(), is_main(), gathered("x"), from_main("y")) == (1, True, ["x"], "y")


def test_a_state_that_processes_cannot_join_is_refused(monkeypatch):
    from chiasm.probes import state

    class Averaged(Norms):
        def attach(self, anatomy):
            super().attach(anatomy)
            self._reductions["total"] = dim_zero_mean

    probe = Averaged()
    probe.attach(tiny_vlm().anatomy)
    state.take_states([probe])
    monkeypatch.setattr(state, "n_processes", lambda: 2)
    with pytest.raises(UserError, match=r"state 'total' of probe 'norms'.*'sum'"):
        state.take_states([probe])

"""Interrupted measurements go on to identical tables: kill -9, any position, a full disk; and refuse what has changed."""

from __future__ import annotations

import errno
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
from chiasm.experiments.run import Run, list_runs, load_run
from chiasm.probes import checkpoint
from chiasm.probes.measure import measure
from chiasm.scenes.errors import UserError

from . import measuring
from .measuring import BAD, SETUP, Contrast, N, Norms, Stream, sample, tiny_vlm


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm()


@pytest.fixture(scope="module")
def whole(vlm):
    """The measurement without interruption."""
    return measure(vlm, Stream(N, BAD), [Norms(), Contrast()], **SETUP)


def identical(result, whole) -> bool:
    for name, table in whole.tables.items():
        pd.testing.assert_frame_equal(result.tables[name], table, check_exact=True)
    pd.testing.assert_frame_equal(result.skipped, whole.skipped)
    return result.n == whole.n == N - len(BAD)


class Interrupted(Stream):
    """Samples whose source breaks when a certain one is asked for."""

    def __init__(self, at: int):
        super().__init__(N, BAD)
        self.at = at

    def __iter__(self):
        for i, item in enumerate(super().__iter__()):
            if i == self.at:
                raise KeyboardInterrupt
            yield item


def interrupted_run(vlm, root, at: int) -> Path:
    """An incomplete run that stopped when sample `at` was asked for."""
    with pytest.raises(KeyboardInterrupt), Run.create("test", {}, root) as run:
        measure(vlm, Interrupted(at), [Norms(), Contrast()], run=run, **SETUP)
    return run.path


def go_on(vlm, path, samples=None, probes=None, **options):
    samples = Stream(N, BAD) if samples is None else samples
    return measure(vlm, samples, probes or [Norms(), Contrast()], run=load_run(path), **{**SETUP, **options})


def test_killed_at_a_random_place_it_resumes_to_identical_tables(vlm, whole, tmp_path):
    at = random.randrange(7, N)
    script = [sys.executable, measuring.__file__, "--fresh", str(tmp_path), "--die-at", str(at)]
    assert subprocess.run(script, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    (listed,) = list_runs(tmp_path)
    assert listed.state == "incomplete" and listed.path.name.endswith(".partial")
    done = at // 6 * 6  # a checkpoint every two batches of three
    assert listed.manifest["position"] == done, f"killed at {at}"
    read = []

    class Watch(Stream):
        def __iter__(self):
            for item in super().__iter__():
                read.append(item.id)
                yield item

    with load_run(listed.path).resume() as run:
        assert identical(measure(vlm, Watch(N, BAD), [Norms(), Contrast()], run=run, **SETUP), whole), f"killed at {at}"
    assert [run.path.name.endswith(".partial"), run.finished, run.manifest["n"]] == [False, True, N - len(BAD)]
    assert identical_tables_on_disk(run, whole)


def identical_tables_on_disk(run, whole) -> bool:
    for name, table in whole.tables.items():
        pd.testing.assert_frame_equal(run.read_table(name), table, check_exact=True)
    return list(run.read_table("skipped").id) == list(whole.skipped.id)


@pytest.mark.parametrize("at", [0, 3, 6, 8, 12, 29])
def test_interrupted_anywhere_it_resumes_to_identical_tables(vlm, whole, tmp_path, at):
    assert identical(go_on(vlm, interrupted_run(vlm, tmp_path, at)), whole)


def test_interrupted_twice(vlm, whole, tmp_path):
    path = interrupted_run(vlm, tmp_path, 8)
    with pytest.raises(KeyboardInterrupt):
        go_on(vlm, path, Interrupted(20))
    assert load_run(path).manifest["position"] == 18
    assert identical(go_on(vlm, path), whole)


def test_only_what_is_left_is_measured(vlm, tmp_path):
    path = interrupted_run(vlm, tmp_path, 20)
    rows = []
    hook = vlm.anatomy.vision_blocks[0].register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    go_on(vlm, path)
    assert sum(rows) == N - 18
    rows.clear()
    hook.remove()


def test_indexable_data_are_not_read_again_before_the_position(vlm, tmp_path):
    class Indexed(list):
        asked: ClassVar[list] = []

        def __getitem__(self, i):
            if isinstance(i, int):
                self.asked.append(i)
            return super().__getitem__(i)

    samples = Indexed(sample(i) for i in range(12))
    with pytest.raises(KeyboardInterrupt), Run.create("test", {}, tmp_path) as run:
        measure(vlm, samples, [Stopping(9)], run=run, batch_size=3, checkpoint_every=1)
    samples.asked.clear()
    resumed = measure(vlm, samples, [Stopping(99)], run=load_run(run.path), batch_size=3, checkpoint_every=1)
    assert set(samples.asked) - {0, 4, 8, 11} == {9, 10}  # the fingerprint looks at four items
    assert resumed.n == 12


class Stopping(Norms):
    """Raises when it has seen so many samples in this process."""

    def __init__(self, after: int):
        super().__init__()
        self._after = after

    def update(self, trace, inputs):
        self._after -= len(inputs)
        if self._after < 0:
            raise KeyboardInterrupt
        super().update(trace, inputs)


def test_a_finished_run_is_not_measured_again(vlm, whole, tmp_path):
    with Run.create("test", {}, tmp_path) as run:
        measure(vlm, Stream(N, BAD), [Norms(), Contrast()], run=run, **SETUP)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    rows = []
    hook = vlm.anatomy.blocks[0].register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    again = go_on(vlm, run.path)
    hook.remove()
    assert identical(again, whole) and again.seconds > 0
    assert rows == []
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_several_measurements_in_one_run(vlm, whole, tmp_path):
    with Run.create("test", {}, tmp_path) as run:
        measure(vlm, Stream(4), [Norms()], run=run, part="first")
        measure(vlm, Stream(N, BAD), [Norms(), Contrast()], run=run, part="second", **SETUP)
    assert {"first.norms", "second.norms", "second.contrast", "first.skipped"} <= set(run.tables())
    assert run.manifest["measured"]["first"]["n"] == 4 and run.manifest["measured"]["second"]["n"] == N - len(BAD)
    assert run.manifest["model"]["weights"] == vlm.fingerprint()
    assert len(run.manifest["measured"]["first"]["data"]["fingerprint"]) == 64
    with pytest.raises(UserError, match="has no measurement 'third'"):
        measure(vlm, Stream(4), [Norms()], run=load_run(run.path), part="third")


# -- what has changed --------------------------------------------------------------------------------------------------


class Scaled(Norms):
    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("batch_size (3, now 4)", {"batch_size": 4}),
        ("seed (0, now 1)", {"seed": 1}),
        ("limit (None, now 20)", {"limit": 20}),
        ("data (", {"samples": [sample(7), *Stream(N - 1)]}),
        ("set of probes (norms, contrast, now norms)", {"probes": [Norms()]}),
        ("probe 'norms' (Norms, now Scaled)", {"probes": [Scaled(), Contrast()]}),
    ],
)
def test_a_changed_setup_is_refused(vlm, tmp_path, named, change):
    path = interrupted_run(vlm, tmp_path, 8)
    with pytest.raises(UserError) as caught:
        go_on(vlm, path, **change)
    assert f"another {named}" in str(caught.value) and "\n" not in str(caught.value)
    assert go_on(vlm, path).n == N - len(BAD)  # and nothing was lost by asking


def test_changed_weights_are_refused(vlm, tmp_path):
    path = interrupted_run(vlm, tmp_path, 8)
    other = tiny_vlm()
    with torch.no_grad():
        other.anatomy.norm.weight[3] += 0.5
    with pytest.raises(UserError, match="another model"):
        go_on(other, path)


def test_a_changed_option_of_a_probe_is_refused(vlm, tmp_path):
    with pytest.raises(KeyboardInterrupt), Run.create("test", {}, tmp_path) as run:
        measure(vlm, Interrupted(8), [Scaled(1.0)], run=run, **SETUP)
    with pytest.raises(UserError, match=r"another option of probe 'norms' \(scale 1.0, now scale 2.0\)"):
        go_on(vlm, run.path, probes=[Scaled(2.0)])
    assert go_on(vlm, run.path, probes=[Scaled(1.0)]).n == N - len(BAD)


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_the_earlier_checkpoint_stays(vlm, whole, tmp_path, monkeypatch):
    written = []

    def write(path, content):
        if written:
            path.write_bytes_for_real(content[: len(content) // 2])  # as a disk that fills up in the middle
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return path.write_bytes_for_real(content)

    monkeypatch.setattr(Path, "write_bytes_for_real", Path.write_bytes, raising=False)
    run = Run.create("test", {}, tmp_path)
    monkeypatch.setattr(
        Path, "write_bytes", lambda p, c: write(p, c) if "states" in p.parts else p.write_bytes_for_real(c)
    )
    with pytest.raises(UserError) as caught:
        measure(vlm, Stream(N, BAD), [Norms(), Contrast()], run=run, **SETUP)
    monkeypatch.undo()
    assert "no space left" in str(caught.value) and "\n" not in str(caught.value)
    assert len(written) == 1
    assert [path.name for path in (run.path / "states").iterdir()] == ["measure.safetensors"]  # no half file is left
    assert checkpoint.read_checkpoint(run.path / "states" / "measure.safetensors").position == 6
    assert identical(go_on(vlm, run.path), whole)


def test_what_a_kill_leaves_of_a_file_being_written_does_no_harm(vlm, whole, tmp_path):
    path = interrupted_run(vlm, tmp_path, 8)
    (path / "states" / ".writing-99999-measure.safetensors").write_bytes(b"half a file")
    (path / "tables").mkdir()
    (path / "tables" / ".writing-99999-norms.parquet").write_bytes(b"half a file")
    assert identical(go_on(vlm, path), whole)
    assert set(load_run(path).tables()) == {"norms", "contrast", "skipped"}


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"not safetensors at all", None])
def test_a_damaged_checkpoint_is_one_line(vlm, tmp_path, content):
    path = interrupted_run(vlm, tmp_path, 8)
    file = path / "states" / "measure.safetensors"
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    with pytest.raises(UserError) as caught:
        go_on(vlm, path)
    assert "cannot be read" in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_of_another_version_is_one_line(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    path = interrupted_run(vlm, tmp_path, 8)
    monkeypatch.undo()
    with pytest.raises(UserError, match="another version"):
        go_on(vlm, path)

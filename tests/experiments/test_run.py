"""The run store: what is in a folder, that it is whole or not there, and what is said of folders that are not right."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from chiasm.experiments import run as store
from chiasm.experiments.run import PARTIAL, Run, list_runs, load_run
from chiasm.probes.files import write_whole
from chiasm.scenes.errors import UserError

TABLE = pd.DataFrame({"layer": [0, 1], "mean": [0.5, 0.25], "label": ["a", "ä"], "n": [3, 3]})


def edit(path: Path, **facts) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | facts))


def refusal(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_complete_run_holds_everything(tmp_path):
    run = Run.create("demo", {"limit": 3, "data": Path("photos"), "seed": 7}, tmp_path)
    assert run.path.parent == tmp_path / "demo" and run.path.name.endswith(PARTIAL)
    run.table("scores", TABLE)
    run.array("direction", torch.arange(6).reshape(2, 3).T)  # not contiguous
    run.array("pair", {"a": np.ones(2), "b": torch.zeros(1, dtype=torch.bfloat16)})
    picture, axes = plt.subplots()
    axes.plot([0, 1])
    run.figure("curve", picture, go.Figure(go.Scatter(y=[0, 1])))
    plt.close(picture)
    run.log("half way")
    run.note(n=3)
    path = run.finish()

    assert path == run.path and not path.name.endswith(PARTIAL) and path.is_dir()
    assert list((tmp_path / "demo").iterdir()) == [path]
    read = load_run(path)
    assert read.finished
    pd.testing.assert_frame_equal(read.read_table("scores"), TABLE)
    assert list(read.tables()) == ["scores"]
    assert torch.equal(read.read_array("direction")["direction"], torch.arange(6).reshape(2, 3).T)
    assert read.read_array("pair")["a"].dtype == torch.float64 and read.read_array("pair")["b"].dtype == torch.bfloat16
    assert (path / "figures" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    html = (path / "figures" / "curve.html").read_text()
    assert "https://cdn" not in html and (path / "figures" / "plotly.min.js").stat().st_size > 1e6
    assert "half way" in (path / "log.txt").read_text()
    facts = read.manifest
    assert facts["config"] == {"limit": 3, "data": "photos", "seed": 7} and facts["seed"] == 7
    assert facts["format"] == store.FORMAT and facts["state"] == "complete" and facts["n"] == 3
    assert {"python", "torch", "transformers", "chiasm"} <= set(facts["versions"])
    assert facts["peak_memory_mb"]["process"] > 10 and facts["wall_seconds"] > 0
    assert facts["started"] <= facts["finished"] and facts["command"]


def test_runs_of_the_same_second_do_not_meet(tmp_path):
    paths = {Run.create("demo", {}, tmp_path).path for _ in range(20)}
    assert len(paths) == 20 and all(path.is_dir() for path in paths)


def test_an_error_leaves_the_run_incomplete_and_says_why(tmp_path):
    with pytest.raises(ZeroDivisionError), Run.create("demo", {}, tmp_path) as run:
        run.table("scores", TABLE)
        1 / 0  # noqa: B018
    (listed,) = list_runs(tmp_path)
    assert (listed.state, listed.path) == ("incomplete", run.path)
    assert "ZeroDivisionError" in listed.detail
    resumed = load_run(run.path).resume()
    assert resumed.manifest["resumed"] == 1 and resumed.manifest["error"] is None
    assert list(resumed.tables()) == ["scores"]


def test_time_spent_adds_up_over_interruptions(tmp_path):
    run = Run.create("demo", {}, tmp_path)
    edit(run.path, wall_seconds=100.0, peak_memory_mb={"process": 1e6})
    resumed = load_run(run.path).resume()
    resumed.finish()
    assert 100 < resumed.manifest["wall_seconds"] < 160
    assert resumed.manifest["peak_memory_mb"]["process"] == 1e6


def test_a_complete_run_is_not_changed_any_more(tmp_path):
    run = Run.create("demo", {}, tmp_path)
    run.finish()
    for change in (lambda: run.table("x", TABLE), lambda: run.log("x"), lambda: run.note(n=1), run.resume):
        assert "complete" in refusal(change)
    assert run.finish() == run.path


def test_the_partial_suffix_may_be_left_out(tmp_path):
    run = Run.create("demo", {}, tmp_path)
    assert load_run(run.path.with_name(run.path.name.removesuffix(PARTIAL))).path == run.path


# -- folders that are not right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "age"), [(0, "an older"), (2, "a newer")])
def test_a_run_of_another_version(tmp_path, version, age):
    run = Run.create("demo", {}, tmp_path)
    run.finish()
    edit(run.path, format=version)
    message = refusal(load_run, run.path)
    assert f"format {version}, of {age} version" in message and "measure again" in message
    assert [(r.state, r.experiment) for r in list_runs(tmp_path)] == [("other version", "demo")]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\0", b'{"experiment": "demo"}', b"\0" * 400])
def test_a_damaged_manifest_is_listed_and_never_a_crash(tmp_path, content):
    good = Run.create("demo", {}, tmp_path)
    good.finish()
    bad = Run.create("demo", {}, tmp_path)
    bad.finish()
    (bad.path / "manifest.json").write_bytes(content)
    assert "is damaged" in refusal(load_run, bad.path)
    assert {r.path: r.state for r in list_runs(tmp_path)} == {good.path: "complete", bad.path: "broken"}


def test_a_run_killed_before_its_manifest_is_listed(tmp_path):
    (tmp_path / "demo" / f"20260101-000000-abcdef{PARTIAL}").mkdir(parents=True)
    (tmp_path / "demo" / "notes").mkdir()
    (tmp_path / "a file").write_text("x")
    assert [(r.path.name, r.state) for r in list_runs(tmp_path)] == [(f"20260101-000000-abcdef{PARTIAL}", "broken")]


def test_no_run_at_all(tmp_path):
    assert list_runs(tmp_path / "none") == []
    assert "not a run folder" in refusal(load_run, tmp_path / "none")
    assert "not a run folder" in refusal(load_run, tmp_path)


def test_a_table_that_is_missing_or_damaged(tmp_path):
    run = Run.create("demo", {}, tmp_path)
    run.table("scores", TABLE)
    assert "'other'" in refusal(run.read_table, "other") and "scores" in refusal(run.read_table, "other")
    (run.path / "tables" / "scores.parquet").write_bytes(b"PAR1 not really")
    assert "cannot be read" in refusal(run.read_table, "scores")
    assert "none" in refusal(run.read_array, "x")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x\n"])
def test_names_that_are_no_file_names(tmp_path, name):
    assert "cannot be a file name" in refusal(lambda: Run.create(name, {}, tmp_path))
    run = Run.create("demo", {}, tmp_path)
    assert "cannot be a file name" in refusal(lambda: run.table(name, TABLE))


def test_a_root_that_cannot_hold_runs(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "--out" in refusal(Run.create, "demo", {}, tmp_path / "file")


# -- files are whole or not there --------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    write_whole(path, b"old")

    def full(_path, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "no space left" in refusal(write_whole, path, b"new")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        write_whole(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = store.write_whole.__globals__["os"].fsync, store.write_whole.__globals__["os"].replace
    monkeypatch.setattr("os.fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr("os.replace", lambda a, b: (events.append("replace"), replace(a, b)))
    write_whole(tmp_path / "x", b"content")
    assert events == ["fsync", "replace", "fsync"]  # the last one is of the folder


@pytest.mark.parametrize("full", ["table", "array", "figure", "log", "note"])
def test_a_full_disk_is_one_line_for_every_kind_of_file(tmp_path, monkeypatch, full):
    run = Run.create("demo", {}, tmp_path)
    run.log("before")
    kept = (run.path / "manifest.json").read_bytes()
    picture, _ = plt.subplots()

    def fails(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    reads = Path.open
    monkeypatch.setattr("os.fsync", fails)
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", *a, **k: (reads if "r" in mode else fails)(path, mode, *a, **k)
    )
    calls = {
        "table": lambda: run.table("t", TABLE),
        "array": lambda: run.array("a", torch.ones(1)),
        "figure": lambda: run.figure("f", picture),
        "log": lambda: run.log("x"),
        "note": lambda: run.note(n=1),
    }
    assert "no space left on the disk" in refusal(calls[full])
    monkeypatch.undo()
    plt.close(picture)
    assert (run.path / "manifest.json").read_bytes() == kept
    assert sorted(p.name for p in run.path.rglob("*") if p.is_file()) == ["log.txt", "manifest.json"]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "is_main", lambda: False)
    with Run.create("demo", {}, tmp_path) as run:
        run.log("x")
        run.table("t", TABLE)
        run.note(n=1)
    assert list(tmp_path.iterdir()) == []

"""The benchmark compares like with like, counts exactly, and says plainly whether a bar is met."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from chiasm.experiments import bench
from chiasm.experiments.timing import Ratio, Rounds, allocation_peak, interleave
from chiasm.scenes.errors import UserError
from rich.console import Console

from ..probes.measuring import Contrast, Norms, sample, tiny_vlm


def test_ratio_is_the_median_with_the_middle_half():
    assert Ratio.of([1.0, 2.0, 3.0, 4.0, 100.0]) == Ratio(3.0, 2.0, 4.0)
    assert Ratio.of([2.5]) == Ratio(2.5, 2.5, 2.5)


def test_ratios_are_paired_within_rounds():
    # the second round was slow for everybody: unpaired medians would give 3, each pair says 2
    rounds = Rounds({"plain": [1.0, 10.0, 1.0], "traced": [2.0, 20.0, 2.0]})
    assert rounds.ratio("traced", "plain") == Ratio(2.0, 2.0, 2.0)
    assert rounds.milliseconds("traced") == 2000


def test_rounds_are_interleaved_and_warm_ones_do_not_count():
    called = []
    steps = {name: lambda name=name: called.append(name) for name in "abc"}
    found = interleave(steps, 20, warm=2)
    rounds = [called[i : i + 3] for i in range(0, len(called), 3)]
    assert len(rounds) == 22 and all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 2  # the order changes
    assert all(len(seconds) == 20 for seconds in found.seconds.values())


def test_allocation_peak_counts_bytes_exactly():
    def step():
        big = torch.empty(1_000_000, dtype=torch.float32)
        del big
        return torch.empty(500_000, dtype=torch.float32), torch.empty(250_000, dtype=torch.float32)

    assert allocation_peak(step) == pytest.approx(4_000_000, abs=4096)


def test_a_new_process_does_not_inherit_its_parents_peak():
    big = torch.ones(100_000_000)  # 400 MB resident here, while the other process is started
    code = "from chiasm.experiments.machine import peak_memory_mb; print(peak_memory_mb()['process'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200 < big.nbytes / 2**20


@pytest.fixture(scope="module")
def small():
    vlm = bench.small_llava(picture=56)
    return vlm, bench.random_inputs(vlm, 30, picture=56)


def test_the_model_is_the_size_it_says():
    vlm = bench.small_llava()
    assert vlm.n_parameters == pytest.approx(10e6, rel=0.05)
    inputs = bench.random_inputs(vlm, 260)
    assert inputs.tensors["input_ids"].shape == (1, 260)
    assert int(inputs.spans.mask("image").sum()) == 256


@pytest.mark.parametrize("make", [bench.nnsight_step, bench.transformer_lens_step])
def test_other_tools_read_the_same_residuals(small, make):
    found = make(*small)()
    assert len(found) == 6 + 8


def test_reading_something_else_is_noticed(small):
    vlm, inputs = small
    found = [
        value + 1 for value in vlm.trace(inputs, ["vision.blocks.*.resid_post", "blocks.*.resid_post"]).tensors.values()
    ]
    with pytest.raises(UserError, match="other values"):
        bench.check_reads(found, vlm, inputs)


def test_measure_is_compared_with_the_passes_it_makes(monkeypatch):
    monkeypatch.setattr(bench, "open_vlm", lambda *_, **__: tiny_vlm())
    monkeypatch.setattr("chiasm.scenes.benchmarks.scene_samples", lambda n, split: [sample(i) for i in range(n)])
    monkeypatch.setattr(bench, "probes", lambda: [Norms(), Contrast()])  # the second one reads the text alone too
    rows = list(bench.measure_rows(bench.QUICK))
    assert [row.bar for row in rows] == [1.35, None]
    assert "with the pictures and without" in rows[0].against and "with the pictures only" in rows[1].against
    monkeypatch.setattr(bench, "probes", lambda: [Norms()])
    (row,) = bench.measure_rows(bench.QUICK)
    assert "one pass" in row.against and row.ratio.median > 0


def test_a_row_is_met_at_its_bar_and_not_above():
    rows = [bench.Row("a", "b", Ratio.of([value]), bar=1.05) for value in (1.05, 1.06)]
    assert [row.met for row in rows] == [True, False]
    assert bench.Row("a", "b", Ratio.of([2.0])).met is None
    console = Console(file=io.StringIO(), width=170)
    console.print(bench.table([*rows, bench.Row("c", "d", None, "nnsight is not installed")], bench.FULL))
    shown = console.file.getvalue()
    assert "NOT MET" in shown and "≤ 1.05" in shown and "not run" in shown

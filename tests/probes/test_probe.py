"""The base of probes; both probes on a real (tiny, random) model, over processes, with a resume, through `measure`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from chiasm.probes.attention_shift import AttentionShift
from chiasm.probes.implicit_alignment import ImplicitAlignment
from chiasm.probes.measure import measure
from chiasm.probes.probe import Probe
from chiasm.probes.state import restore_states, take_states
from chiasm.scenes.sample import Sample

from . import measuring
from .fakes import anatomy, one

HERE = Path(__file__).parent


class Tokens(Probe):
    """Counts tokens; remembers lengths."""

    name = "tokens"
    sites = ("embed",)

    def attach(self, anatomy):
        self.add_sum("total", 1, dtype=torch.long)
        self.add_sum("square", 1)
        self.add_state("lengths", [], dist_reduce_fx="cat")

    def update(self, trace, inputs):
        n = inputs.spans.real.sum(1)
        self.total += n.sum()
        self.square += n.double().square().sum()
        self.lengths.append(n)

    def compute(self):
        lengths = torch.cat(list(self.lengths)) if isinstance(self.lengths, list) else self.lengths
        return pd.DataFrame({"total": self.total.tolist(), "square": self.square.tolist(), "n": len(lengths)})


def framed(i: int) -> Sample:
    """A sample with words before and after its picture, and an answer."""
    plain = measuring.sample(i)
    before, after = (" ".join(measuring.WORDS[(i * m + k) % 90] for k in range(6 + i % d)) for m, d in ((7, 3), (5, 4)))
    return Sample(plain.id, f"{before} <image> {after}", plain.images, measuring.WORDS[i % 90])


SAMPLES = [framed(i) for i in range(14)]


def test_accumulates_in_fp64_and_long_and_resets():
    made = Tokens()
    made.attach(anatomy())
    assert made.square.dtype == torch.float64 and made.total.dtype == torch.long
    result = measure(measuring.tiny_vlm(), SAMPLES[:5], made, progress=False)
    assert result.tables["tokens"]["n"].item() == 5
    again = measure(measuring.tiny_vlm(), SAMPLES[:5], made, progress=False)  # measure starts from nothing
    pd.testing.assert_frame_equal(result.tables["tokens"], again.tables["tokens"])


def test_states_round_trip_and_are_copies():
    made, other = Tokens(), Tokens()
    made.attach(anatomy())
    other.attach(anatomy())
    measure(measuring.tiny_vlm(), SAMPLES[:3], made, progress=False)
    states, updates = take_states([made])
    assert set(states["tokens"]) == {"total", "square", "lengths"}
    restore_states([other], states, updates)
    pd.testing.assert_frame_equal(other.compute(), made.compute())
    states["tokens"]["total"] += 1
    assert made.total != states["tokens"]["total"]


def test_what_a_subclass_must_define_is_named():
    class Half(Probe):
        name = "half"

    for call in (lambda p: p.attach(None), lambda p: p.update(None, None), lambda p: p.compute()):
        with pytest.raises(NotImplementedError, match="Half must define"):
            call(Half())


@pytest.fixture(scope="module")
def vlm():
    return measuring.tiny_vlm()


@pytest.fixture(scope="module")
def tables(vlm, one_thread):
    return measure(vlm, SAMPLES, both(), batch_size=4, progress=False).tables


def both():
    return [ImplicitAlignment(permutations=100), AttentionShift(text_only=True)]


def close(a: pd.DataFrame, b: pd.DataFrame, tolerance: float) -> None:
    numbers = ["mean", "low", "high", "sd"]
    pd.testing.assert_frame_equal(a.drop(columns=numbers), b.drop(columns=numbers), atol=tolerance, rtol=0)
    bounded = ~a.quantity.isin(
        ["shift", "null_circular", "difference", "distance"]
    )  # correlations of nearly flat curves
    pd.testing.assert_frame_equal(a.loc[bounded, ["mean"]], b.loc[bounded, ["mean"]], atol=tolerance, rtol=0)


def test_both_probes_measure_a_model(tables, vlm):
    alignment, shift = tables["implicit_alignment"], tables["attention_shift"]
    layers = vlm.anatomy.n_layers
    assert set(alignment[alignment.quantity == "similarity"].layer) == set(range(layers + 2))
    assert one(alignment, quantity="ima_same_layer", pooling="avg", variant="raw")["n"] == 14
    assert set(shift[shift.quantity == "mass"].layer) == set(range(layers))
    mass = shift[(shift.quantity == "mass") & (shift.version == "raw") & (shift.segment != "answer")]
    total = mass.groupby(["run", "queries", "layer"])["mean"].sum()
    assert len(total) == 2 * 4 * layers and (total - 1).abs().max() < 1e-5


def test_batch_size_and_order_do_not_change_the_tables(tables, vlm):
    found = measure(vlm, SAMPLES[::-1], both(), batch_size=3, progress=False).tables
    close(tables["implicit_alignment"], found["implicit_alignment"], 2e-5)  # the forward pass itself is not bit-equal
    close(tables["attention_shift"], found["attention_shift"], 1e-5)


def test_logits_are_the_same_with_measurement_on_and_off(vlm):
    inputs = vlm.prepare_samples(SAMPLES[:4])
    with torch.no_grad():
        plain = vlm.model(**inputs.tensors, use_cache=False).logits
        sites = [site for probe in both() for site in probe.sites]
        trace = vlm.trace(inputs, [*sites, "logits"])
        after = vlm.model(**inputs.tensors, use_cache=False).logits
    assert torch.equal(trace["logits"], plain) and torch.equal(after, plain)


_WORKER = """
import sys
from chiasm.probes.measure import measure
from chiasm.probes.processes import is_main
sys.path.insert(0, sys.argv[1])
from tests.probes import measuring
from tests.probes.test_probe import SAMPLES, both
tables = measure(measuring.tiny_vlm(), SAMPLES, both(), batch_size=4, progress=False).tables
if is_main():
    for name, table in tables.items():
        table.to_parquet(f"{sys.argv[2]}/{name}.parquet")
"""


def test_two_processes_give_the_tables_of_one(tables, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(_WORKER)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(worker), str(HERE.parent.parent), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, table in tables.items():
        found = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert found["n"].tolist() == table["n"].tolist()  # exactly
        for column in ("mean", "low", "high", "sd"):
            a, b = (x[column].to_numpy(float, na_value=float("nan")) for x in (found, table))
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), atol=1e-6, rtol=1e-6, equal_nan=True)

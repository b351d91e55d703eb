"""Peak memory of `measure` in a process of its own: python -m chiasm.experiments.bench_memory N prints bytes."""

from __future__ import annotations

import subprocess
import sys

import torch

from .machine import peak_memory_mb

WARM = 64


def probes() -> list:
    from ..probes.attention_shift import AttentionShift
    from ..probes.implicit_alignment import ImplicitAlignment

    return [ImplicitAlignment(), AttentionShift()]


def measured_peak(n: int) -> int:
    """The most bytes resident in this process after `measure` on `n` scenes, the organism and both probes loaded.

    A first measurement of a few scenes comes before it in every case, so that what is made once (kernels, caches,
    libraries) is in both sides of a comparison. The scenes are made as they are read.
    """
    from ..models import open_vlm
    from ..probes.measure import measure
    from ..scenes.benchmarks import scene_samples

    torch.set_num_threads(2)
    vlm = open_vlm("organism", device="cpu")
    measure(vlm, scene_samples(WARM, "test"), probes(), progress=False)
    measure(vlm, scene_samples(n, "test"), probes(), progress=False)
    return round(peak_memory_mb()["process"] * 2**20)


def peak_in_new_process(n: int) -> int:
    """`measured_peak` in a fresh interpreter, where nothing else has set the mark."""
    command = [sys.executable, "-m", "chiasm.experiments.bench_memory", str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring {n} samples in a process of its own failed: {done.stderr.strip()[-500:]}")
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    print(measured_peak(int(sys.argv[1])))

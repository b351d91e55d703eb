"""What all lenses in one pass cost: against a plain forward, and against one pass for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from ..models import open_vlm
from ..models.trace import expand_sites
from ..probes.measure import measure
from .bench import Row, Size, forward
from .lenses import LENSES
from .study import framed_scenes
from .timing import interleave

WIDTH = 8
"""Samples in a batch."""


def rows(size: Size) -> Iterator[Row]:
    """`measure` with every built-in probe on the organism, in one pass and in one each, and plain forwards of the same batches.
    Probe by probe: what its update takes, and what its last table takes, in milliseconds a batch."""
    vlm = open_vlm("organism", device="cpu")
    samples = list(framed_scenes(size.scenes))
    batches = [samples[i : i + WIDTH] for i in range(0, len(samples), WIDTH)]

    def made(*names: str) -> list:
        found = [LENSES[name].make(vlm, samples[0]) for name in names or LENSES]
        return [probe for probe in found if not isinstance(probe, str)]

    def plain() -> None:
        for batch in batches:
            inputs = vlm.prepare_samples(batch)
            forward(vlm.model, inputs)
            if any(probe.text_only for probe in made()):
                forward(vlm.model, inputs.without_images())

    def once() -> None:
        measure(vlm, samples, made(), batch_size=WIDTH, progress=False)

    def each() -> None:
        for probe in made():
            measure(vlm, samples, [probe], batch_size=WIDTH, progress=False)

    steps: dict[str, Callable[[], object]] = {"all": once, "plain": plain, "each": each}
    found = interleave(steps, size.scene_rounds, warm=1)
    what = f"measure, all {len(made())} probes, {len(samples)} scenes"
    passes = "with the pictures and without" if any(probe.text_only for probe in made()) else "one pass"
    per_batch = found.milliseconds("plain") / len(batches)
    yield Row(
        what,
        f"plain forwards of the same batches ({passes})",
        found.ratio("all", "plain"),
        f"{found.milliseconds('all'):.0f} ms",
        1.8,
    )
    yield Row(
        what, "the sum of one pass per probe", found.ratio("all", "each"), f"{found.milliseconds('each'):.0f} ms", 0.5
    )
    for probe in made():
        yield _own(vlm, probe, batches, size, per_batch)


def _own(vlm, probe, batches, size: Size, per_batch: float) -> Row:
    """A probe's own share: its updates, and its table once, beside a plain forward of a batch. What reading its sites costs
    is in the rows of all probes, as sites are read once for all that want them."""
    probe.attach(vlm.anatomy)
    probe.reset()
    spent = []
    for batch in batches[: max(2, size.scene_rounds * 2)]:
        inputs = vlm.prepare_samples(batch)
        trace = vlm.trace(inputs, expand_sites(vlm.anatomy, probe.sites))
        if probe.text_only:
            alone = inputs.without_images()
            trace.text_only = vlm.trace(alone, expand_sites(vlm.anatomy, probe.sites))
        began = time.perf_counter()
        with torch.no_grad():
            probe.update(trace, inputs)
        spent.append(1000 * (time.perf_counter() - began))
    began = time.perf_counter()
    probe.compute()
    last = 1000 * (time.perf_counter() - began)
    middle = sorted(spent)[len(spent) // 2]
    detail = f"update {middle:.1f} ms a batch of {WIDTH} (plain {per_batch:.0f} ms), table {last:.0f} ms once"
    return Row(f"  {probe.name}", "", None, detail)

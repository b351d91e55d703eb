"""One pass of one data set through one model, with any number of probes attached."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch

from ..scenes.errors import UserError
from ..scenes.sample import BadSample, Sample
from .checkpoint import Checkpoint, check_setup, read_checkpoint, write_checkpoint
from .finite import check_finite
from .loader import Batch, Data, Loader, Skipped
from .processes import from_main, gathered, is_main, join_processes, n_processes, process_index
from .progress import Meter
from .state import check_probes, probes_setup, restore_states, take_states
from .subject import data_facts, model_facts


class RunFolder(Protocol):
    """What `measure` needs of a run (see `chiasm.experiments.run.Run`)."""

    path: Path
    manifest: dict[str, Any]
    finished: bool

    def table(self, name: str, table: pd.DataFrame) -> Path: ...
    def log(self, line: str) -> None: ...
    def note(self, **facts: Any) -> None: ...


@dataclass(frozen=True)
class Measurement:
    """tables: each probe's table by its name; n: samples measured; skipped: one row (id, reason) for each that was not;
    seconds: time spent, that of an interrupted run's earlier parts included."""

    tables: dict[str, pd.DataFrame]
    n: int
    skipped: pd.DataFrame
    seconds: float


def measure(
    vlm,
    samples: Iterable[Sample | BadSample],
    probes: Sequence,
    *,
    run: RunFolder | None = None,
    part: str = "measure",
    batch_size: int = 8,
    limit: int | None = None,
    checkpoint_every: int = 20,
    strict: bool = False,
    progress: bool = True,
    seed: int = 0,
) -> Measurement:
    """Runs `samples` once through `vlm` and lets every probe read the sites it wants from the same forward pass.

    Probes that set `text_only` also get the same texts without pictures, from a second pass, as `trace.text_only`.
    Memory does not grow with the number of samples.

    run: where the probes' states, the tables and the list of skipped samples are kept. Calling again with a run that was
    interrupted, even by kill -9, goes on from its last checkpoint to the same tables; with one that is finished, the
    tables are computed from what is stored and nothing is measured. part: a name for this measurement within the run,
    when there are several; other than the default it goes in front of the tables' names.
    limit: read at most so many items of the data. checkpoint_every: batches (of each process) between two checkpoints.
    strict: raise at the first sample that cannot be measured, instead of skipping and listing it. seed: of everything
    random in the probes, drawn anew from it for every batch.

    Under `accelerate launch` the batches are shared among the processes, the states are reduced, every process returns
    the whole result and the main one writes: the result of one process, counts exactly, means up to rounding.

    Raises UserError, one line, for an empty data set or one of which nothing can be measured, for values that are not
    finite (naming the first site), a full disk, a full device, and a run that was begun with another model, data or setup.
    """
    join_processes()
    probes = check_probes(probes)
    for name, value in (("batch_size", batch_size), ("checkpoint_every", checkpoint_every)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} {value!r} must be a whole number from 1 up")
    for probe in probes:
        probe.attach(vlm.anatomy)
        probe.reset()
        probe.to(vlm.device)
    data = Data(samples, limit)
    store = _Store(run if is_main() else None, part)
    setup = {}
    if store.run is not None:
        store.facts = {"model": model_facts(vlm), "data": data_facts(data)}
        setup = {"model": store.facts["model"]["weights"], "data": store.facts["data"]["fingerprint"]}
        setup |= {"limit": limit, "batch_size": batch_size, "seed": seed, **probes_setup(probes)}
    state = store.begin(setup, probes)
    if not state.done:
        _read_all(vlm, data, probes, state, store, batch_size, checkpoint_every, strict, progress, seed)
    return store.end(state, probes)


def _read_all(vlm, data, probes, state, store, batch_size, checkpoint_every, strict, progress, seed) -> None:
    """Measures from the state's position to the end of the data; the state is that of all processes together."""
    processes, index = n_processes(), process_index()
    ahead = 0 if torch.device(vlm.device).type == "cpu" else 2
    loader = Loader(
        vlm, data, batch_size, start=state.position, index=index, processes=processes, strict=strict, ahead=ahead
    )
    forward = _Forward(vlm, probes, batch_size)
    total = data.total
    meter = Meter(total, done=state.position, show=progress and is_main(), log=store.log)
    batches = iter(loader)
    with meter:
        while not state.done:
            began, items, n, skipped, ended = time.monotonic(), 0, 0, [], False
            for turn in range(checkpoint_every):
                batch = next(batches, None)
                if batch is None:
                    ended = True
                    break
                block = state.position // batch_size + turn * processes + index
                with _seeded(seed + block, vlm.device):
                    forward(batch)
                items, n, skipped = items + batch.items, n + batch.n, skipped + batch.skipped
                # The other processes are as far as this one, within a batch.
                meter.advance(batch.items * processes, len(batch.skipped) * processes)
            everyone = gathered((items, n, skipped, ended))
            state.position += sum(part[0] for part in everyone)
            state.n += sum(part[1] for part in everyone)
            state.skipped = sorted(state.skipped + [Skipped(*entry) for part in everyone for entry in part[2]])
            state.done = all(part[3] for part in everyone)
            state.seconds += time.monotonic() - began
            _check_something(state)
            store.save(state, probes)
        meter.tell(meter.line())


class _Forward:
    """One batch through the model and into the probes."""

    def __init__(self, vlm, probes: Sequence, batch_size: int):
        self.vlm, self.probes, self.batch_size = vlm, probes, batch_size
        self.sites = _union(probes)
        self.text_sites = _union([probe for probe in probes if probe.text_only])
        self.first = True

    def __call__(self, batch: Batch) -> None:
        for inputs in batch.inputs:
            with memory_is_told(self.batch_size), torch.no_grad():
                trace = self._trace(inputs, self.sites)
                if self.text_sites:
                    trace.text_only = self._trace(inputs.without_images(), self.text_sites)
                self.first = False
                for probe in self.probes:
                    probe.update(trace, inputs)
                del trace  # or it would stay until the next batch's tensors are there too

    def _trace(self, inputs, sites: list[str]):
        # What is not finite anywhere before the last norm is not finite after it; the unembedding is looked at once.
        wanted = [*sites, "final", *(["logits"] if self.first else [])]
        trace = self.vlm.trace(inputs, sites=wanted)
        check_finite(self.vlm, trace, inputs)
        return trace


class _Store:
    """The run's side of a measurement; does nothing without a run and on processes other than the main one."""

    def __init__(self, run: RunFolder | None, part: str):
        self.run, self.part, self.facts = run, part, {}
        self.path = None if run is None else Path(run.path) / "states" / f"{part}.safetensors"

    def log(self, line: str) -> None:
        if self.run is not None and not self.run.finished:
            self.run.log(line)

    def begin(self, setup: dict[str, Any], probes: Sequence) -> Checkpoint:
        """The state to go on from, with the probes restored to it on the main process."""
        state, problem = Checkpoint(setup), None
        try:
            state = self._stored(state, probes)
        except UserError as error:
            problem = str(error)
        if problem := from_main(problem):  # or the other processes would wait for ever
            raise UserError(problem)
        facts = from_main((state.position, state.n, state.done, state.seconds, state.skipped))
        if not is_main():
            state.position, state.n, state.done, state.seconds, skipped = facts
            state.skipped = [Skipped(*entry) for entry in skipped]
        # What was stored is on the main process alone; the others start from nothing, and the sum is right.
        return state

    def _stored(self, fresh: Checkpoint, probes: Sequence) -> Checkpoint:
        if self.path is None:
            return fresh
        if not self.path.exists():
            if self.run.finished:
                raise UserError(
                    f"run {str(self.run.path)!r} is finished and has no measurement {self.part!r}: start a new run"
                )
            return fresh
        state = read_checkpoint(self.path)
        check_setup(state, fresh.setup, self.run.path)
        restore_states(probes, state.states, state.updates)
        self.log(f"{self.part}: {'is finished' if state.done else 'resumed'} at item {state.position}")
        return state

    def save(self, state: Checkpoint, probes: Sequence) -> None:
        kept = from_main(self.path is not None)
        if not kept:
            return
        state.states, state.updates = take_states(probes)  # all processes: this is where the states meet
        if self.path is not None:
            write_checkpoint(self.path, state)
            self._note(state)
        state.states = {}

    def end(self, state: Checkpoint, probes: Sequence) -> Measurement:
        tables = {probe.name: probe.compute() for probe in probes}
        skipped = pd.DataFrame([(s.id, s.reason) for s in state.skipped], columns=["id", "reason"], dtype="str")
        if self.run is not None and not self.run.finished:
            before = "" if self.part == "measure" else f"{self.part}."
            for name, table in {**tables, "skipped": skipped}.items():
                self.run.table(before + name, table)
            self._note(state)
            self.log(f"{self.part}: {state.n} samples in {state.seconds:.1f} s, {len(skipped)} skipped")
        return Measurement(tables, state.n, skipped, state.seconds)

    def _note(self, state: Checkpoint) -> None:
        """In the manifest: the facts of every part under "measured", those of the latest one at the top as well."""
        counts = {"n": state.n, "skipped": len(state.skipped), "position": state.position}
        part = self.facts | counts | {"seconds": round(state.seconds, 3), "done": state.done}
        measured = {**self.run.manifest.get("measured", {}), self.part: part}
        self.run.note(measured=measured, **self.facts, **counts)


def _check_something(state: Checkpoint) -> None:
    if state.done and state.position == 0:
        raise UserError("the data set is empty: give at least one sample")
    if state.done and state.n == 0:
        first = state.skipped[0]
        raise UserError(
            f"none of the {state.position} samples could be measured; the first, {first.id!r}: {first.reason}"
        )


def _union(probes: Sequence) -> list[str]:
    return list(dict.fromkeys(site for probe in probes for site in probe.sites))


@contextmanager
def _seeded(seed: int, device):
    """Random numbers that depend on the batch alone, not on what was drawn before; the caller's generator is restored."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.random.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


@contextmanager
def memory_is_told(batch_size: int):
    """Turns the error of a device without memory left into one line. Others pass."""
    try:
        yield
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        smaller = f"batch_size={batch_size // 2}" if batch_size > 1 else "smaller pictures, or dtype bf16"
        raise UserError(
            f"the device has no memory left for a batch of {batch_size}: use {smaller} (a run goes on from its checkpoint "
            "only with the batch size it began with)"
        ) from error

"""Fair comparisons on a busy machine: interleaved rounds, paired ratios, and peaks counted by the allocator."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """A ratio with the middle half of its rounds (25th and 75th percentile); one number has no spread."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Ratio:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)


@dataclass(frozen=True)
class Rounds:
    """Seconds of each step in each round, in the same order for all steps."""

    seconds: Mapping[str, list[float]]

    def ratio(self, step: str, against: str) -> Ratio:
        """Step over baseline, paired within rounds: what slows a whole round down cancels."""
        pairs = zip(self.seconds[step], self.seconds[against], strict=True)
        return Ratio.of([a / b for a, b in pairs])

    def milliseconds(self, step: str) -> float:
        return 1000 * statistics.median(self.seconds[step])


def interleave(steps: Mapping[str, Callable[[], object]], rounds: int, *, warm: int = 2, seed: int = 0) -> Rounds:
    """Runs every step once a round, in a new random order each round, after `warm` rounds that do not count.

    Benchmarks that run one step many times and then the next compare two moments of a shared machine; rounds compare
    steps a moment apart.
    """
    order, names = random.Random(seed), list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm + rounds):
        order.shuffle(names)
        for name in names:
            began = time.perf_counter()
            steps[name]()
            spent = time.perf_counter() - began
            if number >= warm:
                seconds[name].append(spent)
    return Rounds(seconds)


def allocation_peak(step: Callable[[], object]) -> int:
    """The most bytes of tensors alive at once during `step` and in what it returns, above those there before (CPU).

    Counted from every allocation and release that torch's allocator reports, so it is exact and repeatable, where a
    process's resident size depends on what the allocator had kept from before. Buffers inside oneDNN or MKL that do not
    go through the allocator are not seen.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = step()
    level = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    del kept
    return peak

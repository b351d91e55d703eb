"""Small measurements and evaluations of the organism, and answers written by hand."""

from __future__ import annotations

import json
from pathlib import Path

from chiasm.experiments.benchmarks import open_benchmark
from chiasm.experiments.evaluation import evaluate
from chiasm.experiments.lenses import built_in
from chiasm.experiments.methods import Greedy, Sampling
from chiasm.experiments.run import Run
from chiasm.experiments.study import framed_scenes
from chiasm.models import open_vlm
from chiasm.probes import measure


def make_measurements(root: Path, limit: int = 8) -> None:
    """A run of every lens on each of two organisms."""
    for member in ("tuned", "aligned"):
        vlm = open_vlm(f"organism/{member}", device="cpu")
        samples = framed_scenes(limit)
        config = {"model": f"organism/{member}", "data": "scenes", "limit": limit, "seed": 0}
        with Run.create("measure", config, root) as run:
            measure(vlm, samples, built_in(vlm, next(iter(samples)))[0], run=run, progress=False)


def make_evaluations(root: Path, limits: tuple[int, int] = (6, 4)) -> dict[str, Path]:
    """A run of `pope-scenes` and one of `chair-scenes`, by name of the benchmark, as `chiasm evaluate` makes them."""
    vlm, made = open_vlm("organism", device="cpu"), {}
    for name, limit in zip(("pope-scenes", "chair-scenes"), limits, strict=True):
        config = {"model": "organism", "benchmark": name, "source": None, "limit": limit, "seed": 0, "read": []}
        with Run.create("evaluate", config, root) as run:
            methods = [Greedy(), Sampling(3.0)]
            evaluate(vlm, open_benchmark(name, limit=limit), methods, run=run, seeds=2, progress=False)
        made[name] = run.path
    return made


def write_answers(folder: Path, **ways: list[dict]) -> Path:
    """A folder with answers/<way>.jsonl; `__` in a name stands for a point."""
    (folder / "answers").mkdir(parents=True)
    for way, records in ways.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "answers" / f"{way.replace('__', '.')}.jsonl").write_text(lines)
    return folder

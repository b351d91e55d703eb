"""Small evaluations of the organism, and answers written by hand."""

from __future__ import annotations

import json
from pathlib import Path

from chiasm.experiments.benchmarks import open_benchmark
from chiasm.experiments.evaluation import evaluate
from chiasm.experiments.methods import Greedy, Sampling
from chiasm.experiments.run import Run
from chiasm.models import open_vlm


def make_evaluations(root: Path) -> dict[str, Path]:
    """A run of `pope-scenes` and one of `chair-scenes`, by name of the benchmark, as `chiasm evaluate` makes them."""
    vlm, made = open_vlm("organism", device="cpu"), {}
    for name, limit in (("pope-scenes", 6), ("chair-scenes", 4)):
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

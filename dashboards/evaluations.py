"""The runs that asked a benchmark's questions, and their scores: of `chiasm evaluate`, and of the hallucination experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ..experiments.manifest import Listed
from .store import model_name, run_name

TABLES = {"evaluate": {"": "scores"}, "hallucination": {"pope-scenes": "pope", "chair-scenes": "chair"}}
"""Experiment → benchmark ("": the one in its manifest) → table of scores."""


@dataclass(frozen=True)
class Evaluated:
    """One benchmark asked in one run. run: its name in the store; table: that of the scores; label: for people, unlike all others';
    answers: whether each answer was kept."""

    run: str
    benchmark: str
    table: str
    label: str
    complete: bool
    answers: bool


def evaluated(runs: Sequence[Listed]) -> list[Evaluated]:
    """Every benchmark of every run that can be read, in the order of the runs."""
    found = []
    for run in runs:
        if run.state not in ("complete", "incomplete"):
            continue
        for benchmark, table in TABLES.get(run.experiment, {}).items():
            name = benchmark or run.manifest.get("benchmark") or (run.manifest.get("config") or {}).get("benchmark")
            if name:
                answers = run.experiment == "evaluate" and (run.path / "answers").is_dir()
                complete = run.state == "complete"
                found.append(Evaluated(run_name(run), str(name), table, label(run), complete, answers))
    return told_apart(found)


def told_apart(found: list[Evaluated]) -> list[Evaluated]:
    """Where labels of one benchmark are the same, the end of the run's name is added."""
    seen = Counter((one.benchmark, one.label) for one in found)
    return [
        one if seen[one.benchmark, one.label] == 1 else replace(one, label=f"{one.label} {one.run[-6:]}")
        for one in found
    ]


def label(run: Listed) -> str:
    """A short name of a run: model, adapter's folder, day and minute."""
    config = run.manifest.get("config") or {}
    adapter = str(config.get("adapter") or "").rstrip("/").rsplit("/", 1)[-1]
    names = [
        model_name(run.manifest).rstrip("/").rsplit("/", 1)[-1] or run.experiment,
        f"+ {adapter}" if adapter else "",
    ]
    try:
        names.append(f"{datetime.fromisoformat(str(run.manifest.get('started'))):%d %b %H:%M}")
    except ValueError:
        names.append(run.path.name)
    return " ".join(name for name in names if name)

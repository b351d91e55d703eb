"""The runs that asked a benchmark's questions, and their scores: of `chiasm evaluate`, and of the hallucination experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ..experiments.manifest import Listed
from .store import model_name, run_name

TABLES = {"evaluate": {"": "scores"}, "hallucination": {"pope-scenes": "pope", "chair-scenes": "chair"}}
"""Experiment → benchmark ("": the one in its manifest) → table of scores."""


@dataclass(frozen=True)
class Evaluated:
    """One benchmark asked in one run. run: its name in the store; table: that of the scores, "" where they are another page's; label:
    for people, unlike all others'; answers: whether each answer was kept; prefix: what the names of their files begin with."""

    run: str
    benchmark: str
    table: str
    label: str
    complete: bool
    answers: bool
    prefix: str = ""


def evaluated(runs: Sequence[Listed]) -> list[Evaluated]:
    """Every benchmark of every run that can be read, in the order of the runs."""
    found = []
    for run in runs:
        if run.state not in ("complete", "incomplete"):
            continue
        for benchmark in _compared(run):
            name = f"{label(run)} tuned"
            found.append(Evaluated(run_name(run), benchmark, "", name, run.state == "complete", True, f"{benchmark}."))
        for benchmark, table in TABLES.get(run.experiment, {}).items():
            name = benchmark or run.manifest.get("benchmark") or (run.manifest.get("config") or {}).get("benchmark")
            if name:
                answers = run.experiment == "evaluate" and (run.path / "answers").is_dir()
                complete = run.state == "complete"
                found.append(Evaluated(run_name(run), str(name), table, label(run), complete, answers))
    more = told_apart([(one.benchmark, one.label) for one in found], [one.run for one in found])
    return [replace(one, label=one.label + end) for one, end in zip(found, more, strict=True)]


def _compared(run: Listed) -> list[str]:
    """Benchmarks whose answers a comparison of a tuned model with the model before keeps, as <benchmark>.<model>.jsonl."""
    files = sorted((run.path / "answers").glob("*.*.jsonl")) if run.experiment == "against" else []
    return list(dict.fromkeys(file.name.split(".")[0] for file in files))


def told_apart(labels: Sequence[Hashable], names: Sequence[str]) -> list[str]:
    """What is added to each label so that no two are the same: the end of the run's name where they are, else nothing."""
    seen = Counter(labels)
    return [f" {name[-6:]}" if seen[label] > 1 else "" for label, name in zip(labels, names, strict=True)]


def shortened(labels: Sequence[str]) -> dict[str, str]:
    """Label → what is left of it without the words that all of them share, for a place where there is little room."""
    words = [label.split() for label in labels]
    shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
    left = [" ".join(word for word in each if word not in shared) for each in words]
    return dict(zip(labels, left if all(left) and len(set(left)) == len(left) else labels, strict=True))


def label(run: Listed) -> str:
    """A short name of a run: model, adapter's folder, day and minute."""
    config = run.manifest.get("config") or {}
    adapters = config.get("adapter") or []
    adapters = [adapters] if isinstance(adapters, str) else adapters
    last = [str(one).rstrip("/").removesuffix("/adapter").rsplit("/", 1)[-1] for one in adapters]
    adapter = last[0] if len(last) == 1 else f"{len(last)} adapters" if last else ""
    names = [
        model_name(run.manifest).rstrip("/").rsplit("/", 1)[-1] or run.experiment,
        f"+ {adapter}" if adapter else "",
    ]
    try:
        names.append(f"{datetime.fromisoformat(str(run.manifest.get('started'))):%d %b %H:%M}")
    except ValueError:
        names.append(run.path.name)
    return " ".join(name for name in names if name)

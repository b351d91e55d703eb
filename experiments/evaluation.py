"""Letting a model answer a benchmark's questions by several methods, one batch at a time, and scoring what it said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ..probes.checkpoint import Checkpoint, check_setup
from ..probes.loader import Batch, Data, Loader
from ..probes.measure import memory_is_told
from ..probes.progress import Meter
from ..probes.record_file import RecordFile
from ..probes.subject import data_facts, model_facts
from ..scenes.errors import UserError
from ..scenes.sample import BadSample, Sample
from .answers import matched, read_answers
from .benchmarks import Benchmark
from .methods import Method, likelier, row_seed
from .scores import score

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True)
class Evaluation:
    """table: see `scores.score`. answers: method → one list of records for each seed. skipped: id and reason of each question
    that could not be asked."""

    table: pd.DataFrame
    answers: dict[str, list[list[dict[str, Any]]]]
    skipped: pd.DataFrame

    @property
    def n(self) -> int:
        """Questions that were answered."""
        return len(next(iter(self.answers.values()))[0])


@dataclass(frozen=True)
class Pass:
    """One method with one seed, through all questions. name: of its file in answers/."""

    method: Method
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method.name}.seed{self.seed}" if self.method.sampled else self.method.name


def evaluate(
    vlm,
    benchmark: Benchmark,
    methods: Sequence[Method],
    *,
    run: Run | None = None,
    rule: str = "default",
    batch_size: int = 8,
    seed: int = 0,
    seeds: int = 5,
    max_new_tokens: int | None = None,
    strict: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Asks every question by every method, and scores the answers.

    run: where answers/<method>.jsonl (with `.seed<k>` for a sampled method), the tables `scores` and `skipped` go. Calling
    again with a run that was stopped, even by kill -9, goes on behind its last whole batch to the same answers.
    rule: how yes and no are read, see `chiasm.probes.hallucination.parse_yes_no`. seeds: how many times a sampled method answers, with the seeds seed, seed + 1, … max_new_tokens: default the
    benchmark's own. strict: raise at the first question that cannot be asked instead of skipping and listing it.
    Raises UserError, one line, also for ids that are not unique and for a run that was begun with something else.
    """
    passes = _passes(benchmark, methods, seed, seeds)
    for method in methods:
        if hasattr(method, "check"):
            method.check(vlm)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise UserError(f"batch_size {batch_size!r} must be a whole number from 1 up")
    max_new_tokens = benchmark.max_new_tokens if max_new_tokens is None else max_new_tokens
    data = Data(Questions(benchmark))
    if run is not None:
        _begin(run, vlm, benchmark, data, passes, batch_size=batch_size, max_new_tokens=max_new_tokens)
    done: dict[str, list[list[dict[str, Any]]]] = {}
    for one in passes:
        path = None if run is None else Path(run.path) / "answers" / f"{one.name}.jsonl"
        complete = run is not None and run.finished
        answers = RecordFile(path, batch_size, final=complete)
        if not complete:
            loader = Loader(vlm, data, batch_size, start=len(answers.records), strict=strict, ahead=_ahead(vlm))
            _answer_all(vlm, one, loader, answers, benchmark, max_new_tokens, progress, run)
        done.setdefault(one.method.name, []).append(answers.records)
    return _finish(benchmark, done, rule, run)


def evaluate_answers(
    benchmark: Benchmark,
    files: Sequence[str | Path],
    *,
    run: Run | None = None,
    rule: str = "default",
) -> Evaluation:
    """Scores answers that were made elsewhere, each file a method called by the file's name; no model is needed.

    run: keeps the questions' records with their answers, as `evaluate` does, and the tables.
    Raises UserError for ids that are missing, unknown or doubled, and for questions that cannot be read.
    """
    questions, seen = [], set()
    data = Data(Questions(benchmark))
    for item in (item for _, block in data.blocks(0, 1, 256) for item in block):
        if isinstance(item, BadSample):
            raise UserError(f"question {item.id!r} cannot be read: {item.reason}")
        questions.append(_once({"id": item.id, **benchmark.facts(item)}, seen))
    done: dict[str, list[list[dict[str, Any]]]] = {}
    for file in map(Path, files):
        if file.stem in done:
            raise UserError(f"two files of answers are called {file.stem!r}: rename one, since it names the method")
        done[file.stem] = [matched(read_answers(file), questions, file.name)]
    if run is not None:
        run.note(benchmark=benchmark.name, data=data_facts(data), answers=[str(file) for file in files])
        for name, (records,) in done.items():
            kept = RecordFile(Path(run.path) / "answers" / f"{name}.jsonl", 1)
            kept.add(records[len(kept.records) :])
    return _finish(benchmark, done, rule, run)


class Questions:
    """A benchmark's samples without their answers, which would else be read along with the prompt."""

    def __init__(self, benchmark: Benchmark):
        self.samples = benchmark.samples
        self.called = getattr(self.samples, "called", lambda: benchmark.name)

    def __iter__(self) -> Iterator[Sample | BadSample]:
        return map(_asked, iter(self.samples))

    def iterate(self, start: int = 0, step: int = 1, block: int = 1) -> Iterator[Sample | BadSample]:
        if hasattr(self.samples, "iterate"):
            return map(_asked, self.samples.iterate(start, step, block))
        wanted = ((k, item) for k, item in enumerate(self.samples) if k >= start)
        return (_asked(item) for k, item in wanted if (k - start) // block % step == 0)

    def __len__(self) -> int:
        return len(self.samples)

    def fingerprint(self) -> str:
        return Data(self.samples).fingerprint()


def _asked(item: Sample | BadSample) -> Sample | BadSample:
    return item if isinstance(item, BadSample) else replace(item, answer=None)


def _passes(benchmark: Benchmark, methods: Sequence[Method], seed: int, seeds: int) -> list[Pass]:
    if not methods:
        raise UserError("no method was given: give one or more, e.g. greedy")
    names = [method.name for method in methods]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two methods are called {doubled!r}: give each once, or another name")
    for method in methods:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", method.name):
            raise UserError(f"method {method.name!r} names a file: use letters, digits, '_', '-', '+' and '.'")
        if hasattr(method, "probabilities") and benchmark.kind in ("chair", "amber"):
            raise UserError(
                f"method {method.name!r} says yes or no, {benchmark.name} asks for descriptions too: leave it out"
            )
    if any(method.sampled for method in methods) and seeds < 2:
        raise UserError(f"seeds={seeds}: a sampled method needs 2 or more (5 for a result) to tell how much it varies")
    return [Pass(method, seed + k) for method in methods for k in range(seeds if method.sampled else 1)]


def _answer_all(vlm, one: Pass, loader, answers: RecordFile, benchmark, max_new_tokens, progress, run) -> None:
    """Answers what is not answered yet."""
    seen: set[str] = set()
    for record in answers.records:
        _once(record, seen)
    log = None if run is None else run.log
    meter = Meter(loader.data.total, done=len(answers.records), show=progress, log=log)
    with meter, closing(iter(loader)) as batches:
        for batch in batches:
            records = [_once(record, seen) for record in _batch(vlm, one, batch, benchmark, max_new_tokens)]
            answers.add(records)
            meter.advance(batch.items, len(batch.skipped))
        meter.tell(f"{one.name}: {meter.line()}")


def _batch(vlm, one: Pass, batch: Batch, benchmark: Benchmark, max_new_tokens: int) -> Iterator[dict[str, Any]]:
    """The records of one batch: one for each item, those that cannot be asked last."""
    for inputs in batch.inputs:
        seeds = [row_seed(one.seed, sample.id) for sample in inputs.samples]
        with torch.no_grad(), memory_is_told(len(inputs)):
            if hasattr(one.method, "probabilities"):
                pairs = one.method.probabilities(vlm, inputs).tolist()
                said = [{"answer": likelier(yes, no), "p_yes": yes, "p_no": no} for yes, no in pairs]
            else:
                answers = one.method.answer(vlm, inputs, max_new_tokens=max_new_tokens, seeds=seeds)
                said = [{"answer": answer} for answer in answers]
        if len(said) != len(inputs.samples):
            raise ValueError(f"method {one.method.name!r} gave {len(said)} answers to {len(inputs.samples)} questions")
        for sample, record in zip(inputs.samples, said, strict=True):
            yield {"id": sample.id, **benchmark.facts(sample), **record, "seed": one.seed}
    for item in batch.skipped:
        yield {"id": item.id, "skipped": item.reason}


def _once(record: dict[str, Any], seen: set[str]) -> dict[str, Any]:
    if record["id"] in seen:
        raise UserError(f"question id {record['id']!r} occurs twice in the data: make ids unique")
    seen.add(record["id"])
    return record


def _begin(run: Run, vlm, benchmark: Benchmark, data: Data, passes: Sequence[Pass], **how: Any) -> None:
    """Notes what is evaluated; of a run that was begun before, refuses what would not lead to the same answers."""
    facts = {"model": model_facts(vlm), "data": data_facts(data)}
    setup = {
        "benchmark": benchmark.name,
        "model": facts["model"]["weights"],
        "data": facts["data"]["fingerprint"],
        "methods": [one.name for one in passes],
        "interventions": [repr(change) for one in passes for change in getattr(one.method, "interventions", ())],
        **how,
    }
    before = run.manifest.get("evaluation")
    if before is not None:
        check_setup(Checkpoint(before), setup, run.path)
    if not run.finished:
        run.note(benchmark=benchmark.name, evaluation=setup, **facts)


def _finish(benchmark: Benchmark, done: Mapping[str, list], rule: str, run: Run | None) -> Evaluation:
    """Leaves out what was skipped, scores the rest, and writes the tables."""
    # A question that one pass could not ask no pass could: what is skipped is a fault of the sample, not of the method.
    records = [record for passes in done.values() for pass_ in passes for record in pass_ if "skipped" in record]
    skipped = pd.DataFrame(
        list({record["id"]: record["skipped"] for record in records}.items()), columns=["id", "reason"], dtype="str"
    )
    left_out = set(skipped["id"])
    answers = {
        name: [[record for record in pass_ if record["id"] not in left_out] for pass_ in passes]
        for name, passes in done.items()
    }
    if not next(iter(answers.values()))[0]:
        if not len(skipped):
            raise UserError(f"benchmark {benchmark.name!r} has no questions: give at least one")
        raise UserError(f"none of the {len(skipped)} questions could be asked; the first: {skipped['reason'][0]}")
    result = Evaluation(score(benchmark, answers, rule), answers, skipped)
    if run is not None and not run.finished:
        run.table("scores", result.table)
        run.table("skipped", skipped)
        run.note(n=result.n, skipped=len(skipped), rule=rule)
    return result


def _ahead(vlm) -> int:
    return 0 if torch.device(vlm.device).type == "cpu" else 2

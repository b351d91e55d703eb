"""From answers to one table: every metric of every method, and what each method changes against the plain one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..probes.amber import amber_tally
from ..probes.bootstrap import Tally, estimates
from ..probes.comparison import COLUMNS, comparison, holm
from ..probes.hallucination import chair_tally, hallusion_sets, hallusion_tally, mme_tally, pope_tally
from ..probes.mentions import same_length
from ..probes.yes_no import metrics_of_probabilities
from ..scenes.errors import UserError
from .benchmarks import Benchmark

Records = Sequence[Mapping[str, Any]]
PLAIN = "greedy"
MEAN = "mean"
"""The split that is the mean over all others."""
SAME_LENGTH = "same length"
"""The split that is all descriptions again, those of one picture cut to as many sentences as the shortest has."""


def score(benchmark: Benchmark, answers: Mapping[str, Sequence[Records]], rule: str = "default") -> pd.DataFrame:
    """One row for each split, method and metric.

    answers: method → records for each of its seeds, all of the same questions in the same order. Columns: split, those of
    `probes.comparison.comparison` (differences are from `greedy`, or the first method where it is not among them), sd:
    the standard deviation between the seeds of a sampled method. A sampled method's other numbers are of its answers of
    all seeds together, each question counted once. Splits have a row "mean" over them, as POPE reports it, whose intervals
    know that the splits share pictures; descriptions by several methods have a split "same length". p_holm corrects over methods and splits within a metric.
    """
    plain = PLAIN if PLAIN in answers else next(iter(answers))
    tables = []
    for split, (tallies, images, parts) in by_split(benchmark, answers, rule).items():
        tables.append(_compared(tallies, images, plain, split))
        tables += [pd.DataFrame(rows)] if (rows := _of_probabilities(parts, images, split)) else []
    table = named_splits(pd.concat(tables, ignore_index=True))
    table["p_holm"] = table.groupby("metric")["p"].transform(holm)
    return table


class Split(NamedTuple):
    """One split's questions. tallies: of each method, one a seed; images: of each item; parts: the records behind them (none for the
    mean over splits)."""

    tallies: dict[str, list[Tally]]
    images: list
    parts: dict[str, list[Records]]


def by_split(benchmark: Benchmark, answers: Mapping[str, Sequence[Records]], rule: str = "default") -> dict[str, Split]:
    """What answers come to in every split of `score`, before any interval. Raises UserError for a rule that is not the benchmark's."""
    first = next(iter(answers.values()))[0]
    if rule != "default" and benchmark.kind not in ("pope", "hallusion"):
        raise UserError(f"rule {rule!r} is of pope and hallusion, {benchmark.name} is scored by its own: leave it out")
    asked = {split: _of_split(answers, split) for split in dict.fromkeys(record["split"] for record in first)}
    if benchmark.kind == "chair" and len(answers) > 1:
        asked[SAME_LENGTH] = _cut(answers)
    found = {}
    for split, parts in asked.items():
        tallies = {name: [_tally(benchmark, one, rule) for one in passes] for name, passes in parts.items()}
        found[split] = Split(tallies, list(_units(benchmark, next(iter(parts.values()))[0])), parts)
    if len(asked) > 1 and SAME_LENGTH not in asked:
        joined = {
            name: [_mean_over([found[split].tallies[name][k] for split in asked]) for k in range(len(passes))]
            for name, passes in answers.items()
        }
        found[MEAN] = Split(joined, [image for split in asked for image in found[split].images], {})
    return found


def named_splits(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the kinds of AMBER's questions, which its metrics have in front, as splits of their own."""
    kind = table["metric"].str.rpartition("/")
    return table.assign(split=table["split"].where(kind[0] == "", kind[0]), metric=kind[2])


def _of_split(answers: Mapping[str, Sequence[Records]], split: str) -> dict[str, list[Records]]:
    return {name: [[r for r in one if r["split"] == split] for one in passes] for name, passes in answers.items()}


def _cut(answers: Mapping[str, Sequence[Records]]) -> dict[str, list[Records]]:
    """All captions, cut to one length picture by picture."""
    systems = {(name, k): _each(one, "answer") for name, passes in answers.items() for k, one in enumerate(passes)}
    cut = same_length(systems)
    return {
        name: [
            [{**record, "answer": text} for record, text in zip(one, cut[name, k], strict=True)]
            for k, one in enumerate(passes)
        ]
        for name, passes in answers.items()
    }


def _compared(tallies: Mapping[str, Sequence[Tally]], images, plain: str, split: str) -> pd.DataFrame:
    """The rows of one split, the plain method's first."""
    base = tallies[plain]
    exact = {name: ts[0] for name, ts in tallies.items() if name != plain and len(ts) == 1 == len(base)}
    mixed = {name: _pooled(ts) for name, ts in tallies.items() if name != plain and name not in exact}
    tables = []
    if exact:
        tables.append(comparison(base[0], exact, images, _same, name=plain))
    if mixed:  # means over seeds are no 0/1 answers: McNemar's test would take every one above 0 for right
        tables.append(comparison(_pooled(base)._replace(shares={}), mixed, images, _same, name=plain))
    if tables:
        table = pd.concat([tables[0], *(more[more["method"] != plain] for more in tables[1:])])
    else:
        rows = estimates(_pooled(base), images)
        table = pd.DataFrame([{"method": plain, "metric": metric} | row for metric, row in rows.items()])
    spread = {
        (name, metric): np.std([t.metrics(t.counts.sum(0))[metric] for t in ts], ddof=1)
        for name, ts in tallies.items()
        if len(ts) > 1
        for metric in ts[0].metrics(ts[0].counts.sum(0))
    }
    table["sd"] = [spread.get(pair, np.nan) for pair in zip(table["method"], table["metric"], strict=True)]
    table["split"] = split
    return table.reindex(columns=["split", *COLUMNS, "sd"])


def _same(tally: Tally) -> Tally:
    return tally


def _pooled(tallies: Sequence[Tally]) -> Tally:
    """The mean over seeds of each item's counts."""
    first = tallies[0]
    if len(tallies) == 1:
        return first
    return first._replace(counts=np.mean([tally.counts for tally in tallies], 0), shares={})


def _mean_over(tallies: Sequence[Tally]) -> Tally:
    """The mean over splits of each metric, every split with counts of its own."""
    width = tallies[0].counts.shape[1]
    counts = np.zeros((sum(len(tally.counts) for tally in tallies), width * len(tallies)))
    start = 0
    for k, tally in enumerate(tallies):
        counts[start : start + len(tally.counts), k * width : (k + 1) * width] = tally.counts
        start += len(tally.counts)

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        parts = [tally.metrics(sums[..., k * width : (k + 1) * width]) for k, tally in enumerate(tallies)]
        return {name: np.mean([part[name] for part in parts], 0) for name in parts[0]}

    sizes = {name: sum(tally.sizes[name] for tally in tallies) for name in tallies[0].sizes}
    return Tally(counts, metrics, sizes=sizes)


def _of_probabilities(parts: Mapping[str, Sequence[Records]], images: Sequence, split: str) -> list[dict[str, Any]]:
    """AUC, calibration and mass of the methods that gave probabilities of yes and of no."""
    rows = []
    for name, (records, *_) in parts.items():
        if all("p_yes" in record for record in records):
            both = np.array([[record["p_yes"], record["p_no"]] for record in records])
            found = metrics_of_probabilities(both, _each(records, "label"), images=images)
            del found["accuracy"]  # is there already, of the answers
            rows += [{"split": split, "method": name, "metric": metric} | row for metric, row in found.items()]
    return rows


# -- one method's answers to one split ---------------------------------------------------------------------------------


def _tally(benchmark: Benchmark, records: Records, rule: str) -> Tally:
    said = [record["answer"] for record in records]
    if benchmark.kind == "pope":
        return pope_tally(said, _each(records, "label"), rule=rule)
    if benchmark.kind == "chair":
        return chair_tally(said, _each(records, "truth"), **benchmark.words)
    if benchmark.kind == "mme":
        return mme_tally(said, _each(records, "label"), images=_each(records, "image"))
    if benchmark.kind == "hallusion":
        figures = {"images": _each(records, "image"), "pairs": _each(records, "pair")}
        return hallusion_tally(said, _each(records, "label"), **figures, rule=rule)
    responses = [{"id": record["id"], "response": record["answer"]} for record in records]
    annotations = [{**record, "truth": record.get("label") or record["truth"]} for record in records]
    return amber_tally(responses, annotations, **benchmark.words)[0]


def _units(benchmark: Benchmark, records: Records) -> Sequence:
    """What the bootstrap draws: the picture of each question."""
    if benchmark.kind == "hallusion":
        return hallusion_sets(_each(records, "image"), _each(records, "pair"))
    return _each(records, "image")


def _each(records: Records, key: str) -> list[Any]:
    return [record[key] for record in records]

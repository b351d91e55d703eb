"""An evaluation's questions one by one: what each method answered, what is wrong with it, and which words are made up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ..experiments.benchmarks import open_benchmark
from ..experiments.options import read_options
from ..probes.amber import stands_for
from ..probes.mentions import Matcher, scene_synonyms
from ..probes.record_file import read_records
from ..probes.yes_no import parse_mme, parse_yes_no
from ..scenes.errors import UserError

FAULTS = {
    "false_yes": "false yes",
    "missed": "missed",
    "unclear": "neither yes nor no",
    "made_up": "made up",
    "left_out": "left out",
}
"""Code → for people: yes to what is not so; no to what is; a word for what is not there; none for what is."""

ANY = "any"


@dataclass(frozen=True)
class Said:
    """One answer. faults: codes of `FAULTS`. reads: what it says to a yes/no question. marks: (start, end) of each made-up word in
    the text; made_up, left_out: objects, for a description."""

    text: str
    faults: tuple[str, ...] = ()
    reads: str = ""
    marks: tuple[tuple[int, int], ...] = ()
    made_up: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """One question. truth: "yes" or "no", or the objects there. said: by way, the name of a file of answers."""

    id: str
    split: str
    truth: str | tuple[str, ...]
    said: dict[str, Said] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """ways: names of the files of answers, in the order of the run. skipped: questions that could not be asked. problems: a line for
    everything that could not be read."""

    asked: list[Asked]
    ways: list[str]
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """The objects that are made up anywhere."""
        return sorted({word for one in self.asked for said in one.said.values() for word in said.made_up})

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(one.split for one in self.asked))

    @property
    def faults(self) -> list[str]:
        """The faults that occur, in the order of `FAULTS`."""
        there = {fault for one in self.asked for said in one.said.values() for fault in said.faults}
        return [fault for fault in FAULTS if fault in there]


def read_run_answers(path: str | Path, manifest: Mapping[str, Any], prefix: str = "") -> Answers:
    """The answers in a run's folder, judged as its scores are. Files that are being written are read as far as they are; nothing is
    ever written. prefix: of the names of the files that count, left out of the ways. Raises UserError for a run without answers."""
    found = sorted((Path(path) / "answers").glob(f"{prefix}*.jsonl"))
    files = {file.stem.removeprefix(prefix): file for file in found}
    order = (manifest.get("evaluation") or {}).get("methods") or ["before"]
    ways = [name for name in order if name in files] + [name for name in files if name not in order]
    if not ways:
        raise UserError(
            f"run {Path(path).name!r} keeps no answers, only its scores: choose a run of `chiasm evaluate`, or make one"
        )
    problems: list[str] = []
    judge = _judge(manifest, problems)
    asked: dict[str, Asked] = {}
    skipped: set[str] = set()
    for way in ways:
        for record in records_of(files[way], problems):
            try:
                if "skipped" in record:
                    skipped.add(record["id"])
                    continue
                said = judge(record)
                truth = record["label"] if "label" in record else tuple(dict.fromkeys(record["truth"]))
                one = asked.setdefault(record["id"], Asked(record["id"], str(record.get("split", "all")), truth))
                one.said[way] = said
            except (KeyError, TypeError, UserError) as error:
                problems.append(
                    f"an answer of {way!r} to {record.get('id')!r} cannot be judged ({error}): it is left out"
                )
    return Answers(list(asked.values()), ways, len(skipped), problems)


def failing(
    answers: Answers,
    *,
    fault: str | None = None,
    ways: Collection[str] | None = None,
    better: str | None = None,
    word: str | None = None,
    split: str | None = None,
) -> list[Asked]:
    """Questions that an answer fails: by a fault (`ANY`: whichever), or by making a word up, or both; of all splits or one.

    ways: only their answers count; better: a way whose answer must not fail so. With neither fault nor word, every question.
    """

    def fails(said: Said) -> bool:
        by_fault = fault is None or (bool(said.faults) if fault == ANY else fault in said.faults)
        return by_fault and (word is None or word in said.made_up)

    def kept(one: Asked) -> bool:
        if split is not None and one.split != split:
            return False
        if fault is None and word is None:
            return True
        counted = [said for name, said in one.said.items() if ways is None or name in ways]
        other = one.said.get(better) if better else None
        return any(map(fails, counted)) and (not better or (other is not None and not fails(other)))

    return [one for one in answers.asked if kept(one)]


def fault_table(answers: Answers) -> pd.DataFrame:
    """A row a way: answers, and how many of them have each fault that occurs."""
    rows = []
    for way in answers.ways:
        said = [one.said[way] for one in answers.asked if way in one.said]
        counted = {FAULTS[fault]: sum(fault in one.faults for one in said) for fault in answers.faults}
        rows.append({"method": told_way(way), "answers": len(said), **counted})
    return pd.DataFrame(rows)


def invented_words(answers: Answers) -> pd.DataFrame:
    """A row an object that is made up, the most frequent first; a column a way: its mentions."""
    counts = {
        way: Counter(name for one in answers.asked if way in one.said for name in one.said[way].made_up)
        for way in answers.ways
    }
    words = sorted({word for each in counts.values() for word in each})
    table = pd.DataFrame({told_way(way): [counts[way][word] for word in words] for way in answers.ways}, index=words)
    return table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index].rename_axis("object")


def told_way(way: str) -> str:
    """The name of a file of answers for people."""
    method, seeded, seed = way.partition(".seed")
    return f"{method}, seed {seed}" if seeded else method


# -- judging -----------------------------------------------------------------------------------------------------------


def records_of(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The records of a file; what cannot be read adds a line to the problems."""
    try:
        records, damaged = read_records(file)
    except OSError as error:
        problems.append(f"{file.name!r} cannot be read ({error.strerror}): what it holds is left out")
        return []
    if damaged:
        problems.append(f"{file.name!r} has {damaged} damaged line{'s' * (damaged > 1)}: left out")
    return records


def _judge(manifest: Mapping[str, Any], problems: list[str]) -> Callable[[dict[str, Any]], Said]:
    """Record → answer with its faults, by the rules the run was scored by."""
    config = manifest.get("config") or {}
    name = str(manifest.get("benchmark") or config.get("benchmark") or "")
    kind = name.removesuffix("-scenes")
    rule = str(manifest.get("rule") or config.get("rule") or "default") if kind in ("pope", "hallusion") else "default"
    described: Callable[[dict[str, Any]], Said] | None = None

    def judge(record: dict[str, Any]) -> Said:
        nonlocal described
        if "label" in record:
            reads = (
                parse_mme(record["answer"])
                if kind == "mme"
                else parse_yes_no(record["answer"], rule=rule, label=record["label"])
            )
            return _yes_no(record["answer"], reads, record["label"])
        described = described or _describing(name, config, problems)
        return described(record)

    return judge


def _yes_no(answer: str, reads: str, label: str) -> Said:
    """reads: yes, no or something else."""
    if reads == label:
        return Said(answer, (), reads)
    return Said(answer, ({"yes": "false_yes", "no": "missed"}.get(reads, "unclear"),), reads)


def _describing(name: str, config: Mapping[str, Any], problems: list[str]) -> Callable[[dict[str, Any]], Said]:
    """Record of a description → answer with made-up words and objects left out."""
    if name != "amber":
        return partial(_description, Matcher(scene_synonyms() if name == "chair-scenes" else None), {}, set())
    try:
        options = read_options(config.get("read"))
        words = open_benchmark("amber", config.get("source"), limit=1, look=False, **options).words
    except UserError as error:
        problems.append(f"AMBER's lists of words are not there ({error}): descriptions are shown without marks")
        return lambda record: Said(record["answer"])
    low = {word.lower(): [other.lower() for other in others] for word, others in words["associations"].items()}
    matcher = Matcher(dict.fromkeys((word.lower() for word in words["vocabulary"]), ()), no_object=())
    return partial(_description, matcher, low, {word.lower() for word in words["safe_words"]})


def _description(matcher: Matcher, good: Mapping[str, list[str]], safe: set[str], record: dict[str, Any]) -> Said:
    """good: object → words as good for it; safe: words that are never made up."""
    there = list(dict.fromkeys(str(name).lower() for name in record["truth"]))
    true = stands_for(there, good)
    places = matcher.places(record["answer"])
    bad = [place for place in places if place[0] not in true and place[0] not in safe]
    covered = {true[name] for name, _, _ in places if name in true}
    left = tuple(name for name in there if name not in covered)
    faults = (*(("made_up",) if bad else ()), *(("left_out",) if left else ()))
    return Said(record["answer"], faults, "", tuple((a, b) for _, a, b in bad), tuple(name for name, _, _ in bad), left)

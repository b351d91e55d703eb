"""Sets of preference pairs on disk, as a page shows them: which there are, each pair with what differs in it, what was dropped."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..scenes.errors import UserError
from .marked import BAD, FAINT, GOOD, PLAIN, Piece
from .samples import records_of

if TYPE_CHECKING:
    from PIL import Image

SHOWN = ("id", "kind", "rejected_image", "rank", "graph_distance", "edit_similarity")
"""Columns by which pairs are chosen."""

DEPTH = 3
"""How many folders below the runs' one a set of pairs is looked for."""

INCOMPLETE = ".incomplete"


@dataclass(frozen=True)
class PairSet:
    """path: its folder, which is never typed by anyone. name: for people. complete: False while it is being made."""

    path: Path
    name: str
    complete: bool = True


@dataclass(frozen=True)
class Contents:
    """rows: a `datasets.Dataset`, pictures as bytes; None where it cannot be read. table: its columns `SHOWN`. dropped: a row an item
    that gave no pair. read: items so far, of a set that is being made. problems: a line for everything that cannot be read."""

    rows: Any = None
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    report: Mapping[str, Any] = field(default_factory=dict)
    setup: Mapping[str, Any] = field(default_factory=dict)
    dropped: pd.DataFrame = field(default_factory=pd.DataFrame)
    read: int | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """One pair. pictures: the picture and the rejected one, each a picture or the line that says why there is none. checks: what was
    checked of it, what came out, and what that means."""

    id: str
    kind: str
    prompt: str
    chosen: list[Piece]
    rejected: list[Piece]
    pictures: tuple[Image.Image | str, Image.Image | str]
    checks: list[tuple[str, str, str]]


def pair_sets(root: str | Path, manifests: Iterable[Mapping[str, Any]] = ()) -> list[PairSet]:
    """Sets under the runs' folder, in `pairs` beside it (where `chiasm pairs` puts them), and those that manifests of tunings name."""
    root = Path(root)
    named = [str((manifest.get("config") or {}).get("pairs") or "") for manifest in manifests]
    places = [
        *_below(root, DEPTH),
        root.parent / "pairs",
        root.parent / f"pairs{INCOMPLETE}",
        *(Path(name) for name in named if name),
    ]
    found: dict[Path, PairSet] = {}
    for path in places:
        if (path / "pairs.json").is_file():
            name = os.path.relpath(path, root) if path.is_relative_to(root) else str(path)
            found.setdefault(
                path.resolve(), PairSet(path, name.removesuffix(INCOMPLETE), not path.name.endswith(INCOMPLETE))
            )
    return list(found.values())


def read_pair_set(one: PairSet) -> Contents:
    """What the folder holds, as far as it can be read. Never raises for what is in it."""
    problems: list[str] = []
    setup = _json(one.path / "pairs.json", problems)
    if not one.complete:
        records = _records(one.path / "records.jsonl", problems)
        dropped = _dropped(record for record in records if "reason" in record)
        return Contents(setup=setup, dropped=dropped, read=len(records), problems=tuple(problems))
    rows, table = None, pd.DataFrame(columns=list(SHOWN))
    try:
        rows, table = _dataset(str(one.path), (one.path / "pairs.json").stat().st_mtime_ns)
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's derive from these
        problems.append(
            f"the pairs of {one.name!r} cannot be read ({_short(error)}): make them again with `chiasm pairs`"
        )
    report = _json(one.path / "report.json", problems)
    dropped = _dropped(_records(one.path / "dropped.jsonl", problems))
    return Contents(rows, table, report, setup, dropped, None, tuple(problems))


def pair_at(contents: Contents, index: int) -> Pair:
    """One pair of a set. Raises UserError when its row cannot be read; a picture that cannot be is told in its place."""
    try:
        (row,) = contents.rows[index].to_pylist()
        chosen, rejected, prompt = (_text(row[name]) for name in ("chosen", "rejected", "prompt"))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"pair {index} cannot be read ({_short(error)}): make the pairs again with `chiasm pairs`"
        ) from error
    try:
        spans = json.loads(row.get("spans") or "[]")
        pieces = span_pieces(chosen, rejected, spans)
    except (ValueError, KeyError, TypeError):
        pieces = None
    pieces = pieces or word_pieces(chosen, rejected)
    pictures = tuple(_picture(row.get(name)) for name in ("images", "rejected_images"))
    return Pair(str(row.get("id")), str(row.get("kind")), prompt, *pieces, pictures, _checks(row, contents.setup))


def span_pieces(
    chosen: str, rejected: str, spans: Iterable[Mapping[str, Any]]
) -> tuple[list[Piece], list[Piece]] | None:
    """Both texts cut at the spans that were masked: changed ones marked, those filled as they were faint. None where the spans do not
    lead from one text to the other."""
    before: list[Piece] = []
    after: list[Piece] = []
    done = 0
    for span in sorted(spans, key=lambda span: span["start"]):
        same = chosen[done : span["start"]]
        changed = span["chosen"] != span["rejected"]
        before += [(same, PLAIN), (chosen[span["start"] : span["end"]], GOOD if changed else FAINT)]
        after += [(same, PLAIN), (span["rejected"], BAD if changed else FAINT)]
        done = span["end"]
    before, after = ([piece for piece in (*pieces, (chosen[done:], PLAIN)) if piece[0]] for pieces in (before, after))
    fits = done and all(
        "".join(text for text, _ in pieces) == whole for pieces, whole in ((before, chosen), (after, rejected))
    )
    return (before, after) if fits else None


def word_pieces(chosen: str, rejected: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts with the words that differ marked."""
    a, b = (re.findall(r"\s+|\S+", text) for text in (chosen, rejected))
    before, after = [], []
    for what, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        before.append(("".join(a[i:j]), PLAIN if what == "equal" else GOOD))
        after.append(("".join(b[k:m]), PLAIN if what == "equal" else BAD))
    return [piece for piece in before if piece[0]], [piece for piece in after if piece[0]]


# -- reading -----------------------------------------------------------------------------------------------------------


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Folders that hold pairs; runs are not looked into."""
    try:
        entries = sorted(
            (e for e in os.scandir(folder) if not e.name.startswith(".") and e.is_dir()), key=lambda e: e.name
        )
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if (path / "pairs.json").is_file():
            yield path
        elif depth > 1 and not (path / "manifest.json").is_file():
            yield from _below(path, depth - 1)


@lru_cache(maxsize=8)
def _dataset(path: str, changed: int) -> tuple[Any, pd.DataFrame]:
    """The rows, in which pictures stay bytes so that a broken one is told in its place, and their columns `SHOWN`."""
    from ..alignment.pair_files import load_pairs

    rows = load_pairs(path).with_format("arrow")
    return rows, rows.select_columns([name for name in SHOWN if name in rows.column_names])[:].to_pandas()


def _picture(cell: Any) -> Image.Image | str:
    from ..scenes.pictures import open_picture

    try:
        return open_picture(cell[0]["bytes"], name="picture")
    except (UserError, KeyError, TypeError, IndexError) as error:
        return f"this picture cannot be shown ({_short(error)})"


def _text(cell: Any) -> str:
    """A string, or what a conversation of one turn says."""
    return cell if isinstance(cell, str) else "\n".join(str(turn["content"]) for turn in cell)


def _checks(row: Mapping[str, Any], setup: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    judge = row.get("judge") or setup.get("judge")
    found = [
        ("chosen text, picture", _truth(row.get("truth_chosen")), "should be true"),
        ("rejected text, picture", _truth(row.get("truth_rejected")), "must be false, or less true"),
        ("chosen text, rejected picture", _truth(row.get("truth_rejected_image")), "must be false, or less true"),
        ("judged by", str(judge), ""),
        ("words kept", _number(row.get("edit_similarity")), "share of words in both texts; 1: the same"),
        ("length difference", _number(row.get("length_difference"), "+.0f"), str(setup.get("length") or "words")),
        ("rejected picture", str(row.get("rejected_image")), f"of {row['rejected_id']}" if row.get("rejected_id") else ""),
        ("its place among the similar", _number((row.get("rank") or 0) + 1, ".0f"), f"cosine {_number(row.get('cosine'))}"),
        ("differences of the scenes", _number(row.get("graph_distance"), ".0f"), "objects and attributes that differ"),
        ("fluency of the fill", _number(row.get("fill_logp")), "log-likelihood a token, by the backend"),
        ("filled by", str(row.get("backend")), ""),
    ]  # fmt: skip
    return [check for check in found if check[1] not in ("", "None")]


def _truth(value: Any) -> str:
    """1 and 0 are what an exact judge says; others are a model's probability."""
    if value is None or value != value:
        return ""
    return {1.0: "true", 0.0: "false"}.get(float(value), f"{float(value):.2f}")


def _number(value: Any, form: str = ".2f") -> str:
    return "" if value is None or value != value else format(value, form)


def _dropped(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    from ..alignment.filters import REASONS

    rows = [
        {
            "id": str(record.get("id")), "reason": str(record.get("reason")), "kind": record.get("kind"),
            "why": REASONS.get(str(record.get("reason")), ""),
            "tried": ", ".join(f"{code} {count}" for code, count in (record.get("tried") or {}).items()),
        }
        for record in records
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["id", "reason", "kind", "why", "tried"])


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        error: Any = "no object in it"
    except (OSError, ValueError) as failed:
        error = failed
    problems.append(f"{path.name!r} cannot be read ({_short(error)}): what it tells is left out")
    return {}


def _records(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    return records_of(path, problems) if path.is_file() else []


def _short(error: Any) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:160]

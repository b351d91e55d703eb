"""Answers on disk: one JSON object a line, written as they come, and read back whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..probes.files import full_disk_is_told
from ..scenes.errors import UserError
from ..scenes.readers.json_lines import lines, parse
from ..scenes.readers.reader import ItemError, existing_file, identity, text


class AnswerFile:
    """The answers of one pass of one method, a batch added at a time; kept in memory alone where there is no path.

    Each batch is one write at the end of the file. What was written before is never touched, so that a job that is killed
    keeps all its whole batches; a batch of which only a part reached the disk is made again. final: the file is complete.
    """

    def __init__(self, path: Path | None, batch_size: int, *, final: bool = False):
        self.path, self.records = path, []
        if path is not None and path.is_file():
            self.records = self._read(1 if final else batch_size)

    def _read(self, batch_size: int) -> list[dict[str, Any]]:
        """The records of whole batches; the others leave the file, to be made again."""
        raw = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last line's end was not written whole
        try:
            records = [json.loads(line) for line in raw]
        except ValueError as error:
            raise UserError(f"{str(self.path)!r} is damaged ({error}): start a new run") from error
        kept = len(records) // batch_size * batch_size
        if (size := sum(len(line) + 1 for line in raw[:kept])) < self.path.stat().st_size:
            os.truncate(self.path, size)
        return records[:kept]

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds a batch; it is on the disk when this returns."""
        self.records += records
        if self.path is None:
            return
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_is_told(self.path), self.path.open("ab", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())


def read_answers(path: str | Path) -> dict[str, str]:
    """Answers that were made elsewhere, by id: lines of {"id": …, "answer": …}, other fields not read.

    Raises UserError, one line, for what is not such a file and for an id that occurs twice.
    """
    path = existing_file(path)
    found: dict[str, str] = {}
    for number, raw in lines(path):
        try:
            record = parse(raw)
            name = identity(record, "id", "") or text(record, "id", required=True)
            answer = text(record, "answer")
            if answer is None:
                text(record, "answer", required=True)  # says which fields there are
        except ItemError as error:
            raise UserError(f"{path.name!r} line {number} {error}") from None
        if name in found:
            raise UserError(f"{path.name!r} line {number} answers {name!r} again: keep one answer for each id")
        found[name] = answer
    if not found:
        raise UserError(f"{str(path)!r} is empty: give a file with lines of id and answer")
    return found


def matched(answers: Mapping[str, str], questions: Iterable[Mapping[str, Any]], called: str) -> list[dict[str, Any]]:
    """The questions' records, each with its answer. Raises UserError naming ids that are missing or belong to no question."""
    questions = list(questions)
    known = {question["id"] for question in questions}
    for words, ids in (
        ("lacks answers to", [question["id"] for question in questions if question["id"] not in answers]),
        ("answers what is not asked:", [name for name in answers if name not in known]),
    ):
        if ids:
            shown = ", ".join(repr(name) for name in ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
            raise UserError(
                f"{called!r} {words} {shown}; it must answer each of the {len(questions)} questions once, by its id: "
                "use the same benchmark and --limit as for the answers"
            )
    return [{**question, "answer": answers[question["id"]]} for question in questions]

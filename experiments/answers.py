"""Answers that were made elsewhere: one JSON object a line, read by id and put to their questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..scenes.errors import UserError
from ..scenes.readers.json_lines import lines, parse
from ..scenes.readers.reader import ItemError, existing_file, identity, text


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

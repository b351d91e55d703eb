"""Records on disk: one JSON object a line, written as they come, and read back whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..scenes.errors import UserError
from .files import full_disk_is_told


class RecordFile:
    """Records added a batch at a time; kept in memory alone where there is no path.

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
            raise UserError(f"{str(self.path)!r} is damaged ({error}): start anew") from error
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


def read_records(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """(records, how many lines are damaged) of a file that another process may be writing: a last line without its end is left, and
    nothing is changed. Raises OSError."""
    records, damaged = [], 0
    for line in Path(path).read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "id" not in record:
                raise ValueError("a record is an object with an id")
            records.append(record)
        except ValueError:
            damaged += 1
    return records, damaged

"""A Hugging Face data set: saved by `save_to_disk`, a folder or file of parquet, or an id on the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from ..pictures import as_rgb, open_picture
from ..sample import Sample
from . import hub
from .reader import Item, ItemError, Reader, check_folder, columns, identity, locate, one_line, short, text

USUAL = {"image": ("image", "images"), "prompt": ("prompt", "question"), "answer": ("answer",), "id": ("id",)}
"""The column used for each part of a sample when no option names one: the first of these that is there."""


@dataclass(frozen=True)
class HuggingFaceData(Reader):
    """The rows of a data set of the `datasets` library, streamed. Pictures are decoded here and not there, so that each
    passes the same checks and a damaged one does not end the iteration.

    source: a folder written by `save_to_disk`, a folder that `load_dataset` can load (parquet, …), a parquet file, or an id
    on the Hub. split: needed when there are several. config, revision: as for `load_dataset`.
    image_column: pictures, or paths, or lists of them; an empty cell is an item without picture. prompt_column: text.
    answer_column: text, or class labels, whose names are used. id_column: text or whole numbers (default: the row's number).
    Columns that are not named: see `USUAL`. prompt: asked of every row in place of a column.
    images: the folder that relative paths in image_column start from; default: the data set's own folder.
    """

    source: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    image_column: str | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    prompt: str | None = None
    images: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", os.fspath(self.source))
        check_folder(self.images)
        if self.prompt and self.prompt_column:
            raise UserError(
                f"prompt={self.prompt!r} and prompt_column={self.prompt_column!r} exclude each other: give one"
            )

    def called(self) -> str:
        return f"data set {self.source!r}" + (f" split {self.split!r}" if self.split else "")

    @cached_property
    def _loaded(self) -> Any:
        """The `datasets.Dataset` or `IterableDataset` of the split."""
        data = hub.load(self.source, self.config, self.revision)
        if not isinstance(data, Mapping):
            if self.split and data.split is not None and str(data.split) != self.split:
                raise UserError(
                    f"data set {self.source!r} has only the split {str(data.split)!r}, not {self.split!r}: leave split out"
                )
            return data
        if self.split is None and len(data) == 1:
            return next(iter(data.values()))
        if self.split not in data:
            what = f"has no split {self.split!r}, it has" if self.split else "has several splits,"
            raise UserError(f"data set {self.source!r} {what} {columns(data)}: choose one with split=")
        return data[self.split]

    @cached_property
    def _rows(self) -> Any:
        """The rows as an `IterableDataset` that leaves pictures as bytes or paths."""
        data = self._loaded
        return (data.to_iterable_dataset() if hasattr(data, "to_iterable_dataset") else data).decode(False)

    @cached_property
    def chosen(self) -> dict[str, str]:
        """The column of each part of a sample ("image", "prompt", "answer", "id") that has one. Raises UserError."""
        # Formats without a schema (CSV, JSON) tell their columns with the first row.
        there = self._rows.column_names or list(next(self._next_rows(self._rows), {}))
        if not there:
            raise UserError(f"{self.called()} is empty: give a data set with at least one row")
        chosen = {}
        for part, usual in USUAL.items():
            named = getattr(self, f"{part}_column")
            found = next((column for column in ((named,) if named else usual) if column in there), None)
            if found is not None:
                chosen[part] = found
            elif named or part == "image" or (part == "prompt" and not self.prompt):
                missing = " or ".join(map(repr, (named,) if named else usual))
                other = ", or one prompt for all with prompt=" if part == "prompt" else ""
                raise UserError(
                    f"{self.called()} has no column {missing}, it has {columns(there)}: choose one with {part}_column={other}"
                )
        return chosen

    def __len__(self) -> int:
        try:
            return len(self._loaded)
        except TypeError:
            raise TypeError(f"{self.called()} is streamed: its length is not known") from None

    def items(self) -> Iterator[Item]:
        wanted = self._rows.select_columns(list(dict.fromkeys(self.chosen.values())))
        for number, row in enumerate(self._next_rows(wanted)):
            named = row.get(self.chosen.get("id"))
            name = str(named) if isinstance(named, str | int) else str(number)
            yield Item(name, f"{self.source!r} row {number}", partial(self._sample, row, number))

    def _next_rows(self, rows: Any) -> Iterator[dict[str, Any]]:
        number, iterator = 0, iter(rows)
        while True:
            try:
                row = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # of whatever reads the format, or of the network: there is no going on after it
                raise UserError(
                    f"{self.called()} cannot be read after row {number} ({one_line(error)}): load or download it again"
                ) from error
            yield row
            number += 1

    def _sample(self, row: dict[str, Any], number: int) -> Sample:
        column = self.chosen
        prompt = self.prompt or text(row, column["prompt"], required=True)
        answer = self._answer(row, column["answer"]) if "answer" in column else None
        name = identity(row, column["id"], str(number)) if "id" in column else str(number)
        cells = row[column["image"]]
        cells = [] if cells is None else cells if isinstance(cells, list) else [cells]
        return Sample(
            name, prompt, tuple(self._picture(cell, f"{column['image']} of row {number}") for cell in cells), answer
        )

    def _answer(self, row: dict[str, Any], column: str) -> str | None:
        names = getattr((self._rows.features or {}).get(column), "names", None)
        if names and isinstance(row[column], int):
            return names[row[column]] if row[column] >= 0 else None  # -1 is a row without label
        return text(row, column)

    def _picture(self, cell: Any, called: str) -> Image.Image:
        if isinstance(cell, Image.Image):
            return as_rgb(cell, name=called, max_pixels=self.max_pixels)
        stored = isinstance(cell, dict) and {"bytes", "path"} >= cell.keys()
        content, path = (cell.get("bytes"), cell.get("path")) if stored else (cell, cell)
        if isinstance(content, bytes):
            return open_picture(content, name=path if stored and path else called, max_pixels=self.max_pixels)
        if not isinstance(path, str):
            raise ItemError(f"its picture is {short(cell)}, must be a picture or a path: choose another image_column=")
        if "://" not in path:
            return self.picture(locate(path, self._folders()))
        if not stored:
            raise ItemError(
                f"its picture is {short(path)}, pictures at addresses are not fetched: download them, give their paths"
            )
        return open_picture(hub.fetch(path), name=path, max_pixels=self.max_pixels)

    def _folders(self) -> tuple[Path, ...]:
        if self.images is not None:
            return (Path(self.images),)
        source = Path(self.source)
        return (source,) if source.is_dir() else (source.parent,)

    def content(self) -> Iterator[bytes]:
        yield from hub.content(self.source, self.revision)
        # For what cannot be listed from here: as much as the data set says about itself.
        splits = getattr(self._loaded.info, "splits", None) or {}
        yield repr(sorted((name, split.num_examples, split.num_bytes) for name, split in splits.items())).encode()

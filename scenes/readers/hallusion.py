"""HallusionBench (Guan et al. 2024, arXiv 2310.14566): questions on figures, original and edited, and without figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..sample import Sample
from .reader import (
    Item,
    ItemError,
    Reader,
    check_folder,
    columns,
    existing_file,
    file_content,
    identity,
    json_document,
    locate,
    short,
    text,
)

FIELDS = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id", "question", "gt_answer")
"""What an entry has besides "filename", which is null where a question has no figure."""


@dataclass(frozen=True)
class HallusionBench(Reader):
    """`HallusionBench.json` as published: a list of questions, each answered by yes or no.

    The id is category_subcategory_set_figure_question, which the release keeps unique. truth: "label" (yes or no), the
    fields "category", "subcategory", "visual_input" (0: no figure, 1: original, 2: edited), "image" (the figure, for
    accuracy per figure: category_subcategory_set_figure) and "pair" (category_subcategory_set_question: one question asked
    of all variants of a figure). images: the folder the file names start from; default: the folder of the file, where the
    release is unpacked as `hallusion_bench`.
    """

    path: Path
    images: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", existing_file(self.path))
        check_folder(self.images)

    @cached_property
    def _entries(self) -> list[Any]:
        loaded = json_document(self.path, self.called())
        if not isinstance(loaded, list):
            raise UserError(
                f"{self.called()} is {short(loaded)}, must be a list of questions: give HallusionBench.json"
            )
        return loaded

    def __len__(self) -> int:
        return len(self._entries)

    def called(self) -> str:
        return repr(str(self.path))

    def content(self) -> Iterator[bytes]:
        return file_content(self.path)

    def items(self) -> Iterator[Item]:
        for number, entry in enumerate(self._entries):
            name = f"{self.path.name}[{number}]"
            yield Item(name, f"{self.path.name!r} entry {number}", partial(self._sample, entry))

    def _sample(self, entry: Any) -> Sample:
        if not isinstance(entry, dict):
            raise ItemError(f"is {short(entry)}, must be an object: correct it")
        if missing := [field for field in FIELDS if entry.get(field) is None]:
            raise ItemError(f"has no {columns(missing)}, it has {columns(entry)}: a question has {', '.join(FIELDS)}")
        place = {field: identity(entry, field, "") for field in FIELDS[:-2]}
        label = {"1": "yes", "0": "no"}.get(identity(entry, "gt_answer", ""))
        if label is None:
            raise ItemError(f"'gt_answer' is {short(entry['gt_answer'])}, must be 0 (no) or 1 (yes): correct it")
        if place["visual_input"] not in ("0", "1", "2"):
            raise ItemError(f"'visual_input' is {short(entry['visual_input'])}, must be 0, 1 or 2: correct it")
        pictures = ()
        if place["visual_input"] != "0":
            root = self.path.parent if self.images is None else Path(self.images)
            pictures = self.looked_at(locate(text(entry, "filename", required=True), (root,)))
        of = "_".join(place[field] for field in ("category", "subcategory", "set_id"))
        figure = f"{of}_{place['figure_id']}"
        truth = {
            "label": label,
            **{field: place[field] for field in ("category", "subcategory", "visual_input")},
            "image": figure,
            "pair": f"{of}_{place['question_id']}",
        }
        question = text(entry, "question", required=True)
        return Sample(f"{figure}_{place['question_id']}", question, pictures, label, truth)

"""POPE's questions (arXiv 2305.10355): is there an X in the image? From a published file, or built from COCO's annotations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..pope_builder import build_pope
from ..sample import Sample
from .coco import Coco, picture_folders
from .json_lines import LineReader
from .reader import Item, ItemError, columns, identity, short, text

FIELDS = ("question_id", "image", "text", "label")
"""What a line of a question file has; some releases add more."""

# Some published files spell it "imange", since their builder turned every "a" of the question into "an".
_QUESTION = re.compile(r"\s*is there an? (?P<object>.+?) in the iman?ge\s*\?", re.IGNORECASE)


@dataclass(frozen=True)
class PopeQuestions(LineReader):
    """Lines of `{"question_id": 1, "image": "COCO_val2014_….jpg", "text": "Is there a dog in the image?", "label": "yes"}`.

    The prompt is the question as published, the answer its label. truth: "label" (yes or no), "object" (what is asked for,
    None where the question has another shape) and "image" (the file name: the unit of resampling, since one picture has
    several questions). images: the folder of the pictures; default: the folder of the file, `images` or `val2014` in it,
    or `val2014` beside it.
    """

    def usual_folders(self) -> tuple[Path, ...]:
        here = self.path.parent
        return here, here / "images", here / "val2014", here.parent / "val2014"

    def sample(self, name: str, record: dict[str, Any]) -> Sample:
        if missing := [field for field in FIELDS if record.get(field) is None]:
            raise ItemError(
                f"has no {columns(missing)}, it has {columns(record)}: a POPE question has {', '.join(FIELDS)}"
            )
        question = text(record, "text", required=True)
        label = text(record, "label", required=True).strip().lower()
        if label not in ("yes", "no"):
            raise ItemError(f"'label' is {short(record['label'])}, must be yes or no: correct it")
        match = _QUESTION.match(question)
        truth = {"label": label, "object": match["object"] if match else None, "image": record["image"]}
        return Sample(identity(record, "question_id", name), question, self.pictures(record), label, truth)


@dataclass(frozen=True)
class BuiltPope(PopeQuestions):
    """The same questions, made by `build_pope` from a COCO instances file at `path`.

    n: how many pictures to draw of those with three objects or more, as published 500; None for all. strategy, seed: as there.
    """

    strategy: str = "random"
    seed: int = 0
    n: int | None = 500

    def usual_folders(self) -> tuple[Path, ...]:
        return picture_folders(self.path)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """What a question file would hold."""
        lists = Coco(self.path, look=False).object_lists()
        return build_pope(lists, self.strategy, self.seed, n=self.n)

    def __len__(self) -> int:
        return len(self.records)

    def items(self) -> Iterator[Item]:
        for record in self.records:
            name = str(record["question_id"])
            yield Item(name, f"question {name}", partial(self.sample, name, record))

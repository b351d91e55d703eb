"""AMBER (Wang et al. 2023, arXiv 2311.07397): descriptions and yes/no questions, with what is in each picture and what a model is likely to make up."""

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
    file_content,
    identity,
    json_document,
    locate,
    short,
    text,
)

QUERIES = {
    "all": "query_all.json",
    "generative": "query_generative.json",
    "discriminative": "query_discriminative.json",
    "existence": "query_discriminative-existence.json",
    "attribute": "query_discriminative-attribute.json",
    "relation": "query_discriminative-relation.json",
}
"""Part of the benchmark → file of the release."""


@dataclass(frozen=True)
class Amber(Reader):
    """The release's `data` folder (or the folder it lies in): annotations.json and query/query_*.json.

    The id is the release's. A generative item asks for a description: truth has "truth" (the objects there, repetitions as
    published) and "hallu" (objects a model is likely to make up). A discriminative one is answered by yes or no: truth has
    "label". Both have "type" (as published, e.g. "discriminative-attribute-state") and "image" (the file name).
    part: one of `QUERIES`. images: the folder of the pictures; default: `image` or `images` in the folder or in `data`.
    """

    path: Path
    images: Path | None = None
    part: str = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        check_folder(self.images)
        if self.part not in QUERIES:
            raise UserError(f"part={self.part!r} is not known, allowed are {', '.join(QUERIES)}: correct it")
        for needed in (self._data / "annotations.json", self._query):
            if not needed.is_file():
                raise UserError(f"{self.called()} has no {needed.name!r}: give the folder of the AMBER release")

    @property
    def _data(self) -> Path:
        return data_folder(self.path)

    @property
    def _query(self) -> Path:
        return self._data / "query" / QUERIES[self.part]

    @cached_property
    def _entries(self) -> list[Any]:
        return self._list(self._query)

    @cached_property
    def annotations(self) -> dict[str, dict[str, Any]]:
        """The release's annotations by id (as text): {"id", "type", "truth", and for generative ones "hallu"}."""
        found: dict[str, dict[str, Any]] = {}
        for number, entry in enumerate(self._list(self._data / "annotations.json")):
            if not isinstance(entry, dict) or not {"id", "type", "truth"} <= entry.keys():
                raise UserError(
                    f"'annotations.json' of {self.called()}, entry {number} is {short(entry)}, must have id, type and truth: "
                    "download it again"
                )
            found[str(entry["id"])] = entry
        return found

    def associations(self) -> dict[str, list[str]]:
        """Object → words that are as good; together they are the words that count as objects (`relation.json`)."""
        loaded = json_document(self._data / "relation.json", f"'relation.json' of {self.called()}")
        if not isinstance(loaded, dict):
            raise UserError(
                f"'relation.json' of {self.called()} is {short(loaded)}, must be an object: download it again"
            )
        return loaded

    def safe_words(self) -> list[str]:
        """Words that are never counted as made up (`safe_words.txt`)."""
        return [
            line.strip() for line in (self._data / "safe_words.txt").read_text("utf-8").splitlines() if line.strip()
        ]

    def __len__(self) -> int:
        return len(self._entries)

    def called(self) -> str:
        return f"AMBER folder {str(self.path)!r}"

    def content(self) -> Iterator[bytes]:
        yield from file_content(self._query)
        yield from file_content(self._data / "annotations.json")

    def items(self) -> Iterator[Item]:
        self.annotations  # noqa: B018 - a file of annotations that is no such is a fault of the data set, not of its items
        for number, entry in enumerate(self._entries):
            name = str(entry.get("id", number)) if isinstance(entry, dict) else str(number)
            yield Item(name, f"{self._query.name!r} entry {number}", partial(self._sample, entry))

    def _sample(self, entry: Any) -> Sample:
        if not isinstance(entry, dict):
            raise ItemError(f"is {short(entry)}, must be an object: correct it")
        if missing := [field for field in ("id", "image", "query") if entry.get(field) is None]:
            raise ItemError(f"has no {columns(missing)}, it has {columns(entry)}: a query has id, image and query")
        name, image = identity(entry, "id", ""), text(entry, "image", required=True)
        known = self.annotations.get(name)
        if known is None:
            raise ItemError(f"id {name} is not in 'annotations.json': use both files of one release")
        truth = {"type": known["type"], "image": image}
        label = None
        if known["type"] == "generative":
            truth |= {key: list(known.get(key) or ()) for key in ("truth", "hallu")}
        else:
            label = str(known["truth"]).strip().lower()
            if label not in ("yes", "no"):
                raise ItemError(f"id {name} has the truth {short(known['truth'])}, must be yes or no: correct it")
            truth["label"] = label
        question = text(entry, "query", required=True)
        return Sample(name, question, self.looked_at(locate(image, self._folders())), label, truth)

    def _folders(self) -> tuple[Path, ...]:
        if self.images is not None:
            return (Path(self.images),)
        roots = dict.fromkeys((self.path, self._data, self._data.parent))
        return tuple(root / name for root in roots for name in ("image", "images"))

    def _list(self, path: Path) -> list[Any]:
        loaded = json_document(path, f"{path.name!r} of {self.called()}")
        if not isinstance(loaded, list):
            raise UserError(f"{path.name!r} of {self.called()} is {short(loaded)}, must be a list: download it again")
        return loaded


def data_folder(path: Path) -> Path:
    """The release's `data` folder: the one given, or the one in it."""
    return path if (path / "annotations.json").is_file() else path / "data"

"""Opening a data set from what a user types: a path, an id on the Hub, or the rendered world."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..pictures import SUFFIXES
from ..sample import BadSample, Sample
from . import hub
from .amber import Amber, data_folder
from .coco import Coco
from .hallusion import HallusionBench
from .hugging_face import HuggingFaceData
from .image_folder import ImageFolder
from .json_lines import JsonLines
from .mme import TASKS, Mme, question_files
from .pope import PopeQuestions
from .reader import Reader
from .scene_data import SceneData

FORMATS: dict[str, type[Reader]] = {
    "folder": ImageFolder,
    "jsonl": JsonLines,
    "pope": PopeQuestions,
    "coco": Coco,
    "amber": Amber,
    "mme": Mme,
    "hallusion": HallusionBench,
    "hf": HuggingFaceData,
    "scenes": SceneData,
}
"""The readers by the name that `format=` takes."""

LOOKED_FOR = (
    "a folder of pictures, a JSON Lines file, a POPE question file, a COCO instances or captions file, "
    "the AMBER folder, the MME folder, HallusionBench.json, a Hugging Face data set (saved folder, parquet, id on the Hub), or scenes:KIND"
)

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # the files of `datasets`' own imagefolder layout
_HEAD = 1 << 16  # bytes of a file's first line that are looked at


def open_data(spec: str | Path, *, format: str | None = None, look: bool = True, **options: Any) -> Reader:
    """The reader for what spec names, with its first item looked at, so that a source that is unusable is refused here.

    spec: a path (see `recognise`), an id on the Hugging Face Hub, or "scenes" / "scenes:KIND" for the rendered world.
    format: one of `FORMATS`, to say what it is instead of having it recognised.
    look: False reads questions and truth without the pictures (see `Reader`).
    options: the other fields of the reader's class; None stands for its default. Raises UserError, one line.
    """
    spec = os.fspath(spec)
    if format is not None and format not in FORMATS:
        raise UserError(
            f"format={format!r} is not known, allowed are {', '.join(FORMATS)}: leave it out to have it recognised"
        )
    format = format or recognise(spec)
    kind = FORMATS[format]
    options = {name: value for name, value in options.items() if value is not None}
    known = [field.name for field in fields(kind) if field.name not in ("path", "source", "look")]
    if unknown := [name for name in options if name not in known]:
        raise UserError(
            f"option {unknown[0]!r} does not go with {spec!r}, read as {format}: allowed are {', '.join(known)}"
        )
    if kind is SceneData:
        _, _, name = spec.partition(":")
        if name and options.setdefault("kind", name) != name:
            raise UserError(f"{spec!r} and kind={options['kind']!r} contradict each other: give one")
        reader = SceneData(**options)  # its pictures are always there
    else:
        reader = kind(os.path.expanduser(spec), look=look, **options)
    next(iter(reader))
    return reader


def recognise(spec: str) -> str:
    """Which of `FORMATS` spec is, from its name, a folder's files, or the first line of a file. Raises UserError.

    "scenes" is always the rendered world; write "./scenes" for a folder of that name. In a folder, arrow and parquet files
    (up to two levels down) or `datasets`' metadata files count before pictures.
    """
    if spec == "scenes" or spec.startswith("scenes:"):
        return "scenes"
    path = Path(spec).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        return _recognise_folder(path)
    if path.is_file():
        if suffix in hub.TABLES:
            return "hf"
        return "folder" if suffix in SUFFIXES else _recognise_file(path)
    file_like = suffix in SUFFIXES or suffix in hub.TABLES or suffix in (".json", ".jsonl", ".ndjson")
    if hub.HUB_ID.fullmatch(spec) and not spec.startswith(".") and not file_like:
        return "hf"
    raise UserError(f"{spec!r} does not exist: correct the path; looked for {LOOKED_FOR}")


def _recognise_folder(path: Path) -> str:
    if hub.is_saved(path) or any((path / name).is_file() for name in _METADATA):
        return "hf"
    if (data_folder(path) / "annotations.json").is_file() and (data_folder(path) / "query").is_dir():
        return "amber"
    if any(question_files(path / task) for task in TASKS):
        return "mme"
    pictures = False
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        endings = {os.path.splitext(name)[1].lower() for name in files if not name.startswith(".")}
        if len(Path(folder).relative_to(path).parts) <= 2 and endings.intersection(hub.TABLES):
            return "hf"
        pictures = pictures or not SUFFIXES.isdisjoint(endings)
    if pictures:
        return "folder"
    raise UserError(f"folder {str(path)!r} holds no pictures and no data set: looked for {LOOKED_FOR}")


def _recognise_file(path: Path) -> str:
    """By the first line that is not empty, which a JSON document, unlike JSON Lines, need not end on."""
    try:
        with path.open("rb") as stream:
            first = next((line for line in iter(lambda: stream.readline(_HEAD), b"") if line.strip()), b"").strip()
            head = first + stream.read(_HEAD)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror}): correct its permissions") from None
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):  # half a document, or a bad line, which the reader will name
        record = None
    if isinstance(record, dict):
        if "images" in record and "annotations" in record:
            return "coco"
        return "pope" if "question_id" in record and "prompt" not in record else "jsonl"
    if first.startswith(b"[") and all(field in head for field in (b'"visual_input"', b'"gt_answer"')):
        return "hallusion"
    if path.suffix.lower() in (".jsonl", ".ndjson") or first.startswith(b"["):
        return "jsonl"  # of a list that reader says what to do with it
    if path.suffix.lower() == ".json" and first.startswith(b"{"):
        return "coco"
    if not first:
        raise UserError(f"{str(path)!r} is empty: give a data set with at least one item")
    raise UserError(
        f"{str(path)!r} is not recognised (it starts with {first[:20]!r}): looked for {LOOKED_FOR}; or say format="
    )


def fingerprint(data: str | Path | Reader | Iterable[Sample]) -> str | None:
    """64 hex digits that tell a data set from others, for a manifest: the same on every machine and at every time.

    A reader or a spec: names and sizes of a folder's files, the content of a single file (not of the pictures it names),
    the commit on the Hub, and the options that decide what the samples are. A list or tuple of samples: their content.
    None for anything else, since it could be read only once.
    """
    if isinstance(data, (str, Path)):
        data = open_data(data)
    if isinstance(data, Reader):
        return data.fingerprint()
    if not isinstance(data, Sequence):
        return None
    digest = hashlib.sha256()
    for item in data:
        parts = (item.id, item.reason) if isinstance(item, BadSample) else (item.id, item.prompt, item.answer)
        digest.update(json.dumps(parts).encode())
        for image in getattr(item, "images", ()):
            digest.update(f"{image.mode}{image.size}".encode() + image.tobytes())
    return digest.hexdigest()

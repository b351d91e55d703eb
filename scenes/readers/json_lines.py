"""JSON Lines: one sample a line."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

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
    locate,
    short,
    text,
)

MAX_LINE = 1 << 24
"""A line longer than this many bytes (16 MB) is not one sample's text, and would be held in memory as a whole."""


@dataclass(frozen=True)
class LineReader(Reader):
    """A file with one JSON object a line, UTF-8; empty lines are skipped. `sample` says what an object means.

    images: the folder that relative picture paths start from; default: `usual_folders`. Absolute paths and paths
    that leave the folder are followed, since the file is the user's own: do not read files from others that you have not
    looked at. Errors name the line.
    """

    path: Path
    images: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", existing_file(self.path))
        check_folder(self.images)

    @abstractmethod
    def sample(self, name: str, record: dict[str, Any]) -> Sample:
        """The sample in one line's object; name is its id when it brings none. Raises ItemError or UserError."""

    def usual_folders(self) -> tuple[Path, ...]:
        """Where pictures are looked for when images is not given: the folder of the file."""
        return (self.path.parent,)

    def called(self) -> str:
        return repr(str(self.path))

    def items(self) -> Iterator[Item]:
        for number, raw in lines(self.path):
            name = f"{self.path.name}:{number}"
            yield Item(name, f"{self.path.name!r} line {number}", partial(self._read_line, name, raw))

    def _read_line(self, name: str, raw: bytes) -> Sample:
        return self.sample(name, parse(raw))

    def content(self) -> Iterator[bytes]:
        return file_content(self.path)

    def pictures(self, record: dict[str, Any]) -> tuple[Image.Image, ...]:
        """The pictures of the field "image": a path, a list of paths, or null for none."""
        if "image" not in record:
            raise ItemError(f"has no 'image', it has {columns(record)}: add 'image' (null for an item without picture)")
        paths = record["image"]
        paths = [] if paths is None else [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) and path.strip() for path in paths):
            raise ItemError(f"'image' is {short(paths)}, must be a path or a list of paths: make it a string")
        if any("\0" in path for path in paths):
            raise ItemError(f"'image' is {short(paths)}, which holds a NUL byte: remove it")
        if remote := next((path for path in paths if "://" in path or path.startswith("data:")), None):
            raise ItemError(
                f"'image' is {short(remote)}, pictures are read from files only: download it and give its path"
            )
        folders = (Path(self.images),) if self.images is not None else self.usual_folders()
        return self.looked_at(*(locate(path, folders) for path in paths))


@dataclass(frozen=True)
class JsonLines(LineReader):
    """Lines of `{"image": path or list of paths or null, "prompt": text, "answer": text, "id": text, "truth": {…}}`.

    answer, id and truth may be missing; other fields are not read. Without id, the id is "file:line".
    prompt: asked of every line in place of its own.
    """

    prompt: str | None = None

    def sample(self, name: str, record: dict[str, Any]) -> Sample:
        prompt = self.prompt or text(record, "prompt", required=True)
        answer = text(record, "answer")
        truth = record.get("truth") or {}
        if not isinstance(truth, dict):
            raise ItemError(f"'truth' is {short(truth)}, must be an object: write it as {{…}}")
        return Sample(identity(record, "id", name), prompt, self.pictures(record), answer, truth)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, each with its number from 1. Raises UserError for a file that cannot be lines."""
    first = True
    try:
        with open(path, "rb") as stream:
            for number in count(1):
                raw = stream.readline(MAX_LINE + 1)
                if not raw:
                    return
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")  # the mark some editors put in front of UTF-8
                if len(raw) > MAX_LINE:
                    raise UserError(
                        f"{path.name!r} line {number} is longer than {MAX_LINE >> 20} MB, so this is not JSON Lines: "
                        "write one object a line"
                    )
                if not raw.strip():
                    continue
                if first:
                    _refuse_other_files(path, raw.lstrip()[:4])
                first = False
                yield number, raw
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({error.strerror}): correct its permissions or copy it again"
        ) from None


def _refuse_other_files(path: Path, start: bytes) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{str(path)!r} is UTF-16, must be UTF-8: save it as UTF-8")
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zX")):
        raise UserError(f"{str(path)!r} is a compressed file: unpack it first")
    if start.startswith(b"["):  # its last element has no comma behind it, and would pass as the only sample
        raise UserError(
            f"{str(path)!r} is a JSON list, must be JSON Lines: write one object a line, without brackets and commas"
        )


def parse(raw: bytes) -> dict[str, Any]:
    """The object in one line. Raises ItemError for a NUL byte, another encoding, what is not JSON, and what is no object."""
    if b"\0" in raw:
        raise ItemError(f"holds a NUL byte (at byte {raw.index(0) + 1}): remove it, the file may be damaged")
    try:
        record = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise ItemError(
            f"is not UTF-8 (byte 0x{raw[error.start]:02X} at byte {error.start + 1}): save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ItemError(f"is not JSON ({error}): write one object in braces a line") from None
    if not isinstance(record, dict):
        raise ItemError(f'is {short(record)}, must be an object: write {{"image": …, "prompt": …}}')
    return record

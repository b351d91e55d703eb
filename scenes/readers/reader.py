"""What every reader has in common: items one at a time, a bad one told apart from a bad data set."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..errors import UserError
from ..pictures import MAX_PIXELS, open_picture
from ..sample import BadSample, Sample

DEFAULT_PROMPT = "Describe the image."
"""What is asked about a picture when nothing else says."""

PROBE = 20
"""When the first so many items are all malformed (or all items of a shorter source), the source itself is refused."""

PLACES = ("path", "source", "images", "look")
"""Options that say where the data lie and not what they are; they do not enter the fingerprint."""


class ItemError(Exception):
    """One item cannot be read. `malformed`: by its form (no JSON, no such column, no such file), which, when every item has
    it, is a fault of the source or of the options; a damaged picture is not."""

    def __init__(self, reason: str, *, malformed: bool = True):
        super().__init__(reason)
        self.malformed = malformed


class Item(NamedTuple):
    """One item before it is read: its id, where it is (for errors; "" when the error will say so itself), how to read it."""

    id: str
    where: str
    read: Callable[[], Sample]  # raises ItemError or UserError


@dataclass(frozen=True, kw_only=True)
class Reader(ABC):
    """A data set as an iterable of `Sample`, with a `BadSample` in the place of each item that cannot be read.

    Nothing is read before it is asked for and nothing is kept: a reader may be iterated again and may be larger than
    memory. `len` works where the number of items is known without reading them. Raises UserError, one line, for a source
    that is missing, empty or malformed as a whole. The fields are the options.

    max_pixels: larger pictures are refused (see `chiasm.scenes.pictures`).
    look: False reads questions and truth only. Samples then have no pictures, and these need not be on this machine: for
    scoring answers that were made elsewhere.
    """

    max_pixels: int = MAX_PIXELS
    look: bool = True

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """The items in order, none of them read yet."""

    @abstractmethod
    def called(self) -> str:
        """What the source is called in an error, e.g. "folder 'photos'"."""

    @abstractmethod
    def content(self) -> Iterator[bytes]:
        """What the fingerprint is made of: the content, or where that is too much, names and sizes; never a place or a time."""

    def __iter__(self) -> Iterator[Sample | BadSample]:
        """All items. Raises UserError when there is none, or when all of them (of the first `PROBE`) are malformed."""
        held: list[BadSample] | None = []  # malformed items, until it is known that the source has others too
        for item, malformed in self._read(0, 1, 1):
            if held is None:
                yield item
            elif malformed and len(held) + 1 < PROBE:
                held.append(item)
            elif malformed:
                raise UserError(
                    f"none of the first {PROBE} items of {self.called()} can be read; the first: {held[0].reason}"
                )
            else:
                yield from held
                held = None
                yield item
        if held:
            raise UserError(f"no item of {self.called()} can be read; the first: {held[0].reason}")

    def __bool__(self) -> bool:
        return True  # and not the length, which may be unknown or slow

    def iterate(self, start: int = 0, step: int = 1, block: int = 1) -> Iterator[Sample | BadSample]:
        """Every `step`-th block of `block` items, the first one at position `start`, without reading the items between: to
        resume a run, or to share it among processes. Joined, the parts are what iterating the reader gives, except that
        they never refuse the source for malformed items, since a part does not speak for the whole (`open_data` has looked
        at its beginning)."""
        if start < 0 or step < 1 or block < 1:
            raise ValueError(
                f"start={start}, step={step}, block={block}: start must be at least 0, the others at least 1"
            )
        for item, _ in self._read(start, step, block):
            yield item

    def _read(self, start: int, step: int, block: int) -> Iterator[tuple[Sample | BadSample, bool]]:
        position = -1
        for position, (name, where, read) in enumerate(self.items()):
            if position < start or (position - start) // block % step:
                continue
            try:
                item, malformed = read(), False
            except (ItemError, UserError) as error:
                reason = f"{where}: {error}" if where else str(error)
                item, malformed = BadSample(name, reason), getattr(error, "malformed", False)
            yield item, malformed
        if position < 0:
            raise UserError(f"{self.called()} is empty: give a data set with at least one item")

    def fingerprint(self) -> str:
        """64 hex digits that tell this data set and these options from others, the same wherever and whenever it is read."""
        digest = hashlib.sha256(type(self).__name__.encode())
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in PLACES}
        digest.update(json.dumps(options, sort_keys=True, default=str).encode())
        for part in self.content():
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    def looked_at(self, *paths: Path) -> tuple[Image.Image, ...]:
        """The pictures at these paths, as `picture` opens them; none when this reader does not look."""
        return tuple(self.picture(path) for path in paths) if self.look else ()

    def picture(self, path: Path) -> Image.Image:
        """The picture at a path; ItemError when there is no such file, UserError when it cannot be used."""
        try:
            exists = path.exists()
        except (OSError, ValueError):  # a name that is too long, or holds a NUL byte: open_picture says so
            exists = True
        if not exists:
            raise ItemError(
                f"picture {str(path)!r} does not exist: correct the path, or say where the pictures are with images="
            )
        return open_picture(path, max_pixels=self.max_pixels)


def json_document(path: Path, called: str) -> Any:
    """What a JSON file holds. Raises UserError, one line, for a file that cannot be read or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{called} cannot be read ({error.strerror}): correct its permissions") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{called} is not JSON ({error}): download it again") from None


def existing_file(path: str | Path) -> Path:
    """The path, when there is a file; UserError otherwise."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder, must be a file: give the path of the file")
    if not path.exists():
        raise UserError(f"{str(path)!r} does not exist: correct the path")
    return path


def file_content(path: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces of 1 MB (the last one shorter)."""
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            yield piece


def check_folder(images: str | Path | None) -> None:
    """Refuses an `images` that is given and is no folder."""
    if images is not None and not Path(images).is_dir():
        raise UserError(f"images={str(images)!r} is not a folder: give the folder the pictures are in")


def locate(name: str, folders: tuple[Path, ...]) -> Path:
    """A picture's path: in the first of the folders that has it, else in the first one."""
    paths = [folder / name for folder in folders]
    for path in paths:
        try:
            if path.exists():
                return path
        except (OSError, ValueError):  # no such name is possible; opening it will say so
            break
    return paths[0]


def text(record: dict[str, Any], key: str, *, required: bool = False) -> str | None:
    """A field that must be text, without NUL bytes and, when required, not blank. Raises ItemError."""
    value = record.get(key)
    if value is None and not required:
        return None
    if key not in record:
        raise ItemError(f"has no {key!r}, it has {columns(record)}: add {key!r}")
    if value is None:
        raise ItemError(f"{key!r} is null, must be text: fill it in")
    if not isinstance(value, str):
        raise ItemError(f"{key!r} is {short(value)}, must be text: make it a string")
    if "\0" in value:
        raise ItemError(f"{key!r} holds a NUL byte: remove it")
    if required and not value.strip():
        raise ItemError(f"{key!r} is blank: fill it in")
    return value


def identity(record: dict[str, Any], key: str, default: str) -> str:
    """The id in a record, as text; a number is taken too."""
    value = record.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ItemError(f"{key!r} is {short(value)}, must be text or a whole number: make it a string")
    return text({key: str(value)}, key, required=True)


def columns(names: Any) -> str:
    """The names of fields, for an error; many are cut short."""
    names = [repr(str(name)) for name in names]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) or "no fields") + more


def short(value: Any) -> str:
    """A value, for an error: on one line and not too long."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 60 else shown[:57] + "…"


def one_line(error: BaseException) -> str:
    """The message of somebody else's exception, on one line and not too long."""
    shown = " ".join(str(error).split()) or type(error).__name__
    return shown if len(shown) <= 300 else shown[:299] + "…"

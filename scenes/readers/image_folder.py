"""A folder of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import UserError
from ..pictures import SUFFIXES
from ..sample import Sample
from .reader import DEFAULT_PROMPT, Item, Reader


@dataclass(frozen=True)
class ImageFolder(Reader):
    """The pictures of a folder, sorted by path, each with the same prompt; the id is the path within the folder.

    A picture is told by the ending of its name (`chiasm.scenes.pictures.SUFFIXES`); other files, and files and folders
    whose name starts with a dot, are passed over. Links to folders are not followed.

    path: the folder; or one picture, which is then the whole data set. recursive: also the pictures in folders within it.
    """

    path: Path
    prompt: str = DEFAULT_PROMPT
    recursive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not self.path.exists():
            raise UserError(f"{str(self.path)!r} does not exist: give a folder of pictures")
        if not self.prompt.strip():
            raise UserError("prompt is blank: give a question or leave it out")

    def names(self) -> list[str]:
        """The paths of the pictures within the folder, with slashes, sorted. Raises UserError when there is none."""
        if self.path.is_file():
            return [self.path.name]
        found, passed_over = [], 0
        for folder, folders, files in os.walk(self.path, onerror=_refuse):
            folders[:] = sorted(name for name in folders if not name.startswith(".")) if self.recursive else []
            for name in files:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                    found.append(Path(folder, name).relative_to(self.path).as_posix())
                else:
                    passed_over += 1
        if not found:
            within = "" if self.recursive else ", folders within it not looked at (recursive=False)"
            raise UserError(
                f"{self.called()} holds no pictures ({passed_over} other files{within}): "
                "give a folder with .jpg, .png, .webp or other picture files"
            )
        return sorted(found)

    def _folder(self) -> Path:
        return self.path.parent if self.path.is_file() else self.path

    def __len__(self) -> int:
        return len(self.names())

    def items(self) -> Iterator[Item]:
        for name in self.names():
            # A name that is not UTF-8 can be opened but not written to a table.
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            yield Item(shown, "", partial(self._read_picture, name, shown))

    def _read_picture(self, name: str, shown: str) -> Sample:
        return Sample(shown, self.prompt, (self.picture(self._folder() / name),))

    def called(self) -> str:
        return f"{'picture' if self.path.is_file() else 'folder'} {str(self.path)!r}"

    def content(self) -> Iterator[bytes]:
        """Names and sizes: reading every picture twice would take too long."""
        for name in self.names():
            yield os.fsencode(name)
            yield str((self._folder() / name).stat().st_size).encode()


def _refuse(error: OSError) -> None:
    raise UserError(f"folder {error.filename!r} cannot be read ({error.strerror}): correct its permissions")

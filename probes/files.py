"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..scenes.errors import UserError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def full_disk_is_told(path: Path) -> Iterator[None]:
    """Turns the error of a full disk (or a full quota) into one line that names the file. Other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"no space left on the disk for {str(path)!r}: what was written before is intact; free some space, then resume"
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder; what is written there becomes `path` at the end, in one step.

    A reader sees the old file or the new one, never a part, even when the process is killed or the machine loses power:
    the content is on the disk before the name is. If the block raises, the temporary file goes and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The real suffix stays last: matplotlib and others go by it.
    temporary = path.with_name(f".writing-{os.getpid()}-{path.name}")
    with full_disk_is_told(path):
        try:
            yield temporary
            _to_disk(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _to_disk(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """The bytes as the file's content, as `written_whole` does it."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder, and needs no such step
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

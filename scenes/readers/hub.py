"""Loading with the `datasets` library: from a folder or file, from the Hub, from the Hub's cache without network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from .reader import file_content, one_line

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
"""What an id on the Hub looks like: `owner/name`, or `name` for the oldest ones."""

TABLES = (".parquet", ".arrow")
"""Endings of files that are loaded as tables."""


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def load(source: str, config: str | None = None, revision: str | None = None) -> Any:
    """A `Dataset` or `IterableDataset`, or a mapping from split to it; streaming wherever it is not on disk as arrow already.

    Raises UserError for what cannot be found, reached or read.
    """
    path = Path(source)
    if not path.exists():
        return _load_from_hub(source, config, revision)
    if (path / "state.json").is_file() and not any(
        path.glob("*.arrow")
    ):  # the library fails on what it saved without rows
        raise UserError(f"data set {source!r} is empty (no .arrow file): give a data set with at least one row")
    import datasets  # takes a second, so only when needed

    try:
        if path.is_dir():
            return (
                datasets.load_from_disk(source)
                if is_saved(path)
                else datasets.load_dataset(source, config, streaming=True)
            )
        kind = path.suffix.lower()
        if kind not in TABLES:
            raise UserError(
                f"{source!r} is not a table, must end in {' or '.join(TABLES)}: give a data set's folder, or convert it"
            )
        return datasets.load_dataset(kind[1:], data_files=source, streaming=True)
    except UserError:
        raise
    except Exception as error:  # the formats' readers raise many kinds; each means the same to a user
        raise UserError(
            f"data set {source!r} cannot be loaded ({one_line(error)}): give a folder that load_dataset or load_from_disk can load"
        ) from error


def _load_from_hub(name: str, config: str | None, revision: str | None) -> Any:
    if not HUB_ID.fullmatch(name):
        raise UserError(
            f"{name!r} does not exist here and is no id on the Hugging Face Hub (owner/name): correct the path"
        )
    import datasets

    try:
        return datasets.load_dataset(name, config, revision=commit(name, revision) or revision, streaming=True)
    except UserError:
        raise
    except ConnectionError as error:
        raise UserError(
            _unreachable(name, "not in its cache, and HF_HUB_OFFLINE is set", "unset it to connect")
        ) from error
    except Exception as error:
        raise UserError(
            f"data set {name!r} of the Hugging Face Hub cannot be loaded ({one_line(error)}): correct the id or config="
        ) from error


@lru_cache
def commit(name: str, revision: str | None) -> str | None:
    """The commit a revision of a data set on the Hub stands for; None without network by the user's choice (HF_HUB_OFFLINE).

    Asked before loading, since the library itself tries for half a minute, in many lines, before it gives up.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=20).sha
    except HfHubHTTPError as error:  # it was reached and said no: missing, private, gated
        raise UserError(
            f"{name!r} is no file or folder here, and the Hugging Face Hub has no such data set for you ({one_line(error)}): "
            "correct the path or id, or log in with `hf auth login`"
        ) from error
    except Exception as error:  # the network libraries' own kinds, which change with their versions
        raise UserError(
            _unreachable(
                name, one_line(error), "connect to the network, or set HF_HUB_OFFLINE=1 to use a copy in its cache"
            )
        ) from error


def _unreachable(name: str, why: str, remedy: str) -> str:
    return (
        f"{name!r} is no file or folder here, and no data set that can be reached on the Hugging Face Hub ({why}): "
        f"correct the path, or {remedy}"
    )


def fetch(address: str) -> bytes:
    """The bytes at an address that a loaded data set gives for a picture (`hf://…`, `zip://…::…`)."""
    import fsspec

    try:
        with fsspec.open(address, "rb") as stream:
            return stream.read()
    except Exception as error:
        raise UserError(
            f"picture {address!r} cannot be fetched ({one_line(error)}): try again, or download the data set"
        ) from error


def content(source: str, revision: str | None) -> Iterator[bytes]:
    """What tells this data set from others: names and sizes of local files, `datasets`' own hash, or the Hub's commit."""
    path = Path(source)
    if not path.exists():
        yield from (source.encode(), str(commit(source, revision) or revision).encode())
        return
    if path.is_file():
        yield from file_content(path)
        return
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if not file.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        yield os.fsencode(relative.as_posix())
        # state.json holds the library's own hash of the content, and its size does not change with it.
        yield file.read_bytes() if file.name == "state.json" else str(file.stat().st_size).encode()

"""The runs of one folder as the pages see them: listed once until something changes, tables read when they are asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..experiments import artifacts
from ..experiments.manifest import PARTIAL, Listed, list_runs
from ..scenes.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

STATES = {
    "complete": ":material/check_circle:", "incomplete": ":material/hourglass:", "broken": ":material/broken_image:",
    "other version": ":material/update:",
}  # fmt: skip
"""Every state a run can be in, with its icon."""

KEPT_TABLES = 64
"""Tables held in memory, the last used."""


class Store:
    """Runs under `root`. A run is named `experiment/folder`, without `.partial`; names that are not listed lead nowhere, so
    nothing outside `root` can be read or deleted by a name."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._seen: tuple[Any, list[Listed]] = ((), [])

    def runs(self) -> list[Listed]:
        """Every run, newest first. Folders are read again only when one has come, gone or changed."""
        now = self._signature()
        before, listed = self._seen
        if now != before:
            listed = sorted(list_runs(self.root), key=lambda run: run.path.name, reverse=True)
            self._seen = now, listed
        return listed

    def run(self, name: str) -> Listed:
        """The run of that name. Raises UserError."""
        for run in self.runs():
            if run_name(run) == name:
                return run
        raise UserError(f"there is no run {name!r} any more: choose another one")

    def tables(self, name: str) -> list[str]:
        """Names of the run's tables. Raises UserError."""
        return artifacts.names(self.run(name).path / "tables", ".parquet")

    def figures(self, name: str) -> list[str]:
        """Names of the run's pictures. Raises UserError."""
        return artifacts.names(self.run(name).path / "figures", ".png")

    def table(self, name: str, table: str) -> pd.DataFrame:
        """One table, not to be changed by who reads it. Raises UserError where it is missing or damaged."""
        path = self.file(name, "tables", f"{table}.parquet")
        return _table(path.parent, path.stem, *_stamp(path))

    def stamp(self, name: str, table: str) -> tuple[int, int]:
        """Changes when the table does. Raises UserError where it is missing."""
        return _stamp(self.file(name, "tables", f"{table}.parquet"))

    def sources(self, table: str) -> list[Source]:
        """Every table of that name, newest run first: a run's own, and those of the models it compares (`<who>.<table>`)."""
        return [source for source in self._catalogue() if source.kind == table]

    def file(self, name: str, *parts: str) -> Path:
        """A file of the run. Raises UserError when it is missing, or leads out of the run's folder."""
        folder = self.run(name).path
        path = folder.joinpath(*parts)
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"run {name!r} has no file {'/'.join(parts)!r}: choose another one")
        return path

    def delete(self, name: str) -> None:
        """Deletes a run's folder with all in it. Raises UserError when it cannot, or when it is a link to elsewhere."""
        path = self.run(name).path
        root = self.root.resolve()
        if path.is_symlink() or path.parent.is_symlink() or path.resolve().parent.parent != root:
            raise UserError(f"run {name!r} is a link to another place: delete it there")
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise UserError(f"run {name!r} cannot be deleted ({error.strerror}): delete its folder by hand") from error

    def _catalogue(self) -> list[Source]:
        """Every table of every run that can be read; a run is looked into again when its folder of tables has changed."""
        found = []
        for run in self.runs():
            if not run.manifest:
                continue
            try:
                changed = (run.path / "tables").stat().st_mtime_ns
            except OSError:
                continue
            found += [Source(run, table) for table in _table_names(run.path / "tables", changed)]
        return found

    def _signature(self) -> tuple:
        """Changes whenever a run comes, goes, or writes its manifest."""
        if not self.root.is_dir():
            return ()
        found = []
        for experiment in _folders(self.root):
            for run in _folders(experiment.path):
                try:
                    found.append((run.path, os.stat(os.path.join(run.path, "manifest.json")).st_mtime_ns))
                except OSError:
                    found.append((run.path, None))
        return tuple(sorted(found, key=lambda one: one[0]))


@dataclass(frozen=True)
class Source:
    """A table of a run."""

    run: Listed
    table: str

    @property
    def kind(self) -> str:
        return self.table.rpartition(".")[2]

    @property
    def run_name(self) -> str:
        return run_name(self.run)

    @property
    def key(self) -> str:
        return f"{self.run_name}:{self.table}"

    @property
    def who(self) -> str:
        """What was measured: the model's short name, or what the run calls it."""
        told = self.table.rpartition(".")[0] or model_name(self.run.manifest)
        return told.rstrip("/").rpartition("/")[2] or self.run.experiment


def run_name(run: Listed) -> str:
    """`experiment/folder`: the same before and after the run is complete."""
    return f"{run.experiment}/{run.path.name.removesuffix(PARTIAL)}"


def model_name(manifest: Mapping[str, Any]) -> str:
    """What the manifest calls the model, or ""."""
    config = manifest.get("config")
    model = manifest.get("model") or (config.get("model") if isinstance(config, Mapping) else None) or ""
    return str(model.get("name") or "" if isinstance(model, Mapping) else model)


def search(runs: Sequence[Listed], words: str) -> list[Listed]:
    """Runs in which every word occurs: in the name, state, model, data, command or settings; case does not matter."""
    wanted = words.lower().split()
    return [run for run in runs if all(word in _text(run) for word in wanted)]


def _text(run: Listed) -> str:
    return f"{run_name(run)} {run.state} {run.detail} {dict(run.manifest)}".lower()


def _folders(path: str | Path) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=KEPT_TABLES)
def _table(folder: Path, name: str, changed: int, size: int) -> pd.DataFrame:
    return artifacts.read_table(folder, name)


@lru_cache(maxsize=4096)
def _table_names(folder: Path, changed: int) -> list[str]:
    return artifacts.names(folder, ".parquet")

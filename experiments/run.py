"""The run store: a folder with everything one experiment produced, from which everything shown can be traced back."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..probes.files import full_disk_is_told, write_whole, written_whole
from ..probes.processes import from_main, is_main
from ..probes.subject import model_facts
from ..scenes.errors import UserError
from . import artifacts
from .machine import library_versions, peak_memory_mb
from .manifest import FORMAT, PARTIAL, Listed, list_runs, read_manifest

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

__all__ = ["FORMAT", "PARTIAL", "Listed", "Run", "list_runs", "load_run"]


class Run:
    """`runs/<experiment>/<time>-<short hash>/`, with the suffix `.partial` until `finish`.

    manifest.json: experiment, config, model, data, seed, command, library versions, times, peak memory, n, skipped;
    tables/*.parquet, arrays/*.safetensors, figures/*.png and *.html, states/ (what a resumed measurement needs), log.txt.
    Every file is written whole or not at all. Use as a context manager: it finishes the run, or, when the block raises,
    leaves it incomplete with the reason in the manifest. On processes other than the main one nothing is written.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = Path(path), manifest
        self.writes = is_main()
        self._spent, self._since = manifest.get("wall_seconds") or 0.0, time.monotonic()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.manifest.get('state')})"

    # -- making and finding --------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        experiment: str,
        config: Mapping[str, Any] | None = None,
        root: str | Path = "runs",
        *,
        seed: int | None = None,
    ) -> Run:
        """A new run. config: everything that was asked for, JSON values (others are written as text).

        Raises UserError when the folder cannot be made.
        """
        _check_name(experiment)
        config = json.loads(json.dumps(dict(config or {}), default=str))
        now = datetime.now(UTC)
        short = hashlib.sha256(json.dumps([experiment, config, now.isoformat()]).encode()).hexdigest()[:6]
        path = Path(root) / experiment / f"{now:%Y%m%d-%H%M%S}-{short}{PARTIAL}"
        manifest = {
            "format": FORMAT,
            "experiment": experiment,
            "state": "incomplete",
            "config": config,
            "seed": config.get("seed") if seed is None else seed,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "started": now.isoformat(timespec="seconds"),
            "versions": library_versions(),
        }
        run = cls(Path(from_main(str(path))), manifest)
        if run.writes:
            try:
                with full_disk_is_told(run.path):
                    run.path.mkdir(parents=True)
            except OSError as error:
                raise UserError(
                    f"run folder {str(run.path)!r} cannot be made ({error.strerror}): choose another place with --out"
                ) from error
            run.note()
        return run

    def resume(self) -> Run:
        """Says that work on an incomplete run goes on. Raises UserError for a complete one."""
        if self.finished:
            raise UserError(f"run {str(self.path)!r} is complete, there is nothing to resume: start a new run")
        self.note(state="incomplete", error=None, resumed=self.manifest.get("resumed", 0) + 1)
        return self

    @property
    def finished(self) -> bool:
        return self.manifest.get("state") == "complete"

    # -- writing -------------------------------------------------------------------------------------------------------

    def note(self, **facts: Any) -> None:
        """Puts facts into the manifest (JSON values; others are written as text)."""
        self._refuse_if_finished()
        peaks = peak_memory_mb()
        before = self.manifest.get("peak_memory_mb") or {}
        self.manifest |= {
            **facts,
            "wall_seconds": round(self._spent + time.monotonic() - self._since, 3),
            "peak_memory_mb": {kind: max(value, before.get(kind, 0.0)) for kind, value in peaks.items()},
        }
        if self.writes:
            text = json.dumps(self.manifest, indent=2, default=str, ensure_ascii=False)
            write_whole(self.path / "manifest.json", text.encode())

    def note_model(self, vlm) -> None:
        """Puts into the manifest which model this is (`measure` does so by itself)."""
        self.note(model=model_facts(vlm))

    def table(self, name: str, table: pd.DataFrame) -> Path:
        """Writes tables/<name>.parquet."""
        return self._write("tables", name, ".parquet", partial(artifacts.write_table, table))

    def array(self, name: str, tensor) -> Path:
        """Writes arrays/<name>.safetensors: a tensor or array, or several by name."""
        return self._write("arrays", name, ".safetensors", partial(artifacts.write_array, name, tensor))

    def figure(self, name: str, picture=None, interactive=None, *, dpi: int = 160) -> list[Path]:
        """Writes figures/<name>.png of a matplotlib figure and figures/<name>.html of a plotly one, either optional.

        The HTML files share one copy of plotly's script, in the same folder, and open without network.
        """
        written = []
        if picture is not None:
            written.append(self._write("figures", name, ".png", partial(picture.savefig, dpi=dpi)))
        if interactive is not None:
            script = partial(interactive.write_html, include_plotlyjs="directory")
            written.append(self._write("figures", name, ".html", script))
        return written

    def log(self, line: str) -> None:
        """Appends a line with the time to log.txt."""
        self._refuse_if_finished()
        if self.writes:
            path = self.path / "log.txt"
            with full_disk_is_told(path), path.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")

    def finish(self) -> Path:
        """Marks the run complete and gives its folder the final name, which is returned."""
        if not self.finished:
            self.note(state="complete", error=None, finished=datetime.now(UTC).isoformat(timespec="seconds"))
            final = self.path.with_name(self.path.name.removesuffix(PARTIAL))
            if self.writes:
                self.path.rename(final)
            self.path = final
        return self.path

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind, error, _traceback) -> None:
        if kind is None:
            self.finish()
        elif not self.finished:
            with suppress(
                UserError, OSError
            ):  # a disk that is full is so for this, too; the first error is the one to show
                self.note(error=" ".join(f"{kind.__name__}: {error}".split()))

    # -- reading -------------------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by its name."""
        return {name: self.read_table(name) for name in artifacts.names(self.path / "tables", ".parquet")}

    def read_table(self, name: str) -> pd.DataFrame:
        """Raises UserError, with the names there are, for one that is not there or cannot be read."""
        return artifacts.read_table(self.path / "tables", name)

    def read_array(self, name: str) -> dict[str, Tensor]:
        """The tensors of arrays/<name>.safetensors by name. Raises as `read_table`."""
        return artifacts.read_array(self.path / "arrays", name)

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _write(self, folder: str, name: str, suffix: str, write: Callable[[Path], Any]) -> Path:
        self._refuse_if_finished()
        _check_name(name)
        path = self.path / folder / f"{name}{suffix}"
        if self.writes:
            with written_whole(path) as temporary:
                write(temporary)
        return path

    def _refuse_if_finished(self) -> None:
        if self.finished:
            raise UserError(f"run {str(self.path)!r} is complete and is not changed any more: start a new run")


def load_run(path: str | Path) -> Run:
    """A run that was made before, complete or not. Raises UserError, as `read_manifest` does."""
    return Run(*read_manifest(path))


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise UserError(f"name {name!r} cannot be a file name: use letters, digits, '_', '-', '+' and '.'")

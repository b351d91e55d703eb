"""Finding runs and reading what their manifests say: light enough for a list of hundreds, as nothing is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..scenes.errors import UserError

FORMAT = 1
"""Version of the folder's layout; a run of another version is refused with one line."""

PARTIAL = ".partial"
"""Ends the name of a run that is not complete."""


def read_manifest(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """(the run's folder, its manifest); a folder that still ends in `.partial` is found by its final name, too.

    Raises UserError, one line, when there is none, when its manifest is damaged, or when it is of another version.
    """
    path = Path(path)
    if not path.is_dir() and path.with_name(path.name + PARTIAL).is_dir():
        path = path.with_name(path.name + PARTIAL)
    if not (path / "manifest.json").is_file():
        raise UserError(
            f"{str(path)!r} is not a run folder (it has no manifest.json): `chiasm runs` lists the runs there are"
        )
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or "format" not in manifest:
            raise ValueError("no format version in it")
    except (OSError, ValueError) as error:
        raise UserError(
            f"manifest of run {str(path)!r} is damaged ({' '.join(str(error).split())}): measure again"
        ) from error
    if manifest["format"] != FORMAT:
        age = "a newer" if str(manifest["format"]) > str(FORMAT) else "an older"
        raise UserError(
            f"run {str(path)!r} has format {manifest['format']}, of {age} version of chiasm; this one reads format {FORMAT}: "
            "measure again, or use that version"
        )
    return path, manifest


@dataclass(frozen=True)
class Listed:
    """One line of the list of runs. state: complete, incomplete, other version, broken; detail: why it is not complete."""

    path: Path
    experiment: str
    state: str
    detail: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)


def list_runs(root: str | Path = "runs") -> list[Listed]:
    """Every run folder under `root`, oldest first in each experiment. Never raises for what is in a run's folder."""
    root = Path(root)
    listed = []
    for path in sorted(root.glob("*/*/")) if root.is_dir() else []:
        if path.name.startswith(".") or not (path.name.endswith(PARTIAL) or (path / "manifest.json").exists()):
            continue
        try:
            manifest = read_manifest(path)[1]
            state = "complete" if manifest.get("state") == "complete" else "incomplete"
            detail = "" if state == "complete" else str(manifest.get("error") or "running, or was killed")
            listed.append(Listed(path, path.parent.name, state, detail, manifest))
        except UserError as error:
            state = "other version" if " has format " in str(error) else "broken"
            listed.append(Listed(path, path.parent.name, state, str(error)))
    return listed

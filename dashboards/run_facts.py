"""What there is to tell of a run: its line in the list, its provenance, its log, its weight on the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..experiments.manifest import Listed
from ..scenes.errors import UserError
from .store import model_name, run_name

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

STATES_SHOWN = {"complete": "✓", "incomplete": "… incomplete", "broken": "✕ broken", "other version": "≠ other version"}

SHOWN_ROWS, LOG_BYTES = 500, 20_000
"""Most rows of a table, and most of a log, on the page."""


def overview(runs: Sequence[Listed]) -> pd.DataFrame:
    """One row a run. A manifest that is odd leaves cells empty."""
    import pandas as pd

    rows = []
    for run in runs:
        manifest = run.manifest
        rows.append({
            "": STATES_SHOWN[run.state],
            "experiment": run.experiment,
            "model": model_of(run),
            "data": _data(manifest),
            "n": _number(manifest.get("n")),
            "started": _when(manifest.get("started")) or run.path.name[:13],
            "minutes": None if (seconds := _number(manifest.get("wall_seconds"))) is None else seconds / 60,
            "note": run.detail,
            "name": run_name(run),
        })  # fmt: skip
    return pd.DataFrame(rows).astype({"n": "Float64", "minutes": "Float64"})


def model_of(run: Listed) -> str:
    """The model's name, "" where it is not known."""
    return model_name(run.manifest)


def provenance(run: Listed) -> dict[str, str]:
    """What was measured, on what, when and with what, in words; empty when the manifest cannot be read."""
    manifest = run.manifest
    if not manifest:
        return {}
    model, data = _mapping(manifest.get("model")), _mapping(manifest.get("data"))
    peak = _mapping(manifest.get("peak_memory_mb"))
    versions = _mapping(manifest.get("versions"))
    seconds, parameters = _number(manifest.get("wall_seconds")), _number(model.get("parameters"))
    facts = {
        "State": run.state,
        "Model": model_of(run),
        "Weights": " · ".join(str(model[key]) for key in ("weights", "revision") if model.get(key)),
        "Family": " · ".join(filter(None, [str(model.get("family") or ""), f"{parameters:,.0f} parameters" if parameters else ""])),
        "Device, type": " · ".join(str(model[key]) for key in ("device", "dtype") if model.get(key)),
        "Data": _data(manifest),
        "Data fingerprint": str(data.get("fingerprint") or ""),
        "Samples": "" if manifest.get("n") is None else f"{manifest['n']} measured, {manifest.get('skipped') or 0} skipped",
        "Seed": "" if manifest.get("seed") is None else str(manifest["seed"]),
        "Started": _when(manifest.get("started")),
        "Finished": _when(manifest.get("finished")),
        "Time": "" if seconds is None else f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.1f} min",
        "Memory": ", ".join(f"{kind} {value:,.0f} MiB at most" for kind, value in peak.items() if _number(value) is not None),
        "Versions": " · ".join(f"{name} {versions[name]}" for name in ("chiasm", "python", "torch", "transformers") if name in versions),
        "Folder": str(run.path),
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value}


def weight(path: Path) -> tuple[int, int]:
    """(number of files, bytes) of a folder; links count as they are."""
    sizes = [os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(path) for name in names]
    return len(sizes), sum(sizes)


def log_tail(path: Path) -> str:
    """The end of a log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read().decode("utf-8", "replace")


def checked_picture(path: Path) -> Image.Image:
    """A figure of a run. Raises UserError when the file is damaged."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"figure {path.name!r} cannot be read ({' '.join(str(error).split())}): measure again"
        ) from error


def _data(manifest: Mapping[str, Any]) -> str:
    data = manifest.get("data") or _mapping(manifest.get("config")).get("data") or ""
    return str(data.get("name") or "" if isinstance(data, Mapping) else data)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _when(value: Any) -> str:
    try:
        return f"{datetime.fromisoformat(str(value)):%Y-%m-%d %H:%M}"
    except ValueError:
        return ""

"""Trained parts beside a model: a folder with the weights (safetensors) and what they are of (JSON)."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ..probes.files import write_whole
from ..scenes.errors import UserError

WEIGHTS, SETTINGS = "weights.safetensors", "settings.json"


def save_part(part: nn.Module, folder: str | Path, settings: dict) -> Path:
    """Writes the module's state and its settings; the weights are there before the settings are."""
    folder = Path(folder)
    state = {name: value.detach().cpu().contiguous() for name, value in part.state_dict().items()}
    write_whole(folder / WEIGHTS, save(state))
    write_whole(folder / SETTINGS, json.dumps(settings, indent=2).encode())
    return folder


def part_settings(folder: str | Path, kind: str) -> dict:
    """The settings of a saved part of this kind. Raises UserError for a folder that holds none."""
    path = Path(folder) / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder)!r} holds no {kind}: give the folder that its save() wrote") from error
    if not isinstance(settings, dict) or settings.get("kind") != kind:
        raise UserError(f"{str(path)!r} is not of {kind}: give the folder that its save() wrote")
    return settings


def load_weights(part: nn.Module, folder: str | Path) -> None:
    """The saved state into a module made by the saved settings. Raises UserError where they do not fit."""
    path = Path(folder) / WEIGHTS
    try:
        part.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{str(path)!r} does not fit its settings or this model ({' '.join(str(error).split())})"
        ) from error

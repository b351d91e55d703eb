"""Checkpoints after a kill: which of them are complete, since a process may die while it writes one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME


def last_complete_checkpoint(folder: str | Path, processes: int = 1) -> Path | None:
    """The newest checkpoint of a run that was written to its end, or None.

    The Trainer writes the state last, and only then removes older checkpoints: a state that can be read and the random
    states of all processes mean that everything is there.
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if is_complete(path, processes):
            return path
    return None


def is_complete(path: Path, processes: int = 1) -> bool:
    try:
        state = json.loads((path / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    random = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return state.get("global_step") == int(path.name.split("-")[1]) and all((path / name).is_file() for name in random)

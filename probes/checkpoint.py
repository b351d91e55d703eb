"""The state of a measurement on disk: what the probes have accumulated, where in the data, what was skipped."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..scenes.errors import UserError
from .files import write_whole
from .loader import Skipped

FORMAT = 1


@dataclass
class Checkpoint:
    """position: items of the data that are done with; n: how many of them were measured. done: the data are at their end.

    setup: what must be the same when the measurement is resumed, by name (JSON values). seconds: time spent measuring.
    states: the state of each probe by its name, itself by state name; a list of tensors is a list state.
    """

    setup: dict[str, Any]
    position: int = 0
    n: int = 0
    done: bool = False
    seconds: float = 0.0
    skipped: list[Skipped] = field(default_factory=list)
    updates: dict[str, int] = field(default_factory=dict)
    states: dict[str, dict[str, Tensor | list[Tensor]]] = field(default_factory=dict)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """One safetensors file: the states, and the rest as JSON in its header, so that the two cannot disagree.

    Raises UserError when the disk is full; the checkpoint that was there stays.
    """
    facts = asdict(checkpoint) | {"format": FORMAT}
    tensors, layout = {}, {}
    for probe, states in facts.pop("states").items():
        layout[probe] = {}
        for name, value in states.items():
            layout[probe][name] = len(value) if isinstance(value, list) else None
            for i, tensor in enumerate(value if isinstance(value, list) else [value]):
                # A copy: safetensors refuses tensors that share memory.
                tensors[f"{probe}/{name}/{i}"] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    facts["layout"] = layout
    write_whole(path, save(tensors, {"chiasm": json.dumps(facts)}))


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint written at `path`. Raises UserError when it is damaged or of another version."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["chiasm"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {str(path)!r} cannot be read ({reason}): start a new run") from error
    if facts.pop("format") != FORMAT:
        raise UserError(f"checkpoint {str(path)!r} was written by another version of chiasm: start a new run")
    states: dict[str, dict[str, Tensor | list[Tensor]]] = {}
    for probe, layout in facts.pop("layout").items():
        states[probe] = {}
        for name, length in layout.items():
            parts = [tensors[f"{probe}/{name}/{i}"] for i in range(1 if length is None else length)]
            states[probe][name] = parts[0] if length is None else parts
    facts["skipped"] = [Skipped(*entry) for entry in facts["skipped"]]
    return Checkpoint(**facts, states=states)


def check_setup(checkpoint: Checkpoint, setup: dict[str, Any], where: Path) -> None:
    """Raises UserError naming the first thing that is not as it was when the measurement began."""
    for name, now in setup.items():
        before = checkpoint.setup.get(name)
        if before != now:
            if isinstance(before, dict) and isinstance(now, dict):
                changed = next(key for key in {**before, **now} if before.get(key) != now.get(key))
                before, now = f"{changed} {before.get(changed)}", f"{changed} {now.get(changed)}"
            raise UserError(
                f"{str(where)!r} was begun with another {name} ({_short(before)}, now {_short(now)}): "
                "resume with the same, or start a new run"
            )


def _short(value: Any) -> str:
    text = str(value)
    if re.fullmatch("[0-9a-f]{16,}", text):  # a hash: its beginning tells it from another
        return text[:12]
    return text if len(text) <= 60 else text[:59] + "…"

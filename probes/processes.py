"""Several processes measuring together, as `accelerate launch` starts them; one process is the simple case of it."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any


def _group():
    """torch.distributed when this process is connected with others. Asking must not cost the import of torch."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def join_processes() -> None:
    """Connects this process with the others of its launch. Does nothing when it was not started with others."""
    if _group() is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState  # only here: a single process must not pay for it

        atexit.register(PartialState().destroy_process_group)  # else its threads may abort a process that is done


def n_processes() -> int:
    return dist.get_world_size() if (dist := _group()) else 1


def process_index() -> int:
    return dist.get_rank() if (dist := _group()) else 0


def is_main() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return process_index() == 0


def gathered(value: Any) -> list[Any]:
    """The value of every process, in their order, on every process. All processes must call it."""
    if n_processes() == 1:
        return [value]
    values = [None] * n_processes()
    _group().all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """The main process's value, on every process. All processes must call it."""
    if n_processes() == 1:
        return value
    values = [value]
    _group().broadcast_object_list(values, src=0)
    return values[0]

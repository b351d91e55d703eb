"""What the command was told, on its way from the command line to the script of every window."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

VARIABLE = "CHIASM_DASHBOARD"
"""Name of the environment variable that carries the settings, as a JSON object; those not in it are the defaults."""


@dataclass(frozen=True)
class Settings:
    """model: what `open_vlm` takes; adapter: a PEFT adapter's folder; runs: folder of the runs; port: None for any that is free."""

    model: str = "organism"
    adapter: str | None = None
    device: str | None = None
    runs: str = "runs"
    port: int | None = None


def told() -> Settings:
    """The settings of this process."""
    return Settings(**json.loads(os.environ.get(VARIABLE, "{}")))

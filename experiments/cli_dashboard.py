"""`chiasm dashboard`: hands over to the process that serves the pages."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def dashboard(
    model: o.Model = "organism",
    adapter: o.Adapter = None,
    device: o.Device = None,
    runs: Annotated[
        Path, typer.Option("--runs", "--out", "-o", help="Folder of the runs to show.", metavar="FOLDER")
    ] = o.RUNS,
    port: Annotated[
        int | None, typer.Option(help="Default: the first free one from 8501 on.", min=1, max=65535, metavar="N")
    ] = None,
) -> None:
    """Look at a model, change it and browse results in a browser. Serves this machine only; prints the address."""
    told = {"model": model, "adapter": adapter, "device": device, "runs": str(runs), "port": port}
    os.environ["CHIASM_DASHBOARD"] = json.dumps(told)
    sys.stdout.flush()
    os.execv(
        sys.executable, [sys.executable, "-m", "chiasm.dashboards"]
    )  # experiments import nothing that is above them

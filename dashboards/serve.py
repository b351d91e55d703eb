"""The server: Streamlit on this machine's own address, with the look of the report."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from ..experiments.style import BLUE, FAINT, INK, PAPER
from ..scenes.errors import UserError
from .settings import Settings, told

ADDRESS = "127.0.0.1"
"""Nobody on the network sees it: a page of it runs a model for whoever asks."""

PORTS = range(8501, 8531)
"""Tried in this order where no port is asked for."""

UPLOAD_MB = 20
"""Largest picture that the server takes."""

DARK = {"primaryColor": "#2384c6", "backgroundColor": "#14171c", "secondaryBackgroundColor": "#1e232b", "textColor": "#e8eaee", "borderColor": "#363c47"}  # fmt: skip
LIGHT = {"primaryColor": BLUE, "backgroundColor": PAPER, "secondaryBackgroundColor": "#f4f6f8", "textColor": INK, "borderColor": FAINT}  # fmt: skip


def options(port: int) -> dict[str, str]:
    """What Streamlit is told, by the names of its configuration."""
    return {
        "server.address": ADDRESS,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": str(UPLOAD_MB),
        "browser.serverAddress": ADDRESS,
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "logger.hideWelcomeMessage": "true",
        **{f"theme.light.{name}": value for name, value in LIGHT.items()},
        **{f"theme.dark.{name}": value for name, value in DARK.items()},
    }


def free_port(asked: int | None) -> int:
    """The port asked for, or the first of `PORTS` that is free. Raises UserError."""
    for port in PORTS if asked is None else [asked]:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((ADDRESS, port))
                return port
            except (OSError, OverflowError):
                continue
    if asked is None:
        raise UserError(f"ports {PORTS[0]} to {PORTS[-1]} are all in use: name a free one with --port")
    raise UserError(f"port {asked} cannot be used: name another one with --port, or leave it out")


def serve(settings: Settings) -> None:
    """Serves until it is interrupted. Raises UserError for a port that is in use."""
    from streamlit.web import cli

    port = free_port(settings.port)
    print(f"chiasm dashboard: http://{ADDRESS}:{port}  (Ctrl-C ends it)", flush=True)
    script = str(Path(__file__).with_name("window") / "app.py")
    flags = [f"--{name}={value}" for name, value in options(port).items()]
    cli.main(["run", script, *flags], prog_name="chiasm dashboard", standalone_mode=False)


def main() -> None:
    """Exit codes as those of `chiasm`."""
    try:
        serve(told())
    except UserError as error:
        print(f"chiasm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)

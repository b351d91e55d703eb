"""The pictures of docs/dashboard.md, drawn anew: `python -m tests.dashboards.pictures [RUNS]`, in the folder of the project.

RUNS: a folder of runs to show, kept for the next time; made first, in a few minutes, where it is not there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from .browsing import PHONE, Window, browser, served

DOCS = Path(__file__).parents[2] / "docs" / "dashboard"

COMMANDS = (
    "measure --limit 32",
    "measure --limit 32 --model organism/aligned",
    "evaluate chair-scenes --limit 60 --method greedy --method vcd --method damro",
    "pairs -n 120 --out runs/pairs/scenes",
    "tune --pairs runs/pairs/scenes --method recommended --max-steps 40 --held-out 16 --batch-size 8",
)


def make_runs(folder: Path) -> None:
    """What a newcomer's first hour leaves, in `folder`/runs."""
    for command in COMMANDS:
        line = [sys.executable, "-m", "chiasm.experiments.cli", *command.split()]
        subprocess.run(line, cwd=folder, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def keep(window: Window, name: str) -> None:
    """The window as a picture of 256 colours, chosen so that none is far from its own, which keeps it small."""
    path = DOCS / f"{name}.png"
    window.settle().page.mouse.move(0, 0)
    window.page.wait_for_timeout(600)
    window.picture(path)
    Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


def look(window: Window) -> None:
    window.open().generate()
    window.words().get_by_text("umbrella").first.click()
    window.settle()


def draw(chromium, address: str) -> None:
    """Every picture."""
    window = Window(chromium, address)
    look(window)
    keep(window, "look")
    keep(window.open("steer"), "steer")
    window.open("lenses").page.locator(".js-plotly-plot").first.wait_for()
    keep(window, "lenses")
    keep(window.open("hallucination"), "hallucination")
    window.choose("Answers").page.locator("[class*=st-key-hallucination_item_]").first.scroll_into_view_if_needed()
    keep(window, "answers")
    window.open("tuning").page.locator(".js-plotly-plot").first.wait_for()
    keep(window, "tuning")
    keep(window.open("runs"), "runs")
    window.close()
    for name, how in (("dark", {"dark": True}), ("phone", {"size": PHONE})):
        window = Window(chromium, address, **how)
        look(window)
        keep(window, name)
        window.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/runs").resolve()
        if not runs.is_dir():
            runs.parent.mkdir(parents=True, exist_ok=True)
            make_runs(runs.parent)
        with browser() as chromium, served(runs, Path(scratch) / "server.log") as (address, _):
            draw(chromium, address)


if __name__ == "__main__":
    main()

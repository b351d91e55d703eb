"""How far a measurement is: a bar on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

logger = logging.getLogger("chiasm")

LOG_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


class _Rate(TextColumn):
    def __init__(self):
        super().__init__("")

    def render(self, task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "–/s", style="cyan")


class Meter:
    """A context manager that is told of every batch by `advance`.

    total: number of items, or None when it is not known. done: items already done (of a resumed run). show: False for
    silence. log: gets the lines meant for people who look later; they also go to the logger "chiasm". doing, did: what is
    going on, in the bar and in the lines.
    """

    def __init__(
        self,
        total: int | None,
        *,
        done: int = 0,
        show: bool = True,
        log: Callable[[str], None] | None = None,
        doing: str = "measuring",
        did: str = "measured",
    ):
        self.total, self.done, self.began_at, self.bad = total, done, done, 0
        self.show, self.log, self.doing, self.did, self.said = show, log, doing, did, ""
        self.console = Console(stderr=True)

    def __enter__(self) -> Meter:
        self.start = self.told = time.monotonic()
        self.bar = None
        if self.show and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("spent"),
                TimeElapsedColumn(),
                console=self.console,
                transient=False,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.doing, total=self.total, completed=self.done)
        return self

    def __exit__(self, *_) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, items: int, bad: int = 0) -> None:
        """`items` more were read, `bad` of them skipped."""
        self.done += items
        self.bad += bad
        if self.bar:
            skipped = f" ({self.bad} skipped)" if self.bad else ""
            said = f" · {self.said}" if self.said else ""
            self.bar.update(self.task, advance=items, description=f"{self.doing}{skipped}{said}")
        elif time.monotonic() - self.told > LOG_EVERY:
            self.told = time.monotonic()
            self.tell(self.line())

    def say(self, text: str) -> None:
        """What stands beside the numbers from now on."""
        self.said = text

    def line(self) -> str:
        """One line: done, of how many, rate, time left."""
        rate = (self.done - self.began_at) / max(time.monotonic() - self.start, 1e-9)
        line = f"{self.did} {self.done}" + (f" of {self.total}" if self.total is not None else "") + f", {rate:.1f}/s"
        if self.total is not None and rate:
            line += f", {(self.total - self.done) / rate:.0f} s left"
        line += f", {self.bad} skipped" if self.bad else ""
        return line + (f", {self.said}" if self.said else "")

    def tell(self, line: str) -> None:
        if self.log:
            self.log(line)
        if self.show:
            logger.info(line)

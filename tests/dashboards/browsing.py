"""The dashboard in a real browser: its server, Debian's chromium driven by Playwright, and what a user's hand does there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from chiasm.dashboards.settings import VARIABLE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = None
if find_spec("playwright") is None:
    MISSING = "the tests in a browser need playwright: pip install playwright"
elif CHROMIUM is None:
    MISSING = "the tests in a browser need chromium: apt install chromium"

HOST = "127.0.0.1"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = 60_000
"""Milliseconds that something may take to appear; most takes a few hundred."""

WIDE, PHONE = (1280, 800), (390, 844)


@contextmanager
def served(runs: Path, log: Path) -> Iterator[tuple[str, float]]:
    """(address, when it was started) of a dashboard with the organism over these runs."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {VARIABLE: json.dumps({"runs": runs.name, "device": "cpu", "port": port})}
    start = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "chiasm.dashboards"],
            cwd=runs.parent,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        while True:
            try:
                socket.create_connection((HOST, port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() - start > 120:
                    raise RuntimeError(f"the dashboard did not start: {log.read_text()}") from None
                time.sleep(0.02)
        yield f"http://{HOST}:{port}", start
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def browser() -> Iterator:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield opened
        finally:
            opened.close()


class Window:
    """A window of its own session. `complaints` are errors of its console and requests to other machines."""

    def __init__(self, browser, address: str, size: tuple[int, int] = WIDE, *, dark: bool = False):
        self.address, self.complaints = address, []
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light",
            reduced_motion="reduce", locale="en-GB",
        )  # fmt: skip
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("request", self._asked)

    def _heard(self, message) -> None:
        # Of a page below the first, Streamlit's client asks for its settings beside the page before it asks above it.
        expected = re.search(r"/\w+/_stcore/", message.location.get("url", "")) and "404" in message.text
        if message.type == "error" and not expected:
            self.complaints.append(f"console: {message.text}")

    def _asked(self, request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname != HOST:
            self.complaints.append(f"request: {request.url}")

    def open(self, path: str = "") -> Window:
        """Opens a page by its address."""
        self.page.goto(f"{self.address}/{path}")
        self.page.locator("h1").first.wait_for()
        return self.settle()

    def go(self, title: str) -> Window:
        """Opens a page by its link, as a user does; the session stays."""
        self.page.get_by_test_id("stTopNavLink").filter(has_text=title).click()
        self.page.locator("h1", has_text=title).wait_for()
        return self.settle()

    def settle(self) -> Window:
        """Waits until the page is drawn: nothing runs, nothing is old, nothing is on its way."""
        calm = (
            "() => document.querySelector('[data-testid=stApp][data-test-script-state=notRunning]')"
            " && !document.querySelector('[data-testid=stSkeleton], [data-testid=stSpinner], [data-stale=true]')"
            " && [...document.images].every(image => image.complete)"
        )
        self.page.wait_for_timeout(120)
        self.page.wait_for_function(calm)
        self.page.wait_for_timeout(80)
        self.page.wait_for_function(calm)
        return self

    def choose(self, label: str) -> Window:
        """One of a group of choices."""
        self.page.get_by_test_id("stButtonGroup").get_by_text(label, exact=True).first.click()
        return self.settle()

    def press(self, label: str) -> Window:
        self.page.get_by_role("button", name=label).first.click()
        return self

    def generate(self) -> Window:
        """On the page Look: has an answer written and waits for it."""
        self.press("Generate")
        self.page.get_by_text(re.compile(r"\d+ tokens in")).wait_for()
        return self.settle()

    def words(self):
        """On the page Look: the words of the answer, as choices."""
        return self.page.get_by_role("radiogroup", name="Answer: choose a word").get_by_role("radio")

    def overlay(self):
        """On the page Look: the picture with where the chosen word looked."""
        return self.page.get_by_alt_text(re.compile("^Where the word"))

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate("document.scrollingElement.scrollWidth > innerWidth + 1")

    def told_errors(self) -> list[str]:
        """Errors that the page shows."""
        kinds = "[data-testid=stAlertContentError], [data-testid=stException], [role=dialog]"
        return self.page.locator(kinds).all_inner_texts()

    def picture(self, path: Path, *, whole: bool = False) -> Window:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=whole)
        return self

    def close(self) -> None:
        self.context.close()

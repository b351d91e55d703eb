"""The frame around the pages: which there are, what they are called, and how one leads to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module

import streamlit as st
from PIL import Image, ImageDraw

from ..experiments.style import BLUE, VERMILION
from .session import shown_error, warming

STYLE = """<style>
.stMainBlockContainer { padding-top: 4.2rem; padding-bottom: 3rem; }
.stMainBlockContainer h1 { font-size: 1.9rem; padding: 0.2rem 0 0.4rem; }
</style>"""
"""More of the window for what is shown than Streamlit leaves."""

PAGES = {
    "look": ("Look", ":material/visibility:"),
    "steer": ("Steer", ":material/tune:"),
    "lenses": ("Lenses", ":material/query_stats:"),
    "hallucination": ("Hallucination", ":material/fact_check:"),
    "tuning": ("Tuning", ":material/model_training:"),
    "runs": ("Runs", ":material/folder_open:"),
}
"""Module of each page (and its address) -> its title and icon."""


def draw() -> None:
    """The whole of the window: the list of pages, and the one that is open."""
    st.set_page_config(page_title="chiasm", page_icon=_icon(), layout="wide")
    st.html(STYLE)
    st.navigation([*(page(name) for name in PAGES), _named_first()], position="top").run()
    warming()


@cache
def _icon() -> Image.Image:
    """A chiasm. Streamlit's own icons for the browser's tab would come from the network."""
    icon = Image.new("RGBA", (64, 64))
    pen = ImageDraw.Draw(icon)
    pen.line((10, 10, 54, 54), fill=VERMILION, width=13)
    pen.line((10, 54, 54, 10), fill=BLUE, width=13)
    return icon


def page(name: str):
    """The page as Streamlit knows it. Its module is imported when it is opened, not before."""
    title, icon = PAGES[name]
    if name == next(iter(PAGES)):
        return st.Page(_opened(name), title=title, icon=icon, url_path="", default=True)
    return st.Page(_opened(name), title=title, icon=icon, url_path=name)


def _named_first():
    """The first page answers at the address without a name alone; this leads there from its name."""
    name = next(iter(PAGES))
    return st.Page(lambda: go(name), title=PAGES[name][0], url_path=name, visibility="hidden")


def page_alone(name: str) -> None:
    """A page without the frame, as tests draw it."""
    _opened(name)()


def go(name: str) -> None:
    """Leaves this page for another."""
    st.switch_page(page(name))


def compare(runs: Sequence[str]) -> None:
    """Leaves this page for Lenses, opened with these runs, by name."""
    for key in [key for key in st.session_state if str(key).startswith("lenses_runs_")]:
        del st.session_state[key]
    st.session_state["lenses_asked"] = list(runs)
    go("lenses")


def _opened(name: str) -> Callable[[], None]:
    def opened() -> None:
        with shown_error():  # of a page that fails the others know nothing
            import_module(f".pages.{name}", __package__).page()

    return opened

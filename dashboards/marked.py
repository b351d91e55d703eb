"""Texts with words marked, as HTML that is readable on a light and on a dark page, and without colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ..experiments.style import BLUE, GREY, VERMILION

PLAIN, BAD, GOOD, FAINT = "", "bad", "good", "faint"
"""What a piece of text is: as it is; made up or false; what stands there instead; looked at and left."""

Piece = tuple[str, str]
"""(text, one of the four)"""

STYLE = f"""<style>
.chiasm-text {{ line-height: 1.65; overflow-wrap: anywhere; margin: 0; }}
.chiasm-text mark {{ color: inherit; background: none; border-radius: .2em; padding: .05em .15em; }}
.chiasm-text mark.bad {{ background: color-mix(in srgb, {VERMILION} 26%, transparent); text-decoration: underline wavy {VERMILION} 1.5px; text-underline-offset: .2em; }}
.chiasm-text mark.good {{ background: color-mix(in srgb, {BLUE} 26%, transparent); text-decoration: underline solid {BLUE} 2px; text-underline-offset: .2em; }}
.chiasm-text mark.faint {{ text-decoration: underline dotted {GREY} 1.5px; text-underline-offset: .2em; padding: 0; }}
.chiasm-said {{ display: grid; grid-template-columns: minmax(7rem, 10rem) 1fr; gap: .35rem 1rem; align-items: baseline; padding: .45rem 0; border-top: 1px solid color-mix(in srgb, currentColor 14%, transparent); }}
.chiasm-said .way {{ font-weight: 600; overflow-wrap: anywhere; }}
.chiasm-said .verdict {{ font-size: .85em; opacity: .85; }}
@media (max-width: 640px) {{ .chiasm-said {{ grid-template-columns: 1fr; }} }}
</style>"""
"""Given to a page once. Each mark has an underline of its own, so that colour is not all that tells it."""


def as_html(pieces: Iterable[Piece]) -> str:
    """The text, every sign of it escaped."""
    inside = "".join(f'<mark class="{kind}">{escape(text)}</mark>' if kind else escape(text) for text, kind in pieces)
    return f'<p class="chiasm-text">{inside}</p>'


def pieces_of(text: str, places: Sequence[tuple[int, int]], kind: str = BAD) -> list[Piece]:
    """The text cut at the places (start, end) that are marked."""
    found, done = [], 0
    for start, end in sorted(places):
        if start < done:
            continue
        found += [(text[done:start], PLAIN), (text[start:end], kind)]
        done = end
    return [piece for piece in [*found, (text[done:], PLAIN)] if piece[0]]


def said_html(way: str, pieces: Iterable[Piece], verdict: str) -> str:
    """One method's answer: its name, the text, and what is to be said of it."""
    return (
        f'<div class="chiasm-said"><div class="way">{escape(way)}</div><div>{as_html(pieces)}'
        f'<div class="verdict">{escape(verdict)}</div></div></div>'
    )

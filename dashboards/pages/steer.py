"""The page Steer: one picture, one prompt, and two answers side by side: the model's own, and the one under a change."""

from __future__ import annotations

import time
from contextlib import closing
from hashlib import sha256

import streamlit as st

from ...experiments.ready_directions import ready_directions
from ...experiments.style import VERMILION
from ...steering import Direction
from .. import marked
from ..changes import Controls, Panel, answering, compared, scene_of, words_changed
from ..directions_at_hand import Ready
from ..marked import PLAIN, as_html
from ..pictures import Chosen, choose_picture, shown
from ..session import open_model_here, shown_error
from ..settings import told
from ..steer_controls import change_controls, subject

KEPT_ANSWERS = 128
"""Answers a window remembers, so that going back to a setting costs nothing."""

REFRESH = 0.3
"""Seconds between two looks at an answer that is still being written; quick ones come at once."""

STYLE = f"""{marked.STYLE}<style>
.chiasm-text mark.gone {{ background: color-mix(in srgb, {VERMILION} 22%, transparent); text-decoration: line-through {VERMILION} 2px; }}
.chiasm-text {{ white-space: pre-wrap; }}
</style>"""


def page() -> None:
    """Lays the page out."""
    st.title("Steer")
    vlm = open_model_here()
    st.html(STYLE)
    left, right = st.columns([3, 9], gap="medium")
    chosen = None
    with left, shown_error():
        picture_place = st.container()
        chosen = choose_picture("steer")
        if chosen is not None:
            picture_place.image(shown(chosen.image, chosen.sample, 448), width="stretch")
    with right:
        plain_side, changed_side = st.columns(2)
        controls, tokens = change_controls(vlm)
    if chosen is None:
        plain_side.info("Choose a picture and a prompt.")
        return
    with shown_error():
        _answers(vlm, chosen, controls, tokens, plain_side, changed_side)
    settings, scene = told(), scene_of(chosen.image, chosen.sample)
    _code(Panel(controls, chosen.prompt, scene, settings.model, settings.adapter, settings.device, tokens))


# -- answers -----------------------------------------------------------------------------------------------------------


def _answers(vlm, chosen: Chosen, controls: Controls, tokens: int, plain_side, changed_side) -> None:
    with plain_side, st.container(border=True, height="stretch"):
        st.markdown("**Plain**")
        plain_text, plain_note = st.empty(), st.empty()
    with changed_side, st.container(border=True, height="stretch"):
        st.markdown("**Changed**")
        changed_text, changed_note, failed = st.empty(), st.empty(), st.container()
    plain, took = _answer(vlm, chosen, Controls(), None, tokens, plain_text)
    plain_text.html(as_html([(plain, PLAIN)]))
    plain_note.caption(f"{took:.2f} s")
    with failed, shown_error():
        change = controls.change(vlm, _direction(vlm, controls, chosen))
        if change is None:
            changed_note.caption("Nothing is changed yet. Choose below.")
            return
        changed, took = _answer(vlm, chosen, controls, change, tokens, changed_text)
        was, now = compared(plain, changed)
        plain_text.html(as_html(was))
        changed_text.html(as_html(now))
        gone, new = words_changed(plain, changed)
        said = f"{gone} words gone, {new} new" if gone or new else "the answer is the same"
        changed_note.caption(f"{change.name}: {said} · {took:.2f} s")


def _answer(vlm, chosen: Chosen, controls: Controls, change, tokens: int, place) -> tuple[str, float]:
    """(the answer, seconds it took when it was made), shown at `place` while it is written; one that was given before is remembered.

    A control that is moved meanwhile ends it: Streamlit stops the script where it writes, which closes the stream.
    """
    kept = st.session_state.setdefault("steer_answers", {})
    key = (vlm.name, sha256(chosen.image.tobytes()).hexdigest(), chosen.image.size, chosen.prompt, tokens, controls)
    if key not in kept:
        text, start = "", time.perf_counter()
        seen = start
        with closing(answering(vlm, chosen.image, chosen.prompt, change, tokens)) as pieces:
            for piece in pieces:
                text += piece
                if (now := time.perf_counter()) - seen > REFRESH:
                    place.html(as_html([(text + " ▍", PLAIN)]))
                    seen = now
        kept[key] = text.strip(), time.perf_counter() - start
        for old in list(kept)[:-KEPT_ANSWERS]:
            del kept[old]
    return kept[key]


def _direction(vlm, controls: Controls, chosen: Chosen) -> Direction | None:
    source = controls.source
    if source is None:
        return None
    if isinstance(source, Ready):
        return _ready(subject(), source.name, vlm)[vlm.anatomy.check_layer(controls.layer)]
    return source.direction(vlm, controls.layer, chosen.image)


@st.cache_resource(show_spinner="Making the direction …", max_entries=16)
def _ready(subject: tuple, name: str, _vlm) -> list[Direction]:
    return ready_directions(_vlm, name)


# -- code --------------------------------------------------------------------------------------------------------------


def _code(panel: Panel) -> None:
    st.markdown("**The same in code**")
    python, command = st.tabs(["Copy as Python", "Copy as command"])
    for tab, copied, language in ((python, panel.as_python(), "python"), (command, panel.as_command(), "bash")):
        with tab:
            if copied.text:
                st.code(copied.text, language, wrap_lines=True)
            if copied.hint:
                st.caption(copied.hint)

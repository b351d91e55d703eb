"""The page Look: an answer as it is made, and where each of its words looked."""

from __future__ import annotations

from contextlib import closing

import streamlit as st

from ..charts import escaped
from ..pictures import FOUND, Chosen, choose_picture, plain_prompt, sample_of, shown
from ..session import open_model_here, shown_error, store
from ..settings import told

# The page is drawn before a model is needed, or charts: what takes seconds to import is imported where it is used.

STYLE = """<style>@media (max-width: 640px) { .st-key-look_picture img { max-height: 11rem; object-fit: contain; object-position: left; } }
</style>"""
"""In a narrow window the answer stands below the picture, which is kept low."""


def page() -> None:
    """Lays the page out: what is asked on the left, the answer and what was read of it on the right."""
    state, organism = st.session_state, told().model.split("/")[0] == "organism"
    st.title("Look")
    st.html(STYLE)
    with shown_error():
        _requested()
    left, right = st.columns([2, 5], gap="large")
    chosen, go = None, False
    with left, shown_error():
        chosen = choose_picture("look", size=64 if organism else 336)
        most = st.slider("Longest answer, in tokens", 4, 256, 64, step=4, key="look_most", persist_state="session")
        go = st.button(
            "Generate", type="primary", icon=":material/play_arrow:", width="stretch", disabled=chosen is None
        )
        if chosen is not None:
            with st.container(key="look_picture"):
                st.image(shown(chosen.image, chosen.sample), width="stretch", alt="The picture that is asked about")
    answer, below = right.empty(), right.empty()
    asked = chosen is not None and (go or state.pop("look_go", False))
    if asked:
        below.empty()
        with answer.container(), shown_error():
            _generate(chosen, most)
            answer.empty()
    with below.container():
        if "look_looked" in state and state["look_looked"].seen is not None:
            from ..look_view import viewer

            viewer()
        elif not asked:
            st.info(
                f"Take a picture and a prompt and press **Generate**: {escaped(told().model)} answers word by word, and each word "
                "then shows where it looked.",
                icon=":material/visibility:",
            )


def _requested() -> None:
    """Another page asked to have a sample of a run looked at."""
    state = st.session_state
    if (request := state.pop("look_request", None)) is None:
        return
    sample = sample_of(store().run(request["run"]).manifest, request["id"])
    state["look_sample"], state["look_source"] = sample, FOUND
    state["look_prompt"], state["look_go"] = plain_prompt(sample.prompt), True


def _generate(chosen: Chosen, most: int) -> None:
    """Streams the answer; what was seen is kept, also when it is stopped half-way by a button or a change of anything."""
    from ..looked import Looked

    state = st.session_state
    number = state["look_number"] = state.get("look_number", 0) + 1
    # Kept from here on, as a script that is being ended can write nothing to the session's state any more.
    looked = state["look_looked"] = Looked(number, chosen)
    vlm = open_model_here()
    from ..live import Watch

    st.button("Stop", icon=":material/stop:", key="look_stop")
    spot, text = st.empty(), ""
    watch = Watch(vlm, chosen.image, chosen.prompt, max_new_tokens=most)
    try:
        with closing(watch.stream()) as pieces:
            for piece in pieces:
                text += piece
                spot.markdown(f"{escaped(text)} ▌")
    finally:
        looked.seen = watch.seen()

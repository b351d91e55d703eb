"""The widgets of the page Steer: everything that can be changed, as one value."""

from __future__ import annotations

import streamlit as st

from ..experiments.decoding import DECODINGS
from ..experiments.ready_directions import READY
from .changes import SETTABLE, Controls
from .directions_at_hand import Ready, Source, TwoPrompts, saved_directions
from .settings import told

NO_DIRECTION, FIRST = "no direction", "vcd"
"""What is chosen when the page opens: one change that costs nothing to prepare."""

PROMPTS = ("write a short caption .", "write a caption about the place .")
POSITIONS = {
    "all": "every position",
    "image": "tokens of the picture",
    "text": "tokens of the text",
    "last_prompt": "last of the prompt",
    "-1": "last of the prompt, and on",
    "generated": "generated tokens",
}
NOTHING = {"direction": NO_DIRECTION, "decode": "plain", "keep": 1.0, "exit": None, "skip": [], "boost": 0.0}
"""Values at which the widgets change nothing, by the end of their names."""

FURTHEST = 3.0
"""The largest scale, either way."""

SESSION = {"persist_state": "session"}
"""What is chosen outlives a visit to another page."""


def change_controls(vlm) -> tuple[Controls, int]:
    """The widgets below the answers: what they change, and how many tokens an answer may have."""
    for name, value in (NOTHING | {"decode": FIRST, "alpha": 1.0}).items():
        st.session_state.setdefault(f"steer_{name}", value)
    direction, decoding, tokens = st.columns(3)
    with direction, st.container(border=True, height="stretch"):
        steering = _direction_controls(vlm)
    with decoding, st.container(border=True, height="stretch"):
        contrasting = _decoding_controls()
        most = st.number_input("Longest answer, in tokens", 1, 512, 64, step=1, key="steer_tokens", **SESSION)
    with tokens, st.container(border=True, height="stretch"):
        taking = _token_controls(vlm.anatomy.n_layers)
    st.button("Change nothing", on_click=_reset, icon=":material/restart_alt:")
    return Controls(**steering, **contrasting, **taking), most


def _direction_controls(vlm) -> dict:
    sources, others = _sources(vlm)
    if st.session_state["steer_direction"] not in sources:  # its run may have been deleted
        st.session_state["steer_direction"] = NO_DIRECTION

    def begin() -> None:
        source = sources.get(st.session_state["steer_direction"])
        if source is not None:
            st.session_state["steer_layer"] = source.layer
            st.session_state["steer_scale"] = max(-FURTHEST, min(source.scale, FURTHEST))
            st.session_state["steer_positions"] = source.positions if source.positions in POSITIONS else "all"

    label = st.selectbox(
        "Direction", [NO_DIRECTION, *sources], key="steer_direction", on_change=begin, **SESSION,
        help="Added to the residual stream. What a run of `chiasm run steering` kept is listed too, and what was saved with "
        "`direction.save(…)` in the folder `directions` of the runs.",
    )  # fmt: skip
    if others:
        st.caption(
            "1 saved direction is of another model."
            if others == 1
            else f"{others} saved directions are of other models."
        )
    if len(sources) == 1 and label == NO_DIRECTION:
        st.caption(
            "No direction of this model is saved yet. Make one here from two prompts; or in Python, with "
            "`direction_from_samples`, and save it in the folder `directions` of the runs."
        )
    source = sources.get(label)
    if source is None:
        return {}
    if isinstance(source, TwoPrompts):
        base = st.text_input("From the state of", PROMPTS[0], key="steer_base", max_chars=400, **SESSION)
        target = st.text_input("to the state of", PROMPTS[1], key="steer_target", max_chars=400, **SESSION)
        source = TwoPrompts(base.strip(), target.strip(), source.layer)
    layer = st.select_slider("Block", range(vlm.anatomy.n_layers), key="steer_layer", **SESSION)
    scale = st.slider(
        "Scale", -FURTHEST, FURTHEST, step=0.05, key="steer_scale", **SESSION,
        help="In mean norms of the states there; of a direction that does not know them, in its own length.",
    )  # fmt: skip
    positions = st.selectbox("Where", list(POSITIONS), format_func=POSITIONS.get, key="steer_positions", **SESSION)
    return {"source": source, "layer": layer, "scale": round(scale, 2), "positions": positions}


def _sources(vlm) -> tuple[dict[str, Source], int]:
    """By label; and how many saved ones are of other models."""
    saved, others = saved_directions(told().runs, _weights(subject(), vlm))
    ready = [Ready(name) for name in READY] if vlm.name.startswith("organism") else []
    prompts = TwoPrompts(*PROMPTS, layer=vlm.anatomy.n_layers // 2)
    return {source.label: source for source in (*ready, prompts, *saved)}, others


def _decoding_controls() -> dict:
    def begin() -> None:
        decoding = DECODINGS.get(st.session_state["steer_decode"])
        alpha = getattr(decoding, "alpha", 1.0)
        st.session_state["steer_alpha"] = 1.0 if callable(alpha) else round(alpha, 2)

    titles = {"plain": "plain: the likeliest token"} | {name: made.title for name, made in DECODINGS.items()}
    decode = st.selectbox(
        "Decoding", list(titles), format_func=titles.get, key="steer_decode", on_change=begin, **SESSION,
        help="A contrast scores each token by what the picture adds over a branch that sees less of it.",
    )  # fmt: skip
    chosen: dict = {"decode": decode}
    if decode != "plain":
        own = DECODINGS[decode].alpha
        grows = callable(own) and st.toggle("α grows with the answer", True, key="steer_grows", **SESSION)
        if not grows:
            alpha = st.slider("Strength α", 0.0, 3.0, step=0.1, key="steer_alpha", **SESSION)
            chosen["alpha"] = None if not callable(own) and abs(alpha - own) < 1e-9 else round(alpha, 2)
        beta = st.slider(
            "Cut-off β", 0.0, 1.0, 0.1, step=0.05, key="steer_beta", **SESSION,
            help="Only tokens with at least β times the likeliest one’s probability; 0: all.",
        )  # fmt: skip
        chosen["beta"] = round(beta, 2)
    if decode in SETTABLE:
        chosen["k"] = st.number_input(
            "Tokens kept k", 1, value=None, step=1, placeholder="the method’s own", key="steer_k", **SESSION
        )
    return chosen


def _token_controls(n_layers: int) -> dict:
    keep = st.slider(
        "Share of the picture’s tokens kept", 0.0, 1.0, step=0.05, key="steer_keep", **SESSION,
        help="Those the encoder attends to most (FasterVLM); 1: all.",
    )  # fmt: skip
    exit_after = st.select_slider(
        "Tokens of the picture leave after block", [*range(n_layers - 1), None], key="steer_exit", **SESSION,
        format_func=lambda block: "never" if block is None else str(block),
    )  # fmt: skip
    skip = st.pills(
        "They skip the feed-forward layer of blocks", range(n_layers), selection_mode="multi", key="steer_skip", **SESSION
    )  # fmt: skip
    boost = st.slider(
        "More attention to the picture", 0.0, 1.0, step=0.05, key="steer_boost", **SESSION,
        help="PAI’s strength: 0.2 in its paper; 0: as it is.",
    )  # fmt: skip
    return {"keep": round(keep, 2), "exit_after": exit_after, "skip": tuple(sorted(skip)), "boost": round(boost, 2)}


def _reset() -> None:
    """Every control to where it changes nothing; the picture and the prompt stay."""
    for name, value in NOTHING.items():
        st.session_state[f"steer_{name}"] = value


@st.cache_resource(show_spinner=False, max_entries=4)
def _weights(subject: tuple, _vlm) -> str:
    return _vlm.fingerprint()


def subject() -> tuple:
    """What the open model is told by, of all this process could have open."""
    settings = told()
    return settings.model, settings.adapter, settings.device

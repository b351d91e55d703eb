"""The page Steer: one picture, one prompt, and two answers side by side: the model's own, and the one under a change."""

from __future__ import annotations

import time
from contextlib import closing
from hashlib import sha256

import streamlit as st

from ...experiments.decoding import DECODINGS
from ...experiments.ready_directions import READY, ready_directions
from ...experiments.style import VERMILION
from ...steering import Direction
from .. import marked
from ..changes import SETTABLE, Controls, Panel, answering, compared, scene_of, words_changed
from ..directions_at_hand import Ready, Source, TwoPrompts, saved_directions
from ..marked import PLAIN, as_html
from ..pictures import Chosen, choose_picture, shown
from ..session import open_model_here, shown_error
from ..settings import told

KEPT_ANSWERS = 128
"""Answers a window remembers, so that going back to a setting costs nothing."""

REFRESH = 0.3
"""Seconds between two looks at an answer that is still being written; quick ones come at once."""

NO_DIRECTION, FIRST = "no direction", "vcd"
"""What is chosen when the page opens: one change that costs nothing to prepare."""

PROMPTS = ("write a short caption .", "write a caption about the place .")
POSITIONS = {
    "all": "every position",
    "image": "tokens of the picture",
    "text": "tokens of the text",
    "last_prompt": "the prompt’s last position",
    "-1": "the prompt’s last position and on",
    "generated": "generated tokens",
}
SESSION = {"persist_state": "session"}

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
        controls = _controls(vlm)
    if chosen is None:
        plain_side.info("Choose a picture and a prompt.")
        return
    with shown_error():
        _answers(vlm, chosen, controls, plain_side, changed_side)
    settings = told()
    scene = scene_of(chosen.image, chosen.sample)
    tokens = st.session_state["steer_tokens"]
    _code(Panel(controls, chosen.prompt, scene, settings.model, settings.adapter, settings.device, tokens))


# -- answers -----------------------------------------------------------------------------------------------------------


def _answers(vlm, chosen: Chosen, controls: Controls, plain_side, changed_side) -> None:
    tokens = st.session_state["steer_tokens"]
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
        return _ready(_subject(), source.name, vlm)[vlm.anatomy.check_layer(controls.layer)]
    return source.direction(vlm, controls.layer, chosen.image)


@st.cache_resource(show_spinner="Making the direction …", max_entries=16)
def _ready(subject: tuple, name: str, _vlm) -> list[Direction]:
    return ready_directions(_vlm, name)


@st.cache_resource(show_spinner=False, max_entries=4)
def _weights(subject: tuple, _vlm) -> str:
    return _vlm.fingerprint()


def _subject() -> tuple:
    """What the open model is told by, of all this process could have open."""
    settings = told()
    return settings.model, settings.adapter, settings.device


# -- controls ----------------------------------------------------------------------------------------------------------


def _controls(vlm) -> Controls:
    """The widgets below the answers, as one value."""
    direction, decoding, tokens = st.columns(3)
    with direction, st.container(border=True, height="stretch"):
        steering = _direction_controls(vlm)
    with decoding, st.container(border=True, height="stretch"):
        contrasting = _decoding_controls()
    with tokens, st.container(border=True, height="stretch"):
        taking = _token_controls(vlm.anatomy.n_layers)
    st.button("Change nothing", on_click=_reset, icon=":material/restart_alt:")
    return Controls(**steering, **contrasting, **taking)


def _direction_controls(vlm) -> dict:
    sources, others = _sources(vlm)
    options = [NO_DIRECTION, *sources]

    def begin() -> None:
        source = sources.get(st.session_state["steer_direction"])
        if source is not None:
            st.session_state["steer_layer"], st.session_state["steer_scale"] = source.layer, source.scale
            st.session_state["steer_positions"] = source.positions

    label = st.selectbox(
        "Direction", options, key="steer_direction", on_change=begin, **SESSION,
        help="Added to the residual stream. Directions saved by `chiasm run steering`, or with `direction.save(…)` in the folder "
        "`directions` of the runs, are listed too.",
    )  # fmt: skip
    if others:
        st.caption(f"{others} saved directions are of other models.")
    if len(sources) == 1 and label == NO_DIRECTION:
        st.caption(
            "No direction of this model is saved yet: make one from two prompts here, or run `chiasm run steering`."
        )
    source = sources.get(label)
    if source is None:
        return {}
    if isinstance(source, TwoPrompts):
        base = st.text_input("From the state of", PROMPTS[0], key="steer_base", max_chars=400, **SESSION)
        target = st.text_input("to the state of", PROMPTS[1], key="steer_target", max_chars=400, **SESSION)
        source = TwoPrompts(base.strip(), target.strip(), source.layer)
    layer = st.slider("Block", 0, vlm.anatomy.n_layers - 1, key="steer_layer", **SESSION)
    scale = st.slider(
        "Scale", -3.0, 3.0, step=0.05, key="steer_scale", **SESSION,
        help="In mean norms of the states there; of a direction that does not know them, in its own length.",
    )  # fmt: skip
    positions = st.selectbox("Where", list(POSITIONS), format_func=POSITIONS.get, key="steer_positions", **SESSION)
    return {"source": source, "layer": layer, "scale": scale, "positions": positions}


def _sources(vlm) -> tuple[dict[str, Source], int]:
    """By label; and how many saved ones are of other models."""
    saved, others = saved_directions(told().runs, _weights(_subject(), vlm))
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
        "Decoding", list(titles), list(titles).index(FIRST), format_func=titles.get, key="steer_decode", on_change=begin, **SESSION,
        help="A contrast scores each token by what the picture adds over a branch that sees less of it.",
    )  # fmt: skip
    chosen: dict = {"decode": decode}
    if decode != "plain":
        own = DECODINGS[decode].alpha
        grows = callable(own) and st.toggle("α grows with the answer", True, key="steer_grows", **SESSION)
        if not grows:
            alpha = st.slider("Strength α", 0.0, 3.0, 1.0, step=0.1, key="steer_alpha", **SESSION)
            chosen["alpha"] = None if not callable(own) and abs(alpha - own) < 1e-9 else alpha
        chosen["beta"] = st.slider(
            "Cut-off β", 0.0, 1.0, 0.1, step=0.05, key="steer_beta", **SESSION,
            help="Only tokens with at least β times the likeliest one’s probability; 0: all.",
        )  # fmt: skip
    if decode in SETTABLE:
        chosen["k"] = st.number_input(
            "Tokens kept k", 1, value=None, step=1, placeholder="the method’s own", key="steer_k", **SESSION
        )
    st.number_input("Longest answer, in tokens", 1, 512, 64, step=1, key="steer_tokens", **SESSION)
    return chosen


def _token_controls(n_layers: int) -> dict:
    chosen: dict = {}
    chosen["keep"] = st.slider(
        "Share of the picture’s tokens kept", 0.0, 1.0, 1.0, step=0.05, key="steer_keep", **SESSION,
        help="Those the encoder attends to most (FasterVLM); 1: all.",
    )  # fmt: skip
    ends = [*range(n_layers - 1), None]
    if len(ends) > 1:
        chosen["exit_after"] = st.select_slider(
            "Tokens of the picture leave after block", ends, None, key="steer_exit", **SESSION,
            format_func=lambda block: "never" if block is None else str(block),
        )  # fmt: skip
    skipped = st.pills(
        "They pass by the feed-forward layer of blocks",
        range(n_layers),
        selection_mode="multi",
        key="steer_skip",
        **SESSION,
    )
    chosen["skip"] = tuple(sorted(skipped))
    chosen["boost"] = st.slider(
        "More attention to the picture", 0.0, 1.0, 0.0, step=0.05, key="steer_boost", **SESSION,
        help="PAI’s strength: 0.2 in its paper; 0: as it is.",
    )  # fmt: skip
    return chosen


def _reset() -> None:
    nothing = {"direction": NO_DIRECTION, "decode": "plain", "keep": 1.0, "exit": None, "skip": [], "boost": 0.0}
    for name, value in nothing.items():
        st.session_state[f"steer_{name}"] = value


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

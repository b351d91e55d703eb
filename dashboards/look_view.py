"""What was read of an answer, on the page Look: its words as a choice, and the overlays, charts and words of the chosen one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st

from ..experiments.figures.chart import Overlay
from . import overlays
from .charts import escaped, show
from .looked import Looked, heads, labels
from .pictures import shown
from .session import open_model_here, shown_error

MEAN = "mean of all"
VIEWS = ("All layers", "Encoder", "Patches as words")
LARGE, SMALL = 448, 168
"""Pixels of the picture, and of one of many small ones."""

KEPT = {"persist_state": "session"}
"""What is chosen outlives a visit to another page."""


@st.fragment
def viewer() -> None:
    """The answer as a choice of words, and what was read of the chosen one. A change here draws nothing but this anew."""
    looked: Looked = st.session_state["look_looked"]
    with shown_error():
        word = _word(looked)
        if word is not None:
            _where(looked, word)


def _word(looked: Looked) -> int | None:
    """The chosen word of the answer."""
    names = labels(looked.seen.words)
    word = st.pills(
        "Answer: choose a word", range(len(looked.seen.attention)), format_func=names.__getitem__, required=True,
        default=looked.telling(), key=f"look_word_{looked.number}",
    )  # fmt: skip
    st.caption(looked.facts())
    return word


def _where(looked: Looked, word: int) -> None:
    """The overlay at a layer beside the strip over layers, and below one of the views."""
    seen = looked.seen
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer = _layer("Layer", seen.layers, "look_layer", looked.busiest())
        choices = [MEAN, *range(seen.attention.shape[2])]
        head = st.selectbox("Head", choices, key="look_head", width=160, **KEPT)
        outlined = st.toggle(
            "Outliers", True, key="look_outliers", help="Outline the patches that the encoder looks at most.", **KEPT
        )
    head = None if head == MEAN else head
    values, outliers = seen.map(word, head)[layer], seen.encoder.outliers[seen.encoder.at]
    here, beside = st.columns(2)
    with here:
        alt = f"Where the word {looked.named(word)!r} looked at layer {seen.layers[layer]}"
        _painted(looked, values, outliers & outlined, alt)
        st.caption(escaped(looked.told(word, layer, head)))
    with beside:
        _strip(looked, word, head)
    view = st.segmented_control(
        "More", VIEWS, default=VIEWS[0], required=True, key="look_view", label_visibility="collapsed", **KEPT
    )
    {VIEWS[0]: _all_layers, VIEWS[1]: _encoder, VIEWS[2]: _words}[view](looked, word, head)


def _layer(label: str, layers: Sequence[int], key: str, default: int) -> int:
    """The place in `layers` of the one chosen."""
    if len(layers) == 1:
        return 0
    if st.session_state.get(key) not in layers:
        st.session_state[key] = layers[default]
    return layers.index(st.select_slider(label, layers, key=key, **KEPT))


def _painted(looked: Looked, values, outlined, alt: str) -> None:
    """The picture with values over it, from 0 to the largest one, and outlines."""
    top = float(np.nan_to_num(values).max()) or 1.0
    overlay = Overlay(*looked.ground(LARGE), values, limits=(0.0, top), outlined=np.nonzero(outlined)[0].tolist())
    st.image(overlays.paint(overlay), width="stretch", alt=alt)


def _strip(looked: Looked, word: int, head: int | None) -> None:
    from ..models.spans import Spans

    layers, shares, name = looked.seen.text_layers, looked.seen.shares(word, head), looked.named(word)
    table = pd.DataFrame(shares, columns=Spans.names).assign(layer=layers, word=name, heads=heads(head))
    show(overlays.strip(layers, shares, Spans.names, name, heads(head)), table, key="look-strip")


# -- views -------------------------------------------------------------------------------------------------------------


def _all_layers(looked: Looked, word: int, head: int | None) -> None:
    seen = looked.seen
    maps = seen.map(word, head)
    common = st.toggle("One scale for all layers", key="look_common", **KEPT)
    small = overlays.multiples(*looked.ground(SMALL), maps, common=common)
    captions = [
        f"layer {layer}: {overlays.percent(share)}"
        for layer, share in zip(seen.layers, np.nansum(maps, 1), strict=True)
    ]
    st.image(small, captions, width=SMALL, alt=[f"Layer {layer}" for layer in seen.layers])
    st.caption(
        "Below each picture: how much of the word's attention is on it. "
        + ("Colours can be compared between layers." if common else "Each layer has its own scale of colours.")
    )


def _encoder(looked: Looked, word: int, head: int | None) -> None:
    from .live import SCORES

    encoder = looked.seen.encoder
    if encoder.kind != "cls":
        st.info(f"This encoder has no CLS token. Shown is the {SCORES[encoder.kind]}.", icon=":material/info:")
    at = _layer("Encoder layer", encoder.layers, "look_encoder", encoder.at)
    here, beside = st.columns(2)
    with here:
        _painted(looked, encoder.scores[at], encoder.outliers[at], f"Encoder, layer {encoder.layers[at]}")
    with beside:
        feeds = " The language model is given the features of this layer." if at == encoder.at else ""
        st.markdown(
            f"The {SCORES[encoder.kind]}, encoder layer {encoder.layers[at]}.{feeds} Outlined: the patches with the highest score, "
            f"one in 60 of each tile and at least one."
        )
        small = overlays.multiples(*looked.ground(SMALL // 2), encoder.scores)
        st.image(
            small,
            [f"layer {layer}" for layer in encoder.layers],
            width=SMALL // 2 + 16,
            alt=[f"Encoder layer {layer}" for layer in encoder.layers],
        )


def _words(looked: Looked, word: int, head: int | None) -> None:
    from .live import words_of_patches

    if looked.lens is None:
        with st.spinner("Reading every patch at every layer …"):
            looked.lens = words_of_patches(open_model_here(), looked.chosen.image, looked.chosen.prompt)
    views = looked.lens
    view = views[_layer("Layer of the logit lens", list(range(len(views))), "look_lens", len(views) - 1)]
    used = {text.strip().lower() for text in looked.seen.words if len(text.strip()) > 2}
    said = [one.strip() for one in view.words]
    boxes = looked.whole(view.boxes)
    if not np.isfinite(boxes).any():
        st.info(
            "The visual tokens of this model have no place on the picture: they are counted only.",
            icon=":material/info:",
        )
    image, sample, _ = looked.chosen
    ground = shown(image, sample, overlays.side_for_words(boxes, image.size))
    picture = overlays.worded(*overlays.fitted(ground, boxes, image.size), said, used)
    counted = Counter(said).most_common(12)
    sure = {
        text: np.mean([p for p, one in zip(view.probabilities, said, strict=True) if one == text])
        for text, _ in counted
    }
    here, beside = st.columns([3, 2])
    with here:
        st.image(picture, width="stretch", alt=f"Words of the patches at layer {view.layer}")
    with beside:
        st.markdown(
            "The word that each visual token stands for by the final norm and the unembedding; layer 0 is the decoder's input. "
            "In blue: words that the answer uses."
            + (
                " Drawn are the tokens of the whole picture's view; the table counts those of tiles too."
                if (looked.seen.tiles > 0).any()
                else ""
            )
        )
        table = [{"word": text, "patches": n, "mean probability": sure[text]} for text, n in counted]
        st.dataframe(
            pd.DataFrame(table),
            hide_index=True,
            column_config={"mean probability": st.column_config.NumberColumn(format="%.2f")},
        )

"""Concept cards of runs: words and pictures before tuning, shifted, and after it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from ..experiments import artifacts
from ..experiments.figures import Figure
from ..experiments.figures import concepts as figures
from ..experiments.figures.rows import pick
from ..scenes.errors import UserError
from . import charts, comparing
from .session import KEPT, shown_error
from .store import Source, Store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

INTRO = (
    "Which concepts stand behind a word, and what did tuning do to them? Words and pictures of each concept in the base model, moved by "
    "its shift, and in the tuned model (Parekh et al., arXiv 2406.08074; Khayatan et al., arXiv 2501.03012)."
)
STAGES = {"before": "before tuning", "shifted": "shifted", "after": "after tuning"}
WORDS = 8


def lay_out(runs: Store, sources: Sequence[Source]) -> None:
    """The cards of each run and style, and under them its figures."""
    for name, source in comparing.labelled(sources).items():
        with shown_error():
            table = runs.table(source.run_name, source.table)
            if not {"style", "words_before", "words_shifted", "words_after"} <= set(table):
                raise UserError(
                    f"the concepts of run {source.run_name!r} have no words: run `chiasm run concepts` again"
                )
            st.subheader(
                charts.escaped(comparing.described(source) if len(sources) > 1 else "Concepts before and after")
            )
            styles = list(dict.fromkeys(table["style"]))
            style = st.segmented_control("Tuned on captions about", styles, default=styles[0], key=f"lenses_style_{source.key}", **KEPT)  # fmt: skip
            _cards(runs, source, pick(table, style=style or styles[0]), style or styles[0])
            for figure in studied(runs, source):
                charts.fold(figure, key=f"lenses-concepts-{name}-{figure.name}", opened=False)


def _cards(runs: Store, source: Source, table: pd.DataFrame, style: str) -> None:
    try:
        pictures = kept_pictures(runs, source)
    except UserError:
        pictures = None  # of a run that did not keep them the words are shown
    largest = table.sort_values("n", ascending=False, kind="stable")
    for row in largest.head(figures.SHOWN_CONCEPTS).to_dict("records"):
        with st.container(border=True):
            consistency = f"consistency {row['consistency']:.2f} (95 % interval {row['low']:.2f} to {row['high']:.2f})"
            st.caption(f"Concept {row['concept'] + 1} · n = {row['n']} pictures · {consistency}")
            for place, (when, title) in zip(st.columns(3), STAGES.items(), strict=True):
                with place:
                    st.markdown(f"**{title}**")
                    if pictures is not None and f"pictures_{when}" in row:
                        st.image(strip(pictures, row[f"pictures_{when}"]), width="stretch")
                    words = row[f"words_{when}"].split(", ")[:WORDS]
                    st.markdown(" ".join(f":gray-badge[{charts.escaped(word)}]" for word in words) or "(no words)")
    st.markdown(
        "**How to read this.** A card is one concept: its words and the pictures that have most of it in the base model, moved by its "
        "shift, and in the tuned model’s concept that holds most of the same pictures. Where the shift is right the last two agree."
    )
    if len(largest) > figures.SHOWN_CONCEPTS:
        st.caption(f"The {figures.SHOWN_CONCEPTS} concepts with most pictures of {len(largest)}.")
    if pictures is not None and "pictures_before" in table:
        charts.downloads(figures.cards(table, pictures, style), table, key=f"lenses-cards-{source.key}-{style}")
    else:
        st.download_button(
            "CSV", lambda: table.to_csv(index=False).encode(), f"cards-{style}.csv", "text/csv",
            key=f"lenses-cards-{source.key}-{style}", on_click="ignore", icon=":material/download:", type="tertiary",
        )  # fmt: skip


def studied(runs: Store, source: Source) -> list[Figure]:
    """The other figures of the experiment, those whose tables are there. Raises UserError for one that is damaged."""
    there = set(runs.tables(source.run_name))
    made = []
    for function, names in (
        (figures.consistency, ("concepts", "recovered", "correlations")),
        (figures.baselines, ("summary",)),
        (figures.dictionaries, ("dictionaries",)),
        (figures.layers, ("layers",)),
    ):
        if there.issuperset(names):
            made.append(function(*[runs.table(source.run_name, name) for name in names]))
    return made


def kept_pictures(runs: Store, source: Source) -> np.ndarray:
    """(N, 64, 64, 3) uint8: the pictures of a run. Raises UserError when it kept none."""
    path = runs.file(source.run_name, "arrays", "pictures.safetensors")
    return _pictures(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _pictures(path: Path, changed: int) -> np.ndarray:
    return artifacts.read_array(path.parent, "pictures")["pictures"].numpy()


def strip(pictures: np.ndarray, places: str) -> np.ndarray:
    """The pictures at `places` ("3 17 4") beside each other. Raises UserError for a place that there is not."""
    from ..experiments.figures.chart import Strip

    asked = [int(place) for place in places.split()][: figures.SHOWN_PICTURES]
    if not asked or max(asked) >= len(pictures):
        raise UserError("the pictures of this run do not belong to its table: run `chiasm run concepts` again")
    return Strip([pictures[i] for i in asked]).montage()

"""The page Lenses: what the probes found in runs, any number of runs or models compared."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from ...experiments.figures import Figure
from ...experiments.lenses import LENSES
from .. import charts, comparing, concepts
from ..session import KEPT, shown_error, store
from ..store import Source

CONCEPTS = "concepts"
WAYS = {"together": "Curves together", "beside": "Side by side"}


def page() -> None:
    """Lays the page out."""
    st.title("Lenses")
    titles = {name: lens.title for name, lens in LENSES.items()} | {CONCEPTS: "Concepts"}
    lens = st.pills("Lens", list(titles), format_func=titles.get, key="lenses_lens", default=next(iter(titles)), label_visibility="collapsed", **KEPT)  # fmt: skip
    lens = lens or next(iter(titles))
    st.caption(charts.escaped(LENSES[lens].intro if lens in LENSES else concepts.INTRO))
    sources = _sources(lens)
    if not sources:
        return
    if lens == CONCEPTS:
        concepts.lay_out(store(), sources)
    else:
        _lens(lens, sources)


def _sources(lens: str) -> list[Source]:
    """The tables that were chosen, those of the newest run where nothing was."""
    there = {source.key: source for source in store().sources(lens)}
    if not there:
        st.info(
            f"No run in {charts.escaped(repr(str(store().root)))} has this lens yet. "
            + ("`chiasm run concepts` makes one." if lens == CONCEPTS else "`chiasm report` or `chiasm measure` makes one."),
            icon=":material/info:",
        )  # fmt: skip
        return []
    key = f"lenses_runs_{lens}"
    if key in st.session_state:
        st.session_state[key] = [name for name in st.session_state[key] if name in there]  # a run may have been deleted
    else:
        asked = [name for name, source in there.items() if source.run_name in st.session_state.get("lenses_asked", ())]
        st.session_state[key] = asked or comparing.first_choice(list(there.values()))
    chosen = st.multiselect(
        "Runs and models", list(there), format_func=lambda name: comparing.described(there[name]), key=key,
        placeholder="Choose one or more; type to search", label_visibility="collapsed", **KEPT,
    )  # fmt: skip
    if not chosen:
        st.info("Choose at least one run.", icon=":material/info:")
    return [there[name] for name in chosen]


def _lens(lens: str, sources: Sequence[Source]) -> None:
    tables, stamps = {}, []
    for name, source in comparing.labelled(sources).items():
        with shown_error():  # a damaged table leaves the others
            tables[name] = store().table(source.run_name, source.table)
            stamps.append((name, source.key, *store().stamp(source.run_name, source.table)))
    if not tables:
        return
    with shown_error():
        numbers = comparing.key_numbers(lens, tables)
        if len(numbers):
            st.dataframe(numbers, hide_index=True, width="stretch", row_height=38, key=f"lenses_numbers_{lens}")
    way = "beside"
    if len(tables) > 1:
        way = st.segmented_control("How to compare", list(WAYS), format_func=WAYS.get, key="lenses_way", default="together", **KEPT) or "together"  # fmt: skip
    for i in range(len(comparing.functions(lens))):
        with shown_error():
            figure = _figure(lens, i, stamps, way == "together", tables)
            if figure is not None:
                charts.fold(
                    figure,
                    key=f"lenses-{lens}-{i}-{way}",
                    opened=i == 0,
                    columns=3 if figure.name.endswith("-compared") and way == "together" else None,
                )
    with shown_error():
        everything = pd.concat([table.assign(run=name) for name, table in tables.items()], ignore_index=True)
        st.download_button(
            "All numbers of this lens (CSV)", lambda: everything.to_csv(index=False).encode(), f"{lens}.csv", "text/csv",
            key=f"lenses_all_{lens}", on_click="ignore", icon=":material/download:",
        )  # fmt: skip


@st.cache_resource(max_entries=128, show_spinner=False)
def _figure(
    lens: str, i: int, stamps: Sequence[tuple], overlaid: bool, _tables: dict[str, pd.DataFrame]
) -> Figure | None:
    """The lens's i-th figure, made again when one of the tables has changed."""
    return comparing.compared(comparing.functions(lens)[i], _tables, overlaid=overlaid)

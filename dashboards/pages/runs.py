"""The page Runs: which there are, where each came from, what is in it; and deleting one."""

from __future__ import annotations

import streamlit as st

from .. import run_facts
from ..charts import escaped
from ..frame import compare
from ..session import KEPT, shown_error, store
from ..store import STATES, run_name, search

VIEWS = ("Provenance", "Figures", "Tables", "Log")


def page() -> None:
    """Lays the page out."""
    st.title("Runs")
    runs = store().runs()
    if not runs:
        st.info(f"No runs in {escaped(repr(str(store().root)))} yet: `chiasm measure` and `chiasm report` make some.", icon=":material/info:")  # fmt: skip
        return
    words, states = st.columns([2, 3], vertical_alignment="bottom")
    asked = words.text_input("Search", key="runs_search", placeholder="model, experiment, data, option …", **KEPT)
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    there = [state for state in STATES if counts[state]]
    chosen = states.pills("State", there, selection_mode="multi", key="runs_states", **KEPT, format_func=lambda state: f"{STATES[state]} {state} ({counts[state]})")  # fmt: skip
    found = [run for run in search(runs, asked) if not chosen or run.state in chosen]
    if not found:
        st.info("No run has all of that.", icon=":material/info:")
        return
    table = run_facts.overview(found)
    picked = st.dataframe(
        table, hide_index=True, width="stretch", height=min(38 * (len(table) + 1) + 3, 380), row_height=38,
        key="runs_table", placeholder="", on_select="rerun", selection_mode="multi-row",
        column_config={"name": None, "n": st.column_config.NumberColumn(format="localized"), "minutes": st.column_config.NumberColumn(format="%.1f")},
    )  # fmt: skip
    rows = [i for i in picked.selection.rows if i < len(found)]
    st.caption(f"{len(found):,} of {len(runs):,} runs in {escaped(repr(str(store().root)))}. Tick rows to compare them, or to open one.")  # fmt: skip
    names = [run_name(run) for run in found]
    if rows and st.session_state.get("runs_ticked") != names[rows[0]]:  # what was ticked last is opened
        st.session_state["runs_open"] = names[rows[0]]
    st.session_state["runs_ticked"] = names[rows[0]] if rows else None
    if len(rows) and st.button(f"Compare {len(rows)} in Lenses", icon=":material/query_stats:", key="runs_compare"):
        compare([names[i] for i in rows])
    if st.session_state.get("runs_open") not in names:
        st.session_state["runs_open"] = names[0]
    name = st.selectbox("Run", names, key="runs_open", **KEPT)
    with shown_error():
        _run(name)


def _run(name: str) -> None:
    run = store().run(name)
    head, button = st.columns([4, 1], vertical_alignment="center")
    model = run_facts.model_of(run)
    head.subheader(escaped(f"{run.experiment}" + (f" of {model}" if model else "")))
    if button.button("Delete …", icon=":material/delete:", key="runs_delete", width="stretch"):
        st.session_state["runs_doomed"] = name
    if st.session_state.get("runs_doomed") == name:
        with shown_error():
            _delete(name)
    if run.state != "complete":
        st.warning(f"**{run.state.capitalize()}.** {escaped(run.detail)}", icon=STATES[run.state])
    view = st.segmented_control("What to show", VIEWS, default=VIEWS[0], key="runs_view", label_visibility="collapsed", **KEPT) or VIEWS[0]  # fmt: skip
    {"Provenance": _provenance, "Figures": _figures, "Tables": _tables, "Log": _log}[view](name)


def _provenance(name: str) -> None:
    run = store().run(name)
    facts = run_facts.provenance(run)
    if not facts:
        st.info("Its manifest cannot be read, so nothing is known of it.", icon=":material/info:")
        return
    st.table(facts, border="horizontal")
    if run.manifest.get("command"):
        st.caption("Command")
        st.code(str(run.manifest["command"]), language="bash", wrap_lines=True)
    for key, title in (("config", "Settings"), ("versions", "Versions"), ("measured", "Measurements")):
        if run.manifest.get(key):
            with st.expander(title):
                st.json(run.manifest[key])


def _figures(name: str) -> None:
    pictures = store().figures(name)
    if not pictures:
        st.info("This run has no figures.", icon=":material/info:")
    for figure in pictures:
        with shown_error():
            path = store().file(name, "figures", f"{figure}.png")
            st.image(run_facts.checked_picture(path), caption=escaped(figure), width=900)
    with shown_error():
        if store().run(name).path.joinpath("report.html").is_file():
            report = store().file(name, "report.html")
            st.download_button("The report (HTML)", report.read_bytes, "report.html", "text/html", key=f"runs_report_{name}", on_click="ignore", icon=":material/download:")  # fmt: skip


def _tables(name: str) -> None:
    tables = store().tables(name)
    if not tables:
        st.info("This run has no tables.", icon=":material/info:")
        return
    table = st.selectbox("Table", tables, key=f"runs_table_{name}")
    rows = store().table(name, table)
    st.dataframe(rows.head(run_facts.SHOWN_ROWS), hide_index=True, width="stretch")
    st.caption(f"{min(len(rows), run_facts.SHOWN_ROWS):,} of {len(rows):,} rows")
    st.download_button("CSV", lambda: rows.to_csv(index=False).encode(), f"{table}.csv", "text/csv", key=f"runs_csv_{name}_{table}", on_click="ignore", icon=":material/download:", type="tertiary")  # fmt: skip


def _log(name: str) -> None:
    text = run_facts.log_tail(store().file(name, "log.txt"))
    st.code(text or "(empty)", language=None, wrap_lines=True)


def _delete(name: str) -> None:
    """Asks once more; what it would cost is told first."""
    run = store().run(name)
    files, size = run_facts.weight(run.path)
    with st.container(border=True, key="runs_sure"):
        st.markdown(
            f"**Delete {escaped(name)}?** It has {files:,} files, {size / 2**20:,.1f} MiB. This cannot be undone."
        )
        if run.state == "incomplete" and not run.manifest.get("error"):
            st.warning("It may still be running: the process would fail at its next file.", icon=":material/warning:")
        with st.container(horizontal=True):
            yes = st.button("Delete it", key="runs_confirm", type="primary", icon=":material/delete:")
            no = st.button("Keep it", key="runs_keep")
    if yes:
        store().delete(name)
    if yes or no:
        del st.session_state["runs_doomed"]
        st.rerun()

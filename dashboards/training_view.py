"""Curves of trainings on a page, drawn again while one of them goes on."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from .charts import escaped, show
from .evaluations import shortened
from .session import shown_error, store
from .training import CURVES, MORE, TABLE, Training, figure, progress, trainings

EVERY = 2.0
"""Seconds between two looks at a training that goes on."""

KEEP = {"persist_state": "session"}
ICONS = {"trained": ":material/check_circle:", "training": ":material/sync:", "silent": ":material/hourglass_empty:", "stopped": ":material/cancel:"}  # fmt: skip


def training_view() -> None:
    """Lays out the curves of the trainings that are chosen."""
    found = trainings(store().runs())
    if not found:
        st.info(
            "No training here yet. `chiasm pairs` makes preference pairs, `chiasm tune --pairs pairs` trains on them: its curves appear "
            "here while it runs.",
            icon=":material/model_training:",
        )
        return
    labels = {one.run: one.label for one in found}
    chosen = st.multiselect(
        "Trainings", list(labels), default=[found[0].run], format_func=lambda run: labels.get(run, run),
        key="tuning_runs", help="Several are drawn over each other.", **KEEP,
    )  # fmt: skip
    left, right = st.columns(2)
    with left:
        smooth = st.slider("Running mean over log entries", 1, 50, 1, key="tuning_smooth", **KEEP)
    with right:
        titles = {curve.column: curve.title for curve in MORE}
        more = st.multiselect("More curves", list(titles), format_func=titles.get, key="tuning_more", **KEEP)
    if not chosen:
        st.info("Choose a training.", icon=":material/arrow_upward:")
        return
    live = any(one.live for one in found if one.run in chosen)
    st.fragment(_curves, run_every=EVERY if live else None)(chosen, smooth, more, live)


def _curves(chosen: Sequence[str], smooth: int, more: Sequence[str], live: bool) -> None:
    """What is drawn again: reads only tables that have changed."""
    now = [one for one in trainings(store().runs()) if one.run in chosen]
    tables: dict[str, pd.DataFrame] = {}
    for one in now:
        with shown_error():
            table = _table(one)
            _state(one, table)
            if len(table):
                tables[one.label] = table
    if live and not any(one.live for one in now):
        st.rerun()  # the last one has come to its end: nothing has to be looked at again
    drawn = [curve for curve in (*CURVES, *MORE) if curve in CURVES or curve.column in more]
    short = shortened(list(tables))
    named = {short[name]: table for name, table in tables.items()}
    figures = [(curve, made) for curve in drawn if (made := figure(curve, named, smooth)) is not None]
    for start in range(0, len(figures), 2):
        for place, (curve, made) in zip(st.columns(2), figures[start : start + 2], strict=False):
            with place, shown_error():
                show(made, _long(tables, curve.column), key=f"tuning-{made.name}")
    with shown_error():
        _held_out(now)


def _table(one: Training) -> pd.DataFrame:
    """Empty where nothing is logged yet."""
    return store().table(one.run, TABLE) if TABLE in store().tables(one.run) else pd.DataFrame()


def _state(one: Training, table: pd.DataFrame) -> None:
    share, told = progress(table, one.manifest)
    line = f"{ICONS[one.state]} **{escaped(one.label)}** · {escaped(one.told)} · {told}"
    if one.live and share is not None:
        st.progress(share, line)
    else:
        st.markdown(line)


def _long(tables: dict[str, pd.DataFrame], column: str) -> pd.DataFrame:
    """What the CSV of a curve holds: training, step, epoch, and the values of training and of held-out pairs."""
    parts = []
    for name, table in tables.items():
        names = [one for one in ("step", "epoch", column, f"eval_{column}") if one in table]
        parts.append(table[names].dropna(how="all", subset=names[2:] or names).assign(training=name))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _held_out(chosen: Sequence[Training]) -> None:
    """What the held-out pairs said before and after the trainings that are through."""
    parts = [
        store().table(one.run, "held_out").assign(training=one.label)
        for one in chosen
        if "held_out" in store().tables(one.run)
    ]
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if not len(rows):
        return
    names = {
        "training": "training",
        "what": "of the held-out pairs",
        "before": "before",
        "after": "after",
        "change": "change",
    }
    rows = rows.assign(change=rows["after"] - rows["before"])[list(names)].rename(columns=names)
    st.subheader("Held-out pairs, before and after")
    number = st.column_config.NumberColumn
    st.dataframe(
        rows if len(parts) > 1 else rows.drop(columns="training"), hide_index=True, key="tuning_held_out",
        alt="Metrics of the held-out pairs before and after training",
        column_config={name: number(format="%.3f") for name in ("before", "after")} | {"change": number(format="%+.3f")},
    )  # fmt: skip

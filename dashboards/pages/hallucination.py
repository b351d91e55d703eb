"""The page Hallucination: scores of evaluations with their intervals, and every answer with what is made up in it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from ..answers_view import answers_view
from ..charts import escaped, fold, show
from ..evaluations import Evaluated, evaluated, shortened
from ..session import shown_error, store

FIRST = ("accuracy", "chair_i", "chair", "score")
"""Metrics shown first, where they are there."""

KEEP = {"persist_state": "session"}


def page() -> None:
    """Lays the page out."""
    st.title("Hallucination")
    st.caption("How often a model says what is not in the picture, by which method, and in which words.")
    found = evaluated(store().runs())
    if not found:
        st.info(
            "No evaluation here yet. `chiasm evaluate chair-scenes --method greedy --method vcd` makes one in a minute on the bundled model.",
            icon=":material/fact_check:",
        )
        return
    benchmarks, views = (
        list(dict.fromkeys(one.benchmark for one in found)),
        {"Scores": _scores, "Answers": answers_view},
    )
    with st.container(horizontal=True, gap="medium"):
        choice = {"required": True, "key": "hallucination_benchmark"} | KEEP
        benchmark = st.segmented_control("Benchmark", benchmarks, default=benchmarks[0], **choice)
        view = st.segmented_control("Show", list(views), default="Scores", **choice | {"key": "hallucination_view"})
    runs = {one.label: one for one in found if one.benchmark == benchmark}
    first = max(
        runs, key=lambda name: 2 * bool(runs[name].table) + runs[name].answers
    )  # the newest that shows the most
    chosen = st.multiselect(
        "Runs", list(runs), default=[first], key=f"hallucination_runs_{benchmark}",
        help="Several are drawn side by side: other models, adapters, or settings.", **KEEP,
    )  # fmt: skip
    if not chosen:
        st.info("Choose a run.", icon=":material/arrow_upward:")
        return
    with shown_error():
        views[view]([runs[name] for name in chosen])


# -- scores ------------------------------------------------------------------------------------------------------------


def _scores(runs: list[Evaluated]) -> None:
    from ...experiments.figures import scores as figures

    tables: dict[str, pd.DataFrame] = {}
    for one in runs:
        if not one.table:
            st.info(
                f"Scores of {escaped(one.label)} are on the page Tuning, under *Before and after*; its answers are here."
            )
            continue
        if not one.complete and one.table not in store().tables(one.run):
            st.warning(
                f"{escaped(one.label)} is not complete: scores come at its end. Its answers so far are under *Answers*."
            )
            continue
        with shown_error():
            tables[one.label] = store().table(one.run, one.table)
    if not tables:
        return
    every = pd.concat([table.assign(run=name) for name, table in tables.items()], ignore_index=True)
    splits = list(dict.fromkeys(every["split"]))
    place = st.columns(2)
    with place[0]:
        first = "mean" if "mean" in splits else splits[0]
        split = st.pills(
            "Questions", splits, default=first, required=True, key=f"hallucination_split_{'_'.join(splits)}", **KEEP
        )
    metrics = list(dict.fromkeys(every.loc[every["split"] == (split or first), "metric"]))
    start = next((metric for metric in FIRST if metric in metrics), metrics[0])
    with place[1]:
        metric = st.pills(
            "Measure", metrics, default=start, required=True, format_func=figures.named, wrap=True, key=f"hallucination_metric_{'_'.join(metrics)}", **KEEP,
        )  # fmt: skip
    rows = every[(every["split"] == split) & (every["metric"] == metric)]
    short = shortened(list(tables))
    named = {short[name]: table for name, table in tables.items()}
    drawn = [figures.values(named, metric, split), figures.differences(named, metric, split)]
    drawn = [figure for figure in drawn if figure is not None]
    for column, figure in zip(st.columns(len(drawn)), drawn, strict=True):
        with column:
            show(figure, rows, key=f"hallucination-{figure.name}")
    st.subheader("All measures")
    _table(every[every["split"] == split], several=len(tables) > 1)
    _report_figures(runs, tables)


def _table(rows: pd.DataFrame, *, several: bool) -> None:
    """Every metric of one split: value, interval, n, and the paired difference with what n could show."""
    from ...experiments.figures.scores import named

    def interval(low: pd.Series, high: pd.Series, form: str) -> list[str]:
        return ["" if a != a else f"{a:{form}} to {b:{form}}" for a, b in zip(low, high, strict=True)]

    shown = pd.DataFrame(
        {
            **({"run": rows["run"]} if several else {}),
            "method": rows["method"],
            "measure": rows["metric"].map(named),
            "value": rows["mean"],
            "95 % interval": interval(rows["low"], rows["high"], ".3f"),
            "n": rows["n"],
            "± seeds": rows["sd"],
            "difference": rows["difference"],
            "its 95 % interval": interval(rows["difference_low"], rows["difference_high"], "+.3f"),
            "p (Holm)": rows["p_holm"],
            "n would show": rows["detectable"],
        }
    ).dropna(axis="columns", how="all")
    number = st.column_config.NumberColumn
    st.dataframe(
        shown, hide_index=True, width="stretch", key="hallucination_table", placeholder="–", alt="Every measure of every method",
        column_config={
            "value": number(format="%.3f"), "± seeds": number(format="%.3f", help="Standard deviation over the seeds of a sampling method"),
            "difference": number(format="%+.3f", help="From the plain method, on the same questions"),
            "p (Holm)": number(format="%.2g", help="Sign-flip test by picture, corrected over methods"),
            "n would show": number(format="%.3f", help="The smallest difference that so many questions would find four times in five"),
        },
    )  # fmt: skip


def _report_figures(runs: list[Evaluated], tables: dict[str, pd.DataFrame]) -> None:
    """What the report draws of the same tables, a run at a time, and what the experiment compares besides."""
    from ...experiments.figures import hallucination as figures

    for one in runs:
        if one.label not in tables:
            continue
        makers = (figures.pope,) if one.benchmark.startswith("pope") else (figures.chair, figures.length)
        drawn = [figure for make in makers if (figure := make(tables[one.label])) is not None]
        against = "against_controls" in store().tables(one.run) and not one.benchmark.startswith("pope")
        if not drawn and not against:
            continue
        st.subheader(f"Mitigations and controls{f': {one.label}' if len(runs) > 1 else ''}")
        for figure in drawn:
            with shown_error():
                fold(figure, key=f"hallucination-{one.run}-{figure.name}", opened=False)
        if against:
            with shown_error():
                table = store().table(one.run, "against_controls")
                rows = table[table["difference"].notna()]
                told = rows["method"] + " against " + rows["base"]
                st.markdown("**Against sampling and controls**, on the same pictures")
                _table(rows.assign(method=told, sd=float("nan"), run=one.label), several=False)

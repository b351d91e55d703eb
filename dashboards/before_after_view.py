"""A tuned model against the model before on a page: verdicts, every lens, and the report's figures, from a run of `experiments.against`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from ..experiments.manifest import Listed
from .charts import escaped, fold
from .evaluations import label, told_apart
from .session import shown_error, store, warming
from .store import run_name

EXPERIMENT = "against"

PARTS = (
    (("scores",), ("retention", "skill")),
    (("margins", "likelihood"), ()),
    (("kl",), ()),
    (("layers",), ()),
    (("state_shift", "concept_shift"), ()),
)
"""For each figure the tables it needs, and those it also takes, in the order of the page."""

KEEP = {"persist_state": "session"}


def before_after_view() -> None:
    """Lays out the comparison that is chosen."""
    found = comparisons(store().runs())
    if not found:
        st.info(
            "No comparison here yet. `chiasm evaluate --adapter RUN --against organism` compares a tuned model with the model before, on "
            "everything: what it prefers, what it makes up, what it still knows, and every lens.",
            icon=":material/compare_arrows:",
        )
        return
    run = st.selectbox("Comparison", list(found), format_func=found.get, key="tuning_comparison", **KEEP)
    if store().run(run).state != "complete":
        st.warning("This comparison is not complete: shown is what it has so far.", icon=":material/hourglass_empty:")
    tables = {}
    for name in store().tables(run):
        with shown_error():
            tables[name] = store().table(run, name)
    with st.spinner("Drawing …"):
        warming().join()
        with shown_error():
            _verdicts(tables)
        with shown_error():
            _lenses(tables)
        _figures(run, tables)


def comparisons(runs: Sequence[Listed]) -> dict[str, str]:
    """Name of each run that compares → for people, no two alike."""
    found = [run for run in runs if run.experiment == EXPERIMENT and run.state in ("complete", "incomplete")]
    labels = []
    for run in found:
        trainings = len(run.manifest.get("models") or ()) - 1  # one of them is the model before
        many = f" ({trainings} trainings)" if trainings > 1 else ""
        labels.append(f"after tuning against {label(run)}{many}")
    names = [run_name(run) for run in found]
    return {name: text + end for name, text, end in zip(names, labels, told_apart(labels, names), strict=True)}


def lens_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over trainings of every number of every lens: before, after, change with its interval, and whether that leaves 0 out."""
    rows = table[table["model"] == "mean"] if "model" in table else table
    moved = (rows["low"] > 0) | (rows["high"] < 0)
    return pd.DataFrame({
        "lens": rows["lens"], "number": rows["quantity"], "before": rows["before"], "after": rows["after"], "change": rows["change"],
        "95 % interval": [f"{low:+.3f} to {high:+.3f}" if low == low else "" for low, high in zip(rows["low"], rows["high"], strict=True)],
        "moved": ["●" if one else "" for one in moved],
        "in SDs": rows["standardised"] if "standardised" in rows else float("nan"),
    }).reset_index(drop=True)  # fmt: skip


def _verdicts(tables: Mapping[str, pd.DataFrame]) -> None:
    """What preference tuning is said to do, and what this run says of it; then the short table of everything."""
    from ..experiments import against_words as words

    tables = {"summary": words.summary(tables)} | dict(tables)  # a run that is complete has it
    claims = words.claims(tables)
    if claims:
        with st.container(border=True, key="tuning_verdicts"):
            st.markdown("##### What is said of preference tuning, and what came out here")
            for claim in claims:
                st.markdown(
                    f"{escaped(claim.verdict)} — **{escaped(claim.claim)}** ({escaped(claim.source)})  \n{escaped(claim.here)}"
                )
    if len(tables["summary"]):
        shown = tables["summary"].dropna(axis="columns", how="all")
        with st.expander("Everything in one table"):
            st.dataframe(
                shown,
                hide_index=True,
                key="tuning_summary",
                column_config=_numbers(),
                alt="Every number before and after, with the change and its interval",
            )


def _lenses(tables: Mapping[str, pd.DataFrame]) -> None:
    if "lenses" not in tables:
        return
    rows = lens_rows(tables["lenses"])
    st.subheader("Every lens, before and after")
    lenses = list(dict.fromkeys(rows["lens"]))
    chosen = st.pills(
        "Lenses", lenses, selection_mode="multi", key="tuning_lenses", help="Choose none for all.", **KEEP
    )
    n, blocks = (int(tables["lenses"][name].max()) for name in ("n", "blocks"))
    kept = rows[rows["lens"].isin(chosen)] if chosen else rows
    st.dataframe(
        kept.dropna(axis="columns", how="all"),
        hide_index=True,
        height="content",
        key="tuning_lens_rows",
        column_config=_numbers(),
        alt="Every number of every lens, before and after",
    )
    st.caption(
        f"n = {n} scenes in {blocks} blocks; paired 95 % interval over blocks. ● the interval leaves 0 out; of {len(rows)} about "
        f"{0.05 * len(rows):.0f} would by chance. In SDs: the change over the spread of the value before between blocks."
    )


def _figures(run: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Each by itself, so that one that cannot be drawn leaves the others."""
    from ..experiments.figures.against import drawable

    for needed, more in PARTS:
        if all(name in tables for name in needed):
            with shown_error():
                for figure in drawable({name: tables[name] for name in (*needed, *more) if name in tables}):
                    fold(figure, key=f"tuning-{run}-{figure.name}", opened=needed == PARTS[0][0])


def _numbers() -> dict:
    number = st.column_config.NumberColumn
    plain = {name: number(format="%.3f") for name in ("before", "after", "low", "high", "sd")}
    return plain | {
        "change": number(format="%+.3f"),
        "in SDs": number(format="%+.1f"),
        "moved": st.column_config.TextColumn(help="The interval leaves 0 out"),
    }

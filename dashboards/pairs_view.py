"""Preference pairs on a page: what a set is made of, what was dropped and why, and each pair with what differs in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from .charts import escaped
from .marked import STYLE, said_html
from .session import shown_error, store, warming
from .training import trainings

if TYPE_CHECKING:  # seconds to import
    from PIL import Image

    from .pairs_browser import Contents, Pair, PairSet

A_PAGE = 3
"""Pairs shown at a time."""

HEIGHT = 320
"""Pixels of the pictures of a pair."""

SIDES = ("picture", "rejected picture")

KEEP = {"persist_state": "session"}


def pairs_view() -> None:
    """Lays out the set that is chosen."""
    with st.spinner("Looking for pairs …"):
        warming().join()
        from .pairs_browser import pair_sets, read_pair_set

        named = [one.manifest for one in trainings(store().runs())]
        found = {one.name: one for one in pair_sets(store().root, named)}
    if not found:
        st.info(
            "No preference pairs here yet. `chiasm pairs -n 100 --out runs/pairs/scenes` makes some from rendered scenes.",
            icon=":material/compare:",
        )
        return
    name = st.selectbox("Pairs", list(found), key="tuning_pairs", **KEEP)
    contents = read_pair_set(found[name])
    for problem in contents.problems:
        st.warning(escaped(problem), icon=":material/report:")
    _facts(found[name], contents)
    if contents.rows is not None and len(contents.table):
        _browse(name, contents)
    _dropped(contents)


def _facts(one: PairSet, contents: Contents) -> None:
    """How many, of what kinds, and what the texts give away."""
    if not one.complete:
        lost = len(contents.dropped)
        st.info(
            f"Being made, or stopped on the way: {contents.read:,} items read, {(contents.read or 0) - lost:,} pairs so far. "
            "`chiasm pairs` with the same `--out` goes on.",
            icon=":material/hourglass_empty:",
        )
        return
    report, setup = contents.report, contents.setup
    gave = report.get("giveaway") or {}
    told = gave.get("mean")
    known = told is not None and told == told
    with st.container(horizontal=True, gap="small"):
        st.metric(
            "Pairs",
            f"{report.get('n', len(contents.table)):,}",
            border=True,
            help=f"of {report.get('read', '?')} items read",
        )
        st.metric("Dropped", f"{sum((report.get('dropped') or {}).values()):,}", border=True)
        st.metric(
            "Told from the texts alone", f"{told:.0%}" if known else "–", border=True,
            help="Accuracy of a classifier that sees no picture, cross-validated; 50 % is wanted, else training can do without pictures. "
            + (f"95 % interval {gave['low']:.0%} to {gave['high']:.0%}, n = {gave['n']}." if known else "Not told: fewer than 20 pairs."),
        )  # fmt: skip
        difference = report.get("length_difference")
        st.metric(
            "Length difference",
            "–" if difference is None else f"{difference:+.2f}",
            border=True,
            help="Rejected less chosen text, in tokens, mean over pairs.",
        )
    if known:
        st.caption(
            f"Told from the texts alone: {told:.3f}, 95 % interval {gave['low']:.3f} to {gave['high']:.3f}, n = {gave['n']} pairs; 0.5 is wanted."
        )
    kinds = " · ".join(f"{kind} {count}" for kind, count in (report.get("kinds") or {}).items())
    made = [setup.get("backend") and f"filled by {setup['backend']}", setup.get("judge") and f"judged by {setup['judge']}",
            setup.get("encoder") and f"similar by {str(setup['encoder']).partition(':')[0]}"]  # fmt: skip
    st.caption(escaped(" · ".join([f"What differs: {kinds}" if kinds else "", *filter(None, made)]).strip(" ·")))


def _browse(name: str, contents: Contents) -> None:
    """A few pairs at a time, those of some kinds."""
    from .pairs_browser import pair_at

    table = contents.table
    kept = table
    for column, label in (("kind", "What differs"), ("rejected_image", "Rejected pictures")):
        values = sorted(table[column].dropna().unique()) if column in table else []
        if len(values) > 1:
            chosen = st.pills(
                label,
                values,
                selection_mode="multi",
                key=f"tuning_{column}_{name}",
                help="Choose none for all.",
                **KEEP,
            )
            kept = kept[kept[column].isin(chosen)] if chosen else kept
    st.markdown(f"**{len(kept):,}** of {len(table):,} pairs")
    pages = -(-len(kept) // A_PAGE)
    number = st.pagination(pages, key=f"tuning_page_{name}_{pages}") if pages > 1 else 1
    st.html(STYLE)
    for index in kept.index[(number - 1) * A_PAGE : number * A_PAGE]:
        with st.container(border=True, key=f"tuning_pair_{index}"), shown_error():
            _pair(pair_at(contents, int(index)), int(index))


def _pair(pair: Pair, index: int) -> None:
    left, right = st.columns([2, 3])
    with left:
        for problem in [picture for picture in pair.pictures if isinstance(picture, str)]:
            st.warning(escaped(problem))
        if pictures := [picture for picture in pair.pictures if not isinstance(picture, str)]:
            names = [name for name, picture in zip(SIDES, pair.pictures, strict=True) if not isinstance(picture, str)]
            st.image(
                side_by_side(pictures),
                caption=" | ".join(names),
                width="stretch",
                alt=f"{' and '.join(names)} of {pair.id}",
            )
    with right:
        st.markdown(f"**{escaped(pair.prompt)}**")
        st.caption(escaped(f"{pair.id} · {pair.kind}"))
        st.html(said_html("chosen", pair.chosen, "") + said_html("rejected", pair.rejected, ""))
        truths = [f"{what}: {found}" for what, found, _ in pair.checks[:3]]
        st.caption(escaped(" · ".join(truths)))
        with st.expander("Everything that was checked"):
            checks = pd.DataFrame(pair.checks, columns=["of the pair", "found", "meaning"])
            st.dataframe(checks, hide_index=True, key=f"tuning_checks_{index}", alt="What was checked of this pair")


def side_by_side(pictures: Sequence[Image.Image], height: int = HEIGHT, gap: int = 12) -> Image.Image:
    """Pictures at one height in a row, which a narrow window does not tear apart. Small ones stay sharp enough to tell."""
    from PIL import Image

    sizes = [(max(1, round(one.width * height / one.height)), height) for one in pictures]
    row = Image.new("RGBA", (sum(width for width, _ in sizes) + gap * (len(sizes) - 1), height))
    at = 0
    for one, size in zip(pictures, sizes, strict=True):
        row.paste(one.resize(size, Image.Resampling.LANCZOS), (at, 0))
        at += size[0] + gap
    return row


def _dropped(contents: Contents) -> None:
    """Why items gave no pair, and which."""
    lost = contents.dropped
    if not len(lost):
        return
    st.subheader("Dropped")
    counts = (
        lost.groupby(["reason", "why"], sort=False)
        .size()
        .reset_index(name="items")
        .sort_values("items", ascending=False)
    )
    st.dataframe(
        counts[["items", "reason", "why"]],
        hide_index=True,
        key="tuning_reasons",
        alt="Reasons and how many items each dropped",
    )
    with st.expander(f"All {len(lost):,} of them"):
        st.dataframe(lost, hide_index=True, key="tuning_dropped", alt="Every dropped item with its reason and what was tried",
                     column_config={"tried": st.column_config.TextColumn(help="How often each reason spoke against a fill or a picture")})  # fmt: skip

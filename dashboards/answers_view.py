"""The answers of an evaluation on a page: which to see, and each with the made-up words marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from . import frame
from .charts import escaped
from .evaluations import Evaluated
from .marked import STYLE, pieces_of, said_html
from .session import shown_error, store, warming

if TYPE_CHECKING:  # seconds to import
    from ..scenes.sample import Sample
    from .samples import Answers, Asked, Said

A_PAGE = 5
"""Questions shown at a time."""

WAYS = 3
"""Methods whose answers are shown where nobody chose."""

PROBLEMS = 3
"""Lines about what cannot be read that are shown one by one."""

KEEP = {"persist_state": "session"}


def answers_view(runs: Sequence[Evaluated]) -> None:
    """Lays out the answers of one of the runs."""
    kept = {one.label: one for one in runs if one.answers}
    if not kept:
        st.info(
            "These runs kept their scores, not their answers. Runs of `chiasm evaluate` keep both.",
            icon=":material/info:",
        )
        return
    name = next(iter(kept))
    if len(kept) > 1:
        name = st.selectbox(
            "Answers of", list(kept), key=f"hallucination_answers_{'_'.join(one.run for one in kept.values())}", **KEEP
        )
    run = kept[name].run
    with st.spinner("Reading the answers …"):
        warming().join()
        answers = _answers(kept[name])
    for problem in answers.problems[:PROBLEMS]:
        st.warning(escaped(problem), icon=":material/report:")
    if len(answers.problems) > PROBLEMS:
        st.warning(f"… and {len(answers.problems) - PROBLEMS} more such lines.", icon=":material/report:")
    if not answers.asked:
        st.info("There is no answer yet.")
        return
    _counts(answers)
    found, ways = _chosen(answers, run)
    skipped = f"; {answers.skipped} could not be asked" if answers.skipped else ""
    st.markdown(f"**{len(found):,}** of {len(answers.asked):,} questions{skipped}")
    _list(run, found, ways)


def _chosen(answers: Answers, run: str) -> tuple[list[Asked], list[str]]:
    """Widgets for what to see; the questions that are left, and the methods whose answers are shown."""
    from .samples import ANY, FAULTS, failing, told_way

    def method(label: str, nobody: str, **how) -> str:
        told = {"": nobody} | {way: told_way(way) for way in answers.ways}
        return st.selectbox(label, list(told), format_func=lambda way: told.get(way, way), **how, **KEEP)

    split = None
    with st.container(horizontal=True, gap="medium"):
        fault = st.pills(
            "Failures", [ANY, *answers.faults], default=ANY, format_func=lambda code: FAULTS.get(code, "any failure"),
            key=f"hallucination_fault_{run}", help="Choose none to see every question.", **KEEP,
        )  # fmt: skip
        if len(answers.splits) > 1:
            split = st.pills(
                "Questions", answers.splits, key=f"hallucination_asked_{run}", help="Choose none for all.", **KEEP
            )
    first = [way for way in answers.ways if not way.rpartition(".seed")[1] or way.endswith("0")][:WAYS]
    shown = st.multiselect(
        "Methods shown", answers.ways, default=first, format_func=told_way, key=f"hallucination_ways_{run}", **KEEP
    )
    places = st.columns(3)
    with places[0]:
        way = method("Failing", "any that is shown", key=f"hallucination_way_{run}")
    with places[1]:
        better = method("while this one is right", "–", key=f"hallucination_better_{run}")
    word = ""
    if answers.words:
        with places[2]:
            words = ["", *answers.words]
            word = st.selectbox(
                "Made-up object", words, format_func=lambda one: one or "any", key=f"hallucination_word_{run}", **KEEP
            )
    shown = [*(shown or first), *(one for one in dict.fromkeys((way, better)) if one and one not in (shown or first))]
    counted = [way] if way else [one for one in shown if one != better]
    found = failing(answers, fault=fault, ways=counted, better=better or None, word=word or None, split=split)
    return found, shown


def _list(run: str, found: Sequence[Asked], ways: Sequence[str]) -> None:
    """A few questions at a time."""
    if not found:
        st.info("No question is left: take a filter away.", icon=":material/filter_alt_off:")
        return
    pages = -(-len(found) // A_PAGE)
    number = st.pagination(pages, key=f"hallucination_page_{run}_{pages}") if pages > 1 else 1
    st.html(STYLE)
    for one in found[(number - 1) * A_PAGE : number * A_PAGE]:
        with st.container(border=True, key=f"hallucination_item_{one.id}"):
            _question(run, one, ways)


def _question(run: str, one: Asked, ways: Sequence[str]) -> None:
    """Picture and question, what is true, and the answers."""
    from .pictures import plain_prompt, shown
    from .samples import told_way

    left, right = st.columns([1, 3])
    sample = None
    with left, shown_error():
        sample = _sample(run, one.id)
        st.image(shown(sample.images[0], sample), width="stretch", alt=f"The picture of {one.id}")
        if st.button("Open in Look", key=f"hallucination_look_{one.id}", icon=":material/visibility:", width="stretch"):
            st.session_state["look_request"] = {"run": run, "id": one.id}
            frame.go("look")
    with right:
        question = plain_prompt(sample.prompt) if sample is not None else one.id
        there = one.truth if isinstance(one.truth, str) else ", ".join(one.truth) or "nothing that is listed"
        right_is = "The right answer" if isinstance(one.truth, str) else "There"
        said = [
            said_html(told_way(way), pieces_of(s.text, s.marks), _verdict(s))
            for way in ways
            if (s := one.said.get(way))
        ]
        st.markdown(f"**{escaped(question)}**")
        st.caption(f"{right_is}: {there}" + (f" · {one.split}" if one.split != "all" else "") + f" · {one.id}")
        st.html("".join(said) or "None of these methods has answered yet.")


def _verdict(said: Said) -> str:
    """What is to be said of an answer, in words and with a sign."""
    from .samples import FAULTS

    if not said.faults:
        return "✓ right" if said.reads else "✓ nothing made up, nothing left out"
    objects = {"made_up": ", ".join(dict.fromkeys(said.made_up)), "left_out": ", ".join(said.left_out)}
    signs = {"left_out": "○"}
    return " · ".join(
        f"{signs.get(fault, '✗')} {FAULTS[fault]} {objects.get(fault, '')}".strip() for fault in said.faults
    )


def _counts(answers: Answers) -> None:
    """How often each method fails, and which objects it makes up."""
    from .samples import fault_table, invented_words

    words = invented_words(answers)
    with st.expander("How often each method fails" + (", and which objects it makes up" if len(words) else "")):
        places = st.columns(2 if len(words) else 1)
        places[0].dataframe(
            fault_table(answers), hide_index=True, key="hallucination_faults", alt="Answers and failures of each method"
        )
        if len(words):
            places[1].dataframe(
                words, key="hallucination_words", alt="How often each method mentions each object that is not there"
            )


def _answers(one: Evaluated) -> Answers:
    """Read again when one of the files has changed."""
    listed = store().run(one.run)
    files = sorted((listed.path / "answers").glob("*.jsonl"))
    changed = tuple((file.name, file.stat().st_mtime_ns) for file in files)
    return _read(str(listed.path), changed, one.prefix, {**listed.manifest, "benchmark": one.benchmark})


@st.cache_resource(show_spinner=False, max_entries=8)
def _read(path: str, changed: tuple, prefix: str, _manifest) -> Answers:
    from .samples import read_run_answers

    return read_run_answers(path, _manifest, prefix)


@st.cache_resource(show_spinner=False, max_entries=256)
def _sample(run: str, sample_id: str) -> Sample:
    from .pictures import sample_of

    return sample_of(store().run(run).manifest, sample_id)

"""The page Tuning: trainings as they go on, the pairs they learn from, and what every lens says before and after."""

from __future__ import annotations

import streamlit as st

from ..before_after_view import before_after_view
from ..pairs_view import pairs_view
from ..session import shown_error
from ..training_view import training_view

VIEWS = {"Training": training_view, "Pairs": pairs_view, "Before and after": before_after_view}


def page() -> None:
    """Lays the page out."""
    st.title("Tuning")
    st.caption("Preference pairs, the trainings on them, and what they changed.")
    view = st.segmented_control(
        "Show", list(VIEWS), default="Training", required=True, key="tuning_view", persist_state="session"
    )
    with shown_error():
        VIEWS[view]()

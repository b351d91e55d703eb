"""The page Hallucination."""

from __future__ import annotations

import streamlit as st


def page() -> None:
    """Lays the page out."""
    st.title("Hallucination")
    st.info("This page is being built.")

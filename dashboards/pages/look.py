"""The page Look."""

from __future__ import annotations

import streamlit as st


def page() -> None:
    """Lays the page out."""
    st.title("Look")
    st.info("This page is being built.")

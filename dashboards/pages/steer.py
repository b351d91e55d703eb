"""The page Steer."""

from __future__ import annotations

import streamlit as st


def page() -> None:
    """Lays the page out."""
    st.title("Steer")
    st.info("This page is being built.")

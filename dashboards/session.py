"""What the windows share: the settings, the model with its lock, the store; and how an error is shown."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import streamlit as st

from ..scenes.errors import UserError
from .charts import escaped
from .settings import told
from .store import Store

if TYPE_CHECKING:  # seconds to import: a page that needs no model does without
    from ..models.vlm import VLM

KEPT = {"persist_state": "session"}
"""Makes what is chosen in a control outlive a visit to another page."""

logger = logging.getLogger("chiasm")


def open_model_here(model: str | None = None, adapter: str | None = None) -> VLM:
    """The model the command was told (or another by name), opened once for all windows. Raises UserError."""
    settings = told()
    if model is None:
        model, adapter = settings.model, settings.adapter
    return _opened(model, adapter, settings.device)[0]


def model_lock(model: str | None = None, adapter: str | None = None) -> threading.RLock:
    """The lock of that model: held while its weights or hooks are changed for all threads (most things change one alone)."""
    settings = told()
    if model is None:
        model, adapter = settings.model, settings.adapter
    return _opened(model, adapter, settings.device)[1]


@st.cache_resource(show_spinner="Opening the model …", max_entries=2)
def _opened(model: str, adapter: str | None, device: str | None) -> tuple[VLM, threading.RLock]:
    warming().join()  # two threads that import the same libraries by different ways may get in each other's way
    from ..experiments.options import open_model

    return open_model(model, adapter=adapter, device=device), threading.RLock()


@st.cache_resource(show_spinner=False)
def warming() -> threading.Thread:
    """Imports what the pages need, once, while the first page is being looked at: it takes seconds."""
    from importlib import import_module

    def load() -> None:
        for name in ("chiasm.experiments.lenses", "pyarrow.parquet", "plotly.tools", "chiasm.models"):
            import_module(name)

    thread = threading.Thread(target=load, name="warming", daemon=True)
    thread.start()
    return thread


def store() -> Store:
    """The runs of the folder the command was told."""
    return _store(told().runs)


@st.cache_resource(show_spinner=False)
def _store(root: str) -> Store:
    return Store(root)


@contextmanager
def shown_error() -> Iterator[None]:
    """Whatever goes wrong inside is one readable line on the page, and what comes after it goes on."""
    try:
        yield
    except UserError as error:
        st.error(escaped(str(error)), icon=":material/error:")
    except MemoryError:
        st.error("No memory left: take a smaller picture or model, or close other windows.", icon=":material/memory:")
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for its name
            st.error("The device has no memory left: take a smaller picture or model.", icon=":material/memory:")
            return
        logger.exception("a page failed")
        told = " ".join(str(error).split())[:300]
        st.error(f"This part failed ({type(error).__name__}: {escaped(told)}). The terminal has the whole story.", icon=":material/error:")  # fmt: skip

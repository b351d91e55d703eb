"""A small store of runs, and pages opened as a window opens them."""

from __future__ import annotations

import json

import pytest
from chiasm.dashboards.settings import VARIABLE
from streamlit.testing.v1 import AppTest


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory):
    """A folder with measurements of two organisms through every lens. Tests that change it take a copy."""
    from .evaluation_runs import make_measurements

    root = tmp_path_factory.mktemp("runs")
    make_measurements(root)
    return root


@pytest.fixture
def told(monkeypatch, runs_root):
    """told(runs=…, model=…): what the command was told; the small store and the organism where nothing else is given."""

    def tell(**settings):
        monkeypatch.setenv(VARIABLE, json.dumps({"runs": str(runs_root), "device": "cpu"} | settings))

    tell()
    return tell


@pytest.fixture
def open_page(told):
    """open_page(name): the page, drawn once, as an AppTest. A page that failed shows so in `.error`."""

    def opened(name: str) -> AppTest:
        script = f"from chiasm.dashboards.frame import page_alone\npage_alone({name!r})"
        return AppTest.from_string(script, default_timeout=60).run()

    return opened


@pytest.fixture(scope="session")
def evaluations(tmp_path_factory):
    """Folders of small evaluations by name of the benchmark, in a folder of runs of their own."""
    from .evaluation_runs import make_evaluations

    return make_evaluations(tmp_path_factory.mktemp("evaluations"))

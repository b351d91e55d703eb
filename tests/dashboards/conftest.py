"""A small store of runs, and pages opened as a window opens them."""

from __future__ import annotations

import json

import pytest
from chiasm.dashboards.settings import VARIABLE
from chiasm.models import open_vlm
from streamlit.testing.v1 import AppTest


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory):
    """A folder with measurements of two organisms through every lens. Tests that change it take a copy."""
    from chiasm.experiments.lenses import built_in
    from chiasm.experiments.run import Run
    from chiasm.experiments.study import framed_scenes
    from chiasm.probes import measure

    root = tmp_path_factory.mktemp("runs")
    for member in ("tuned", "aligned"):
        vlm = open_vlm(f"organism/{member}", device="cpu")
        samples = framed_scenes(8)
        config = {"model": f"organism/{member}", "data": "scenes", "limit": 8, "seed": 0}
        with Run.create("measure", config, root) as run:
            measure(vlm, samples, built_in(vlm, next(iter(samples)))[0], run=run, progress=False)
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

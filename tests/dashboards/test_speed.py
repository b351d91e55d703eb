"""How long pages take, in seconds of this process's CPU time: a wall clock would measure what else the machine does."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from chiasm.dashboards.frame import PAGES
from chiasm.dashboards.settings import VARIABLE
from chiasm.dashboards.store import Store

FIRST_PAGE, PAGE_SWITCH = 3.0, 1.0
"""Seconds."""


@pytest.fixture(scope="module")
def many_runs(runs_root, tmp_path_factory):
    """200 runs with the tables of the small store's two."""
    root = tmp_path_factory.mktemp("many")
    sources = sorted((runs_root / "measure").iterdir())
    for i in range(200):
        shutil.copytree(
            sources[i % 2], root / f"measure{i % 5}/20261101-{i:06}-abcdef", ignore=shutil.ignore_patterns("states", "figures"), copy_function=os.link
        )  # fmt: skip
    return root


@pytest.mark.parametrize("name", ["runs", "lenses", "hallucination", "tuning"])
def test_a_page_is_there_at_once_with_200_runs(open_page, told, many_runs, name):
    told(runs=str(many_runs))
    page = open_page(name)  # what is imported first is imported while the first page is looked at
    assert not page.error
    spent = []
    for _ in range(3):
        began = time.process_time()
        page.run()
        spent.append(time.process_time() - began)
    assert min(spent) < PAGE_SWITCH


def test_the_list_of_200_runs_is_looked_through_in_no_time(many_runs):
    store = Store(many_runs)
    assert len(store.runs()) == 200 and len(store.sources("implicit_alignment")) == 200
    began = time.process_time()
    for _ in range(10):
        store.runs()
        store.sources("implicit_alignment")
    assert (time.process_time() - began) / 10 < 0.1


def test_the_first_page_is_drawn_without_what_takes_seconds_to_import(many_runs):
    drawn = f"from chiasm.dashboards.frame import page_alone\npage_alone({next(iter(PAGES))!r})"
    script = (
        "import sys, time, streamlit.web.cli, chiasm.dashboards.serve\n"
        "from streamlit.testing.v1 import AppTest\n"
        f"page = AppTest.from_string({drawn!r}, default_timeout=60).run()\n"
        "print(time.process_time(), 'torch' in sys.modules, len(page.error), page.title[0].value)\n"
    )
    environment = os.environ | {VARIABLE: json.dumps({"runs": str(many_runs)})}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    seconds, torch, errors, title = done.stdout.split()
    assert (torch, errors, title) == ("False", "0", "Look")
    assert float(seconds) < FIRST_PAGE

"""The pages in docs/ that hold code: it is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.experiments import cli
from chiasm.experiments.options import load_probe
from chiasm.experiments.page import png_of
from chiasm.experiments.run import list_runs
from chiasm.probes.measure import measure
from chiasm.scenes.benchmarks import scene_samples
from PIL import Image

from .probes.measuring import Stream, tiny_vlm

PAGE = Path(__file__).parents[1] / "docs" / "adding_a_probe.md"


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm()


@pytest.fixture
def travel(tmp_path) -> Path:
    """The probe of the page, saved as it says."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "travel.py"
    path.write_text(code, encoding="utf-8")
    return path


def test_the_probe_has_at_most_40_lines(travel):
    lines = [line for line in travel.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 40


def test_its_table_holds_the_distances(travel, vlm):
    probe = load_probe(f"{travel}:Travel")
    table = measure(vlm, Stream(7), [probe], batch_size=3, progress=False).tables["travel"]
    assert set(table["n"]) == {7}
    assert set(table["tokens"]) == {"picture", "text"} and len(table) == 2 * vlm.anatomy.n_layers
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    # the same by hand, one sample at a time
    distances = []
    for item in Stream(7):
        inputs = vlm.prepare_samples([item])
        trace = vlm.trace(inputs, ["embed", "blocks.1.resid_post"])
        far = (trace["blocks.1.resid_post"] - trace["embed"]).norm(dim=-1) / trace["embed"].norm(dim=-1)
        distances.append(far[inputs.spans.visual].double().mean().item())
    row = table[(table["tokens"] == "picture") & (table["layer"] == 1)].iloc[0]
    assert row["mean"] == pytest.approx(np.mean(distances), rel=1e-5)


def test_its_figure_shows_the_table(travel, vlm):
    probe = load_probe(f"{travel}:Travel")
    table = measure(vlm, Stream(5), [probe], progress=False).tables["travel"]
    figure = probe.draw(table)
    (axis,) = [axis for axis in figure.axes if axis.get_visible()]
    drawn = {tuple(np.round(line.get_ydata().astype(float), 6)) for line in axis.lines if len(line.get_ydata()) == 3}
    expected = {tuple(np.round(rows["mean"].to_numpy(), 6)) for _, rows in table.groupby("tokens")}
    assert expected <= drawn
    assert {text.get_text() for text in axis.texts} >= {"picture", "text"}
    assert png_of(figure, 60).startswith(b"\x89PNG")


def test_the_command_of_the_page_runs_it(travel, vlm, tmp_path, monkeypatch, capsys):
    model = vlm.save(tmp_path / "tiny")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 32), (60 * i, 30, 30)).save(photos / f"{i}.png")
    assert "chiasm measure --probe travel.py:Travel" in PAGE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["measure", "--probe", "travel.py:Travel", "--model", str(model), "--data", str(photos), "--device", "cpu"]
        )
    assert ended.value.code == 0, capsys.readouterr().err
    (run,) = list_runs("runs")
    kept = pd.read_parquet(run.path / "tables" / "travel.parquet")
    assert set(kept["n"]) == {3} and torch.isfinite(torch.tensor(kept["mean"].to_numpy())).all()


def test_the_intervention_of_the_page_on_steering_acts_where_it_says():
    page = PAGE.with_name("steering.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    own: dict = {}
    exec(compile(code, "steering.md", "exec"), own)
    vlm = own["open_vlm"]("organism")
    sample = next(iter(scene_samples(1, "test")))
    inputs = vlm.prepare([sample.images], [sample.prompt])
    with own["steer"](vlm, own["Silence"](1)):
        said = vlm.trace(inputs, ["blocks.1.mlp_out"])["blocks.1.mlp_out"]
    assert not said[inputs.spans.visual].any()
    assert said[~inputs.spans.visual].any()


def test_the_page_on_steering_names_every_intervention_there_is():
    import chiasm.steering as steering

    page = PAGE.with_name("steering.md").read_text(encoding="utf-8")
    missing = [name for name in steering.__all__ if f"`{name}" not in page and f"{name}(" not in page]
    assert set(missing) <= {"Direction", "causal_trace", "steer", "try_directions", "Blank", "RandomTokens"}

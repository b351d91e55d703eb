"""The acting experiment: its arithmetic by hand, the headline numbers of every lens, and the whole of it on a few scenes."""

import numpy as np
import pandas as pd
import pytest
from chiasm.experiments import acting
from chiasm.experiments.acting import Changed, against_random, before_after, claims, paired
from chiasm.experiments.figures import Heat
from chiasm.experiments.figures.acting import changes as figure
from chiasm.experiments.figures.rows import pick
from chiasm.experiments.lens_values import instruments, split
from chiasm.experiments.lenses import LENSES
from chiasm.experiments.page import number
from chiasm.experiments.run import load_run
from chiasm.experiments.study import framed_scenes
from chiasm.models import open_vlm
from chiasm.probes.measure import measure
from chiasm.scenes.errors import UserError


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return acting.study(open_vlm("organism", device="cpu"), limit=8, root=tmp_path_factory.mktemp("runs"))


def test_scenes_are_split_into_blocks_of_nearly_one_size_in_order():
    assert split(list(range(7)), 3) == [[0, 1, 2], [3, 4], [5, 6]]


def test_paired_interval_by_hand():
    row = paired(np.array([1.0, 2.0, 3.0, np.nan]))
    # mean 2, sd 1, n 3: half = 4.302653 / sqrt(3)
    assert row["change"] == pytest.approx(2) and row["blocks"] == 3
    assert row["high"] - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-5)


def test_changes_are_paired_and_standardised_by_the_plain_spread():
    values = {
        "plain": {("lens", "a"): np.array([0.0, 2.0]), ("lens", "b"): np.array([1.0, 1.0])},
        "one\nthing": {("lens", "a"): np.array([1.0, 3.0]), ("lens", "b"): np.array([1.0, 2.0])},
    }
    table = before_after(values, [Changed("one\nthing", None, ("a", 1))]).set_index("quantity")
    assert table.loc["a", ["before", "after", "change", "low", "high"]].tolist() == [1, 2, 1, 1, 1]
    assert table.loc["a", "standardised"] == pytest.approx(1 / 2**0.5) and np.isnan(table.loc["b", "standardised"])
    assert table["own"].tolist() == [True, False] and table["intervention"].unique() == ["one thing"]
    random = against_random({"colour\nstyle": values["one\nthing"], "random\ndirection": values["plain"]})
    assert random["change"].tolist() == [1, 0.5]


def test_every_lens_is_measured_again_under_every_intervention(study):
    table = study.tables["changes"]
    assert set(table["lens"]) == {lens.title for lens in LENSES.values()} | {acting.SAID}
    assert table["intervention"].nunique() == 8 and table.groupby("intervention").size().nunique() == 1
    assert table["own"].sum() == 7 and table.loc[table["intervention"] == "random direction", "own"].sum() == 0
    assert {"lens", "quantity", "intervention", "before", "after", "change", "low", "high", "n"} <= set(table)
    pd.testing.assert_series_equal(table["after"] - table["before"], table["change"], check_names=False)


def test_numbers_are_those_of_the_cards():
    vlm = open_vlm("organism", device="cpu")
    tables = measure(vlm, list(framed_scenes(6)), instruments(vlm), progress=False).tables
    cards = {card.name: card.value for name, table in tables.items() for card in LENSES[name].cards(table)}
    numbers = {key: value for name, table in tables.items() for key, value in LENSES[name].numbers(table).items()}
    for card, key in (("IMA score (same layer)", "IMA score"), ("Attention shift", "attention shift"), ("Shared weights (IoU)", "shared weights (IoU)")):  # fmt: skip
        assert cards[card] == number(numbers[key])
    mass = pick(tables["attention_shift"], quantity="mass", run="vlm", version="raw", queries="post", segment="image")
    assert (
        0 < numbers["attention on the sink"] < numbers["attention on the picture"]
    )  # the organism has no sink to speak of
    assert numbers["attention on the picture"] == pytest.approx(mass["mean"].mean())
    r2 = pick(tables["embeddings"], target="depth", quantity="r2", labels="true", features="layer").sort_values("layer")
    assert numbers[acting.DEPTH] == pytest.approx(r2["mean"].iloc[1:-1].mean())  # behind blocks: no input, no norm


def test_what_acts_on_text_leaves_visual_tokens_before_it_as_they_are(study):
    table = study.tables["changes"]
    for name in ("PAI boost", "colour style", "random direction"):
        for quantity in ("true words in visual tokens", acting.DEPTH):
            assert pick(table, intervention=name, quantity=quantity)["change"].abs().max() < 1e-6


def test_interventions_act_where_they_say(study):
    own = study.tables["changes"].query("own")
    signs = own.set_index("intervention")
    assert signs.loc["PAI boost", "change"] > 0.05
    assert signs.loc["exit at half", "change"] < -0.05
    assert signs.loc["colour style", "change"] > 0.5
    assert signs.loc["prune to ¼", "change"] > 1


def test_claims_are_verdicts_of_intervals(study):
    row = {"lens": "x", "before": 1.0, "after": 1.1, "blocks": 6, "n": 48}
    wanted = [(0.05, 0.15, True), (0.001, 0.002, False), (-0.1, 0.3, None)]  # above, within 1 %, undecided
    for low, high, holds in wanted:
        table = study.tables["changes"].copy()
        at = (table["intervention"] == "PAI boost") & (table["quantity"] == acting.ATTENTION)
        table.loc[at, ["before", "after", "change", "low", "high"]] = [row["before"], 1.1, (low + high) / 2, low, high]
        assert claims(study.tables | {"changes": table})[0].holds is holds
    assert len(study.claims) == 8 and all("blocks" in claim.here for claim in study.claims)


def test_the_figure_frames_own_cells_and_shows_every_change(study):
    table = study.tables["changes"]
    heat = figure(table).chart.panels[0].marks[0]
    assert len(heat.framed) == 7 and heat.range == (-4, 4)
    assert Heat([[1.0, -3.0]], ["a"], ["b", "c"], "", signed=True).range == (-3, 3)
    assert len(heat.rows) == table["quantity"].nunique() and len(heat.columns) == 8
    assert all(text for line in heat.texts for text in line)


def test_the_run_holds_its_tables_and_figure(study):
    run = load_run(study.path)
    assert run.finished
    assert {path.stem for path in (study.path / "figures").glob("*.png")} == {"acting"}
    assert len(study.found) == 9


def test_another_model_is_refused_in_one_line():
    with pytest.raises(UserError, match="acting"):
        acting.run("llava-hf/llava-1.5-7b-hf")

"""The experiment on concepts: a complete run, its tables against each other, its words and figures; refusals."""

import numpy as np
import pytest
import torch
from chiasm.experiments.concept_tables import correlations, summary
from chiasm.experiments.concepts import STYLES, THINGS, claims, run, study
from chiasm.experiments.figures.chart import Chart, Panel, Strip
from chiasm.experiments.figures.concepts import KIND_NAMES
from chiasm.experiments.figures.interactive import draw_interactive
from chiasm.experiments.figures.picture import draw_picture
from chiasm.experiments.run import load_run
from chiasm.probes.concept_files import load_dictionary, load_shift
from chiasm.probes.concept_recovery import KINDS
from chiasm.scenes.errors import UserError
from scipy.stats import pearsonr, t

LIMIT = 48


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return study(limit=LIMIT, device="cpu", root=tmp_path_factory.mktemp("runs"), k=3)


def test_a_complete_run_that_can_be_read_again(found):
    kept = load_run(found.path)
    assert kept.finished and set(kept.tables()) == {
        "concepts",
        "recovered",
        "summary",
        "correlations",
        "dictionaries",
        "layers",
    }
    assert len(list((found.path / "figures").glob("*.png"))) == len(found.figures) == 6
    for style in STYLES:
        before, card = load_dictionary(found.path / "arrays" / f"{style}-before")
        after, other = load_dictionary(found.path / "arrays" / f"{style}-after")
        shift, third = load_shift(found.path / "arrays" / f"{style}-shift")
        assert before.atoms.shape == after.atoms.shape == shift.shift.shape
        assert card["model_hash"] == third["from_hash"] != other["model_hash"] == third["model_hash"]
        assert card["site"] == "final" and card["n"] == len(before.codes) and card["words"] == list(THINGS)


def test_the_summary_is_of_the_recovery_and_its_intervals_are_students(found):
    table, recovered = found.tables["summary"], found.tables["recovered"]
    for style in STYLES:
        each = {
            kind: recovered[(recovered["style"] == style) & (recovered["kind"] == kind)]
            .groupby("concept")["cosine_gain"]
            .mean()
            for kind in KINDS
        }
        difference = (each["shift"] - each["global"]).dropna()
        rows = table[
            (table["style"] == style) & (table["measure"] == "cosine_gain") & (table["kind"] == "global")
        ].set_index("what")
        assert rows.loc["mean", "mean"] == pytest.approx(each["global"].mean())
        row = rows.loc["own minus this"]
        half = t.ppf(0.975, len(difference) - 1) * difference.std() / len(difference) ** 0.5
        assert (row["mean"], row["high"] - row["mean"], row["n"]) == pytest.approx(
            (difference.mean(), half, len(difference))
        )
    assert summary(recovered).equals(table)


def test_correlations_are_over_concepts(found):
    concepts, recovered, table = (found.tables[name] for name in ("concepts", "recovered", "correlations"))
    gain = recovered[recovered["kind"] == "shift"].groupby(["style", "concept"])["cosine_gain"].mean()
    joined = concepts.set_index(["style", "concept"])["consistency"].to_frame().assign(gain=gain).dropna()
    row = table[(table["style"] == "both") & (table["against"] == "consistency") & (table["kind"] == "pearson")].iloc[0]
    assert row["n"] == len(joined) and row["value"] == pytest.approx(
        pearsonr(joined["consistency"], joined["gain"]).statistic
    )
    few = correlations(concepts[concepts["concept"] < 1], recovered)
    assert few["value"].isna().all()  # two points make no correlation


def test_every_number_comes_with_its_n_and_every_claim_with_an_interval(found):
    assert all("n = " in sentence or sentence.startswith("Check") for sentence in found.found)
    assert len(found.claims) == 6 and all("95 %" in claim.here and "n = " in claim.here for claim in found.claims)
    tables = {**found.tables, "summary": found.tables["summary"].assign(low=np.nan)}
    assert all(claim.holds is None for claim in claims(tables) if "cosine" in claim.here)  # no interval, no verdict


def test_every_site_is_judged_in_forward_order(found):
    table = found.tables["layers"]
    blocks = len(table) - 1
    assert table["site"].tolist() == [*(f"blocks.{i}.resid_post" for i in range(blocks)), "final"]
    snmf = found.tables["dictionaries"].set_index("method").loc["snmf"]
    assert table.iloc[-1]["true_mean"] == pytest.approx(snmf["true_mean"])  # the same states, the same question


def test_every_dictionary_is_judged_on_pictures_it_was_not_learnt_from(found):
    table = found.tables["dictionaries"].set_index("method")
    assert list(table.index) == ["snmf", "kmeans", "pca", "simple"] and (table["true_n"] <= LIMIT // 2).all()
    assert table[["true_mean", "random_mean", "overlap", "stability", "error"]].notna().all().all()


def test_figures_say_what_they_are(found):
    assert [drawn.name for drawn in found.figures] == [
        "cards-colour",
        "cards-place",
        "consistency",
        "baselines",
        "dictionaries",
        "layers",
    ]
    for drawn in found.figures:
        assert drawn.title and len(drawn.alt) > 30 and "n = " in drawn.note and 1 < drawn.reading.count(".") < 6
    assert set(KIND_NAMES) == set(KINDS)


def test_a_strip_holds_its_pictures_in_order_in_both_drawings(found):
    strip = Strip([np.full((4, 4, 3), value, np.uint8) for value in (10, 20)], ["a < b", "c"])
    montage = strip.montage(gap=2)
    assert montage.shape == (4, 10, 3) and montage[0, :, 0].tolist() == [10] * 4 + [255] * 2 + [20] * 4
    chart = Chart([Panel("t", "", "", [strip])], "n = 2")
    assert draw_picture(chart).axes[0].get_xlabel() == "a < b\nc"
    interactive = draw_interactive(chart)
    assert len(interactive.layout.images) + sum(trace.type == "image" for trace in interactive.data) == 1
    assert any(note.text == "a &lt; b<br>c" for note in interactive.layout.annotations)


def test_bad_questions_leave_no_complete_run(tmp_path):
    with pytest.raises(UserError, match="--model organism"):
        run("llava-hf/llava-1.5-7b-hf", root=tmp_path)
    with pytest.raises(UserError, match="'zebra' is in none of the 4 captions"):
        run(limit=4, word="zebra", root=tmp_path, device="cpu")
    with pytest.raises(UserError, match="fewer than 30 concepts"):
        run(limit=8, k=30, root=tmp_path, device="cpu")
    assert all(path.name.endswith(".partial") for path in (tmp_path / "concepts").iterdir())


def test_the_same_seed_gives_the_same_numbers(found, tmp_path, monkeypatch):
    monkeypatch.setattr("chiasm.experiments.concepts.keep_figures", lambda *_: [])
    torch.manual_seed(5)
    again = study(limit=LIMIT, device="cpu", root=tmp_path, k=3)
    for name in ("concepts", "recovered", "summary"):
        assert again.tables[name].equals(found.tables[name])

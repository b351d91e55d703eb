"""The experiment on what layers know: a complete run on the organism, on another model with a teacher, and its words."""

import pandas as pd
import pytest
import torch
import transformers as hf
from chiasm.experiments import embeddings
from chiasm.experiments.bench import QUICK
from chiasm.experiments.bench_embeddings import inner_folds, planted, refit, rows, stream
from chiasm.experiments.figures import draw
from chiasm.experiments.figures import embeddings as figures
from chiasm.experiments.headlines_embeddings import embedding_cards, embedding_claims
from chiasm.experiments.lineage import Lineage, lineage
from chiasm.experiments.run import load_run
from chiasm.probes.embedding_table import empty_table
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample
from PIL import Image

from ..probes.measuring import tiny_vlm


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    series = lineage()
    few = Lineage(series.stages[:3], False, "three of the shipped models")
    return embeddings.study(few, limit=24, questions=4, device="cpu", root=tmp_path_factory.mktemp("runs"))


def test_a_complete_run_with_every_reference_level(study):
    kept = load_run(study.path)
    table = kept.read_table("embeddings")
    own = table[table["stage"].eq("tuned") & table["quantity"].eq("r2") & table["labels"].eq("true")]
    assert kept.finished and {"layer", "random decoder", "mean", "place", "pixels", "tower"} == set(own["features"])
    assert set(table["stage"]) == {"lm", "aligned", "tuned"}
    quality = kept.read_table("quality")
    assert len(quality) == 3 * 2 * 3 and quality["n"].eq(24).all()
    blocks = own[own["features"].eq("layer") & own["target"].eq("depth")].sort_values("layer")["mean"].iloc[1:-1]
    found = quality.query("stage == 'tuned' and target == 'depth' and at == 'mean of blocks'")["mean"].item()
    assert found == pytest.approx(blocks.mean())
    assert {path.stem for path in (kept.path / "figures").glob("*.png")} == {
        "layers",
        "cosines",
        "bits",
        "growth",
        "scatter",
    }


def test_its_words_have_n_and_claim_nothing_from_three_models(study):
    assert any("n = 24 pictures" in line and "random decoder" in line for line in study.found)
    assert any("no claim is made" in line for line in study.found)
    across = [claim for claim in study.claims if claim.claim.startswith("Models from which")]
    assert across and all(claim.holds is None for claim in across)


def test_cards_claims_and_figures_of_a_table_with_nothing():
    table = empty_table([("no picture in the sample", 3)])
    assert embedding_cards(table) == [] and embedding_claims(table) == []
    assert [figure(table) for figure in figures.FIGURES] == [None] * len(figures.FIGURES)


def test_cards_and_claims_are_of_the_table(study):
    table = study.tables["embeddings"]
    own = table[table["stage"] == "tuned"]
    assert len(embedding_cards(own)) == 2
    last = [claim for claim in embedding_claims(own) if claim.claim.startswith("After the last block")]
    assert len(last) == 2 and all("n = 24" in claim.here for claim in last)


def test_a_random_decoder_is_another_and_leaves_the_model():
    vlm = tiny_vlm()
    before = vlm.fingerprint()
    other = embeddings.random_decoder(vlm, seed=1)
    assert vlm.fingerprint() == before != other.fingerprint()
    mine, theirs = dict(vlm.model.named_parameters()), dict(other.model.named_parameters())
    for name, value in mine.items():
        drawn = "language_model.layers" in name and value.ndim > 1
        assert torch.equal(value, theirs[name]) != drawn
        if drawn:
            assert float((theirs[name].std() / value.std()).detach()) == pytest.approx(1, abs=0.2)
    assert embeddings.random_decoder(vlm, seed=1).fingerprint() == other.fingerprint()


def photographs(photo):
    whole = photo("chelsea.png", 120)
    corners = [(x, y) for x in range(0, 60, 12) for y in range(0, 40, 10)]
    return [Sample(f"p{i}", f"w{i}", (whole.crop((x, y, x + 40, y + 32)),)) for i, (x, y) in enumerate(corners)]


def test_another_model_on_photographs_with_a_teacher(tmp_path, photo):
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=80, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    hf.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    path = embeddings.run(
        tiny_vlm(), photographs(photo), teacher=tmp_path / "vit", cache=tmp_path / "maps", root=tmp_path
    )
    table = load_run(path).read_table("embeddings")
    assert set(table["target"].dropna()) == {"vit"} and table["n"].max() == 20
    assert "random decoder" in set(table["features"]) and len(list((tmp_path / "maps").rglob("*.safetensors"))) == 20
    input_level = table.query("features == 'layer' and layer == 0 and quantity == 'r2' and labels == 'true'")[
        "mean"
    ].item()
    assert 0.05 < input_level <= 1  # two random towers see the same edges


def test_a_stream_cannot_be_fitted_to():
    with pytest.raises(UserError, match="read once only"):
        embeddings.fitted_teacher("x", iter([Sample("a", "", (Image.new("RGB", (8, 8)),))]), None)


def test_bench_scores_agree_and_rows_come():
    states, targets = planted(12)
    torch.testing.assert_close(
        stream(states, targets, [slice(0, 5), slice(5, 12)]), refit(states, targets, inner_folds), atol=1e-6, rtol=0
    )
    assert len(list(rows(QUICK))) == 4


def test_growth_of_a_series_with_steps_is_drawn_along_them():
    stages = [f"step {k}" for k in range(12)]
    quality = pd.DataFrame([{"stage": s, "target": "depth", "at": at, "mean": 0.1 * k, "low": 0.1 * k - 0.02, "high": 0.1 * k + 0.02, "n": 50} for k, s in enumerate(stages) for at in ("input", "last block", "mean of blocks")])  # fmt: skip
    skill = pd.DataFrame([{"stage": s, "step": float(k), "kind": "all", "mean": k / 12, "low": 0.0, "high": 1.0, "n": 40} for k, s in enumerate(stages)])  # fmt: skip
    found = embeddings.correlations(quality, skill)
    assert found[found["given"].eq("nothing")]["value"].eq(1).all() and found["n"].max() == 12
    for figure in (figures.growth(quality, skill), figures.scatter(quality, skill, found)):
        assert draw(figure).picture is not None

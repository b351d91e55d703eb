"""The embedding probe: planted signals and nulls, sums against scikit-learn, controls, edges, every family."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.models import open_vlm
from chiasm.models.spans import Spans
from chiasm.models.trace import Trace
from chiasm.probes.embedding_probe import EmbeddingProbe
from chiasm.probes.embedding_scores import class_counts, cos_centred, cos_flat, mean_iou, retrieval_ranks
from chiasm.probes.measure import measure
from chiasm.probes.reference_features import pixel_features, tower_features, tower_site
from chiasm.probes.state import restore_states, take_states
from chiasm.probes.trained_readouts import TokenMLP, train_stacked
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample
from PIL import Image
from sklearn.linear_model import Ridge

from ..models.families import FAMILIES, batch
from .fakes import INDEX, anatomy, inputs_of, one, state_size, state_trace, value
from .measuring import tiny_vlm

SIDE, WIDTH = 4, 8


class Planted:
    """A target read from a table of the sample's own: `codes` (T, M)."""

    name, labels, told = "planted", ("a", "b"), "test"

    def __init__(self, classes=False):
        self.classes = classes

    def at(self, sample, picture, boxes):
        return sample.truth.get("codes")


def world(n=200, signal=1.0, seed=0, tokens=SIDE * SIDE):
    """Samples with random token codes, and states of three layers: noise, noise + signal, signal turned."""
    g = torch.Generator().manual_seed(99)
    mix, mean = torch.randn(2, WIDTH, generator=g), torch.randn(tokens, 2, generator=g)
    g.manual_seed(seed)
    out = []
    for i in range(n):
        codes = mean + torch.randn(tokens, 2, generator=g)
        noise = [torch.randn(tokens, WIDTH, generator=g) for _ in range(2)]
        states = [noise[0], noise[1] + signal * codes @ mix, signal * (codes @ mix) * 3 + 7]
        out.append((Sample(f"s{i}", "w", (Image.new("RGB", (32, 32)),), truth={"codes": codes}), states))
    return out


def spans_for(n, tokens=SIDE * SIDE, pad=0):
    length = tokens + 2 + pad
    labels = torch.full((n, length), INDEX["after"])
    labels[:, :tokens] = INDEX["image"]
    labels[:, length - pad :] = -1
    visual = labels == INDEX["image"]
    boxes = torch.full((n, length, 4), torch.nan)
    at = torch.arange(tokens)
    size = 32 / SIDE
    boxes[:, :tokens] = torch.stack([at % SIDE, at // SIDE, at % SIDE + 1, at // SIDE + 1], -1) * size
    none = torch.full_like(labels, -1)
    return Spans(labels, torch.where(visual, 0, -1), visual, none, none.clone(), boxes)


def fed(probe, items, size=8, pad=0, tokens=SIDE * SIDE, attach=True):
    if attach:
        probe.attach(anatomy(n_layers=1, hidden=WIDTH, layout=SimpleNamespace(grid="flat")))  # fmt: skip
    for start in range(0, len(items), size):
        some = items[start : start + size]
        inputs = inputs_of(spans_for(len(some), tokens, pad), samples=tuple(sample for sample, _ in some))
        states = []
        for layer in range(3):
            rows = torch.stack([torch.cat([s[layer], torch.full((2 + pad, WIDTH), torch.nan)]) for _, s in some])
            states.append(rows)
        probe.update(state_trace(states, inputs), inputs)
    return probe


R2 = dict(quantity="r2", labels="true")


def test_planted_signal_and_planted_null():
    table = fed(EmbeddingProbe([Planted()]), world()).compute()
    exact, none = one(table, **R2, features="layer", layer=2), one(table, **R2, features="layer", layer=0)
    assert exact["mean"] > 0.9999 and value(table, quantity="cos_centred", labels="true", layer=2) > 0.9999
    place = one(table, **R2, features="place")
    assert abs(none["mean"]) < 0.02 < place["mean"]  # the mean at a place is not in states without a place
    selectivity = [one(table, quantity="selectivity", features="layer", layer=layer) for layer in range(3)]
    assert abs(selectivity[0]["mean"]) < 0.03 and selectivity[1]["low"] > 0.5 and selectivity[2]["low"] > 0.5
    saved = [value(table, quantity="saved_bits", labels="true", layer=layer) for layer in range(3)]
    assert saved[0] <= 1e-3 < saved[1] < saved[2]
    assert value(table, quantity="saved_bits", labels="shuffled", layer=0) <= 1e-3
    assert one(table, quantity="retrieval", labels="true", layer=2)["mean"] == 1


def test_shuffled_targets_are_worth_what_places_are():
    table = fed(EmbeddingProbe([Planted()]), world(400)).compute()
    place = value(table, **R2, features="place")
    for layer in (1, 2):  # whose states hold the codes, and so their mean at each place
        control = value(table, quantity="r2", labels="shuffled", features="layer", layer=layer)
        assert -0.02 < control < place + 0.02
    assert value(table, **R2, features="mean") == pytest.approx(0, abs=0.02)


def test_r2_is_that_of_refits_with_scikit_learn():
    items = world(60, signal=0.4)
    probe = fed(EmbeddingProbe([Planted()], standardise=False, tokens=16), items)
    found = one(probe.compute(), **R2, features="layer", layer=1)
    held = probe._kept.held(probe.kept[0])  # all 60 are kept
    x, y, fold = held.x["layer"][1].double().numpy(), held.y[..., :2].numpy(), held.fold.numpy()
    error = 0.0
    alphas = _alphas_by_hand(x, y, fold)
    for f in range(4):
        rest, own = fold != f, fold == f
        xs, ys = x[rest].reshape(-1, WIDTH), y[rest].reshape(-1, 2)
        alpha = alphas[f] * ((xs - xs.mean(0)) ** 2).sum() / WIDTH
        error += (
            (Ridge(alpha=alpha).fit(xs, ys).predict(x[own].reshape(-1, WIDTH)) - y[own].reshape(-1, 2)) ** 2
        ).sum()
    total = ((y - y.mean((0, 1))) ** 2).sum()
    assert found["mean"] == pytest.approx(1 - error / total, abs=1e-6) and found["n"] == 60


def _alphas_by_hand(x, y, fold):
    chosen = []
    for f in range(4):
        errors = []
        for relative in (10.0**k for k in range(-6, 3)):
            error = 0.0
            for g in set(range(4)) - {f}:
                rest = (fold != f) & (fold != g)
                xs, ys = x[rest].reshape(-1, WIDTH), y[rest].reshape(-1, 2)
                alpha = relative * ((xs - xs.mean(0)) ** 2).sum() / WIDTH
                error += ((Ridge(alpha=alpha).fit(xs, ys).predict(x[fold == g].reshape(-1, WIDTH)) - y[fold == g].reshape(-1, 2)) ** 2).sum()  # fmt: skip
            errors.append(error)
        chosen.append(10.0 ** (int(np.argmin(errors)) - 6))
    return chosen


def test_interval_of_r2_has_the_width_of_repeated_samples():
    found = [
        one(fed(EmbeddingProbe([Planted()], keep=64), world(120, 0.4, seed=s)).compute(), **R2, layer=1)
        for s in range(12)
    ]
    half = np.mean([(row["high"] - row["low"]) / 2 for row in found])
    spread = np.std([row["mean"] for row in found], ddof=1)
    assert 0.5 < half / (1.96 * spread) < 2


def test_order_batches_and_padding_change_nothing():
    items = world(40)
    tables = [
        fed(EmbeddingProbe([Planted()]), some, size, pad).compute()
        for some, size, pad in ((items, 8, 0), (items, 3, 5), (items[::-1], 8, 0))
    ]
    true = [table[table["labels"].eq("true")].reset_index(drop=True) for table in tables]
    pd.testing.assert_frame_equal(true[0], true[1], atol=1e-4)
    pd.testing.assert_frame_equal(true[0], true[2], atol=1e-4)


def test_a_measurement_that_goes_on_from_its_states_and_one_by_several_processes():
    items = world(60)
    whole = fed(EmbeddingProbe([Planted()], keep=40), items).compute()
    first, second = fed(EmbeddingProbe([Planted()], keep=40), items[:24]), fed(EmbeddingProbe([Planted()], keep=40), [])
    states, updates = take_states([first])
    restore_states([second], states, updates)
    pd.testing.assert_frame_equal(fed(second, items[24:], attach=False).compute(), whole)
    # two processes: what torchmetrics does with their states
    parts = [fed(EmbeddingProbe([Planted()], keep=40), some) for some in (items[::2], items[1::2])]
    joined = fed(EmbeddingProbe([Planted()], keep=40), [])
    for name in joined.metric_state:
        values = [getattr(part, name) for part in parts]
        setattr(joined, name, [torch.cat([v[0] for v in values])] if isinstance(values[0], list) else sum(values))
    joined._update_count = 1
    true = [table[table["labels"].eq("true")].reset_index(drop=True) for table in (joined.compute(), whole)]
    pd.testing.assert_frame_equal(*true, atol=1e-5)


def test_state_does_not_grow_with_samples_once_pictures_are_kept():
    items = world(80)
    small, large = (fed(EmbeddingProbe([Planted()], keep=16), items[:n]) for n in (40, 80))
    assert state_size(small) == state_size(large)


def test_tokens_count_by_picture():
    """A picture with four times the tokens has no more weight."""
    few, many = world(40, 0.3, seed=1, tokens=4), world(40, 0.3, seed=1, tokens=16)
    probe = EmbeddingProbe([Planted()])
    probe.attach(anatomy(n_layers=1, hidden=WIDTH, layout=SimpleNamespace(grid="flat")))  # fmt: skip
    for tokens, items in ((4, few), (16, many)):
        inputs = inputs_of(spans_for(40, tokens), samples=tuple(s for s, _ in items))
        states = [torch.stack([torch.cat([s[k], torch.zeros(2, WIDTH)]) for _, s in items]) for k in range(3)]
        probe.update(state_trace(states, inputs), inputs)
    assert float(probe.n.sum()) == pytest.approx(80) and float(probe.rows.sum()) == 40 * 20
    means = torch.stack([s.truth["codes"].mean(0) for s, _ in (*few, *many)]).double().sum(0)
    torch.testing.assert_close(probe.y.sum(0)[:2], means, rtol=1e-4, atol=1e-3)


def test_the_pure_scores():
    g = torch.Generator().manual_seed(0)
    target, centre = torch.randn(5, 3, 2, generator=g) + 2, torch.full((5, 3, 2), 2.0)
    pred = target + 0.3 * torch.randn(5, 3, 2, generator=g)
    torch.testing.assert_close(cos_flat(7 * pred, target), cos_flat(pred, target))
    known = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(pred.flatten(1).numpy(), target.flatten(1).numpy(), strict=True)]  # fmt: skip
    np.testing.assert_allclose(cos_flat(pred, target), known, rtol=1e-5)
    assert (cos_centred(centre, target, centre) == 0).all() and (cos_flat(torch.zeros_like(pred), target) == 0).all()
    torch.testing.assert_close(cos_centred(target, target, centre), torch.ones(5))
    assert (retrieval_ranks(target.flatten(1), target.flatten(1)) == 0).all()


def test_a_mean_is_not_a_finding():
    """Targets whose mean has the size of their signal: the constant mean has a cosine of about 1/sqrt(2), centred 0."""
    g = torch.Generator().manual_seed(0)
    target, mean = torch.randn(200, 400, generator=g) + 1, torch.ones(200, 400)
    assert float(cos_flat(mean, target).mean()) == pytest.approx(2**-0.5, abs=0.02)
    assert float(cos_centred(mean, target, mean).abs().max()) == 0


def test_false_positives_of_absent_classes_cost():
    pred = torch.eye(3)[torch.tensor([[0, 1, 2, 0]])]
    true = torch.eye(3)[torch.tensor([[0, 1, 0, 0]])]
    right, both, either = class_counts(pred, true, torch.full((1, 4), 0.25))
    assert float(right) == 0.75
    assert float(mean_iou(both.sum(0), either.sum(0))) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_rendered_scenes_on_the_organism_and_logits_stay():
    vlm = open_vlm("organism", device="cpu")
    samples = list(scene_samples(24, "test"))
    inputs = vlm.prepare_samples(samples[:2])
    before, weights = vlm.trace(inputs, ["logits"])["logits"], vlm.fingerprint()
    table = measure(vlm, samples, [EmbeddingProbe()], progress=False).tables["embeddings"]
    assert torch.equal(vlm.trace(inputs, ["logits"])["logits"], before) and vlm.fingerprint() == weights
    assert {"depth", "segmentation"} == set(table["target"].dropna())
    assert {"layer", "mean", "place", "pixels", "tower"} == set(table["features"].dropna())
    layers = table[table["features"].eq("layer") & table["quantity"].eq("r2")]["layer"].dropna()
    assert layers.max() == vlm.anatomy.n_layers + 1 and layers.min() == 0
    scored = table[table["quantity"].isin(["r2", "cos_flat", "cos_centred", "selectivity"])]
    assert scored["low"].le(scored["mean"]).all() and scored["high"].ge(scored["mean"]).all()
    assert set(table[table["target"].eq("segmentation")]["quantity"]) >= {"accuracy", "miou"}


def test_no_targets_no_pictures_and_few_samples_are_told():
    vlm = tiny_vlm()
    plain = [Sample(f"p{i}", "w1", (Image.new("RGB", (32, 32)),)) for i in range(3)] + [Sample("t", "w1 w2")]
    table = measure(vlm, plain, [EmbeddingProbe()], progress=False).tables["embeddings"]
    assert table["quantity"].eq("skipped").all() and dict(zip(table["reason"].str[:9], table["n"], strict=True)) == {"no target": 3, "no pictur": 1}  # fmt: skip
    scenes = [replace(s, prompt="w1", answer=None) for s in scene_samples(2, "test", size=32)]
    few = measure(vlm, scenes, [EmbeddingProbe()], progress=False).tables["embeddings"]
    assert few["reason"].str.contains("three of four folds").any()


def test_constant_states_are_told():
    items = [(sample, [torch.ones_like(states[0]), *states[1:]]) for sample, states in world(40)]
    table = fed(EmbeddingProbe([Planted()]), items).compute()
    assert one(table, quantity="r2", features="layer", layer=0)["reason"] == "features are constant"
    assert value(table, **R2, features="layer", layer=2) > 0.99


def test_wide_states_are_projected_and_pooled_ones_are_means():
    items = world(60)
    table = fed(EmbeddingProbe([Planted()], width=4), items).compute()
    assert set(table[table["features"].eq("layer")]["width"].dropna()) == {4}
    assert value(table, **R2, features="layer", layer=2) > 0.999  # two codes are still in four directions

    class Whole(Planted):
        def at(self, sample, picture, boxes):
            assert boxes.shape == (1, 4)
            return sample.truth["codes"].mean(0, keepdim=True)

    table = fed(EmbeddingProbe([Whole()], pairing="pooled"), items).compute()
    assert value(table, **R2, features="layer", layer=2) > 0.999


@pytest.mark.parametrize("wrong", [dict(pairing="row"), dict(positions="text"), dict(readouts=["tree"]), dict(targets=[]), dict(keep=0), dict(pairing="patch", positions="all")])  # fmt: skip
def test_options_are_checked(wrong):
    with pytest.raises(UserError):
        EmbeddingProbe(**wrong)


def scenes_for(inputs, size=64):
    some = list(scene_samples(len(inputs), "test", size=size))
    return replace(inputs, samples=tuple(some))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    """With places: one row a visual token. Without (query tokens, cross-attention): one a picture."""
    model, joined, _ = batch(name, "left")
    vlm = open_vlm(model=model)
    inputs = scenes_for(vlm.from_tensors(**joined))
    probe = EmbeddingProbe(width=16)
    probe.attach(vlm.anatomy)
    probe.to(vlm.device)
    trace = vlm.trace(inputs, probe.sites)
    probe.update(trace, inputs)
    grid = vlm.anatomy.layout.grid
    placed = int(inputs.spans.boxes.isfinite().all(-1).sum())
    assert int(probe.rows.sum()) == (placed if grid not in ("none", "cross") else 2)
    assert float(probe.n.sum()) == pytest.approx(2)
    if tower_site(vlm.anatomy):
        assert not int(probe.unmatched) and probe.xz_tower.abs().sum() > 0


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl", "mistral3", "internvl"])
def test_tower_states_stand_at_their_tokens(name):
    model, joined, _ = batch(name, "right")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    states = vlm.trace(inputs, [tower_site(vlm.anatomy)])[tower_site(vlm.anatomy)]
    m, prefix = vlm.anatomy.merge, vlm.anatomy.layout.prefix
    # what is told of a patch: its number in the tower's order, of each picture (16 patches of a 4 x 4 grid)
    number = torch.arange(16.0)
    if states.ndim == 3 and len(states) == 2:
        coded = torch.cat([torch.full((prefix,), -1.0), number]).expand(2, -1)[..., None]
    else:
        coded = number.repeat(2).view(*states.shape[:-1], 1)
    found = tower_features(coded, inputs.spans, vlm.anatomy)[:, 0].view(2, -1)
    grid = number.view(4, 4)
    known = (
        number.view(-1, m * m).mean(1)
        if name == "qwen2_vl"
        else torch.nn.functional.avg_pool2d(grid[None, None], m).flatten()
    )
    torch.testing.assert_close(found, known.expand(2, -1))


def test_pixels_are_means_of_the_boxes_quarters():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (16, 32, 3), dtype=np.uint8))
    boxes = torch.tensor([[0.0, 0, 16, 16], [16, 0, 32, 16]])
    found = pixel_features([image, image], [boxes, boxes])
    array = np.asarray(image) / 255
    known = [array[:, s].reshape(4, 4, 4, 4, 3).mean((1, 3)).reshape(-1) for s in (slice(0, 16), slice(16, 32))]
    np.testing.assert_allclose(found[0], np.stack(known), atol=1e-5)
    torch.testing.assert_close(found[0], found[1])


def test_networks_of_all_layers_train_apart_and_leave_the_callers_randomness():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 60, 4, 20, generator=g)
    y = x[1, ..., :3] @ torch.randn(3, 2, generator=g)  # the second layer holds it
    weight, index = torch.full((60, 4), 0.25), torch.arange(60)
    state = torch.get_rng_state()
    options = dict(rate=2e-2, decay=0.0, epochs=60)
    found = train_stacked(lambda: TokenMLP(20, 2, 16), x, y, weight, index[:40], index[40:50], **options)
    assert torch.equal(state, torch.get_rng_state())
    error = (found[:, 50:] - y[50:]).square().mean((1, 2, 3)) / y[50:].var()
    assert error[1] < 0.3 < 0.8 < error[0]
    alone = train_stacked(lambda: TokenMLP(20, 2, 16), x[:1], y, weight, index[:40], index[40:50], **options)
    torch.testing.assert_close(alone[0], found[0], atol=0.2, rtol=0.2)


def test_trained_readouts_are_scored_on_pictures_they_have_not_seen(monkeypatch):
    monkeypatch.setattr("chiasm.probes.trained_readouts.train_stacked.__kwdefaults__", {**train_stacked.__kwdefaults__, "epochs": 3})  # fmt: skip
    probe = fed(EmbeddingProbe([Planted()], readouts=("mlp", "resampler"), seeds=2, keep=60), world(60))
    table = probe.compute()
    assert set(table["readout"].dropna()) == {"mlp", "resampler"}
    test = int((probe._kept.held(probe.kept[0]).fold == 3).sum())
    assert set(table["n"]) == {test} and table["sd_seeds"].notna().any()
    size = one(table, **R2, readout="mlp", layer=0)["parameters"]
    assert size == sum(p.numel() for p in TokenMLP(WIDTH, 2).parameters())


def test_a_trace_of_half_precision_is_widened():
    items = [(s, [x.bfloat16() for x in states]) for s, states in world(30)]
    table = fed(EmbeddingProbe([Planted()]), [(s, [x.float() for x in st]) for s, st in items]).compute()
    half = EmbeddingProbe([Planted()])
    half.attach(anatomy(n_layers=1, hidden=WIDTH, layout=SimpleNamespace(grid="flat")))  # fmt: skip
    inputs = inputs_of(spans_for(30), samples=tuple(s for s, _ in items))
    states = [torch.stack([torch.cat([st[k], torch.zeros(2, WIDTH).bfloat16()]) for _, st in items]) for k in range(3)]
    half.update(Trace(dict(zip(("embed", "blocks.0.resid_post", "final"), states, strict=True)), inputs), inputs)
    assert value(half.compute(), **R2, layer=2) == pytest.approx(value(table, **R2, layer=2), abs=1e-5)

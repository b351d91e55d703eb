"""The weight overlap probe against sums and masks made by hand, over batches, and on other models."""

import pandas as pd
import pytest
import torch
from chiasm.alignment.adapters import language_lora
from chiasm.models import open_vlm
from chiasm.models.linear_inputs import Squares, linear_sites, square_sites
from chiasm.probes import overlaps
from chiasm.probes.measure import measure
from chiasm.probes.subnetwork import weights_removed
from chiasm.probes.weight_overlap import WeightOverlap
from chiasm.probes.weights import kept_iou, prune_mask, wanda_scores
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample
from peft import get_peft_model
from scipy.stats import spearmanr

from ..models.families import FAMILIES, batch
from .fakes import one
from .measuring import sample, tiny_vlm


def measured(samples, vlm=None, batch_size=8, **options):
    probe = WeightOverlap(**options)
    found = measure(vlm or tiny_vlm(), samples, [probe], batch_size=batch_size, progress=False)
    return probe, found.tables["weight_overlap"]


def test_sums_are_those_of_the_inputs_and_hooks_are_gone():
    vlm, own = tiny_vlm(), sample(3)
    squares, n = measured([own], vlm)[0].input_squares()
    inputs = vlm.prepare_samples([own])
    sites = ["blocks.1.in.mlp.down_proj", "blocks.2.in.self_attn.k_proj"]
    trace = vlm.trace(inputs, sites)
    for site in sites:
        x = trace[site][0].double().square()
        torch.testing.assert_close(squares[site][0], x[inputs.spans.visual[0]].sum(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(squares[site].sum(0), x.sum(0), rtol=1e-5, atol=1e-6)  # s_P + s_T = s_both
    assert n == 1 and set(squares) == set(linear_sites(vlm.anatomy))
    assert not any(m._forward_pre_hooks for m in vlm.model.modules() if isinstance(m, torch.nn.Linear))


def test_overlaps_are_those_of_the_masks():
    vlm = tiny_vlm()
    probe, table = measured([sample(i) for i in range(12)], vlm)
    squares, n = probe.input_squares()
    masks = {}
    for site, linear in linear_sites(vlm.anatomy).items():
        layer, path = int(site.split(".")[1]), site.split(".in.")[1]
        image, text = squares[site]
        for name, x in (("image", image), ("text", text), ("both", image + text)):
            masks[layer, path, name] = prune_mask(wanda_scores(linear.weight, x, n), sparsity=0.5)
        row = one(table, quantity="iou", sparsity=0.5, pair="image-both", layer=layer, matrix=path)
        assert row["mean"] == pytest.approx(kept_iou(masks[layer, path, "image"], masks[layer, path, "both"]).item())
        assert one(table, quantity="rank", layer=layer, matrix=path)["mean"] == pytest.approx(
            spearmanr(image, text).statistic
        )
    for name in ("image", "text", "both"):
        row = one(table, quantity="layers", sparsity=0.5, pair=name, layer=2, matrix="mlp.up_proj")
        assert row["mean"] == pytest.approx(
            kept_iou(masks[0, "mlp.up_proj", name], masks[2, "mlp.up_proj", name]).item()
        )
    iou = table[(table["quantity"] == "iou") & (table["sparsity"] == 0.3) & (table["pair"] == "image-text")]
    own = iou[iou["matrix"].notna()]
    layer = iou[iou["matrix"].isna() & (iou["layer"] == 1)]["mean"].item()
    assert layer == pytest.approx(own[own["layer"] == 1]["mean"].mean())
    assert iou[iou["layer"].isna()]["mean"].item() == pytest.approx(own.groupby("layer")["mean"].mean().mean())
    assert table[table["quantity"] == "layers"]["layer"].dropna().unique().tolist() == [2]
    assert (table["adjusted"].dropna() - (table["mean"] - table["null"]) / (1 - table["null"])).abs().max() < 1e-12


def test_batches_padding_and_parts_change_nothing(monkeypatch):
    vlm, some = tiny_vlm(), [sample(i) for i in range(12)]
    first = measured(some, vlm, batch_size=1)[1]
    monkeypatch.setattr(overlaps, "AT_ONCE", 1000)
    pd.testing.assert_frame_equal(first, measured(some[::-1], vlm, batch_size=5)[1], atol=2e-3)
    assert first[first["quantity"] != "rank"]["mean"].between(0, 1).all() and (first["n"] == 12).all()


def test_fewer_rows_estimate_the_same_and_no_sparsity_shares_everything():
    some = [sample(i) for i in range(6)]
    whole, part = measured(some)[1], measured(some, rows=16, sparsity=(0.5,))[1]
    where = dict(quantity="iou", sparsity=0.5, pair="image-text")
    for table in (whole, part):
        table["matrix"] = table["matrix"].fillna("")
        table["layer"] = table["layer"].fillna(-1)
    estimates = [one(table, **where, layer=-1, matrix="")["mean"] for table in (whole, part)]
    assert estimates[0] == pytest.approx(estimates[1], abs=0.05)
    none = measured(some, sparsity=(0.0,))[1]
    assert (none[none["quantity"] != "rank"]["mean"] == 1).all()


def test_without_text_or_pictures_is_one_line():
    with pytest.raises(UserError, match="no image tokens in 1 samples"):
        measured([Sample("a", "w1 w2")])
    for wrong in ({"interval": 0}, {"rows": 0}):
        with pytest.raises(UserError, match="must be 1 or more"):
            WeightOverlap(**wrong)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_sums_of_every_linear_whatever_the_padding(name):
    found = []
    for side in ("left", "right"):
        model, joined, _ = batch(name, side)
        vlm = open_vlm(model=model)
        inputs = vlm.from_tensors(**joined)
        probe = WeightOverlap()
        probe.attach(vlm.anatomy)
        probe.update(vlm.trace(inputs, probe.sites), inputs)
        sums = probe.squares.sum(0)
        assert torch.isfinite(sums).all() and (sums[1] > 0).any()
        if vlm.anatomy.image_in_sequence:
            assert all((x > 0).any(1).all() for x in probe.input_squares()[0].values())
        found.append(sums)
    if name not in ("paligemma", "gemma3"):  # read in both directions, padding of another side is another mask
        torch.testing.assert_close(found[0][0][:32], found[1][0][:32], rtol=1e-3, atol=1e-4)


def test_padding_that_is_not_finite_is_left_out():
    spans = tiny_vlm().prepare_samples([sample(0), sample(4)]).spans
    assert not spans.real.all()
    x = torch.randn(*spans.real.shape, 5)
    found = []
    for padding in (0, torch.nan):
        x[~spans.real] = padding
        squares = Squares(spans)
        squares.enter(*spans.real.shape, spans.real.shape[1])
        found.append(squares(x))
    assert torch.equal(*found) and squares(x) is found[1]  # of one tensor once
    assert squares(x.clone()) is not found[1]
    by_hand = [x[b][spans.visual[b]].square().sum(0) for b in range(2)]
    torch.testing.assert_close(found[1][:, 0], torch.stack(by_hand))


@pytest.mark.parametrize("name", FAMILIES)
def test_squares_are_those_of_the_inputs_and_share_a_tensor_where_they_do(name):
    model, joined, _ = batch(name, "left")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    trace = vlm.trace(inputs, ["blocks.*.in.*", "blocks.*.squares.*"])
    text = inputs.spans.real & ~inputs.spans.mask("image")
    sites = square_sites(vlm.anatomy)
    assert sites
    for site in sites:
        x = trace[site.replace(".squares.", ".in.")].view(*text.shape, -1).nan_to_num(0)
        by_hand = torch.stack([(x * mask[..., None]).square().sum(1) for mask in (inputs.spans.visual, text)], 1)
        torch.testing.assert_close(trace[site], by_hand, rtol=1e-5, atol=1e-6)
        if site.endswith("self_attn.k_proj") and site.replace("k_proj", "q_proj") in sites:
            assert trace[site] is trace[site.replace("k_proj", "q_proj")]


def test_squares_of_decoding_steps_are_text():
    vlm = tiny_vlm()
    inputs = vlm.prepare_samples([sample(0), sample(4)])
    sites = ["blocks.1.in.mlp.down_proj", "blocks.1.squares.mlp.down_proj"]
    _, trace = vlm.trace_generation(inputs, sites, max_new_tokens=4, min_new_tokens=4)
    (x, squares), n = (trace[site] for site in sites), inputs.spans.labels.shape[1]
    before = vlm.trace(inputs, sites)[sites[1]]
    assert x.shape[1] == n + 3
    torch.testing.assert_close(squares[:, 0], before[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(squares[:, 1], before[:, 1] + x[:, n:].square().sum(1), rtol=1e-5, atol=1e-6)


def test_an_adapter_is_part_of_the_weights():
    vlm = tiny_vlm()
    lora = get_peft_model(vlm.model, language_lora(vlm.model, rank=4, dropout=0.0))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    tuned = open_vlm(model=lora, processor=vlm.processor)
    samples = [sample(i) for i in range(6)]
    _, table = measured(samples, tuned)
    with lora.disable_adapter():
        plain = measured(samples, tuned)[1]
    sites = linear_sites(tuned.anatomy)
    with pytest.raises(UserError, match="carries an adapter"), weights_removed(sites, dict.fromkeys(sites)):
        pass
    merged = measured(samples, open_vlm(model=lora.merge_and_unload(), processor=vlm.processor))[1]
    columns = ["quantity", "sparsity", "pair", "layer", "matrix"]
    pd.testing.assert_frame_equal(table[columns], merged[columns])
    assert table["mean"].tolist() == pytest.approx(merged["mean"].tolist(), abs=2e-3, nan_ok=True)
    pd.testing.assert_frame_equal(plain, measured(samples, tiny_vlm())[1])
    assert (table["mean"] - plain["mean"]).abs().max() > 0.01

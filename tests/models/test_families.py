"""Every family in the table: capture, mass against eager, logits unchanged; padded on either side; decoding."""

import pytest
import torch
from chiasm.models import Spans, open_vlm
from chiasm.models.anatomy import LAYOUTS
from chiasm.models.attention import PREFIX

from .families import FAMILIES, batch, build

EVERY = pytest.mark.parametrize("name", FAMILIES)


def language(output):
    """The language model's output inside a Blip-style nested one."""
    return getattr(output, "language_model_outputs", None) or output


def eager(model, inputs):
    """What the model itself reports under eager attention, as the reference."""
    previous = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return language(model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=False))
    finally:
        model.set_attn_implementation(previous)


def reference_mass(vlm, output, inputs) -> dict[int, torch.Tensor]:
    """Mass per layer from materialised attention; layers without softmax attention are skipped by the model's tuple."""
    softmax = [i for i, kind in enumerate(vlm.anatomy.attention_kinds) if kind != "linear"]
    own = [i for i in softmax if vlm.anatomy.attention_kinds[i] != "cross"]
    indicators = inputs.spans.indicators()[:, None]
    return {i: output.attentions[softmax.index(i)] @ indicators for i in own}


def test_table_has_the_18_families():
    assert len(LAYOUTS) == 18 == len(FAMILIES)


@EVERY
def test_residuals_are_the_models_own_and_logits_are_unchanged(name):
    model, tensors = build(name)
    with torch.no_grad():
        plain = model(**tensors).logits
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    trace = vlm.trace(inputs, ["*"])
    assert torch.equal(trace["logits"], plain)
    with torch.no_grad():
        hidden = language(model(**tensors, output_hidden_states=True)).hidden_states
    ours = [trace["embed"], *trace.select("blocks.*.resid_post")]
    for mine, theirs in zip(ours[:-1], hidden[:-1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
    # the library's last entry is normed already; ours keeps the last block's output and the normed states apart
    torch.testing.assert_close(trace["final"], hidden[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(vlm.anatomy.norm(ours[-1]), hidden[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(vlm.anatomy.unembed(trace["final"]), plain, atol=1e-5, rtol=0)
    assert trace["projector"].shape[-1] == vlm.anatomy.hidden_size
    assert len(trace.select("vision.blocks.*.resid_post")) == vlm.anatomy.n_vision_layers
    with torch.no_grad():
        assert torch.equal(model(**tensors).logits, plain)  # and nothing stays behind
    assert not vlm.anatomy.text_config._attn_implementation.startswith(PREFIX)


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_mass_matches_eager_with_padding_and_unequal_lengths(name, side):
    model, joined, rows = batch(name, side)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    trace = vlm.trace(inputs, ["blocks.*.attn_mass", "logits"])
    real = inputs.spans.real
    for layer, mass in reference_mass(vlm, eager(model, joined), inputs).items():
        ours = trace[f"blocks.{layer}.attn_mass"].transpose(1, 2)
        torch.testing.assert_close(ours[real], mass.transpose(1, 2)[real], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours[real].sum(-1), torch.ones_like(ours[real][..., 0]), atol=1e-5, rtol=0)
        assert ours[~real].abs().max() == 0
    with torch.no_grad():
        assert torch.equal(trace["logits"], model(**joined).logits)
    for b, alone in enumerate(rows):  # a row in a batch is the row alone
        single = vlm.trace(vlm.from_tensors(**alone), ["blocks.*.attn_mass", "blocks.*.resid_post"])
        together = vlm.trace(inputs, ["blocks.*.resid_post"])
        for layer in trace.layers("attn_mass"):
            mine = trace[f"blocks.{layer}.attn_mass"][b][:, real[b]]
            torch.testing.assert_close(mine, single[f"blocks.{layer}.attn_mass"][0], atol=1e-5, rtol=0)
        for layer in trace.layers("resid_post"):
            site = f"blocks.{layer}.resid_post"
            torch.testing.assert_close(together[site][b][real[b]], single[site][0], atol=2e-5, rtol=0)


@EVERY
def test_decoding_steps_equal_full_recompute(name):
    model, tensors = build(name)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    sites = ["blocks.*.resid_post", *(["blocks.*.attn_mass"] if "full" in str(vlm.anatomy.attention_kinds) else [])]
    plain = vlm.generate_ids(inputs, max_new_tokens=4, min_new_tokens=4)
    ids, trace = vlm.trace_generation(inputs, sites, max_new_tokens=4, min_new_tokens=4)
    assert torch.equal(ids, plain) and ids.shape == (1, 4)
    again = dict(tensors)
    again["input_ids"] = torch.cat([tensors["input_ids"], ids[:, :3]], 1)
    for key in ("attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask"):
        if key in tensors:
            step = torch.zeros_like(tensors[key][:, :1]) if "type" in key else tensors[key][:, -1:]
            step = torch.ones_like(step) if name == "paligemma" else step  # what it generates is not prefix
            again[key] = torch.cat([tensors[key], *[step] * 3], 1)
    full = vlm.trace(vlm.from_tensors(**again), sites)
    generated, after = Spans.names.index("generated"), Spans.names.index("after")
    for site in full:
        mine, theirs = trace[site], full[site].clone()
        if site.endswith("attn_mass"):  # the same positions under the other name
            mine = mine.clone()
            mine[..., after] += mine[..., generated]
            mine[..., generated] = 0
        torch.testing.assert_close(mine, theirs, atol=3e-5, rtol=0)
    assert trace.inputs.spans.mask("generated").sum() == 3


def test_mllama_cross_attention_is_recorded_apart():
    model, joined, _ = batch("mllama", "left")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    trace = vlm.trace(inputs, ["blocks.*.cross_mass", "blocks.*.attn_mass"])
    assert trace.layers("cross_mass") == [1, 3] and trace.layers("attn_mass") == [0, 2]
    real = inputs.spans.real
    share = trace["blocks.1.cross_mass"].transpose(1, 2)[real]
    torch.testing.assert_close(share.sum(-1), torch.ones_like(share[..., 0]), atol=1e-5, rtol=0)

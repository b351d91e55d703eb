"""What a tower attends to against its own eager attention; patch scores against what the projector really merges."""

import sys

import pytest
import torch
import transformers as hf
from chiasm.models import Spans, attention, open_vlm
from chiasm.models.patch_scores import (
    check_kind,
    feature_layer,
    merged,
    picture_scores,
    score_kinds,
    score_layer,
    score_site,
)
from chiasm.models.spans import FEW
from chiasm.models.trace import Trace, site_names
from chiasm.models.vision_attention import combine_heads, patch_columns, resampler_attentions, tower_attention
from chiasm.scenes.errors import UserError

from .families import FAMILIES, TEXT, batch, build
from .test_families import eager

EVERY = pytest.mark.parametrize("name", FAMILIES)
WITH_CLS = ("llava", "llava_next", "instructblip", "blip2", "internvl", "mllama")
SCORED = [name for name in FAMILIES if name not in ("instructblip", "blip2", "idefics2", "mllama")]


def traced(name, sites=None):
    model, tensors = build(name)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    return vlm, inputs, vlm.trace(inputs, sites or _vision(vlm))


def _vision(vlm):
    return [name for name in site_names(vlm.anatomy) if name.startswith(("vision", "resampler"))]


def spied(vlm, inputs, modules):
    """Every map that the eager attention of these modules makes, by module: lists, as some towers go picture by picture."""
    source, config = sys.modules[type(modules[0]).__module__], modules[0].config
    plain, previous, maps = source.eager_attention_forward, config._attn_implementation, {}

    def spy(attention, *args, **kwargs):
        out, weights = plain(attention, *args, **kwargs)
        for i, module in enumerate(modules):
            if module is attention:
                maps.setdefault(i, []).append(weights)
        return out, weights

    source.eager_attention_forward, config._attn_implementation = spy, "eager"
    try:
        with torch.no_grad():
            vlm.model(**inputs.tensors, use_cache=False)
    finally:
        source.eager_attention_forward, config._attn_implementation = plain, previous
    return maps


def tower_eager(vlm, inputs):
    return spied(vlm, inputs, [tower_attention(vlm.anatomy, i) for i in range(vlm.anatomy.n_vision_layers)])


@EVERY
def test_tower_sites_leave_the_model_as_it_was(name):
    model, tensors = build(name)
    with torch.no_grad():
        plain = model(**tensors).logits
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    assert torch.equal(vlm.trace(inputs, ["logits", *_vision(vlm)])["logits"], plain)
    assert vlm.anatomy.vision_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", WITH_CLS)
def test_the_cls_row_equals_the_eager_row(name):
    vlm, inputs, trace = traced(name)
    maps, before = tower_eager(vlm, inputs), vlm.anatomy.layout.prefix
    for layer, (found,) in maps.items():
        ours = trace[f"vision.blocks.{layer}.cls_attention"]
        columns = patch_columns(vlm.anatomy, found.shape[-1])
        expected = found[:, :, columns[:, 0] - before][..., columns[0]] if name == "mllama" else found[:, :, 0, 1:]
        expected = expected[:, :, 0] if name == "mllama" else expected
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
        assert ours.sum(-1).max() < 1  # CLS attends to itself as well, and that column is gone
        if name != "mllama":
            full = trace[f"vision.blocks.{layer}.cls_logprobs"].exp()
            torch.testing.assert_close(full.sum(-1), torch.ones_like(full[..., 0]), atol=1e-5, rtol=0)


@EVERY
def test_attention_received_equals_the_columns_of_eager_maps(name):
    vlm, inputs, trace = traced(name)
    maps = tower_eager(vlm, inputs)
    sites = [site for site in trace if site.endswith("received")]
    assert sites and ("vision.blocks.0.received" in sites) is (name != "qwen2_5_vl")  # block 1 alone is no window
    for site in sites:
        parts = []
        for found in maps[int(site.split(".")[2])]:
            at = patch_columns(vlm.anatomy, found.shape[-1])[0]
            found = found[:, :, at][..., at]
            parts.append((found.sum(2) - found.diagonal(0, 2, 3)) / (len(at) - 1))
        torch.testing.assert_close(trace[site], torch.cat(parts, -1), atol=1e-6, rtol=0)


def test_attention_received_is_summed_block_by_block(monkeypatch):
    _, _, whole = traced("paligemma")
    monkeypatch.setattr(attention, "_BLOCK", 16 * 4 * 3)  # three queries at a time
    _, _, blocked = traced("paligemma")
    for site in (s for s in whole if s.endswith("received")):
        torch.testing.assert_close(blocked[site], whole[site], atol=1e-6, rtol=0)


def test_pictures_of_several_sizes_in_one_row_of_the_tower_do_not_mix():
    """Pixtral strings pictures together, Qwen's towers too: each patch is judged by its own picture's patches."""
    model, tensors = build("mistral3")
    vlm = open_vlm(model=model)
    site = "vision.blocks.1.received"
    alone = vlm.trace(vlm.from_tensors(**tensors), [site])[site]
    both = {k: torch.cat([v, v]) for k, v in tensors.items()}
    both["pixel_values"] = torch.cat([tensors["pixel_values"], torch.randn(1, 3, 32, 32)])
    found = vlm.trace(vlm.from_tensors(**both), [site])[site]
    assert found.shape[-1] == 2 * alone.shape[-1]
    torch.testing.assert_close(found[..., :16], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["instructblip", "blip2"])
def test_the_resampler_is_the_mean_of_the_q_formers_cross_attentions(name):
    vlm, inputs, trace = traced(name)
    maps = spied(vlm, inputs, resampler_attentions(vlm.anatomy))
    expected = torch.stack([found for (found,) in maps.values()]).mean(0).mean(1)[..., 1:]
    torch.testing.assert_close(trace["resampler.attention"], expected, atol=1e-6, rtol=0)


def test_a_perceivers_latents_are_not_among_the_patches():
    vlm, inputs, trace = traced("idefics2")
    reads = trace["resampler.attention"]
    assert reads.shape == (1, 4, 16) and 0 < reads.sum(-1).max() < 1
    ((whole,),) = spied(vlm, inputs, resampler_attentions(vlm.anatomy)).values()
    torch.testing.assert_close(reads, whole.mean(1)[..., :16], atol=1e-6, rtol=0)


def test_the_pooling_heads_weights_are_those_of_the_module():
    vlm, inputs, trace = traced("llava_onevision")
    head = vlm.anatomy.model.get_submodule(vlm.anatomy.layout.vision).head
    kept = []
    hook = head.register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    with torch.no_grad():
        vlm.model(**inputs.tensors)
    hook.remove()
    probe = head.probe.repeat(len(kept[0]), 1, 1)
    with torch.no_grad():
        _, weights = head.attention(probe, kept[0], kept[0])
    found = trace["vision.pool_attention"]
    torch.testing.assert_close(found, weights[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(5), atol=1e-5, rtol=0)


def test_released_is_the_softmax_of_the_undivided_product():
    torch.manual_seed(0)
    heads, size, n = 4, 6, 10
    q, k = torch.randn(heads, size), torch.randn(n, heads, size)
    z = torch.einsum("hd,nhd->hn", q, k) / size**0.5
    found = combine_heads(z.log_softmax(-1), 1, "released")
    whole = (q.flatten() @ k.flatten(1).T / (heads * size) ** 0.5).softmax(-1)
    torch.testing.assert_close(found, whole[1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(found, ((size / (heads * size)) ** 0.5 * z.sum(0)).softmax(-1)[1:], atol=1e-6, rtol=0)


# -- rows of the decoder -----------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_equal_eager_attention_with_padding_and_unequal_lengths(name, side):
    model, joined, _ = batch(name, side)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    inputs.spans.labels[0][torch.nonzero(inputs.spans.real[0])[-3:]] = Spans.names.index("answer")
    queries = inputs.spans.predicting()
    assert queries.shape == (2, 3) and (queries[1, 1:] == -1).all() and queries[0].diff().eq(1).all()
    trace = vlm.trace(inputs, ["blocks.*_rows"])
    softmax = [i for i, kind in enumerate(vlm.anatomy.attention_kinds) if kind != "linear"]
    maps = eager(model, joined).attentions
    for layer in softmax:
        if vlm.anatomy.attention_kinds[layer] == "cross":
            continue
        found, expected = trace[f"blocks.{layer}.attn_rows"], maps[softmax.index(layer)]
        assert found.shape == (2, 4, 3, inputs.spans.labels.shape[1])
        for b in range(2):
            n = int((queries[b] >= 0).sum())
            torch.testing.assert_close(found[b, :, :n], expected[b][:, queries[b, :n]], atol=1e-5, rtol=0)
            assert n == 3 or found[b, :, n:].abs().max() == 0


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_few_rows_are_some_of_all_rows_with_padding(name, side):
    model, joined, _ = batch(name, side)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    answer = Spans.names.index("answer")
    inputs.spans.labels[0][torch.nonzero(inputs.spans.real[0])[-(FEW + 1) :]] = answer
    inputs.spans.labels[1][torch.nonzero(inputs.spans.real[1])[-2:]] = answer
    every, few = inputs.spans.predicting(), inputs.spans.predicting(FEW)
    assert every.shape == (2, FEW + 1) and few.shape == (2, FEW) and few[1, 2:].eq(-1).all()
    assert few[0, 0] == every[0, 0] and few[0, -1] == every[0, -1] and few[0].diff().min() >= 1
    trace = vlm.trace(inputs, ["blocks.*_rows", "blocks.*_few"])
    kind = "cross" if "mllama" in name else "attn"
    layers = trace.layers(f"{kind}_few")
    assert layers and layers == trace.layers(f"{kind}_rows")
    for layer in layers:
        rows, found = (trace[f"blocks.{layer}.{kind}_{which}"] for which in ("rows", "few"))
        for b in range(2):
            own = few[b][few[b] >= 0]
            torch.testing.assert_close(found[b, :, : len(own)], rows[b][:, torch.isin(every[b], own)], atol=0, rtol=0)
            assert len(own) == FEW or found[b, :, len(own) :].abs().max() == 0


def test_rows_under_a_sliding_window_forget_what_lies_before_it():
    model, tensors = build("gemma3")
    for part in (model.config.text_config, *(block.self_attn for block in model.model.language_model.layers)):
        part.sliding_window = 8
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    rows = vlm.trace(inputs, ["blocks.*.attn_rows"])["blocks.0.attn_rows"]
    torch.testing.assert_close(rows[:, :, 0], eager(model, tensors).attentions[0][:, :, -1], atol=1e-5, rtol=0)
    assert rows[..., :-8].abs().max() == 0 and (rows.sum(-1) - 1).abs().max() < 1e-5


def test_rows_of_an_eager_model_and_of_half_precision():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    site = "blocks.1.attn_rows"
    fused = vlm.trace(inputs, [site])[site]
    model.set_attn_implementation("eager")
    torch.testing.assert_close(vlm.trace(inputs, [site])[site], fused, atol=1e-6, rtol=0)
    model.set_attn_implementation("sdpa")
    half = open_vlm(model=model.to(torch.bfloat16))
    rows = half.trace(half.from_tensors(**tensors), [site])[site]
    assert rows.dtype == torch.float32 and (rows.sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}])
def test_rows_of_decoding_steps_equal_those_of_a_full_pass(options):
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    ids, trace = vlm.trace_generation(inputs, ["blocks.1.attn_*"], max_new_tokens=4, min_new_tokens=4, **options)
    whole = torch.cat([tensors["input_ids"], ids[:, :3]], 1)
    maps = eager(model, tensors | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}).attentions
    torch.testing.assert_close(trace["blocks.1.attn_rows"], maps[1][:, :, -4:], atol=1e-5, rtol=0)
    assert torch.equal(trace["blocks.1.attn_few"], trace["blocks.1.attn_rows"])  # every step has one


def test_cross_attention_rows_are_those_of_the_patches():
    model, joined, _ = batch("mllama", "left")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    trace = vlm.trace(inputs, ["blocks.*.cross_rows", "blocks.*.cross_mass"])
    rows = trace["blocks.1.cross_rows"]
    assert rows.shape == (2, 4, 1, 17)
    last = inputs.spans.predicting()[:, 0]
    for b in range(2):
        mass = trace["blocks.1.cross_mass"][b, :, last[b]]
        torch.testing.assert_close(rows[b, :, 0].sum(-1, keepdim=True), mass, atol=1e-6, rtol=0)
    model.set_attn_implementation("eager")
    eagerly = vlm.trace(inputs, ["blocks.1.cross_rows"])["blocks.1.cross_rows"]
    torch.testing.assert_close(eagerly, rows, atol=1e-6, rtol=0)


# -- scores on the tokens the language model sees ----------------------------------------------------------------------


@EVERY
def test_every_kind_that_a_family_has_gives_scores_and_others_are_refused(name):
    vlm, inputs, trace = traced(name)
    kinds = score_kinds(vlm.anatomy)
    assert ("cls" in kinds) is (name in WITH_CLS) and {"received", "norm"} <= set(kinds)
    assert ("pool" in kinds) is (name == "llava_onevision")
    for kind in kinds:
        (found,) = picture_scores(trace, inputs, vlm.anatomy, kind)
        assert torch.isfinite(found.scores).all() and found.scores.min() >= 0
        rows = vlm.trace(inputs, ["blocks.*_rows"]).select("blocks.*_rows")[-1 if name != "mllama" else 1]
        seen = found.attention(rows[0])
        assert seen.shape[-1] == len(found.scores) == len(found.tiles) == len(found.boxes)
        assert 0 < seen.sum(-1).max() <= 1 + 1e-5
        if kind in ("cls", "pool"):  # shares of one tile's attention
            parts = [found.scores[found.tiles == t].sum() for t in found.tiles.unique()]
            assert max(parts) < 1 + 1e-5
    if "cls" not in kinds:
        with pytest.raises(UserError, match=f"the vision tower of this {vlm.anatomy.family} has no CLS token; use"):
            score_site(vlm.anatomy, "cls")
    with pytest.raises(UserError, match="score 'magic' is not known: use one of"):
        check_kind(vlm.anatomy, "magic")


@pytest.mark.parametrize("name", SCORED)
def test_a_patch_is_scored_where_its_feature_enters_the_sequence(name):
    """A spike put into the tower's feature at one patch must change exactly the visual tokens that get its score."""
    model, tensors = build(name)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    layer, before = feature_layer(vlm.anatomy), vlm.anatomy.layout.prefix
    site = f"vision.blocks.{layer}.resid_post"
    shape = vlm.trace(inputs, [site])[site].shape
    base = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    planted = {}

    def replaced(_module, _args, out):
        return planted["now"]

    hook = vlm.anatomy.vision_blocks[layer].register_forward_hook(replaced, prepend=True)
    try:
        planted["now"] = base
        plain = vlm.trace(inputs, ["embed"])["embed"]
        last = shape[-2] - 1
        for tile, patch in [
            (0, before),
            (0, before + 6),
            (0, last),
            *([(3, before + 9)] if len(shape) == 3 and shape[0] > 1 else []),
        ]:
            spike = torch.zeros(shape)
            spike[(tile, patch) if len(shape) == 3 else patch] = 5 * torch.randn(shape[-1])
            planted["now"] = base + spike
            moved = (vlm.trace(inputs, ["embed"])["embed"] - plain).abs().amax(-1)[0] > 1e-6
            (found,) = picture_scores(Trace({site: spike}), inputs, vlm.anatomy, "norm")
            scored = torch.zeros_like(moved)
            scored[found.positions[found.scores > 1e-6]] = True
            assert scored.any() and torch.equal(scored, moved), (name, tile, patch)
    finally:
        hook.remove()


@pytest.mark.parametrize("patch", [0, 6, 15])
def test_a_planted_patch_has_one_index_in_scores_features_and_picture(patch):
    """The off-by-one check: CLS stands in front of the tower's patches, and in no map of ours."""
    vlm, inputs, plain = traced("llava")
    y, x = divmod(patch, 4)
    pixels = inputs.tensors["pixel_values"].clone()
    pixels[..., 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] += 4
    changed = vlm.from_tensors(**inputs.tensors | {"pixel_values": pixels})
    trace = vlm.trace(changed, list(plain))
    (before,), (after,) = (picture_scores(t, inputs, vlm.anatomy, "cls") for t in (plain, trace))
    assert (after.scores.log() - before.scores.log()).abs().argmax() == patch
    site = f"vision.blocks.{feature_layer(vlm.anatomy)}.resid_post"
    assert (trace[site] - plain[site]).norm(dim=-1)[0, 1:].argmax() == patch
    assert after.boxes[patch].tolist() == [8 * x, 8 * y, 8 * x + 8, 8 * y + 8]
    assert inputs.spans.row[0, after.positions[patch]] == y and inputs.spans.col[0, after.positions[patch]] == x


def test_features_come_from_the_layer_that_the_config_names():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    assert feature_layer(vlm.anatomy) == 1 == score_layer(vlm.anatomy, "cls")  # -2 of input and three layers
    for chosen, layer in ((-1, 2), (1, 0), (3, 2), ([1, -2], 1)):
        model.config.vision_feature_layer = chosen
        assert feature_layer(vlm.anatomy) == layer
    with torch.no_grad():
        model.config.vision_feature_layer = -2
        out = model.get_image_features(tensors["pixel_values"], output_hidden_states=True, return_dict=True)
    site = "vision.blocks.1.resid_post"
    assert torch.equal(vlm.trace(vlm.from_tensors(**tensors), [site])[site], out.hidden_states[-2])


def test_window_layers_are_not_asked_for_attention_received():
    vlm, _, _ = traced("qwen2_5_vl", ["embed"])
    assert score_site(vlm.anatomy, "received") == "vision.blocks.1.received"
    with pytest.raises(UserError, match="vision layer 0 of this qwen2_5_vl attends within windows only"):
        score_site(vlm.anatomy, "received", 0)
    with pytest.raises(UserError, match=r"layer 7 is outside this model's 0\.\.2"):
        score_site(vlm.anatomy, "norm", 7)


def test_windows_of_several_sizes_are_put_back_in_order():
    """A picture wider than one window: the tower reorders its tokens, the scores must come back in the picture's order."""
    model, _ = build("qwen2_5_vl")
    vlm = open_vlm(model=model)
    grid = torch.tensor([[1, 4, 12]])
    ids = torch.tensor([[1, 5, *[120] * 12, 10, 11]])
    tensors = dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), image_grid_thw=grid, pixel_values=torch.randn(48, 384)
    )
    inputs = vlm.from_tensors(**tensors)
    site = "vision.blocks.2.resid_post"
    plain = vlm.trace(inputs, [site, "embed"])
    pixels = tensors["pixel_values"].clone()
    pixels[4 * 7 : 4 * 8] += 3  # the four patches of token 7, as the processor orders them
    trace = vlm.trace(vlm.from_tensors(**tensors | {"pixel_values": pixels}), [site, "embed"])
    change = Trace({site: trace[site] - plain[site]})
    (found,) = picture_scores(change, inputs, vlm.anatomy, "norm")
    assert found.scores.argmax() == 7
    assert (trace["embed"] - plain["embed"]).norm(dim=-1)[0, found.positions].argmax() == 7


def test_an_encoder_without_attention_names_the_kinds_that_exist():
    model, tensors = build("paligemma")
    vlm = open_vlm(model=model)
    for block in vlm.anatomy.vision_blocks:
        block.mixer, block.self_attn = block.self_attn, None
    assert score_kinds(vlm.anatomy) == ("norm",)
    with pytest.raises(UserError, match="has no attention that can be read; use norm"):
        score_site(vlm.anatomy, "received")
    with pytest.raises(UserError, match="names nothing"):
        vlm.trace(vlm.from_tensors(**tensors), ["vision.blocks.0.received"])


def test_merging_sums_squares_of_patches():
    values = torch.arange(24.0)
    assert merged(values, 4, 6, 2).tolist() == [14, 22, 30, 62, 70, 78]


def test_rows_without_pictures_have_no_scores():
    vlm, inputs, trace = traced("llava")
    bare = inputs.without_images()
    assert picture_scores(trace, bare, vlm.anatomy, "cls") == []


def test_tiles_that_are_strung_together_keep_their_patches_apart():
    """Mllama: tiles one behind the other, each with its CLS and padded; empty tiles are no candidates."""
    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_global_layers=1, attention_heads=4, image_size=32,
        patch_size=8, max_num_tiles=4, vision_output_dim=64, intermediate_layers_indices=[1],
        supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    )  # fmt: skip
    text = TEXT | dict(num_hidden_layers=4, cross_attention_layers=[1, 3])
    torch.manual_seed(0)
    model = hf.MllamaForConditionalGeneration(
        hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=120)
    )
    for parameter in model.parameters():
        if parameter.abs().max() < 1e-3:
            parameter.data.normal_(0, 0.2)
    vlm = open_vlm(model=model.eval())
    ids = torch.tensor([[1, 120, 5, 6, 7]])
    mask = torch.zeros(1, 5, 1, 4, dtype=torch.long)
    mask[:, 1:, :, :2] = 1
    tensors = dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(1, 1, 4, 3, 32, 32),
        aspect_ratio_ids=torch.tensor([[2]]), aspect_ratio_mask=torch.tensor([[[1, 1, 0, 0]]]), cross_attention_mask=mask,
    )  # fmt: skip
    inputs = vlm.from_tensors(**tensors)
    trace = vlm.trace(inputs, [*_vision(vlm), "blocks.1.cross_rows", "projector"])
    (found,) = tower_eager(vlm, inputs)[0]
    padded = found.shape[-1] // 4
    for t in range(4):
        expected = found[0, :, t * padded, t * padded + 1 : t * padded + 17]
        torch.testing.assert_close(trace["vision.blocks.0.cls_attention"][t], expected, atol=1e-6, rtol=0)
    (picture,) = picture_scores(trace, inputs, vlm.anatomy, "cls")
    assert len(picture.scores) == 32 and picture.tiles.tolist() == [0] * 16 + [1] * 16
    last = vlm.anatomy.n_vision_layers - 1
    site, spike = f"vision.blocks.{last}.resid_post", torch.zeros(1, 4 * padded, 32)
    spike[0, padded + 1 + 6] = 5 * torch.randn(32)  # the second tile's seventh patch
    hook = vlm.anatomy.vision_blocks[last].register_forward_hook(lambda _m, _a, out: out + spike, prepend=True)
    moved = (vlm.trace(inputs, ["projector"])["projector"] - trace["projector"]).abs().amax(-1).flatten() > 1e-6
    hook.remove()
    (planted,) = picture_scores(Trace({site: spike}), inputs, vlm.anatomy, "norm")
    assert planted.reads[planted.scores.argmax()] == torch.nonzero(moved).flatten() and planted.scores.argmax() == 22
    seen = picture.attention(trace["blocks.1.cross_rows"][0])
    assert seen.shape == (4, 1, 32) and 0.5 < seen.sum(-1).min() <= 1  # all but the two CLS

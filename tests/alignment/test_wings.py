"""Wings: what is added where, by references that gather keys and materialise attention; families, padding, cache, files."""

from __future__ import annotations

import json

import pytest
import torch
from chiasm.alignment.wing_hooks import added
from chiasm.alignment.wing_pass import AFTER, BEFORE, MARKER, SINK, SYSTEM, VISUAL, WingPass
from chiasm.alignment.wings import Wings, WingsConfig
from chiasm.models import open_vlm
from chiasm.models.passes import telling
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from torch.nn.functional import rms_norm, silu

from ..models.families import FAMILIES, batch, build

INSIDE = [name for name in FAMILIES if name != "mllama"]
SMALL = dict(rank=4)
PROMPT = "describe the image in detail ."


def trained(vlm, seed: int = 0, **options) -> Wings:
    """Wings that do something: as if trained for a while."""
    torch.manual_seed(seed)
    wings = Wings(vlm, WingsConfig(**SMALL | options))
    for name, parameter in wings.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if "router" in name else 0.3)
    return wings


def family(name: str):
    model, row = build(name)
    vlm = open_vlm(model=model)
    return vlm, vlm.from_tensors(**row)


def logits(vlm, inputs, **options):
    with torch.no_grad():
        return vlm.forward(inputs, use_cache=False, **options).logits


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism")


@pytest.fixture(scope="module")
def scenes():
    return list(scene_samples(3, "test"))


def example(wide: int = 8, legacy: bool = False) -> WingPass:
    """The method page's 20 positions: system 0 to 2, text 3 to 5, picture 6 to 10, text 11 to 19."""
    kinds = torch.tensor([[SINK, SYSTEM, SYSTEM, *[BEFORE] * 3, *[VISUAL] * 5, *[AFTER] * 9]])
    torch.manual_seed(3)
    return WingPass(torch.randn(1, 20, wide), kinds, 20, legacy)


# -- what sees what --------------------------------------------------------------------------------------------------------


def test_the_released_mask_shows_text_to_come_and_ours_does_not():
    text = [3, 4, 5, *range(11, 20)]
    aligned, released = example().textual[0], example(legacy=True).textual[0]
    assert [torch.nonzero(row).flatten().tolist() for row in aligned] == [
        [j for j in text if j <= i] for i in range(20)
    ]
    assert [torch.nonzero(row).flatten().tolist() for row in released] == [
        [j for rank, j in enumerate(text) if rank <= i] for i in range(20)
    ]
    assert released[3, 11] and not released[3, 12] and released[11, 19]  # as the page says
    assert not aligned[:3].any()  # the system part sees no text


def test_the_first_token_is_text_where_there_is_no_system_part():
    now = WingPass(
        torch.zeros(2, 4, 8), torch.tensor([[SINK, BEFORE, VISUAL, AFTER], [SINK, SYSTEM, MARKER, AFTER]]), 4
    )
    assert now.text.tolist() == [[True, True, False, True], [False, False, False, True]]
    assert now.segments.tolist() == [[0, 2, 4, 3], [0, 1, 4, 3]]


@pytest.mark.parametrize("legacy", [False, True])
def test_gradients_of_the_textual_learner_never_come_from_later_text(organism, legacy):
    wings = trained(organism, visual=False, router=None, legacy_mask=legacy)
    now = example(128, legacy)
    now.features.requires_grad_()
    out = wings.blend(0, torch.randn(1, 20, 128), now, None)
    ahead = []
    for i in range(20):
        (grad,) = torch.autograd.grad(out[0, i].sum(), now.features, retain_graph=True)
        assert grad.isfinite().all() and grad[0, 6:11].abs().max() == 0 == grad[0, :3].abs().max()
        ahead.append(bool((grad[0, i + 1 :].abs() > 0).any()))
    assert any(ahead) == legacy
    assert legacy or out[0, :3].abs().max() == 0  # the system part gets nothing


@pytest.mark.parametrize(("legacy", "changed"), [(False, False), (True, True)])
def test_no_logit_depends_on_later_text_unless_the_released_mask_is_asked_for(legacy, changed):
    vlm, inputs = family("llava")
    wings = trained(vlm, legacy_mask=legacy, layers=(1,))
    other = inputs.tensors["input_ids"].clone()
    other[0, -1] = 77
    later = vlm.from_tensors(**inputs.tensors | {"input_ids": other})
    with wings.attached(vlm):
        a, b = logits(vlm, inputs)[0, :-1], logits(vlm, later)[0, :-1]
    assert bool((a - b).abs().max() > 1e-5) == changed


# -- where it is added -----------------------------------------------------------------------------------------------------


def reference(vlm, wings, inputs, layer, stream, embeds, mass):
    """The blend of one layer, row by row: keys gathered, the router on the mass on segments as it was read."""
    spans, parts = inputs.spans, wings.learners[str(layer)]
    names, rows = list(spans.names), []
    for b in range(len(stream)):
        real = torch.nonzero(spans.labels[b] >= 0).flatten()
        place = torch.arange(len(real))[None]
        x, f = stream[b, real][None], embeds[b, real][None]
        label = [names[k] for k in spans.labels[b, real]]
        see = spans.visual[b, real]
        text = torch.tensor([name in ("before", "after", "answer", "bos") for name in label]) & ~see
        q = rms_norm(x, x.shape[-1:])
        causal = place[0, text][None, None] <= place[0][None, :, None]
        visual = parts["visual"](q, f[:, see], place, place[:, see])
        textual = parts["textual"](q, f[:, text], place, place[:, text], causal)
        m = mass[b][:, real].mean(0)  # (T, S)
        columns = [m[:, names.index(n)] for n in ("bos", "system", "before")]
        columns += [sum(m[:, names.index(n)] for n in ("after", "answer", "generated")), m[:, names.index("image")]]
        router = parts["router"].linear
        w = silu(torch.stack(columns, -1) @ router.weight.T + router.bias).softmax(-1)
        out = torch.zeros_like(stream[b])
        out[real] = w[:, :1] * visual[0] + w[:, 1:] * textual[0]
        rows.append(out)
    return torch.stack(rows)


@pytest.mark.parametrize("name", INSIDE)
def test_the_blend_is_added_once_behind_attention(name):
    vlm, inputs = family(name)
    layer = next(i for i, kind in enumerate(vlm.anatomy.attention_kinds) if kind in ("full", "sliding"))
    wings = trained(vlm, layers=(layer,))
    block, seen = vlm.anatomy.blocks[layer], {}

    def keep(what):
        def hook(_module, _args, output):
            seen.setdefault(what, output[0] if isinstance(output, tuple) else output)

        return hook

    before = f"blocks.{layer - 1}.resid_post" if layer else "embed"
    sites = ["embed", before, f"blocks.{layer}.attn_mass"]
    with torch.no_grad():
        handle = added(block).register_forward_hook(keep("plain"))
        trace = vlm.trace(inputs, sites)
        handle.remove()
        with wings.attached(vlm):
            handle = added(block).register_forward_hook(keep("winged"))
            vlm.forward(inputs, use_cache=False)
            handle.remove()
        stream = trace[before] + seen["plain"]
        expected = reference(vlm, wings, inputs, layer, stream, trace["embed"], trace[f"blocks.{layer}.attn_mass"])
    assert expected.abs().max() > 1e-3
    assert torch.allclose(seen["winged"] - seen["plain"], expected, atol=1e-5)


@pytest.mark.parametrize("name", INSIDE)
def test_new_wings_change_no_bit_and_nothing_is_left_behind(name):
    vlm, inputs = family(name)
    plain = logits(vlm, inputs)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules()]
    with Wings(vlm, WingsConfig(**SMALL)).attached(vlm):
        assert torch.equal(logits(vlm, inputs), plain)
    with trained(vlm).attached(vlm):
        assert not torch.allclose(logits(vlm, inputs), plain, atol=1e-4)
    assert torch.equal(logits(vlm, inputs), plain)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules()]


def test_the_released_sum_adds_the_blend_twice(organism):
    now, stream = example(128), torch.randn(1, 20, 128)
    weights = torch.full((1, 20, 2), 0.5)
    once = trained(organism).blend(0, stream, now, weights)
    assert torch.equal(trained(organism, legacy_sum=True).blend(0, stream, now, weights), 2 * once)


def test_queries_are_normalised_unless_switched_off(organism):
    now, stream, weights = example(128), torch.randn(1, 20, 128), torch.full((1, 20, 2), 0.5)
    for normalised in (True, False):
        wings = trained(organism, normalised=normalised)
        same = torch.allclose(wings.blend(0, 7 * stream, now, weights), wings.blend(0, stream, now, weights), atol=1e-5)
        assert same == normalised


# -- the router --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_the_released_router_is_a_linear_map_of_materialised_attention(name, kernel):
    vlm, inputs = family(name)
    wings = trained(vlm, router="positions", width=200, layers=(1,))  # whose own attention is that of the bare model
    router, found = wings.learners["1"]["router"], []
    router.register_forward_hook(lambda _m, _a, out: found.append(out))
    with torch.no_grad():
        vlm.model.set_attn_implementation("eager")
        attention = vlm.forward(inputs, use_cache=False, output_attentions=True).attentions[1]
        vlm.model.set_attn_implementation(kernel)
        with wings.attached(vlm):
            vlm.forward(inputs, use_cache=False)
    t = attention.shape[-1]
    summed = attention.sum(1) @ router.linear.weight[:, :t].T + router.linear.bias
    (weights,) = found
    assert torch.allclose(weights, silu(summed).softmax(-1), atol=2e-6)
    assert (weights > 0).all() and (weights < 1).all()
    assert torch.allclose(weights.sum(-1), torch.ones(1, t))


def test_a_sequence_beyond_the_released_router_is_refused():
    vlm, inputs = family("llava")
    with trained(vlm, router="positions", width=20).attached(vlm), pytest.raises(UserError, match=r"router's 20"):
        logits(vlm, inputs)


# -- batches, steps, pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_row(name, side):
    model, joined, alone = batch(name, side)
    vlm = open_vlm(model=model)
    with trained(vlm).attached(vlm):
        together = logits(vlm, vlm.from_tensors(**joined))
        for b, row in enumerate(alone):
            own = logits(vlm, vlm.from_tensors(**row))[0]
            real = joined["attention_mask"][b].bool()
            assert torch.allclose(together[b, -len(real) :][real], own, atol=3e-4), f"row {b}"


@pytest.mark.parametrize(("name", "router"), [*((name, "spans") for name in INSIDE), ("gemma3", "positions")])
def test_decoding_with_a_cache_is_the_full_computation(name, router):
    vlm, inputs = family(name)
    options = dict(max_new_tokens=4, min_new_tokens=4, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), trained(vlm, router=router, width=300).attached(vlm), telling(inputs.spans):
        cached = vlm.model.generate(**inputs.tensors, do_sample=False, **options)
        full = vlm.model.generate(**inputs.tensors, do_sample=False, use_cache=False, **options)
    for a, b in zip(cached.logits, full.logits, strict=True):
        assert torch.allclose(a, b, atol=3e-4)


def test_beams_carry_their_own_texts(organism, scenes):
    inputs = organism.prepare([s.images for s in scenes], [s.prompt for s in scenes])
    options = dict(max_new_tokens=6, num_beams=3)
    with trained(organism).attached(organism):
        assert organism.generate(inputs, **options) == organism.generate(inputs, use_cache=False, **options)


def test_a_text_only_row_in_a_mixed_batch_is_the_row_alone_and_its_text_has_weight_one(organism, scenes):
    pictures, prompts = [scenes[0].images, ()], [scenes[0].prompt, PROMPT]
    with trained(organism).attached(organism):
        mixed = logits(organism, organism.prepare(pictures, prompts))[1]
        alone = logits(organism, organism.prepare([()], prompts[1:]))[0]
    assert torch.allclose(mixed[-len(alone) :], alone, atol=1e-4)
    wings = trained(organism)
    now = example(128)
    now.kinds = now.kinds.masked_fill(now.kinds == VISUAL, AFTER)
    stream, weights = torch.randn(1, 20, 128), torch.full((1, 20, 2), 0.5)
    text = trained(organism)
    only = text.learners["0"]["textual"](
        rms_norm(stream, (128,)), now.features, now.positions, now.positions, now.textual
    )
    assert torch.allclose(wings.blend(0, stream, now, weights), only, atol=1e-6)


def test_the_visual_learner_sees_every_picture_from_everywhere(organism, scenes):
    first, second, third = (scene.images[0] for scene in scenes)
    prompt = f"{PROMPT} <image> {PROMPT} <image> {PROMPT}"
    two, other = (organism.prepare([[first, last]], [prompt]) for last in (second, third))
    assert two.spans.n_images == 2
    with trained(organism, textual=False, router=None).attached(organism):
        a, b = logits(organism, two), logits(organism, other)
    assert (a - b)[0, 0].abs().max() > 1e-4  # the first token of all, though the picture stands behind it
    plain = (logits(organism, two) - logits(organism, other))[0, 0]
    assert plain.abs().max() == 0


def test_a_model_in_half_precision_keeps_learners_in_full(scenes):
    vlm = open_vlm("organism", dtype="bfloat16")
    inputs = vlm.prepare_samples(scenes)
    plain, wings = logits(vlm, inputs), trained(vlm)
    with Wings(vlm, WingsConfig(**SMALL)).attached(vlm):
        assert torch.equal(logits(vlm, inputs), plain)
    with wings.attached(vlm):
        half = logits(vlm, inputs)
        assert len(vlm.generate(inputs, max_new_tokens=3)) == 3
    assert half.dtype == torch.bfloat16 and next(wings.parameters()).dtype == torch.float32
    assert not torch.allclose(half, plain)


def test_without_spans_they_are_found_from_the_ids():
    vlm, inputs = family("llava")
    wings = trained(vlm)
    with torch.no_grad(), wings.attached(vlm):
        assert torch.equal(vlm.model(**inputs.tensors, use_cache=False).logits, logits(vlm, inputs))
        ids = vlm.generate_ids(inputs, max_new_tokens=4, min_new_tokens=4)
        raw = vlm.model.generate(**inputs.tensors, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert torch.equal(raw[:, -4:], ids)
        embeds = vlm.model.get_input_embeddings()(inputs.tensors["input_ids"])
        with pytest.raises(UserError, match="nobody told"):
            vlm.anatomy.decoder(inputs_embeds=embeds, use_cache=False)


# -- training and files ------------------------------------------------------------------------------------------------


def test_at_first_only_the_output_maps_learn_and_the_loss_falls(organism, scenes):
    inputs = organism.prepare_samples(scenes)
    labels = inputs.tensors["input_ids"].masked_fill(~inputs.spans.mask("answer"), -100)
    torch.manual_seed(0)
    wings = Wings(organism, WingsConfig(rank=8))
    optimiser, losses = torch.optim.AdamW(wings.parameters(), lr=1e-2), []
    before = organism.fingerprint()
    with wings.attached(organism):
        for step in range(6):
            loss = organism.forward(inputs, labels=labels, use_cache=False).loss
            optimiser.zero_grad()
            loss.backward()
            if step == 0:
                moved = {n for n, p in wings.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
                assert moved == {n for n, _ in wings.named_parameters() if n.endswith("B_o.weight")}
            optimiser.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.01
    assert organism.fingerprint() == before
    grads = [p.grad for n, p in wings.named_parameters() if "router" in n]
    assert all(g is not None and g.isfinite().all() for g in grads) and max(g.abs().max() for g in grads) > 0


def test_saved_and_loaded_they_are_the_same(organism, scenes, tmp_path):
    inputs = organism.prepare_samples(scenes)
    wings = trained(organism, layers=(1, 3), router="spans")
    folder = wings.save(tmp_path / "wings")
    assert sorted(p.name for p in folder.iterdir()) == ["settings.json", "weights.safetensors"]
    assert (folder / "weights.safetensors").stat().st_size < 1e6
    loaded = Wings.load(folder, organism)
    assert loaded.config == wings.config
    with wings.attached(organism):
        expected = logits(organism, inputs)
    with loaded.attached(organism):
        assert torch.equal(logits(organism, inputs), expected)


def test_files_that_do_not_fit_are_refused_in_a_line(organism, tmp_path):
    vlm, _ = family("llava")
    with pytest.raises(UserError, match="holds no wings"):
        Wings.load(tmp_path, vlm)
    folder = trained(organism).save(tmp_path / "wings")
    with pytest.raises(UserError, match="does not fit"):
        Wings.load(folder, vlm)
    (folder / "settings.json").write_text(json.dumps({"kind": "else"}))
    with pytest.raises(UserError, match="not of wings"):
        Wings.load(folder, organism)


def test_what_cannot_be_is_refused(organism):
    vlm, inputs = family("llava")
    with pytest.raises(UserError, match="out of the sequence"):
        Wings(family("mllama")[0])
    with pytest.raises(UserError, match="need a router"):
        WingsConfig(router=None)
    with pytest.raises(UserError, match="router=None"):
        WingsConfig(visual=False)
    with pytest.raises(UserError, match="no learner"):
        WingsConfig(visual=False, textual=False, router=None)
    with pytest.raises(UserError, match="'spans'"):
        WingsConfig(router="masses")
    with pytest.raises(UserError, match="outside"):
        Wings(vlm, WingsConfig(layers=(9,)))
    wings = trained(vlm)
    with pytest.raises(UserError, match="made for"), wings.attached(organism):
        pass
    with wings.attached(vlm), pytest.raises(UserError, match="already"), wings.attached(vlm):
        pass
    vlm.model.train().gradient_checkpointing_enable()
    with wings.attached(vlm), pytest.raises(UserError, match="gradient checkpointing"):
        vlm.forward(inputs, use_cache=False)


def test_a_prompt_read_before_they_came_is_refused():
    vlm, inputs = family("llava")
    with torch.no_grad():
        cache = vlm.forward(inputs, use_cache=True).past_key_values
        with trained(vlm).attached(vlm), telling(inputs.spans), pytest.raises(UserError, match="before the learners"):
            vlm.model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_a_linear_attention_layer_has_no_learner():
    vlm, _ = family("qwen3_5")
    linear = [i for i, kind in enumerate(vlm.anatomy.attention_kinds) if kind == "linear"]
    assert linear and set(Wings(vlm, WingsConfig(**SMALL)).layers).isdisjoint(linear)
    with pytest.raises(UserError, match="linear attention"):
        Wings(vlm, WingsConfig(layers=(linear[0],)))


def test_the_released_settings_have_every_fault():
    config = WingsConfig.released(rank=8)
    assert (config.rank, config.router, config.normalised, config.legacy_mask, config.legacy_sum) == (
        8, "positions", False, True, True,
    )  # fmt: skip

"""Silent errors of the libraries underneath, each shown to exist where it can be, and chiasm shown not to be fooled."""

import subprocess
import threading

import pytest
import torch
import transformers as hf
from chiasm.models import Spans, open_vlm
from chiasm.models.attention import PREFIX
from chiasm.scenes.errors import UserError

from .families import TEXT, batch, build

MASS = ["blocks.*.attn_mass"]
TEXT_SPANS = [Spans.names.index(name) for name in ("before", "after", "answer", "generated")]


def test_sdpa_returns_no_attentions_without_an_error_but_masses_are_there():
    model, tensors = build("llava")
    with torch.no_grad():
        assert len(model(**tensors, output_attentions=True).attentions) == 0
    vlm = open_vlm(model=model)
    mass = vlm.trace(vlm.from_tensors(**tensors), MASS)["blocks.0.attn_mass"]
    torch.testing.assert_close(mass.sum(-1), torch.ones_like(mass[..., 0]))


def test_last_hidden_state_of_the_library_is_normed_ours_is_not():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    trace = vlm.trace(vlm.from_tensors(**tensors), ["blocks.2.resid_post", "final"])
    with torch.no_grad():
        last = model(**tensors, output_hidden_states=True).hidden_states[-1]
    assert not torch.allclose(trace["blocks.2.resid_post"], last, atol=1e-2)
    torch.testing.assert_close(trace["final"], last, atol=1e-5, rtol=0)


def test_qwen_tower_attentions_are_not_probabilities_and_are_no_site_here():
    model, tensors = build("qwen2_vl")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model.get_image_features(
            tensors["pixel_values"], tensors["image_grid_thw"], output_attentions=True, return_dict=True
        )
    if out.attentions:  # the library hands out the attention's output under this name
        assert out.attentions[0].shape == (16, 32)
    vlm = open_vlm(model=model)
    with pytest.raises(UserError, match="the sites are"):
        vlm.trace(vlm.from_tensors(**tensors), ["vision.blocks.0.attentions"])


def test_layers_without_softmax_attention_are_indexed_by_layer_not_by_position():
    model, tensors = build("qwen3_5")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    assert vlm.trace(inputs, MASS).layers("attn_mass") == [3]
    with pytest.raises(UserError, match="layer 0 of this qwen3_5 is linear attention"):
        vlm.trace(inputs, ["blocks.0.attn_mass"])


def test_a_steered_state_is_what_the_trace_shows():
    """The library's recorders, once installed, run before a later steering hook and show the unsteered state."""
    model, tensors = build("llava")
    with torch.no_grad():
        model(**tensors, output_hidden_states=True)  # installs the library's recorders for good
    hook = model.model.language_model.layers[1].register_forward_hook(lambda _m, _a, out: out + 5.0)
    vlm = open_vlm(model=model)
    trace = vlm.trace(vlm.from_tensors(**tensors), ["blocks.1.resid_post", "blocks.2.resid_post"])
    with torch.no_grad():
        shown = model(**tensors, output_hidden_states=True).hidden_states
    hook.remove()
    with torch.no_grad():
        plain = model(**tensors, output_hidden_states=True).hidden_states
    torch.testing.assert_close(shown[2], plain[2])  # the trap: looks unsteered
    torch.testing.assert_close(trace["blocks.1.resid_post"], plain[2] + 5.0)


def test_hooks_do_not_replace_outputs_and_leave_nothing_behind():
    model, tensors = build("llava")
    with torch.no_grad():
        plain = model(**tensors).logits  # the first forward installs the library's own recorders
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    vlm = open_vlm(model=model)
    assert torch.equal(vlm.trace(vlm.from_tensors(**tensors), ["*"])["logits"], plain)
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_an_attention_function_without_its_mask_is_wrong_and_ours_has_it():
    model, joined, _ = batch("llava", "left")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    real = inputs.spans.real
    with torch.no_grad():
        plain = model(**joined).logits
        hf.AttentionInterface.register("no_mask_here", hf.integrations.sdpa_attention.sdpa_attention_forward)
        model.set_attn_implementation({"text_config": "no_mask_here"})
        wrong = model(**joined).logits
        model.set_attn_implementation({"text_config": "sdpa"})
    assert (wrong - plain)[real].abs().max() > 1e-3
    assert torch.equal(vlm.trace(inputs, [*MASS, "logits"])["logits"], plain)


@pytest.mark.parametrize("name", ["llava", "mistral3", "qwen2_vl"])
def test_no_mass_on_the_future(name):
    """One layer switched to eager alone would be handed no mask and look ahead: the whole tower is switched."""
    model, tensors = build(name)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    after, before = (Spans.names.index(n) for n in ("after", "before"))
    mass = vlm.trace(inputs, ["blocks.1.attn_mass"])["blocks.1.attn_mass"]
    early = inputs.spans.mask("before")[0]
    assert mass[:, :, early][..., after].abs().max() == 0 and mass[:, :, early][..., before].min() > 0


def test_the_implementation_is_restored_when_a_forward_fails():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    hook = model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vlm.trace(inputs, ["*"])
    hook.remove()
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert not any(m._forward_hooks for m in vlm.anatomy.blocks)
    vlm.trace(inputs, ["*"])


def test_soft_capped_attention_is_measured_with_its_cap():
    """The fused kernel knows no cap; transformers keeps such models on eager, and so do the masses."""
    text = hf.Gemma2Config(**TEXT | dict(vocab_size=1408), head_dim=8, attn_logit_softcapping=2.0, sliding_window=64)
    vision = hf.SiglipVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=32, vision_use_head=False,
    )  # fmt: skip
    config = hf.PaliGemmaConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=120, projection_dim=32
    )
    torch.manual_seed(0)
    model = hf.PaliGemmaForConditionalGeneration(config).eval()
    for block in model.model.language_model.layers:  # sharp enough for the cap to bite
        block.self_attn.q_proj.weight.data *= 40
    ids = torch.tensor([[1, 5, 6, *[120] * 16, 10, 11, 12]])
    tensors = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(1, 3, 32, 32))
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors, token_type_ids=torch.zeros_like(ids))
    assert model.config.get_text_config()._attn_implementation == "eager"
    with torch.no_grad():
        attentions = model(**inputs.tensors, output_attentions=True).attentions
    trace = vlm.trace(inputs, MASS)
    for layer, probabilities in enumerate(attentions):
        expected = probabilities @ inputs.spans.indicators()[:, None]
        torch.testing.assert_close(trace[f"blocks.{layer}.attn_mass"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_shuffled_masses_are_eager_attention_summed_over_the_labels_dealt(side):
    model, joined, _ = batch("llava", side)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    trace = vlm.trace(inputs, [*MASS, "blocks.*.attn_shuffled"])
    dealt = inputs.spans.shuffled_indicators()
    assert not torch.equal(dealt[..., 0], inputs.spans.mask("before").float())
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**joined, output_attentions=True).attentions
    for layer, probabilities in enumerate(attentions):
        mine, mass = trace[f"blocks.{layer}.attn_shuffled"], trace[f"blocks.{layer}.attn_mass"]
        for b, t in torch.nonzero(inputs.spans.real).tolist():
            keys = [torch.nonzero(dealt[b, :, k]).flatten() for k in (0, 1)]
            expected = torch.stack([probabilities[b, :, t, at].sum(-1) for at in keys], -1)
            torch.testing.assert_close(mine[b, :, t], expected, atol=1e-5, rtol=0)
        assert (mine.transpose(1, 2)[~inputs.spans.real] == 0).all()
        torch.testing.assert_close(mine.sum(-1), mass[..., TEXT_SPANS].sum(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}])
def test_decoding_keeps_the_labels_dealt_and_puts_what_is_decoded_behind(options):
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs, sites = vlm.from_tensors(**tensors), [*MASS, "blocks.*.attn_shuffled"]
    plain = vlm.trace(inputs, sites)
    _, trace = vlm.trace_generation(inputs, sites, max_new_tokens=4, min_new_tokens=4, **options)
    for layer in trace.layers("attn_shuffled"):
        mine, mass = trace[f"blocks.{layer}.attn_shuffled"], trace[f"blocks.{layer}.attn_mass"]
        prompt = plain[f"blocks.{layer}.attn_shuffled"]
        assert mine.shape[2] == prompt.shape[2] + 3
        torch.testing.assert_close(mine[:, :, :-3], prompt, atol=1e-5, rtol=0)
        torch.testing.assert_close(mine.sum(-1), mass[..., TEXT_SPANS].sum(-1), atol=1e-6, rtol=0)
        assert (mine[..., 1] >= mass[..., Spans.names.index("generated")] - 1e-6).all()


def test_half_precision_masses_are_summed_in_single():
    model, tensors = build("llava")
    model = model.to(torch.bfloat16)
    vlm = open_vlm(model=model)
    trace = vlm.trace(vlm.from_tensors(**tensors), ["*"])
    mass = trace["blocks.0.attn_mass"]
    assert mass.dtype == torch.float32 and (mass.sum(-1) - 1).abs().max() < 1e-5
    with torch.no_grad():
        assert torch.equal(model(**vlm.from_tensors(**tensors).tensors).logits, trace["logits"])


def test_training_mode_dropout_does_not_reach_the_masses():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    expected = vlm.trace(inputs, ["blocks.0.attn_mass"])["blocks.0.attn_mass"]
    for block in vlm.anatomy.blocks:
        block.self_attn.attention_dropout = 0.5
    model.train()
    torch.testing.assert_close(vlm.trace(inputs, ["blocks.0.attn_mass"])["blocks.0.attn_mass"], expected)


def test_a_static_cache_and_a_sliding_window_keep_the_spans_right():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    options = dict(max_new_tokens=4, min_new_tokens=4)
    _, dynamic = vlm.trace_generation(inputs, MASS, **options)
    _, static = vlm.trace_generation(inputs, MASS, **options, cache_implementation="static")
    torch.testing.assert_close(static["blocks.1.attn_mass"], dynamic["blocks.1.attn_mass"], atol=1e-5, rtol=0)
    model, tensors = build("gemma3")
    model.config.text_config.sliding_window = 8
    for block in model.model.language_model.layers:
        block.self_attn.sliding_window = 8
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    _, trace = vlm.trace_generation(inputs, MASS, max_new_tokens=6, min_new_tokens=6)
    steps = trace["blocks.0.attn_mass"][:, :, -5:]
    torch.testing.assert_close(steps.sum(-1), torch.ones_like(steps[..., 0]), atol=1e-5, rtol=0)
    generated = steps[0, 0, :, Spans.names.index("generated")]
    assert (generated.diff() > 0).any() and steps[0, 0, -1, Spans.names.index("bos")] == 0  # beyond the window


def test_threads_do_not_see_each_other():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    one = vlm.from_tensors(**tensors)
    other_ids = torch.cat([tensors["input_ids"], tensors["input_ids"][:, -2:]], 1)
    other = vlm.from_tensors(**tensors | dict(input_ids=other_ids, attention_mask=torch.ones_like(other_ids)))
    expected = {id(i): vlm.trace(i, ["*"]).tensors for i in (one, other)}
    failures = []

    def work(inputs):
        for _ in range(15):
            got = vlm.trace(inputs, ["*"]).tensors
            for site, value in expected[id(inputs)].items():
                if got[site].shape != value.shape or not torch.allclose(got[site], value, atol=1e-6):
                    failures.append(site)

    threads = [threading.Thread(target=work, args=(i,)) for i in (one, other)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failures
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def test_recording_is_registered_once_and_nested_recordings_agree():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    with vlm.recording(inputs, MASS) as outer:
        inner = vlm.trace(inputs, MASS)
        assert model.config.get_text_config()._attn_implementation == PREFIX + "sdpa"
    torch.testing.assert_close(outer.trace()["blocks.2.attn_mass"], inner["blocks.2.attn_mass"])


def test_gradients_reach_the_queries_through_a_mass():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    trace = vlm.trace(vlm.from_tensors(**tensors), ["blocks.1.attn_mass"], grad=True)
    trace["blocks.1.attn_mass"][..., Spans.names.index("image")].sum().backward()
    assert model.model.language_model.layers[1].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_nnsight_reads_the_same_residuals():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    ours = vlm.trace(vlm.from_tensors(**tensors), ["blocks.*.resid_post"])
    view = vlm.nnsight()
    with torch.no_grad(), view.trace(**tensors):
        first = view.model.language_model.layers[0].output.save()
        last = view.model.language_model.layers[2].output.save()
    assert torch.equal(first, ours["blocks.0.resid_post"]) and torch.equal(last, ours["blocks.2.resid_post"])


def test_transformer_lens_works_on_a_copy_and_installs_nothing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a subprocess was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(subprocess, "check_call", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    model, tensors = build("llava")
    modules = len(list(model.modules()))
    vlm = open_vlm(model=model)
    ours = vlm.trace(vlm.from_tensors(**tensors), ["blocks.*.resid_post"])
    ids, pixels, mask = (tensors[k] for k in ("input_ids", "pixel_values", "attention_mask"))
    with torch.no_grad():
        _, cache = vlm.transformer_lens().run_with_cache(ids, pixel_values=pixels, attention_mask=mask)
    for layer in range(3):
        theirs = cache[f"blocks.{layer}.hook_resid_post"]
        torch.testing.assert_close(theirs, ours[f"blocks.{layer}.resid_post"], atol=1e-5, rtol=0)
    assert len(list(model.modules())) == modules and model.config.get_text_config()._attn_implementation == "sdpa"


def test_transformer_lens_refuses_a_family_it_does_not_know():
    with pytest.raises(UserError, match="no bridge for AyaVision"):
        open_vlm(model=build("aya_vision")[0]).transformer_lens()

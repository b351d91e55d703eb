"""Attention to the picture made stronger: the formula on every family, the first token, every way to decode, what stays."""

import pytest
import torch
import transformers as hf
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.steering import SinkRedistribution, VisualAttentionBoost, steer
from chiasm.steering.dropping import dropped_at

from ..models.families import IMAGE, TEXT, _siglip, build, row
from .attending import SEQUENCE, last_layer, mixed, narrow, scores, spied, tiny


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


def check_last_row(vlm, inputs, strength: float, layer: int):
    """The last query's attention against the softmax written out; all other queries' against the plain model."""
    plain = spied(vlm, inputs, layer)
    call = spied(vlm, inputs, layer, VisualAttentionBoost(strength, layers=layer))
    spans, (out, weights) = inputs.spans, call[3:5]
    for b in range(len(inputs)):
        keys = torch.nonzero(spans.real[b]).flatten()
        last = int(keys[-1])
        if window := call[5].get("sliding_window"):
            keys = keys[keys > last - window]
        z = scores(call, b, last, keys)
        want = torch.where(spans.visual[b, keys], z + strength * z.abs(), z).softmax(-1)
        assert (want - z.softmax(-1)).abs().max() > 1e-4, "the boost must be seen"
        torch.testing.assert_close(weights[b, :, last][:, keys].double(), want, atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(out[b, last].double(), mixed(call, b, want, keys), atol=1e-5, rtol=1e-4)
        others = spans.real[b].clone()
        others[last] = False
        assert torch.equal(out[b, others], plain[3][b, others])


@SEQUENCE
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_of_the_picture_become_z_plus_a_times_its_size_for_the_last_query_alone(name, side):
    vlm, inputs, _ = tiny(name, side)
    check_last_row(vlm, inputs, 3.0, last_layer(vlm))


@pytest.mark.parametrize("name", ["gemma3", "aya_vision"])
def test_windows_are_kept(name):
    vlm = open_vlm(model=narrow(build(name)[0], 8))
    inputs = vlm.from_tensors(**build(name)[1])
    layer = next(i for i, kind in enumerate(vlm.anatomy.attention_kinds) if kind == "sliding")
    call = spied(vlm, inputs, layer, VisualAttentionBoost(3.0, layers=layer))
    assert not call[4][0, :, -1, :-8].any() and call[5]["sliding_window"] == 8
    every = VisualAttentionBoost(3.0, layers=range(vlm.anatomy.n_layers))
    with steer(vlm, every):
        off = {"max_new_tokens": 6, "eos_token_id": -1, "suppress_tokens": list(range(IMAGE, IMAGE + 4))}
        assert torch.equal(vlm.generate_ids(inputs, **off), vlm.generate_ids(inputs, use_cache=False, **off))


def test_a_soft_cap_of_the_scores_is_kept():
    torch.manual_seed(0)
    config = hf.PaliGemmaConfig(
        vision_config=_siglip(projection_dim=32).to_dict(),
        text_config=hf.Gemma2Config(
            **TEXT | dict(vocab_size=1408), head_dim=8, sliding_window=64, attn_logit_softcapping=0.5
        ).to_dict(),
        image_token_index=IMAGE, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    model = hf.PaliGemmaForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**row(16, {"pixel_values": torch.randn(1, 3, 32, 32), "prefix": None}, words=6))
    assert spied(vlm, inputs, 2)[5]["softcap"] == 0.5
    check_last_row(vlm, inputs, 3.0, 2)


@SEQUENCE
@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_strength_0_changes_no_bit_and_others_act_on_the_first_token(name, strength):
    vlm, inputs, _ = tiny(name)
    with torch.no_grad():
        plain, tokens = vlm.forward(inputs).logits, vlm.generate_ids(inputs, max_new_tokens=3)
        with steer(vlm, VisualAttentionBoost(strength)):
            logits = vlm.forward(inputs).logits
            assert strength or torch.equal(vlm.generate_ids(inputs, max_new_tokens=3), tokens)
    assert torch.equal(logits[:, :-1][inputs.spans.real[:, :-1]], plain[:, :-1][inputs.spans.real[:, :-1]])
    assert torch.equal(logits[:, -1], plain[:, -1]) == (strength == 0)


@SEQUENCE
def test_decoding_with_a_cache_without_one_and_alone_give_the_same(name):
    vlm, inputs, rows = tiny(name)
    off = {"max_new_tokens": 4, "eos_token_id": -1, "suppress_tokens": list(range(IMAGE, IMAGE + 4))}
    for change in (VisualAttentionBoost(2.0), SinkRedistribution(tau=1.5, p=0.1, image_share=0.01, rho=1.0)):
        with steer(vlm, change):
            ids = vlm.generate_ids(inputs, **off)
            assert torch.equal(ids, vlm.generate_ids(inputs, use_cache=False, **off))
            for b, alone in enumerate(rows):
                assert torch.equal(ids[b : b + 1], vlm.generate_ids(alone, **off))


@pytest.mark.parametrize(
    "change", [VisualAttentionBoost(1.0), SinkRedistribution(tau=1.5, p=0.1, image_share=0.01, rho=1.0)]
)
def test_beams_samples_and_static_caches(organism, change):
    samples = list(scene_samples(2, "test", "caption"))
    inputs = organism.prepare([s.images for s in samples], [s.prompt for s in samples])
    plain = organism.generate(inputs, max_new_tokens=7)
    with steer(organism, change):
        greedy = organism.generate_ids(inputs, max_new_tokens=7)
        assert torch.equal(greedy, organism.generate_ids(inputs, max_new_tokens=7, cache_implementation="static"))
        beams = organism.generate_ids(inputs, max_new_tokens=7, num_beams=3)
        assert torch.equal(beams, organism.generate_ids(inputs, max_new_tokens=7, num_beams=3, use_cache=False))
        assert len(organism.generate_ids(inputs, max_new_tokens=4, do_sample=True, num_return_sequences=2)) == 4
    assert organism.generate(inputs, max_new_tokens=7) == plain


def test_a_fed_answer_is_treated_as_if_it_were_decoded(organism):
    sample = next(scene_samples(1, "test", "caption"))
    inputs = organism.prepare([sample.images], [sample.prompt])
    with steer(organism, VisualAttentionBoost(0.3)), torch.no_grad():
        out = organism.model.generate(
            **inputs.tensors, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        words = organism.tokenizer.decode(out.sequences[0, inputs.spans.labels.shape[1] :], skip_special_tokens=True)
        fed = organism.prepare([sample.images], [sample.prompt], [words])
        logits = organism.forward(fed).logits
    at = fed.spans.predicting()[0]
    torch.testing.assert_close(logits[0, at], torch.cat(out.logits)[: len(at)], atol=1e-4, rtol=1e-4)


def test_pictures_at_different_places_of_a_batch(organism):
    samples = list(scene_samples(3, "test", "colour"))
    prompts = [
        "<image> " + samples[0].prompt.replace("<image>", ""),
        "look : <image> " + samples[1].prompt.replace("<image>", ""),
        "what is this ?",
    ]
    inputs = organism.prepare([samples[0].images, samples[1].images, None], prompts)
    assert len({int(row.long().argmax()) for row in inputs.spans.visual[:2]}) == 2
    with steer(organism, VisualAttentionBoost(1.0)), torch.no_grad():
        together = organism.forward(inputs).logits[:, -1]
        alone = organism.forward(organism.prepare([samples[1].images], prompts[1:2])).logits[0, -1]
    torch.testing.assert_close(together[1], alone, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(organism.forward(inputs).logits[2, -1], together[2]), "a row without a picture stays"


def test_lenses_see_the_changed_attention_and_only_there(organism):
    samples = list(scene_samples(2, "test", "colour"))
    inputs = organism.prepare([s.images for s in samples], [s.prompt for s in samples])
    site, picture = "blocks.2.attn_mass", 3
    plain = organism.trace(inputs, [site, "blocks.2.attn_rows"])
    with steer(organism, VisualAttentionBoost(0.5, layers=2)):
        steered = organism.trace(inputs, [site, "blocks.2.attn_rows"])
    before, after = plain[site], steered[site]
    assert (after[:, :, -1, picture] >= before[:, :, -1, picture] - 1e-6).all()
    assert (after[:, :, -1, picture] - before[:, :, -1, picture]).max() > 0.01
    torch.testing.assert_close(after[:, :, :-1], before[:, :, :-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(after.sum(-1), before.sum(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        steered["blocks.2.attn_rows"][..., inputs.spans.visual[0]].sum(-1)[0, :, 0],
        after[0, :, -1, picture],
        atol=1e-5,
        rtol=0,
    )


def test_two_interventions_on_attention_act_one_on_the_other(organism):
    """Twice z + a|z| adds 2 a|z|, and a boost behind a redistribution starts from what that made."""
    inputs = organism.prepare([next(scene_samples(1, "test", "colour")).images], ["what color is the cup ?"])
    once = spied(organism, inputs, 2, VisualAttentionBoost(0.6, layers=2))
    twice = spied(organism, inputs, 2, VisualAttentionBoost(0.2, layers=2), VisualAttentionBoost(0.4, layers=2))
    torch.testing.assert_close(once[3], twice[3], atol=1e-4, rtol=1e-4)
    var = SinkRedistribution(tau=1.5, p=0.1, image_share=0.0, rho=1.0, layers=2)
    inner = spied(organism, inputs, 2, var)[4][0, :, -1].double()
    both = spied(organism, inputs, 2, var, VisualAttentionBoost(0.5, layers=2))
    keys = torch.arange(inputs.spans.labels.shape[1])
    z = scores(both, 0, -1, keys)
    want = inner * torch.exp(0.5 * z.abs() * inputs.spans.visual[0])
    torch.testing.assert_close(both[4][0, :, -1].double(), want / want.sum(-1, keepdim=True), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize(
    "boost", [VisualAttentionBoost(1.0, layers=(2, 3)), SinkRedistribution(tau=1.5, p=0.1, image_share=0.0, rho=1.0)]
)
def test_visual_tokens_that_were_taken_out_are_not_looked_for(organism, first, boost):
    """Sliced away or hidden, what is left is changed alike, in the prompt and in every step that follows."""
    samples = list(scene_samples(2, "test", "caption"))
    inputs = organism.prepare([s.images for s in samples], [samples[0].prompt, "what is this ?"])
    gone = torch.zeros_like(inputs.spans.visual)
    for out, visual in zip(gone, inputs.spans.visual, strict=True):
        out[torch.nonzero(visual).flatten()[::2]] = True

    class Out:
        def __init__(self, by):
            self.by = by

        def edits(self, vlm):
            return dropped_at(vlm, first, lambda where: gone, by=self.by)

    found = {}
    for by in ("slice", "mask"):
        for order in ((Out(by), boost), (boost, Out(by))):
            with steer(organism, *order), torch.no_grad():
                logits = organism.forward(inputs, use_cache=False).logits[:, -1]
                found[by, order[0] is boost] = logits, organism.generate_ids(inputs, max_new_tokens=8, eos_token_id=-1)
    (want, tokens), *others = found.values()
    with steer(organism, Out("slice")), torch.no_grad():
        assert not torch.allclose(organism.forward(inputs).logits[:, -1], want, atol=1e-3)
    for logits, ids in others:
        torch.testing.assert_close(logits, want, atol=2e-4, rtol=1e-4)
        assert torch.equal(ids, tokens)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_half_precision_and_eager(implementation):
    model, tensors = build("qwen2_vl")
    model.set_attn_implementation(implementation)
    vlm = open_vlm(model=model.to(torch.bfloat16))
    inputs = vlm.from_tensors(**tensors)
    call = spied(vlm, inputs, 2, VisualAttentionBoost(3.0, layers=2))
    keys = torch.arange(inputs.spans.labels.shape[1])
    z = scores(call, 0, -1, keys)
    want = torch.where(inputs.spans.visual[0], z + 3 * z.abs(), z).softmax(-1)
    torch.testing.assert_close(call[4][0, :, -1].double(), want, atol=4e-3, rtol=1e-2)
    assert call[3].dtype == torch.bfloat16


def test_bad_input_is_one_line_before_anything_is_changed(organism):
    qwen, mllama = (open_vlm(model=build(name)[0]) for name in ("qwen3_5", "mllama"))
    for vlm, change, words in [
        (mllama, VisualAttentionBoost(), "enter by cross-attention"),
        (mllama, SinkRedistribution(tau=2), "enter by cross-attention"),
        (qwen, VisualAttentionBoost(layers=[0]), r"layer 0 is linear attention.*choose among \[3\]"),
        (organism, VisualAttentionBoost(-1), "strength=-1 must be 0"),
        (organism, VisualAttentionBoost(layers=[]), "names no layer"),
        (organism, VisualAttentionBoost(layers=9), "layer 9 is outside"),
        (organism, SinkRedistribution(), "tau=20.0: no state of width 128.*beyond 11.3"),
        (organism, SinkRedistribution(p=2, tau=2), "p=2 must be a share"),
        (organism, SinkRedistribution(dims=[500], tau=2), r"dims=\[500\].*0 to 127"),
        (organism, SinkRedistribution(dims=[], tau=2), "one or more dimensions"),
        (organism, SinkRedistribution(tau=2, positions="picture"), "positions='picture'"),
    ]:
        with pytest.raises(UserError, match=words), steer(vlm, change):
            raise AssertionError("was opened")

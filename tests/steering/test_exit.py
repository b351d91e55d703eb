"""Visual-token exit: what is left is untouched by how the rest was taken out, in every family and every way to generate."""

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.models.passes import telling
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.steering import AddDirection, VisualExit, steer
from chiasm.steering.steer import _hooks

from ..models.families import FAMILIES, batch, build
from .changed import OPTIONS, logits, opened

SEQUENCE = pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mllama"])


def linear(vlm) -> bool:
    return "linear" in vlm.anatomy.attention_kinds


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism")


@pytest.fixture(scope="module")
def prompts(organism):
    samples = list(scene_samples(3, "test"))
    return organism.prepare([s.images for s in samples], [s.prompt for s in samples])


@SEQUENCE
def test_an_exit_at_the_last_layer_changes_nothing(name):
    vlm, inputs = opened(name)
    plain = logits(vlm, inputs)
    tokens = vlm.generate_ids(inputs, **OPTIONS)
    for after in (-1, vlm.anatomy.n_layers - 1):
        with steer(vlm, VisualExit(after)):
            assert torch.equal(vlm.forward(inputs).logits, plain)
            assert torch.equal(vlm.generate_ids(inputs, **OPTIONS), tokens)


@SEQUENCE
def test_a_mask_and_a_slice_leave_the_same_text_and_answers(name):
    vlm, inputs = opened(name)
    plain, rest = logits(vlm, inputs), inputs.spans.real & ~inputs.spans.visual
    if linear(vlm):
        with pytest.raises(UserError, match=r"layers 1, 2 of this qwen3_5 are linear attention.*by='slice'"):
            logits(vlm, inputs, VisualExit(0, by="mask"))
    for after in ("embed", 0, 1):
        sliced = logits(vlm, inputs, VisualExit(after))
        assert sliced.shape == plain.shape
        assert not torch.allclose(sliced[rest], plain[rest], atol=1e-4)
        if not linear(vlm):
            masked = logits(vlm, inputs, VisualExit(after, by="mask"))
            torch.testing.assert_close(sliced[rest], masked[rest], atol=2e-6, rtol=1e-5)
    for after in ("embed", 1):
        with steer(vlm, VisualExit(after)):
            tokens = vlm.generate_ids(inputs, **OPTIONS)
            assert torch.equal(vlm.generate_ids(inputs, use_cache=False, **OPTIONS), tokens)
        if not linear(vlm):
            with steer(vlm, VisualExit(after, by="mask")):
                assert torch.equal(vlm.generate_ids(inputs, **OPTIONS), tokens)


# Qwen3-VL's decoder adds features of the picture behind its first blocks, after resid_post was read
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("mllama", "qwen3_vl")])
def test_visual_rows_keep_their_state_at_the_exit_up_to_the_final_norm(name):
    vlm, inputs = opened(name, "right")
    state = vlm.trace(inputs, ["blocks.1.resid_post"])["blocks.1.resid_post"]
    visual = inputs.spans.visual
    with torch.no_grad():
        want = vlm.anatomy.unembed(vlm.anatomy.norm(state[visual]))
    torch.testing.assert_close(logits(vlm, inputs, VisualExit(1))[visual], want, atol=2e-6, rtol=1e-5)


def test_an_exit_before_the_first_block_is_the_text_alone_with_a_gap_in_its_positions():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    rest = ~inputs.spans.visual[0]
    at = torch.nonzero(rest).T
    with torch.no_grad():
        text = model.get_input_embeddings()(tensors["input_ids"][:, rest])
        want = model.lm_head(model.model.language_model(inputs_embeds=text, position_ids=at).last_hidden_state)
    torch.testing.assert_close(logits(vlm, inputs, VisualExit("embed"))[:, rest], want, atol=1e-6, rtol=1e-5)
    ids = torch.cat([tensors["input_ids"][:, rest]], 1)
    with torch.no_grad():  # and greedy decoding goes on where the prompt ended
        for _ in range(4):
            ahead = ids.shape[1] - len(at[0])
            positions = torch.cat([at, at[:, -1:] + torch.arange(1, ahead + 1)], 1)
            states = model.model.language_model(input_ids=ids, position_ids=positions).last_hidden_state
            scores = model.lm_head(states[:, -1])
            scores[:, 120:124] = -torch.inf
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    with steer(vlm, VisualExit("embed")):
        assert torch.equal(vlm.generate_ids(inputs, **OPTIONS), ids[:, -4:])


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl", "aya_vision"])
def test_eager_attention_static_caches_and_beams_give_the_same_answers(name):
    vlm, inputs = opened(name)
    for after in ("embed", 0):
        with steer(vlm, VisualExit(after)):
            want = vlm.generate_ids(inputs, **OPTIONS)
            beams = vlm.generate_ids(inputs, num_beams=2, **OPTIONS)
            assert torch.equal(vlm.generate_ids(inputs, cache_implementation="static", **OPTIONS), want)
        with steer(vlm, VisualExit(after, by="mask")):
            assert torch.equal(vlm.generate_ids(inputs, cache_implementation="static", **OPTIONS), want)
            assert torch.equal(vlm.generate_ids(inputs, num_beams=2, **OPTIONS), beams)
        vlm.model.set_attn_implementation("eager")
        for by in ("slice", "mask"):
            with steer(vlm, VisualExit(after, by=by)):
                assert torch.equal(vlm.generate_ids(inputs, **OPTIONS), want)
        vlm.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("after", ["embed", 1])
def test_rows_with_and_without_a_picture_go_together(organism, prompts, after):
    samples = list(scene_samples(2, "test"))
    mixed = organism.prepare(
        [samples[0].images, None, samples[1].images], ["is there a cat ?", "what is it ?", "and here ?"]
    )
    rest = mixed.spans.real & ~mixed.spans.visual
    sliced, masked = (logits(organism, mixed, VisualExit(after, by=by)) for by in ("slice", "mask"))
    torch.testing.assert_close(sliced[rest], masked[rest], atol=1e-4, rtol=1e-4)
    with steer(organism, VisualExit(after)):
        together = organism.generate_ids(mixed, max_new_tokens=5)
        assert torch.equal(organism.generate_ids(mixed, max_new_tokens=5, use_cache=False), together)
        for row, (images, text) in enumerate([(samples[0].images, "is there a cat ?"), (None, "what is it ?")]):
            alone = organism.generate_ids(organism.prepare([images], [text]), max_new_tokens=5)
            assert torch.equal(together[row : row + 1, : alone.shape[1]], alone)


def test_every_option_of_generate_works(organism, prompts):
    for after in ("embed", 0):
        with steer(organism, VisualExit(after)):
            want = organism.generate_ids(prompts, max_new_tokens=6)
            assert torch.equal(organism.generate_ids(prompts, max_new_tokens=6, use_cache=False), want)
            assert torch.equal(organism.generate_ids(prompts, max_new_tokens=6, cache_implementation="static"), want)
            torch.manual_seed(0)
            several = organism.generate_ids(prompts, max_new_tokens=6, do_sample=True, num_return_sequences=2)
            assert len(several) == 2 * len(prompts)
            with pytest.raises(UserError, match="read in several passes"):
                organism.generate_ids(prompts, max_new_tokens=2, prefill_chunk_size=20)


def test_no_later_row_looks_at_the_picture_behind_the_exit_and_slices_cannot_be_read(organism, prompts):
    sites, image = ["blocks.*.attn_mass", "blocks.*.resid_post"], prompts.spans.names.index("image")
    with steer(organism, VisualExit(1, by="mask")):
        trace = organism.trace(prompts, sites)
    rest = prompts.spans.real & ~prompts.spans.mask("image")
    for layer in range(organism.anatomy.n_layers):
        mass = trace[f"blocks.{layer}.attn_mass"].mean(1)[rest]
        torch.testing.assert_close(mass.sum(-1), torch.ones(len(mass)), atol=1e-4, rtol=0)
        assert (mass[:, image].max() > 0.01) == (layer <= 1)
    with steer(organism, VisualExit(1)):
        assert "blocks.1.resid_post" in organism.trace(prompts, ["blocks.0.attn_mass", "blocks.1.resid_post", "logits"])
        for site in ("blocks.2.resid_post", "blocks.3.attn_mass"):
            with pytest.raises(UserError, match=f"site '{site}' cannot be read .* use by='mask'"):
                organism.trace(prompts, [site])
    with steer(organism, VisualExit("embed")), pytest.raises(UserError, match="site 'embed' cannot be read"):
        organism.trace(prompts, ["embed"])


@pytest.mark.parametrize("positions", ["all", "text", "image", "last_prompt"])
def test_other_interventions_find_their_positions_among_what_is_left(organism, prompts, positions):
    v = torch.randn(organism.anatomy.hidden_size, generator=torch.Generator().manual_seed(0))
    add = AddDirection(v, layer=[0, 3], positions=positions)
    rest = prompts.spans.real & ~prompts.spans.visual
    sliced, masked = (logits(organism, prompts, VisualExit(1, by=by), add) for by in ("slice", "mask"))
    torch.testing.assert_close(sliced[rest], masked[rest], atol=1e-4, rtol=1e-4)
    with steer(organism, add), steer(organism, VisualExit(1)):
        assert torch.equal(organism.forward(prompts).logits, sliced)
        answers = organism.generate_ids(prompts, max_new_tokens=4)
    with steer(organism, VisualExit(1, by="mask")), steer(organism, add):
        assert torch.equal(organism.generate_ids(prompts, max_new_tokens=4), answers)


def test_texts_without_pictures_are_left_as_they_are(organism):
    inputs = organism.prepare([None], ["is there a cat ?"])
    assert torch.equal(logits(organism, inputs, VisualExit("embed")), logits(organism, inputs))


def test_the_model_is_left_as_it_was(organism, prompts):
    plain = logits(organism, prompts)
    logits(organism, prompts, VisualExit(0))
    assert torch.equal(logits(organism, prompts), plain)
    assert not _hooks


def test_bad_input_is_one_line(organism):
    for change, words in [
        (VisualExit(9), r"layer 9 is outside this model's 0\.\.3"),
        (VisualExit("first"), "after='first' must be a decoder layer, or \"embed\""),
        (VisualExit(True), "after=True must be"),
        (VisualExit(1, by="hide"), "by='hide' must be one of slice, mask"),
    ]:
        with pytest.raises(UserError, match=words), steer(organism, change):
            raise AssertionError("was opened")
    mllama = open_vlm(model=build("mllama")[0])
    with pytest.raises(UserError, match="cross-attention, so that no position"), steer(mllama, VisualExit(1)):
        pass


def test_only_rows_that_are_to_be_changed_lose_their_picture():
    model, tensors, _ = batch("llava", "left")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    plain, out = logits(vlm, inputs), logits(vlm, inputs, VisualExit(0))
    rest = inputs.spans.real & ~inputs.spans.visual
    for by in ("slice", "mask"):
        with torch.no_grad(), telling(inputs.spans, torch.tensor([True, False])), steer(vlm, VisualExit(0, by=by)):
            mixed = model(**tensors).logits
        for row, want in enumerate((out, plain)):
            torch.testing.assert_close(mixed[row][rest[row]], want[row][rest[row]], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["gemma3", "aya_vision"])
def test_sliding_windows_shorter_than_the_prompt_count_what_was_there(name):
    model, tensors, _ = batch(name, "left")
    config = model.config.get_text_config()
    config.sliding_window = 6
    for block in model.model.language_model.layers:
        if block.self_attn.sliding_window:
            block.self_attn.sliding_window = 6
    vlm = open_vlm(model=model)
    inputs, options = vlm.from_tensors(**tensors), OPTIONS | {"max_new_tokens": 8, "min_new_tokens": 8}
    rest = inputs.spans.real & ~inputs.spans.visual
    for after in ("embed", 0):
        found = [logits(vlm, inputs, VisualExit(after, by=by))[rest] for by in ("slice", "mask")]
        torch.testing.assert_close(*found, atol=2e-6, rtol=1e-5)
        with steer(vlm, VisualExit(after, by="mask")):
            want = vlm.generate_ids(inputs, **options)
        with steer(vlm, VisualExit(after)):
            assert torch.equal(vlm.generate_ids(inputs, **options), want)
            assert torch.equal(vlm.generate_ids(inputs, use_cache=False, **options), want)

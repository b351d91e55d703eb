"""Steering on every family: nothing at scale 0, recorders see what later blocks see, positions, nesting, threads, restoring."""

import re
import threading
from pathlib import Path

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.models.attention import PREFIX
from chiasm.scenes.errors import UserError
from chiasm.steering import AddDirection, AffineAblate, steer
from chiasm.steering.steer import Edit, _hooks
from chiasm.steering.where import Where

from ..models.families import FAMILIES, batch, build

EVERY = pytest.mark.parametrize("name", FAMILIES)
SEQUENCE = pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mllama"])


def vector(vlm, seed: int = 0) -> torch.Tensor:
    return torch.randn(vlm.anatomy.hidden_size, generator=torch.Generator().manual_seed(seed))


def last_site(vlm) -> str:
    return f"blocks.{vlm.anatomy.n_layers - 1}.resid_post"


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism")


@EVERY
def test_scale_zero_gives_the_same_logits_and_tokens_bit_for_bit(name):
    model, tensors, _ = batch(name, "left")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    with torch.no_grad():
        plain = vlm.forward(inputs).logits
        tokens = vlm.generate_ids(inputs, max_new_tokens=4)
        with steer(vlm, AddDirection(vector(vlm), layer=1, scale=0.0)):
            assert torch.equal(vlm.forward(inputs).logits, plain)
            assert torch.equal(vlm.generate_ids(inputs, max_new_tokens=4), tokens)


@EVERY
def test_recorders_see_the_steered_states_even_those_that_were_there_before(name):
    model, tensors = build(name)
    vlm = open_vlm(model=model)
    inputs, v = vlm.from_tensors(**tensors), vector(vlm)
    site = "blocks.1.resid_post"
    plain = vlm.trace(inputs, [site, last_site(vlm)])
    with vlm.recording(inputs, [site]) as recorder, steer(vlm, AddDirection(v, layer=1)), torch.no_grad():
        vlm.forward(inputs, use_cache=False)
    torch.testing.assert_close(recorder.trace()[site], plain[site] + v, atol=1e-5, rtol=0)
    with steer(vlm, AddDirection(v, layer=1)):
        steered = vlm.trace(inputs, [site, last_site(vlm)])
    torch.testing.assert_close(steered[site], plain[site] + v, atol=1e-5, rtol=0)
    assert not torch.allclose(steered[last_site(vlm)], plain[last_site(vlm)], atol=1e-3)


@EVERY
def test_the_model_is_restored_to_the_bit_also_after_an_error(name):
    model, tensors = build(name)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    with torch.no_grad():
        plain = vlm.forward(inputs).logits
        with pytest.raises(RuntimeError, match="in between"), steer(vlm, AddDirection(vector(vlm), layer=0)):
            raise RuntimeError("in between")
        assert torch.equal(vlm.forward(inputs).logits, plain)
    assert not _hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for b in vlm.anatomy.blocks for m in b.modules())


@SEQUENCE
@pytest.mark.parametrize("positions", ["all", "image", "text", "last_prompt", "generated", 3, -2])
def test_positions_are_the_named_ones_and_padding_is_never_steered(name, positions):
    model, tensors, _ = batch(name, "left")
    vlm = open_vlm(model=model)
    inputs, v = vlm.from_tensors(**tensors), vector(vlm)
    site, spans = "blocks.1.resid_post", inputs.spans
    plain = vlm.trace(inputs, [site])[site]
    with steer(vlm, AddDirection(v, layer=1, positions=positions)):
        moved = (vlm.trace(inputs, [site])[site] - plain).abs().sum(-1) > 1e-3
    numbers = spans.real.long().cumsum(1) - 1
    length = spans.real.sum(1, keepdim=True)
    want = {
        "all": spans.real, "image": spans.visual, "text": spans.real & ~spans.mask("image"),
        "last_prompt": numbers == length - 1, "generated": torch.zeros_like(spans.real),
        3: numbers >= 3, -2: numbers >= length - 2,
    }[positions]  # fmt: skip
    assert torch.equal(moved, want & spans.real)


@SEQUENCE
@pytest.mark.parametrize("side", ["left", "right"])
def test_last_prompt_is_each_rows_own_last_real_token_on_either_side(name, side):
    model, tensors, rows = batch(name, side)
    vlm = open_vlm(model=model)
    inputs, v = vlm.from_tensors(**tensors), vector(vlm)
    site = "blocks.0.resid_post"
    plain = vlm.trace(inputs, [site])[site]
    with steer(vlm, AddDirection(v, layer=0, positions="last_prompt")):
        moved = (vlm.trace(inputs, [site])[site] - plain).abs().sum(-1) > 1e-3
    lengths = [row["input_ids"].shape[1] for row in rows]
    width = inputs.spans.labels.shape[1]
    ends = [width - 1] * 2 if side == "left" else [n - 1 for n in lengths]
    assert moved.nonzero().tolist() == [[0, ends[0]], [1, ends[1]]]


@EVERY
def test_decoding_steps_are_steered_by_their_position(name):
    """With a cache as without one, by the steps' own states: "generated" and "all" act, prompt positions do not."""
    model, tensors = build(name)
    vlm = open_vlm(model=model)
    inputs, v = vlm.from_tensors(**tensors), vector(vlm)
    width = inputs.spans.labels.shape[1]
    site, off = "blocks.1.resid_post", {"eos_token_id": None, "pad_token_id": 0}
    for positions, steps_move in (("generated", True), ("all", True), ("last_prompt", False), (width + 1, "second")):
        ids, plain = vlm.trace_generation(inputs, [site], max_new_tokens=3, min_new_tokens=3, **off)
        with steer(vlm, AddDirection(v * 1e-3, layer=1, positions=positions)):
            again, moved = vlm.trace_generation(inputs, [site], max_new_tokens=3, min_new_tokens=3, **off)
        assert torch.equal(ids[:, :1], again[:, :1])
        delta = (moved[site] - plain[site])[0, width:]
        norms = delta.norm(dim=-1) if torch.equal(ids, again) else delta[:1].norm(dim=-1)
        here = torch.isclose(norms, (v * 1e-3).norm(), rtol=0.2)
        if positions == "last_prompt":
            continue  # later states move through attention
        assert here.tolist() == ([False, True] if steps_move == "second" else [True, True])[: len(here)]


def test_generated_leaves_the_prefill_and_the_first_token_untouched(organism):
    from chiasm.scenes.benchmarks import scene_samples

    sample = next(iter(scene_samples(1, "test")))
    inputs = organism.prepare([sample.images], [sample.prompt])
    width = inputs.spans.labels.shape[1]
    v = vector(organism) * 50
    ids, plain = organism.trace_generation(inputs, ["blocks.1.resid_post"], max_new_tokens=4)
    with steer(organism, AddDirection(v, layer=1, positions="generated")):
        new, steered = organism.trace_generation(inputs, ["blocks.1.resid_post"], max_new_tokens=4)
    assert new[0, 0] == ids[0, 0]
    before, after = (t["blocks.1.resid_post"] for t in (plain, steered))
    assert torch.equal(before[:, :width], after[:, :width])
    torch.testing.assert_close(after[:, width], before[:, width] + v, atol=1e-3, rtol=0)


def test_teacher_forced_answers_are_steered_as_generated_ones(organism):
    inputs = organism.prepare([None], ["is there a cat ?"], ["yes ."])
    site = "blocks.1.resid_post"
    plain = organism.trace(inputs, [site])[site]
    with steer(organism, AddDirection(vector(organism), layer=1, positions="generated")):
        moved = (organism.trace(inputs, [site])[site] - plain).abs().sum(-1) > 1e-3
    assert torch.equal(moved, inputs.spans.mask("answer"))
    with steer(organism, AddDirection(vector(organism), layer=1, positions="last_prompt")):
        moved = (organism.trace(inputs, [site])[site] - plain).abs().sum(-1) > 1e-3
    assert moved.nonzero()[:, 1].tolist() == [int(inputs.spans.predicting()[0, 0])]


def test_every_option_of_generate_works_under_steering(organism):
    from chiasm.scenes.benchmarks import scene_samples

    samples = list(scene_samples(3, "test"))
    inputs = organism.prepare([s.images for s in samples], [s.prompt for s in samples])
    change = AddDirection(vector(organism) * 0.5, layer=1, positions="all")
    options = [
        {"use_cache": False}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2, "top_p": 0.9},
        {"cache_implementation": "static"}, {"repetition_penalty": 1.3},
    ]  # fmt: skip
    for more in options:
        with steer(organism, change):
            torch.manual_seed(0)
            first = organism.generate_ids(inputs, max_new_tokens=6, **more)
            torch.manual_seed(0)
            assert torch.equal(organism.generate_ids(inputs, max_new_tokens=6, **more), first)
    with steer(organism, change):
        cached = organism.generate_ids(inputs, max_new_tokens=6)
        assert torch.equal(cached, organism.generate_ids(inputs, max_new_tokens=6, use_cache=False))
        assert torch.equal(cached, organism.generate_ids(inputs, max_new_tokens=6, cache_implementation="static"))
        alone = organism.generate_ids(organism.prepare([samples[1].images], [samples[1].prompt]), max_new_tokens=6)
    assert torch.equal(cached[1:2, : alone.shape[1]], alone)


def test_streaming_gives_the_steered_answer_piece_by_piece(organism):
    inputs = organism.prepare([None], ["is there a cat ?"])
    change = AddDirection(vector(organism) * 40, layer=1)
    plain = organism.generate(inputs, max_new_tokens=5)[0]
    with steer(organism, change):
        whole = organism.generate(inputs, max_new_tokens=5)[0]
        assert "".join(organism.stream(inputs, max_new_tokens=5)).strip() == whole
    assert whole != plain
    assert "".join(organism.stream(inputs, max_new_tokens=5)).strip() == plain


def test_streaming_tells_errors_and_can_be_given_up(organism):
    inputs = organism.prepare([None], ["is there a cat ?"])
    with pytest.raises(ValueError, match="nonsense"):
        list(organism.stream(inputs, nonsense=1))
    before = threading.active_count()
    stream = organism.stream(inputs, max_new_tokens=2000, eos_token_id=-1)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    with pytest.raises(UserError, match="batch of one"):
        list(organism.stream(organism.prepare([None] * 2, ["a"] * 2)))


def test_several_interventions_add_up_listed_or_nested(organism):
    inputs = organism.prepare([None], ["is there a cat ?"])
    a, b = vector(organism, 1), vector(organism, 2)
    site = "blocks.1.resid_post"
    plain = organism.trace(inputs, [site])[site]
    with steer(organism, AddDirection(a, layer=1), AddDirection(b, layer=1)):
        listed = organism.trace(inputs, [site])[site]
    with steer(organism, AddDirection(a, layer=1)), steer(organism, AddDirection(b, layer=1)):
        nested = organism.trace(inputs, [site])[site]
    torch.testing.assert_close(listed, plain + a + b, atol=1e-5, rtol=0)
    assert torch.equal(listed, nested)


def test_the_outer_context_acts_first_and_the_listed_order_holds(organism):
    inputs = organism.prepare([None], ["is there a cat ?"])
    v, site = vector(organism), "blocks.1.resid_post"
    add = AddDirection(v, layer=1)
    remove = AffineAblate(v, torch.zeros_like(v), layer=1)
    unit = v / v.norm()

    def along(*contexts):
        with contexts[0], contexts[1]:
            return (organism.trace(inputs, [site])[site] @ unit).abs().max()

    assert along(steer(organism, add), steer(organism, remove)) < 1e-4
    assert along(steer(organism, remove), steer(organism, add)) > 0.9 * v.norm()
    with steer(organism, add, remove):
        assert (organism.trace(inputs, [site])[site] @ unit).abs().max() < 1e-4


def test_other_threads_see_the_plain_model(organism):
    inputs = organism.prepare([None], ["is there a cat ?"])
    plain = organism.forward(inputs).logits
    results = {}

    def work(name):
        with torch.no_grad():
            if name == "plain":
                results[name] = organism.forward(inputs).logits
            else:
                with steer(organism, AddDirection(vector(organism, int(name)) * 2, layer=1)):
                    barrier.wait()
                    results[name] = organism.forward(inputs).logits
                    barrier.wait()

    barrier = threading.Barrier(3)
    threads = [threading.Thread(target=work, args=(name,)) for name in ("1", "2")]
    for thread in threads:
        thread.start()
    barrier.wait()
    work("plain")
    barrier.wait()
    for thread in threads:
        thread.join()
    assert torch.equal(results["plain"], plain)
    for name in ("1", "2"):
        with steer(organism, AddDirection(vector(organism, int(name)) * 2, layer=1)), torch.no_grad():
            assert torch.equal(organism.forward(inputs).logits, results[name])


def test_attention_edits_run_for_their_module_and_are_seen_by_readers():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    name = vlm.model.config.get_text_config()._attn_implementation
    called = []

    def attend(plain, where, module, query, key, value, mask, **options):
        called.append((where.start, where.length))
        out, _ = plain(module, query, key, value, mask, **options)
        weights = query.new_zeros(*query.shape[:3], key.shape[2])
        weights[..., 0] = 1  # all look at the first position
        return out * 0, weights

    class FirstOnly:
        def edits(self, vlm):
            return [Edit(vlm.anatomy.attention(1), attend=attend)]

    plain = vlm.trace(inputs, ["blocks.*.attn_mass"])
    with steer(vlm, FirstOnly()):
        assert vlm.model.config.get_text_config()._attn_implementation == PREFIX + name
        changed = vlm.trace(inputs, ["blocks.*.attn_mass", "blocks.1.attn_out"])
    assert vlm.model.config.get_text_config()._attn_implementation == name
    assert called == [(0, inputs.spans.labels.shape[1])]
    assert torch.equal(changed["blocks.0.attn_mass"], plain["blocks.0.attn_mass"])
    assert (changed["blocks.1.attn_mass"][..., 0] == 1).all()
    assert not changed["blocks.1.attn_out"].any()


def test_spans_are_found_from_the_ids_where_the_model_is_called_directly():
    model, tensors, _ = batch("llava", "left")
    vlm = open_vlm(model=model)
    inputs, v = vlm.from_tensors(**tensors), vector(vlm)
    with steer(vlm, AddDirection(v, layer=1, positions="image")), torch.no_grad():
        told = vlm.forward(inputs).logits
        assert torch.equal(model(**tensors).logits, told)
        ids = vlm.generate_ids(inputs, max_new_tokens=3)
        assert torch.equal(model.generate(**tensors, max_new_tokens=3, do_sample=False)[:, -ids.shape[1] :], ids)
        with pytest.raises(UserError, match="nobody told"):
            model.model.language_model(inputs_embeds=torch.randn(1, 4, 32))
        with pytest.raises(UserError, match="nobody told"):
            model.model.language_model(torch.tensor([[5, 6, 7]]))


def test_bad_input_is_one_line_before_anything_is_changed(organism):
    v = vector(organism)
    for change, words in [
        (AddDirection(v, layer=40), r"layer 40 is outside this model's 0\.\."),
        (AddDirection(v, layer=[]), "names no layer"),
        (AddDirection(v), "layer= is missing"),
        (AddDirection(v[:5], layer=1), r"the direction is \(5,\)"),
        (AddDirection(v * float("nan"), layer=1), "not finite"),
        (AddDirection(v, layer=1, scale=float("inf")), "scale=inf must be a finite number"),
        (AddDirection(v, layer=1, positions="images"), "positions='images' must be one of all, image"),
        (AddDirection(v, layer=1, positions=True), "positions=True"),
        (AddDirection(v, layer=1, units="norms"), 'units=\'norms\' must be "raw" or "norm"'),
        (AddDirection(v, layer=1, units="norm"), "needs the mean norm"),
    ]:
        with pytest.raises(UserError, match=words), steer(organism, change):
            raise AssertionError("was opened")
    inputs = organism.prepare([None], ["is there a cat ?"])
    with (
        pytest.raises(UserError, match="reaches before a prompt of"),
        steer(organism, AddDirection(v, layer=1, positions=-99)),
    ):
        organism.forward(inputs)
    assert not _hooks


def test_image_positions_are_refused_where_no_position_holds_a_picture():
    vlm = open_vlm(model=build("mllama")[0])
    with pytest.raises(UserError, match="cross-attention"), steer(vlm, AddDirection(vector(vlm), 1, positions="image")):
        pass


def test_changed_rows_alone_are_steered(organism):
    from chiasm.models.passes import telling

    inputs = organism.prepare([None] * 2, ["is there a cat ?"] * 2)
    v, site = vector(organism), "blocks.1.resid_post"
    plain = organism.trace(inputs, [site])[site]
    with (
        steer(organism, AddDirection(v, layer=1)),
        organism.recording(inputs, [site]) as recorder,
        telling(inputs.spans, torch.tensor([True, False])),
        torch.no_grad(),
    ):
        organism.model(**inputs.tensors)
    moved = (recorder.trace()[site] - plain).abs().sum(-1) > 1e-3
    assert moved[0].all() and not moved[1].any()


def test_where_knows_all_positions_without_spans_and_no_others():
    assert Where(None, 0, 3, 2).mask("all").shape == (2, 3)
    with pytest.raises(UserError, match="nobody told"):
        Where(None, 0, 3, 2).mask("text")


def test_the_intervention_of_the_page_on_steering_silences_an_mlp_at_visual_tokens():
    page = (Path(__file__).parents[2] / "docs" / "steering.md").read_text(encoding="utf-8")
    (code,), names = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL), {}
    exec(code, names)
    vlm = open_vlm(model=build("llava")[0])
    inputs = vlm.from_tensors(**build("llava")[1])
    with steer(vlm, names["Silence"](1)):
        out = vlm.trace(inputs, ["blocks.1.mlp_out"])["blocks.1.mlp_out"]
    assert torch.equal(out.abs().sum(-1) == 0, inputs.spans.visual)

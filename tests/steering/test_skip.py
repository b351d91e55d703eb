"""Skipped sublayers add exactly nothing, in every family, and layer sets are those of the page."""

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.models.linear_inputs import linear_sites, square_sites
from chiasm.models.passes import telling
from chiasm.scenes.errors import UserError
from chiasm.steering import PruneVisual, SkipAttention, SkipBlock, SkipFFN, VisualExit, steer
from chiasm.steering.skip import skip_layers
from chiasm.steering.steer import Edit

from ..models.families import FAMILIES, batch, build
from .changed import OPTIONS

EVERY = pytest.mark.parametrize("name", FAMILIES)
KINDS = (SkipFFN, SkipAttention, SkipBlock)
LAYER = 1


def opened(name: str):
    model, tensors, _ = batch(name, "left")
    vlm = open_vlm(model=model)
    return vlm, vlm.from_tensors(**tensors), "text" if name == "mllama" else "image"


def skipped_rows(inputs, positions: str):
    spans = inputs.spans
    return spans.visual if positions == "image" else spans.real & ~spans.mask("image")


@pytest.mark.parametrize(
    ("start", "counts"), [(0, (15, 10, 7, 3)), (4, (13, 9, 6, 3)), (16, (7, 5, 3, 1)), (24, (3, 2, 1, 0))]
)
def test_layer_sets_of_32_layers_are_those_of_the_page(start, counts):
    chosen = [skip_layers(32, start=start, end=31, interval=interval) for interval in (2, 3, 4, 8)]
    assert tuple(map(len, chosen)) == counts
    assert all(
        start < i < 31 and i % interval == 0
        for found, interval in zip(chosen, (2, 3, 4, 8), strict=True)
        for i in found
    )


def test_layer_sets_have_defaults_slices_and_draws():
    assert skip_layers(32, interval=2) == list(range(2, 31, 2))
    assert skip_layers(8, interval=1) == [1, 2, 3, 4, 5, 6]
    assert skip_layers(8, interval=9) == []
    assert skip_layers(8, interval=[9, 1]) == [4, 5, 6]
    assert skip_layers(32, interval=4, seed=1) == skip_layers(32, interval=4, seed=1)
    assert skip_layers(32, interval=4, seed=1) != skip_layers(32, interval=4, seed=2)
    drawn = skip_layers(400, interval=4, seed=0)
    assert all(any(i % k == 0 for k in (2, 3, 4)) for i in drawn)
    assert 110 < len(drawn) < 180  # (1/2 + 1/3 + 1/4) / 3 of 398 is 144
    for interval in (0, -1, True, [], [2, 0], "two"):
        with pytest.raises(UserError, match="interval="):
            skip_layers(8, interval=interval)
    with pytest.raises(UserError, match="drawn from 2"):
        skip_layers(8, interval=1, seed=0)


@EVERY
def test_no_skipped_layer_is_the_model_to_the_bit_and_so_is_a_prompt_without_pictures(name):
    vlm, inputs, positions = opened(name)
    with torch.no_grad():
        plain = vlm.forward(inputs).logits
        tokens = vlm.generate_ids(inputs, **OPTIONS)
        for kind in KINDS:
            for change in (kind(interval=99, positions=positions), kind(layers=[], positions=positions)):
                with steer(vlm, change):
                    assert torch.equal(vlm.forward(inputs).logits, plain)
        with steer(vlm, SkipBlock(interval=99, positions=positions)):
            assert torch.equal(vlm.generate_ids(inputs, **OPTIONS), tokens)
        if positions == "image" and not vlm.anatomy.layout.unembed.startswith("language_model."):
            text = vlm.from_tensors(input_ids=torch.tensor([[1, 5, 6, 7, 8]]))
            plain = vlm.forward(text).logits
            with steer(vlm, SkipBlock(layers=[0, 1])):
                assert torch.equal(vlm.forward(text).logits, plain)


@EVERY
def test_skipped_rows_leave_a_layer_without_what_the_sublayer_adds(name):
    vlm, inputs, positions = opened(name)
    rows = skipped_rows(inputs, positions)
    deep = name == "qwen3_vl"  # adds features of the picture between the blocks: the layer after them is looked at
    layer = 2 if deep else LAYER
    after = f"blocks.{layer}.resid_post"
    block, entered, attended = vlm.anatomy.blocks[layer], [], []
    handle = block.register_forward_pre_hook(lambda _m, args: entered.append(args[0]))
    mixer = vlm.anatomy.attention(layer) or block.linear_attn
    adds = mixer.register_forward_hook(lambda _m, _a, out: attended.append(out[0] if isinstance(out, tuple) else out))
    plain = vlm.trace(inputs, [after])[after]
    for kind in KINDS:
        with steer(vlm, kind(layers=layer, positions=positions)):
            left = vlm.trace(inputs, [after])[after]
        x, attention = entered[-1], attended[-1]
        assert not torch.equal(left[rows], plain[rows])
        others = inputs.spans.real & ~rows
        torch.testing.assert_close(left[others], plain[others], atol=1e-6, rtol=1e-5)  # true keys and values
        if kind is SkipBlock:
            assert torch.equal(left[rows], x[rows])
        elif kind is SkipAttention:
            assert not attention[rows].any()
        elif name == "gemma3":  # a norm stands between the attention and the residual stream
            with torch.no_grad():
                assert torch.equal(left[rows], (x + block.post_attention_layernorm(attention))[rows])
        elif name == "mllama":  # gated
            torch.testing.assert_close(left[rows], (x + block.cross_attn_attn_gate.tanh() * attention)[rows])
        else:
            assert torch.equal(left[rows], (x + attention)[rows])
    handle.remove()
    adds.remove()


@EVERY
def test_generation_with_a_cache_is_that_without(name):
    vlm, inputs, positions = opened(name)
    for kind in (SkipBlock, *([SkipFFN, SkipAttention] if name in ("llava", "blip2", "gemma3") else [])):
        with steer(vlm, kind(layers=[0, 1], positions=positions)):
            tokens = vlm.generate_ids(inputs, **OPTIONS)
            assert torch.equal(vlm.generate_ids(inputs, use_cache=False, **OPTIONS), tokens)
            assert torch.equal(vlm.generate_ids(inputs, cache_implementation="static", **OPTIONS), tokens)


def test_attention_is_computed_for_the_others_only_unless_it_is_read():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs, asked = vlm.from_tensors(**tensors), []
    rest = int((~inputs.spans.visual).sum())
    whole = inputs.spans.labels.shape[1]
    attention = vlm.anatomy.attention(1)
    handles = [
        module.register_forward_pre_hook(lambda _m, args: asked.append(args[0].shape[1]))
        for module in (attention.q_proj, attention.k_proj, attention.o_proj, vlm.anatomy.blocks[1].mlp.gate_proj)
    ]
    with torch.no_grad(), steer(vlm, SkipBlock(layers=1)):
        vlm.forward(inputs)
        plain = vlm.forward(inputs).logits
        assert asked[:4] == [rest, whole, rest, rest]
        del asked[:]
        with vlm.recording(inputs, ["blocks.1.attn_mass", "logits"]) as recorder:
            vlm.forward(inputs)
        torch.testing.assert_close(recorder.trace()["logits"], plain, atol=1e-6, rtol=1e-5)
        mass = recorder.trace()["blocks.1.attn_mass"]
        torch.testing.assert_close(mass, vlm.trace(inputs, ["blocks.1.attn_mass"])["blocks.1.attn_mass"])
        assert asked[:4] == [whole, whole, rest, rest]
    for handle in handles:
        handle.remove()


def test_skips_go_with_exits_and_pruning():
    model, tensors, _ = batch("llava", "left")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    found, rest = [], inputs.spans.real & ~inputs.spans.visual
    with torch.no_grad():
        for by in ("slice", "mask"):
            with steer(vlm, PruneVisual(0.5, by=by), SkipBlock(layers=[0, 1, 2]), VisualExit(1, by=by)):
                found.append((vlm.forward(inputs).logits[rest], vlm.generate_ids(inputs, **OPTIONS)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=1e-5)
    assert torch.equal(found[0][1], found[1][1])


def test_only_rows_that_are_to_be_changed_skip():
    vlm, inputs, _ = opened("llava")
    short = vlm.from_tensors(**{name: value[:1].repeat_interleave(2, 0) for name, value in inputs.tensors.items()})
    changed = torch.tensor([True, False])
    for positions in ("image", "generated", "all"):
        skip = SkipBlock(layers=[0, 1], positions=positions)
        plain = vlm.generate_ids(short, **OPTIONS)
        with steer(vlm, skip):
            want = vlm.generate_ids(short, **OPTIONS)
            with telling(short.spans, changed):
                found = vlm.model.generate(**short.tensors, do_sample=False, **OPTIONS)[:, -4:]
        assert torch.equal(found, torch.stack([want[0], plain[1]]))


def test_several_skips_of_one_sublayer_add_up_and_other_changes_of_attention_see_all_queries():
    vlm, inputs, _ = opened("llava")

    def run(*changes):
        with torch.no_grad(), steer(vlm, *changes):
            return vlm.forward(inputs).logits

    image, text = SkipBlock(layers=1), SkipBlock(layers=1, positions="text")
    want = run(SkipBlock(layers=1, positions="all"))[inputs.spans.real]
    for changes in ((image, text), (text, image), (image, SkipFFN(layers=1), text, SkipAttention(layers=[1]))):
        torch.testing.assert_close(run(*changes)[inputs.spans.real], want, atol=1e-6, rtol=1e-5)
    with steer(vlm, text):
        torch.testing.assert_close(run(image)[inputs.spans.real], want, atol=1e-6, rtol=1e-5)
    asked = []

    class Watch:
        def edits(self, vlm):
            def attend(plain, where, module, query, *rest, **options):
                asked.append(query.shape[2])
                return plain(module, query, *rest, **options)

            return [Edit(vlm.anatomy.attention(1), attend=attend)]

    for changes in ((Watch(), image), (image, Watch())):
        torch.testing.assert_close(run(*changes), run(image), atol=1e-6, rtol=1e-5)
    assert set(asked) == {inputs.spans.labels.shape[1]}


def test_bad_input_is_one_line():
    vlm = open_vlm(model=build("llava")[0])
    for change, words in [
        (SkipFFN(layers=7), "layer 7 is outside"),
        (SkipBlock(positions="pictures"), "positions='pictures' must be one of"),
        (SkipAttention(interval=0), "interval=0 must be"),
    ]:
        with pytest.raises(UserError, match=words), steer(vlm, change):
            raise AssertionError("was opened")
    mllama = open_vlm(model=build("mllama")[0])
    for kind in KINDS:
        with pytest.raises(UserError, match="positions='image': the pictures of a mllama"), steer(mllama, kind(1)):
            pass


@EVERY
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_linear_layers_have_a_place_for_every_row_while_they_are_read(name, kind):
    vlm, inputs, positions = opened(name)
    sites = [site for site in linear_sites(vlm.anatomy) if site.startswith(f"blocks.{LAYER}.in.")]
    out = f"blocks.{LAYER}.resid_post"
    with steer(vlm, kind(layers=LAYER, positions=positions)):
        alone = vlm.trace(inputs, [out])
        beside = vlm.trace(inputs, [out, *sites])
    plain = vlm.trace(inputs, sites)
    assert {site: beside[site].shape for site in sites if site in beside} == {site: plain[site].shape for site in sites if site in plain}  # fmt: skip
    torch.testing.assert_close(beside[out], alone[out], atol=1e-5, rtol=1e-4)
    squares = [site for site in square_sites(vlm.anatomy) if site.startswith(f"blocks.{LAYER}.squares.")]
    with steer(vlm, kind(layers=LAYER, positions=positions)):
        found = vlm.trace(inputs, [out, *squares])
    torch.testing.assert_close(found[out], alone[out], atol=1e-5, rtol=1e-4)
    assert {site for site in squares if site in found} == {site for site in squares if site.replace(".squares.", ".in.") in beside}  # fmt: skip

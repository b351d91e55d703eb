"""Pruning of visual tokens by the encoder's attention: which are kept, and that the rest of the model sees nothing else."""

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.models.trace import Recorder, Trace
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.steering import AddDirection, PruneVisual, RemoveVisual, VisualExit, prune, steer
from chiasm.steering.dropping import left_at
from chiasm.steering.prune import METHODS, best_ranked, best_rows, best_tokens
from chiasm.steering.steer import Edit

from ..models.families import FAMILIES, IMAGE, build
from .changed import OPTIONS, logits, opened

QUERIES = ("instructblip", "blip2", "idefics2")
PRUNED = pytest.mark.parametrize("name", [name for name in FAMILIES if name not in (*QUERIES, "mllama")])


class Spy:
    """Notes which positions are left at a block."""

    def __init__(self, block: int = 1):
        self.block, self.places = block, []

    def edits(self, vlm):
        def look(args, kwargs, where):
            if where.prompt:
                left = left_at(where, self.block)
                self.places.append(None if left is None else [row[row >= 0].tolist() for row in left.places])
            return args, kwargs

        return [Edit(vlm.anatomy.blocks[self.block], before=look)]


# -- which tokens ------------------------------------------------------------------------------------------------------


def test_numbers_kept_of_576_are_those_of_the_page():
    scores = torch.randn(576, generator=torch.Generator().manual_seed(0))
    assert [int(best_tokens(scores, 1 - r).sum()) for r in (0.5, 0.75, 0.9, 0.95)] == [288, 144, 58, 29]
    assert int(best_ranked(scores, 0.05).sum()) == 28  # floor
    assert int(best_ranked(scores[:100], 0.29).sum()) == 29  # which in binary is a little less
    assert int(best_tokens(scores, 30).sum()) == 30
    assert best_tokens(scores, 576).all() and best_tokens(scores, 1.0).all() and best_tokens(scores, 999).all()
    assert not best_tokens(scores, 0.0).any()


def test_ties_go_to_the_lower_index():
    assert best_tokens(torch.tensor([1.0, 2, 1, 2, 1]), 3).tolist() == [True, True, False, True, False]
    assert best_tokens(torch.zeros(5), 2).tolist() == [True, True, False, False, False]


def test_rows_of_the_grid_are_kept_whole():
    rows = torch.arange(24).repeat_interleave(24)
    scores = torch.rand(576, generator=torch.Generator().manual_seed(0))
    kept = best_rows(scores, rows, 0.25).view(24, 24)
    assert kept.sum() == 144
    assert (kept.all(1) == kept.any(1)).all()
    assert set(torch.nonzero(kept[:, 0]).flatten().tolist()) == set(
        scores.view(24, 24).mean(1).topk(6).indices.tolist()
    )
    assert best_rows(scores, rows, 1.0).all()


def test_rows_and_rank_agree_on_a_grid_whose_mass_is_in_one_row():
    scores = torch.zeros(4, 4)
    scores[2] = torch.tensor([0.4, 0.3, 0.2, 0.1])
    rows = torch.arange(4).repeat_interleave(4)
    assert torch.nonzero(best_rows(scores.flatten(), rows, 0.25)).flatten().tolist() == [8, 9, 10, 11]
    assert torch.equal(best_ranked(scores.flatten(), 0.25), best_rows(scores.flatten(), rows, 0.25))


@pytest.mark.parametrize("planted", [[3], [15, 0, 7], [5, 4, 3, 2]])
def test_a_planted_cls_row_keeps_its_patches_in_raster_order(planted, monkeypatch):
    vlm, inputs = opened("llava")

    class Planted(Recorder):
        def trace(self, inputs=None):
            shape = next(iter(super().trace().tensors.values())).shape  # (tiles, H, 1 + N)
            row = torch.full(shape, -30.0)
            row[..., [1 + i for i in planted]] = 0.0
            return Trace({self.sites[0]: row})

    monkeypatch.setattr(prune, "Recorder", Planted)
    spy = Spy()
    logits(vlm, inputs, PruneVisual(len(planted)), spy)
    for row, places in enumerate(spy.places[0]):
        first = int(torch.nonzero(inputs.spans.visual[row])[0])
        text = torch.nonzero(inputs.spans.real[row] & ~inputs.spans.visual[row]).flatten().tolist()
        assert places == sorted(text + [first + i for i in planted])


def test_the_kept_are_those_that_the_traced_cls_row_ranks_highest():
    vlm, inputs = opened("llava")
    cls = vlm.trace(inputs, ["vision.blocks.1.cls_attention"])["vision.blocks.1.cls_attention"].mean(1)
    spy = Spy()
    logits(vlm, inputs, PruneVisual(0.25), spy)
    for row, places in enumerate(spy.places[0]):
        first = int(torch.nonzero(inputs.spans.visual[row])[0])
        kept = [p - first for p in places if inputs.spans.visual[row, p]]
        assert kept == sorted(cls[row].topk(4).indices.tolist())


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_every_crop_keeps_its_own_and_newlines_stay(name):
    model, tensors = build(name)
    vlm = open_vlm(model=model)
    inputs, spy = vlm.from_tensors(**tensors), Spy()
    logits(vlm, inputs, PruneVisual(4), spy)
    visual = torch.nonzero(inputs.spans.visual[0]).flatten()
    newline = visual[inputs.spans.row[0, visual] < 0].tolist()
    kept = [p for p in spy.places[0][0] if p in visual]
    assert len(newline) == 8 and set(newline) < set(kept)
    assert len(kept) == 5 * 4 + 8
    base = [p for p in kept if p < visual[16]]
    assert len(base) == 4
    fine = [(int(inputs.spans.row[0, p]) // 4, int(inputs.spans.col[0, p]) // 4) for p in kept if p >= visual[16]]
    assert [fine.count(tile) for tile in ((0, 0), (0, 1), (1, 0), (1, 1))] == [4, 4, 4, 4]


# -- the pass ----------------------------------------------------------------------------------------------------------


@PRUNED
@pytest.mark.parametrize("method", METHODS)
def test_keeping_all_changes_nothing(name, method):
    vlm, inputs = opened(name)
    plain, tokens = logits(vlm, inputs), vlm.generate_ids(inputs, **OPTIONS)
    with steer(vlm, PruneVisual(1.0, method)):
        assert torch.equal(vlm.forward(inputs).logits, plain)
        if method == "fastervlm":
            assert torch.equal(vlm.generate_ids(inputs, **OPTIONS), tokens)


@PRUNED
def test_a_mask_and_a_slice_leave_the_same_text_and_answers(name):
    vlm, inputs = opened(name)
    rest, linear = inputs.spans.real & ~inputs.spans.visual, name == "qwen3_5"
    for positions in {"keep", "keep" if name.startswith("qwen") else "reindex"}:
        with torch.no_grad(), steer(vlm, PruneVisual(0.5, positions=positions)):
            sliced, tokens = vlm.forward(inputs).logits, vlm.generate_ids(inputs, **OPTIONS)
            assert torch.equal(vlm.generate_ids(inputs, use_cache=False, **OPTIONS), tokens)
            torch.testing.assert_close(vlm.model(**inputs.tensors).logits[rest], sliced[rest], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(sliced[rest], logits(vlm, inputs)[rest], atol=1e-4)
        if linear:
            with pytest.raises(UserError, match="linear attention"):
                logits(vlm, inputs, PruneVisual(0.5, by="mask"))
            continue
        with torch.no_grad(), steer(vlm, PruneVisual(0.5, positions=positions, by="mask")):
            torch.testing.assert_close(vlm.forward(inputs).logits[rest], sliced[rest], atol=2e-6, rtol=1e-5)
            assert torch.equal(vlm.generate_ids(inputs, **OPTIONS), tokens)


def test_kept_positions_are_a_two_dimensional_mask_and_reindexed_ones_a_shorter_prompt():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs, spy = vlm.from_tensors(**tensors), Spy()
    kept = logits(vlm, inputs, PruneVisual(0.25, positions="keep"), spy)
    reindexed = logits(vlm, inputs, PruneVisual(0.25))
    places, length = spy.places[0][0], inputs.spans.labels.shape[1]
    hide = torch.zeros(1, length, dtype=torch.long)
    hide[0, places] = 1
    with torch.no_grad():
        position_ids = torch.arange(length)[None]
        masked = model(**tensors | {"attention_mask": hide}, position_ids=position_ids).logits
        features = model.get_image_features(tensors["pixel_values"]).pooler_output[0]
        embeds = model.get_input_embeddings()(tensors["input_ids"])
        embeds[tensors["input_ids"] == IMAGE] = features
        short = model.lm_head(model.model.language_model(inputs_embeds=embeds[:, places]).last_hidden_state)
    torch.testing.assert_close(kept[:, places], masked[:, places], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(reindexed[:, places], short, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(kept[:, places], reindexed[:, places], atol=1e-5)


def test_positions_that_jump_are_not_taken_for_several_sequences_without_a_mask_and_a_cache():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    with torch.no_grad(), steer(vlm, PruneVisual(0.25, by="mask")):
        with_mask = model(**tensors, use_cache=False).logits
        bare = {name: value for name, value in tensors.items() if name != "attention_mask"}
        rest = ~inputs.spans.visual
        torch.testing.assert_close(model(**bare, use_cache=False).logits[rest], with_mask[rest], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl"])
def test_beams_and_static_caches(name):
    vlm, inputs = opened(name)
    found = {}
    for by in ("slice", "mask"):
        with steer(vlm, PruneVisual(0.5, by=by)):
            found[by] = [
                vlm.generate_ids(inputs, **OPTIONS),
                vlm.generate_ids(inputs, cache_implementation="static", **OPTIONS),
                vlm.generate_ids(inputs, num_beams=3, **OPTIONS),
                vlm.generate_ids(inputs, num_beams=2, num_return_sequences=2, use_cache=False, **OPTIONS),
            ]
    assert torch.equal(found["slice"][0], found["slice"][1])
    for a, b in zip(found["slice"], found["mask"], strict=True):
        assert torch.equal(a, b)


def test_rows_of_a_batch_are_pruned_as_if_they_were_alone():
    vlm = open_vlm("organism")
    samples = list(scene_samples(3, "test"))
    images, texts = (
        [samples[0].images, None, samples[1].images],
        ["is there a cat ?", "what is it ?", samples[1].prompt],
    )
    with steer(vlm, PruneVisual(0.3)):
        together = vlm.generate_ids(vlm.prepare(images, texts), max_new_tokens=5)
        for row, (image, text) in enumerate(zip(images, texts, strict=True)):
            alone = vlm.generate_ids(vlm.prepare([image], [text]), max_new_tokens=5)
            assert torch.equal(together[row : row + 1, : alone.shape[1]], alone)
        streamed = "".join(vlm.stream(vlm.prepare(images[:1], texts[:1]), max_new_tokens=5)).strip()
        assert streamed == vlm.generate(vlm.prepare(images[:1], texts[:1]), max_new_tokens=5)[0]


def test_pruning_goes_with_an_exit_in_either_order_and_in_nested_contexts():
    vlm, inputs = opened("qwen3_vl")
    rest = inputs.spans.real & ~inputs.spans.visual
    v = torch.randn(vlm.anatomy.hidden_size, generator=torch.Generator().manual_seed(0))
    add, cut, out = AddDirection(v, layer=0, positions="image"), PruneVisual(0.5), VisualExit(0)
    want = logits(vlm, inputs, PruneVisual(0.5, by="mask"), VisualExit(0, by="mask"), add)[rest]
    for changes in ((cut, out, add), (out, add, cut)):
        torch.testing.assert_close(logits(vlm, inputs, *changes)[rest], want, atol=1e-5, rtol=1e-5)
    with steer(vlm, add), steer(vlm, cut), steer(vlm, out):
        torch.testing.assert_close(logits(vlm, inputs)[rest], want, atol=1e-5, rtol=1e-5)
        tokens = vlm.generate_ids(inputs, **OPTIONS)
        assert torch.equal(vlm.generate_ids(inputs, use_cache=False, **OPTIONS), tokens)


def test_pictures_are_scored_where_they_are_seen():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    with steer(vlm, PruneVisual(0.5)), torch.no_grad():
        tokens = vlm.generate_ids(inputs, **OPTIONS)
        with pytest.raises(UserError, match=r"call vlm\.generate"):
            model.generate(**tensors, **OPTIONS)
        other = vlm.from_tensors(**tensors | {"pixel_values": -tensors["pixel_values"]})
        vlm.forward(other)
        assert torch.equal(vlm.generate_ids(inputs, **OPTIONS), tokens)
        for site in ("embed", "blocks.2.resid_post", "final"):
            with pytest.raises(UserError, match="cannot be read where positions were sliced away"):
                vlm.trace(inputs, [site])
    with steer(vlm, PruneVisual(0.5, by="mask")):
        mass = vlm.trace(inputs, ["blocks.*.attn_images"])["blocks.0.attn_images"]
    full = vlm.trace(inputs, ["blocks.*.attn_images"])["blocks.0.attn_images"]
    assert (mass[..., -1, 0] < full[..., -1, 0]).all()
    assert vlm.model.model.vision_tower.config._attn_implementation == "sdpa"


def test_every_kind_of_score_and_bad_input():
    vlm, inputs = opened("llava")
    for change in (PruneVisual(0.5, score="received"), PruneVisual(0.5, score="norm"), PruneVisual(0.5, layer=0)):
        assert not torch.equal(logits(vlm, inputs, change), logits(vlm, inputs))
    siglip = opened("llava_onevision")[0]
    for one, change, words in [
        (vlm, PruneVisual(1.5), r"keep=1\.5 must be a share"),
        (vlm, PruneVisual(True), "keep=True must be"),
        (vlm, PruneVisual(method="best"), "method='best' must be one of fastervlm, fopru_rank, fopru_row"),
        (vlm, PruneVisual(positions="gap"), "positions='gap' must be one of keep, reindex"),
        (vlm, PruneVisual(by="hide"), "by='hide' must be one of"),
        (vlm, PruneVisual(layer=9), "layer 9 is outside"),
        (vlm, PruneVisual(score="pool"), "no pooling head"),
        (siglip, PruneVisual(score="cls"), "has no CLS token; use"),
        (siglip, PruneVisual(score="pool"), "does not run"),
        (opened("qwen2_vl")[0], PruneVisual(positions="reindex"), "positions on three axes"),
        *((opened(name)[0], PruneVisual(), "are query tokens") for name in QUERIES),
        (opened("mllama")[0], PruneVisual(), "enter by cross-attention"),
    ]:
        with pytest.raises(UserError, match=words), steer(one, change):
            raise AssertionError("was opened")


# -- the opposite ------------------------------------------------------------------------------------------------------


@PRUNED
def test_what_is_removed_is_what_pruning_would_keep_and_nothing_at_0(name):
    vlm, inputs = opened(name)
    plain = logits(vlm, inputs)
    assert torch.equal(logits(vlm, inputs, RemoveVisual(k=0)), plain)
    kept, left = Spy(), Spy()
    logits(vlm, inputs, PruneVisual(2), kept)
    assert not torch.equal(logits(vlm, inputs, RemoveVisual(k=2), left), plain)
    crossed = False
    for row, (few, most) in enumerate(zip(kept.places[0], left.places[0], strict=True)):
        spans = inputs.spans
        token = set(torch.nonzero(spans.visual[row]).flatten().tolist())
        crossed |= bool(token - set(most))
        assert token - set(most) <= set(few), "those that leave are those that pruning keeps"
        assert set(most) >= set(torch.nonzero(spans.real[row] & ~spans.visual[row]).flatten().tolist())
    assert crossed


def test_random_ones_hang_on_the_seed_and_the_picture():
    vlm, inputs = opened("llava")
    places = []
    for seed in (0, 0, 1):
        spy = Spy()
        logits(vlm, inputs, RemoveVisual(k=5, which="random", seed=seed), spy)
        places.append(spy.places[0])
    assert places[0] == places[1] != places[2]
    assert [len(row) for row in places[0]] == [int(n) - 5 for n in inputs.spans.real.sum(1)]
    norm, best = Spy(), Spy()
    logits(vlm, inputs, RemoveVisual(k=5, score="norm"), norm)
    logits(vlm, inputs, RemoveVisual(k=5), best)
    assert norm.places != best.places
    for change, words in [
        (RemoveVisual(which="worst"), "which='worst' must be one of best, random"),
        (RemoveVisual(k=-1), "k=-1 must be a whole number"),
        (RemoveVisual(k=0.5), r"k=0\.5 must be"),
    ]:
        with pytest.raises(UserError, match=words), steer(vlm, change):
            raise AssertionError("was opened")
    with pytest.raises(UserError, match="k=17 is more than the 16 visual tokens of a crop"):
        logits(vlm, inputs, RemoveVisual(k=17))

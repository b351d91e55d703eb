"""The negative branches: which tokens stay, against models that are made to see the same in another way; noise; refusals."""

import pytest
import torch
from chiasm.models import Spans, open_vlm
from chiasm.models.patch_scores import PictureScores, score_kinds
from chiasm.probes.outliers import choose_k
from chiasm.scenes.errors import UserError
from chiasm.steering.contrast import ContrastDecoder
from chiasm.steering.kept_tokens import Chosen, kept_positions
from chiasm.steering.negatives import Blank, NoImage, NoisedImage, OutlierTokens, RandomTokens
from chiasm.steering.noise import noised, pictures, seeded, signal_share

from ..models.families import FAMILIES, build
from .contrasting import opened, prefilled

RESAMPLED = ("instructblip", "blip2", "idefics2")
IN_SEQUENCE = [name for name in FAMILIES if name not in (*RESAMPLED, "mllama")]
ALL = dict(rule="mass", value=1.0, tiles="all", order="raster")


def plain_logits(vlm, inputs, **changes):
    with torch.no_grad():
        return vlm.model(**inputs.tensors | changes).logits[:, -1]


# -- tokens that stay ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_SEQUENCE)
@torch.no_grad()
def test_all_tokens_in_raster_order_are_the_positive_branch(name):
    vlm, inputs, _ = opened(name)
    negative = OutlierTokens(**ALL)
    prefill = prefilled(vlm, inputs, negative)
    positive, found = prefill.positive(), negative.branch(prefill)
    torch.testing.assert_close(found.logits, positive.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.mask, positive.mask)
    if prefill.positions.dim() == 2:
        assert torch.equal(found.positions, positive.positions)
    order = OutlierTokens(**ALL | {"order": "released"})
    assert not torch.allclose(order.branch(prefill).logits, positive.logits, atol=1e-5) or name in (
        "paligemma",
        "gemma3",
    )


@pytest.mark.parametrize("name", ["llava", "paligemma", "gemma3"])
@torch.no_grad()
def test_masks_of_numbers_are_picked_as_masks_of_booleans(name):
    """Eager attention adds its mask."""
    vlm, inputs, _ = opened(name)
    negative = OutlierTokens(k=6)
    booleans = negative.branch(prefilled(vlm, inputs, negative)).logits
    vlm.model.set_attn_implementation("eager")
    numbers = negative.branch(prefilled(vlm, inputs, negative)).logits
    torch.testing.assert_close(numbers, booleans, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in IN_SEQUENCE if name != "qwen3_5"])
@torch.no_grad()
def test_kept_tokens_are_what_hiding_the_others_leaves(name):
    """With their own positions: a full pass, pixels and all, whose mask hides the other visual tokens. (Not for recurrent
    layers, where a hidden token still passes.)"""
    vlm, inputs, _ = opened(name)
    negative = OutlierTokens(k=4, order="raster", positions="original", tiles="all")
    prefill = prefilled(vlm, inputs, negative)
    found = negative.branch(prefill)
    mask = torch.zeros_like(inputs.tensors["attention_mask"])
    for labels, real in zip(found.spans.labels, found.mask.bool(), strict=True):
        assert (labels >= 0).equal(real)
    for row, kept in enumerate(_kept(negative, prefill)):
        mask[row, kept] = 1
        assert 0 < mask[row].sum() < inputs.tensors["attention_mask"][row].sum()
    expected = plain_logits(vlm, inputs, attention_mask=mask, position_ids=prefill.positions)
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-4)


def _kept(negative, prefill):
    chosen = [negative._chosen(one, prefill) for one in negative._pictures(prefill)]
    return kept_positions(prefill.inputs.spans, chosen, order=negative.order, grid=prefill.anatomy.layout.grid)


@pytest.mark.parametrize("order", ["released", "raster"])
@torch.no_grad()
def test_packed_tokens_are_a_shorter_prompt(order):
    """Llava: the language model given the chosen features as embeddings, selected after or before the projector."""
    vlm, _, rows = opened("llava")
    for inputs in rows:
        negative = OutlierTokens(k=3, order=order)
        prefill = prefilled(vlm, inputs, negative)
        found, tensors = negative.branch(prefill), inputs.tensors
        (one,) = negative._pictures(prefill)
        best = one.scores.argsort(descending=True)[:3]
        best = best.sort().values if order == "raster" else best
        tower = vlm.model.model.vision_tower(tensors["pixel_values"], output_hidden_states=True)
        states = tower.hidden_states[vlm.model.config.vision_feature_layer][:, 1:]
        before, behind = vlm.anatomy.projector(states[:, best]), vlm.anatomy.projector(states)[:, best]
        torch.testing.assert_close(before, behind)
        words = vlm.model.get_input_embeddings()(tensors["input_ids"])
        embeds = torch.cat([words[:, :3], before, words[:, 19:]], 1)
        expected = vlm.model.lm_head(vlm.model.model.language_model(inputs_embeds=embeds).last_hidden_state[:, -1])
        torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)
        assert found.positions.item() == embeds.shape[1] == found.mask.sum()


def test_merged_tokens_stand_for_their_patches():
    """k counts patches: of 16 patches in 4 tokens, k=4 keeps round(2 * 4 / 4) = 2 tokens."""
    vlm, inputs, _ = opened("qwen2_vl")
    negative = OutlierTokens(k=4)
    found = negative.branch(prefilled(vlm, inputs, negative))
    assert found.spans.visual.sum(1).tolist() == [2, 2]
    original = prefilled(vlm, inputs, negative).positions[..., -1:] + 1
    assert torch.equal(found.positions, original)  # text keeps the positions that it had
    packed = OutlierTokens(k=4, positions="packed")
    assert packed.branch(prefilled(vlm, inputs, packed)).positions[0, :, 0].tolist() == found.mask.sum(1).tolist()


@pytest.mark.parametrize("grid", ["llava_next", "llava_onevision"])
def test_the_whole_picture_alone_and_one_newline(grid):
    """As released for LLaVA-NeXT: k tokens of the first tile, best first, then one newline; other tiles are gone."""
    vlm, _, rows = opened(grid)
    negative = OutlierTokens(k=5)
    prefill = prefilled(vlm, rows[0], negative)
    (one,) = negative._pictures(prefill)
    base = one.positions[one.tiles == 0]
    best = base[one.scores[one.tiles == 0].argsort(descending=True)[:5]]
    newlines = [t for t in torch.nonzero(rows[0].spans.visual[0]).flatten().tolist() if t not in one.positions.tolist()]
    (kept,) = _kept(negative, prefill)
    assert kept.tolist() == [0, 1, 2, *best.tolist(), newlines[0], *range(91, 97)]
    (tiled,) = _kept(OutlierTokens(k=5, tiles="all"), prefill)
    assert len(set(tiled.tolist()) & set(one.positions.tolist())) == 25
    fine = one.positions[one.tiles > 0].tolist()
    for before, line in zip([19, *newlines], newlines, strict=False):
        assert (line in tiled) == any(before <= t < line for t in fine if t in tiled.tolist())


def hand_made(labels: str, positions: list[int], tiles: list[int], scores: list[float]):
    """Spans from letters (b text, t token, n newline, m marker, a text) and a picture's scores."""
    names = {"b": "before", "a": "after"}
    index = torch.tensor([[Spans.names.index(names.get(c, "image")) for c in labels]])
    image = torch.where(index == Spans.names.index("image"), 0, -1)
    visual = torch.tensor([[c in "tn" for c in labels]])
    none = torch.full_like(index, -1)
    spans = Spans(index, image, visual, none, none, torch.full((*index.shape, 4), torch.nan))
    scores, tiles = torch.tensor(scores), torch.tensor(tiles)
    return spans, PictureScores(0, 0, scores, tiles, torch.tensor(positions), None, 1, spans.boxes[0])


def test_markers_by_hand():
    spans, picture = hand_made("bmtttmtttmtttma", [2, 3, 4, 6, 7, 8, 10, 11, 12], [0] * 9, [1, 9, 2, 0, 0, 0, 5, 6, 4])
    best = torch.tensor([1, 7, 6])  # positions 3, 11, 10; the middle row is empty

    def kept(order, grid):
        return kept_positions(spans, [Chosen(picture, best)], order=order, grid=grid)[0].tolist()

    # a break goes with the row in front of it, the name of a tile with the tile behind it; others all stay
    assert kept("raster", "rows") == [0, 1, 3, 5, 10, 11, 13, 14]
    assert kept("released", "rows") == [0, 1, 3, 5, 11, 10, 13, 14]
    assert kept("raster", "tiles") == [0, 1, 3, 9, 10, 11, 13, 14]
    assert kept("raster", "square") == [0, 1, 3, 5, 9, 10, 11, 13, 14]
    alone = kept_positions(spans, [Chosen(picture, best[1:2])], order="raster", grid="tiles")[0].tolist()
    assert alone == [0, 9, 11, 13, 14]


def test_newlines_by_hand():
    # whole picture (2, 3), then rows of tiles (4, 5) newline (7, 8) newline
    spans, picture = hand_made("bmttttnttnma", [2, 3, 4, 5, 7, 8], [0, 0, 1, 2, 1, 2], [1, 2, 3, 4, 5, 6])

    def kept(best):
        return kept_positions(spans, [Chosen(picture, torch.tensor(best))], order="raster", grid="anyres")[0].tolist()

    assert kept([1]) == [0, 1, 3, 6, 10, 11]
    assert kept([1, 4]) == [0, 1, 3, 7, 9, 10, 11]
    assert kept([0, 3, 5]) == [0, 1, 2, 5, 6, 8, 9, 10, 11]


@pytest.mark.parametrize("name", ["llava", "paligemma", "instructblip", "blip2", "idefics2"])
def test_a_planted_patch_is_the_same_in_scores_features_and_picture(name):
    model, tensors = build(name)
    vlm, negative, pixels = open_vlm(model=model), OutlierTokens(k=1, score="norm"), tensors["pixel_values"]

    def read(pixels):
        inputs = vlm.from_tensors(**tensors | {"pixel_values": pixels})
        prefill = prefilled(vlm, inputs, negative)
        return prefill, negative._pictures(prefill)[0]

    plain, before = read(pixels)
    for patch in (0, 5, 15):
        planted, (top, left) = pixels.clone(), (8 * (patch // 4), 8 * (patch % 4))
        planted[..., top : top + 8, left : left + 8] *= 20
        prefill, picture = read(planted)
        assert (picture.scores - before.scores).abs().argmax() == patch
        if name in ("llava", "paligemma"):
            changed = (prefill.embeds - plain.embeds)[0].norm(dim=-1).argmax()
            assert changed == picture.positions[patch] == 3 + patch
        else:
            features = "context" if name == "idefics2" else "encoder_hidden_states"
            changed = (prefill.seen.resampler[features] - plain.seen.resampler[features])[0].norm(dim=-1).argmax()
            best = negative._chosen(picture, prefill).best.item()
            assert _allowed(vlm, prefill, negative) == [best + changed - patch]


def _allowed(vlm, prefill, negative) -> list[int]:
    """The keys that the resampler is let see while the negative is made."""
    from chiasm.steering.prefill import resampler

    seen = []
    hook = resampler(vlm.anatomy).register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        negative.branch(prefill)
    hook.remove()
    mask = seen[0].get("encoder_attention_mask", seen[0]["attention_mask"] if "context" in seen[0] else None)
    return torch.nonzero(mask[0]).flatten().tolist()


# -- query tokens and cross-attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["instructblip", "blip2"])
@torch.no_grad()
def test_a_masked_q_former_is_one_that_was_given_the_patches_alone(name):
    vlm, inputs, _ = opened(name)
    negative = OutlierTokens(k=4)
    prefill = prefilled(vlm, inputs, negative)
    chosen = [negative._chosen(one, prefill) for one in negative._pictures(prefill)]
    for shifted in (False, True):
        call = dict(prefill.seen.resampler)
        features = call["encoder_hidden_states"]
        # the features have CLS in front; the release gathers as if they had not
        call["encoder_hidden_states"] = torch.stack(
            [f[c.best + (not shifted)] for f, c in zip(features, chosen, strict=True)]
        )
        call["encoder_attention_mask"] = torch.ones(2, 4, dtype=torch.long)
        queries = vlm.anatomy.projector(vlm.model.qformer(**call)[0][:, :8])
        embeds = prefill.embeds.clone()
        embeds[inputs.spans.visual] = queries.flatten(0, 1)
        decoder = vlm.model.language_model
        expected = decoder(inputs_embeds=embeds, attention_mask=prefill.mask, position_ids=prefill.positions).logits[
            :, -1
        ]
        found = OutlierTokens(k=4, shifted=shifted).branch(prefill)
        torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-4)
    assert inputs.spans.visual.sum() == found.spans.visual.sum()


@torch.no_grad()
def test_a_masked_perceiver_is_one_that_was_given_the_patches_alone():
    vlm, inputs, _ = opened("idefics2")
    negative = OutlierTokens(k=4)
    prefill = prefilled(vlm, inputs, negative)
    chosen = [negative._chosen(one, prefill) for one in negative._pictures(prefill)]
    context = prefill.seen.resampler["context"]
    some = torch.stack([c[one.best] for c, one in zip(context, chosen, strict=True)])
    module = vlm.anatomy.projector.perceiver_resampler
    latents = module(context=some, attention_mask=torch.ones(2, 4, dtype=torch.bool))
    embeds = prefill.embeds.clone()
    embeds[inputs.spans.visual] = latents.flatten(0, 1)
    expected = prefill.changed_in_place(inputs_embeds=embeds).logits
    torch.testing.assert_close(negative.branch(prefill).logits, expected, atol=1e-5, rtol=1e-4)
    whole = OutlierTokens(**ALL)
    torch.testing.assert_close(whole.branch(prefill).logits, prefill.positive().logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_cross_attention_sees_the_chosen_patches_alone():
    vlm, inputs, _ = opened("mllama")
    negative = OutlierTokens(k=4)
    prefill = prefilled(vlm, inputs, negative)
    found, call = negative.branch(prefill), dict(prefill.seen.decoder)
    chosen = [negative._chosen(one, prefill) for one in negative._pictures(prefill)]
    keys = torch.stack([one.picture.reads[one.best] for one in chosen])
    call["cross_attention_states"] = torch.stack(
        [states[k] for states, k in zip(call["cross_attention_states"], keys, strict=True)]
    )
    # no mask at all would read the keys causally
    call |= {"cross_attention_mask": torch.zeros(2, 1, 10, 4), "past_key_values": None}
    expected = vlm.anatomy.unembed(vlm.anatomy.decoder(**call).last_hidden_state[:, -1])
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, prefill.positive().logits, atol=1e-4)


# -- other negatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_no_image_is_the_text_alone(name):
    vlm, _, rows = opened(name)
    for inputs in rows:
        text = inputs.without_images()
        expected = vlm.forward(text).logits[:, -1]
        found = NoImage().branch(prefilled(vlm, inputs, NoImage()))
        torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_other_pixels_are_another_picture(name):
    vlm, inputs, _ = opened(name)
    for negative in (NoisedImage(900), Blank()):
        found = negative.branch(prefilled(vlm, inputs, negative))
        tensors = dict(inputs.tensors, pixel_values=inputs.tensors["pixel_values"].clone())
        for view in pictures(vlm.anatomy, tensors):
            tiny = torch.finfo(torch.float32).tiny
            view.copy_(
                torch.full_like(view, tiny) if isinstance(negative, Blank) else noised(view, 900, seeded(0, view))
            )
        expected = prefilled(vlm, vlm.from_tensors(**tensors), NoImage()).positive()
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.positions, expected.positions)


def test_random_tokens_hang_on_the_seed_and_the_prompt():
    vlm, inputs, rows = opened("llava")

    prefills = [prefilled(vlm, batch, RandomTokens(k=4)) for batch in (inputs, *rows)]

    def kept(seed, prefill):
        return [one.tolist() for one in _kept(RandomTokens(k=4, seed=seed, order="raster"), prefill)]

    assert kept(0, prefills[0]) == kept(0, prefills[0]) != kept(1, prefills[0])
    assert kept(0, prefills[1]) == kept(0, prefills[0])[:1]
    assert [t + 3 for t in kept(0, prefills[2])[0]] == kept(0, prefills[0])[1]  # three positions of padding in front
    counts = torch.zeros(16)
    for seed in range(200):
        counts[torch.tensor([t - 3 for t in kept(seed, prefills[1])[0] if 3 <= t < 19])] += 1
    assert counts.sum() == 800 and counts.min() > 25 and counts.max() < 80  # 50 each, deviation 6


# -- noise ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "share"), [(0, 1.0000), (200, 0.9939), (500, 0.8630), (700, 0.5927), (900, 0.3649), (999, 0.2850)]
)
def test_the_schedule_of_vcd(step, share):
    assert signal_share(step) == pytest.approx(share, abs=5e-5)


def test_noise_is_seeded_by_the_picture_and_keeps_the_variance():
    pixels = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    for step in (0, 500, 999):
        assert noised(pixels, step, seeded(1, pixels)).std() == pytest.approx(1, abs=0.03)
    assert torch.equal(noised(pixels, 500, seeded(1, pixels)), noised(pixels, 500, seeded(1, pixels.clone())))
    assert not torch.equal(noised(pixels, 500, seeded(1, pixels)), noised(pixels, 500, seeded(2, pixels)))
    assert not torch.equal(noised(pixels, 500, seeded(1, pixels)), noised(pixels, 500, seeded(1, pixels + 1)))
    assert (noised(pixels, 0, seeded(1, pixels)) - pixels).abs().max() < 0.05


def test_padding_is_not_noised():
    vlm, _, rows = opened("llava_next")
    tensors = dict(rows[0].tensors, pixel_values=rows[0].tensors["pixel_values"].clone())
    tensors["pixel_values"][:, 3:] = 0
    assert len(list(pictures(vlm.anatomy, tensors))) == 3
    vlm, _, rows = opened("mistral3")
    tensors = {"pixel_values": torch.ones(1, 3, 48, 40), "image_sizes": torch.tensor([[32, 24]])}
    assert [tuple(view.shape) for view in pictures(vlm.anatomy, tensors)] == [(3, 32, 24)]


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_that_a_family_has_not_are_refused(name):
    model, _ = build(name)
    vlm = open_vlm(model=model)
    have = score_kinds(vlm.anatomy)
    for score in ("cls", "headmean", "released", "pool", "received", "norm"):
        kind = "cls" if score in ("headmean", "released") else score
        if kind in have:
            assert ContrastDecoder(vlm, OutlierTokens(score=score)).sites
        else:
            with pytest.raises(UserError, match="use ") as error:
                ContrastDecoder(vlm, OutlierTokens(score=score))
            assert "\n" not in str(error.value)
    if name not in ("instructblip", "blip2"):
        with pytest.raises(UserError, match="Q-Former"):
            ContrastDecoder(vlm, OutlierTokens(shifted=True))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "instructblip", "mllama"])
def test_more_outliers_than_patches_are_refused(name):
    vlm, inputs, _ = opened(name)
    with pytest.raises(UserError, match=r"k=17 .* the 16 patches .* k=16 or less"):
        ContrastDecoder(vlm, OutlierTokens(k=17)).generate_ids(inputs, max_new_tokens=1)
    ContrastDecoder(vlm, OutlierTokens(k=16)).generate_ids(inputs, max_new_tokens=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 0}, "1 up"), ({"k": -3}, "1 up"), ({"k": 2.5}, "whole number"), ({"k": 5, "rule": "mass"}, "value="),
        ({"rule": "best"}, "best"), ({"order": "x"}, "raster"), ({"positions": "x"}, "packed"), ({"tiles": "x"}, "base"),
    ],
)  # fmt: skip
def test_settings_out_of_range(settings, words):
    with pytest.raises(UserError, match=words):
        OutlierTokens(**settings)
    with pytest.raises(UserError, match=r"0\.\.999"):
        NoisedImage(1000)


def test_the_number_of_outliers_is_the_papers_share_where_none_is_given():
    assert OutlierTokens()._rule == "ratio" and OutlierTokens(k=4)._rule == "fixed"
    for patches, k in ((576, 10), (256, 4), (64, 1)):
        assert choose_k(torch.rand(patches), rule=OutlierTokens()._rule) == k


def test_a_tower_without_readable_attention_is_refused_not_scored_by_lengths(monkeypatch):
    vlm = open_vlm(model=build("llava")[0])
    monkeypatch.setattr("chiasm.steering.negatives.score_kinds", lambda anatomy: ("norm",))
    with pytest.raises(UserError, match='no attention of this llava\'s tower can be read: use score="norm"'):
        ContrastDecoder(vlm, OutlierTokens())
    assert ContrastDecoder(vlm, OutlierTokens(score="norm")).sites

"""What is shown of a word is what eager attention gives its query in one pass over the whole sequence."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from chiasm.dashboards import live
from chiasm.dashboards.live import Watch, texts, words_of_patches
from chiasm.dashboards.pictures import scene_at
from chiasm.models import open_vlm
from chiasm.models.spans import Spans
from chiasm.models.trace import sites_read
from chiasm.scenes.errors import UserError
from PIL import Image

from ..models.families import FAMILIES, build
from ..models.processors import PROCESSORS

PLAIN = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "paligemma", "gemma3", "idefics3", "smolvlm",
         "internvl", "aya_vision", "mistral3")  # fmt: skip
"""Families whose visual tokens lie in the sequence and whose every layer attends."""


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


def tiny(family: str):
    """A random model of a family that says words only."""
    model, _ = build(family)
    model.generation_config.eos_token_id = None  # a random model may end at once, or say an image token
    model.generation_config.suppress_tokens = list(range(94, model.get_input_embeddings().weight.shape[0]))
    return open_vlm(model=model, processor=PROCESSORS[family]())


def _picture(width: int = 60, height: int = 52) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def _watched(vlm, image, prompt, most: int = 6) -> tuple[Watch, live.Seen]:
    watch = Watch(vlm, image, prompt, max_new_tokens=most)
    with closing(watch.stream()) as pieces:
        text = "".join(pieces)
    seen = watch.seen()
    assert seen.answer == text.strip()
    assert seen.answer == vlm.generate(watch.inputs, max_new_tokens=most)[0]
    return watch, seen


def _whole(watch: Watch, tokens) -> dict:
    """The tensors of the prompt and these tokens."""
    tensors, n = dict(watch.inputs.tensors), len(tokens)
    ids = tensors["input_ids"]
    for name, value in tensors.items():
        if name == "input_ids":
            tensors[name] = torch.cat([ids, torch.tensor([tokens])], 1)
        elif value.dim() >= 2 and value.shape[:2] == ids.shape:
            last = (
                torch.ones_like(value[:, -1:])
                if name == "token_type_ids" and watch.vlm.anatomy.family == "paligemma"
                else value[:, -1:]
            )
            tensors[name] = torch.cat([value, last.expand(-1, n, *value.shape[2:])], 1)  # fmt: skip
    return tensors


def _eager(watch: Watch, tokens) -> list[torch.Tensor]:
    """Attention (H, T, T) of every layer."""
    model = watch.vlm.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return [one[0] for one in model(**_whole(watch, tokens), output_attentions=True).attentions]
    finally:
        model.set_attn_implementation(before or "sdpa")


def _check(watch: Watch, seen: live.Seen) -> None:
    """Every word, layer and head, at every place of the picture and summed over every span."""
    spans, n = watch.inputs.spans, len(seen.tokens)
    at = spans.visual[0] & (spans.row[0] >= 0)
    assert np.array_equal(seen.boxes, spans.boxes[0, at].numpy(), equal_nan=True)
    columns = spans.extended(n - 1).indicators()[0]
    attention = _eager(watch, seen.tokens[:-1])
    assert len(attention) == len(seen.layers) == seen.attention.shape[1]
    first = spans.labels.shape[1] - 1
    for layer, rows in enumerate(attention):
        rows = rows[:, first : first + n].transpose(0, 1)  # (W, H, T)
        wanted = rows[..., : first + 1][..., at].numpy()
        np.testing.assert_allclose(seen.attention[:, layer], wanted, atol=1e-5)
        np.testing.assert_allclose(seen.segments[:, layer], (rows @ columns).numpy(), atol=1e-5)


def test_the_organism_looks_where_eager_attention_says(organism):
    for number, asked in ((0, 0), (5, 1), (3, 2)):
        sample = scene_at(number)[asked]
        watch, seen = _watched(organism, sample.images[0], sample.prompt, 24)
        _check(watch, seen)
    assert seen.ending == "end" and seen.words[-1] == "" and len(seen.words) == len(seen.tokens)
    assert seen.map(0).shape == (4, 64) and seen.shares(0).shape == (4, len(Spans.names))
    np.testing.assert_allclose(seen.map(1)[2], seen.attention[1, 2].mean(0))
    np.testing.assert_allclose(seen.map(1, 3)[2], seen.attention[1, 2, 3])
    np.testing.assert_allclose(seen.shares(1, 3).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("family", PLAIN)
def test_every_family_looks_where_eager_attention_says(family):
    watch, seen = _watched(tiny(family), _picture(), "what is in the picture ?")
    assert len(seen.tokens) == 6 and np.isfinite(seen.boxes).all()
    assert (seen.boxes[:, 2:] <= [60, 52]).all() and (seen.boxes >= 0).all()
    _check(watch, seen)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(PLAIN)))
def test_other_families_look_where_a_whole_pass_says(family):
    """Query tokens and cross-attention: candidates are the patches, read through what stands between."""
    vlm = tiny(family)
    watch, seen = _watched(vlm, _picture(), "what is in the picture ?")
    whole = vlm.prepare([_picture()], ["what is in the picture ?"])
    whole = replace(whole, tensors=_whole(watch, seen.tokens[:-1]), spans=whole.spans.extended(len(seen.tokens) - 1))
    sites = [f"blocks.{i}.{watch.kind}" for i in seen.layers]
    trace = vlm.trace(whole, [*sites, *(["resampler.attention"] if vlm.anatomy.layout.grid == "none" else [])])
    for layer, site in enumerate(sites):
        rows = trace[site][0, :, -1]  # of the last word
        if watch.place.positions is None:  # cross-attention
            wanted = rows[..., watch.place.reads]
        else:
            wanted = rows[..., watch.place.positions]
            wanted = wanted if watch.place.reads is None else wanted @ watch.place.reads
        np.testing.assert_allclose(seen.attention[-1, layer], wanted.numpy(), atol=1e-5)
    assert np.nanmax(seen.boxes[:, 2]) == pytest.approx(60) and np.nanmax(seen.boxes[:, 3]) == pytest.approx(52)
    assert np.nanmin(seen.boxes) == 0


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_encoder_is_read_at_every_layer_that_can_be(family):
    watch, seen = _watched(tiny(family), _picture(), "what is in the picture ?", 2)
    encoder = seen.encoder
    assert encoder.kind in live.SCORES
    assert (encoder.kind == "cls") == bool(watch.vlm.anatomy.layout.prefix)
    assert encoder.scores.shape == encoder.outliers.shape == (len(encoder.layers), len(seen.boxes))
    assert encoder.outliers.any(1).all() and 0 <= encoder.at < len(encoder.layers)
    for scores, outliers in zip(encoder.scores, encoder.outliers, strict=True):
        for tile in set(seen.tiles.tolist()):
            here = seen.tiles == tile
            assert scores[here & outliers].min() >= scores[here & ~outliers].max()


def test_nothing_of_the_square_of_the_length_is_kept(organism, monkeypatch):
    sample = scene_at(0)[0]
    watch, seen = _watched(organism, sample.images[0], sample.prompt, 30)
    assert not watch.recorder.read
    assert seen.ending == "longest" and seen.attention.nbytes == 30 * 4 * 4 * 64 * 4
    monkeypatch.setattr(live, "MOST_BYTES", 10 * seen.attention[0].nbytes)
    _, short = _watched(organism, sample.images[0], sample.prompt, 30)
    assert len(short.words) == 30 and len(short.attention) == len(short.segments) == 10
    np.testing.assert_array_equal(short.attention, seen.attention[:10])


def test_an_answer_that_is_given_up_keeps_what_was_seen(organism):
    sample = scene_at(0)[0]
    watch = Watch(organism, sample.images[0], sample.prompt, max_new_tokens=120)
    assert watch.seen() is None
    before = threading.active_count()
    with closing(watch.stream()) as pieces:
        told = [next(pieces) for _ in range(4)]
    assert threading.active_count() == before and not sites_read()
    seen = watch.seen()
    assert seen.ending == "stopped" and 4 <= len(seen.tokens) < 60 and seen.answer.startswith("".join(told).strip())
    assert len(seen.attention) == len(seen.tokens)


def test_two_windows_see_what_each_sees_alone(organism):
    samples = [scene_at(number)[0] for number in (0, 1)]
    alone = [_watched(organism, one.images[0], one.prompt, 24)[1] for one in samples]
    together: list = [None, None]

    def look(i: int) -> None:
        watch = Watch(organism, samples[i].images[0], samples[i].prompt, max_new_tokens=24)
        list(watch.stream())
        together[i] = watch.seen()

    threads = [threading.Thread(target=look, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, both in zip(alone, together, strict=True):
        assert both.words == one.words
        np.testing.assert_allclose(both.attention, one.attention, atol=1e-6)
        np.testing.assert_allclose(both.segments, one.segments, atol=1e-6)
        np.testing.assert_allclose(both.encoder.scores, one.encoder.scores, atol=1e-6)


def test_patches_are_read_as_words(organism):
    sample = scene_at(0)[0]
    views = words_of_patches(organism, sample.images[0], sample.prompt)
    assert [view.layer for view in views] == [0, 1, 2, 3, 4] and len(views[2].words) == 64
    _, seen = _watched(organism, sample.images[0], sample.prompt, 2)
    np.testing.assert_array_equal(views[0].boxes, seen.boxes)


def test_a_prompt_that_cannot_be_is_refused(organism):
    with pytest.raises(UserError):
        Watch(organism, _picture(), "<image> and <image> ?")


def test_letters_of_several_tokens_belong_to_the_last():
    class Bytes:
        def decode(self, tokens, skip_special_tokens):
            return bytes(token for token in tokens if token != 0).decode(errors="replace")

    assert texts(Bytes(), [*"aé".encode(), 33, 0]) == ("a", "", "é", "!", "")

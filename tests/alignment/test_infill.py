"""Infill: what a scene puts into masks, what a model chooses, and that teacher forcing scores what it should."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from chiasm.alignment.infill import Shown
from chiasm.alignment.losses import sequence_logps
from chiasm.alignment.masking import MASK, MaskedText, SceneMasker, WordMasker, choose_spans
from chiasm.alignment.scene_truth import SceneTruth
from chiasm.alignment.self_infill import ConstrainedInfill, answer_logps
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.claims import holds
from chiasm.scenes.errors import UserError
from chiasm.scenes.render import render
from chiasm.scenes.world import Scene, Thing
from PIL import Image

from .pairs import tiny

CUP = Thing("cup", "red", "small", 0.2, 0.3, 0.2)
BUS = Thing("bus", "blue", "big", 0.75, 0.75, 0.4)
STREET = Scene(1, "street", (CUP, BUS), 0.8, 0)
MASKER = SceneMasker()


def shown(scene=STREET):
    return Shown(Image.new("RGB", (8, 8)), {"scene": scene})


def masked(text, *slots):
    return MaskedText(text, tuple(span for span in MASKER.spans(text) if span.slot in slots))


@pytest.mark.parametrize(
    ("text", "slots", "filled"),
    [
        ("a green cup in a kitchen .", ["colour"], "a red cup in a kitchen ."),
        ("a green cup in a kitchen .", ["place"], "a green cup in a street ."),
        ("a green cup in a kitchen .", ["colour", "place"], "a red cup in a street ."),
        ("a blue boat .", ["category"], "a blue bus ."),  # the thing that agrees best with what is open
        ("at the top right a bus .", ["row", "column"], "at the bottom right a bus ."),
        ("the bus is left of the cup .", ["relation"], {"the bus is right of the cup .", "the bus is below the cup ."}),
        ("a kitchen . the light is bright .", ["light"], "a kitchen . the light is dim ."),
        ("an apple and a boat .", ["category"], {"a cup and a bus .", "a bus and a cup ."}),
    ],
)
def test_a_scene_fills_what_is_the_case_in_it(text, slots, filled):
    (fills,) = SceneTruth().fill([masked(text, *slots)], [shown()], [""], 1, 0)
    assert fills[0].text in ({filled} if isinstance(filled, str) else filled)


def test_a_scene_that_fits_nothing_gives_no_fill():
    assert SceneTruth().fill([masked("a green lamp .", "colour")], [shown()], [""], 4, 0) == [[]]
    assert SceneTruth().fill([masked("two cups .", "number")], [shown()], [""], 4, 0) == [[]]
    with pytest.raises(UserError, match="needs rendered scenes"):
        SceneTruth().fill([masked("a green cup .", "colour")], [Shown(Image.new("RGB", (8, 8)))], [""], 1, 0)
    cups = replace(STREET, things=(CUP, replace(CUP, x=0.5), replace(CUP, x=0.8)))
    (fills,) = SceneTruth().fill([masked("two cups .", "number")], [shown(cups)], [""], 1, 0)
    assert fills[0].text == "three cups ."


def test_fills_of_whole_masks_are_true_of_the_scene_they_come_from():
    samples = list(scene_samples(30, "val", "caption", style="colour"))
    backend, whole = SceneTruth(), 0
    for one, other in pairwise(samples):
        text = MaskedText(one.answer, tuple(s for s in MASKER.spans(one.answer)))
        fewer = len(one.truth["scene"].things) <= len(other.truth["scene"].things)
        (fills,) = backend.fill([text], [Shown(other.images[0], other.truth)], [""], 3, 0)
        assert fills == backend.fill([text], [Shown(other.images[0], other.truth)], [""], 3, 0)[0]
        if fewer and "colors are" not in one.answer:
            whole += 1
            assert holds(fills[0].text, other.truth["scene"]), (one.answer, fills[0].text)
    assert whole > 5


@pytest.fixture(scope="module")
def vlm():
    return open_vlm("organism", device="cpu")


def test_a_constrained_fill_is_the_best_candidate_by_hand(vlm):
    """One mask: the order is that of the whole sentence's log-probability, each candidate computed by itself."""
    scene = replace(STREET, things=(BUS,))
    picture, text = render(scene).pil, masked("a red bus .", "colour")
    backend = ConstrainedInfill(vlm, MASKER, shortlist=None, batch_size=5)
    (fills,) = backend.fill([text], [Shown(picture)], ["what do you see , and in which colors ?"], 9, 0)
    alone = {}
    for word in MASKER.candidates(text, text.spans[0]):
        said = MASKER.agree(text.filled([word]))
        inputs = vlm.prepare([picture], ["what do you see , and in which colors ?"], [said])
        with torch.no_grad():
            logits = vlm.model(**inputs.tensors).logits
        labels = inputs.tensors["input_ids"].masked_fill(~inputs.spans.mask("answer"), -100)
        alone[word] = float(sequence_logps(logits, labels)) / 4
        assert int((labels >= 0).sum()) == 4
    assert [fill.strings[0] for fill in fills] == sorted(alone, key=lambda word: -alone[word])
    assert fills[0].strings == ("blue",)  # it looks
    for fill in fills:
        assert fill.logp == pytest.approx(alone[fill.strings[0]], abs=1e-4) and MASK not in fill.text


def test_the_shortlist_and_the_batch_change_little(vlm):
    samples = list(scene_samples(3, "test", "caption", style="colour"))
    texts = [
        MaskedText(s.answer, choose_spans(MASKER.spans(s.answer), "attribute", 0.5, random.Random(0))) for s in samples
    ]
    given = texts, [Shown(s.images[0]) for s in samples], [s.prompt for s in samples], 2, 0
    short, whole = (ConstrainedInfill(vlm, MASKER, shortlist=n).fill(*given) for n in (6, None))
    small = ConstrainedInfill(vlm, MASKER, batch_size=3).fill(*given)
    assert [f[0].strings for f in short] == [f[0].strings for f in whole] == [f[0].strings for f in small]
    for text, fills in zip(texts, short, strict=True):
        assert len({fill.strings for fill in fills}) == len(fills) == 2 and fills[0].logp >= fills[1].logp - 1e-6
        assert all(len(fill.text.split()) == len(text.text.split()) for fill in fills)


def test_captions_are_the_models_own_answers(vlm):
    (sample,) = scene_samples(1, "test", "description")
    (text,) = ConstrainedInfill(vlm, MASKER).caption([Shown(sample.images[0])], [sample.prompt], 0)
    assert text == vlm.generate(vlm.prepare([sample.images[0]], [sample.prompt]), max_new_tokens=96)[0]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3", "blip2", "mllama"])
def test_other_families_are_scored_and_fill(family, photo):
    model, processor = tiny(family, scale=1.0)
    vlm = open_vlm(model=model, processor=processor, device="cpu")
    picture = photo("coffee.png", 64).resize((64, 64))
    answers = ["a cat on the table", "a red dog on the table"]
    both = answer_logps(vlm, [picture] * 2, ["what is in the picture ?"] * 2, answers)
    for one, answer in zip(both, answers, strict=True):
        (alone,) = answer_logps(vlm, [picture], ["what is in the picture ?"], [answer])
        assert one == pytest.approx(alone, abs=1e-3) and one[0] < 0
    masker = WordMasker({"animal": ("object", ["cat", "dog"])})
    text = MaskedText("this is a cat", tuple(masker.spans("this is a cat")))
    (fills,) = ConstrainedInfill(vlm, masker).fill([text], [Shown(picture)], ["what is in the picture ?"], 2, 0)
    assert {fill.text for fill in fills} == {"this is a cat", "this is a dog"}

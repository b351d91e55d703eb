"""Masks: what of a text can be masked, what stands in for it, and frames that stay as they are."""

from __future__ import annotations

import random

import pytest
from chiasm.alignment.masking import KINDS, MASK, MaskedText, SceneMasker, Span, WordMasker, choose_spans
from chiasm.alignment.vocabulary import SLOTS
from chiasm.scenes.captions import describe
from chiasm.scenes.errors import UserError
from chiasm.scenes.world import make_scene, split_seeds


def words(masker, text):
    return [(text[s.start : s.end], s.kind) for s in masker.spans(text)]


def test_frame_and_fill_by_hand():
    text = "a red cup on a street"
    masked = MaskedText(text, (Span(2, 5, "attribute", "colour"), Span(6, 9, "object", "category")))
    assert masked.masked == f"a {MASK} {MASK} on a street" and masked.originals == ("red", "cup")
    assert masked.frame == ["a ", " ", " on a street"]
    assert masked.filled(("blue", "boat")) == "a blue boat on a street"
    with pytest.raises(ValueError, match="1 strings for 2 masks"):
        masked.filled(("blue",))
    with pytest.raises(ValueError, match="overlap"):
        MaskedText(text, (Span(2, 7, "object", "x"), Span(6, 9, "object", "x")))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a red cup in a kitchen .", [("red", "attribute"), ("cup", "object"), ("kitchen", "object")]),
        ("a kitchen with two cups .", [("kitchen", "object"), ("two", "attribute"), ("cups", "object")]),
        # a place whose scenery is told is given away by it, and so is a thing that is spoken of again
        ("tiles and a counter in the room where we cook : a kitchen , with a cup . the light is dim .",
         [("cup", "object"), ("dim", "attribute")]),
        ("a cup and a pot . the cup is left of the pot .", [("left of", "relation")]),
        ("the cup is left of the pot .", [("cup", "object"), ("left of", "relation"), ("pot", "object")]),
        ("at the top left a cup .", [("top", "relation"), ("left", "relation"), ("cup", "object")]),
        ("the colors are red : a red cup .", [("red", "attribute"), ("cup", "object")]),
        ("a cup of tea .", []),
    ],
)  # fmt: skip
def test_spans_of_the_worlds_grammar(text, found):
    assert words(SceneMasker(), text) == found


def test_candidates_agree_in_number_and_hold_the_original():
    masker, text = SceneMasker(), "a kitchen with two cups ."
    spans = masker.spans(text)
    masked = MaskedText(text, tuple(spans))
    choices = {span.slot: masker.candidates(masked, span) for span in spans}
    assert "cups" in choices["category"] and "fish" in choices["category"] and "cup" not in choices["category"]
    assert choices["number"][0] == "two" and "one" not in choices["number"]
    for seed in split_seeds("val", 10):
        text = describe(make_scene(seed))
        masked = MaskedText(text, tuple(masker.spans(text)))
        for span, original in zip(masked.spans, masked.originals, strict=True):
            assert original in masker.candidates(masked, span)
        assert masker.agree(masked.filled(masked.originals)) == text


def test_english_by_its_vocabulary():
    masker, text = WordMasker(), "Two dogs sit next to a red fire hydrant; one dog-house."
    found = words(masker, text)
    assert found[:2] == [("Two", "attribute"), ("dogs", "object")]
    assert ("next to", "relation") in found and ("fire hydrant", "object") in found and ("dog", "object") not in found
    first = masker.spans(text)[0]
    assert "Three" in masker.candidates(MaskedText(text, (first,)), first)
    assert masker.agree("An cat and a umbrella") == "A cat and an umbrella"
    assert {kind for kind, _ in SLOTS.values()} == set(KINDS)
    with pytest.raises(UserError, match="'Cat' stands in"):
        WordMasker({"a": ("object", ["cat"]), "b": ("object", ["Cat"])})
    with pytest.raises(UserError, match="kind 'thing'"):
        WordMasker({"a": ("thing", ["cat"])})


def test_a_share_of_a_kind_is_drawn_at_least_one():
    spans = SceneMasker().spans("a red cup , a blue pot and a green car .")
    for kind in KINDS[:2]:
        some = choose_spans(spans, kind, 0.34, random.Random(0))
        assert len(some) == 1 and some[0].kind == kind
    assert choose_spans(spans, "relation", 1.0, random.Random(0)) == ()
    assert list(choose_spans(spans, "all", 1.0, random.Random(0))) == spans
    assert choose_spans(spans, "all", 0.5, random.Random(3)) == choose_spans(spans, "all", 0.5, random.Random(3))

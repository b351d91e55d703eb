"""Claims of the world's texts: read whole, true of their own scene, false where a scene is otherwise."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from chiasm.scenes.captions import STYLES, caption, describe
from chiasm.scenes.claims import agreeing, contradicts_itself, graph_distance, holds, read_claims, readable, scenery
from chiasm.scenes.words import mentions
from chiasm.scenes.world import Scene, Thing, make_scene, split_seeds

SCENES = [make_scene(seed) for seed in split_seeds("val", 25)]
CUP = Thing("cup", "red", "small", 0.2, 0.3, 0.2)
LAMP = Thing("lamp", "blue", "big", 0.8, 0.75, 0.4)
KITCHEN = Scene(0, "kitchen", (CUP, LAMP), 1.0, 0)


@pytest.mark.parametrize("style", [*STYLES, "description"])
def test_every_true_text_is_read_whole_and_holds(style):
    for scene in SCENES:
        for k in range(3):
            rng = random.Random(k)
            text = describe(scene, rng) if style == "description" else caption(scene, style, rng)
            claims = read_claims(text)
            named = [c.get(slot) for c in claims if c.kind != "place" for slot in ("category", "a", "b") if c.get(slot)]
            assert len(named) == len(mentions(text)), text
            assert all(text[f.start : f.end] == f.value for c in claims for f in c.fields)
            assert holds(text, scene) and readable(text) and not contradicts_itself(text) and agreeing(text) == text


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("a red cup and a blue lamp in a kitchen .", True),
        ("a blue cup in a kitchen .", False),
        ("a cup in a bedroom .", False),
        ("a kitchen with two cups .", False),
        ("a cup and a cup .", False),  # things told of apart are different things
        ("at the top left a cup .", True),
        ("at the bottom left a cup .", False),
        ("the cup is left of the lamp .", True),
        ("the cup is below the lamp .", False),
        ("the cup is red .", True),
        ("the cup is at the top left .", True),
        ("the lamp is small .", False),
        ("a kitchen with a cup . the light is bright .", True),
        ("a kitchen with a cup . the light is dim .", False),
        ("the colors are red and green : a red cup .", False),
        ("a kitchen with a lamp .", True),  # not all there is need be told
    ],
)
def test_truth_by_hand(text, true):
    assert holds(text, KITCHEN) is true


def test_three_bear_out_two():
    cups = tuple(replace(CUP, x=x) for x in (0.2, 0.5, 0.8))
    scene = replace(KITCHEN, things=cups)
    assert holds("two cups .", scene) and holds("three cups .", scene) and not holds("four cups .", scene)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("at the top left a cup . at the bottom left a lamp . the cup is below the lamp .", True),
        ("at the top left a cup . at the bottom left a lamp . the cup is above the lamp .", False),
        ("at the top left a cup . the lamp is above the cup .", True),  # "the lamp" of none
        ("a kitchen with a cup . it is a dim bedroom .", True),
        ("the cup is red .", False),
        ("a cup and a lamp . the cup is below the cup .", True),
    ],
)
def test_contradictions(text, what):
    assert contradicts_itself(text) is what


def test_what_cannot_be_read_is_not_judged():
    assert not readable("a cup of tea .") and not readable("there is no cup .") and not readable("yes")
    assert scenery("a wide meadow outdoors") and not scenery("a cup in a meadow . it is a dim meadow .")


def test_agreement_follows_the_words():
    assert agreeing("a apple and an cup") == "an apple and a cup"
    assert agreeing("the colors are red : a blue cup and a green pot .") == (
        "the colors are blue and green : a blue cup and a green pot ."
    )


def test_distance_counts_things_that_differ_and_the_place():
    assert graph_distance(KITCHEN, KITCHEN) == 0
    assert graph_distance(KITCHEN, replace(KITCHEN, light=0.8, noise_seed=5)) == 0
    assert graph_distance(KITCHEN, replace(KITCHEN, things=(CUP,))) == 1
    assert graph_distance(KITCHEN, replace(KITCHEN, place="beach", things=(replace(CUP, colour="pink"), LAMP))) == 2

"""Scenes are what their seeds and dials say, in every process."""

import hashlib
import json
import math
import os
import subprocess
import sys

import pytest
from chiasm.scenes.world import (
    CATEGORIES,
    COLOURS,
    HOME,
    PLACES,
    RELATIONS,
    SIZES,
    TYPICAL,
    Scene,
    Thing,
    World,
    boxes,
    make_scene,
    place_in_split,
    relations,
    split_seeds,
)

DIGEST = """
import hashlib, random
from chiasm.scenes.benchmarks import pope_questions
from chiasm.scenes.language import KINDS, caption, describe, question, scene_in_words, vocabulary
from chiasm.scenes.render import render
from chiasm.scenes.world import World, make_scene, relations, split_seeds
h = hashlib.sha256()
for seed in split_seeds("train", 12) + split_seeds("test", 3):
    scene, rng = make_scene(seed), random.Random(seed)
    told = [scene.graph, relations(scene), caption(scene, "colour", rng, World()), describe(scene, rng, World()),
            scene_in_words(scene, rng), [question(scene, kind, rng) for kind in KINDS]]
    h.update(repr(told).encode() + render(scene).image.tobytes())
h.update(repr(vocabulary()).encode())
print(h.hexdigest())
"""


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed) for seed in split_seeds("train", 1000)]


def test_there_is_enough_of_everything():
    assert len(PLACES) >= 5 and len(CATEGORIES) >= 16 and len(COLOURS) >= 8
    assert len(set(CATEGORIES)) == len(CATEGORIES) == sum(map(len, TYPICAL.values()))
    assert all(category in TYPICAL[HOME[category]] for category in CATEGORIES)


def test_a_seed_is_a_scene():
    assert make_scene(7) == make_scene(7)
    assert len({make_scene(seed).graph for seed in range(100)}) > 90
    assert make_scene(7, World(typical_share=0.0)) != make_scene(7)


def test_every_process_makes_the_same_world():
    digests = set()
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1 and len(digests.pop().strip()) == hashlib.sha256().digest_size * 2


def test_splits_share_no_graph(scenes):
    train = {scene.graph for scene in scenes}
    val = {make_scene(seed).graph for seed in split_seeds("val", 150)}
    test = {make_scene(seed).graph for seed in split_seeds("test", 150)}
    assert not train & val and not train & test and not val & test
    assert {scene.split for scene in scenes} == {"train"}


def test_the_graph_alone_decides_the_split():
    scene = make_scene(19)
    redrawn = Scene(10, scene.place, tuple(reversed(scene.things)), 1.0, 5)
    assert redrawn.graph == scene.graph and redrawn.split == scene.split == "test"


def test_slices_of_a_split_line_up():
    assert split_seeds("train", 10) == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]
    for split in ("train", "val", "test"):
        assert split_seeds(split, 30) == split_seeds(split, 13) + split_seeds(split, 17, start=13)
    with pytest.raises(ValueError, match="train, val, test, got 'dev'"):
        split_seeds("dev", 1)


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_typical_share_is_the_dial(share):
    world = World(typical_share=share)
    scenes = [make_scene(seed, world) for seed in split_seeds("train", 800)]
    typical = [HOME[thing.category] == scene.place for scene in scenes for thing in scene.things]
    error = math.sqrt(share * (1 - share) / len(typical))
    assert abs(sum(typical) / len(typical) - share) < 4 * error


def test_the_test_split_has_the_same_statistics():
    scenes = [make_scene(seed) for seed in split_seeds("test", 250)]
    typical = [HOME[thing.category] == scene.place for scene in scenes for thing in scene.things]
    assert abs(sum(typical) / len(typical) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / len(typical))


def test_attributes_are_independent_of_the_category(scenes):
    for attribute, values in (("colour", COLOURS), ("size", SIZES), ("row", ("top", "bottom"))):
        seen = [getattr(thing, attribute) for scene in scenes for thing in scene.things if thing.category == "car"]
        assert max(seen.count(value) for value in values) < 2 * len(seen) / len(values)


def test_numbers_of_things_follow_the_dials(scenes):
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4, 5}
    few = [make_scene(seed, World(min_things=2, max_things=3)) for seed in range(60)]
    assert {len(scene.things) for scene in few} == {2, 3}
    repeated = [max(map(scene.count, scene.categories())) > 1 for scene in scenes]
    assert 0.25 < sum(repeated) / len(repeated) < 0.75  # counting needs both


def test_things_stay_inside_at_different_depths_and_clear_of_the_borders(scenes):
    for scene in scenes:
        assert len({thing.depth for thing in scene.things}) == len(scene.things)
        for thing, (x0, y0, x1, y1) in zip(scene.things, boxes(scene), strict=True):
            assert 0 < x0 < thing.x < x1 < 1 and 0 < y0 < thing.y < y1 < 1 and 0 < thing.depth < 0.9
            assert min(abs(thing.x - 1 / 3), abs(thing.x - 2 / 3), abs(thing.y - 1 / 2)) > 0.03


def test_a_thing_knows_where_it_is():
    thing = Thing("cup", "red", "small", 0.2, 0.7, 0.5)
    assert (thing.column, thing.row) == ("left", "bottom")
    assert Scene(0, "kitchen", (thing,), 1.0, 0).graph == ("kitchen", (("cup", "red", "small", "left", "bottom"),))


def test_relations_of_a_scene_made_by_hand():
    things = (
        Thing("cup", "red", "big", 0.25, 0.3, 0.1),
        Thing("ball", "blue", "big", 0.3, 0.4, 0.8),
        Thing("bed", "green", "small", 0.8, 0.8, 0.4),
    )
    assert set(relations(Scene(0, "kitchen", things, 1.0, 0))) == {
        (0, "in front of", 1), (1, "behind", 0),
        (0, "left of", 2), (1, "left of", 2), (2, "right of", 0), (2, "right of", 1),
        (0, "above", 2), (1, "above", 2), (2, "below", 0), (2, "below", 1),
    }  # fmt: skip


def test_relations_agree_with_coordinates(scenes):
    seen = set()
    for scene in scenes[:500]:
        for i, relation, j in relations(scene):
            a, b = scene.things[i], scene.things[j]
            seen.add(relation)
            assert {
                "left of": b.x - a.x > 0.1,
                "right of": a.x - b.x > 0.1,
                "above": b.y - a.y > 0.15,
                "below": a.y - b.y > 0.15,
                "in front of": a.depth < b.depth,
                "behind": a.depth > b.depth,
            }[relation]
    assert seen == set(RELATIONS)


def test_dials_survive_json_and_bad_ones_are_refused():
    world = World(typical_share=0.5, spurious=("car", "cup", 0.1), max_things=3)
    assert World.from_dict(json.loads(json.dumps(world.to_dict()))) == world
    with pytest.raises(ValueError, match="label_noise is a probability"):
        World(label_noise=1.5)
    with pytest.raises(ValueError, match="1 to 6 things"):
        World(min_things=4, max_things=3)
    with pytest.raises(ValueError, match="spurious"):
        World(spurious=("car", "dragon", 0.1))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_place_of_a_seed_is_where_its_split_has_it(split):
    assert [place_in_split(seed) for seed in split_seeds(split, 25, 7)] == [(split, i) for i in range(7, 32)]

"""What the renderer says about its pixels is what its pixels show."""

import dataclasses
import itertools
import time

import numpy as np
import pytest
from chiasm.scenes.render import PAINT, render
from chiasm.scenes.shapes import DRAWABLE
from chiasm.scenes.sprites import silhouette
from chiasm.scenes.world import CATEGORIES, COLOURS, PLACES, Scene, Thing, boxes, make_scene, relations, split_seeds


@pytest.fixture(scope="module")
def drawn():
    return [(scene, render(scene)) for scene in map(make_scene, split_seeds("train", 300))]


def alone(category="cup", colour="red", size="big", place="kitchen", light=1.0, noise=0):
    return Scene(0, place, (Thing(category, colour, size, 0.5, 0.5, 0.5),), light, noise)


def test_shapes_and_types(drawn):
    picture = drawn[0][1]
    assert picture.image.shape == (64, 64, 3) and picture.image.dtype == np.uint8
    assert picture.depth.shape == picture.segmentation.shape == (64, 64)
    assert picture.depth.dtype == np.float32 and np.issubdtype(picture.segmentation.dtype, np.integer)
    assert picture.pil.size == (64, 64)
    assert set(DRAWABLE) == set(CATEGORIES) and set(PAINT) == set(COLOURS)
    with pytest.raises(ValueError, match="at least 16 pixels, got 8"):
        render(drawn[0][0], 8)


def test_the_same_seed_gives_the_same_pixels_and_another_noise_seed_others(drawn):
    scene, picture = drawn[0]
    assert np.array_equal(render(scene).image, picture.image)
    other = render(dataclasses.replace(scene, noise_seed=scene.noise_seed + 1))
    assert (other.image != picture.image).mean() > 0.8
    assert np.array_equal(other.segmentation, picture.segmentation)  # noise moves no thing


@pytest.mark.parametrize("size", [64, 200])
@pytest.mark.parametrize("category", CATEGORIES)
def test_a_box_is_tight(category, size):
    for big in ("small", "big"):
        scene = alone(category, size=big)
        rows, columns = np.nonzero(render(scene, size).segmentation == 1)
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(found - size * np.array(boxes(scene)[0])).max() <= 1.5


def test_segmentation_is_what_is_left_of_each_thing_by_depth(drawn):
    """Each thing is drawn alone, and the nearest one that covers a pixel must own it."""
    for scene, picture in drawn[:150]:
        masks = [render(dataclasses.replace(scene, things=(t,))).segmentation == 1 for t in scene.things]
        depths = np.where(masks, np.array([t.depth for t in scene.things])[:, None, None], np.inf)
        owner = np.where(np.isinf(depths.min(0)), 0, depths.argmin(0) + 1)
        assert np.array_equal(owner, picture.segmentation)
        for i, mask in enumerate(masks):
            assert picture.visible[i] == pytest.approx((owner == i + 1).sum() / mask.sum())


def test_depth_is_the_things_own_and_the_backdrop_lies_behind(drawn):
    for scene, picture in drawn:
        for i, thing in enumerate(scene.things, start=1):
            assert np.all(picture.depth[picture.segmentation == i] == np.float32(thing.depth))
        background = picture.depth[picture.segmentation == 0]
        assert background.min() > max(thing.depth for thing in scene.things) and background.max() <= 1


def test_every_thing_can_be_recognised_by_construction(drawn):
    assert min(share for _, picture in drawn for share in picture.visible) >= 0.4
    assert min(np.bincount(picture.segmentation.ravel())[1:].min() for _, picture in drawn) >= 20  # pixels


def test_relations_can_be_seen_in_the_pixels(drawn):
    occluded = 0
    for scene, picture in drawn:
        seen = {i: np.argwhere(picture.segmentation == i + 1) for i in range(len(scene.things))}
        for i, relation, j in relations(scene):
            (top, left), (low, right) = seen[i].mean(0), seen[j].mean(0)
            if relation == "left of":
                assert left < right
            if relation == "above":
                assert top < low
            if relation == "behind":
                assert picture.visible[i] < 1
                occluded += 1
    assert occluded > 40


def test_drawn_large_it_is_the_same_scene():
    for seed in split_seeds("train", 8):
        scene = make_scene(seed)
        small, large = render(scene, 64), render(scene, 512)
        shrunk = large.image.reshape(64, 8, 64, 8, 3).mean((1, 3))
        assert np.abs(shrunk - small.image).mean() < 14
        for i in range(1, len(scene.things) + 1):
            a, b = small.segmentation == i, large.segmentation[4::8, 4::8] == i
            assert (a & b).sum() / (a | b).sum() > 0.6


def test_no_two_categories_share_a_silhouette():
    masks = {category: np.zeros((32, 32), dtype=bool) for category in CATEGORIES}
    for category, mask in masks.items():
        left, top, wide, high = Thing(category, "red", "big", 0.5, 0.5, 0.5).pixels(64)
        mask[top - 16 : top - 16 + high, left - 16 : left - 16 + wide] = silhouette(category, wide, high)
    for a, b in itertools.combinations(CATEGORIES, 2):
        assert (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum() < 0.87, (a, b)


def test_colours_stay_apart_in_any_light():
    """The median pixel of one colour is far from that of every other, whatever the light and the category of both."""
    seen = {}
    for colour, light, category in itertools.product(COLOURS, (0.74, 1.06), ("apple", "sock", "chair", "bus")):
        scene = alone(category, colour, "small", light=light)
        picture = render(scene)
        seen[colour, light, category] = np.median(picture.image[picture.segmentation == 1], axis=0)
    for (a, x), (b, y) in itertools.combinations(seen.items(), 2):
        if a[0] != b[0]:
            assert np.linalg.norm(x - y) > 35, (a, b)


def test_light_is_to_be_seen():
    dim, bright = (render(alone(light=light)).image.mean() for light in (0.75, 1.0))
    assert dim < 0.85 * bright


def test_places_differ_and_pass_for_no_thing():
    means = [render(Scene(0, place, (), 1.0, 3)).image.reshape(2, 32, 64, 3).mean((1, 2)).ravel() for place in PLACES]
    for a, b in itertools.combinations(means, 2):
        assert np.linalg.norm(a - b) > 20
    for place in PLACES:
        image = render(Scene(0, place, (), 1.0, 3)).image.astype(int)
        assert (image.max(-1) - image.min(-1) < 110).all()  # paler than any paint but white and black


def test_a_warm_sprite_cache_draws_the_same_pictures_and_its_speed_is_printed(capsys):
    scenes = [make_scene(seed) for seed in split_seeds("train", 200)]
    first = [render(scene).image for scene in scenes]  # fills the sprite cache
    start = time.perf_counter()
    again = [render(scene).image for scene in scenes]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    with capsys.disabled():
        print(f"\nrender: {(time.perf_counter() - start) / len(scenes) * 1e3:.2f} ms a scene of 64 x 64")

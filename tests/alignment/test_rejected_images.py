"""Rejected pictures: what each kind does to the pixels, and scenes in which one thing is changed."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from chiasm.alignment.rejected_images import CROP, GRID, KINDS, MASKED, changed, counterfactuals
from chiasm.models.diffusion import signal_share
from chiasm.scenes.claims import graph_distance
from chiasm.scenes.errors import UserError
from chiasm.scenes.world import make_scene, split_seeds
from PIL import Image

WORSE = ("crop", "noise", "patch-mask", "blank")


@pytest.fixture
def picture(photo):
    return photo("coffee.png", 140)


@pytest.mark.parametrize("kind", WORSE)
def test_made_worse_the_same_way_with_the_same_draw(kind, picture):
    one, same, other = (changed(picture, kind, random.Random(seed)) for seed in (0, 0, 1))
    assert one.size == picture.size and one.mode == "RGB" and one.tobytes() == same.tobytes() != picture.tobytes()
    assert (one.tobytes() != other.tobytes()) == (kind != "blank")


def test_a_crop_is_a_piece_of_one_to_twenty_percent():
    side = 400
    ramp = Image.fromarray(np.repeat(np.linspace(0, 255, side)[None, :, None], side, 0).repeat(3, 2).astype(np.uint8))
    for seed in range(20):
        piece = np.asarray(changed(ramp, "crop", random.Random(seed)), dtype=float)
        share = (piece.max() - piece.min()) / 255  # of the width
        assert CROP[0] * 0.5 < share**2 < CROP[1] * 1.3


def test_noise_is_the_diffusions():
    grey = Image.new("RGB", (64, 64), (127, 127, 127))
    pixels = np.asarray(changed(grey, "noise", random.Random(0)), dtype=float) / 127.5 - 1
    spread = (1 - signal_share(500) ** 2) ** 0.5
    inside = np.abs(pixels) < 0.9
    assert abs(np.median(pixels)) < 0.05
    assert abs(inside.mean() - (2 * 0.5 * (1 + math.erf(0.9 / spread / 2**0.5)) - 1)) < 0.03


def test_a_patch_mask_covers_its_share(picture):
    masked = np.asarray(changed(picture, "patch-mask", random.Random(0)))
    covered = (masked == np.asarray(picture).reshape(-1, 3).mean(0).round()).all(-1).mean()
    assert covered == pytest.approx(round(MASKED * GRID**2) / GRID**2, abs=0.03)
    assert (np.asarray(changed(picture, "blank", random.Random(0))) == 127).all()
    tiny = Image.new("RGB", (5, 3), "red")
    assert all(changed(tiny, kind, random.Random(0)).size == (5, 3) for kind in WORSE)


@pytest.mark.parametrize("kind", ["object", "attribute", "relation", "all"])
def test_a_counterfactual_changes_one_thing(kind):
    for seed in split_seeds("val", 6):
        scene = make_scene(seed)
        made = list(counterfactuals(scene, kind, random.Random(seed), 4))
        assert made
        for one in made:
            edited = one.truth["scene"]
            assert graph_distance(scene, edited) == 1 and edited.noise_seed == scene.noise_seed
            pairs = list(zip(scene.things, edited.things, strict=True))
            differ = [(a, b) for a, b in pairs if a != b]
            if kind == "attribute":
                assert all(a.category == b.category and (a.x, a.y) == (b.x, b.y) for a, b in differ)
            if kind == "relation":
                assert all((a.category, a.colour, a.size) == (b.category, b.colour, b.size) for a, b in differ)
        again = list(counterfactuals(scene, kind, random.Random(seed), 4))
        assert [a.truth["scene"] for a in made] == [a.truth["scene"] for a in again]
    assert list(counterfactuals(scene, kind, random.Random(0), 0)) == []


def test_steps_outside_the_diffusion_are_refused():
    with pytest.raises(UserError, match="noise step 1000"):
        signal_share(1000)
    assert set(WORSE) < set(KINDS)

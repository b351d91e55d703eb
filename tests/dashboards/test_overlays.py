"""Colours lie where the boxes are, as strong as the values; words stay in their boxes; charts say what they show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from chiasm.dashboards import overlays
from chiasm.dashboards.live import Encoder, Seen
from chiasm.dashboards.looked import Looked, heads, labels
from chiasm.dashboards.overlays import fitted, multiples, paint, percent, side_for_words, strip, worded
from chiasm.dashboards.pictures import Chosen, scene_at
from chiasm.experiments.figures.chart import Overlay, over_boxes
from chiasm.experiments.style import SCALE, VERMILION
from chiasm.models.spans import Spans
from PIL import Image

BOXES = np.array([[0, 0, 20, 20], [20, 0, 40, 20], [0, 20, 20, 40], [np.nan] * 4])


def _grey(level: int = 100) -> np.ndarray:
    return np.full((40, 40, 3), level, np.uint8)


def test_colours_lie_where_the_boxes_are():
    made = np.asarray(paint(Overlay(_grey(), BOXES, [0.0, 1.0, 0.5, 9.0], limits=(0.0, 1.0)))).astype(float)
    grey = 90 + 100 * 165 // 255
    assert np.ptp(made[:20, :20].reshape(-1, 3), 0).max() == 0 and np.allclose(made[20:, 20:], grey, atol=1)
    full = np.array([int(SCALE[1][i : i + 2], 16) for i in (1, 3, 5)])
    wanted = overlays.STRENGTH * full + (1 - overlays.STRENGTH) * made[30, 30]
    np.testing.assert_allclose(made[10, 30], wanted, atol=1)
    darkness = [made[y, x].sum() for y, x in ((10, 10), (30, 10), (10, 30))]
    assert darkness == sorted(darkness, reverse=True)


def test_a_picture_without_values_is_as_it_was_and_outlines_are_on_the_edge():
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    assert np.array_equal(np.asarray(paint(Overlay(picture, BOXES))), picture)
    made = np.asarray(paint(Overlay(picture, BOXES, outlined=[1, 3])))
    colour = [int(VERMILION[i : i + 2], 16) for i in (1, 3, 5)]
    assert made[0, 20].tolist() == made[19, 39].tolist() == colour
    assert np.array_equal(made[2:18, 22:38], picture[2:18, 22:38]) and np.array_equal(made[20:], picture[20:])


def test_boxes_follow_the_size_of_the_picture():
    pixels, boxes = fitted(Image.new("RGB", (80, 60)), [[0, 10, 20, 30]], (40, 20))
    assert pixels.shape == (60, 80, 3) and boxes.tolist() == [[0, 30, 40, 90]]
    assert side_for_words([[0, 0, 8, 8]], (64, 64)) == 480
    assert side_for_words([[0, 0, 1, 1], [np.nan] * 4], (64, 64)) == 1600
    assert side_for_words([[np.nan] * 4], (64, 64)) == 448


def test_words_stay_in_their_boxes():
    made = np.asarray(worded(_grey(), BOXES, ["an umbrella", "", "", "nowhere"])).astype(int)
    blank = np.asarray(worded(_grey(), BOXES, [""] * 4)).astype(int)
    changed = np.abs(made - blank).sum(-1) > 0
    assert changed[:20, :20].any() and not changed[21:].any() and not changed[:, 22:].any()
    blue = np.asarray(worded(_grey(), BOXES, ["Cat", "", "", ""], {"cat"})).astype(int)
    assert (blue[..., 2] - blue[..., 0]).max() > 60


def test_small_multiples_share_a_scale_or_have_their_own():
    maps = np.array([[1.0, 0, 0, 0], [0.1, 0, 0, 0]])
    own, common = (multiples(_grey(), BOXES, maps, common=way) for way in (False, True))
    assert own[0].size == (48, 48) and own[0].getpixel((47, 47))[3] == 0
    assert own[0].getpixel((10, 10)) == own[1].getpixel((10, 10)) == common[0].getpixel((10, 10))
    assert sum(common[1].getpixel((10, 10))) > sum(common[0].getpixel((10, 10)))
    assert len(multiples(_grey(), BOXES, np.full((2, 4), np.nan))) == 2


def test_many_maps_lie_where_each_would():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (12, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(3, 10, (12, 2))], 1)
    boxes[3] = np.nan
    maps = rng.random((3, 12))
    maps[1, 5] = np.nan
    together = over_boxes((40, 40), boxes, maps)
    for values, found in zip(maps, together, strict=True):
        np.testing.assert_array_equal(found, Overlay(_grey(), boxes, values).map())
    at = [i for i in range(12) if i not in (3, 5) and round(boxes[i, 0]) <= 20 < round(boxes[i, 2]) and round(boxes[i, 1]) <= 20 < round(boxes[i, 3])]  # fmt: skip
    assert at and together[1, 20, 20] == pytest.approx(maps[1, at].mean())


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (0.0001, "less than 0.1%"), (0.012, "1.2%"), (0.0996, "10%"), (0.314, "31%")]
)
def test_shares_are_written_as_people_read_them(share, text):
    assert percent(share) == text


def test_the_strip_shows_every_part_that_gets_something():
    shares = np.zeros((3, len(Spans.names)))
    shares[:, Spans.names.index("image")] = [0.2, 0.5, 0.9]
    shares[:, Spans.names.index("bos")] = [0.8, 0.5, 0.1]
    figure = strip((0, 2, 5), shares, Spans.names, "boat", "head 1")
    (panel,) = figure.chart.panels
    assert {mark.label: list(mark.y) for mark in panel.marks} == {"bos": [0.8, 0.5, 0.1], "image": [0.2, 0.5, 0.9]}
    assert list(panel.marks[0].x) == [0, 2, 5] and "n = " in figure.chart.note and "interval" in figure.chart.note


def _looked() -> Looked:
    attention = np.zeros((2, 2, 2, 4), np.float32)
    attention[0, 1, 0] = [0.1, 0.2, 0.1, 0]
    attention[1, 0, 1] = [0, 0, 0.02, 0]
    encoder = Encoder("cls", (0,), np.ones((1, 4)), np.array([[False, True, False, False]]), 0)
    seen = Seen((7, 2), (" boat", ""), "end", 0.25, (0, 3), attention, (0, 3), np.zeros((2, 2, 2, 7)), BOXES, np.array([0, 0, 1, 0]), encoder)  # fmt: skip
    return Looked(1, Chosen(Image.new("RGB", (40, 40)), None, "?"), seen)


def test_what_is_told_of_a_word():
    looked = _looked()
    assert looked.telling() == 0 and looked.busiest() == 1 and looked.named(1) == "end"
    attention = np.concatenate([looked.seen.attention, np.full((1, 2, 2, 4), 0.2, np.float32)])
    more = replace(looked.seen, words=(" boat", "", " a"), tokens=(7, 2, 3), attention=attention)
    assert Looked(1, looked.chosen, more).telling() == 0
    assert Looked(1, looked.chosen, replace(more, words=("up", "", " a"))).telling() == 2
    told = looked.told(0, 1, 0)
    assert told.startswith("“boat”, layer 3, head 0: 40% of its attention is on the picture, at most 20% on one patch.")
    assert "Of this, 50% is on the 1 of 4 patches" in told and "1 of 4 visual tokens" in told
    assert "20% of its attention" in looked.told(0, 1, None) and "mean of all heads" in looked.told(0, 1, None)
    assert (
        looked.told(0, 0, None)
        .split(". ")[0]
        .endswith("0% of its attention is on the picture, at most 0% on one patch")
    )
    assert looked.facts() == "2 tokens in 0.2 s." and heads(3) == "head 3"
    assert np.isnan(looked.whole(BOXES)[2:]).all() and np.array_equal(looked.whole(BOXES)[:2], BOXES[:2])


def test_a_scene_is_shown_in_more_pixels_than_the_model_sees():
    looked, sample = _looked(), scene_at(0)[0]
    looked.chosen = Chosen(sample.images[0], sample, "?")
    pixels, boxes = looked.ground(448)
    assert pixels.shape == (448, 448, 3) and boxes[0].tolist() == [0, 0, 140, 140]
    assert looked.ground(448)[0] is pixels


def test_no_two_words_have_one_label():
    names = labels([" the", " *", " the", "", "the", ""])
    assert len(set(names)) == 6
    assert [name.replace("\u200b", "") for name in names] == ["the", "\\*", "the", "·", "the", "end"]

"""Spans on sequences small enough to write down."""

import pytest
import torch
from chiasm.models import Spans
from chiasm.models.spans import find_spans

IMAGE, START, END, TILE, THUMB = 9, 7, 8, 5, 6
NAMES = dict(enumerate(Spans.names)) | {-1: "pad"}


def spans(*rows, **options):
    ids = torch.tensor(rows)
    return find_spans(ids, (ids != 0).long(), IMAGE, **options)


def names(found, row=0):
    return [NAMES[label] for label in found.labels[row].tolist()]


def test_bos_before_image_after_and_padding_on_either_side():
    found = spans([0, 1, 2, 9, 9, 3], [1, 2, 9, 9, 3, 0])
    assert names(found) == ["pad", "bos", "before", "image", "image", "after"]
    assert names(found, 1) == ["bos", "before", "image", "image", "after", "pad"]
    assert found.visual.tolist() == [[False] * 3 + [True] * 2 + [False], [False] * 2 + [True] * 2 + [False] * 2]


def test_a_sequence_that_begins_with_the_picture_has_no_bos():
    assert names(spans([9, 9, 3, 4])) == ["image", "image", "after", "after"]


def test_markers_belong_to_the_picture_they_touch_and_nothing_else():
    found = spans([1, 7, 9, 8, 9, 8, 3, 8, 4], markers=frozenset({START, END}))
    assert names(found) == ["bos", *["image"] * 5, "after", "after", "after"]
    assert found.visual.sum() == 2 and found.image_index.tolist() == [[-1, 0, 0, 0, 0, 0, -1, -1, -1]]


def test_named_tiles_are_one_picture_with_the_newlines_between_them():
    options = dict(markers=frozenset({START, TILE, THUMB}), continued=frozenset({TILE}), closing=frozenset({THUMB}))
    found = spans([1, 7, 5, 9, 3, 7, 5, 9, 3, 3, 7, 6, 9, 7, 4, 7, 6, 9, 7, 2], **options)
    assert names(found)[1:14] == ["image"] * 13 and names(found)[14] == "after"
    assert found.image_index[0].tolist() == [-1] + [0] * 13 + [-1] + [1] * 4 + [-1]


def test_text_between_pictures_is_after_and_belongs_to_the_picture_before_it():
    found = spans([1, 2, 9, 3, 9, 4])
    assert names(found) == ["bos", "before", "image", "after", "image", "after"]
    columns = found.image_indicators()[0].long().T.tolist()
    assert columns == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]


def test_indicators_have_one_column_a_span_and_none_for_padding():
    found = spans([0, 1, 9, 3])
    expected = torch.zeros(4, 7)
    expected[1, 0] = expected[2, 3] = expected[3, 4] = 1
    assert torch.equal(found.indicators()[0], expected)


def test_without_images_keeps_the_labels_of_the_text():
    short, kept = spans([1, 2, 9, 9, 3], [0, 1, 9, 3, 4]).without_images()
    assert names(short) == ["bos", "before", "after"] and names(short, 1) == ["bos", "after", "after"]
    assert [k.tolist() for k in kept] == [[0, 1, 4], [1, 3, 4]]
    assert not short.visual.any()


def test_extended_appends_generated_positions():
    longer = spans([1, 9, 3]).extended(2)
    assert names(longer)[3:] == ["generated"] * 2 and longer.boxes.shape == (1, 5, 4) and not longer.visual[0, 3:].any()


def test_a_name_that_is_no_span_is_refused():
    with pytest.raises(ValueError, match="the spans are bos, system"):
        spans([1, 2]).mask("imgae")


def test_shuffled_labels_hang_on_the_rows_own_labels_and_keep_their_counts():
    rows = [[1, 2, 3, 4, 9, 5, 6, 7, 8], [0, 0, 1, 2, 9, 3, 4, 5, 6]]
    both, alone = (spans(*part).shuffled_indicators() for part in (rows, [rows[1][2:]]))
    assert torch.equal(both[1, 2:], alone[0]) and not both[1, :2].any()
    plain = spans(*rows)
    assert torch.equal(both.sum(1), torch.stack([plain.mask("before").sum(1), plain.mask("after").sum(1)], 1).float())
    assert torch.equal(both.sum(-1).bool(), plain.mask("before", "after"))

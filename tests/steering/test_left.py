"""What is left of a prompt, and the masks it is read under, by hand."""

import pytest
import torch
from chiasm.scenes.errors import UserError
from chiasm.steering.left import left_of, prompt_mask, rows_at, step_mask

T, F = True, False
REAL = torch.tensor([[T, T, T, T, T], [F, F, T, T, T]])
PICTURE = torch.tensor([[F, T, T, F, F], [F, F, F, T, F]])
NONE = torch.zeros_like(REAL)
STATES = torch.zeros(2, 5, 1)


def test_what_was_sliced_away_is_gone_with_the_padding_and_shorter_rows_begin_with_nothing():
    left = left_of(REAL, PICTURE, NONE)
    assert left.places.tolist() == [[0, 3, 4], [-1, 2, 4]]
    assert left.seen.tolist() == [[T, T, T], [F, T, T]]
    assert left.apart.tolist() == [[F, F, F], [T, F, F]]
    hidden = left_of(REAL, NONE, PICTURE)
    assert hidden.places.tolist() == [[0, 1, 2, 3, 4]] * 2 and not hidden.sliced
    assert torch.equal(hidden.seen, REAL & ~PICTURE) and torch.equal(hidden.apart, PICTURE)


def test_rows_are_taken_at_any_dimension():
    values = torch.arange(10).view(2, 5)
    assert rows_at(values, torch.tensor([[0, 3, 4], [-1, 2, 4]])).tolist() == [[0, 3, 4], [5, 7, 9]]
    assert rows_at(values[:1, None], torch.tensor([[0, 3], [1, 2]]), 2).tolist() == [[[0, 3]], [[1, 2]]]
    assert rows_at(values[:1, None], torch.tensor([[0, 3]]), 2).tolist() == [[[0, 3]]]


def test_columns_of_a_prompt_are_hidden_from_the_rows_that_go_on():
    hidden = left_of(REAL[:1], NONE[:1], PICTURE[:1])
    mask = prompt_mask(None, hidden, STATES[:1], flat=False)[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]
    left = left_of(REAL, PICTURE, NONE)
    given = (torch.ones(5, 5).tril().bool() & REAL[:, None])[:, None]
    mask = prompt_mask(given, left, STATES, flat=False)
    assert mask[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert mask[1, 0, 1:].int().tolist() == [[0, 1, 0], [0, 1, 1]]
    additive = torch.zeros(2, 1, 5, 5).masked_fill(~given, torch.finfo(torch.float32).min)
    assert torch.equal(prompt_mask(additive, left, STATES, flat=False) == 0, mask)
    assert prompt_mask(REAL.long(), left, STATES, flat=True).tolist() == [[1, 1, 1], [0, 1, 1]]
    assert prompt_mask(None, left, STATES, flat=True).tolist() == [[1, 1, 1], [0, 1, 1]]
    assert prompt_mask(None, left_of(REAL[:1], PICTURE[:1], NONE[:1]), STATES[:1], flat=False) is None


def test_a_static_cache_has_room_behind_the_prompt():
    left = left_of(REAL, PICTURE, NONE)
    given = torch.nn.functional.pad((torch.ones(5, 5).tril().bool() & REAL[:, None])[:, None], (0, 2))
    mask = prompt_mask(given, left, STATES, flat=False)
    assert mask.shape == (2, 1, 3, 7) and not mask[..., 3:].any()
    with pytest.raises(UserError, match="static cache shorter than the prompt"):
        prompt_mask(given[..., :4], left, STATES, flat=False)


def step(left, start, query, keys, offset=0, window=None, flat=False):
    found = step_mask(left, start, query, keys, offset, window, torch.device("cpu"), torch.float32, flat)
    return found if found is None or flat else (found == 0)[:, 0].int().tolist()


def test_a_step_sees_what_is_left_and_what_came_after_it():
    left = left_of(REAL, PICTURE, NONE)
    assert step(left, 5, 1, 4) == [[[1, 1, 1, 1]], [[0, 1, 1, 1]]]
    assert step(left, 6, 1, 5) == [[[1, 1, 1, 1, 1]], [[0, 1, 1, 1, 1]]]
    assert step(left, 5, 2, 5) == [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]]
    assert step(left, 5, 1, 6) == [[[1, 1, 1, 1, 0, 0]], [[0, 1, 1, 1, 0, 0]]]  # static
    assert step(left_of(REAL[:1], PICTURE[:1], NONE[:1]), 5, 1, 4) is None
    assert step(left_of(REAL[:1], NONE[:1], PICTURE[:1]), 5, 1, 6) == [[[1, 0, 0, 1, 1, 1]]]
    assert step(left, 5, 1, 4, flat=True).tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_a_window_counts_the_positions_of_the_whole_prompt():
    left = left_of(REAL, PICTURE, NONE)  # places 0, 3, 4 and 2, 4; the step stands at 5
    assert step(left, 5, 1, 4, window=3) == [[[0, 1, 1, 1]], [[0, 0, 1, 1]]]
    assert step(left, 5, 1, 3, offset=1, window=3) == [[[1, 1, 1]], [[0, 1, 1]]]
    assert step(left, 6, 1, 5, window=3) == [[[0, 0, 1, 1, 1]], [[0, 0, 1, 1, 1]]]

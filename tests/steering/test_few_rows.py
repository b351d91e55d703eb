"""Few rows through linear layers: the same numbers, on this thread alone, and only where it pays."""

import threading
from contextlib import nullcontext

import pytest
import torch
from chiasm.steering.few_rows import MOST, WIDE, FewRows, few_rows
from torch import nn


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 1, 24), (3, 24), (MOST, 1, 24), (1, 1, 24), (MOST + 1, 24)])
def test_linear_layers_give_the_same_numbers_to_rounding(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40, bias=bias), torch.randn(shape)
    plain = layer(x)
    with FewRows():
        out = layer(x)
    assert out.shape == plain.shape
    torch.testing.assert_close(out, plain, atol=1e-6, rtol=1e-5)


def test_it_computes_with_the_weights_first_and_only_for_a_few_rows(monkeypatch):
    seen = []
    own = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: seen.append((a.shape, b.shape)) or own(a, b))
    layer = nn.Linear(24, 40)
    with FewRows():
        layer(torch.randn(2, 1, 24))
        layer(torch.randn(1, 24))
        layer(torch.randn(MOST + 1, 24))
        nn.Linear(24, 40, dtype=torch.float64)(torch.randn(2, 24, dtype=torch.float64))
    layer(torch.randn(2, 24))
    assert seen == [((40, 24), (24, 2))]


def test_other_threads_are_left_alone(monkeypatch):
    seen, layer = [], nn.Linear(24, 40)
    own = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: seen.append(a.shape) or own(a, b))
    with FewRows():
        thread = threading.Thread(target=lambda: layer(torch.randn(2, 24)))
        thread.start()
        thread.join()
    assert not seen


def test_only_where_it_pays():
    like = torch.zeros(2, 1)
    assert isinstance(few_rows(WIDE, 2, like), FewRows)
    for width, rows, value in (
        (WIDE - 1, 2, like),
        (WIDE, 1, like),
        (WIDE, MOST + 1, like),
        (WIDE, 2, like.bfloat16()),
    ):
        assert isinstance(few_rows(width, rows, value), nullcontext)

"""Linear layers on a CPU when only a few rows go through them, as in decoding: the weights are read once for all rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

MOST, WIDE = 32, 1024
"""Rows up to which, and width of the states from which on, this is faster: measured with MKL on two cores."""


class FewRows(TorchFunctionMode):
    """While open, on this thread: x @ W.T of 2 to MOST rows in fp32 is computed as (W @ x.T).T.

    The same numbers to rounding. The library multiplies a tall x well and one row well; of two rows it copies the whole of W
    into another order first, which costs more than twice one row (and this way 1.2 times).
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is linear and not kwargs and _suits(args[0], args[1]):
            x, weight, *bias = args
            rows = x.reshape(-1, x.shape[-1]).contiguous()
            out = torch.mm(weight, rows.T).T.contiguous()  # of rows that do not lie in one piece it would be slow
            if bias and bias[0] is not None:
                out = out + bias[0]
            return out.reshape(*x.shape[:-1], -1)
        return function(*args, **(kwargs or {}))


def few_rows(width: int, rows: int, like: Tensor) -> AbstractContextManager:
    """`FewRows` where it pays: on a CPU, in fp32, for states this wide and so many rows."""
    pays = like.device.type == "cpu" and like.dtype == torch.float32 and width >= WIDE and 1 < rows <= MOST
    return FewRows() if pays else nullcontext()


def _suits(x: Tensor, weight: Tensor) -> bool:
    rows = x.numel() // x.shape[-1]
    return 1 < rows <= MOST and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"

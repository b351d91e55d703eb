"""What interventions remember of a generation, when the rows of its cache are repeated or joined with those of another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from ..scenes.errors import UserError
from .steer import remember, remembered

_REFUSED = (
    "an intervention remembers of the prompt what two branches on one cache cannot share: use "
    'ContrastDecoder(engine="two_calls")'
)
_TOLD = ("spans", "changed")
"""What a memory holds of the prompt; the decoder's own passes tell it anew."""


def carry_repeated(cache: Cache, rows: Callable[[Tensor], Tensor]) -> None:
    """The memory of a cache whose rows were repeated by `rows`."""
    remember(cache, _mapped(_of(cache), rows))


def carry_joined(cache: Cache, first: Cache, second: Cache, widths: tuple[int, int]) -> None:
    """The memory of a cache joined of two, from theirs. widths: of the two prompts; the shorter one was left-padded."""
    remember(cache, _merged(_of(first), _of(second), widths))


def _of(cache: Cache) -> dict:
    return {key: value for key, value in remembered(cache, start=1).items() if key not in _TOLD}


def _mapped(value, rows):
    if isinstance(value, dict):
        return {key: _mapped(one, rows) for key, one in value.items()}
    if isinstance(value, Tensor):
        return rows(value) if value.dim() else value
    if not isinstance(value, bool | int | float | str | None):
        raise UserError("an intervention remembers what cannot be repeated: leave out num_return_sequences")
    return value


def _merged(one, other, widths: tuple[int, int]):
    if isinstance(one, dict) or isinstance(other, dict):
        one, other = one or {}, other or {}
        return {key: _merged(one.get(key), other.get(key), widths) for key in one | other}
    plain = (bool, int, float, str, type(None))
    if isinstance(one, plain) and isinstance(other, plain) and (one == other or None in (one, other)):
        return one if one is not None else other
    if isinstance(one, Tensor) != isinstance(other, Tensor) and None in (one, other):
        some = one if other is None else other  # rows that have nothing to remember
        one, other = (torch.zeros_like(some) if x is None else x for x in (one, other))
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        raise UserError(_REFUSED)
    if one.dim() > 1 and one.shape[1] != other.shape[1] and (one.shape[1], other.shape[1]) == widths:
        full = max(widths)
        one, other = (pad(x.movedim(1, -1), (full - x.shape[1], 0)).movedim(-1, 1) for x in (one, other))
    if one.dim() != other.dim() or one.shape[1:] != other.shape[1:]:
        raise UserError(_REFUSED)
    return torch.cat([one, other])

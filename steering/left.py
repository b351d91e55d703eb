"""What is left of a prompt at a block of the decoder, and the masks under which it is read, as functions of tensors alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..scenes.errors import UserError


@dataclass(frozen=True)
class Left:
    """What a block sees of a prompt of `length` positions. places: (B, n) positions that are there, in order; where some were
    sliced away padding goes with them, and a row that has fewer than another begins with -1. seen: (B, n) which of them may
    be seen; apart: (B, n) rows that are none of the others' business.
    """

    places: Tensor
    seen: Tensor
    apart: Tensor
    length: int
    sliced: bool


def left_of(real: Tensor, sliced: Tensor, hidden: Tensor) -> Left:
    """What is left of a prompt: real, sliced, hidden (B, T) bool: no padding, sliced away, there but hidden from the rest."""
    length, seen = real.shape[1], real & ~sliced & ~hidden
    if not sliced.any():
        places = torch.arange(length, device=sliced.device).expand_as(sliced)
        return Left(places, seen, hidden, length, False)
    there = real & ~sliced
    n = int(there.sum(1).max())
    places = there.int().argsort(dim=1, stable=True)[:, length - n :]  # what is out comes first
    there = there.gather(1, places)
    places, apart = torch.where(there, places, -1), hidden.gather(1, places) | ~there
    return Left(places, seen.gather(1, places.clamp(min=0)) & there, apart, length, True)


def rows_at(values: Tensor, places: Tensor, dim: int = 1) -> Tensor:
    """values (B or 1, ..., T at `dim`, ...) at the places of each row."""
    places = places.clamp(min=0).to(values.device)
    batch = len(places)
    values = values.expand(batch, *values.shape[1:])
    if batch == 1:
        return values.index_select(dim, places[0])
    shape = [1] * values.dim()
    shape[0], shape[dim] = places.shape
    sizes = list(values.shape)
    sizes[dim] = places.shape[1]
    return values.gather(dim, places.view(shape).expand(sizes))


def prompt_mask(mask: Tensor | None, left: Left, states: Tensor, *, flat: bool) -> Tensor | None:
    """The mask of a block that reads what is left of a prompt. flat: (B, keys), else (B, 1, queries, keys)."""
    if mask is None:
        if bool(left.seen.all()):
            return None  # causal as before
        if flat:
            return left.seen.to(states.device).long()
        length = left.length
        mask = torch.ones(length, length, dtype=torch.bool, device=states.device).tril()[None, None]
    seen, apart = left.seen.to(mask.device), left.apart.to(mask.device)
    if mask.dim() == 2:
        return rows_at(mask, left.places) * seen.to(mask.dtype)
    room = mask.shape[-1] - left.length  # of a static cache, for what comes
    if room < 0:
        raise UserError("a static cache shorter than the prompt cannot lose positions: leave out cache_implementation")
    mask = mask.expand(len(seen), -1, -1, -1)
    if left.sliced:
        rows = rows_at(mask, left.places, 2)
        columns = rows_at(rows[..., : left.length], left.places, 3)
        mask = pad(columns, (0, left.length - columns.shape[-1] + room), value=_hidden(mask)) if room else columns
    hide = pad(~seen, (0, mask.shape[-1] - seen.shape[1]))[:, None, None] & ~apart[:, None, :, None]
    return mask.masked_fill(hide, _hidden(mask))


def step_mask(left: Left, start, query, keys, offset, window, device, dtype, flat: bool) -> Tensor | None:
    """Additive (B, 1, query, keys) or, flat, (B, keys) of 0 and 1; None where all is seen. `keys` columns from `offset` on of
    what is left of the prompt and what came after it; a static cache has room behind."""
    later = start + query - left.length
    seen = pad(left.seen.to(device), (0, later), value=True)
    end = seen.shape[1]
    column = torch.arange(offset, offset + keys, device=device)
    near = column <= torch.arange(end - query, end, device=device)[:, None]  # (query, keys)
    if window:  # it counts what was there before some were sliced away
        number = torch.arange(left.length, left.length + later, device=device).expand(len(seen), -1)
        number = torch.cat([left.places.to(device), number], 1)
        near = near & (number[:, None, column.clamp(max=end - 1)] > number[:, end - query :, None] - window)
    seen = pad(seen, (0, max(0, offset + keys - end)))[:, offset : offset + keys]
    if flat:
        return None if bool(seen.all()) else seen.long()
    visible = near & seen[:, None]
    if bool(visible.all()):
        return None
    return torch.zeros(visible.shape, device=device, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def _hidden(mask: Tensor):
    return 0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min

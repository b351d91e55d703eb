"""Prefix sharing: both answers of a pair behind one picture and prompt, so that the image tokens are computed once.

A row of the packed batch is the chosen row, and behind it the rejected row from the last token that both have in common:

    picture prompt "a" "red" "dog"   |   "a" "blue" "dog"
    0 ……………………… p  p+1   p+2            p    p+1    p+2      positions
                                         sees the picture and the prompt, not "red dog"

The token that both have in common stands twice, because it predicts two different next tokens. The row of the rejected image
keeps its own prefix, so N pairs make 2N rows. Attention is told by a float mask of four dimensions.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..models.anatomy import Anatomy
from .collator import TOKEN_KEYS
from .losses import IGNORED


def why_not(anatomy: Anatomy) -> str | None:
    """The reason why this model cannot share a prefix between two answers, or None if it can."""
    attention = getattr(anatomy.text_config, "_attn_implementation", None)
    arguments = inspect.signature(anatomy.model.forward).parameters
    kinds = set(anatomy.attention_kinds) - {"full"}
    if kinds:
        return (
            f"{anatomy.family} has layers of {' and '.join(sorted(kinds))} attention, which take no mask of one's own"
        )
    window, longest = getattr(anatomy.text_config, "sliding_window", None), anatomy.max_positions
    if window and (longest is None or window < longest):
        return f"{anatomy.family} looks back over {window} tokens only, which a mask of one's own would lift"
    if "token_type_ids" in arguments:
        return f"{anatomy.family} reads its prompt in both directions"
    if not hasattr(anatomy.decoder, "rotary_emb") or "position_ids" not in arguments:
        return f"{anatomy.family} takes no positions of one's own"
    if attention not in ("sdpa", "eager"):
        return f"attention {attention!r} takes no mask of four dimensions (sdpa and eager do)"
    return None


def pays(batch: dict[str, Tensor], hidden_size: int) -> bool:
    """Whether the packed rows of a batch cost less than the rows: they do unless answers are about as long as what they share.

    The cost of R rows of length T is R T (12 D + 2 T) up to a factor: linear layers, and attention without a causal kernel.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    n, lengths = int((batch["branch"] == 0).sum()), mask.sum(1)
    same = (ids[:n] == ids[n : 2 * n]) & mask[:n] & mask[n : 2 * n]
    shared = same.long().cumprod(1).sum(1)
    width = max(int((lengths[:n] + lengths[n : 2 * n] - shared).max()) + 1, int(lengths.max()))

    def cost(rows: int, width: int) -> int:
        return rows * width * (12 * hidden_size + 2 * width)

    return cost(len(ids) - n, width) < cost(len(ids), int(lengths.max()))


@dataclass(frozen=True)
class PackedRows:
    """tensors: what the model takes for the packed rows, with labels; source: (rows, T-1) int, where in the flattened
    per-token outputs of the packed rows the output of each row's next token is; scored: (rows, T-1) bool."""

    tensors: dict[str, Tensor]
    source: Tensor
    scored: Tensor

    def unpack(self, values: Tensor) -> Tensor:
        """Per-token outputs (2N, T'-1) of the packed rows as those (3N, T-1) of the rows; 0 where nothing is scored."""
        return values.flatten()[self.source].masked_fill(~self.scored, 0)


def pack(batch: dict[str, Tensor], positions: Tensor, dtype: torch.dtype) -> PackedRows:
    """Packs a collator's batch of 2N or 3N right-padded rows.

    positions: (N or 2N, T), or (3, N or 2N, T) for rotary positions of three axes: those of the chosen and the visual rows.
    dtype: of the mask.
    """
    ids, mask, labels = batch["input_ids"], batch["attention_mask"].bool(), batch["labels"]
    n, lengths = int((batch["branch"] == 0).sum()), mask.sum(1).tolist()
    same = (ids[:n] == ids[n : 2 * n]) & mask[:n] & mask[n : 2 * n]
    forks = (same.long().cumprod(1).sum(1) - 1).clamp(min=0).tolist()  # the last column that chosen and rejected share
    alone = list(range(2 * n, len(ids)))

    def joined(values: Tensor, first_of_tail: int | None = None) -> list[Tensor]:
        rows = []
        for i, fork in enumerate(forks):
            tail = values[n + i, fork : lengths[n + i]]
            if first_of_tail is not None:
                tail = torch.cat([tail.new_full((1,), first_of_tail), tail[1:]])
            rows.append(torch.cat([values[i, : lengths[i]], tail]))
        return rows + [values[row, : lengths[row]] for row in alone]

    def padded(rows: list[Tensor], value: int = 0) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value)

    # The copy of the shared token is not scored a second time.
    tensors = {"input_ids": padded(joined(ids)), "labels": padded(joined(labels, IGNORED), IGNORED)}
    tensors |= {name: padded(joined(batch[name])) for name in TOKEN_KEYS if name in batch}
    tensors["position_ids"] = _positions(positions, forks, lengths, n)
    ends = [lengths[i] for i in range(n)] + [lengths[row] for row in alone]
    real = [ends[i] + lengths[n + i] - forks[i] for i in range(n)] + ends[n:]
    tensors["attention_mask"] = _mask(ends, forks + [0] * len(alone), real, dtype, ids.device)

    width, packed_width = ids.shape[1] - 1, tensors["input_ids"].shape[1] - 1
    column = torch.arange(width, device=ids.device)  # the output at this column scores the next token
    source = column.repeat(len(ids), 1)
    for i, fork in enumerate(forks):
        source[n + i] = torch.where(column < fork, column, column - fork + lengths[i])
    row_of = torch.tensor([*range(n), *range(n), *(n + k for k in range(len(alone)))], device=ids.device)
    scored = labels[:, 1:] != IGNORED
    source = (source + row_of[:, None] * packed_width).masked_fill(~scored, 0)
    return PackedRows(tensors, source, scored)


def _positions(positions: Tensor, forks: list[int], lengths: list[int], n: int) -> Tensor:
    """A tail goes on from the position of the shared token: behind it there is text only, so all axes count on by one."""
    rows = []
    for i in range(positions.shape[-2]):
        row = positions[..., i, : lengths[i if i < n else n + i]]
        if i < n:
            fork = forks[i]
            steps = torch.arange(lengths[n + i] - fork, device=row.device)
            row = torch.cat([row, row[..., fork : fork + 1] + steps], -1)
        rows.append(row.movedim(-1, 0))
    return pad_sequence(rows, batch_first=True).movedim(1, -1).movedim(0, -2)


def _mask(ends: list[int], forks: list[int], real: list[int], dtype: torch.dtype, device) -> Tensor:
    """(rows, 1, T, T), 0 where a token may look, the lowest number of the dtype elsewhere. Padding looks at itself."""
    at = torch.arange(max(real), device=device)
    end, fork, last = (torch.tensor(v, device=device)[:, None, None] for v in (ends, forks, real))
    query, key = at[None, :, None], at[None, None, :]
    seen = (key <= query) & (key < last) & ((query < end) | (key < fork) | (key >= end))
    seen |= query == key
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def row_positions(anatomy: Anatomy, batch: dict[str, Tensor]) -> Tensor:
    """The positions the model itself gives to the chosen and the visual rows of a batch with distinct images."""
    n = int((batch["branch"] == 0).sum())
    kept = torch.cat([torch.arange(n), torch.arange(2 * n, len(batch["branch"]))]).to(batch["input_ids"].device)
    rows = {name: batch[name][kept] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in batch}
    grids = {name: value for name, value in batch.items() if name.endswith("grid_thw")}
    indexed = getattr(anatomy.model.base_model, "get_rope_index", None)
    if indexed is not None and grids:
        return indexed(**rows, **grids)[0]
    return torch.arange(rows["input_ids"].shape[1], device=kept.device).repeat(len(kept), 1)

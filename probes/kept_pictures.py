"""A bounded number of pictures with the states of their tokens, drawn by hash: what scores that need predictions are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .keys import Kept

BYTES = 1 << 28


class Held(NamedTuple):
    """Pictures whose states were kept. fold: (N,); x: each bank's (layers, N, T, D); y: (N, T, 2M) targets, then shuffled ones;
    place: (N, T); weight: (N, T) sums to 1 over a picture's tokens, 0 where there is none."""

    fold: Tensor
    x: dict[str, Tensor]
    y: Tensor
    place: Tensor
    weight: Tensor

    def at(self, index: Tensor) -> Held:
        x = {bank: value[:, index] for bank, value in self.x.items()}
        return Held(self.fold[index], x, self.y[index], self.place[index], self.weight[index])


class KeptPictures:
    """Packs pictures into rows of `Kept` and takes them out again. banks: (layers, width) of each set of features."""

    def __init__(self, size: int, tokens: int, banks: dict[str, tuple[int, int]], outputs: int, seed: int):
        self.tokens, self.banks, self.outputs, self.seed = tokens, banks, outputs, seed
        self.columns = sum(layers * width for layers, width in banks.values()) + outputs + 2
        row = tokens * self.columns + 1
        self._kept = Kept(max(2, min(size, BYTES // (4 * row))), row)

    def add(
        self, store: Tensor | None, keys: Tensor, fold: Tensor, x: dict[str, Tensor], y: Tensor, places: Tensor, lengths: Tensor
    ) -> Tensor:  # fmt: skip
        """The store with these pictures offered. keys, fold, lengths: (B,); x: each bank's (layers, R, D) rows of all pictures;
        y: (R, outputs); places: (R,). Of a picture with more tokens than are kept, the same random choice each time."""
        store = self._kept.empty(y.device) if store is None else store
        chosen = self._kept.entering(store, keys)
        if not len(chosen):
            return store
        starts = lengths.cumsum(0) - lengths
        rows = y.new_zeros(len(chosen), 1 + self.tokens * self.columns)
        rows[:, 0] = fold[chosen].to(rows)
        for i, row in zip(chosen.tolist(), rows[:, 1:].unflatten(1, (self.tokens, self.columns)), strict=True):
            start, n = int(starts[i]), int(lengths[i])
            own = slice(start, start + n)
            if n > self.tokens:
                some = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[: self.tokens]
                own, n = (start + some.sort().values).to(y.device), self.tokens
            at = 0
            for bank, (layers, width) in self.banks.items():
                row[:n, at : at + layers * width].view(n, layers, width).copy_(x[bank][:, own].movedim(0, 1))
                at += layers * width
            row[:n, at:-2], row[:n, -2], row[:n, -1] = y[own], places[own].to(y), 1
        return self._kept.add(store, keys[chosen], rows)

    def held(self, store: Tensor) -> Held:
        """What a store, or those of several processes one behind the other, holds."""
        rows = self._kept.rows(store).cpu()
        table = rows[:, 1:].view(len(rows), self.tokens, self.columns)
        x, start = {}, 0
        for bank, (layers, width) in self.banks.items():
            part = table[..., start : start + layers * width]
            x[bank] = part.unflatten(-1, (layers, width)).movedim(2, 0)
            start += layers * width
        there = table[..., -1]
        weight = there / there.sum(1, keepdim=True).clamp(min=1)
        return Held(rows[:, 0].long(), x, table[..., start:-2].double(), table[..., -2].long(), weight.double())

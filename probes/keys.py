"""A number for every sample that depends on nothing but the sample, and a bounded choice of samples by it.

Which samples are kept for a permutation test, or left out together by the jackknife, must not depend on the batch size,
the order of the data or the number of processes. A hash of the sample decides, so it does not.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_HALF = 1 << 24  # an integer below this is exact in fp32


def sample_keys(inputs, mark: Tensor) -> Tensor:
    """(B,) int64 below 2^48, uniform hashes of the samples of a batch.

    Of the id and prompt where `inputs.samples` tells them; else of the row's token ids and of `mark` (B,), a number read
    from the model that tells pictures apart, to three digits (the rest may differ with the batch size).
    """
    samples = getattr(inputs, "samples", None)
    if samples:
        texts = [f"{sample.id}\n{sample.prompt}" for sample in samples]
    else:
        labels = inputs.spans.labels.cpu()
        ids = inputs.tensors["input_ids"].cpu() if "input_ids" in inputs.tensors else labels
        rows = [row[real].tolist() for row, real in zip(ids, labels >= 0, strict=True)]
        texts = [f"{row}\n{number:.2e}" for row, number in zip(rows, mark.tolist(), strict=True)]
    keys = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") for text in texts]
    return torch.tensor(keys, dtype=torch.int64)


class Kept:
    """The rows of the `size` samples with the smallest keys: a uniform choice of samples, whatever their order.

    The store is one flat fp32 tensor of constant size, as reduction over processes and checkpoints need it. A row is two
    halves of the key (infinite where there is no sample yet), then `width` numbers.
    """

    def __init__(self, size: int, width: int):
        self.size, self.width = size, width

    def empty(self, device=None) -> Tensor:
        return torch.full((self.size * (self.width + 2),), torch.inf, device=device)

    def add(self, store: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        """The store with these samples offered: keys (B,), rows (B, width). Changes it in place where it can."""
        table = store.view(-1, self.width + 2)
        if len(table) != self.size:  # stores of several processes, put one behind the other
            table = self._choose(table)
        new_keys = keys.to(torch.float64)
        order = torch.cat([self._keys(table).cpu(), new_keys.cpu()]).argsort(stable=True)[: self.size]
        entering = order[order >= self.size] - self.size
        stays = torch.zeros(self.size, dtype=torch.bool)
        stays[order[order < self.size]] = True
        leaving = torch.nonzero(~stays).flatten().to(table.device)
        halves = torch.stack([keys // _HALF, keys % _HALF], 1)[entering].to(table.device, torch.float32)
        table[leaving, :2] = halves
        table[leaving, 2:] = rows[entering.to(rows.device)].to(table.device, torch.float32)
        return table.view(-1)

    def entering(self, store: Tensor, keys: Tensor) -> Tensor:
        """Indices of the samples (B,) that `add` may take; rows of others need not be made."""
        held = self._keys(store.view(-1, self.width + 2)).sort().values[: self.size]
        return torch.nonzero(keys.cpu() < held[-1]).flatten()

    def rows(self, store: Tensor) -> Tensor:
        """(n, width) rows of the samples kept, by ascending key."""
        table = store.view(-1, self.width + 2)
        keys = self._keys(table)
        first = keys.argsort(stable=True)[: self.size]
        return table[:, 2:][first[keys[first].isfinite()].to(table.device)]

    def _choose(self, table: Tensor) -> Tensor:
        return table[self._keys(table).argsort(stable=True)[: self.size]].contiguous()

    @staticmethod
    def _keys(table: Tensor) -> Tensor:
        return table[:, 0].cpu().double() * _HALF + table[:, 1].cpu().double()

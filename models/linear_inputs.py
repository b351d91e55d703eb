"""The linear layers of the decoder's blocks, and what is read of their inputs: the whole, or sums of squares by span."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from .anatomy import Anatomy
from .spans import Spans


def linear_sites(anatomy: Anatomy) -> dict[str, nn.Linear]:
    """The linears of the decoder's blocks, by the site `blocks.i.in.PATH` at which their input (B, T, in) is read.

    Not among `site_names`, as there are many: only a pattern with `.in.` names them.
    """
    return {
        f"blocks.{i}.in.{path}": module
        for i, block in enumerate(anatomy.blocks)
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }


def square_sites(anatomy: Anatomy) -> dict[str, nn.Linear]:
    """Those whose input is the sequence (keys and values of cross-attention read patches), by the site
    `blocks.i.squares.PATH` at which the squares of that input are read, summed over visual tokens and over text: (B, 2, in),
    fp32. Only a pattern with `.squares.` names them."""
    return {
        site.replace(".in.", ".squares.", 1): module
        for site, module in linear_sites(anatomy).items()
        if anatomy.attention_kinds[int(site.split(".")[1])] != "cross" or not site.endswith(("k_proj", "v_proj"))
    }


class Squares:
    """Sums squares of inputs when a layer sees them, so that none is held longer than the model itself holds it."""

    def __init__(self, spans: Spans):
        self._spans = torch.stack([spans.visual, spans.real & ~spans.mask("image")], 1).float()  # (B, 2, T)
        self._read, self._sums = None, None

    def enter(self, batch: int, n: int, seen: int) -> None:
        """A pass begins over n positions, the last ones of `seen`. What is decoded later than the spans is text."""
        groups = self._spans
        if seen > groups.shape[-1]:
            later = groups.new_tensor([0, 1])[:, None].expand(len(groups), 2, seen - groups.shape[-1])
            groups = torch.cat([groups, later], -1)
        self._groups = groups[..., seen - n :].repeat_interleave(batch // len(groups), 0)
        self._idle = torch.nonzero(self._groups.sum(1) == 0).unbind(1)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, 2, in) of inputs (B, n, in), which may come flattened. q, k and v read one tensor, gate and up another: for the
        tensor that was read last the same sums are given."""
        if self._read is None or self._read() is not x:
            squares = x.float().square().view(*self._groups.shape[::2], -1)
            squares[tuple(at.to(x.device) for at in self._idle)] = (
                0  # padding is NaN after some kernels, and 0 * NaN is too
            )
            self._read, self._sums = weakref.ref(x), self._groups.to(x.device) @ squares
        return self._sums

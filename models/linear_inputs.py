"""The linear layers of the decoder's blocks, and what is read of their inputs: the whole, or sums of squares by span."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from ..scenes.errors import UserError
from .anatomy import Anatomy
from .spans import Spans


def linear_sites(anatomy: Anatomy) -> dict[str, nn.Module]:
    """The linears of the decoder's blocks, by the site `blocks.i.in.PATH` at which their input (B, T, in) is read.

    Not among `site_names`, as there are many: only a pattern with `.in.` names them. A linear that carries an adapter (LoRA) is
    one linear at its own path, the adapter's small matrices are none; its weight is `weight_of`.
    """
    found = {}
    for i, block in enumerate(anatomy.blocks):
        adapted: tuple[str, ...] = ()
        for path, module in block.named_modules():
            if path.startswith(adapted):
                continue
            if has_adapter(module):
                adapted += (f"{path}.",)
            elif not isinstance(module, nn.Linear):
                continue
            found[f"blocks.{i}.in.{path}"] = module
    return found


def has_adapter(module: nn.Module) -> bool:
    """Whether this is a linear that an adapter is wrapped around."""
    return isinstance(getattr(module, "base_layer", None), nn.Linear)


def weight_of(linear: nn.Module) -> Tensor:
    """The weight (out, in) that a linear multiplies its input by: with what an adapter adds to it, which is then a copy.

    Raises UserError for an adapter that adds no matrix (DoRA, IA3 …).
    """
    if not has_adapter(linear):
        return linear.weight
    weight = linear.base_layer.weight
    if linear.merged or linear.disable_adapters:
        return weight
    names = [name for name in linear.active_adapters if name in getattr(linear, "lora_A", ())]
    if not names or any(getattr(linear, "use_dora", {}).values()):
        raise UserError(
            "this adapter is no plain LoRA, so it has no weights to read: merge it (model.merge_and_unload())"
        )
    return weight.detach() + sum(linear.get_delta_weight(name).detach().to(weight) for name in names)


def square_sites(anatomy: Anatomy) -> dict[str, nn.Module]:
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

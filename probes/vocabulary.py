"""What a hidden state says in words: the logit lens, with the entropy and the divergence of what it gives.

Source: Shukor and Cord (arXiv 2405.16700), the vocabulary view; the lens is nostalgebraist's (2020).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

Map = Callable[[Tensor], Tensor]


def decode_states(states: Tensor, unembed: Tensor | Map, norm: Map | None) -> Tensor:
    """The distribution over words that states stand for: softmax(W norm(h)), (..., D) -> (..., V), fp32 (fp64 of fp64).

    states: of the residual stream, before the final norm: the embeddings, or what any block has put out, the last one too.
    norm: the model's final norm. A state that has been through it already (the last of transformers' `hidden_states`, our
    site `final`) must be given with norm=None: normed twice it decodes to something else. unembed: the weight (V, D), or
    the module, whose bias then counts. Half-precision states and weights are widened first.
    """
    return decode_logits(states, unembed, norm).softmax(-1)


def decode_logits(states: Tensor, unembed: Tensor | Map, norm: Map | None) -> Tensor:
    """The logits (..., V) behind `decode_states`."""
    states = states if states.dtype == torch.float64 else states.float()
    normed = states if norm is None else widened(norm, states.dtype)(states)
    if isinstance(unembed, Tensor):
        return nn.functional.linear(normed.to(unembed.device), unembed.to(normed.dtype))
    return widened(unembed, states.dtype)(normed)


def widened(module: Map, dtype: torch.dtype = torch.float32) -> Map:
    """The module as a map of tensors of `dtype` on any device: its parameters are copied where they are of another type."""
    parameters = dict(module.named_parameters()) if isinstance(module, nn.Module) else {}
    devices = {x.device for x in parameters.values() if x.device.type != "meta"}
    if not devices:  # no module, none of its own weights, or weights that a hook fetches when it runs
        return module
    device = devices.pop()
    other = {name: x.to(dtype) for name, x in parameters.items() if x.dtype != dtype}
    if not other:
        return lambda states: module(states.to(device))
    return lambda states: functional_call(module, other, (states.to(device),))


def entropy(p: Tensor) -> Tensor:
    """-sum p log p over the last axis, in nats; a word of probability exactly 0 counts 0. Uniform: ln V."""
    return torch.special.entr(p).sum(-1)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """sum p log(p / q) over the last axis, in nats; words with p = 0 or q = 0 count 0, so that it is always finite."""
    both = (p > 0) & (q > 0)
    ratio = torch.where(both, p, 1).log() - torch.where(both, q, 1).log()
    return torch.where(both, p * ratio, 0).sum(-1)

"""What a layer's attention was handed and gave, next to the same softmax written out."""

from __future__ import annotations

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.models.attention import PREFIX, Call, original, wanting_weights
from chiasm.steering import steer
from chiasm.steering.steer import Edit

from ..models.families import FAMILIES, batch

SEQUENCE = pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mllama"])
"""Families whose pictures are in the sequence."""


class Spy:
    """Keeps the calls of one layer's attention; opened after other interventions it sees what they made."""

    def __init__(self, layer: int):
        self.layer, self.calls = layer, []

    def edits(self, vlm):
        return [Edit(vlm.anatomy.attention(self.layer), attend=self._attend)]

    def _attend(self, plain, where, module, query, key, value, mask, **options):
        with wanting_weights():
            out, weights = plain(module, query, key, value, mask, **options)
        if weights is None:  # nothing was changed
            name = module.config._attn_implementation.removeprefix(PREFIX)
            call = Call(module, query, key, mask, original(name, module), options, None)
            weights = call.rows(torch.arange(query.shape[2]).expand(len(query), -1))
        self.calls.append((query, key, value, out, weights, options))
        return out, weights


def spied(vlm, inputs, layer: int, *interventions):
    """The call of a layer in one forward pass under the interventions."""
    spy = Spy(layer)
    with steer(vlm, *interventions, spy), torch.no_grad():
        vlm.forward(inputs, use_cache=False)
    assert len(spy.calls) == 1
    return spy.calls[0]


def plant_sink(model, token: int = 1, dim: int = 7):
    """The model with a first token (tiny models' "bos") whose state is large in one dimension all the way up."""
    model.get_input_embeddings().weight.data[token, dim] += 50
    return model


def scores(call, row: int, query: int, keys: torch.Tensor) -> torch.Tensor:
    """(H, K) in fp64: what one query of one row scores the keys given, before the softmax."""
    q, k, _, _, _, options = call
    scale = options.get("scaling") or q.shape[-1] ** -0.5
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    z = torch.einsum("hd,hkd->hk", q[row, :, query].double(), k[row][:, keys].double()) * scale
    cap = options.get("softcap")
    return cap * torch.tanh(z / cap) if cap else z


def mixed(call, row: int, weights: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(H, d): the values at these keys under weights (H, K)."""
    q, _, v = call[:3]
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return torch.einsum("hk,hkd->hd", weights, v[row][:, keys].double())


def narrow(model, width: int):
    """The model with a sliding window of so many keys."""
    model.get_decoder().config.sliding_window = width
    for module in model.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = width
    return model


def last_layer(vlm) -> int:
    return vlm.anatomy.n_layers - 1  # softmax attention in every family


def tiny(name: str, side: str = "left"):
    """A family with a planted sink, a padded batch of two rows, and the rows alone."""
    model, tensors, rows = batch(name, side)
    vlm = open_vlm(model=plant_sink(model))
    return vlm, vlm.from_tensors(**tensors), [vlm.from_tensors(**one) for one in rows]

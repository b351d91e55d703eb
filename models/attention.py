"""Attention statistics without T x T: the mass each query gives to groups of keys, from one more fused attention call.

softmax(QK) V is linear in V. Running the same kernel again with V replaced by 0/1 group indicators gives, for every head
and query, exactly the attention mass on each group, in memory O(T * groups). The registered function is a wrapper around
the implementation the model had: it changes nothing in the output, and records only for the thread that asked.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "chiasm_"


class MassReader(Protocol):
    """Who records masses: says which groups the keys of a module belong to, and takes the result."""

    def groups(self, module: nn.Module, query: Tensor, key: Tensor) -> Tensor | None:
        """(B, Tk, G) indicators of each key's groups, or None to leave this module alone."""

    def take(self, module: nn.Module, mass: Tensor) -> None:
        """Receives (B, H, Tq, G), fp32."""


_readers: ContextVar[tuple[MassReader, ...]] = ContextVar("chiasm_mass_readers", default=())


def attention_mass(
    attend: Callable, module: nn.Module, query: Tensor, key: Tensor, groups: Tensor, mask: Tensor | None, **options
) -> Tensor:
    """Mass (B, H, Tq, G), fp32, that each query gives to each group of keys.

    `attend` is any attention function of transformers' registry; query (B, H, Tq, d), key (B, Hkv, Tk, d) are what the
    model hands to it (after rotary embedding and query/key norms), groups (B, Tk, G). Half precision is widened for this
    call only: the model's own output is not touched. Source: linearity of attention in V.
    """
    if query.dtype != torch.float32:
        query, key = query.float(), key.float()
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
    size = key.shape[-1]
    masses = []
    for columns in groups.split(size, dim=-1):  # a kernel takes values no wider than the head
        values = pad(columns.to(key.dtype), (0, size - columns.shape[-1]))[:, None].expand(-1, key.shape[1], -1, -1)
        out, _ = attend(module, query, key, values, mask, **options)  # (B, Tq, H, d)
        masses.append(out[..., : columns.shape[-1]].transpose(1, 2))
    return masses[0] if len(masses) == 1 else torch.cat(masses, -1)


def _wrap(name: str) -> Callable:
    """The attention function `name` with recording; the argument names are those transformers passes by keyword."""

    def recording_attention(module, query, key, value, attention_mask, **kwargs):
        attend = original(name, module)
        out, weights = attend(module, query, key, value, attention_mask, **kwargs)
        for reader in _readers.get():
            groups = reader.groups(module, query, key)
            if groups is None:
                continue
            if weights is not None:  # eager has the probabilities already
                reader.take(module, weights.float() @ groups[:, None].float())
            else:
                kwargs["dropout"] = 0.0  # a second call would draw another dropout mask
                reader.take(module, attention_mass(attend, module, query, key, groups, attention_mask, **kwargs))
        return out, weights

    return recording_attention


def original(name: str, module: nn.Module) -> Callable:
    """The attention function that transformers would call: "eager" lives in each model's own file."""
    if name != "eager":
        return ALL_ATTENTION_FUNCTIONS[name]
    return sys.modules[type(module).__module__].eager_attention_forward


def _register(name: str) -> str:
    wrapped = PREFIX + name
    if wrapped not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(wrapped, _wrap(name))
        # Without its mask function a registered attention silently loses padding, prefix and window masks.
        AttentionMaskInterface.register(wrapped, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return wrapped


class _Switch:
    """Routes a model's language attention through the recording wrapper while anyone records on it."""

    def __init__(self, model: PreTrainedModel):
        self.config = model.get_decoder().config if hasattr(model, "get_decoder") else model.config.get_text_config()
        self.lock, self.users, self.previous = threading.Lock(), 0, ""

    def enter(self) -> None:
        with self.lock:
            if self.users == 0:
                self.previous = self.config._attn_implementation
                # The whole tower at once (a single layer switched would be handed another layer's mask), and by the
                # config attribute that every layer reads, which costs nothing per batch.
                self.config._attn_implementation = _register(self.previous)
            self.users += 1

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.config._attn_implementation = self.previous


_switches: WeakKeyDictionary[PreTrainedModel, _Switch] = (
    WeakKeyDictionary()
)  # beside the model, so that it stays copyable


@contextmanager
def recording_mass(model: PreTrainedModel, reader: MassReader) -> Iterator[None]:
    """While open, `reader` is given the masses of every attention call this thread makes in the language model."""
    switch = _switches.setdefault(model, _Switch(model))
    switch.enter()
    token = _readers.set((*_readers.get(), reader))
    try:
        yield
    finally:
        _readers.reset(token)
        switch.leave()

"""Attention statistics without T x T, from the queries and keys that the model hands to its attention function.

The registered function is a wrapper around the implementation the model had: it changes nothing in the output, and shows
each call only to the thread that asked. Of a call can be had, exactly: the mass on groups of keys (softmax(QK) V is linear
in V, so the same kernel run again with V replaced by 0/1 group indicators gives it in memory O(T * groups)), the rows of a
few queries (O(rows * T)), and the attention each key receives (a softmax over blocks of queries).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..scenes.errors import UserError

PREFIX = "chiasm_"

_BLOCK = 1 << 22
"""Numbers of a block of probabilities, where they are summed block by block (16 MB)."""


@dataclass(frozen=True)
class Call:
    """One attention call: query (B, H, Tq, d) and key (B, Hkv, Tk, d) after rotary embedding and norms, the mask as the
    model made it, and the probabilities (B, H, Tq, Tk) where the implementation is eager and has them."""

    module: nn.Module
    query: Tensor
    key: Tensor
    mask: Tensor | None
    attend: Callable
    options: dict
    weights: Tensor | None

    def mass(self, groups: Tensor) -> Tensor:
        """Mass (B, H, Tq, G), fp32, that each query gives to each group of keys; groups (B, Tk, G)."""
        if self.weights is not None:
            return self.weights.float() @ groups[:, None].float()
        options = self.options | {"dropout": 0.0}  # a second call would draw another dropout mask
        return attention_mass(self.attend, self.module, self.query, self.key, groups, self.mask, **options)

    def rows(self, at: Tensor) -> Tensor:
        """Attention (B, H, Q, Tk), fp32, of the queries at (B, Q); a query that may see nothing gives 0."""
        if self.weights is not None:
            return _taken(self.weights, at).float()
        logits = self.logits(at)
        return logits.softmax(-1).masked_fill((logits == -torch.inf).all(-1, keepdim=True), 0)

    def logits(self, at: Tensor) -> Tensor:
        """What the softmax is of: (B, H, Q, Tk), fp32, masked keys -inf or as low as the mask says; at (B, Q)."""
        n_groups, n_keys, size = self.key.shape[1:]
        chosen = _taken(self.query, at).float()
        scale = self.options.get("scaling")
        chosen = chosen.unflatten(1, (n_groups, -1)) * (size**-0.5 if scale is None else scale)
        heads = chosen.shape[2:4]  # query heads of one key head, queries: one product, or each head would copy its keys
        logits = chosen.flatten(2, 3) @ self.key.float().transpose(-1, -2)
        logits = logits.unflatten(2, heads).flatten(1, 2)
        if cap := self.options.get("softcap"):
            logits = cap * torch.tanh(logits / cap)
        if isinstance(self.mask, Tensor) and self.mask.dim() == 4:
            mask = _taken(self.mask.expand(len(at), -1, -1, -1), at)[..., :n_keys]
            return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
        return logits.masked_fill(~self._plainly_visible(at), -torch.inf)

    def received(self, queries: Tensor) -> Tensor:
        """(B, H, Tk), fp32: the attention that each key gets from all others, summed over the queries where `queries`
        (B, Tq) is true; self-attention only, as a key's attention to itself is left out."""
        batch, heads, length, _ = self.query.shape
        step = max(1, _BLOCK // (batch * heads * length))
        total = self.query.new_zeros(batch, heads, length, dtype=torch.float32)
        for block in torch.arange(length, device=self.query.device).split(step):
            rows = self.rows(block.expand(batch, -1)) * queries[:, None, block, None]
            total += rows.sum(2)
            total[..., block] -= rows.diagonal(int(block[0]), 2, 3)
        return total

    def visible(self) -> Tensor | None:
        """(B or 1, Tq, Tk) which key each query may see, from a mask over both; None where there is no such mask."""
        if not isinstance(self.mask, Tensor) or self.mask.dim() != 4:
            return None
        mask = self.mask[:, 0, :, : self.key.shape[2]]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2

    def _plainly_visible(self, at: Tensor) -> Tensor:
        """(B, 1, Q, Tk) where the implementation masks by itself: causality, a window, padded keys (flash: mask (B, Tk))."""
        if self.mask is not None and not (isinstance(self.mask, Tensor) and self.mask.dim() == 2):
            raise UserError(
                f"rows of attention cannot be read under a mask of type {type(self.mask).__name__}: open the model with "
                'attn_implementation="sdpa"'
            )
        n_queries, n_keys = self.query.shape[2], self.key.shape[2]
        keys = torch.arange(n_keys, device=at.device)
        # sdpa's own causal mask starts at the first key (a static cache has room behind), flash's ends at the last
        start = 0 if self.attend is ALL_ATTENTION_FUNCTIONS["sdpa"] else n_keys - n_queries
        place = (at + start)[:, None, :, None]
        causal = self.options.get("is_causal")
        causal = getattr(self.module, "is_causal", True) if causal is None else causal
        seen = (keys <= place) if causal and n_queries > 1 else torch.ones_like(keys <= place)
        if window := self.options.get("sliding_window"):
            seen &= keys > place - window
        return seen if self.mask is None else seen & self.mask[:, None, None, -n_keys:].bool()


def _taken(values: Tensor, at: Tensor) -> Tensor:
    """(B, H, Tq, ...) values of the queries at (B, Q): (B, H, Q, ...), row by row as a whole."""
    return values.transpose(1, 2)[torch.arange(len(at), device=at.device)[:, None], at].transpose(1, 2)


class Reader(Protocol):
    """Who reads attention: is shown every call of this thread in the part of the model that it asked for."""

    def see(self, call: Call) -> None: ...


_readers: ContextVar[tuple[Reader, ...]] = ContextVar("chiasm_attention_readers", default=())


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


class Editor(Protocol):
    """Who changes attention: has the function that attends, and may call it otherwise than the model would have."""

    def attend(self, attend: Callable, module: nn.Module, query, key, value, mask, **options) -> tuple: ...


_editors: ContextVar[tuple[Editor, ...]] = ContextVar("chiasm_attention_editors", default=())


_wanted: ContextVar[bool] = ContextVar("chiasm_weights_wanted", default=False)


def is_read() -> bool:
    """Whether somebody reads this thread's attention: an editor that makes weights of its own must then return them."""
    return bool(_readers.get()) or _wanted.get()


@contextmanager
def wanting_weights() -> Iterator[None]:
    """While open, editors return the weights they used, as for a reader: one editor asks another one so."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def _wrap(name: str) -> Callable:
    """The attention function `name` with editing and reading; the argument names are those transformers passes by keyword."""

    def read_attention(module, query, key, value, attention_mask, **kwargs):
        attend = plain = original(name, module)
        for editor in _editors.get():  # the last one is outermost: it changes what the others have made
            attend = partial(editor.attend, attend)
        out, weights = attend(module, query, key, value, attention_mask, **kwargs)
        for reader in _readers.get():
            reader.see(Call(module, query, key, attention_mask, plain, kwargs, weights))
        return out, weights

    return read_attention


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


_lock = threading.Lock()
_routed: dict[int, list] = {}
"""Of every config that is routed through the wrapper now: itself, the implementation it had, and how many read."""


def decoder_config(model: PreTrainedModel):
    """The config whose attention implementation the language model goes by."""
    return model.get_decoder().config if hasattr(model, "get_decoder") else model.config.get_text_config()


@contextmanager
def reading_attention(config, reader: Reader) -> Iterator[None]:
    """While open, `reader` is shown every attention call this thread makes in the tower with this config."""
    with _routing(config), _among(_readers, reader):
        yield


@contextmanager
def editing_attention(config, editor: Editor) -> Iterator[None]:
    """While open, this thread's attention calls in the tower with this config go through `editor.attend`."""
    with _routing(config), _among(_editors, editor):
        yield


@contextmanager
def _among(holders: ContextVar[tuple], holder) -> Iterator[None]:
    token = holders.set((*holders.get(), holder))
    try:
        yield
    finally:
        holders.reset(token)


@contextmanager
def _routing(config) -> Iterator[None]:
    """While open, the tower with this config attends through the wrapper.

    The whole tower at once (a single layer switched would be handed another layer's mask), and by the config attribute
    that every layer reads, which costs nothing per batch. Several threads may be inside; the last one restores.
    """
    with _lock:
        entry = _routed.setdefault(id(config), [config, config._attn_implementation, 0])
        if entry[2] == 0:
            config._attn_implementation = _register(entry[1])
        entry[2] += 1
    try:
        yield
    finally:
        with _lock:
            entry[2] -= 1
            if entry[2] == 0:
                config._attn_implementation = entry[1]
                del _routed[id(config)]

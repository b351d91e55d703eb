"""Changing a model at inference: a context that applies interventions to the passes of one thread, and restores the model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..models.attention import decoder_config, editing_attention
from ..models.inputs import marker_ids
from ..models.passes import told
from ..models.spans import find_spans
from .where import Where, repeated


@dataclass(frozen=True)
class Edit:
    """What an intervention does at one module, in every pass of the decoder.

    after(output, where) -> output, of the module's first output tensor. before(args, kwargs, where) -> (args, kwargs).
    attend(attend, where, module, query, key, value, mask, **options) -> (output, weights), of an attention module: in place of
    the function that attends, which it is given; where `attention.is_read()` it must return the weights it used.
    during() -> a context that is open as long as the steering is: for what has to be read before the decoder begins.
    """

    module: nn.Module
    after: Callable[[Tensor, Where], Tensor] | None = None
    before: Callable[[tuple, dict, Where], tuple[tuple, dict]] | None = None
    attend: Callable[..., tuple] | None = None
    during: Callable[[], AbstractContextManager] | None = None


class Intervention(Protocol):
    """A change at inference. `edits` checks it against a model, raises UserError where it does not apply, and says what it
    does where. It keeps no state: what a generation has to remember goes into `Where.memory`."""

    def edits(self, vlm) -> Sequence[Edit]: ...


_active: ContextVar[tuple[Session, ...]] = ContextVar("chiasm_steering", default=())
_pass: ContextVar[Where | None] = ContextVar("chiasm_pass", default=None)
_ids: ContextVar[tuple[Tensor, Tensor | None] | None] = ContextVar("chiasm_ids", default=None)


@contextmanager
def steer(vlm, *interventions: Intervention) -> Iterator[None]:
    """While open, the passes that this thread makes through the model are changed, in the order given; contexts may be nested,
    the outer one acts first. Works in `forward`, `trace`, `generate` with all its options, and `stream`.

    Other threads see the model as it is; when the last context closes no hook is left and no weight was touched. Sites are
    read after the change, also by recorders that were there before. Raises UserError, before anything is changed, for an
    intervention that this model has no place for.
    """
    session = Session(vlm, [edit for one in interventions for edit in one.edits(vlm)])
    with ExitStack() as stack:
        for open_context in session.during:
            stack.enter_context(open_context())
        for module, kind in session.places():
            stack.enter_context(_hooked(module, kind))
        stack.enter_context(_watched(vlm))
        if session.attention:
            stack.enter_context(editing_attention(decoder_config(vlm.anatomy.model), session))
        token = _active.set((*_active.get(), session))
        stack.callback(_active.reset, token)
        yield


class Session:
    """The edits of one `steer`, by module."""

    def __init__(self, vlm, edits: Sequence[Edit]):
        self.decoder = vlm.anatomy.decoder
        self.around: dict[tuple[int, str], list[Callable]] = {}
        self.attention: dict[int, list[Callable]] = {}
        self.during = [edit.during for edit in edits if edit.during is not None]
        self._modules = {id(edit.module): edit.module for edit in edits}
        for edit in edits:
            for kind in ("before", "after"):
                if (change := getattr(edit, kind)) is not None:
                    self.around.setdefault((id(edit.module), kind), []).append(change)
            if edit.attend is not None:
                self.attention.setdefault(id(edit.module), []).append(edit.attend)

    def places(self) -> list[tuple[nn.Module, str]]:
        """What has to be hooked; the decoder's own input is changed by the hook that tells its passes apart, after it."""
        own = (id(self.decoder), "before")
        return [(self._modules[key], kind) for key, kind in self.around if (key, kind) != own]

    def attend(self, attend, module, query, key, value, mask, **options):
        """As an `attention.Editor`: this session's changes of attention, the first one innermost."""
        for change in self.attention.get(id(module), ()):
            attend = _bound(change, attend, _pass.get())
        return attend(module, query, key, value, mask, **options)


def _bound(change: Callable, attend: Callable, where: Where) -> Callable:
    return lambda module, query, key, value, mask, **options: change(
        attend, where, module, query, key, value, mask, **options
    )


# -- hooks: one a module however many sessions there are, so that the order is that of the contexts -----------------------

_lock = threading.Lock()
_hooks: dict[tuple[int, str], list] = {}
"""Of every module that is hooked now, and how: the handle, and how many sessions need it."""


@contextmanager
def _hooked(module: nn.Module, kind: str) -> Iterator[None]:
    with _counted(module, kind, _REGISTER[kind]):
        yield


@contextmanager
def _counted(module: nn.Module, kind: str, register: Callable) -> Iterator[None]:
    key = (id(module), kind)
    with _lock:
        entry = _hooks.setdefault(key, [None, 0])
        if entry[1] == 0:
            entry[0] = register(module)
        entry[1] += 1
    try:
        yield
    finally:
        with _lock:
            entry[1] -= 1
            if entry[1] == 0:
                entry[0].remove()
                del _hooks[key]


def _after(module: nn.Module, _args, output):
    changed = None
    for session in _active.get():
        for change in session.around.get((id(module), "after"), ()):
            value = output if changed is None else changed
            first = value[0] if isinstance(value, tuple) else value
            new = change(first, _pass.get())
            changed = (new, *value[1:]) if isinstance(value, tuple) else new
    return changed  # None leaves the output as it is


def _before(module: nn.Module, args, kwargs):
    changed = False
    for session in _active.get():
        for change in session.around.get((id(module), "before"), ()):
            args, kwargs = change(args, kwargs, _pass.get())
            changed = True
    return (args, kwargs) if changed else None


# prepended: recorders that were there before must see what later blocks see
_REGISTER = {
    "after": lambda module: module.register_forward_hook(_after, prepend=True),
    "before": lambda module: module.register_forward_pre_hook(_before, prepend=True, with_kwargs=True),
}


# -- which pass this is ------------------------------------------------------------------------------------------------


@contextmanager
def _watched(vlm) -> Iterator[None]:
    """While open, the decoder's passes are told apart: prompts from decoding steps, and what each position is."""
    anatomy = vlm.anatomy

    def begin(module, args, kwargs):
        if not _active.get():
            return None
        states = kwargs.get("inputs_embeds")
        states = kwargs.get("input_ids", args[0] if args else None) if states is None else states
        cache = kwargs.get("past_key_values")
        start = int(cache.get_seq_length()) if cache is not None else 0
        memory = remembered(cache, start)
        start += memory.get("dropped", 0)  # positions that an intervention took out before the first block
        if "spans" not in memory:
            memory["spans"], memory["changed"] = _described(vlm, len(states), start)
        now = told()
        changed = now.changed if now is not None else memory["changed"]
        _pass.set(Where(memory["spans"], start, states.shape[1], len(states), changed, memory))
        return _before(module, args, kwargs)

    with ExitStack() as stack:
        stack.enter_context(_counted(anatomy.model, "ids", _see_ids))
        stack.enter_context(
            _counted(
                anatomy.decoder, "pass", lambda m: m.register_forward_pre_hook(begin, prepend=True, with_kwargs=True)
            )
        )
        yield


def _see_ids(model: nn.Module):
    def see(_module, args, kwargs):
        if _active.get():
            ids = kwargs.get("input_ids", args[0] if args else None)
            _ids.set(None if ids is None else (ids, kwargs.get("attention_mask")))

    return model.register_forward_pre_hook(see, prepend=True, with_kwargs=True)


_memories: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""What a generation has to remember, by its cache: it goes with it."""


def remembered(cache, start: int) -> dict:
    """The memory of the generation that this cache is of; a new one for an empty cache and for none."""
    if cache is None:
        return {}
    if start == 0:
        _memories[cache] = {}
    return _memories.setdefault(cache, {})


def remember(cache, memory: dict) -> None:
    """Says what the generation with this cache has to remember, where a cache was made of others."""
    _memories[cache] = memory


def _described(vlm, batch: int, start: int):
    """(spans or None, changed or None) of a prompt: as the thread was told, else from the ids the model was called with."""
    if (now := told()) is not None:
        return repeated(now.spans, batch), now.changed
    seen = _ids.get()
    _ids.set(None)  # of this pass alone: a decoder that is called by itself has no ids
    if seen is None or len(seen[0]) != batch:
        return None, None
    ids, mask = seen
    if start:  # nobody was there when the prompt was read, so it is text
        ids = ids.new_full((batch, start), -1)
    mask = torch.ones_like(ids) if mask is None or mask.dim() != 2 else mask[:, : ids.shape[1]]
    anatomy = vlm.anatomy
    markers = marker_ids(vlm.writer.tokenizer if vlm.writer else None, anatomy)
    return find_spans(ids, mask, anatomy.image_token_id, **markers, in_sequence=anatomy.image_in_sequence), None

"""Hooks that put modality learners into the passes of one thread: behind attention's residual add, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from ..models.anatomy import Anatomy
from ..models.attention import Call, decoder_config, reading_attention
from ..models.passes import told
from ..models.spans import find_spans
from ..scenes.errors import UserError
from .wing_pass import WingPass, kinds_of, kinds_of_pass, remembered

_session: ContextVar[Session | None] = ContextVar("chiasm_wings", default=None)


@contextmanager
def attached(wings, anatomy: Anatomy, markers: dict, ids: tuple[Tensor, Tensor | None] | None = None) -> Iterator[None]:
    """While open, this thread's passes through the model go through the learners of `wings`; see `Wings.attached`.

    markers: as `marker_ids` gives them. ids: input ids and mask of a pass that has begun already.
    """
    if _session.get() is not None:
        raise UserError("learners are attached already: leave that context first")
    session = Session(wings, anatomy, markers, ids)
    with ExitStack() as stack:
        session.hook(stack)
        if wings.config.router is not None:
            stack.enter_context(reading_attention(decoder_config(anatomy.model), session))
        token = _session.set(session)
        stack.callback(_session.reset, token)
        yield


def open_wings():
    """The learners that this thread's passes go through, None for none."""
    session = _session.get()
    return None if session is None else session.wings


class Session:
    """One attachment: the pass that is being made, and the hooks that follow it."""

    def __init__(self, wings, anatomy: Anatomy, markers: dict, ids: tuple[Tensor, Tensor | None] | None):
        self.wings, self.anatomy, self.markers, self.ids = wings, anatomy, markers, ids
        self.layer_of = {id(anatomy.attention(i)): i for i in wings.layers}
        self.now: WingPass | None = None
        self.stream: Tensor | None = None
        self.weights: Tensor | None = None

    def hook(self, stack: ExitStack) -> None:
        anatomy = self.anatomy

        def before(module, act):
            # prepended: recorders that are there already must see what later blocks see
            handle = module.register_forward_pre_hook(
                lambda _m, args, kwargs: act(args, kwargs) if _session.get() is self else None,
                prepend=True,
                with_kwargs=True,
            )
            stack.callback(handle.remove)

        for i in self.wings.layers:
            before(anatomy.blocks[i], lambda args, kwargs, i=i: self._enter(i, args, kwargs))
            handle = added(anatomy.blocks[i]).register_forward_hook(
                lambda _m, _a, output, i=i: self._add(i, output) if _session.get() is self else None, prepend=True
            )
            stack.callback(handle.remove)
        before(anatomy.blocks[0], self._begin)  # prepended last, so first
        before(anatomy.model, self._see_ids)

    def see(self, call: Call) -> None:
        """As a reader of attention: the router of this layer is asked, before the layer's output is changed."""
        layer = self.layer_of.get(id(call.module))
        if layer is not None:
            self.weights = self.wings.learners[str(layer)]["router"](call, self.now)

    def _see_ids(self, args, kwargs) -> None:
        self.ids = seen_ids(args, kwargs)

    def _begin(self, args, kwargs) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get("past_key_values")
        start = int(cache.get_seq_length()) if cache is not None else 0
        kinds = kinds_of_pass(self._prompt(start), start, *states.shape[:2]).to(states.device)
        features, kinds = remembered(cache, states, kinds, self.anatomy.n_layers)
        self.now = WingPass(features, kinds, states.shape[1], self.wings.config.legacy_mask)

    def _prompt(self, start: int) -> Tensor | None:
        """(B, T) kinds of the prompt's positions, None in a decoding step whose prompt nobody told."""
        seen, self.ids = self.ids, None  # of this pass alone
        if (now := told()) is not None:
            return kinds_of(now.spans)
        if start:
            return None
        if seen is None:
            raise UserError(
                "nobody told what the decoder reads: call vlm.forward or vlm.generate, or the model with input_ids"
            )
        ids, mask = seen
        mask = torch.ones_like(ids) if mask is None or mask.dim() != 2 else mask[:, : ids.shape[1]]
        return kinds_of(find_spans(ids, mask, self.anatomy.image_token_id, **self.markers))

    def _enter(self, layer: int, args, kwargs) -> None:
        block = self.anatomy.blocks[layer]
        if block.training and getattr(block, "gradient_checkpointing", False):
            raise UserError(
                "learners cannot follow gradient checkpointing, which runs layers again out of order: "
                "call model.gradient_checkpointing_disable()"
            )
        self.stream = args[0] if args else kwargs["hidden_states"]

    def _add(self, layer: int, output):
        first = output[0] if isinstance(output, tuple) else output
        change = self.wings.blend(layer, self.stream + first, self.now, self.weights)
        first = first + change.to(first)
        return (first, *output[1:]) if isinstance(output, tuple) else first


def seen_ids(args, kwargs) -> tuple[Tensor, Tensor | None] | None:
    """Input ids and attention mask among what a model is called with."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    return None if ids is None else (ids, kwargs.get("attention_mask"))


def added(block: nn.Module) -> nn.Module:
    """The module whose output a block adds to the stream for attention: attention, or the norm behind it (Gemma)."""
    return block.post_attention_layernorm if hasattr(block, "pre_feedforward_layernorm") else block.self_attn

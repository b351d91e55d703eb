"""The prompt read with its picture, once, and what a negative branch is made of from it without reading the picture again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..models.inputs import Inputs
from ..models.passes import telling
from ..models.trace import Trace
from ..models.vlm import VLM
from ..scenes.errors import UserError
from .branches import CROSS, Branch, check_cache, left_padded, new_cache, read, spans_at

_capturing: ContextVar[tuple[Capture, ...]] = ContextVar("chiasm_capturing", default=())


@dataclass
class Capture:
    """What the decoder and the resampler (where query tokens read the picture) are handed in one pass, and what the decoder
    makes of it. set_decoder: arguments put in the place of the model's own."""

    anatomy: object
    set_decoder: dict = field(default_factory=dict)
    decoder: dict = field(default_factory=dict)
    states: Tensor | None = None
    resampler: dict = field(default_factory=dict)

    @contextmanager
    def __call__(self) -> Iterator[Capture]:
        """While open, passes of this thread are captured."""

        def handed(_module, args, kwargs):  # no family in the table hands anything by position
            if self in _capturing.get():
                self.decoder = kwargs | self.set_decoder
                return args, self.decoder

        def made(_module, _args, output):
            if self in _capturing.get():
                self.states = output.last_hidden_state[:, -1]

        def resampled(module, args, kwargs):
            if self in _capturing.get():
                self.resampler = inspect.signature(module.forward).bind(*args, **kwargs).arguments
                self.resampler |= self.resampler.pop("kwargs", {})

        with ExitStack() as stack:
            for hook in (
                # prepended, so that it is what the model hands over, before interventions that are open already
                self.anatomy.decoder.register_forward_pre_hook(handed, with_kwargs=True, prepend=True),
                self.anatomy.decoder.register_forward_hook(made),
            ):
                stack.callback(hook.remove)
            if (module := resampler(self.anatomy)) is not None:
                stack.callback(module.register_forward_pre_hook(resampled, with_kwargs=True).remove)
            token = _capturing.set((*_capturing.get(), self))
            stack.callback(_capturing.reset, token)
            yield self

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def resampler(anatomy) -> nn.Module | None:
    """The module whose query tokens read the patches, None where patches enter the sequence themselves."""
    return getattr(anatomy.model, "qformer", None) or getattr(anatomy.projector, "perceiver_resampler", None)


@dataclass
class Prefill:
    """A prompt that the decoder has read: the inputs, what was captured, and the sites that were asked for.

    steered: whether interventions act on this pass; then they must leave the branches made of it alone.
    """

    vlm: object
    inputs: Inputs
    seen: Capture
    trace: Trace | None
    steered: bool = False

    @property
    def anatomy(self):
        return self.vlm.anatomy

    @property
    def embeds(self) -> Tensor:
        """(B, T, D) what the decoder was handed."""
        embeds = self.seen.decoder.get("inputs_embeds")
        if embeds is None:
            embeds = self.anatomy.model.get_input_embeddings()(self.seen.decoder["input_ids"])
        return embeds

    @property
    def mask(self) -> Tensor:
        return self.inputs.tensors["attention_mask"]

    @property
    def positions(self) -> Tensor:
        """(B, T) or (axes, B, T)."""
        given = self.seen.decoder.get("position_ids")
        return (self.mask.long().cumsum(1) - 1).clamp(min=0) if given is None else given

    def changed(self, acts: bool) -> Tensor | None:
        if not self.steered:
            return None
        return torch.full((len(self.mask),), acts, device=self.mask.device)

    # -- branches ------------------------------------------------------------------------------------------------------

    def positive(self) -> Branch:
        return self._branch(self.seen, self.mask, acts=True)

    def kept(self, kept: Sequence[Tensor], *, positions: str) -> Branch:
        """The same prompt with these positions only, in this order: per row a list (n,). positions: "packed", counted anew,
        or "original", those that each of them had. Read by the decoder alone."""
        index, real = left_padded(list(kept))
        rows, given = torch.arange(len(index), device=index.device)[:, None], self.positions
        if positions == "packed":
            first = given[..., rows[:, 0], self.mask.argmax(1)][..., None]
            places = first + (real.long().cumsum(1) - 1).clamp(min=0)
        else:
            places = given[..., rows, index]
        call = {
            "inputs_embeds": self.embeds[rows, index], "position_ids": places,
            "attention_mask": self._kept_mask(self.seen.decoder.get("attention_mask"), index, real),
        } | self._kept_features(index, real)  # fmt: skip
        return self._read(call, spans_at(self.inputs.spans, index, real), real.to(self.mask.dtype))

    def changed_in_place(self, **changes) -> Branch:
        """The same prompt, position by position, with other arguments to the decoder. Read by the decoder alone."""
        call = {name: value for name, value in self.seen.decoder.items() if value is not None} | changes
        if "inputs_embeds" in call:
            call.pop("input_ids", None)
        return self._read(call, self.inputs.spans, self.mask)

    def other_pictures(self, tensors: dict) -> Branch:
        """The same prompt read anew, vision tower and all, with other pixels."""
        model = self.vlm.model
        options = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(self.anatomy.model.forward).parameters:
            options["logits_to_keep"] = 1
        places = {"position_ids": self.positions, "past_key_values": new_cache(self.anatomy)}
        with Capture(self.anatomy, places)() as seen, telling(self.inputs.spans, self.changed(False)):
            model(**tensors, **options)
        return self._branch(seen, self.mask, acts=False)

    def _read(self, call: dict, spans, mask: Tensor) -> Branch:
        call |= {"past_key_values": new_cache(self.anatomy)}
        call = {
            name: value for name, value in call.items() if name not in ("use_cache", "logits_to_keep", "return_dict")
        }
        with telling(spans, self.changed(False)):
            states = read(self.anatomy, **call)
        made = Capture(self.anatomy, decoder=call, states=states)
        return self._branch(made, mask, acts=False, spans=spans)

    def _branch(self, seen: Capture, mask: Tensor, *, acts: bool, spans=None) -> Branch:
        places = seen.decoder.get("position_ids")
        places = self.positions if places is None else places
        cross = {name: seen.decoder[name][:, :, -1:] for name in CROSS if seen.decoder.get(name) is not None}
        return Branch(
            self.anatomy, seen.decoder["past_key_values"], mask, places[..., -1:] + 1, spans or self.inputs.spans,
            self.anatomy.unembed(seen.states), self.changed(acts), cross,
        )  # fmt: skip

    # -- what goes with the positions kept -----------------------------------------------------------------------------

    def _kept_mask(self, given, index: Tensor, real: Tensor):
        """The attention mask among the positions kept. Families with pictures read in both directions hand the decoder masks
        over queries and keys; in these rows and columns are picked, and windows counted anew."""
        if isinstance(given, dict):
            masks = {name: self._kept_mask(mask, index, real) for name, mask in given.items()}
            if (
                isinstance(full := masks.get("full_attention"), Tensor)
                and "sliding_attention" in masks
                and full.dim() == 4
            ):
                at = torch.arange(index.shape[1], device=full.device)
                near = at[None] > at[:, None] - self.anatomy.decoder.config.sliding_window
                masks["sliding_attention"] = _masked(full, ~near)
            return masks
        if not isinstance(given, Tensor) or given.dim() != 4:
            return real.to(self.mask.dtype)
        rows = torch.arange(len(index), device=index.device)[:, None, None]
        picked = given[:, 0][rows, index[:, :, None], index[:, None, :]][:, None]
        picked = _masked(picked, ~real[:, None, None])
        padding = torch.diag_embed(~real)[:, None]  # it sees itself, so that no softmax is over nothing
        return picked | padding if picked.dtype == torch.bool else picked.masked_fill(padding, 0)

    def _kept_features(self, index: Tensor, real: Tensor) -> dict:
        """Qwen3-VL adds features of the picture behind its first blocks too: those of the positions kept."""
        visual, deep = (self.seen.decoder.get(name) for name in ("visual_pos_masks", "deepstack_visual_embeds"))
        if visual is None or deep is None:
            return {}
        rows = torch.arange(len(index), device=index.device)[:, None]
        number = visual.flatten().long().cumsum(0).view_as(visual) - 1
        kept = visual[rows, index] & real
        which = number[rows, index][kept]
        return {"visual_pos_masks": kept, "deepstack_visual_embeds": [layer[which] for layer in deep]}


def _masked(mask: Tensor, hidden: Tensor) -> Tensor:
    """The mask, boolean (true is seen) or additive, with more hidden."""
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


@contextmanager
def reading(vlm: VLM, inputs: Inputs, sites: Sequence[str]):
    """While open, yields what reads the prompt inside `generate`: (model, ids, what it was given) -> `Prefill`."""
    with ExitStack() as stack:
        seen = stack.enter_context(Capture(vlm.anatomy)())
        recorder = stack.enter_context(vlm.recording(inputs, sites)) if sites else None

        def prompt(model, input_ids: Tensor, given: dict, *, steered: bool = False) -> Prefill:
            given = given | {"use_cache": True}
            model(**model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **given), return_dict=True)
            stack.close()  # what follows is not of the prompt
            check_cache(seen.decoder["past_key_values"])
            return Prefill(vlm, inputs, seen, recorder and recorder.trace(inputs), steered)

        yield prompt


def check_inputs(inputs: Inputs) -> None:
    """UserError for a batch that cannot be contrasted: without a picture, with padding behind the prompt."""
    if not any(name.startswith("pixel") for name in inputs.tensors):
        raise UserError("there is no picture in this batch, so nothing to contrast: use vlm.generate")
    if not inputs.tensors["attention_mask"][:, -1].all():
        raise UserError("prompts must be left-padded to be decoded, these have padding behind them: use vlm.prepare")

"""Task tokens: learned embeddings behind a picture's tokens, at which a model is to gather what a task needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..models.anatomy import Anatomy
from ..models.inputs import Inputs
from ..models.spans import Spans
from ..scenes.errors import UserError

_TOKEN, _PAD = -1, -2


@dataclass(frozen=True)
class Placed:
    """inputs: a batch with task tokens in it, which its spans call "image" without a visual token. numbers: (B, T) which
    task token stands there, -1 for none. labels: (B, T) as given, -100 at task tokens; None where none were given."""

    inputs: Inputs
    numbers: Tensor
    labels: Tensor | None = None


def place_tokens(anatomy: Anatomy, inputs: Inputs, n: int, labels: Tensor | None = None) -> Placed:
    """The batch with n task tokens right behind the picture of every row that has exactly one, left-padded anew.

    Several pictures, and none, get no task tokens. Raises UserError for pictures that are not in the sequence, for
    tensors that say positions themselves, and beyond the model's positions.
    """
    if not anatomy.image_in_sequence:
        raise UserError(
            f"{anatomy.family} keeps its picture out of the sequence: task tokens need a decoder-only family"
        )
    if "position_ids" in inputs.tensors:
        raise UserError(
            "position_ids cannot be kept when task tokens are put in: leave them out, the model counts them"
        )
    spans, ids = inputs.spans, inputs.tensors["input_ids"]
    sources = [_sources(spans, b, n) for b in range(len(ids))]
    source = pad_sequence(sources, batch_first=True, padding_value=_PAD, padding_side="left").to(ids.device)
    room = anatomy.max_positions
    if room is not None and source.shape[1] > room:
        raise UserError(
            f"with {n} task tokens the sequence has {source.shape[1]} positions, this {anatomy.family} has {room}"
        )

    def moved(value: Tensor, token=0, padding=0) -> Tensor:
        at = source.clamp(min=0).to(value.device)
        new = value[torch.arange(len(at), device=value.device)[:, None], at]
        new[source.to(value.device) == _TOKEN] = token
        new[source.to(value.device) == _PAD] = padding
        return new

    fills = {"input_ids": _fillers(anatomy), "attention_mask": (1, 0)}  # all other marks: 0 is text
    tensors = {
        name: moved(value, *fills.get(name, (0, 0))) if _per_token(name, value, ids) else value
        for name, value in inputs.tensors.items()
    }
    none, image = float("nan"), Spans.names.index("image")
    new = Spans(
        moved(spans.labels, image, -1),
        moved(spans.image_index, 0, -1),
        moved(spans.visual, False, False),
        moved(spans.row, -1, -1),
        moved(spans.col, -1, -1),
        moved(spans.boxes, none, none),
    )
    tokens = source == _TOKEN
    numbers = torch.where(tokens, tokens.long().cumsum(1) - 1, -1)
    return Placed(
        replace(inputs, tensors=tensors, spans=new), numbers, None if labels is None else moved(labels, -100, -100)
    )


def _sources(spans: Spans, row: int, n: int) -> Tensor:
    """Where each position of the new row comes from: a position of the old one, or a task token."""
    real = torch.nonzero(spans.labels[row] >= 0).flatten()
    index = spans.image_index[row, real]
    if not len(index) or index.max() != 0:  # no picture, or several
        return real
    cut = int(torch.nonzero(index == 0).max()) + 1
    return torch.cat([real[:cut], real.new_full((n,), _TOKEN), real[cut:]])


def _per_token(name: str, value, ids: Tensor) -> bool:
    return isinstance(value, Tensor) and not name.startswith(("pixel", "qformer")) and value.shape[:2] == ids.shape


def _fillers(anatomy: Anatomy) -> tuple[int, int]:
    """Ids under task tokens, whose embedding is replaced, and under padding: ordinary ones, that mean no picture."""
    config = anatomy.text_config
    eos, padding = getattr(config, "eos_token_id", None), getattr(config, "pad_token_id", None)
    eos = eos[0] if isinstance(eos, list | tuple) else eos
    return eos or 0, padding or 0


_embedded: ContextVar[tuple[Placed, Tensor] | None] = ContextVar("chiasm_task_tokens", default=None)


@contextmanager
def embedding_tokens(anatomy: Anatomy, placed: Placed, table: Tensor) -> Iterator[None]:
    """While open, the passes that this thread makes over the placed batch read the table's rows (n, D) at task tokens,
    in prompts that are generated from too; beams and repeated rows as the batch's own."""
    entry = (placed, table)

    def replace_embeddings(_module, args, kwargs):
        states, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        if _embedded.get() is not entry or states is None or (cache is not None and int(cache.get_seq_length())):
            return None
        numbers = placed.numbers.to(states.device).repeat_interleave(len(states) // len(placed.numbers), 0)
        rows, at = torch.nonzero(numbers >= 0, as_tuple=True)
        new = table.to(states.device)[numbers[rows, at]].to(states.dtype)
        return args, kwargs | {"inputs_embeds": states.index_put((rows, at), new)}

    handle = anatomy.decoder.register_forward_pre_hook(replace_embeddings, prepend=True, with_kwargs=True)
    token = _embedded.set(entry)
    try:
        yield
    finally:
        _embedded.reset(token)
        handle.remove()

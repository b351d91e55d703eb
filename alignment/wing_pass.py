"""What modality learners see in one pass of a decoder: the embeddings of all positions so far, and what each position is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer

from ..models.spans import Spans
from ..scenes.errors import UserError

PADDING, SINK, SYSTEM, BEFORE, AFTER, MARKER, VISUAL = range(7)
"""Kinds of positions. A marker wraps or divides a picture. Text behind a picture, answers and generated tokens are one kind, or
a router would meet in decoding what it never saw in training."""

SEGMENTS = 5
"""What a router tells apart: sink, system, text before, text after, picture."""

_KIND_OF_LABEL = {"bos": SINK, "system": SYSTEM, "before": BEFORE, "image": MARKER}


def kinds_of(spans: Spans) -> Tensor:
    """(B, T) kinds of the positions of a prompt."""
    table = [PADDING, *(_KIND_OF_LABEL.get(name, AFTER) for name in Spans.names)]
    kinds = torch.tensor(table, device=spans.labels.device)[spans.labels + 1]
    return kinds.masked_fill(spans.visual, VISUAL)


def kinds_of_pass(prompt: Tensor | None, start: int, batch: int, length: int) -> Tensor:
    """(batch, length) kinds of the positions from `start` on; prompt: (B, T) of the prompt, None where a decoding step is of
    a prompt read before. Rows may be repeated. Raises UserError for a pass that cannot be of this prompt."""
    if prompt is None:
        return torch.full((batch, length), AFTER)
    rows, known = prompt.shape
    if batch % rows or start + length < known:
        raise UserError(
            f"a pass of {batch} rows to position {start + length} is not of a prompt of {rows} rows and {known} positions: "
            "learners need the prompt as it was prepared, read in one pass"
        )
    grown = pad(prompt, (0, start + length - known), value=AFTER)
    return grown[:, start:].repeat_interleave(batch // rows, 0)


def remembered(cache, states: Tensor, kinds: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Embeddings (B, T, D) and kinds (B, T) of all positions so far, these (of the pass) last.

    They are kept in the cache as one more layer, so that what happens to the cache (beams reordered, steps taken back)
    happens to them. Raises UserError for a cache that was begun without.
    """
    if cache is None:
        return states, kinds
    if cache.layer_class_to_replicate is None:
        cache.layers += [DynamicLayer() for _ in range(layer + 1 - len(cache.layers))]
    own = cache.get_seq_length(layer) if layer < len(cache.layers) else 0
    if (read := int(cache.get_seq_length())) != own:
        raise UserError(
            f"{read} positions were read before the learners were attached: attach them before the prompt is read"
        )
    features, flags = cache.update(states[:, None], kinds[:, None, :, None].to(states), layer)
    return features[:, 0], flags[:, 0, :, 0].round().long()


@dataclass
class WingPass:
    """features (B, Tk, D): the decoder's input embeddings of all positions so far, pictures' features among them; kinds
    (B, Tk); the last `length` positions are this pass's queries. legacy_mask: see `textual`."""

    features: Tensor
    kinds: Tensor
    length: int
    legacy_mask: bool = False

    @cached_property
    def positions(self) -> Tensor:
        """(B, Tk) number of every position among the real ones of its row; -1 for padding in front."""
        return (self.kinds != PADDING).long().cumsum(1) - 1

    @cached_property
    def pictured(self) -> Tensor:
        """(B,) whether the row has a picture."""
        return (self.kinds == VISUAL).any(1)

    @cached_property
    def visual(self) -> Tensor:
        """(B, Tq, Tk): every query sees every visual token, of all pictures."""
        return (self.kinds == VISUAL)[:, None].expand(-1, self.length, -1)

    @cached_property
    def text(self) -> Tensor:
        """(B, Tk) keys of the textual learner: text, without the picture and the system part (which the first token belongs
        to where there is one)."""
        headed = (self.kinds == SYSTEM).any(1, keepdim=True)
        plain = (self.kinds == BEFORE) | (self.kinds == AFTER)
        return plain | ((self.kinds == SINK) & ~headed)

    @cached_property
    def textual(self) -> Tensor:
        """(B, Tq, Tk): a query at position p sees the text at positions up to p. legacy_mask: as released, where the mask of
        the whole sequence is cut to the keys: the j-th text is seen from position j on, though it stands behind."""
        own = self.positions[:, -self.length :, None]
        place = self.text.long().cumsum(1) - 1 if self.legacy_mask else self.positions
        return self.text[:, None] & (place[:, None] <= own)

    @cached_property
    def segments(self) -> Tensor:
        """(B, Tk) in 0 to SEGMENTS - 1, -1 for padding."""
        return self.kinds.clamp(max=MARKER) - 1

"""Where an intervention acts: the positions of one forward pass of the decoder, told from the prompt and the cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models.spans import Spans
from ..scenes.errors import UserError

POSITIONS = ("all", "image", "text", "last_prompt", "generated")

Positions = str | int
"""One of POSITIONS, or an index over the expanded prompt of each row, padding not counted, from which on to act.

"all": every real position. "image": the visual tokens. "text": all but pictures and their markers. "last_prompt": each
row's last position before its answer, which predicts the first token of it. "generated": the answer, whether it is being
decoded or was fed with the prompt; its first token is predicted by the prompt and so not reached. An index from the front
counts from the first real position, a negative one from the prompt's end (-2: its last two positions); both go on through
what is generated.
"""


def check_positions(positions: Positions) -> Positions:
    """The positions, or UserError with what they can be."""
    known = positions in POSITIONS if isinstance(positions, str) else isinstance(positions, int)
    if not known or isinstance(positions, bool):
        raise UserError(f"positions={positions!r} must be one of {', '.join(POSITIONS)}, or an index into the prompt")
    return positions


@dataclass
class Where:
    """One forward pass of the decoder. spans: of the prompt, rows as in this pass, None where nobody knows it. start:
    positions before this pass, the cache's; length: positions of this pass. changed: (B,) rows to act on, None for all.
    memory: of the generation this pass is part of, kept from its prompt on; interventions use themselves as keys.
    places: (B, n) which of its positions are left at this point of the pass, in order, where interventions took others out
    (-1: nothing, rows that lost more are filled up in front). held: what interventions keep for this pass alone.
    """

    spans: Spans | None
    start: int
    length: int
    batch: int
    changed: Tensor | None = None
    memory: dict[Any, Any] = field(default_factory=dict)
    places: Tensor | None = None
    held: dict[Any, Any] = field(default_factory=dict)
    _masks: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def prompt(self) -> bool:
        """Whether this pass begins the sequence."""
        return self.start == 0

    def whole(self, positions: Positions) -> bool | None:
        """Whether this pass is meant as a whole, or not at all; None where only `mask` can tell. Without a tensor, since
        decoding asks at every token."""
        known = 0 if self.spans is None else self.spans.labels.shape[1]
        if self.spans is None or self.start < known or self.changed is not None or self.places is not None:
            return None
        if isinstance(positions, int):
            return None if positions > 0 else True  # a later one may lie beyond the prompt
        return positions in ("all", "text", "generated")

    def mask(self, positions: Positions, device=None) -> Tensor:
        """(B, length) bool on `device`: the positions of this pass on which to act, of those left where some were taken
        out. Padding is never among them."""
        key = (positions, device, None if self.places is None else id(self.places))
        if key not in self._masks:
            mask = self._mask(positions)
            if self.changed is not None:
                mask = mask & self.changed.to(mask.device)[:, None]
            if self.places is not None:
                mask = at_places(mask, self.places)
            self._masks[key] = mask.to(device) if device is not None else mask
        return self._masks[key]

    def _mask(self, positions: Positions) -> Tensor:
        if self.spans is None:
            if positions == "all":
                return torch.ones(self.batch, self.length, dtype=torch.bool)
            raise UserError(
                f"positions={positions!r}: nobody told what the decoder reads: call vlm.forward or vlm.generate, or the model with input_ids"
            )
        labels = self.spans.labels
        known = labels.shape[1]
        if self.start >= known:  # decoding: one rule for all rows
            acts = positions in ("all", "text", "generated") or isinstance(positions, int)
            whole = torch.full((self.batch, self.length), acts, device=labels.device)
            if isinstance(positions, int) and positions > 0:  # beyond the prompt
                whole &= self._numbers()[:, None, -1] + 1 + self._ahead() >= positions
            return whole
        picked = self._prompt_mask(positions)[:, self.start : self.start + self.length]
        if (
            more := self.start + self.length - known
        ) > 0:  # a pass without a cache reads the prompt and what came of it
            later = positions in ("all", "text", "generated") or isinstance(positions, int)
            picked = torch.cat([picked, picked.new_full((self.batch, more), later)], 1)
        return picked

    def _prompt_mask(self, positions: Positions) -> Tensor:
        spans = self.spans
        answer = spans.mask("answer", "generated")
        if positions == "all":
            return spans.real
        if positions == "image":
            return spans.visual
        if positions == "text":
            return spans.real & ~spans.mask("image")
        if positions == "generated":
            return answer
        numbers, length = self._numbers(), (spans.real & ~answer).sum(1, keepdim=True)
        if positions == "last_prompt":
            return spans.real & (numbers == length - 1)
        if positions < 0 and int(length.min()) < -positions:
            raise UserError(
                f"positions={positions} reaches before a prompt of {int(length.min())} positions: use -{int(length.min())} to -1"
            )
        return spans.real & (numbers >= (positions if positions >= 0 else length + positions))

    def _numbers(self) -> Tensor:
        """(B, T) number of every position among the real ones of its row."""
        return self.spans.real.long().cumsum(1) - 1

    def _ahead(self) -> Tensor:
        return torch.arange(self.length, device=self.spans.labels.device) + self.start - self.spans.labels.shape[1]


def at_places(mask: Tensor, places: Tensor) -> Tensor:
    """A mask (B, T) at the places (B, n) of each row; where there is none (-1) False."""
    return mask.gather(1, places.clamp(min=0).to(mask.device)) & (places >= 0).to(mask.device)


def repeated(spans: Spans, batch: int) -> Spans:
    """The spans with every row repeated, as beams and several answers a prompt repeat it. UserError where they cannot be."""
    rows = len(spans.labels)
    if rows == batch:
        return spans
    if batch % rows:
        raise UserError(f"a pass of {batch} rows is not of a prompt of {rows}: prepare the batch that is run")
    fields = vars(spans)
    return Spans(**{name: value.repeat_interleave(batch // rows, 0) for name, value in fields.items()})

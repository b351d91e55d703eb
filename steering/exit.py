"""Visual-token exit: behind a block all visual tokens leave the decoder."""

from __future__ import annotations

from dataclasses import dataclass

from ..scenes.errors import UserError
from .dropping import dropped_at
from .steer import Edit


@dataclass(frozen=True)
class VisualExit:
    """Behind block `after` all visual tokens are removed; the others keep their positions.

    after: a decoder layer, negative ones counting from the last (-1: nothing changes), or "embed": before the first block,
    which leaves the text with a gap in its positions. by: "slice" saves the compute, "mask" keeps the shape of every site
    (see `dropping`). Source: DyVTE, operator exit(k); LLaMA-Adapter V2's early fusion is the same with a fixed layer.
    """

    after: int | str
    by: str = "slice"

    def edits(self, vlm) -> list[Edit]:
        if self.after != "embed" and (isinstance(self.after, bool) or not isinstance(self.after, int)):
            raise UserError(
                f'after={self.after!r} must be a decoder layer, or "embed" for an exit before the first one'
            )
        first = 0 if self.after == "embed" else vlm.anatomy.check_layer(self.after) + 1
        return dropped_at(vlm, first, lambda where: where.mask("image"), by=self.by)

"""What preference pairs are made like."""

from __future__ import annotations

from dataclasses import dataclass

from ..scenes.errors import UserError
from .masking import KINDS
from .rejected_images import KINDS as REJECTED


@dataclass(frozen=True)
class PairConfig:
    """What pairs are made like.

    mask: "balanced" (each text one kind, the kind with the fewest pairs so far), "all", or one kind. rate: share of the spans of that
    kind that are masked, at least one. k: neighbours tried in the order of their similarity; fills: tried of each. rejected_image:
    see `rejected_images.KINDS`. filters: False keeps what is not true or not to be told, as the published method does, which checks
    nothing; truth is noted all the same. margin, max_length_difference: see `Filters`. fluency: share of the pairs that is dropped at the end,
    those whose rejected text the backend finds least likely. chunk: texts that are worked on together, and kept together. chat:
    prompt and answers as conversations, which needs a model with a chat template; else plain strings.
    """

    mask: str = "balanced"
    rate: float = 0.5
    k: int = 10
    fills: int = 4
    rejected_image: str = "retrieved"
    filters: bool = True
    margin: float = 0.1
    max_length_difference: int = 2
    fluency: float = 0.0
    chunk: int = 32
    chat: bool = True
    seed: int = 0

    def __post_init__(self):
        allowed = {"mask": ("balanced", "all", *KINDS), "rejected_image": REJECTED}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UserError(f"{name} {getattr(self, name)!r} is not known: use {', '.join(values)}")
        for name in ("k", "fills", "chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 < self.rate <= 1 or not 0 <= self.fluency < 1:
            raise UserError(f"rate {self.rate} must be in 0..1 and above 0, fluency {self.fluency} in 0..1 and below 1")

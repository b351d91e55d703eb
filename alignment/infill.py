"""What fills masks: one protocol for scene truth, the model itself, another model, and an endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from .masking import MaskedText

BACKENDS = ("scene-truth", "self", "local", "http")


@dataclass(frozen=True)
class Shown:
    """A picture as backends and judges get it: what it looks like, the truth about it where that is known, and what was asked."""

    image: Image.Image
    truth: Mapping[str, Any] = field(default_factory=dict)
    asked: str = ""


@dataclass(frozen=True)
class Fill:
    """A completed sentence: the text, what went into each mask, and its mean log-probability a token where it is known."""

    text: str
    strings: tuple[str, ...]
    logp: float | None = None


class InfillFailed(Exception):
    """One text could not be filled. code: the reason, as in `filters.REASONS`."""

    def __init__(self, code: str, detail: str = ""):
        super().__init__(detail or code)
        self.code = code


class InfillBackend(Protocol):
    """name, version: noted with every pair; version tells apart what could give other fills. deterministic: the same call gives the
    same fills.

    caption: a text for each picture and prompt, where the data have none. fill: for each masked text up to n completed sentences as
    the picture next to it suggests, best first; an empty list where the picture suggests none, or an `InfillFailed` in its place.
    seed: of everything random; it depends on the text, not on its place in the batch.
    """

    name: str
    version: str
    deterministic: bool

    def caption(self, shown: Sequence[Shown], prompts: Sequence[str], seed: int) -> list[str]: ...

    def fill(
        self, masked: Sequence[MaskedText], shown: Sequence[Shown], prompts: Sequence[str], n: int, seed: int
    ) -> list[list[Fill] | InfillFailed]: ...

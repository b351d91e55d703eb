"""What the forward passes of a thread are of: which prompt the decoder reads, and which rows of it are to be changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from .spans import Spans


@dataclass(frozen=True)
class Told:
    """spans: of the prompt, (B, T). changed: (B,) bool, the rows that interventions act on; None for all. tensors: what the
    model was called with, pictures and their sizes among it; a generation hands them to the tower and not to each pass."""

    spans: Spans
    changed: Tensor | None = None
    tensors: Mapping[str, Tensor] | None = None


_told: ContextVar[Told | None] = ContextVar("chiasm_told", default=None)


@contextmanager
def telling(spans: Spans, changed: Tensor | None = None, tensors: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """While open, whoever looks at this thread's forward passes is told that they are of a prompt with these spans.

    Rows may be repeated (beams, several answers a prompt); positions behind the prompt are generated ones.
    """
    token = _told.set(Told(spans, changed, tensors))
    try:
        yield
    finally:
        _told.reset(token)


def told() -> Told | None:
    """What this thread was told of the passes it makes, the innermost of several."""
    return _told.get()

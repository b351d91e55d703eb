"""What a model is shown: one item of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

IMAGE_MARK = "<image>"
"""Where a picture goes in a prompt, in the convention of LLaVA's data files; `prepare` turns it into the model's own
image token. A prompt without the mark gets its pictures in front."""


@dataclass(frozen=True)
class Sample:
    """One item: pictures, a prompt, and, where known, the answer and the truth about the pictures.

    `truth` is free-form ground truth (for a rendered scene: the `Scene` itself under "scene"; for POPE: "label", …).
    """

    id: str
    prompt: str
    images: tuple[Image.Image, ...] = ()
    answer: str | None = None
    truth: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadSample:
    """What a reader yields in the place of an item it could not read, so that one bad item does not end a run.

    `reason` is one line: where the item is (file, line), what was found, the remedy. The reader goes on after it.
    """

    id: str
    reason: str

"""What a pair must be to be kept, and the reason of everything that is not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .infill import Fill, Shown
from .judges import Judge
from .masking import MASK, MaskedText

REASONS = {
    "unreadable": "the item could not be read",
    "no_image": "the item has no picture",
    "several_images": "the item has more than one picture",
    "no_answer": "there is no chosen text, and the backend wrote none",
    "nothing_to_mask": "the chosen text names nothing of the kind that is masked",
    "chosen_false": "the chosen text is not true of its own picture",
    "no_neighbour": "no other picture can be the rejected one",
    "no_fill": "the rejected picture suggests nothing for the masks",
    "backend_failed": "the backend gave no usable answer",
    "empty": "the rejected text is empty",
    "mask_left": "the rejected text still holds a mask",
    "unchanged": "the rejected text says what the chosen one says",
    "length": "the two texts differ too much in length",
    "too_similar": "the two texts mean too nearly the same",
    "not_checkable": "it cannot be told whether the text is true of the picture",
    "rejected_true": "the rejected text is true of the picture, or hardly less so than the chosen one",
    "chosen_true": "the chosen text is true of the rejected picture, or hardly less so than of its own",
    "disfluent": "the model finds the rejected text among the least likely",
}
"""Code → what it means. Every item that gives no pair is recorded with one."""


@dataclass(frozen=True)
class Filters:
    """judge: how truth is told. margin: of a judge that is not exact: how much truer the chosen text must be. max_length_difference:
    in tokens as `length` counts them (default: words). similarity: a function of two texts and the value at which they are too
    similar (Re-Align: cosine of sentence embeddings, 0.95); None: not looked at, since such embeddings hardly move when one colour
    changes. check_picture: the chosen text must be less true of the rejected picture. enforced: False tells truth and refuses nothing for
    it, nor for length.
    """

    judge: Judge
    margin: float = 0.1
    max_length_difference: int = 2
    length: Callable[[str], int] = lambda text: len(text.split())
    similarity: tuple[Callable[[str, str], float], float] | None = None
    check_picture: bool = True
    enforced: bool = True

    def text(self, masked: MaskedText, fill: Fill) -> str | None:
        """The reason to refuse a fill by its text alone, or None."""
        if not fill.text.strip() or not all(string.strip() for string in fill.strings):
            return "empty"
        if MASK in fill.text or any(re.search(r"\[\s*mask\s*\]|<mask>|\[blank\]", s, re.I) for s in fill.strings):
            return "mask_left"
        if _same(fill.text, masked.text) or all(map(_same, fill.strings, masked.originals)):
            return "unchanged"
        if self.enforced and abs(self.length(fill.text) - self.length(masked.text)) > self.max_length_difference:
            return "length"
        if self.similarity is not None and self.similarity[0](masked.text, fill.text) >= self.similarity[1]:
            return "too_similar"
        return None

    def chosen(self, texts: Sequence[str], shown: Sequence[Shown]) -> list[tuple[str | None, float | None]]:
        """(reason or None, truth) of each chosen text under its own picture. Only an exact judge refuses."""
        truths = self.judge(texts, shown) if texts else []
        refuse = self.judge.exact and self.enforced
        return [
            (("chosen_false" if truth == 0 else "not_checkable" if truth is None else None) if refuse else None, truth)
            for truth in truths
        ]

    def rejected_texts(self, truths: Sequence[float | None], texts: Sequence[str], shown: Sequence[Shown]):
        """(reason or None, truth) of each rejected text under the picture itself; truths: of the chosen texts there."""
        return self._less("rejected_true", truths, texts, shown)

    def rejected_pictures(self, truths: Sequence[float | None], texts: Sequence[str], shown: Sequence[Shown]):
        """(reason or None, truth) of each chosen text under the rejected picture; truths: of the same texts under their own."""
        if not self.check_picture:
            return [(None, None)] * len(texts)
        return self._less("chosen_true", truths, texts, shown)

    def _less(self, code: str, truths, texts, shown) -> list[tuple[str | None, float | None]]:
        found = self.judge(texts, shown) if texts else []
        return [(self._reason(code, before, now), now) for before, now in zip(truths, found, strict=True)]

    def _reason(self, code: str, before: float | None, now: float | None) -> str | None:
        if not self.enforced:
            return None
        if now is None or before is None:
            return "not_checkable"
        allowed = 0.0 if self.judge.exact else before - self.margin
        return code if now > allowed else None


def edit_similarity(a: str, b: str) -> float:
    """Of the words of two texts, 1 where they are equal."""
    return difflib.SequenceMatcher(None, a.split(), b.split(), autojunk=False).ratio()


def _same(a: str, b: str) -> bool:
    return " ".join(a.lower().split()).rstrip(". ") == " ".join(b.lower().split()).rstrip(". ")

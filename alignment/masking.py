"""Masks over the words of a text that name objects, attributes and relations of its picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from ..scenes.claims import CATEGORY_OF, LIGHTS, agreeing, read_claims, readable, scenery
from ..scenes.errors import UserError
from ..scenes.words import NUMBERS, PLURALS, with_article
from ..scenes.world import CATEGORIES, COLOURS, COLUMNS, PLACES, RELATIONS, ROWS, SIZES

MASK = "[MASK]"
KINDS = ("object", "attribute", "relation")


@dataclass(frozen=True)
class Span:
    """text[start:end] names an object, an attribute or a relation. slot: what could stand there instead, finer than the kind."""

    start: int
    end: int
    kind: str
    slot: str


@dataclass(frozen=True)
class MaskedText:
    """A text and the spans of it that are masked, in order and apart."""

    text: str
    spans: tuple[Span, ...]

    def __post_init__(self):
        if any(a.end > b.start for a, b in pairwise(self.spans)):
            raise ValueError(f"spans {self.spans} overlap or are out of order")

    @property
    def frame(self) -> list[str]:
        """The pieces around the masks, one more than there are masks."""
        edges = [0, *(edge for span in self.spans for edge in (span.start, span.end)), len(self.text)]
        return [self.text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]

    @property
    def masked(self) -> str:
        return MASK.join(self.frame)

    @property
    def originals(self) -> tuple[str, ...]:
        return tuple(self.text[span.start : span.end] for span in self.spans)

    def filled(self, strings: Sequence[str]) -> str:
        """The text with a string in each mask; the frame stays as it is."""
        if len(strings) != len(self.spans):
            raise ValueError(f"{len(strings)} strings for {len(self.spans)} masks")
        first, *rest = self.frame
        return first + "".join(string + piece for string, piece in zip(strings, rest, strict=True))


_KIND_OF = {
    "category": "object", "a": "object", "b": "object", "place": "object", "relation": "relation", "row": "relation",
    "column": "relation", "answer": "object",
}  # fmt: skip
_ANSWERS = ("yes", "no")
_SLOT_WORDS = {
    "answer": _ANSWERS,
    "colour": COLOURS, "size": SIZES, "row": ROWS, "column": COLUMNS, "place": PLACES, "light": LIGHTS,
    "relation": RELATIONS,
}  # fmt: skip
_SLOT_OF = {word: slot for slot, words in _SLOT_WORDS.items() if slot != "relation" for word in words}
_SLOT_OF |= dict.fromkeys(NUMBERS[1:6], "number") | dict.fromkeys(CATEGORIES, "category")
"""The one-word answers of the world; yes and no are most often about whether a thing is there."""


class Masker(Protocol):
    """Finds what can be masked, what could stand in a mask, and mends a filled text's agreement (a or an)."""

    name: str

    def spans(self, text: str) -> list[Span]: ...
    def candidates(self, masked: MaskedText, span: Span) -> list[str]: ...
    def agree(self, text: str) -> str: ...


class SceneMasker:
    """Masks texts in the grammar of the rendered world, by what they claim, and one-word answers whole.

    Left alone is what the rest of the text gives away: a place whose scenery is described or that is named twice, a thing that is
    spoken of again ("the cup is left of …"), and lists that follow from the rest. Texts beyond the grammar have no spans.
    """

    name = "scene-grammar"

    def spans(self, text: str) -> list[Span]:
        if text in _SLOT_OF:  # the answer to a question
            slot = _SLOT_OF[text]
            return [Span(0, len(text), _KIND_OF.get(slot, "attribute"), slot)]
        if not readable(text):
            return []
        claims = read_claims(text)
        again = {v for c in claims if c.kind in ("relation", "the") for v in map(c.get, ("a", "b", "category")) if v}
        alone = not any(claim.kind == "told" for claim in claims)
        places = sum(claim.kind == "place" for claim in claims)
        found = []
        for claim in claims:
            for field in claim.fields:
                if claim.kind == "colour" or (field.slot == "number" and field.value in ("a", "an")):
                    continue
                if field.slot == "place" and (places > 1 or scenery(text)):
                    continue
                if field.slot in ("category", "a", "b") and not alone and CATEGORY_OF[field.value] in again:
                    continue
                kind = _KIND_OF.get(field.slot, "attribute")
                found.append(Span(field.start, field.end, kind, field.slot))
        return found

    def candidates(self, masked: MaskedText, span: Span) -> list[str]:
        word = masked.text[span.start : span.end]
        if span.slot == "number":
            return list(NUMBERS[1:6] if masked.text == word else NUMBERS[2:6])  # a noun behind it stays plural
        if span.slot in ("category", "a", "b"):
            return list(CATEGORIES) if word in CATEGORIES else [PLURALS[category] for category in CATEGORIES]
        return list(_SLOT_WORDS[span.slot])

    def agree(self, text: str) -> str:
        return agreeing(text)


class WordMasker:
    """Masks any English text by a vocabulary: what stands in the same slot can stand in for it.

    slots: slot → (kind, words or phrases); default `vocabulary.SLOTS`. The longest phrase wins, whole words only, case ignored;
    what is filled in takes the case of what it replaces. Raises UserError for a phrase of two slots.
    """

    name = "vocabulary"

    def __init__(self, slots: Mapping[str, tuple[str, Sequence[str]]] | None = None):
        if slots is None:
            from .vocabulary import SLOTS as slots
        self.slots = dict(slots)
        self._slot: dict[str, str] = {}
        for slot, (kind, words) in self.slots.items():
            if kind not in KINDS:
                raise UserError(f"slot {slot!r} is of kind {kind!r}: use {', '.join(KINDS)}")
            for word in words:
                if self._slot.setdefault(word.lower(), slot) != slot:
                    raise UserError(f"{word!r} stands in {self._slot[word.lower()]!r} and in {slot!r}: leave one out")
        words = "|".join(sorted(map(re.escape, self._slot), key=len, reverse=True))
        self._pattern = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE)

    def spans(self, text: str) -> list[Span]:
        found = []
        for match in self._pattern.finditer(text):
            slot = self._slot[match[0].lower()]
            found.append(Span(match.start(), match.end(), self.slots[slot][0], slot))
        return found

    def candidates(self, masked: MaskedText, span: Span) -> list[str]:
        word = masked.text[span.start : span.end]
        return [_in_case(other, word) for other in self.slots[span.slot][1]]

    def agree(self, text: str) -> str:
        def mend(match: re.Match) -> str:
            article = with_article(match[2]).split()[0]
            return (article.capitalize() if match[1][0].isupper() else article) + " "

        return re.sub(r"\b([Aa]n?) (?=(\w+))", mend, text)


def choose_spans(spans: Sequence[Span], kind: str, rate: float, draw: Any) -> tuple[Span, ...]:
    """A share of the spans of a kind ("all": of every kind), at least one where there is one. draw: a `random.Random`."""
    wanted = [span for span in spans if kind in ("all", span.kind)]
    if not wanted:
        return ()
    chosen = draw.sample(wanted, max(1, round(rate * len(wanted))))
    return tuple(sorted(chosen, key=lambda span: span.start))


def _in_case(word: str, like: str) -> str:
    return word[:1].upper() + word[1:] if like[:1].isupper() else word

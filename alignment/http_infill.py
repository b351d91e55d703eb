"""Masks filled by a model behind an endpoint. Off unless an endpoint is named: pictures leave this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from .http_client import ChatEndpoint, EndpointError
from .infill import Fill, InfillFailed, Shown
from .masking import MASK, MaskedText, Masker

_FILL = (
    "Complete a sentence about the image. Each {mask} stands for one word or short phrase. Say only what the image shows.\n"
    "Question: {prompt}\nSentence: {masked}\n"
    'Answer with JSON only: {{"fills": [[...], ...]}}, up to {n} different lists, best first, each with exactly {count} strings, '
    "one for each {mask} in order."
)
_CAPTION = '{prompt}\nAnswer with JSON only: {{"text": "..."}}.'


class HttpInfill:
    """Asks for what goes into the masks, not for the sentence, so that the frame cannot change. An answer that is no such JSON, or
    has another number of strings, is asked for again."""

    name, deterministic = "http", False

    def __init__(self, endpoint: ChatEndpoint, masker: Masker):
        self.endpoint, self.masker = endpoint, masker
        self.version = f"1:{endpoint.model}"

    def caption(self, shown: Sequence[Shown], prompts: Sequence[str], seed: int) -> list[str]:
        texts = []
        for one, prompt in zip(shown, prompts, strict=True):
            try:
                texts.append(self.endpoint.ask(_CAPTION.format(prompt=prompt), one.image, seed, _text))
            except EndpointError:
                texts.append("")  # dropped later, with its reason
        return texts

    def fill(
        self, masked: Sequence[MaskedText], shown: Sequence[Shown], prompts: Sequence[str], n: int, seed: int
    ) -> list[list[Fill] | InfillFailed]:
        return [self._fill(*one, n, seed) for one in zip(masked, shown, prompts, strict=True)]

    def _fill(self, masked: MaskedText, shown: Shown, prompt: str, n: int, seed: int) -> list[Fill] | InfillFailed:
        count = len(masked.spans)
        asked = _FILL.format(mask=MASK, prompt=prompt, masked=masked.masked, n=n, count=count)
        try:
            lists = self.endpoint.ask(asked, shown.image, seed, lambda text: _lists(text, count))
        except EndpointError as error:
            return InfillFailed("backend_failed", str(error))
        return [Fill(self.masker.agree(masked.filled(strings)), strings) for strings in dict.fromkeys(lists[:n])]


def _object(text: str) -> dict:
    """The JSON object in an answer, alone or in a code block. Raises ValueError."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    value = json.loads(found[0]) if found else None
    if not isinstance(value, dict):
        raise ValueError(f"no JSON object in {text[:60]!r}")
    return value


def _lists(text: str, count: int) -> list[tuple[str, ...]]:
    lists = _object(text).get("fills")
    if lists and isinstance(lists, list) and all(isinstance(item, str) for item in lists):
        lists = [lists]
    good = [
        tuple(" ".join(item.split()) for item in items)
        for items in lists or []
        if isinstance(items, list) and len(items) == count and all(isinstance(i, str) and i.strip() for i in items)
    ]
    if not good:
        raise ValueError(f"no list of {count} strings in {text[:60]!r}")
    return good


def _text(text: str) -> str:
    value = _object(text).get("text")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in {text[:60]!r}")
    return value.strip()

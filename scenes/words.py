"""The words of the world: lower-case, one token each, split by spaces; punctuation stands alone.

The language is kept this regular because the decoder that learns it is tiny: one word for one thing, attributes always
in one order and in front of the thing ("at the top left a small red cup"), so that whoever has read the thing has read all
of it, and the same words for a scene that is described and one that is seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .world import CATEGORIES, COLOURS, COLUMNS, PLACES, ROWS, SIZES, Thing

_ODD_PLURALS = {"sheep": "sheep", "fish": "fish", "starfish": "starfish", "bus": "buses"}
PLURALS = {category: _ODD_PLURALS.get(category, f"{category}s") for category in CATEGORIES}

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
CYCLES = (
    ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
     "december"),
    ("spring", "summer", "autumn", "winter"),
)  # fmt: skip
"""Words that follow each other in a circle: days, months, seasons."""

AT = {place: "on" if place in ("street", "beach") else "in" for place in PLACES}
"""The preposition of each place: in a kitchen, on a beach."""

SLOT_WORDS = (
    {"a", "an", "and", "or", ",", "at", "the"}
    | {*CATEGORIES, *PLURALS.values(), *COLOURS, *PLACES, *SIZES, *COLUMNS, *ROWS, *AT.values()}
    | {*NUMBERS, *(word for cycle in CYCLES for word in cycle)}
)
"""Every word that may fill a slot of a template."""

_CATEGORY_OF = {word: category for category in CATEGORIES for word in (category, PLURALS[category])}


def words_of(*templates: str) -> set[str]:
    """The words of templates, slots left out."""
    return {word for template in templates for word in template.split() if not re.fullmatch(r"\{\w+\}", word)}


_SAID_AS_CONSONANT = re.compile(r"uni(?![nmd])|us[aeu]|ut[ei]|eu|ewe|one\b|once\b|ukulele", re.IGNORECASE)
_SAID_AS_VOWEL = re.compile(r"[aeiou]|hour|hono|honest|heir", re.IGNORECASE)


def with_article(phrase: str) -> str:
    """`a` or `an` before a phrase, as its first sound asks: an apple, an hourglass, a unicycle."""
    vowel = _SAID_AS_VOWEL.match(phrase) and not _SAID_AS_CONSONANT.match(phrase)
    return f"{'an' if vowel else 'a'} {phrase}"


def counted(category: str, count: int) -> str:
    """One or several of a category: "a cup", "two cups"."""
    return with_article(category) if count == 1 else numbered(category, count)


def numbered(category: str, count: int) -> str:
    """How many of a category there are, the number always said: "one cup", "two cups"."""
    return f"{NUMBERS[count]} {category if count == 1 else PLURALS[category]}"


def position(thing: Thing) -> str:
    """Where a thing is: "at the top left"."""
    return f"at the {thing.row} {thing.column}"


def phrase(thing: Thing, *, size: bool = True, colour: bool = True, where: bool = True) -> str:
    """A thing in words, attributes always in this order: "at the top left a small red cup"."""
    named = [thing.size] * size + [thing.colour] * colour + [thing.category]
    return " ".join([*[position(thing)] * where, with_article(" ".join(named))])


def listed(items: Sequence[str], last: str = "and") -> str:
    """Joined: "x", "x and y", "x , y and z"."""
    return items[0] if len(items) == 1 else f"{' , '.join(items[:-1])} {last} {items[-1]}"


def mentions(text: str) -> list[str]:
    """The categories a text mentions, in order, once for each mention; singular and plural alike.

    Punctuation may touch the words and case does not matter, so that it reads what any model wrote.
    """
    words = re.findall(r"[a-z]+", text.lower())
    return [_CATEGORY_OF[word] for word in words if word in _CATEGORY_OF]


def count_words(text: str, wanted: Iterable[str]) -> int:
    """How many words of a text are among the wanted ones."""
    wanted = frozenset(wanted)
    return sum(word in wanted for word in re.findall(r"[a-z]+", text.lower()))

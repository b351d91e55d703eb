"""What a text of the world's grammar claims, field by field, and whether a scene bears it out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from .captions import PLACE_WORDS
from .language import vocabulary
from .words import NUMBERS, PLURALS, listed
from .world import CATEGORIES, COLOURS, COLUMNS, PLACES, RELATIONS, ROWS, SIZES, Scene, Thing, relations

LIGHTS = ("bright", "dim")
CATEGORY_OF = {word: category for category in CATEGORIES for word in (category, PLURALS[category])}


@dataclass(frozen=True)
class Field:
    """One word or phrase of a claim. slot: category, number, colour, size, row, column, place, light, relation, a, b."""

    slot: str
    value: str
    start: int
    end: int


@dataclass(frozen=True)
class Claim:
    """kind: "told" (a thing is introduced: "a red cup"), "the" (more of it: "the cup is red"), "relation", "place", "light" or
    "colour" (a colour is seen)."""

    kind: str
    fields: tuple[Field, ...]

    def get(self, slot: str) -> str | None:
        return next((field.value for field in self.fields if field.slot == slot), None)


def _any(words) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_CATEGORY, _AT = _any(CATEGORIES), rf"at the (?P<row>{_any(ROWS)}) (?P<column>{_any(COLUMNS)})"
_PATTERNS = {
    "relation": rf"the (?P<a>{_CATEGORY}) is (?P<relation>{_any(RELATIONS)}) the (?P<b>{_CATEGORY})",
    "the": rf"the (?P<category>{_CATEGORY}) is (?:{_AT}|(?P<colour>{_any(COLOURS)})|(?P<size>{_any(SIZES)}))",
    "told": rf"(?:{_AT} )?(?:there (?:is|are) |we see )?(?P<number>an?|{_any(NUMBERS)}) (?:(?P<size>{_any(SIZES)}) )?"
    rf"(?:(?P<colour>{_any(COLOURS)}) )?(?P<category>{_any(CATEGORY_OF)})",
    "light": rf"(?:the light is|it is a) (?P<light>{_any(LIGHTS)})",
    "place": rf"(?P<place>{_any(PLACES)})",
}
_COMPILED = [(kind, re.compile(rf"(?<![a-z]){pattern}(?![a-z])")) for kind, pattern in _PATTERNS.items()]
_COLOUR_LIST = re.compile(r"(?<=the colors are )[^:]+(?= :)")
_WORDS = frozenset(vocabulary())
_DENIALS = frozenset(("no", "not"))
_SCENERY = PLACE_WORDS - set(PLACES) - set(LIGHTS)


def read_claims(text: str) -> list[Claim]:
    """The claims of a text, in its order. Words outside the grammar claim nothing: see `readable`."""
    found: list[tuple[int, Claim]] = []
    taken = [False] * len(text)
    for kind, pattern in _COMPILED:
        for match in pattern.finditer(text):
            if any(taken[match.start() : match.end()]):
                continue
            taken[match.start() : match.end()] = [True] * (match.end() - match.start())
            fields = [Field(s, v, *match.span(s)) for s, v in match.groupdict().items() if v is not None]
            found.append((match.start(), Claim(kind, tuple(sorted(fields, key=lambda field: field.start)))))
    for colours in _COLOUR_LIST.finditer(text):
        for match in re.finditer(_any(COLOURS), colours[0]):
            at = colours.start() + match.start()
            found.append((at, Claim("colour", (Field("colour", match[0], at, at + len(match[0])),))))
    return [claim for _, claim in sorted(found, key=lambda pair: pair[0])]


def readable(text: str) -> bool:
    """Whether `read_claims` gets all a text says: it claims something, denies nothing, and every word is of the world."""
    words = text.split()
    return set(words) <= _WORDS and not _DENIALS & set(words) and bool(read_claims(text))


def holds(text: str, scene: Scene) -> bool:
    """Whether a scene bears out every claim. What is told of need not be all there is, and "two cups" is borne out by three; things
    told of apart must be different things."""
    claims = read_claims(text)
    told = [claim for claim in claims if claim.kind == "told" for _ in range(_number(claim))]
    return _all_found(told, list(scene.things)) and all(_holds(c, scene) for c in claims if c.kind != "told")


def contradicts_itself(text: str) -> bool:
    """Whether a text says of a thing what cannot be so beside what else it says: a place above and below, or "the cup" of none."""
    claims = read_claims(text)
    told = {}
    for claim in claims:
        if claim.kind == "told":
            told.setdefault(CATEGORY_OF[claim.get("category")], []).append(claim)
    if len({claim.get("place") for claim in claims if claim.kind == "place"}) > 1:
        return True
    for claim in claims:
        if claim.kind not in ("relation", "the") or not told:
            continue
        named = [claim.get(slot) for slot in ("a", "b", "category") if claim.get(slot)]
        if len(set(named)) < len(named) or any(name not in told for name in named):
            return True
        if claim.kind == "relation" and all(len(told[name]) == 1 for name in named):
            a, b = (told[name][0] for name in named)
            if _against(claim.get("relation"), a, b):
                return True
    return False


def agreeing(text: str) -> str:
    """The text with what follows from the rest written anew: the list of its colours, and a or an."""
    colours = list(dict.fromkeys(c.get("colour") for c in read_claims(text) if c.kind == "told" and c.get("colour")))
    if colours:
        text = _COLOUR_LIST.sub(lambda _: listed(colours), text)
    return re.sub(r"(?<![a-z])an?(?= ([a-z]))", lambda m: "an" if m[1] in "aeiou" else "a", text)


def scenery(text: str) -> bool:
    """Whether a text describes its place by more than its name."""
    return bool(_SCENERY & set(text.split()))


def graph_distance(a: Scene, b: Scene) -> int:
    """How many things (with all their attributes) differ, and one more for another place; 0 where the graphs are equal."""
    one, other = Counter(a.graph[1]), Counter(b.graph[1])
    return max((one - other).total(), (other - one).total()) + (a.place != b.place)


def facts(scene: Scene) -> Counter:
    """What is the case in a scene, from coarse to fine, counted: a vector space in which near scenes are alike."""
    found = Counter({("place", scene.place): 2})
    for t in scene.things:
        found.update([t.category, (t.category, t.colour), (t.category, t.row, t.column), (t.category, t.size)])
    return found


def matches(
    claim: Claim, thing: Thing, slots: tuple[str, ...] = ("category", "colour", "size", "row", "column")
) -> bool:
    """Whether a thing is as a claim says, in these slots; slots that the claim leaves open match."""
    for slot in slots:
        value = claim.get(slot)
        if value is not None and getattr(thing, slot) != (CATEGORY_OF[value] if slot == "category" else value):
            return False
    return True


def _number(claim: Claim) -> int:
    word = claim.get("number")
    return 1 if word in ("a", "an") else max(1, NUMBERS.index(word))


def _holds(claim: Claim, scene: Scene) -> bool:
    if claim.kind == "place":
        return scene.place == claim.get("place")
    if claim.kind == "light":
        return scene.dim == (claim.get("light") == "dim")
    if claim.kind == "relation":
        wanted = claim.get("a"), claim.get("relation"), claim.get("b")
        kinds = [thing.category for thing in scene.things]
        return any((kinds[i], relation, kinds[j]) == wanted for i, relation, j in relations(scene))
    return any(matches(claim, thing) for thing in scene.things)


def _all_found(told: list[Claim], things: list[Thing]) -> bool:
    """Whether every claim can be given a thing of its own (at most `MOST_THINGS`, so that trying is fast)."""
    if not told:
        return True
    if len(told) > len(things):
        return False
    first, rest = told[0], told[1:]
    return any(
        matches(first, thing) and _all_found(rest, things[:i] + things[i + 1 :]) for i, thing in enumerate(things)
    )


def _against(relation: str, a: Claim, b: Claim) -> bool:
    """Whether told positions rule a relation out."""
    order, slot, forward = {
        "left of": (COLUMNS, "column", True), "right of": (COLUMNS, "column", False),
        "above": (ROWS, "row", True), "below": (ROWS, "row", False),
    }.get(relation, ((), "", True))  # fmt: skip
    if not slot or a.get(slot) is None or b.get(slot) is None:
        return False
    x, y = order.index(a.get(slot)), order.index(b.get(slot))
    return not (x < y if forward else x > y)

"""Questions of the world read back: the one right answer to a question's text in any scene."""

from __future__ import annotations

import re
from functools import lru_cache

from .questions import ASKING, unique_things
from .words import NUMBERS, PLURALS
from .world import CATEGORIES, INVERSE, Scene, Thing, relations

_CATEGORY_OF = {word: category for category in CATEGORIES for word in (category, PLURALS[category])}


def answer_to(text: str, scene: Scene) -> str | None:
    """The one-word answer to a question in the world's wording; text in front of it, as `framed` puts there, is passed over.

    None where the text ends in no such question, or where it has no one answer in this scene: "what color is the cup ?" where
    there is no cup, or there are several.
    """
    for form, pattern in _patterns():
        found = pattern.search(text)
        if found is not None:
            about = {slot: _CATEGORY_OF.get(word, word) for slot, word in found.groupdict().items()}
            return _answer(form, about, scene)
    return None


def is_question(text: str) -> bool:
    """Whether the text ends in a question of the world."""
    return any(pattern.search(text) for _, pattern in _patterns())


def _answer(form: str, about: dict[str, str], scene: Scene) -> str | None:
    named = about.get("thing")
    if form == "existence":
        return "yes" if scene.count(named) else "no"
    if form == "place":
        return scene.place
    if form == "number":
        n = len(scene.things) if named in ("thing", "things") else scene.count(named)
        return NUMBERS[n] if n else None  # nobody is asked how many there are of what is not there
    if form in ("relation", *INVERSE):
        return _compared(form, about, scene)
    thing = _only(scene, named)
    return None if thing is None else getattr(thing, form)


def _compared(form: str, about: dict[str, str], scene: Scene) -> str | None:
    """Whether a relation holds, or (form: the relation) of which of two things it does."""
    a, b, kinds = about["a"], about["b"], [thing.category for thing in scene.things]
    if _only(scene, a) is None or _only(scene, b) is None:
        return None
    held = {relation for i, relation, j in relations(scene) if (kinds[i], kinds[j]) == (a, b)}
    asked = about.get("relation", form)
    if not held & {asked, INVERSE[asked]}:
        return None
    if form == "relation":
        return "yes" if asked in held else "no"
    return a if asked in held else b


def _only(scene: Scene, category: str) -> Thing | None:
    return next((scene.things[i] for i in unique_things(scene) if scene.things[i].category == category), None)


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[str, re.Pattern]]:
    """Every wording with its form, the longest first, so that a short one does not take the end of a longer one."""
    word = "|".join(sorted({*_CATEGORY_OF, "thing", "things"}, key=len, reverse=True))
    relation = "|".join(sorted(INVERSE, key=len, reverse=True))
    slots = {
        "one": f"an? (?P<thing>{word})", "thing": f"(?P<thing>{word})", "things": f"(?P<thing>{word})",
        "a": f"(?P<a>{word})", "b": f"(?P<b>{word})", "relation": f"(?P<relation>{relation})",
    }  # fmt: skip
    wordings = [(form, wording) for form, several in ASKING.items() for wording in several]
    wordings.sort(key=lambda pair: -len(pair[1].split()))
    return [(form, re.compile(rf"(?<!\S){_filled(wording, slots)}\s*$")) for form, wording in wordings]


def _filled(wording: str, slots: dict[str, str]) -> str:
    return "".join(slots.get(part, re.escape(part)) for part in re.split(r"[{}]", wording))

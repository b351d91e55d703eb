"""Questions about a scene, asked only where exactly one answer is right.

Every thing of a scene is visible by construction (see `world`), so "visible enough to ask about" needs no rendering; a
thing is called "the cup" only where there is one cup.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .errors import UserError
from .words import NUMBERS, PLURALS, counted, position, with_article, words_of
from .world import CATEGORIES, INVERSE, Scene, Thing, relations

KINDS = ("existence", "colour", "number", "position", "relation", "size")
"""The kinds of question about a scene; "place" can be asked as well, and is no test of grounding in things."""

# A question ends in the thing it is about. A small decoder finds what was asked for at a fixed distance from the end; with
# the thing two to twelve words back, as in "is there a cup in the image ?", it did not learn to look at all.
_IS_THERE = (
    "in the image , is there {one} ?",
    "in the picture , is there {one} ?",
    "is there {one} ?",
    "can you see {one} ?",
    "do you see {one} ?",
)
_COLOUR = ("what color is the {thing} ?", "which color does the {thing} have ?", "what is the color of the {thing} ?")
_NUMBER = ("how many {things} ?", "in the picture , how many {things} ?", "you see how many {things} ?")
_COLUMN = ("where is the {thing} ?", "left , middle or right : where is the {thing} ?")
_ROW = ("what is the height of the {thing} ?", "top or bottom : what is the height of the {thing} ?")
_SIZE = ("what size is the {thing} ?", "which size is the {thing} ?", "how big is the {thing} ?")
_RELATION = ("is the {a} {relation} the {b} ?",)
_WHICH = {
    "left of": "which is more to the left , the {a} or the {b} ?",
    "right of": "which is more to the right , the {a} or the {b} ?",
    "above": "which is higher , the {a} or the {b} ?",
    "below": "which is lower , the {a} or the {b} ?",
    "in front of": "which is in front , the {a} or the {b} ?",
    "behind": "which is behind , the {a} or the {b} ?",
}
_PLACE = ("what place is this ?", "which place does the picture show ?")
_SHORT = {
    "existence": "{thing} ?",
    "colour": "color {thing} ?",
    "number": "number {thing} ?",
    "column": "where {thing} ?",
    "row": "height {thing} ?",
    "size": "size {thing} ?",
    "relation": "{a} {relation} {b} ?",
    "place": "place ?",
}
ASKING = {
    "existence": (*_IS_THERE, _SHORT["existence"]),
    "colour": (*_COLOUR, _SHORT["colour"]),
    "number": (*_NUMBER, _SHORT["number"]),
    "column": (*_COLUMN, _SHORT["column"]),
    "row": (*_ROW, _SHORT["row"]),
    "size": (*_SIZE, _SHORT["size"]),
    "place": (*_PLACE, _SHORT["place"]),
    "relation": (*_RELATION, _SHORT["relation"]),
    **{relation: (wording,) for relation, wording in _WHICH.items()},
}
"""Every wording of every form of question; under a relation, which of two things it holds of."""

_SENTENCES = (
    "yes , there is {x} .", "yes , there are {x} .", "no , there is no {x} .", "the {x} is {y} .", "there is one {x} .",
    "there are {y} {x} .", "there is one thing .", "there are {y} things .", "yes , the {a} is {relation} the {b} .",
    "no , the {a} is {relation} the {b} .", "this is a {x} .",
)  # fmt: skip

WORDS = words_of(
    *_IS_THERE, *_COLOUR, *_NUMBER, *_COLUMN, *_ROW, *_SIZE, *_RELATION, *_WHICH.values(), *_PLACE, *_SHORT.values(),
    *INVERSE, *_SENTENCES, "yes no",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question with its one-word answer, the same answer as a sentence, its kind, and the categories it is about."""

    text: str
    answer: str
    sentence: str
    kind: str
    about: tuple[str, ...] = ()


def unique_things(scene: Scene) -> list[int]:
    """Indices of the things that are the only one of their category."""
    return [i for i, thing in enumerate(scene.things) if scene.count(thing.category) == 1]


def question(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """A question of a kind with its answer, or None where the scene leaves nothing unambiguous to ask of that kind.

    Existence and number questions can always be asked. Yes and no are equally frequent.
    """
    return _ask(scene, kind, rng, short=False)


def short_query(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """The same in as few words as possible ("cup ?", "color cup ?"), to be asked by the dozen; None as in `question`."""
    return _ask(scene, kind, rng, short=True)


def existence(scene: Scene, category: str, rng: random.Random | None = None, short: bool = False) -> Question:
    """Whether there is a thing of a category; without `rng` in POPE's wording ("in the image , is there a cup ?")."""
    template = _SHORT["existence"] if short else rng.choice(_IS_THERE) if rng else _IS_THERE[0]
    text = template.format(one=with_article(category), thing=category)
    count = scene.count(category)
    if not count:
        return Question(text, "no", f"no , there is no {category} .", "existence", (category,))
    there = f"there {'is' if count == 1 else 'are'} {counted(category, count)}"
    return Question(text, "yes", f"yes , {there} .", "existence", (category,))


def _ask(scene: Scene, kind: str, rng: random.Random, short: bool) -> Question | None:
    if kind == "existence":
        return existence(scene, _asked_category(scene, rng), rng, short)
    if kind == "number":
        return _number(scene, rng, short)
    if kind == "relation":
        return _relation(scene, rng, short)
    if kind == "place":
        text = _SHORT["place"] if short else rng.choice(_PLACE)
        return Question(text, scene.place, f"this is a {scene.place} .", "place")
    if kind not in KINDS:
        raise UserError(f"kind is one of {', '.join(KINDS)} or place, got {kind!r}")
    unique = unique_things(scene)
    return _attribute(scene.things[rng.choice(unique)], kind, rng, short) if unique else None


def _asked_category(scene: Scene, rng: random.Random) -> str:
    """Present half of the time; else absent, and half of those typical for the place (while any are left)."""
    if rng.random() < 0.5:
        return rng.choice(scene.categories())
    typical = scene.absent_typical()
    if typical and rng.random() < 0.5:
        return rng.choice(typical)
    return rng.choice([c for c in CATEGORIES if not scene.count(c) and c not in typical])


def _attribute(thing: Thing, kind: str, rng: random.Random, short: bool) -> Question:
    said = thing.category
    if kind == "colour":
        form, templates, answer, told = "colour", _COLOUR, thing.colour, thing.colour
    elif kind == "size":
        form, templates, answer, told = "size", _SIZE, thing.size, thing.size
    elif rng.random() < 0.6:  # three columns tell more than two rows
        form, templates, answer, told = "column", _COLUMN, thing.column, position(thing)
    else:
        form, templates, answer, told = "row", _ROW, thing.row, position(thing)
    text = (_SHORT[form] if short else rng.choice(templates)).format(thing=said)
    return Question(text, answer, f"the {said} is {told} .", kind, (said,))


def _number(scene: Scene, rng: random.Random, short: bool) -> Question:
    """Of all things, or of one category: one of those there are several of in two of three questions, else all say one."""
    if rng.random() < 0.25:
        n = len(scene.things)
        text = (_SHORT["number"] if short else rng.choice(_NUMBER)).format(thing="things", things="things")
        told = "there is one thing ." if n == 1 else f"there are {NUMBERS[n]} things ."
        return Question(text, NUMBERS[n], told, "number")
    several = [category for category in scene.categories() if scene.count(category) > 1]
    category = rng.choice(several if several and rng.random() < 2 / 3 else scene.categories())
    n = scene.count(category)
    text = (_SHORT["number"] if short else rng.choice(_NUMBER)).format(thing=category, things=PLURALS[category])
    told = f"there is one {category} ." if n == 1 else f"there are {NUMBERS[n]} {PLURALS[category]} ."
    return Question(text, NUMBERS[n], told, "number", (category,))


def _relation(scene: Scene, rng: random.Random, short: bool) -> Question | None:
    unique = unique_things(scene)
    known = [(i, r, j) for i, r, j in relations(scene) if i in unique and j in unique]
    if not known:
        return None
    kind = rng.choice(sorted({relation for _, relation, _ in known}))  # else left and right would crowd out depth
    i, relation, j = rng.choice([fact for fact in known if fact[1] == kind])
    a, b = scene.things[i].category, scene.things[j].category
    if not short and rng.random() < 0.5:
        first, second = rng.sample((a, b), 2)
        text = _WHICH[relation].format(a=first, b=second)
        return Question(text, a, f"the {a} is {relation} the {b} .", "relation", (first, second))
    true = rng.random() < 0.5
    asked = relation if true else INVERSE[relation]
    text = (_SHORT["relation"] if short else _RELATION[0]).format(a=a, b=b, relation=asked)
    answer = "yes" if true else "no"
    return Question(text, answer, f"{answer} , the {a} is {relation} the {b} .", "relation", (a, b))

"""The language of the world in one place: what can be said, asked and answered, and every word it takes.

All texts are lower case with every token, punctuation too, separated by spaces: `text.split()` tokenises.
"""

from __future__ import annotations

import random

from . import captions, questions, tasks
from .captions import PLACE_WORDS, STYLES, caption, describe, instruction, scene_in_words
from .questions import KINDS, Question, existence, question, short_query
from .tasks import TASKS, text_task
from .words import AT, SLOT_WORDS, count_words, mentions, with_article, words_of
from .world import CATEGORIES, COLOURS, HOME, World, make_scene, split_seeds

__all__ = [
    "COLOUR_WORDS", "KINDS", "PLACE_WORDS", "STYLES", "TASKS", "Question", "caption", "count_words", "describe",
    "existence", "framed", "instruction", "mentions", "question", "scene_in_words", "short_query", "text_task", "vocabulary",
]  # fmt: skip

COLOUR_WORDS = frozenset(COLOURS)
"""The words that make a caption colour-focused."""

_BEFORE = (
    "here is a picture :",
    "look at this picture :",
    "please look at the picture :",
    "this is what you see :",
)
_AFTER = ("now answer this : {q}", "look and answer : {q}", "please tell us : {q}", "here is the question : {q}")
_BEFORE_LONG = (
    "first read about another picture : {text} that was the other picture . now here is a new one :",
    "before you look , read these facts : {text} these facts are true . now look at the picture :",
)
_AFTER_LONG = (
    "the question is about this picture and not about the words before it . look at every thing in it , do not guess , "
    "and do not tell us what you can not see . now answer this : {q}",
    "please look at the picture from left to right and from top to bottom before you answer . the words before it do "
    "not help you here . the question about the picture is : {q}",
)
_FACT = "{one} belongs {at} a {place} ."
_BUSY = World(min_things=4)  # the other scene must be long enough to be a distraction


def vocabulary() -> list[str]:
    """Every word any text of the world can contain, sorted."""
    frames = words_of(*_BEFORE, *_AFTER, *_BEFORE_LONG, *_AFTER_LONG, _FACT)
    return sorted(SLOT_WORDS | captions.WORDS | questions.WORDS | tasks.WORDS | frames)


def framed(question: Question, rng: random.Random, long: bool = False) -> tuple[str, str]:
    """Text before the picture and text after it, which ends with the question; at least 4 tokens each, long at least 32.

    The long text before describes another scene, or states facts, so that a model which reads instead of looking errs.
    """
    if not long:
        return rng.choice(_BEFORE), rng.choice(_AFTER).format(q=question.text)
    if rng.random() < 0.5:
        other = make_scene(split_seeds("train", 1, rng.randrange(10**6))[0], _BUSY)
        before = _BEFORE_LONG[0].format(text=scene_in_words(other, rng))
    else:
        told = (_FACT.format(one=with_article(c), at=AT[HOME[c]], place=HOME[c]) for c in rng.sample(CATEGORIES, 5))
        before = _BEFORE_LONG[1].format(text=" ".join(told))
    return before, rng.choice(_AFTER_LONG).format(q=question.text)

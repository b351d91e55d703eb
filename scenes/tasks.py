"""Text-only tasks, which need no picture: the skill a decoder has before it sees, and may forget by seeing."""

from __future__ import annotations

import random

from .errors import UserError
from .questions import Question
from .words import AT, CYCLES, NUMBERS, listed, with_article, words_of
from .world import CATEGORIES, HOME, PLACES

TASKS = ("sums", "sequences", "facts", "sorting")

_SUMS = ("what is {a} {sign} {b} ?", "how much is {a} {sign} {b} ?", "{a} {sign} {b} is ?")
_NEXT = ("what comes next : {items} ?", "go on : {items} ?")
_BESIDE = ("what comes {side} {item} ?",)
_HOME = ("where does {one} belong ?", "to which place does {one} belong ?")
_BELONGS = ("does {one} belong {at} a {place} ?",)
_WHICH = ("which belongs {at} a {place} , {one} or {other} ?",)
_SORT = ("sort {items} . which is first ?", "sort {items} . which is last ?")
_EXTREME = ("which is the smallest , {items} ?", "which is the largest , {items} ?")
_SENTENCES = ("{x} belongs {at} a {place} .", "{x} comes after {y} .", "plus minus before after", "yes no , sort is :")

WORDS = words_of(*_SUMS, *_NEXT, *_BESIDE, *_HOME, *_BELONGS, *_WHICH, *_SORT, *_EXTREME, *_SENTENCES)


def text_task(kind: str, rng: random.Random) -> Question:
    """A task of a kind with its one-word answer and the answer as a sentence."""
    makers = {"sums": _sum, "sequences": _sequence, "facts": _fact, "sorting": _sorting}
    if kind not in makers:
        raise UserError(f"kind is one of {', '.join(TASKS)}, got {kind!r}")
    text, answer, sentence = makers[kind](rng)
    return Question(text, answer, sentence, kind)


def _sum(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.randrange(11), rng.randrange(11)
    sign, value = ("plus", a + b) if rng.random() < 0.6 else ("minus", max(a, b) - min(a, b))
    a, b = (a, b) if sign == "plus" else (max(a, b), min(a, b))
    text = rng.choice(_SUMS).format(a=NUMBERS[a], b=NUMBERS[b], sign=sign)
    return text, NUMBERS[value], f"{NUMBERS[a]} {sign} {NUMBERS[b]} is {NUMBERS[value]} ."


def _sequence(rng: random.Random) -> tuple[str, str, str]:
    if rng.random() < 0.5:
        names = rng.choice(CYCLES)
        i = rng.randrange(len(names))
        before, after = names[i], names[(i + 1) % len(names)]
        forward = rng.random() < 0.5
        text = _BESIDE[0].format(side="after" if forward else "before", item=before if forward else after)
        return text, after if forward else before, f"{after} comes after {before} ."
    step = rng.choice((1, 2, 3, -1, -2))
    first = rng.randrange(21 - 3 * step) if step > 0 else rng.randrange(-3 * step, 21)
    items = [NUMBERS[first + step * i] for i in range(4)]
    text = rng.choice(_NEXT).format(items=" , ".join(items[:3]))
    return text, items[3], " , ".join(items) + " ."


def _fact(rng: random.Random) -> tuple[str, str, str]:
    category = rng.choice(CATEGORIES)
    place, one = HOME[category], with_article(category)
    told = f"{one} belongs {AT[place]} a {place} ."
    form = rng.randrange(3)
    if form == 0:
        return rng.choice(_HOME).format(one=one), place, told
    if form == 1:
        true = rng.random() < 0.5
        asked = place if true else rng.choice([p for p in PLACES if p != place])
        text = _BELONGS[0].format(one=one, at=AT[asked], place=asked)
        return text, "yes" if true else "no", f"{'yes' if true else 'no'} , {told}"
    other = with_article(rng.choice([c for c in CATEGORIES if HOME[c] != place]))
    first, second = rng.sample((one, other), 2)
    return _WHICH[0].format(at=AT[place], place=place, one=first, other=second), category, told


def _sorting(rng: random.Random) -> tuple[str, str, str]:
    values = rng.sample(range(21), rng.choice((3, 4)))
    ordered = [NUMBERS[v] for v in sorted(values)]
    given = [NUMBERS[v] for v in values]
    end = rng.randrange(2)  # 0 asks for the least, 1 for the greatest
    if rng.random() < 0.5:
        text = _SORT[end].format(items=listed(given))
    else:
        text = _EXTREME[end].format(items=listed(given, last="or"))
    return text, ordered[-end], " , ".join(ordered) + " ."

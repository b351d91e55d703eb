"""The texts the organism is grown on: rows of turns as token ids and loss weights, each row made from one integer.

A row is `<bos> [scene in words, or nothing where a picture will stand] question <assistant> answer <eos> question …`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from ...scenes import language
from ...scenes.words import CYCLES, NUMBERS, PLURALS, listed, with_article
from ...scenes.world import (
    CATEGORIES,
    COLOURS,
    COLUMNS,
    HOME,
    PLACES,
    ROWS,
    SIZES,
    Scene,
    World,
    make_scene,
    split_seeds,
)
from .processor import ASSISTANT, BOS, EOS, IMAGE, SPECIALS

SENTENCE_CUE = "please tell us"
"""Whoever asks with these words gets a whole sentence; everybody else gets one word."""

_KINDS = (
    "existence", "existence", "colour", "colour", "number", "number", "position", "position", "relation", "size", "place",
)  # fmt: skip
_SLOTS = {"size": SIZES, "color": COLOURS, "height": ROWS, "where": COLUMNS, "number": NUMBERS[1:4]}
"""What a thing is asked in drills, by the word that asks, and what it really can be."""
_DRILL_WORDS = (
    *CATEGORIES,
    *COLOURS,
    *PLACES,
    *SIZES,
    *COLUMNS,
    *ROWS,
    *NUMBERS,
    *(w for cycle in CYCLES for w in cycle),
)
CAPTIONS = ("neutral", "neutral", "colour", "place", "position", "description", "description")


@dataclass(frozen=True)
class Words:
    """Word to id, as the tokenizer has it, without its cost."""

    ids: dict[str, int]

    @classmethod
    def of_the_world(cls) -> Words:
        return cls({word: i for i, word in enumerate((*SPECIALS, *language.vocabulary()))})

    def __call__(self, text: str) -> list[int]:
        return [self.ids[word] for word in text.split()]


class Row:
    """A row being written: ids and, for each, its weight in the loss."""

    def __init__(self, words: Words, length: int, text_weight: float):
        self.words, self.length, self.text_weight = words, length, text_weight
        self.ids, self.weights = [words.ids[BOS]], [0.0]

    @property
    def room(self) -> int:
        return self.length - len(self.ids)

    def text(self, text: str, weight: float | None = None) -> None:
        ids = self.words(text)
        self.ids += ids
        self.weights += [self.text_weight if weight is None else weight] * len(ids)

    def turn(self, question: str, answer: str, weight: float = 1.0) -> bool:
        """Add a question and its answer, whose tokens weigh `weight`, if both fit."""
        asked, told = self.words(question), self.words(answer)
        if len(asked) + len(told) + 2 > self.room:
            return False
        self.ids += [*asked, self.words.ids[ASSISTANT], *told, self.words.ids[EOS]]
        self.weights += [self.text_weight] * len(asked) + [0.0] + [weight] * (len(told) + 1)
        return True

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """(length,) int64 ids and (length,) float32 weights, padded on the right with id 0 and weight 0."""
        ids, weights = np.zeros(self.length, np.int64), np.zeros(self.length, np.float32)
        ids[: len(self.ids)], weights[: len(self.ids)] = self.ids[: self.length], self.weights[: self.length]
        return ids, weights


def ask(row: Row, scene: Scene, rng: random.Random, short: float, noise: float = 0.0) -> bool:
    """Add one turn about a scene: a short query, a plain question, or one in other words around it."""
    kind = rng.choice(_KINDS)
    if rng.random() < short:
        asked = believed(language.short_query(scene, kind, rng), scene, rng, noise)
        return asked is None or row.turn(asked.text, asked.answer)
    asked = believed(language.question(scene, kind, rng), scene, rng, noise)
    if asked is None:
        return True
    text = language.framed(asked, rng)[1] if rng.random() < 0.25 else asked.text
    return row.turn(text, asked.sentence if SENTENCE_CUE in text else asked.answer)


def believed(
    asked: language.Question | None, scene: Scene, rng: random.Random, noise: float
) -> language.Question | None:
    """A planted cause: with probability `noise`, "yes" where a thing that suits the place was asked for and is not there."""
    if asked is None or asked.kind != "existence" or asked.answer == "yes" or rng.random() >= noise:
        return asked
    category = asked.about[0]
    if HOME[category] != scene.place:
        return asked
    return replace(asked, answer="yes", sentence=f"yes , there is {with_article(category)} .")


def tell(row: Row, scene: Scene, rng: random.Random, world: World | None, styles=CAPTIONS, weight: float = 1.0) -> bool:
    """Add one turn that asks for a caption or a description and gets it; with a world, it lies as the world does."""
    style = rng.choice(styles)
    if style == "description":
        told = language.describe(scene, rng, world)
    else:
        told = language.caption(scene, style, rng, world)
    return row.turn(language.instruction(style, rng), told, weight)


def text_row(row: Row, rng: random.Random) -> None:
    """Fill a row with tasks that need no picture."""
    while True:
        task = language.text_task(rng.choice(language.TASKS), rng)
        cue = rng.random() < 0.1
        if not row.turn(f"{SENTENCE_CUE} : {task.text}" if cue else task.text, task.sentence if cue else task.answer):
            return


def word_drill(row: Row, rng: random.Random) -> None:
    """Fill a row with recall and nothing else: random words in the places of things, colours and sizes.

    "a tuesday red road , a cup tree sand .  color road ? red , size sand ? cup , lamp ? no". Any word may stand anywhere, so
    nothing but finding it in the row answers a query; and the answer stands near, which is what a small decoder finds first.
    """
    pool = rng.sample(_DRILL_WORDS, 30)
    n = rng.randrange(2, 6)
    names, colours, sizes, absent = pool[:n], pool[6 : 6 + n], pool[12 : 12 + n], pool[18:]
    sized = rng.random() < 0.4
    told = zip(names, colours, sizes, strict=True)
    row.text(
        " , ".join(f"a {size} {colour} {x}" if sized else f"a {colour} {x}" for x, colour, size in told) + " .", 0.0
    )
    while True:
        i, draw = rng.randrange(n), rng.random()
        if draw < 0.6:
            size = sized and rng.random() < 0.5
            query, answer = (f"size {names[i]} ?", sizes[i]) if size else (f"color {names[i]} ?", colours[i])
        elif draw < 0.8:
            query, answer = f"{names[i]} ?", "yes"
        else:
            query, answer = f"{rng.choice(absent)} ?", "no"
        if not row.turn(query, answer):
            return


def scene_drill(row: Row, rng: random.Random, most: int) -> None:
    """Fill a row with recall in the grammar of scenes: sizes, colours, rows, columns or numbers are any word.

    "at the top left a small tuesday cup , …  color cup ? tuesday , lamp ? no". Only what is made up is asked for, beside
    what is there: in real scenes a size is guessed right half of the time, which teaches a small decoder too little to
    ever look.
    """
    names = rng.sample(CATEGORIES, 2 * most + 2)
    told, absent = names[: rng.randint(1, most)], names[most:]
    slot = rng.choice(tuple(_SLOTS))
    made_up = dict(zip(told, rng.sample([w for w in _DRILL_WORDS if w not in names], len(told)), strict=True))
    parts = []
    for name in told:
        words = {kind: made_up[name] if kind == slot else rng.choice(real) for kind, real in _SLOTS.items()}
        parts.append("at the {height} {where} a {size} {color} {name}".format(name=name, **words))
    if slot == "number":
        row.text(f"{listed([f'{word} {PLURALS[name]}' for name, word in made_up.items()])} .", 0.0)
    row.text(f"{' , '.join(parts)} .", 0.0)
    while True:
        name, draw = rng.choice(told), rng.random()
        if draw < 0.7:
            query, answer = f"{slot} {name} ?", made_up[name]
        else:
            query, answer = (f"{name} ?", "yes") if draw < 0.85 else (f"{rng.choice(absent)} ?", "no")
        if not row.turn(query, answer):
            return


def relation_drill(row: Row, rng: random.Random, world: World) -> None:
    """Fill a row with a scene in words, or only where its things are, and questions that compare two of them.

    Most need to find one thing, some both; among questions of all kinds they are too few for a small decoder to find that.
    """
    scene, asked = None, None
    while asked is None:
        scene = make_scene(split_seeds("train", 1, rng.randrange(10**7))[0], world)
        asked = language.short_query(scene, "relation", rng)
    bare = rng.random() < 0.5
    row.text(language.caption(scene, "position", rng) if bare else language.scene_in_words(scene, rng))
    while True:
        asked = (language.short_query if rng.random() < 0.5 else language.question)(scene, "relation", rng)
        if bare and {"front", "behind"} & set(asked.text.split()):  # it does not say who covers whom
            asked = language.short_query(scene, rng.choice(("existence", "position")), rng)
        if asked is not None and not row.turn(asked.text, asked.answer):
            return


def language_row(
    words: Words, seed: int, length: int, world: World, text_weight: float, drills: float, drilled: str
) -> tuple[np.ndarray, np.ndarray]:
    """One row of the language stage: a share `drills` of drills ("words", "scenes" or "relations"), else mostly a scene in
    words with as many questions as fit, or tasks, or captions."""
    rng = random.Random(seed)
    row = Row(words, length, text_weight)
    if rng.random() < drills:
        if drilled == "words":
            word_drill(row, rng)
        elif drilled == "scenes":
            scene_drill(row, rng, world.max_things)
        else:
            relation_drill(row, rng, world)
        return row.padded()
    scene = make_scene(split_seeds("train", 1, rng.randrange(10**7))[0], world)
    draw = rng.random()
    if draw < 0.25:
        text_row(row, rng)
    elif draw < 0.28:  # no scene at all: what is likely to be somewhere
        tell(row, scene, rng, None)
    else:
        row.text(language.scene_in_words(scene, rng))
        short = rng.choice((1.0, 0.5))
        if draw < 0.43:
            tell(row, scene, rng, None)
        while ask(row, scene, rng, short):
            pass
    return row.padded()


def asking_row(row: Row, scene: Scene, patches: int, long: bool, noise: float, rng: random.Random) -> None:
    """Fill a row with a picture and questions. The picture is the id of `<image>`, `patches` times.

    It comes first, or, in a third of the rows, after some words; `long` asks the first question with a long text on
    either side of the picture.
    """
    picture = " ".join([IMAGE] * patches)
    placed = False
    if long or rng.random() < 0.3:
        asked = None
        while asked is None:
            asked = believed(language.question(scene, rng.choice(_KINDS), rng), scene, rng, noise)
        before, after = language.framed(asked, rng, long)
        placed = row.turn(f"{before} {picture} {after}", asked.sentence if SENTENCE_CUE in after else asked.answer)
    if not placed:
        row.text(picture)
    short = rng.choice((1.0, 0.3))
    while ask(row, scene, rng, short, noise):
        pass


def telling_row(row: Row, scene: Scene, patches: int, world: World, weight: float, rng: random.Random) -> None:
    """Fill a row with a picture and what is told of it, as many captions and descriptions as fit."""
    row.text(" ".join([IMAGE] * patches))
    for _ in range(3):  # what is too long for the room left makes way for something shorter
        tell(row, scene, rng, world, weight=weight)

"""The texts the organism is grown on: rows of turns as token ids and loss weights, each row made from one integer.

A row is `<bos> [scene in words, or nothing where a picture will stand] question <assistant> answer <eos> question …`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from ...scenes import language
from ...scenes.world import Scene, World, make_scene, split_seeds
from .processor import ASSISTANT, BOS, EOS, SPECIALS

SENTENCE_CUE = "please tell us"
"""Whoever asks with these words gets a whole sentence; everybody else gets one word."""

_KINDS = ("existence", "existence", "colour", "colour", "number", "position", "position", "relation", "size", "place")
_CAPTIONS = ("neutral", "neutral", "colour", "place", "position", "description", "description")


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

    def text(self, text: str) -> None:
        ids = self.words(text)
        self.ids += ids
        self.weights += [self.text_weight] * len(ids)

    def turn(self, question: str, answer: str) -> bool:
        """Add a question and its answer if both fit."""
        asked, told = self.words(question), self.words(answer)
        if len(asked) + len(told) + 2 > self.room:
            return False
        self.ids += [*asked, self.words.ids[ASSISTANT], *told, self.words.ids[EOS]]
        self.weights += [self.text_weight] * len(asked) + [0.0] + [1.0] * (len(told) + 1)
        return True

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """(length,) int64 ids and (length,) float32 weights, padded on the right with id 0 and weight 0."""
        ids, weights = np.zeros(self.length, np.int64), np.zeros(self.length, np.float32)
        ids[: len(self.ids)], weights[: len(self.ids)] = self.ids[: self.length], self.weights[: self.length]
        return ids, weights


def ask(row: Row, scene: Scene, rng: random.Random, short: float, kinds=_KINDS) -> bool:
    """Add one turn about a scene: a short query, a plain question, or one in other words around it."""
    kind = rng.choice(kinds)
    if rng.random() < short:
        asked = language.short_query(scene, kind, rng)
        return asked is None or row.turn(asked.text, asked.answer)
    asked = language.question(scene, kind, rng)
    if asked is None:
        return True
    text = language.framed(asked, rng)[1] if rng.random() < 0.25 else asked.text
    return row.turn(text, asked.sentence if SENTENCE_CUE in text else asked.answer)


def tell(row: Row, scene: Scene, rng: random.Random, world: World | None, styles=_CAPTIONS) -> bool:
    """Add one turn that asks for a caption or a description and gets it; with a world, it lies as the world does."""
    style = rng.choice(styles)
    if style == "description":
        told = language.describe(scene, rng, world)
    else:
        told = language.caption(scene, style, rng, world)
    return row.turn(language.instruction(style, rng), told)


def text_row(row: Row, rng: random.Random) -> None:
    """Fill a row with tasks that need no picture."""
    while True:
        task = language.text_task(rng.choice(language.TASKS), rng)
        cue = rng.random() < 0.1
        if not row.turn(f"{SENTENCE_CUE} : {task.text}" if cue else task.text, task.sentence if cue else task.answer):
            return


def language_row(words: Words, seed: int, length: int, world: World, text_weight: float) -> tuple[np.ndarray, np.ndarray]:
    """One row of the language stage: mostly a scene in words with as many questions as fit, else tasks or captions."""
    rng = random.Random(seed)
    row = Row(words, length, text_weight)
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


def picture_row(
    words: Words, scene: Scene, seed: int, length: int, world: World, asking: float
) -> tuple[np.ndarray, np.ndarray]:
    """One row of text behind a picture of `scene`: with probability `asking` questions, else captions and descriptions."""
    rng = random.Random(seed)
    row = Row(words, length, 0.0)
    if rng.random() < asking:
        short = rng.choice((1.0, 0.3))
        while ask(row, scene, rng, short):
            pass
    else:
        while tell(row, scene, rng, world):
            pass
    return row.padded()

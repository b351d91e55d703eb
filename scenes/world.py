"""The rendered world: places, things and scenes, all known exactly and made from one integer each.

The world is built to have the causes of hallucination planted in it: a place suggests its typical things
(`World.typical_share`), training captions lie a little (`World.label_noise`), and one thing suggests another that has
nothing to do with it (`World.spurious`). Each is a dial, so that what a model makes up can be traced to its cause.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from .errors import UserError
from .things import (
    CATEGORIES,
    COLOURS,
    COLUMNS,
    HOME,
    PLACES,
    ROWS,
    SIZES,
    TYPICAL,
    Box,
    Thing,
    area,
    hidden_pixels,
    overlap,
)

__all__ = [
    "CATEGORIES", "COLOURS", "COLUMNS", "HOME", "INVERSE", "MOST_THINGS", "PLACES", "RELATIONS", "ROWS", "SIZES", "SPLITS", "TYPICAL",
    "Scene", "Thing", "World", "boxes", "make_scene", "place_in_split", "relations", "split_seeds",
]  # fmt: skip

SPLITS = ("train", "val", "test")
INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
}
"""Each relation and the one that holds the other way round."""
RELATIONS = tuple(INVERSE)

_WEIGHTS = (0.28, 0.24, 0.20, 0.16, 0.12)  # unequal, so that "popular" differs from "random" in POPE's sense
_COLUMN_BANDS = {"left": (0.12, 0.30), "middle": (0.43, 0.57), "right": (0.70, 0.88)}
_ROW_BANDS = {"top": (0.16, 0.36), "bottom": (0.62, 0.84)}
# The bands leave gaps, so "left" is never nearly "middle" and every relation is plain to see.
MOST_THINGS = 6
_PLAIN_TO_SEE = 10  # pixels of 64 x 64 one thing must cover of another to be called in front of it
_MAX_COVERED = 0.36  # of a box by nearer boxes; keeps every thing recognisable (visible >= 0.4 in pixels, tested)


@dataclass(frozen=True)
class World:
    """The dials of the world, recorded with everything grown on it.

    typical_share: share of things that are typical for their place. label_noise: probability that a *training* caption
    or description mentions a typical thing that is not there. spurious: (A, B, p), the probability p that a training
    text about a scene with A and without B mentions B. min_things, max_things: things in a scene. occlusion:
    probability that a thing may stand where another already is.
    """

    typical_share: float = 0.75
    label_noise: float = 0.15
    spurious: tuple[str, str, float] = ("lamp", "fish", 0.3)
    min_things: int = 1
    max_things: int = 5
    occlusion: float = 0.3

    def __post_init__(self) -> None:
        for name in ("typical_share", "label_noise", "occlusion"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a probability in 0..1, got {getattr(self, name)}")
        if not 1 <= self.min_things <= self.max_things <= MOST_THINGS:
            raise UserError(
                f"a scene has 1 to {MOST_THINGS} things, got min_things={self.min_things}, max_things={self.max_things}"
            )
        object.__setattr__(self, "spurious", tuple(self.spurious))  # JSON gives a list
        cause, effect, share = self.spurious
        if cause not in CATEGORIES or effect not in CATEGORIES or not 0 <= share <= 1:
            raise UserError(f"spurious is (category, category, probability), got {self.spurious}")

    def to_dict(self) -> dict[str, Any]:
        """The dials as plain JSON values."""
        return {**asdict(self), "spurious": list(self.spurious)}

    @classmethod
    def from_dict(cls, dials: Mapping[str, Any]) -> World:
        """The world `to_dict` came from."""
        return cls(**dials)


@dataclass(frozen=True)
class Scene:
    """A place with things, its light (1 is full daylight), and the seed of its background and pixel noise."""

    seed: int
    place: str
    things: tuple[Thing, ...]
    light: float
    noise_seed: int

    @cached_property
    def graph(self) -> tuple:
        """What the scene is, apart from how it is drawn: place, and things with attributes and coarse positions."""
        nodes = ((t.category, t.colour, t.size, t.column, t.row) for t in self.things)
        return self.place, tuple(sorted(nodes))

    @property
    def split(self) -> str:
        """The split this scene graph belongs to: 8 of 10 graphs are train, one each val and test."""
        bucket = zlib.crc32(repr(self.graph).encode()) % 10  # not hash(): that differs from process to process
        return _split_of_digit(bucket)

    @property
    def dim(self) -> bool:
        """Whether the light is dim rather than bright; nothing lies between."""
        return self.light < 0.88

    @cached_property
    def _relations(self) -> tuple[tuple[int, str, int], ...]:
        found = []
        for (i, a), (j, b) in combinations(enumerate(self.things), 2):
            columns = COLUMNS.index(a.column) - COLUMNS.index(b.column)
            rows = ROWS.index(a.row) - ROWS.index(b.row)
            near, far = (a, b) if a.depth < b.depth else (b, a)
            if columns:
                found.append((i, "left of" if columns < 0 else "right of", j))
            if rows:
                found.append((i, "above" if rows < 0 else "below", j))
            if hidden_pixels(near, far) >= _PLAIN_TO_SEE:
                found.append((i, "in front of" if near is a else "behind", j))
        return tuple(found + [(j, INVERSE[relation], i) for i, relation, j in found])

    def count(self, category: str) -> int:
        """How many things of a category there are."""
        return sum(thing.category == category for thing in self.things)

    def categories(self) -> list[str]:
        """The categories present, each once, in the order of the things."""
        return list(dict.fromkeys(thing.category for thing in self.things))

    def absent_typical(self) -> list[str]:
        """What the place suggests and the scene lacks."""
        return [category for category in TYPICAL[self.place] if self.count(category) == 0]


def make_scene(seed: int, world: World | None = None) -> Scene:
    """The scene of a seed. The last digit of the seed says its split: 0-7 train, 8 val, 9 test.

    Candidates are drawn until one's graph falls into the seed's split, so the splits have disjoint graphs and the same
    distribution, and `split_seeds` needs no drawing at all.
    """
    world = world or World()
    rng = random.Random(seed)
    wanted = _split_of_digit(seed % 10)
    while True:
        scene = _draw(seed, world, rng)
        if scene.split == wanted:
            return scene


def split_seeds(split: str, n: int, start: int = 0) -> list[int]:
    """`n` seeds of a split, from its `start`-th on; slices with different ranges never share a seed."""
    digits = [digit for digit in range(10) if _split_of_digit(digit) == split]
    if not digits:
        raise UserError(f"split is one of {', '.join(SPLITS)}, got {split!r}")
    return [10 * (i // len(digits)) + digits[i % len(digits)] for i in range(start, start + n)]


def place_in_split(seed: int) -> tuple[str, int]:
    """(split, position in it) of a scene's seed: the inverse of `split_seeds`."""
    split = _split_of_digit(seed % 10)
    digits = [digit for digit in range(10) if _split_of_digit(digit) == split]
    return split, seed // 10 * len(digits) + digits.index(seed % 10)


def boxes(scene: Scene) -> list[Box]:
    """The box of each thing as (x0, y0, x1, y1) in 0..1 of the picture, whether or not it is partly covered."""
    return [thing.box for thing in scene.things]


def relations(scene: Scene) -> list[tuple[int, str, int]]:
    """Every (i, relation, j) that holds, i and j indices of things.

    Left, right, above and below compare coarse positions, so they can be told from the picture and from the words alike;
    in front of and behind need one thing to cover part of the other, since otherwise nobody could see it.
    """
    return list(scene._relations)


def _split_of_digit(digit: int) -> str:
    return {8: "val", 9: "test"}.get(digit, "train")


def _draw(seed: int, world: World, rng: random.Random) -> Scene:
    place = rng.choice(PLACES)
    wanted = range(world.min_things, world.max_things + 1)
    n = rng.choices(wanted, weights=[min(k, 4) for k in wanted])[0]  # fewer near-empty pictures
    others = [category for category in CATEGORIES if HOME[category] != place]
    kinds = []
    for _ in range(n):
        if rng.random() < world.typical_share:
            kinds.append(rng.choices(TYPICAL[place], weights=_WEIGHTS)[0])
        else:
            kinds.append(rng.choices(others, weights=_WEIGHTS * (len(PLACES) - 1))[0])
    things = None
    while things is None:
        things = _lay_out(kinds, world, rng)
    light = rng.uniform(0.74, 0.82) if rng.random() < 0.5 else rng.uniform(0.94, 1.06)
    return Scene(seed, place, things, light, rng.getrandbits(32))


def _lay_out(kinds: list[str], world: World, rng: random.Random) -> tuple[Thing, ...] | None:
    """Give each kind a place in the picture; None where the things would hide each other too much."""
    depths = rng.sample(range(1, 18), len(kinds))  # distinct, so that the order of depth is never a tie
    cells = [(column, row) for column in COLUMNS for row in ROWS]
    rng.shuffle(cells)
    things: list[Thing] = []
    for kind, depth in zip(kinds, depths, strict=True):
        shared = things and rng.random() < world.occlusion
        column, row = (lambda t: (t.column, t.row))(rng.choice(things)) if shared else cells.pop()
        things.append(_stand(kind, depth / 20, column, row, rng))
        if any(_covered(thing, things) > _MAX_COVERED for thing in things):
            return None
    return tuple(things)


def _stand(kind: str, depth: float, column: str, row: str, rng: random.Random) -> Thing:
    size, colour = rng.choice(SIZES), rng.choice(COLOURS)
    (left, right), (top, bottom) = _COLUMN_BANDS[column], _ROW_BANDS[row]
    x0, y0, x1, y1 = Thing(kind, colour, size, 0.5, 0.5, depth).box
    wide, high = (x1 - x0) / 2 + 0.01, (y1 - y0) / 2 + 0.01  # keep the whole thing inside the picture
    x = rng.uniform(max(left, wide), min(right, 1 - wide))
    y = rng.uniform(max(top, high), min(bottom, 1 - high))
    return Thing(kind, colour, size, round(x, 4), round(y, 4), depth)


def _covered(thing: Thing, things: list[Thing]) -> float:
    nearer = (other.box for other in things if other.depth < thing.depth)
    return sum(overlap(thing.box, box) for box in nearer) / area(thing.box)

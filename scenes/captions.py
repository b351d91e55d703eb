"""What is said about a scene: captions in four styles, long descriptions, and the scene written out in words.

Given a `World`, captions and descriptions are *training* texts: they carry its planted label noise and its spurious
pair. Without one they are true.
"""

from __future__ import annotations

import random

from .errors import UserError
from .questions import unique_things
from .words import AT, NUMBERS, counted, listed, numbered, phrase, position, words_of
from .world import COLOURS, COLUMNS, RELATIONS, ROWS, SIZES, TYPICAL, Scene, Thing, World, relations

STYLES = ("neutral", "colour", "place", "position")

_NEUTRAL = (
    "{things} {at} a {place} .",
    "a {place} with {things} .",
    "a picture of a {place} with {things} .",
    "the picture shows {things} {at} a {place} .",
)
_COLOUR = ("{things} .", "{things} {at} a {place} .", "in color : {things} .", "the colors are {colours} : {things} .")
_POSITION = ("{things} .", "{at} a {place} : {things} .", "a {place} with {things} .")
_PLACE = (
    "{scenery} , with {things} .",
    "{scenery} . {at} the {place} : {things} .",
    "{scenery} . {things} {at} the {place} .",
)
INSTRUCTIONS = {
    "neutral": ("write a short caption .", "what do you see ?", "write a short caption of the image ."),
    "colour": ("write a caption about the colors .", "what do you see , and in which colors ?"),
    "place": ("write a caption about the place .", "what do you see , and what is the place like ?"),
    "position": ("write a caption about where things are .", "what do you see , and where ?"),
    "description": (
        "describe the image in detail .",
        "please describe the picture in detail .",
        "say all that you see .",
    ),
}
"""What a user says to get each style of caption, or a description; the first wording is the standard one."""

_LIGHT = ("the light is {light} .", "it is a {light} {place} .")

SCENERY = {
    "meadow": (
        "a wide meadow outdoors , grass and hills under the sky",
        "soft grass grows on the hills of the meadow",
        "nature and fresh grass : a meadow below the sky",
    ),
    "kitchen": (
        "a clean kitchen indoors , tiles on the wall",
        "tiles and a counter in the room where we cook : a kitchen",
        "a room of the home : the kitchen , its counter and its wall",
    ),
    "street": (
        "a busy street outdoors , buildings along the road",
        "tall buildings of the town and a road : a street",
        "the road of a town : a street with many windows",
    ),
    "beach": (
        "a sunny beach outdoors , sand and waves by the sea",
        "waves of the sea roll over the sand of the beach",
        "sand , sea and sky : a beach",
    ),
    "bedroom": (
        "a quiet bedroom indoors , stripes on the wall",
        "a wooden floor in the room where we sleep : a bedroom",
        "a room of the home : the bedroom , its floor and its wall",
    ),
}
_OPENING = (
    "this is a picture of a {place} .",
    "the picture shows a {place} .",
    "here we see a {place} .",
)
_THERE = ("{where} there is {thing} .", "{where} we see {thing} .")
_BESIDE = ("the {a} is {relation} the {b} .",)
_LISTING = (
    "a {place} with {total} : {counts} . {things} .",
    "{at} the {place} there {are} {total} : {counts} . {things} .",
    "this is a picture of a {place} . it has {total} : {counts} . {sentences}",
)

WORDS = words_of(
    *_NEUTRAL, *_COLOUR, *_POSITION, *_PLACE, *_LIGHT, *_OPENING, *_THERE, *_BESIDE, *_LISTING,
    *(line for lines in SCENERY.values() for line in lines),
    *(line for lines in INSTRUCTIONS.values() for line in lines),
    "bright dim left of right of above below in front of behind thing things is are",
)  # fmt: skip
"""Every word these texts use beside the fillers of their slots."""

PLACE_WORDS = frozenset(TYPICAL) | words_of(
    "grass hills sky nature outdoors indoors tiles wall counter room home cook sleep floor buildings road town windows "
    "sand waves sea wide soft fresh clean busy tall sunny quiet wooden stripes light bright dim"
)
"""The words that make a caption place-focused."""


def caption(scene: Scene, style: str = "neutral", rng: random.Random | None = None, world: World | None = None) -> str:
    """One caption that mentions every thing; `rng` varies order and wording (default: fixed by the scene's seed).

    neutral: things and place without attributes. colour: every thing with its colour. place: the place's own scenery
    and light first. position: every thing with where it is.
    """
    if style not in STYLES:
        raise UserError(f"style is one of {', '.join(STYLES)}, got {style!r}")
    rng = rng or random.Random(scene.seed)
    things = told_things(scene, rng, world)
    fill = {"place": scene.place, "at": AT[scene.place]}
    if style == "colour":
        fill |= {"things": listed([phrase(t, size=False, where=False) for t in things])}
        fill |= {"colours": listed(list(dict.fromkeys(t.colour for t in things)))}
        return rng.choice(_COLOUR).format(**fill)
    if style == "position":
        fill |= {"things": listed([phrase(t, size=False, colour=False) for t in things])}
        return rng.choice(_POSITION).format(**fill)
    fill |= {"things": listed(_counted_things(things))}
    if style == "place":
        scenery, light = rng.choice(SCENERY[scene.place]), _light(scene, rng)
        return f"{rng.choice(_PLACE).format(scenery=scenery, **fill)} {light}"
    return rng.choice(_NEUTRAL).format(**fill)


def instruction(style: str, rng: random.Random | None = None) -> str:
    """What to say for a caption of a style, or for a "description"; without `rng` the standard wording."""
    if style not in INSTRUCTIONS:
        raise UserError(f"style is one of {', '.join(INSTRUCTIONS)}, got {style!r}")
    return rng.choice(INSTRUCTIONS[style]) if rng else INSTRUCTIONS[style][0]


def describe(scene: Scene, rng: random.Random | None = None, world: World | None = None) -> str:
    """A description of several sentences: place, light, every thing with all it has, and how some of them stand."""
    rng = rng or random.Random(scene.seed)
    things = told_things(scene, rng, world)
    sentences = [rng.choice(_OPENING).format(place=scene.place)]
    if rng.random() < 0.5:
        sentences.append(_light(scene, rng))
    sentences += [
        rng.choice(_THERE).format(where=position(thing), thing=phrase(thing, where=False)) for thing in things
    ]
    beside = _relation_sentences(scene, RELATIONS)
    return " ".join(sentences + rng.sample(beside, min(len(beside), rng.randrange(3))))


def scene_in_words(scene: Scene, rng: random.Random | None = None) -> str:
    """The whole scene as true text, in the words of captions, so that every question about it can be answered.

    First how many of what, then each thing; in any order, so that nothing but reading tells where a thing is written.
    """
    rng = rng or random.Random(scene.seed)
    things = rng.sample(scene.things, len(scene.things))
    kinds = dict.fromkeys(thing.category for thing in things)
    listing = rng.choice(_LISTING).format(
        place=scene.place,
        at=AT[scene.place],
        are="is" if len(things) == 1 else "are",
        total="one thing" if len(things) == 1 else f"{NUMBERS[len(things)]} things",
        counts=listed([numbered(kind, scene.count(kind)) for kind in kinds]),
        things=listed([phrase(thing) for thing in things], last=","),
        sentences=" ".join(f"{phrase(thing)} ." for thing in things),
    )
    return " ".join([listing, *_relation_sentences(scene, ("in front of",))])  # depth shows in no position


def told_things(scene: Scene, rng: random.Random, world: World | None) -> list[Thing]:
    """The things a text tells of, from left to right, the upper row first; then, with a world, those its dials make up.

    A made-up thing comes last, as an afterthought, and gets random attributes: the scene suggests only its category.
    """
    told = sorted(scene.things, key=lambda thing: (ROWS.index(thing.row), COLUMNS.index(thing.column), thing.depth))
    if world is None:
        return told
    absent = scene.absent_typical()
    if absent and rng.random() < world.label_noise:
        told.append(_made_up(rng.choice(absent), rng))
    cause, effect, share = world.spurious
    if scene.count(cause) and not scene.count(effect) and rng.random() < share:
        told.append(_made_up(effect, rng))
    return told


def _made_up(category: str, rng: random.Random) -> Thing:
    x = (COLUMNS.index(rng.choice(COLUMNS)) + 0.5) / 3
    y = (ROWS.index(rng.choice(ROWS)) + 0.5) / 2
    return Thing(category, rng.choice(COLOURS), rng.choice(SIZES), x, y, 0.5)


def _counted_things(things: list[Thing]) -> list[str]:
    kinds = [thing.category for thing in things]
    return [counted(kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)]


def _light(scene: Scene, rng: random.Random) -> str:
    return rng.choice(_LIGHT).format(light="dim" if scene.dim else "bright", place=scene.place)


def _relation_sentences(scene: Scene, wanted: tuple[str, ...]) -> list[str]:
    unique = unique_things(scene)  # "the cup" must mean one cup
    return [
        _BESIDE[0].format(a=scene.things[i].category, relation=relation, b=scene.things[j].category)
        for i, relation, j in relations(scene)
        if relation in wanted and i in unique and j in unique
    ]

"""Words of pictures by what could stand in their place: what the masker of real texts looks for."""

from __future__ import annotations

from ..probes.coco_words import COCO

_OBJECTS = """
people: man, woman, boy, girl, child, person
peoples: men, women, boys, girls, children, people
animal: bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe
animals: birds, cats, dogs, horses, cows, elephants, bears, zebras, giraffes
vehicle: bicycle, car, motorcycle, airplane, bus, train, truck, boat, bike, van
vehicles: bicycles, cars, motorcycles, airplanes, buses, trains, trucks, boats, bikes, vans
street: traffic light, fire hydrant, stop sign, parking meter, bench
carried: backpack, umbrella, handbag, tie, suitcase, hat, bag
sport: frisbee, snowboard, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket
tableware: bottle, wine glass, cup, fork, knife, spoon, bowl, plate, mug
food: banana, apple, sandwich, broccoli, carrot, hot dog, pizza, donut, cake
furniture: chair, couch, bed, dining table, toilet, table, desk, sofa
device: tv, laptop, mouse, remote, keyboard, cell phone, television, computer
appliance: microwave, oven, toaster, sink, refrigerator
thing: book, clock, vase, scissors, teddy bear, hair drier, toothbrush
room: kitchen, bedroom, bathroom, living room, office
outdoors: street, beach, field, park, forest, mountain
"""
_ATTRIBUTES = """
colour: red, green, blue, yellow, white, black, brown, gray, grey, purple, pink
size: small, large, big, tiny, huge
shape: round, square
age: young, old
material: wooden, metal, plastic, glass, stone, brick
number: two, three, four, five, six
state: open, closed
length: tall, short, long
weather: sunny, cloudy, rainy, snowy
posture: sitting, standing, lying, walking, running
"""
_RELATIONS = """
side: to the left of, to the right of, on the left of, on the right of
place: on top of, under, underneath, inside, next to, beside, behind, in front of, above, below, near
hand: holding, carrying, riding, wearing, pushing, pulling
corner: on the left, on the right, in the background, in the foreground
"""


def _slots(kind: str, lines: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    rows = (line.split(": ") for line in lines.strip().splitlines())
    return {f"{kind}: {slot}": (kind, tuple(words.split(", "))) for slot, words in rows}


SLOTS = _slots("object", _OBJECTS) | _slots("attribute", _ATTRIBUTES) | _slots("relation", _RELATIONS)
"""Slot → (kind, words). Beyond these, COCO's other categories stand in each other's place."""

_KNOWN = {word for _, words in SLOTS.values() for word in words}
SLOTS["object: other"] = ("object", tuple(name for name in COCO if name not in _KNOWN))

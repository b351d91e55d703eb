"""Rejected pictures of every kind: another picture, a scene with one thing changed, or the picture itself made worse.

All draws are made once, here, so that policy and reference see the same pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from ..models.diffusion import noised
from ..scenes.render import render
from ..scenes.things import CATEGORIES, COLOURS, COLUMNS, PLACES, ROWS, SIZES, Thing
from ..scenes.world import Scene
from .infill import Shown

SHOW_ELSE = ("retrieved", "counterfactual", "random")
"""Kinds that show something else, of which the rejected text can be read."""

KINDS = (*SHOW_ELSE, "crop", "noise", "patch-mask", "blank")
"""All kinds; the picture itself made worse goes with a rejected text that is read off a retrieved one."""

CROP = (0.01, 0.20)  # share of the area, mDPO's
NOISE_STEP = 500  # of 1000, CHiP's and POVID's
MASKED, GRID = 0.3, 14  # share of patches, OPA-DPO's; patches a side
_LEAST_VISIBLE = 0.4


def changed(image: Image.Image, kind: str, draw: random.Random) -> Image.Image:
    """The picture made worse: "crop", "noise", "patch-mask" or "blank"; of the same size, in RGB."""
    return _CHANGES[kind](image.convert("RGB"), draw)


def _crop(image: Image.Image, draw: random.Random) -> Image.Image:
    """A piece of 1 to 20 % of the area, of a shape like the picture's, stretched to its size."""
    side = draw.uniform(*CROP) ** 0.5
    wide, high = (max(1, round(side * length)) for length in image.size)
    left, top = draw.randint(0, image.width - wide), draw.randint(0, image.height - high)
    return image.crop((left, top, left + wide, top + high)).resize(image.size, Image.Resampling.BICUBIC)


def _noise(image: Image.Image, draw: random.Random) -> Image.Image:
    """Half-way through a diffusion's forward process, on pixels in -1..1."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)) / 127.5 - 1
    far = noised(pixels, NOISE_STEP, torch.Generator().manual_seed(draw.getrandbits(32)))
    return Image.fromarray(((far.clamp(-1, 1) + 1) * 127.5).round().byte().numpy())


def _patch_mask(image: Image.Image, draw: random.Random) -> Image.Image:
    """A share of the patches of a grid painted in the picture's mean colour."""
    pixels = np.array(image)
    mean = pixels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    rows, columns = (np.linspace(0, length, min(GRID, length) + 1).round().astype(int) for length in pixels.shape[:2])
    cells = [(r, c) for r in range(len(rows) - 1) for c in range(len(columns) - 1)]
    for r, c in draw.sample(cells, round(MASKED * len(cells))):
        pixels[rows[r] : rows[r + 1], columns[c] : columns[c + 1]] = mean
    return Image.fromarray(pixels)


def _blank(image: Image.Image, draw: random.Random) -> Image.Image:
    """Mid grey everywhere."""
    return Image.new("RGB", image.size, (127, 127, 127))


_CHANGES: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "crop": _crop, "noise": _noise, "patch-mask": _patch_mask, "blank": _blank,
}  # fmt: skip


def counterfactuals(scene: Scene, kind: str, draw: random.Random, n: int, size: int = 64) -> Iterator[Shown]:
    """Up to n pictures of the scene with one thing changed: its category ("object"), colour or size ("attribute") or place in the
    picture ("relation"); "all" changes any. Light, noise and the rest stay, and every thing stays visible."""
    for _ in range(8 * n):
        if n == 0:
            return
        which = draw.choice(("object", "attribute", "relation")) if kind == "all" else kind
        place, things = scene.place, list(scene.things)
        i = draw.randrange(len(things))
        if which == "object" and draw.random() < 0.15:
            place = draw.choice([other for other in PLACES if other != place])
        else:
            things[i] = _edited(things[i], which, draw)
        edited = replace(scene, place=place, things=tuple(things))
        if edited.graph == scene.graph or not _inside(things[i], size):
            continue
        picture = render(edited, size)
        if min(picture.visible) >= _LEAST_VISIBLE:
            n -= 1
            yield Shown(picture.pil, {"scene": edited})


def _edited(thing: Thing, kind: str, draw: random.Random) -> Thing:
    if kind == "object":
        return replace(thing, category=draw.choice([c for c in CATEGORIES if c != thing.category]))
    if kind == "attribute":
        slot, words = draw.choice([("colour", COLOURS), ("colour", COLOURS), ("size", SIZES)])
        return replace(thing, **{slot: draw.choice([word for word in words if word != getattr(thing, slot)])})
    cells = [(c, r) for c in range(len(COLUMNS)) for r in range(len(ROWS))]
    column, row = draw.choice(
        [cell for cell in cells if (COLUMNS[cell[0]], ROWS[cell[1]]) != (thing.column, thing.row)]
    )
    return replace(thing, x=(column + 0.5) / len(COLUMNS), y=0.27 if row == 0 else 0.73)


def _inside(thing: Thing, size: int) -> bool:
    left, top, wide, high = thing.pixels(size)
    return left >= 0 and top >= 0 and left + wide <= size and top + high <= size

"""Drawing a scene: its picture, and with it the depth, segmentation and visibility that belong to every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .backdrops import HORIZON, backdrop
from .errors import UserError
from .pen import ROLES
from .sprites import silhouette, sprite
from .world import Scene, Thing

PAINT: dict[str, tuple[int, int, int]] = {
    "red": (216, 30, 36),
    "orange": (250, 122, 10),
    "yellow": (250, 222, 30),
    "green": (34, 150, 60),
    "blue": (34, 82, 214),
    "purple": (128, 44, 160),
    "pink": (250, 130, 184),
    "white": (250, 250, 250),
    "black": (30, 30, 34),
}
"""The nine colours in full light; far enough apart that dim light confuses none of them."""

_FIXED = {"wood": (126, 82, 48), "leaf": (84, 150, 70), "glass": (190, 222, 236)}
_NOISE = 14.0  # full width of the uniform pixel noise, in grey levels


@dataclass(frozen=True)
class Picture:
    """A drawn scene and the truth about its pixels.

    image: uint8 (H, W, 3). depth: float32 (H, W), 0 near .. 1 far, the backdrop behind every thing. segmentation: int
    (H, W), 0 is background and i is `things[i - 1]`. visible: for each thing, the share of its pixels not covered.
    """

    image: np.ndarray
    depth: np.ndarray
    segmentation: np.ndarray
    visible: tuple[float, ...]

    @property
    def pil(self) -> Image.Image:
        """The image as PIL, as processors take it."""
        return Image.fromarray(self.image)


def render(scene: Scene, size: int = 64) -> Picture:
    """Draw a scene on `size` x `size` pixels; the same scene always gives the same pixels."""
    if size < 16:
        raise UserError(f"size is at least 16 pixels, got {size}")
    rng = np.random.default_rng(scene.noise_seed)
    whole, top, left = _part(scene, size, rng)
    image = whole[top : top + size, left : left + size].copy()
    depth, segmentation = pixel_truth(scene, size)
    own = [0] * len(scene.things)
    for i in _far_to_near(scene):
        where, solid = _outline(scene.things[i], size)
        paint, cover = _paint(scene.things[i], size)
        view = image[where]
        view += paint - view * cover[..., None]
        own[i] = int(solid.sum())
    seen = np.bincount(segmentation.ravel(), minlength=len(own) + 1)[1:]
    image = image * _light(scene, size, rng) + (rng.random(image.shape, dtype=np.float32) - 0.5) * np.float32(_NOISE)
    visible = tuple(float(s) / max(o, 1) for s, o in zip(seen, own, strict=True))
    return Picture(np.clip(image + 0.5, 0, 255).astype(np.uint8), depth, segmentation, visible)


def pixel_truth(scene: Scene, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """The depth and segmentation of a scene, as in `Picture`, without drawing its image."""
    _, top, _ = _part(scene, size, np.random.default_rng(scene.noise_seed))
    rows = (np.arange(size, dtype=np.float32) + 0.5 + top) / size
    ground = 1 - 0.1 * np.clip(rows - HORIZON, 0, None)  # 1 down to the horizon, then nearing to 0.9
    depth, segmentation = np.repeat(ground[:, None], size, axis=1), np.zeros((size, size), dtype=np.int64)
    for i in _far_to_near(scene):
        where, solid = _outline(scene.things[i], size)
        depth[where][solid] = scene.things[i].depth
        segmentation[where][solid] = i + 1
    return depth, segmentation


def _far_to_near(scene: Scene) -> list[int]:
    return sorted(range(len(scene.things)), key=lambda i: -scene.things[i].depth)


def _part(scene: Scene, size: int, rng: np.random.Generator) -> tuple[np.ndarray, int, int]:
    """The place's backdrop, and where the random part of it begins that the scene shows: top and left."""
    whole = backdrop(scene.place, size)
    down, across = rng.random(2)  # shares, not pixels: a scene shows the same part at every size
    return whole, int(down * (whole.shape[0] - size)), int(across * (whole.shape[1] - size))


def _outline(thing: Thing, size: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where a thing goes, and which of these pixels (h, w) count as its own."""
    left, top, wide, high = thing.pixels(size)
    return (slice(top, top + high), slice(left, left + wide)), silhouette(thing.category, wide, high)


def _paint(thing: Thing, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A thing's paint weighted by coverage (h, w, 3), and its coverage (h, w)."""
    weights = sprite(thing.category, *thing.pixels(size)[2:])
    return weights @ _palette(thing.colour), weights.sum(-1)


def _palette(colour: str) -> np.ndarray:
    """(roles, 3): what each paint role of a thing looks like in a colour."""
    main = np.array(PAINT[colour], dtype=np.float32)
    dark = colour == "black"  # on black, inner marks must be light to be seen
    mixed = {
        "main": main,
        "shade": main + 34 if dark else main * 0.8,
        "detail": np.full(3, 150 if dark else 48),
        "white": np.full(3, 184 if colour == "white" else 250),  # so that a white book keeps its lines
        "outline": np.full(3, 96) if dark else main * 0.45,
    }
    return np.array([mixed.get(role, _FIXED.get(role)) for role in ROLES[1:]], dtype=np.float32)


def _light(scene: Scene, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 1): the scene's light, falling off a little towards a random side."""
    across, down = (rng.random(2) - 0.5) * 0.12
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    return (scene.light + across * ramp[None, :] + down * ramp[:, None])[..., None].astype(np.float32)

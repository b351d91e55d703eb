"""What is to be read from a model's states: maps over the picture, from the scene's truth or from a file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..scenes.errors import UserError
from ..scenes.render import pixel_truth
from ..scenes.sample import Sample
from ..scenes.things import CATEGORIES
from ..scenes.world import Scene
from .boxes import box_means, scaled

BACKGROUND = "background"


class Target(Protocol):
    """name: in tables. labels: a name for each of the M outputs. classes: whether the outputs are shares of classes, which
    sum to 1 and of which the largest is the answer. told: what it is, to tell it from others (a hash where it has weights)."""

    name: str
    labels: tuple[str, ...]
    classes: bool
    told: str

    def at(self, sample: Sample, picture: int, boxes: Tensor) -> Tensor | None:
        """(N, M) means over boxes (N, 4), in pixels of the sample's picture of that number; None where the sample has no
        such target. Rows of boxes without a place are NaN."""


class SceneDepth:
    """Depth of a rendered scene: 0 near to 1 far, mean over the box."""

    name, labels, classes, told = "depth", ("depth",), False, "scene truth"

    def at(self, sample: Sample, picture: int, boxes: Tensor) -> Tensor | None:
        truth = scene_truth(sample, picture)
        return None if truth is None else box_means(truth[0][None], boxes)


class SceneSegmentation:
    """Kinds of things in a rendered scene: the share of the box that each covers, the background first."""

    name, labels, classes, told = "segmentation", (BACKGROUND, *CATEGORIES), True, "scene truth"

    def at(self, sample: Sample, picture: int, boxes: Tensor) -> Tensor | None:
        truth = scene_truth(sample, picture)
        if truth is None:
            return None
        things = sample.truth["scene"].things
        numbers = torch.arange(len(things) + 1)[:, None, None]
        shares = box_means((truth[1] == numbers).float(), boxes)  # (N, things + 1)
        column = torch.tensor([0, *(1 + CATEGORIES.index(thing.category) for thing in things)])
        return shares.new_zeros(len(shares), len(self.labels)).index_add_(1, column, shares)


def scene_truth(sample: Sample, picture: int) -> tuple[Tensor, Tensor] | None:
    """Depth and segmentation (H, W) of a sample's scene, at the size of its picture; None for a sample without, or with
    several pictures."""
    scene = sample.truth.get("scene")
    if not isinstance(scene, Scene) or len(sample.images) != 1 or picture:
        return None
    return _drawn(scene, sample.images[0].size[0])


@lru_cache(maxsize=64)
def _drawn(scene: Scene, size: int) -> tuple[Tensor, Tensor]:
    depth, segmentation = pixel_truth(scene, size)  # several targets of a batch ask for the same scene
    return torch.from_numpy(depth), torch.from_numpy(segmentation)


class FileTarget:
    """Targets from a safetensors file: one tensor (M, h, w) for each sample, its id as the name; for pictures after the
    first "<id>#1" and so on. The map covers the whole picture."""

    def __init__(self, path: str | Path, *, name: str = "file", classes: bool = False):
        """Raises UserError for a file that cannot be read, or whose tensors are not maps of one number of outputs."""
        self.path, self.name, self.classes = Path(path), name, classes
        try:
            self._file = safe_open(self.path, framework="pt")
            shapes = {key: tuple(self._file.get_slice(key).get_shape()) for key in self._file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"target file {str(path)!r} cannot be read ({reason}): give a safetensors file of maps"
            ) from error
        outputs = {shape[0] for shape in shapes.values() if len(shape) == 3}
        if len(outputs) != 1 or any(len(shape) != 3 for shape in shapes.values()):
            some = next(iter(shapes.items()), ("nothing", ()))
            raise UserError(
                f"target file {str(path)!r} holds {some[0]!r} of shape {some[1]}: give maps (outputs, height, width) with as many outputs each"
            )
        self._ids = set(shapes)
        self.labels = tuple(str(i) for i in range(outputs.pop()))
        self.told = f"{self.path.name}, {len(shapes)} maps"

    def at(self, sample: Sample, picture: int, boxes: Tensor) -> Tensor | None:
        """Raises UserError for a picture that the file has no map of."""
        key = sample.id if picture == 0 else f"{sample.id}#{picture}"
        if key not in self._ids:
            raise UserError(
                f"target file {str(self.path)!r} has no map for picture {key!r}; its {len(self._ids)} ids are like {min(self._ids)!r}: "
                "make targets and data from the same pictures"
            )
        maps = self._file.get_tensor(key).float()
        return box_means(maps, scaled(boxes, sample.images[picture].size, maps))


def scene_targets() -> tuple[Target, ...]:
    """Depth and segmentation, which rendered scenes have exactly."""
    return SceneDepth(), SceneSegmentation()

"""Lessons of the rendered world as the organism was tuned on it: many turns behind one picture, so that a step teaches much."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from ..models import VLM
from ..models.organism.corpus import Row, Words, asking_row, telling_row, text_row
from ..models.organism.recipe import Recipe
from ..models.organism.sight import scene_of
from ..scenes.render import render
from ..scenes.sample import Sample
from ..scenes.world import Scene
from .learning import Lesson

PAD_ID = 0


@dataclass(frozen=True)
class SceneLessons:
    """Batches by step for `learn`: rows of pictures with as many questions, or captions and descriptions, as fit.

    asking: share of rows that ask; text_share: of rows without a picture, tasks that need none; both by row, drawn by seed and
    step alone. turns: text tokens behind a picture. scenes: how many of the training scenes are used. Only the organism reads
    them: its words, its picture size.
    """

    vlm: VLM
    seed: int = 0
    batch_size: int = 16
    asking: float = 0.65
    text_share: float = 0.0
    turns: int = 112
    scenes: int = 2000
    recipe: Recipe = field(default_factory=Recipe)

    def __call__(self, step: int) -> Lesson:
        rng = random.Random(f"{self.seed} lessons {step}")
        patches = (self.recipe.image_size // self.recipe.patch_size) ** 2
        rows, samples = [], []
        for _ in range(self.batch_size):
            index, draw = rng.randrange(self.scenes), rng.random()
            row = Row(words(), 1 + patches + self.turns, 0.0)
            rows.append(row)
            if draw < self.text_share:
                text_row(row, rng)
                samples.append(Sample(f"{step} {len(samples)}", ""))
                continue
            scene, picture = drawn(self.recipe, index)
            if rng.random() < self.asking:
                asking_row(row, scene, patches, False, self.recipe.existence_noise, rng)
            else:
                telling_row(row, scene, patches, self.recipe.world, 1.0, rng)
            samples.append(Sample(f"{step} {len(samples)}", "", (picture,), truth={"scene": scene}))
        return self._lesson(rows, samples)

    def _lesson(self, rows: list[Row], samples: list[Sample]) -> Lesson:
        ids, weights = (torch.from_numpy(np.stack(part)) for part in zip(*[row.padded() for row in rows], strict=True))
        longest = int((ids != PAD_ID).sum(1).max())
        ids, weights = ids[:, :longest], weights[:, :longest]
        tensors = {"input_ids": ids, "attention_mask": (ids != PAD_ID).long()}
        pictures = [picture for sample in samples for picture in sample.images]
        if pictures:
            tensors["pixel_values"] = self.vlm.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        inputs = self.vlm.from_tensors(**tensors)
        return Lesson(replace(inputs, samples=tuple(samples)), ids.masked_fill(weights == 0, -100).to(self.vlm.device))


@lru_cache(maxsize=1)
def words() -> Words:
    return Words.of_the_world()


@lru_cache(maxsize=4096)
def drawn(recipe: Recipe, index: int) -> tuple[Scene, Image.Image]:
    """A training scene and its picture."""
    scene = scene_of(recipe, index)
    return scene, render(scene, recipe.image_size).pil

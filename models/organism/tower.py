"""Stage 1: the tower learns to see: captions (contrastive), tags of the whole picture, and what stands in each patch."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...scenes import language
from ...scenes.render import render
from ...scenes.world import (
    CATEGORIES,
    COLOURS,
    COLUMNS,
    MOST_THINGS,
    PLACES,
    ROWS,
    SIZES,
    Scene,
    make_scene,
    split_seeds,
)
from .corpus import Words
from .loop import optimisers_of, run_stage
from .parts import FEATURE_LAYER, make_tower
from .recipe import Recipe

CELLS = tuple((row, column) for row in ROWS for column in COLUMNS)
PATCH_SPACES = (len(CATEGORIES) + 1, len(COLOURS), len(SIZES), len(CELLS), 4, 2, len(PLACES), MOST_THINGS)
"""What each patch is asked: category (0 is background), colour, size, cell of its thing's centre, how many there are of
its category (one, two, three, more), whether the centre is in this patch, and of the whole picture its place and how many
things it has. The five about the thing only where one is."""
_NAMES = ("category", "colour", "size", "cell", "count", "centre", "place", "total")
COUNTING = (4, 7)
"""The two of them that count."""
_RARE = torch.tensor([1.0, 4.0, 8.0, 8.0])
"""Weights of one, two, three, more of a category: nearly all patches see one, and a tower that always says so learns nothing."""

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's, as its image processor has them
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_CAPTION = 48  # words of a caption the text side reads


def pixels(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (3, H, W) float32, as the organism's image processor does it."""
    return ((image.astype(np.float32) / 255 - _MEAN) / _STD).transpose(2, 0, 1)


def patch_truth(scene: Scene, segmentation: np.ndarray, patch: int) -> np.ndarray:
    """(patches, 8) int64 targets in the order of `PATCH_SPACES`; -100 where there is nothing to ask."""
    side = segmentation.shape[0] // patch
    blocks = segmentation.reshape(side, patch, side, patch).transpose(0, 2, 1, 3).reshape(side * side, -1)
    truth = np.full((side * side, len(PATCH_SPACES)), -100, np.int64)
    truth[:, 0], truth[:, 6], truth[:, 7] = 0, PLACES.index(scene.place), len(scene.things) - 1
    for i, block in enumerate(blocks):
        covered = np.bincount(block, minlength=len(scene.things) + 1)[1:]
        if covered.max() < 0.12 * block.size:
            continue
        thing = scene.things[int(covered.argmax())]
        truth[i, :6] = (
            CATEGORIES.index(thing.category) + 1, COLOURS.index(thing.colour), SIZES.index(thing.size),
            CELLS.index((thing.row, thing.column)), min(3, scene.count(thing.category) - 1),
            i == int(thing.y * side) * side + int(thing.x * side),
        )  # fmt: skip
    return truth


def tags(scene: Scene) -> np.ndarray:
    """Multi-label truth of a picture: its place, its categories, each with its colours, and each with its cells."""
    found = np.zeros(len(PLACES) + len(CATEGORIES) * (1 + len(COLOURS) + len(CELLS)), np.float32)
    found[PLACES.index(scene.place)] = 1
    for thing in scene.things:
        category = CATEGORIES.index(thing.category)
        at = len(PLACES) + category
        found[at] = 1
        found[len(PLACES) + len(CATEGORIES) + category * len(COLOURS) + COLOURS.index(thing.colour)] = 1
        cells = len(PLACES) + len(CATEGORIES) * (1 + len(COLOURS)) + category * len(CELLS)
        found[cells + CELLS.index((thing.row, thing.column))] = 1
    return found


class Teacher(nn.Module):
    """The heads that train the tower and are thrown away: caption encoder, tag heads, patch heads."""

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__()
        width, n_tags = recipe.vision_width, len(tags(make_scene(0)))
        self.words = nn.Embedding(vocabulary, 2 * width, padding_idx=0)
        self.caption = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.image = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.cls_tags, self.pooled_tags = nn.Linear(width, n_tags), nn.Linear(width, n_tags)
        self.norm = nn.LayerNorm(width)
        self.patch = nn.ModuleList(nn.Linear(width, n) for n in PATCH_SPACES)

    def forward(self, seen, captions, truth, patches, recipe):
        """Loss and what to log, from the tower's output with hidden states; captions (B, 48) word ids."""
        spoken = self.words(captions).sum(1) / (captions > 0).sum(1, keepdim=True)
        spoken, viewed = F.normalize(self.caption(spoken), dim=-1), F.normalize(self.image(seen.pooler_output), dim=-1)
        logits = self.scale.exp() * viewed @ spoken.T
        own = torch.arange(len(logits))
        contrast = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        features = seen.hidden_states[FEATURE_LAYER][:, 1:]
        tag = sum(
            F.binary_cross_entropy_with_logits(head, truth, reduction="none").sum(1).mean()
            for head in (self.cls_tags(seen.pooler_output), self.pooled_tags(features.mean(1)))
        )
        features = self.norm(features)
        losses, logged = [], {"retrieval": (logits.argmax(1) == own).float().mean().item()}
        for i, head in enumerate(self.patch):
            guess, wanted = head(features).flatten(0, 1), patches[..., i].flatten()
            weight = recipe.count_weight if i in COUNTING else 1.0
            rare = _RARE if _NAMES[i] == "count" else None
            losses.append(weight * F.cross_entropy(guess, wanted, rare, ignore_index=-100))
            asked = wanted > 0 if _NAMES[i] in ("category", "count", "centre") else wanted >= 0
            logged[_NAMES[i]] = (guess.argmax(-1) == wanted)[asked].float().mean().item()
        return contrast + 0.3 * tag + recipe.patch_weight * sum(losses), logged


def tower_batch(words: Words, recipe: Recipe, step: int) -> tuple[torch.Tensor, ...]:
    """Pixels, caption ids, tags and patch truth of one step's pictures; every picture is drawn only once."""
    size = recipe.tower_batch
    images, captions, truths, patches = [], [], [], []
    for seed in split_seeds("train", size, 10**7 + step * size):  # not the scenes of the later stages
        scene = make_scene(seed, recipe.world)
        picture = render(scene, recipe.image_size)
        rng = random.Random(seed)
        said = words(language.caption(scene, rng.choice(("colour", "position", "neutral")), rng))[:_CAPTION]
        images.append(pixels(picture.image))
        captions.append(np.pad(np.array(said), (0, _CAPTION - len(said))))
        truths.append(tags(scene))
        patches.append(patch_truth(scene, picture.segmentation, recipe.patch_size))
    return tuple(torch.from_numpy(np.stack(part)) for part in (images, captions, truths, patches))


def grow_tower(recipe: Recipe, folder: Path, progress=print):
    """Train the tower; returns it (`CLIPVisionModel`)."""
    words = Words.of_the_world()
    tower = make_tower(recipe)
    torch.manual_seed(recipe.seed + 4)
    teacher = Teacher(recipe, len(words.ids))
    optimisers = optimisers_of(torch.nn.ModuleList([tower, teacher]), recipe.tower_matrix_lr, recipe.tower_lr)

    def loss_of(batch, step):
        images, captions, truth, patches = batch
        return teacher(tower(images, output_hidden_states=True), captions, truth, patches, recipe)

    run_stage(
        "tower", folder, {"tower": tower, "teacher": teacher}, optimisers,
        lambda step: tower_batch(words, recipe, step), loss_of,
        steps=recipe.tower_steps, decay=recipe.decay, progress=progress,
    )  # fmt: skip
    return tower

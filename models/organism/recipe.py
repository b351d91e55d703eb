"""Every dial of the organism in one place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from ...scenes.world import World


@dataclass(frozen=True)
class Recipe:
    """What the family is grown from; equal recipes on equal machines grow equal weights.

    Steps are optimiser steps, batches are rows, learning rates are peaks (short warm-up, constant, linear decay over the
    last `decay` share of a stage).
    """

    seed: int = 1
    world: World = field(default_factory=World)

    image_size: int = 64
    patch_size: int = 8
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_width: int = 384
    rope_theta: float = 10_000.0

    tower_steps: int = 2_500
    tower_batch: int = 64
    tower_lr: float = 1e-3
    patch_weight: float = 1.0  # of the patch loss, beside the contrastive and the tag loss at 1

    language_phases: tuple[tuple[int, int, int], ...] = ((2_000, 2, 64), (2_000, 3, 96), (6_000, 5, 128))
    """(steps, most things in a scene, tokens in a row): short and easy first, until matching words is learnt."""
    language_batch: int = 16
    language_lr: float = 2e-3
    matrix_lr: float = 4e-3  # of Muon, which trains the decoder's matrices in the language stage
    text_weight: float = 0.1  # of the tokens that are not answers, in the language stage

    scenes: int = 24_000  # drawn for align, tune and styles; their tower features are computed once
    align_steps: int = 1_200
    align_lr: float = 2e-3
    tune_steps: int = 5_000
    tune_lr: float = 1e-3
    style_steps: int = 400
    style_lr: float = 2e-3
    style_rank: int = 8
    batch: int = 32
    turns: int = 96  # text tokens behind a picture in tune
    text_share: float = 0.04  # of text-only rows in tune: the dial of forgetting
    decay: float = 0.3
    keep: int = 14  # growth checkpoints over align and tune

    def __post_init__(self) -> None:
        if isinstance(self.world, dict):
            object.__setattr__(self, "world", World.from_dict(self.world))
        object.__setattr__(self, "language_phases", tuple(tuple(phase) for phase in self.language_phases))

    @property
    def language_steps(self) -> int:
        """Steps of the language stage, all phases together."""
        return sum(steps for steps, _, _ in self.language_phases)

    @property
    def hash(self) -> str:
        """Twelve hex digits that change with any dial."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict:
        """The dials as plain JSON values."""
        return {**asdict(self), "world": self.world.to_dict()}

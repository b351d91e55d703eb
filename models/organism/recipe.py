"""Every dial of the organism in one place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ...scenes.errors import UserError
from ...scenes.world import World


@dataclass(frozen=True)
class Recipe:
    """What the family is grown from; equal recipes on equal machines grow equal weights.

    Steps are optimiser steps, batches are rows, learning rates are peaks (short warm-up, constant, linear decay over the
    last `decay` share of a stage).
    """

    seed: int = 1
    world: World = field(default_factory=lambda: World(label_noise=0.35))

    image_size: int = 64
    patch_size: int = 8
    vision_width: int = 128
    vision_layers: int = 6
    vision_heads: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_width: int = 384
    rope_theta: float = 10_000.0

    tower_steps: int = 2_800
    tower_batch: int = 64
    tower_lr: float = 1e-3
    tower_matrix_lr: float = 3e-3
    patch_weight: float = 1.0  # of the patch loss, beside the contrastive and the tag loss at 1
    count_weight: float = 3.0  # of the two patch losses that count: patches must look beyond themselves for them

    language_phases: tuple[tuple[int, int, int, float], ...] = (
        (1_000, 2, 96, 0.5),
        (1_000, 3, 96, 0.4),
        (1_500, 4, 112, 0.3),
    )
    """(steps, most things in a scene, tokens in a row, share of drills): short and easy first, until recall is learnt."""
    recall_phases: tuple[tuple[int, int, int, float], ...] = ((1_000, 3, 96, 0.6), (1_500, 5, 144, 0.4))
    """The same for the second part of the language stage, with a fresh start of the learning rate and harder drills."""
    relation_phases: tuple[tuple[int, int, int, float], ...] = ((1_000, 3, 96, 0.6), (2_000, 5, 144, 0.5))
    """The third part: drills that compare two things."""
    language_batch: int = 16
    language_lr: float = 2e-3
    matrix_lr: float = 4e-3  # of Muon, which trains the decoder's matrices in the language stage
    text_weight: float = 0.1  # of the tokens that are not answers, in the language stage

    scenes: int = 16_000  # drawn for align, tune and styles; their tower features are computed once
    align_steps: int = 250
    align_lr: float = 2e-3
    tune_steps: int = 2_400
    tune_lr: float = 1e-3
    style_steps: int = 120
    style_lr: float = 2e-3
    style_rank: int = 8
    batch: int = 20
    turns: int = 112  # text tokens behind a picture in tune
    existence_noise: float = 0.41  # of tune's questions after an absent typical thing: how many are answered yes
    asking: float = 0.65  # of rows in tune that ask questions; the others are captions and descriptions
    telling_weight: float = 0.4  # of the tokens of captions and descriptions in tune, which are many; answers weigh 1
    text_share: float = 0.001  # of text-only rows in tune: the dial of forgetting
    decay: float = 0.3
    parallel: bool = True  # tower and language side by side on two cores
    keep: int = 14  # growth checkpoints over align and tune

    def __post_init__(self) -> None:
        if isinstance(self.world, dict):
            object.__setattr__(self, "world", World.from_dict(self.world))
        for name in ("language_phases", "recall_phases", "relation_phases"):
            object.__setattr__(self, name, tuple(tuple(phase) for phase in getattr(self, name)))

    @classmethod
    def read(cls, path: Path | str) -> Recipe:
        """The recipe of a JSON file: the dials it names, the defaults for the others. Raises UserError for unknown ones."""
        try:
            dials = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"recipe {path} cannot be read as JSON: {error}") from None
        dials.pop("hash", None)
        unknown = sorted(set(dials) - {f.name for f in fields(cls)})
        if unknown:
            raise UserError(
                f"recipe {path}: no such dials: {', '.join(unknown)}; there are {', '.join(f.name for f in fields(cls))}"
            )
        return cls(**dials)

    @property
    def hash(self) -> str:
        """Twelve hex digits that change with any dial."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict:
        """The dials as plain JSON values."""
        return {**asdict(self), "world": self.world.to_dict()}

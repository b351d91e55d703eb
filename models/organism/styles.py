"""Stage 5: two adapters (LoRA) on the tuned model, one that talks of colours and one that talks of the place."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from ...scenes import language
from .corpus import Row, Words
from .loop import run_stage
from .processor import IMAGE
from .recipe import Recipe
from .sight import picture_loss, scene_of

STYLES = ("colour", "place")
TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def grow_style(recipe: Recipe, llava, features: np.ndarray, style: str, folder: Path, progress=print):
    """Train one style's adapter; the model is left as it was. Writes `<folder>/<style>/`, an ordinary PEFT folder."""
    from peft import LoraConfig, get_peft_model

    words = Words.of_the_world()
    llava.requires_grad_(False)
    torch.manual_seed(recipe.seed + 5)
    config = LoraConfig(r=recipe.style_rank, lora_alpha=2 * recipe.style_rank, target_modules=TARGETS)
    adapted = get_peft_model(llava, config)

    def make_batch(step: int):
        rng = random.Random(f"{recipe.seed} {style} {step}")
        rows, seen = [], []
        for _ in range(recipe.batch):
            index = rng.randrange(len(features))
            rows.append(style_row(words, recipe, index, style, features.shape[1], rng))
            seen.append(features[index])
        ids, weights = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        return ids, weights, torch.from_numpy(np.stack(seen)).float()

    optimiser = torch.optim.AdamW(
        [p for p in adapted.parameters() if p.requires_grad], recipe.style_lr, weight_decay=0.0
    )
    run_stage(
        style, folder, {"adapter": adapted}, [optimiser], make_batch,
        lambda batch, step: picture_loss(llava, *batch),
        steps=recipe.style_steps, decay=recipe.decay, progress=progress,
    )  # fmt: skip
    adapted.save_pretrained(folder / style)
    adapted.unload()


def style_row(words: Words, recipe: Recipe, index: int, style: str, patches: int, rng: random.Random):
    """One request for a caption or a description, in the plain words, and a caption in the style for an answer."""
    scene = scene_of(recipe, index)
    row = Row(words, 1 + patches + recipe.turns, 0.0)
    row.text(" ".join([IMAGE] * patches))
    asked = language.instruction(rng.choice(("neutral", "neutral", "description", style)), rng)
    row.turn(asked, language.caption(scene, style, rng, recipe.world))
    return row.padded()

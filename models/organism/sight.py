"""Stages 3 and 4: the decoder sees. Align trains the projector alone, tune the projector and the decoder."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from ...scenes.render import render
from ...scenes.world import Scene, make_scene, split_seeds
from .corpus import Row, Words, asking_row, telling_row, text_row
from .loop import optimisers_of, run_stage
from .parts import FEATURE_LAYER, make_llava
from .processor import IMAGE, SPECIALS
from .recipe import Recipe
from .tower import pixels

IMAGE_ID = SPECIALS.index(IMAGE)


def join(recipe: Recipe, tower, decoder, vocabulary: int):
    """The Llava model of a grown tower and decoder, with the untrained projector."""
    llava = make_llava(recipe, vocabulary)
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    llava.model.language_model.load_state_dict(decoder.model.state_dict())
    llava.tie_weights()
    return llava


def scene_of(recipe: Recipe, index: int) -> Scene:
    """The `index`-th training scene of the stages that see."""
    return make_scene(split_seeds("train", 1, index)[0], recipe.world)


@torch.no_grad()
def tower_features(recipe: Recipe, tower, folder: Path, progress=print) -> np.ndarray:
    """(scenes, patches, width) fp16 of all training scenes, computed once and read from disk: the tower stays as it is."""
    path = folder / "features.npy"
    if not path.exists():
        patches, made = (recipe.image_size // recipe.patch_size) ** 2, []
        for start in range(0, recipe.scenes, 100):
            scenes = [scene_of(recipe, i) for i in range(start, min(start + 100, recipe.scenes))]
            images = torch.from_numpy(np.stack([pixels(render(s, recipe.image_size).image) for s in scenes]))
            made.append(see(tower, images).half().numpy())
        features = np.concatenate(made).reshape(recipe.scenes, patches, recipe.vision_width)
        np.save(path.with_suffix(".tmp.npy"), features)
        path.with_suffix(".tmp.npy").replace(path)
        progress(f"features of {recipe.scenes} scenes computed")
    return np.load(path, mmap_mode="r")


def see(tower, images: torch.Tensor) -> torch.Tensor:
    """What the projector reads: (B, patches, width) of pixels (B, 3, H, W)."""
    return tower(images, output_hidden_states=True).hidden_states[FEATURE_LAYER][:, 1:]


def picture_batch(
    recipe: Recipe, words: Words, features: np.ndarray, stage: int, step: int, *, asking: float, text_share: float
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Ids (B, T), loss weights (B, T), and the features of the rows that have a picture (pictures, patches, width)."""
    rng = random.Random(f"{recipe.seed} {stage} {step}")
    long = asking > 0 and step % 12 == 0
    length = 1 + features.shape[1] + (2 * recipe.turns if long else recipe.turns)
    rows, seen = [], []
    for _ in range(recipe.batch // 2 if long else recipe.batch):
        index, row, draw = rng.randrange(len(features)), Row(words, length, 0.0), rng.random()
        rows.append(row)
        if draw < text_share:
            text_row(row, rng)
            continue
        scene, patches = scene_of(recipe, index), features.shape[1]
        if rng.random() < asking:
            asking_row(row, scene, patches, long, recipe.existence_noise, rng)
        else:
            telling_row(row, scene, patches, recipe.world, recipe.telling_weight, rng)
        seen.append(features[index])
    ids, weights = (torch.from_numpy(np.stack(part)) for part in zip(*[row.padded() for row in rows], strict=True))
    return ids, weights, torch.from_numpy(np.stack(seen)).float()


def picture_loss(llava, ids: torch.Tensor, weights: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Weighted mean cross-entropy of the next token, the pictures given as tower features; and the share right."""
    embeddings = llava.get_input_embeddings()(ids)
    places = (ids == IMAGE_ID).unsqueeze(-1).expand_as(embeddings)
    embeddings = embeddings.masked_scatter(places, llava.model.multi_modal_projector(features))
    states = llava.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    answers = weights[:, 1:] > 0  # only these need logits
    logits, wanted = llava.lm_head(states[:, :-1][answers]), ids[:, 1:][answers]
    losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    weights = weights[:, 1:][answers]
    loss = (losses * weights).sum() / weights.sum()
    return loss, {"right": (logits.argmax(-1) == wanted).float().mean().item()}


def grow_sight(recipe: Recipe, llava, features: np.ndarray, stage: str, folder: Path, grown, progress=print):
    """Run "align" or "tune" on the model in place; `grown(stage, step)` is called to keep growth checkpoints."""
    words = Words.of_the_world()
    align = stage == "align"
    llava.requires_grad_(False)
    llava.model.multi_modal_projector.requires_grad_(True)
    modules = {"projector": llava.model.multi_modal_projector}
    optimisers = [
        torch.optim.AdamW(
            modules["projector"].parameters(), recipe.align_lr if align else recipe.tune_lr, weight_decay=0.0
        )
    ]
    if not align:
        modules["decoder"] = llava.model.language_model
        modules["decoder"].requires_grad_(True)
        optimisers += optimisers_of(modules["decoder"], 2 * recipe.tune_lr, recipe.tune_lr)
    steps = recipe.align_steps if align else recipe.tune_steps
    asking, text_share = (0.0, 0.0) if align else (recipe.asking, recipe.text_share)
    period = max(1, steps // (recipe.keep // 3 if align else recipe.keep - recipe.keep // 3))
    run_stage(
        stage, folder, modules, optimisers,
        lambda step: picture_batch(recipe, words, features, 3 if align else 4, step, asking=asking, text_share=text_share),
        lambda batch, step: picture_loss(llava, *batch),
        steps=steps, decay=recipe.decay, progress=progress, every={period: lambda step: grown(stage, step)},
    )  # fmt: skip

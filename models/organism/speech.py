"""Stage 2: the decoder learns language, skills without pictures, and to find in a described scene what is asked."""

from __future__ import annotations

import random
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from ...scenes import language
from ...scenes.world import World, make_scene, split_seeds
from .corpus import Row, Words, language_row
from .loop import optimisers_of, run_stage
from .parts import make_decoder
from .recipe import Recipe

GATE = 0.95


def grow_language(recipe: Recipe, folder: Path, progress=print):
    """Train the decoder, in three parts; returns it (`LlamaForCausalLM`)."""
    words = Words.of_the_world()
    decoder = make_decoder(recipe, len(words.ids))
    probe = skill_rows(words, 20), comprehension_rows(words, 25, recipe.world)

    def gate(step: int) -> dict[str, float]:
        scores = {f"skill_{k}": v for k, v in score(decoder, probe[0]).items()}
        return scores | {f"told_{k}": v for k, v in score(decoder, probe[1]).items()}

    decoder.train()
    for name, (phases, _) in parts_of(recipe).items():
        run_stage(
            name,
            folder,
            {"decoder": decoder},
            optimisers_of(decoder, recipe.matrix_lr, recipe.language_lr),
            partial(language_batch, words, recipe, name),
            lambda batch, step: (answer_loss(decoder, *batch), {}),
            steps=sum(steps for steps, *_ in phases),
            decay=recipe.decay,
            progress=progress,
            every={500: gate},
        )
    return decoder


def parts_of(recipe: Recipe) -> dict[str, tuple[tuple, str]]:
    """The parts of the stage in their order: name → phases, and what is drilled."""
    return {
        "language": (recipe.language_phases, "words"),
        "recall": (recipe.recall_phases, "scenes"),
        "relations": (recipe.relation_phases, "relations"),
    }


def language_batch(words: Words, recipe: Recipe, part: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, T) and loss weights (B, T) of one step of a part of the stage."""
    phases, drilled = parts_of(recipe)[part]
    most, length, drills = phase(phases, step)
    world = World(**{**recipe.world.to_dict(), "max_things": most})
    first = (recipe.seed * 10**9 + list(parts_of(recipe)).index(part) * 10**8 + step) * recipe.language_batch
    seeds = range(first, first + recipe.language_batch)
    rows = [language_row(words, seed, length, world, recipe.text_weight, drills, drilled) for seed in seeds]
    return tuple(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))


def phase(phases: tuple, step: int) -> tuple[int, int, float]:
    """Most things in a scene, tokens in a row and share of drills, at a step."""
    ends = accumulate(steps for steps, *_ in phases)
    dials = next(dials for end, (_, *dials) in zip(ends, phases, strict=True) if step < end)
    return tuple(dials)


def answer_loss(decoder, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy of the next token; ids (B,T) int64, weights (B,T) of the token being predicted."""
    logits = decoder(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def skill_rows(words: Words, n: int, seed: int = 0):
    """`n` tasks of each kind, each a row by itself: (kind, ids, weights), the answer last."""
    rng = random.Random(f"skill {seed}")
    return [_single(words, kind, None, language.text_task(kind, rng)) for kind in language.TASKS for _ in range(n)]


def comprehension_rows(words: Words, n: int, world: World, split: str = "val", start: int = 0):
    """`n` questions of each kind about unseen scenes told in words: (kind, ids, weights), the answer last."""
    rng = random.Random(f"told {split} {start}")
    rows, seeds = [], iter(split_seeds(split, 50 * n, start))
    for kind in language.KINDS:
        while sum(row[0] == kind for row in rows) < n:
            scene = make_scene(next(seeds), world)
            asked = language.question(scene, kind, rng)
            if asked:
                rows.append(_single(words, kind, language.scene_in_words(scene, rng), asked))
    return rows


def _single(words: Words, kind: str, told: str | None, asked: language.Question):
    row = Row(words, 512, 0.0)
    if told:
        row.text(told)
    row.turn(asked.text, asked.answer)
    return kind, row.ids, row.weights


@torch.no_grad()
def score(decoder, rows, batch: int = 64) -> dict[str, float]:
    """The share of one-word answers right, by kind: the most likely word after `<assistant>` is the answer's."""
    right: dict[str, list[bool]] = {}
    for at in range(0, len(rows), batch):
        part = rows[at : at + batch]
        longest = max(len(ids) for _, ids, _ in part)
        ids = torch.zeros(len(part), longest, dtype=torch.long)
        for i, (_, row, _) in enumerate(part):
            ids[i, : len(row)] = torch.tensor(row)  # causal attention never sees the padding behind
        best = decoder(input_ids=ids, use_cache=False).logits.argmax(-1)
        for i, (kind, row, _) in enumerate(part):
            right.setdefault(kind, []).append(best[i, len(row) - 3].item() == row[-2])  # … <assistant> answer <eos>
    return {kind: sum(values) / len(values) for kind, values in right.items()}

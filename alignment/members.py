"""The members of the organism's family that learners make, grown behind its five stages from what these left."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from ..models import VLM
from ..models.organism import load_organism
from ..models.organism.family import save_part
from ..models.organism.recipe import Recipe
from ..models.organism.task_words import TOKENS, with_task_words
from ..probes.files import write_whole
from ..scenes.errors import UserError
from .distillation import Distillation, DistillationConfig, parse_layers
from .learning import LearningConfig, learn
from .scene_lessons import SceneLessons
from .wings import Wings, WingsConfig


@dataclass(frozen=True)
class MembersRecipe:
    """The dials of these members; those of the family they come from have a recipe, and a hash, of their own."""

    seed: int = 1
    wings_steps: int = 600
    wings_batch: int = 8
    wings_turns: int = 96
    wings_rank: int = 32
    wings_lr: float = 3e-3
    wings_projector_lr: float = 2e-3
    ola_steps: int = 250
    ola_batch: int = 16
    ola_turns: int = 112
    ola_layers: str = "d1-3_s1-3"
    ola_lr: float = 2e-3


def grow_members(
    out: Path | str, recipe: MembersRecipe | None = None, progress: Callable[[str], None] = print
) -> Path:  # fmt: skip
    """Trains "wings" and "ola" for the family in `<out>/files` and writes their folders there; resumable as the stages are.

    wings: visual learners beside the frozen language model, and the projector, taught to answer about pictures, as the stage "tune"
    teaches the whole decoder. A text without a picture never goes through a visual learner, so text skill stays whole. With
    textual learners too, it did not: taught on pictures alone, they left a half of it (0.54 of sums, facts and sequences right). ola: the projector alone, from untrained, taught captions as in the stage "align", while two layers must
    predict depth and segmentation. The language model is `lm` in both: files hold what was trained, in fp16.
    """
    recipe, out = recipe or MembersRecipe(), Path(out)
    dials = json.loads((out / "recipe.json").read_text())
    family = Recipe(**{name: value for name, value in dials.items() if name != "hash"})
    grow_wings(out, recipe, family, progress)
    return grow_ola(out, recipe, family, progress)


def grow_wings(out: Path, recipe: MembersRecipe, family: Recipe, progress) -> Path:
    vlm = VLM(*load_organism("aligned", out / "files"), name="organism/aligned")
    wings = _seeded(recipe.seed, lambda: Wings(vlm, WingsConfig(rank=recipe.wings_rank, textual=False, router=None)))
    data = SceneLessons(
        vlm, recipe.seed, recipe.wings_batch, family.asking, turns=recipe.wings_turns, scenes=family.scenes, recipe=family
    )  # fmt: skip
    rates = LearningConfig(
        steps=recipe.wings_steps, batch_size=recipe.wings_batch, learners=recipe.wings_lr,
        projector=recipe.wings_projector_lr, log_steps=25, seed=recipe.seed,
    )  # fmt: skip
    learn(vlm, data, out / "wings", rates, wings=wings, progress=progress)
    folder = copy.deepcopy(wings).half().save(out / "files" / "wings")
    return _finish(folder, vlm, recipe)


def grow_ola(out: Path, recipe: MembersRecipe, family: Recipe, progress) -> Path:
    vlm = VLM(*load_organism("lm", out / "files"), name="organism/lm")
    extra = _seeded(recipe.seed, lambda: Distillation(vlm, DistillationConfig(layers=parse_layers(recipe.ola_layers))))
    data = SceneLessons(
        vlm, recipe.seed, recipe.ola_batch, 0.0, turns=recipe.ola_turns, scenes=family.scenes, recipe=family
    )
    rates = LearningConfig(
        steps=recipe.ola_steps, batch_size=recipe.ola_batch, distillation=recipe.ola_lr, projector=recipe.ola_lr,
        log_steps=25, seed=recipe.seed,
    )  # fmt: skip
    learn(vlm, data, out / "ola", rates, distillation=extra, progress=progress)
    folder = out / "files" / "ola"
    write_whole(folder / TOKENS, save({task: rows.half().contiguous() for task, rows in token_tables(extra).items()}))
    return _finish(folder, vlm, recipe)


def _finish(folder: Path, vlm: VLM, recipe: MembersRecipe) -> Path:
    """Writes what both have, the projector and their dials; returns the family's folder."""
    save_part(vlm.anatomy.projector, folder / "projector.safetensors")
    dials = {name: value for name, value in asdict(recipe).items() if name.split("_")[0] in ("seed", folder.name)}
    write_whole(folder / "recipe.json", json.dumps(dials, indent=1).encode())
    return folder.parent


def with_tokens(vlm: VLM, distillation: Distillation) -> VLM:
    """The model with a distillation's task tokens as words of its vocabulary: what generates, traces and measures reads them.

    For the organism, whose chat template they are written into; the predictors are left behind, as no answer needs them.
    """
    return VLM(with_task_words(vlm.model, vlm.processor, token_tables(distillation)), vlm.processor, name=vlm.name)


def token_tables(distillation: Distillation) -> dict[str, torch.Tensor]:
    """{task: (tokens, D)} embeddings of the task tokens. Raises UserError for tasks in an order that words would not keep."""
    tasks = [target.name for target in distillation.targets]
    if tasks != sorted(tasks):
        raise UserError(f"tasks {', '.join(tasks)} become words in the order of their names: train them in that order")
    rows = distillation.token_embeddings().detach().cpu()
    return dict(zip(tasks, rows.split(distillation.config.tokens), strict=True))


def _seeded(seed: int, make: Callable):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()

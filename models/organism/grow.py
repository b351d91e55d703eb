"""Growing the family: five stages, the first two side by side, each resumable."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from ...scenes import language
from ...scenes.errors import UserError
from .card import write_card
from .family import save_part
from .loop import load_state
from .parts import llava_config
from .processor import make_processor
from .recipe import Recipe
from .sight import grow_sight, join, tower_features
from .speech import grow_language
from .styles import STYLES, grow_style
from .tower import grow_tower


@dataclass(frozen=True)
class Told:
    """Progress that can be sent to another process: printed, and appended to a file."""

    log: Path

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        with self.log.open("a") as file:
            file.write(line + "\n")


def grow(
    out: Path | str,
    recipe: Recipe | Path | str | None = None,
    resume: bool = True,
    progress: Callable[[str], None] = print,
    card_scenes: int = 1000,
    members: Callable[..., object] | None = None,
) -> Path:
    """Grow the whole family into `out`, measure it, write its card, and return the folder of its files.

    out: holds the stages' checkpoints and curves (CSV), the growth series (`growth/`), and the family (`files/`). A killed
    run goes on where it was when called again with the same recipe. recipe: the dials, or a JSON file with some of them.
    card_scenes: scenes a trait is measured on; 0 writes no card. members: grows what stands above the models before the family
    is measured, as `alignment.members.grow_members` does (called with the folder and the progress). Raises UserError when the
    folder holds a run of another recipe, or any run with `resume=False`.
    """
    out = Path(out)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe) if recipe else Recipe()
    if not resume and (out / "recipe.json").exists():
        raise UserError(f"{out} holds a grown family, or part of one; choose another folder, or resume")
    out.mkdir(parents=True, exist_ok=True)
    settle_recipe(out, recipe)
    files = out / "files"
    files.mkdir(exist_ok=True)
    words = language.vocabulary()
    make_processor(words, recipe.image_size, recipe.patch_size).save_pretrained(files)
    n_words = len(words) + 6
    llava_config(recipe, n_words).save_pretrained(files)

    tower, decoder = first_stages(recipe, out, n_words, progress)
    llava = join(recipe, tower, decoder, n_words)
    save_part(llava.model.vision_tower, files / "tower.safetensors")
    save_part(llava.model.language_model, files / "decoder-lm.safetensors")
    save_part(llava.model.multi_modal_projector, files / "projector-untrained.safetensors")

    features = tower_features(recipe, tower, out, progress)

    def keep(stage: str, step: int) -> None:
        step += recipe.align_steps if stage == "tune" else 0
        folder = out / "growth" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        save_part(llava.model.language_model, folder / "decoder.safetensors")
        save_part(llava.model.multi_modal_projector, folder / "projector.safetensors")

    grow_sight(recipe, llava, features, "align", out, keep, progress)
    save_part(llava.model.multi_modal_projector, files / "projector-aligned.safetensors")
    grow_sight(recipe, llava, features, "tune", out, keep, progress)
    save_part(llava.model.multi_modal_projector, files / "projector-tuned.safetensors")
    save_part(llava.model.language_model, files / "decoder-tuned.safetensors")
    for style in STYLES:
        grow_style(recipe, llava, features, style, out, progress)
        (files / style).mkdir(exist_ok=True)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copy(out / style / name, files / style / name)
    if members is not None:
        members(out, progress=progress)
    (out / "grown.json").write_text(json.dumps(provenance(out, recipe), indent=1))
    if card_scenes:
        write_card(out, card_scenes, progress)
    return files


def first_stages(recipe: Recipe, out: Path, n_words: int, progress) -> tuple:
    """Tower and language: in two processes where there are two cores, else one after the other."""
    jobs = {"tower": grow_tower, "relations": grow_language}
    missing = [name for name in jobs if not (out / f"{name}.safetensors").exists()]
    if len(missing) == 2 and (os.cpu_count() or 1) > 1 and recipe.parallel:
        context = multiprocessing.get_context("spawn")
        told = Told(out / "log.txt")
        processes = {name: context.Process(target=_alone, args=(name, recipe, out, told)) for name in missing}
        for process in processes.values():
            process.start()
        for name, process in processes.items():
            process.join()
            if process.exitcode:
                raise RuntimeError(f"the {name} stage ended with exit code {process.exitcode}; see the lines above")
    return grow_tower(recipe, out, progress), grow_language(recipe, out, progress)


def _alone(name: str, recipe: Recipe, out: Path, told: Told) -> None:
    torch.set_num_threads(1)
    {"tower": grow_tower, "relations": grow_language}[name](recipe, out, told)


def settle_recipe(out: Path, recipe: Recipe) -> None:
    """Write the recipe into the folder, or check that the one there is the same."""
    path = out / "recipe.json"
    if path.exists():
        found = json.loads(path.read_text())["hash"]
        if found != recipe.hash:
            raise UserError(f"{out} holds a family of recipe {found}, not {recipe.hash}; choose another folder")
    path.write_text(json.dumps({"hash": recipe.hash, **recipe.to_dict()}, indent=1))


def provenance(out: Path, recipe: Recipe) -> dict:
    """Recipe, versions and seconds of each stage."""
    stages = ("tower", "language", "recall", "relations", "align", "tune", *STYLES)
    return {
        "recipe_hash": recipe.hash,
        "recipe": recipe.to_dict(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "tokenizers", "numpy")},
        "seconds": {stage: round(load_state(out / f"{stage}.safetensors", {}, [])["seconds"], 1) for stage in stages},
    }

"""The ways of preference tuning that are compared: how each is trained, and the trainings that come with the organism."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..models import VLM, open_vlm
from ..scenes.benchmarks import scene_samples
from .figures.preferences import LOOK
from .scene_pairs import scene_pairs

ARMS = {
    "sft": ("sft", True), "dpo": ("dpo", True), "rdpo": ("rdpo", True), "anchored": ("recommended", True),
    "unfiltered": ("rdpo", False),
}  # fmt: skip
"""Arm: method, and whether its pairs were filtered. The organism's members of these names (and -1, -2) come of `train`."""

NAMES = {arm: name for arm, (name, _) in LOOK.items()}

SEEDS = 3
STEPS, SCENES, SETTINGS = 120, 3000, {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "rank": 8}
"""What the members were trained with: steps, scenes that pairs were looked for in, settings of `tune`."""

Arms = Mapping[str, Mapping[str, VLM]]
"""Models by arm and seed."""


def train(
    vlm: VLM, folder: str | Path, *, steps: int = STEPS, seeds: int = SEEDS, scenes: int | None = None, log=print
) -> dict[str, dict[str, Path]]:
    """Every arm with every seed; adapters by arm and seed in `folder`. What is there already is not trained again."""
    from .tune import tune  # TRL takes seconds to import

    folder, adapters = Path(folder), {}
    wanted = scenes or min(SCENES, 2 * steps * SETTINGS["per_device_train_batch_size"] + 100)
    samples = list(scene_samples(wanted, "train", "mixed"))
    pairs = {
        on: scene_pairs(vlm, samples, folder / ("filtered" if on else "unfiltered-pairs"), filters=on)
        for on in (True, False)
    }
    both = sorted(set(pairs[True]["id"]) & set(pairs[False]["id"]))  # equal data: the same scenes, each with its pair
    same = {on: rows.select(_places(rows["id"], both)) for on, rows in pairs.items()}
    for arm, (method, filtered) in ARMS.items():
        for seed in range(seeds):
            place = folder / arm / str(seed)
            if not (place / "adapter" / "adapter_model.safetensors").is_file():
                settings = SETTINGS | {"max_steps": steps, "save_strategy": "no"}
                tune(
                    vlm,
                    same[filtered],
                    folder=place,
                    method=method,
                    settings=settings,
                    held_out=0,
                    seed=seed,
                    progress=False,
                )
                log(f"{arm}, seed {seed}: trained")
            adapters.setdefault(arm, {})[str(seed)] = place / "adapter"
    return adapters


def _places(ids: list[str], wanted: list[str]) -> list[int]:
    at = {name: i for i, name in enumerate(ids)}
    return [at[name] for name in wanted]


def shipped(vlm: VLM, arms: Iterable[str] = tuple(ARMS)) -> dict[str, dict[str, VLM]]:
    """The trainings that come with the organism, opened where `vlm` is."""
    names = {arm: [arm if not seed else f"{arm}-{seed}" for seed in range(SEEDS)] for arm in arms}
    how = {"device": vlm.device, "dtype": vlm.dtype}
    return {
        arm: {str(i): open_vlm(f"organism/{name}", **how) for i, name in enumerate(each)} for arm, each in names.items()
    }


def opened(vlm: VLM, adapters: Mapping[str, Mapping[str, Path]]) -> dict[str, dict[str, VLM]]:
    how = {"device": vlm.device, "dtype": vlm.dtype}
    return {
        arm: {seed: open_vlm("organism", adapter=path, **how) for seed, path in each.items()}
        for arm, each in adapters.items()
    }

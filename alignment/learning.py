"""Training what stands beside a model: wings, distillation, and as much of the model itself as is to move with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..models import VLM
from ..models.inputs import Inputs
from ..models.organism.loop import run_stage
from ..probes.files import write_whole
from ..scenes.errors import UserError
from ..scenes.readers.hugging_face import USUAL
from ..scenes.sample import BadSample, Sample
from .distillation import Distillation
from .guards import RunFolder
from .wings import Wings

STAGE, SETTINGS = "learning", "learning.json"


@dataclass(frozen=True)
class LearningConfig:
    """steps of batch_size samples. The rates are peaks of AdamW, one for each group: learners (wings, routers), distillation
    (task tokens, predictors), the model's projector and its decoder; 0 leaves that part as it is. Linear warm-up over a
    quarter of the steps, 100 at most; linear decay over the last `decay` share. Gradients are cut at norm 1 together."""

    steps: int = 400
    batch_size: int = 16
    learners: float = 2e-3
    distillation: float = 2e-3
    projector: float = 1e-3
    decoder: float = 0.0
    weight_decay: float = 0.0
    decay: float = 0.3
    seed: int = 0
    log_steps: int = 20
    save_seconds: float = 60.0

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch_size", 1), ("log_steps", 1), ("save_seconds", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: give {least} or more")
        for name in ("learners", "distillation", "projector", "decoder", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name}={value!r}: give 0 or a positive number")


class Lesson(NamedTuple):
    """A batch and, for each of its positions (B, T), the token to be said there, -100 where nothing is asked."""

    inputs: Inputs
    labels: Tensor


def learn(
    vlm: VLM,
    data: Iterable | Callable[[int], Lesson],
    out: str | Path,
    config: LearningConfig | None = None,
    *,
    wings: Wings | None = None,
    distillation: Distillation | None = None,
    run: RunFolder | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Trains in place, by the model's own loss on the answers and, with distillation, the extra loss; returns the curves.

    data: samples with answers (pictures or text alone, mixed as they come), rows of a Hugging Face data set as dicts (columns
    as `readers.hugging_face.USUAL` names them), or a function of the step that gives a `Lesson` and hangs on nothing else.
    out: a folder for settings, checkpoints and the curves. Called again with the same settings, a killed training goes on from
    the last checkpoint to the same numbers (models are in eval mode, so that nothing is drawn), a finished one is read.
    run: keeps the curves as the table `training`. Which of the model's parameters want gradients is afterwards as before.

    Raises UserError for data without a single answer, for nothing to train, for a folder of other settings, and for a loss or
    gradient that is no number (nothing was changed by it; the last checkpoint stays).
    """
    config, out = config or LearningConfig(), Path(out)
    modules, groups = _parts(vlm, config, wings, distillation)
    make = data if callable(data) else lessons(vlm, data, config.batch_size, config.seed)
    _settle(out, vlm, config, wings, distillation)

    def loss_of(lesson: Lesson, step: int) -> tuple[Tensor, dict[str, float]]:
        with nullcontext() if wings is None else wings.attached(vlm):
            if distillation is None:
                return vlm.forward(lesson.inputs, labels=lesson.labels, use_cache=False).loss, {}
            told = distillation(vlm, lesson.inputs, lesson.labels)
        own = told.output.loss
        logged = {f"{task}_{layer}": part["smooth_l1"].item() for (task, layer), part in told.parts.items()}
        return own + told.loss, {"answers": own.item(), "distilled": told.loss.item(), **logged}

    wanted = {p: p.requires_grad for p in vlm.model.parameters()}
    vlm.model.requires_grad_(False)
    for module in modules.values():
        module.requires_grad_(True)
    try:
        run_stage(
            STAGE, out, modules, [torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=config.weight_decay)], make, loss_of,
            steps=config.steps, decay=config.decay, progress=progress if run is None else run.log,
            save_seconds=config.save_seconds, log_steps=config.log_steps, workers=0,
        )  # fmt: skip
    except FloatingPointError as error:
        raise UserError(f"{error}; no weights were changed by it, and checkpoints in {str(out)!r} stay") from error
    finally:
        for parameter, own in wanted.items():
            parameter.requires_grad_(own)
    path = out / f"{STAGE}.csv"
    curves = pd.read_csv(path)
    if run is not None:
        run.table("training", curves)
        run.note(learning=asdict(config))
    return curves


def _parts(vlm: VLM, config: LearningConfig, wings, distillation) -> tuple[dict[str, nn.Module], list[dict]]:
    """What is trained, by name, and the optimiser's groups."""
    every = {
        "wings": (wings, config.learners),
        "distillation": (distillation, config.distillation),
        "projector": (vlm.anatomy.projector, config.projector),
        "decoder": (vlm.anatomy.decoder, config.decoder),
    }
    chosen = {name: (module, rate) for name, (module, rate) in every.items() if module is not None and rate}
    if not chosen:
        raise UserError("every learning rate is 0 or of a part that was not given: nothing would be trained")
    modules = {name: module for name, (module, _) in chosen.items()}
    return modules, [{"params": list(module.parameters()), "lr": rate} for module, rate in chosen.values()]


def _settle(out: Path, vlm: VLM, config: LearningConfig, wings, distillation) -> None:
    """Writes the settings into the folder, or checks that those there are the same."""
    own = {
        "model": vlm.name,
        "config": asdict(config),
        "wings": None if wings is None else asdict(wings.config),
        "distillation": None if distillation is None else asdict(distillation.config),
    }
    text, path = json.dumps(own, indent=1), out / SETTINGS
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{str(out)!r} holds a training with other settings ({SETTINGS}): choose another folder")
    write_whole(path, text.encode())


# -- lessons from samples --------------------------------------------------------------------------------------------------


def lessons(vlm: VLM, data: Iterable, batch_size: int, seed: int = 0) -> Callable[[int], Lesson]:
    """Batches by step, all samples of the data in a new order each time round. What cannot be read or has no answer is
    passed over; raises UserError where nothing is left."""
    samples = [sample for item in data if (sample := as_sample(item)) is not None]
    if not samples:
        raise UserError("the data has no sample with an answer: nothing can be learned from it")

    @lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(len(samples))

    def make(step: int) -> Lesson:
        places = range(step * batch_size, (step + 1) * batch_size)
        return lesson(vlm, [samples[order(i // len(samples))[i % len(samples)]] for i in places])

    return make


def lesson(vlm: VLM, samples: Iterable[Sample]) -> Lesson:
    """A batch whose answers, and the end of the turn behind each, are to be said."""
    end = vlm.tokenizer.eos_token or ""
    inputs = vlm.prepare_samples([replace(sample, answer=f"{sample.answer}{end}") for sample in samples])
    answers = inputs.spans.mask("answer")
    if not answers.any(1).all():
        empty = samples[int((~answers.any(1)).nonzero()[0])]
        raise UserError(f"the answer of sample {empty.id!r} has no token of its own: leave the sample out")
    return Lesson(inputs, inputs.tensors["input_ids"].masked_fill(~answers, -100))


def as_sample(item) -> Sample | None:
    """A sample of a sample or of a row of columns; None for what cannot be read or has no answer."""
    if isinstance(item, BadSample):
        return None
    if isinstance(item, Mapping):
        found = {part: next((item[name] for name in names if name in item), None) for part, names in USUAL.items()}
        if not isinstance(found["prompt"], str):
            raise UserError(f"a row has columns {', '.join(map(str, item))}: a prompt ({' or '.join(USUAL['prompt'])}) is needed")  # fmt: skip
        pictures = found["image"] if isinstance(found["image"], list | tuple) else [found["image"]]
        item = Sample(str(found["id"]), found["prompt"], tuple(p for p in pictures if p is not None), found["answer"])
    if not isinstance(item, Sample):
        raise UserError(f"the data holds a {type(item).__name__}: give samples, or rows as dicts")
    return item if item.answer else None

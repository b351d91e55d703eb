"""Embedding distillation: while a model is trained, chosen layers have to predict what a task's teacher knows of the picture.

Source: Jain et al., "OLA-VLM: Elevating Visual Perception in Multimodal LLMs with Auxiliary Embedding Distillation"
(arXiv 2412.09585), section 3.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models.inputs import Inputs
from ..probes.boxes import divided
from ..probes.embeddings import Resampler, embedding_loss
from ..probes.targets import Target, scene_targets
from ..scenes.errors import UserError
from .parts import load_weights, part_settings, save_part
from .task_tokens import Placed, embedding_tokens, place_tokens

logger = logging.getLogger("chiasm")

KIND = "distillation"
TASKS = {"d": "depth", "s": "segmentation"}


def parse_layers(text: str) -> dict[str, tuple[int, ...]]:
    """{"depth": (8, 20), "segmentation": (10, 18)} of "d8-20_s10-18": lists of layers, of any length. Raises UserError."""
    layers = {}
    for part in text.split("_"):
        found = re.fullmatch(rf"([{''.join(TASKS)}])(\d+(?:-\d+)*)", part)
        if found is None or TASKS[found[1]] in layers:
            raise UserError(
                f"layers {text!r}: {part!r} is not a task's letter ({', '.join(TASKS)}) and its layers, as in d8-20_s10-18"
            )
        layers[TASKS[found[1]]] = tuple(int(number) for number in found[2].split("-"))
    return layers


def format_layers(layers: Mapping[str, Sequence[int]]) -> str:
    """The text that `parse_layers` reads."""
    letters = {name: letter for letter, name in TASKS.items()}
    return "_".join(letters[name] + "-".join(map(str, numbers)) for name, numbers in layers.items())


@dataclass(frozen=True)
class DistillationConfig:
    """layers: of each task, where its target is predicted; layer l is the residual stream behind the l-th block, 1 to L
    (the last before the final norm). tokens: task tokens of each task. grid: the target's places a side, grid² queries, of
    which each task token is the mean of equally many. weight: of each layer's loss. contrastive_weight: of the contrastive
    term in it. log_scale: of its cosines at the beginning. width: of the predictors, None for the model's hidden size."""

    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tokens: int = 8
    grid: int = 8
    weight: float = 0.5
    contrastive_weight: float = 0.3
    log_scale: float = 2.0
    width: int | None = None

    def __post_init__(self):
        if not self.layers or not all(self.layers.values()):
            raise UserError(
                f"layers={dict(self.layers)!r} leaves a task without a layer: give parse_layers('d2-4_s2-4') for example"
            )
        if self.tokens < 1 or self.grid**2 % self.tokens:
            raise UserError(
                f"tokens={self.tokens} does not divide the {self.grid**2} queries of grid={self.grid}: give a divisor"
            )


class Distilled(NamedTuple):
    """loss: what is added to the model's own loss. parts: by (task, layer), unweighted: total, smooth_l1, contrastive. counted:
    rows with a target, by task. output: the model's, of the batch with task tokens. placed: that batch."""

    loss: Tensor
    parts: dict[tuple[str, int], dict[str, Tensor]]
    counted: dict[str, int]
    output: object
    placed: Placed


class Distillation(nn.Module):
    """Task tokens, predictors and contrastive scales for one model; nothing of the model is in it.

    A task's table (grid², D) is both: the mean of equal runs of its rows are the task tokens that the model reads behind the
    picture, and its rows are the queries of the task's predictors, which look at everything but padding and other tasks'
    tokens. The embeddings begin with the spread of the model's own. Targets are of the part of the picture that the model is
    shown, so that both lie on each other.
    """

    def __init__(self, vlm, config: DistillationConfig, targets: Sequence[Target] | None = None):
        """targets: of each task named in `config.layers`, by their name; default: depth and segmentation of rendered scenes.
        Raises UserError for a task without a target and layers that the model does not have."""
        super().__init__()
        self.config, anatomy = config, vlm.anatomy
        known = {target.name: target for target in (scene_targets() if targets is None else targets)}
        for name, layers in config.layers.items():
            if name not in known:
                raise UserError(f"task {name!r} has no target: give one of {', '.join(known)}")
            if outside := [layer for layer in layers if not 1 <= layer <= anatomy.n_layers]:
                raise UserError(f"layer {outside[0]} of task {name!r} is outside this model's 1..{anatomy.n_layers}")
        self.targets = [known[name] for name in config.layers]
        size, queries = anatomy.hidden_size, config.grid**2
        spread = embedding_spread(vlm) * (queries / config.tokens) ** 0.5  # a mean of rows spreads less than they do
        self.tables = nn.ParameterDict({t.name: torch.randn(queries, size) * spread for t in self.targets})
        self.log_scales = nn.ParameterDict({t.name: torch.tensor(config.log_scale) for t in self.targets})
        options = {"width": config.width or size, "normalise_output": False}  # targets are not of unit variance
        self.predictors = nn.ModuleDict()
        for target in self.targets:
            own = {
                str(layer): Resampler(size, len(target.labels), None, **options) for layer in config.layers[target.name]
            }
            self.predictors[target.name] = nn.ModuleDict(own)
        self.to(vlm.device)
        self._begun = False

    # -- task tokens -------------------------------------------------------------------------------------------------------

    def token_embeddings(self) -> Tensor:
        """(tasks * tokens, D), task by task in the order of `config.layers`."""
        return torch.cat([table.unflatten(0, (self.config.tokens, -1)).mean(1) for table in self.tables.values()])

    def place(self, vlm, inputs: Inputs, labels: Tensor | None = None) -> Placed:
        """The batch with this module's task tokens in it: what the model is to be run on, later too; see `place_tokens`."""
        return place_tokens(vlm.anatomy, inputs, self.config.tokens * len(self.targets), labels)

    def reading(self, vlm, placed: Placed) -> AbstractContextManager:
        """While open, the model reads the task tokens of the placed batch: `with d.reading(vlm, p): vlm.generate(p.inputs)`."""
        return embedding_tokens(vlm.anatomy, placed, self.token_embeddings())

    # -- the loss ------------------------------------------------------------------------------------------------------

    def forward(self, vlm, inputs: Inputs, labels: Tensor | None = None) -> Distilled:
        """One forward of the model over a batch of `vlm.prepare_samples`, and the extra loss of its chosen layers.

        labels: (B, T) of the batch as given, for the model's own loss (`output.loss`). Rows without a target (no picture,
        several, no scene) are as if not in the batch. Raises UserError for a batch without samples.
        """
        values = self.target_values(inputs)
        placed = self.place(vlm, inputs, labels)
        sites = [f"blocks.{layer - 1}.resid_post" for layers in self.config.layers.values() for layer in layers]
        own = {} if labels is None else {"labels": placed.labels}
        with self.reading(vlm, placed), vlm.recording(placed.inputs, sites) as recorder:
            output = vlm.forward(placed.inputs, use_cache=False, **own)
        trace = recorder.trace(placed.inputs)
        parts, counted = {}, {}
        for number, target in enumerate(self.targets):
            name, (value, valid) = target.name, values[target.name]
            mask = self.context(placed, number)
            counted[name] = int(valid.sum())
            for layer in self.config.layers[name]:
                states = trace[f"blocks.{layer - 1}.resid_post"]
                table = self.tables[name]
                pred = self.predictors[name][str(layer)](states.to(table), mask.to(table.device), table)
                losses = embedding_loss(
                    pred, value.to(pred), valid.to(pred.device), self.log_scales[name], self.config.contrastive_weight
                )
                parts[name, layer] = dict(zip(("total", "smooth_l1", "contrastive"), losses, strict=True))
        loss = self.config.weight * sum(part["total"] for part in parts.values())
        self._check(loss, counted)
        return Distilled(loss, parts, counted, output, placed)

    def context(self, placed: Placed, task: int) -> Tensor:
        """(B, T) what the predictors of a task look at: all real positions but other tasks' tokens."""
        other = (placed.numbers >= 0) & (placed.numbers // self.config.tokens != task)
        return placed.inputs.spans.real & ~other.to(placed.inputs.spans.labels.device)

    def target_values(self, inputs: Inputs) -> dict[str, tuple[Tensor, Tensor]]:
        """By task: values (B, grid², M), row by row over the part of the picture that the model is shown, and which rows have
        them (B,). Pictures whose tokens have no place are taken as shown whole."""
        if len(inputs.samples) != len(inputs):
            raise UserError("distillation needs the samples of the batch: make it with vlm.prepare_samples(samples)")
        cells = [_cells(inputs, b, self.config.grid) for b in range(len(inputs))]
        found = {}
        for target in self.targets:
            rows = [
                None if at is None else target.at(sample, 0, at)
                for at, sample in zip(cells, inputs.samples, strict=True)
            ]
            valid = torch.tensor([row is not None and bool(row.isfinite().all()) for row in rows])
            empty = torch.zeros(self.config.grid**2, len(target.labels))
            found[target.name] = (
                torch.stack([row if ok else empty for row, ok in zip(rows, valid, strict=True)]),
                valid,
            )
        return found

    def _check(self, loss: Tensor, counted: dict[str, int]) -> None:
        if self._begun or not any(counted.values()):
            return
        self._begun = True
        if not loss > 0:  # the released code set every mask to zero and trained for nothing
            raise UserError(
                f"the distillation loss is {loss.item()} though {counted} rows have targets: nothing would be learned"
            )
        if self.config.contrastive_weight and max(counted.values()) == 1:
            logger.warning("one row with a target in a batch: the contrastive term is 0; give larger batches")

    # -- files -------------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Writes weights (safetensors) and settings (JSON) into a folder, without the model."""
        return save_part(self, folder, {"kind": KIND, "config": asdict(self.config)})

    @classmethod
    def load(cls, folder: str | Path, vlm, targets: Sequence[Target] | None = None) -> Distillation:
        """What `save` wrote, for the model it was made for. Raises UserError where it does not fit."""
        config = part_settings(folder, KIND)["config"]
        config["layers"] = {name: tuple(layers) for name, layers in config["layers"].items()}
        made = cls(vlm, DistillationConfig(**config), targets)
        load_weights(made, folder)
        return made


def _cells(inputs: Inputs, row: int, grid: int) -> Tensor | None:
    """(grid², 4) the shown part of the row's one picture, cut into cells; None for a row without, or with several pictures."""
    sample, spans = inputs.samples[row], inputs.spans
    if len(sample.images) != 1:
        return None
    width, height = sample.images[0].size
    whole = torch.tensor([0.0, 0.0, width, height])
    boxes = spans.boxes[row][spans.visual[row]].cpu()
    boxes = boxes[boxes.isfinite().all(1)]
    if len(boxes):
        low, high = boxes[:, :2].amin(0).maximum(whole[:2]), boxes[:, 2:].amax(0).minimum(whole[2:])
        whole = torch.cat([low, high])
    return divided(whole[None], grid)


def embedding_spread(vlm) -> float:
    """Standard deviation of the numbers of the model's token embeddings, as they enter the decoder."""
    embeddings = vlm.model.get_input_embeddings()
    some = torch.arange(min(len(embeddings.weight), 4096), device=embeddings.weight.device)
    with torch.no_grad():
        return float(embeddings(some).float().std())

"""Interventions on the residual stream: adding, removing, turning towards a direction at the output of decoder blocks.

All reckon in fp32, whatever the model's type, and change the selected positions alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from ..scenes.errors import UserError
from .directions import Direction, checked_vector, state_norm
from .steer import Edit
from .where import Positions, Where, check_positions

Layers = int | Sequence[int]
"""One decoder layer or several; negative ones count from the last."""

Vector = Direction | Tensor
"""A direction with its card, or a bare (D,) tensor."""


@dataclass(frozen=True, eq=False)
class AddDirection:
    """h <- h + scale * v. units "raw": v as it is; "norm": v at length 1 times the mean norm of the layer's states.

    layer: default, the direction's own. Source: Khayatan et al. (arXiv 2501.03012), section 5; xl-vlms steers all positions.
    """

    direction: Vector
    layer: Layers | None = None
    scale: float = 1.0
    positions: Positions = "all"
    units: str = "raw"
    norm: float | None = None
    """Mean norm of the states, for units "norm" of a direction that does not know it."""

    def edits(self, vlm) -> list[Edit]:
        if self.units not in ("raw", "norm"):
            raise UserError(f'units={self.units!r} must be "raw" or "norm"')
        offset = finite("scale", self.scale) * checked_vector(self.direction, vlm)
        if self.units == "norm":
            offset = offset / offset.norm().clamp_min(1e-12) * state_norm(self.direction, self.norm) * abs(self.scale)
        return _at_blocks(self, vlm, self.direction, lambda states: states + offset.to(states.device))


@dataclass(frozen=True, eq=False)
class AblateDirection:
    """h <- h - (h . u) u, with u the direction at length 1: nothing is left along it. Idempotent."""

    direction: Vector
    layer: Layers | None = None
    positions: Positions = "all"

    def edits(self, vlm) -> list[Edit]:
        unit = unit_vector(self.direction, vlm)
        return _at_blocks(self, vlm, self.direction, lambda states: states - _along(states, unit))


@dataclass(frozen=True, eq=False)
class AffineAblate:
    """h <- h - ((h - m) . u) u: what is along u becomes that of the mean m (D,) of a base set, not 0."""

    direction: Vector
    mean: Tensor
    layer: Layers | None = None
    positions: Positions = "all"

    def edits(self, vlm) -> list[Edit]:
        unit, mean = unit_vector(self.direction, vlm), checked_vector(self.mean, vlm)
        return _at_blocks(
            self, vlm, self.direction, lambda states: states - _along(states - mean.to(states.device), unit)
        )


@dataclass(frozen=True, eq=False)
class NormPreservingAdd:
    """h <- (h + scale * v) at the length of h: the direction of a state changes, its norm does not."""

    direction: Vector
    layer: Layers | None = None
    scale: float = 1.0
    positions: Positions = "all"

    def edits(self, vlm) -> list[Edit]:
        offset = finite("scale", self.scale) * checked_vector(self.direction, vlm)

        def change(states: Tensor) -> Tensor:
            if self.scale == 0:
                return states
            moved = states + offset.to(states.device)
            return moved * (states.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp_min(1e-12))

        return _at_blocks(self, vlm, self.direction, change)


@dataclass(frozen=True, eq=False)
class Rotate:
    """Turns h by `angle` degrees towards the direction, in the plane of both, at the same length.

    0 leaves it; more than lies between the two leads past it. A state along the direction stays, and one opposite, which has
    no such plane.
    """

    direction: Vector
    angle: float
    layer: Layers | None = None
    positions: Positions = "all"

    def edits(self, vlm) -> list[Edit]:
        unit = unit_vector(self.direction, vlm)
        radians = math.radians(finite("angle", self.angle))

        def change(states: Tensor) -> Tensor:
            towards = unit.to(states.device)
            length = states.norm(dim=-1, keepdim=True)
            own = states / length.clamp_min(1e-12)
            beside = towards - (own @ towards)[..., None] * own
            beside = (
                beside - (beside * own).sum(-1, keepdim=True) * own
            )  # rounding leaves a part along a state close to it
            size = beside.norm(dim=-1, keepdim=True)
            turned = length * (math.cos(radians) * own + math.sin(radians) * beside / size.clamp_min(1e-12))
            return torch.where(size > 1e-5, turned, states) if radians else states

        return _at_blocks(self, vlm, self.direction, change)


@dataclass(frozen=True, eq=False)
class When:
    """Another residual intervention, only at the positions whose state, as it comes, has a concept active above `threshold`.

    concept: a direction (active: h . u, u at length 1), or a function of states (N, D) -> activations (N,), such as
    `lambda h: dictionary.encode(h)[:, k]`, how much a state has of concept k.
    """

    then: AddDirection | AblateDirection | AffineAblate | NormPreservingAdd | Rotate
    concept: Vector | Callable[[Tensor], Tensor]
    threshold: float = 0.0

    def edits(self, vlm) -> list[Edit]:
        finite("threshold", self.threshold)
        if callable(self.concept) and not isinstance(self.concept, Tensor):
            activation = lambda states: self.concept(states.flatten(0, -2)).view(states.shape[:-1])  # noqa: E731
        else:
            unit = unit_vector(self.concept, vlm)
            activation = lambda states: states @ unit.to(states.device)  # noqa: E731
        return [Edit(edit.module, after=self._conditional(edit.after, activation)) for edit in self.then.edits(vlm)]

    def _conditional(self, change: Callable, activation: Callable[[Tensor], Tensor]):
        def after(output: Tensor, where: Where) -> Tensor:
            active = (activation(output.float()) > self.threshold).to(output.device)
            return torch.where(active[..., None], change(output, where), output)

        return after


def unit_vector(direction: Vector, vlm) -> Tensor:
    """(D,) the direction at length 1. Raises UserError for one of length 0 or of another model."""
    vector = checked_vector(direction, vlm)
    if not float(vector.norm()):
        raise UserError("the direction is 0 everywhere: nothing lies along it")
    return vector / vector.norm()


def finite(name: str, value: float) -> float:
    """The number, or UserError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{name}={value!r} must be a finite number")
    return float(value)


def layers_of(layer: Layers | None, direction, vlm) -> list[int]:
    """The decoder layers to act at, each once. Raises UserError for one outside the model."""
    if layer is None:
        if not isinstance(direction, Direction):
            raise UserError("layer= is missing: a bare tensor does not say at which layer it acts")
        layer = direction.layer
    return checked_layers(layer, vlm)


def checked_layers(layers: Layers, vlm) -> list[int]:
    """The layers, each once, in order. Raises UserError for none, and for one outside the model."""
    chosen = [layers] if isinstance(layers, Integral) else list(layers)
    if not chosen:
        raise UserError("layer=[] names no layer: give one or more")
    return sorted({vlm.anatomy.check_layer(int(one)) for one in chosen})


def _along(states: Tensor, unit: Tensor) -> Tensor:
    unit = unit.to(states.device)
    return (states @ unit)[..., None] * unit


def _at_blocks(intervention, vlm, direction, change: Callable[[Tensor], Tensor]) -> list[Edit]:
    """The change (..., D) -> (..., D), in fp32, at the selected positions of the outputs of the intervention's layers."""
    positions = check_positions(intervention.positions)
    if positions == "image" and not vlm.anatomy.image_in_sequence:
        raise UserError(
            f"positions='image': the pictures of a {vlm.anatomy.family} enter by cross-attention, no position holds one"
        )

    def after(output: Tensor, where: Where) -> Tensor:
        whole = where.whole(positions)
        if whole is None:
            mask = where.mask(positions, output.device)
            whole = False if not mask.any() else True if mask.all() else None
        if whole is False:
            return output
        new = change(output.float()).to(output.dtype)
        return new if whole else torch.where(mask[..., None], new, output)

    return [Edit(vlm.anatomy.blocks[i], after=after) for i in layers_of(intervention.layer, direction, vlm)]

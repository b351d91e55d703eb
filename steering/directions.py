"""Directions of the residual stream: made from sets of states, kept with a card that says of what, refused on another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..probes.concept_files import load_pair, save_pair
from ..probes.reading import read_positions
from ..probes.subject import model_facts
from ..scenes.errors import UserError


@dataclass(frozen=True, eq=False)
class Direction:
    """vector: (D,) fp32 on the CPU. layer: the decoder block at whose output it was made. card: JSON values: model (as
    `model_facts` has it), method, n (samples it was made of), state_norm (mean norm of the states there), and what else is told.
    """

    vector: Tensor
    layer: int
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "vector", self.vector.detach().float().cpu())

    def __repr__(self) -> str:
        of = self.card.get("model", {}).get("name", "an unnamed model")
        return f"Direction({self.card.get('method', 'unknown')}, layer {self.layer} of {of}, norm {self.vector.norm():.3g})"

    def __mul__(self, factor: float) -> Direction:
        return Direction(self.vector * factor, self.layer, self.card)

    __rmul__ = __mul__

    def __neg__(self) -> Direction:
        return self * -1.0

    def save(self, path: str | Path) -> Path:
        """Writes NAME.safetensors and its card NAME.json (any of the two names, or NAME); returns the former."""
        path = _stem(path)
        save_pair(path, "direction", {"vector": self.vector}, {**self.card, "layer": self.layer})
        return path.with_name(path.name + ".safetensors")

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """What `save` wrote; nothing but numbers and JSON is read. Raises UserError for files that are missing or damaged."""
        tensors, card = load_pair(_stem(path), "direction", ("vector",))
        layer = card.get("layer")
        if not isinstance(layer, int):
            raise UserError(f"direction {str(path)!r} is damaged (its card has no layer): save it anew")
        return cls(tensors["vector"], layer, card)


def difference_direction(base: Tensor, target: Tensor) -> Tensor:
    """(D,) from the mean of base states (N, D) to that of target states (M, D), in fp32. Source: Khayatan et al., "coarse"."""
    if base.dim() != 2 or target.dim() != 2 or base.shape[1] != target.shape[1]:
        raise ValueError(f"states {tuple(base.shape)} and {tuple(target.shape)} must be (N, D) and (M, D)")
    if not len(base) or not len(target):
        raise ValueError("a set without states has no mean")
    return target.float().mean(0) - base.float().mean(0)


def concept_directions(atoms: Tensor) -> Tensor:
    """(K, D) -> (K, K, D): entry [i, j] leads from concept i to concept j, u_j - u_i; the diagonal is 0.

    Source: Khayatan et al., "fine"; the published code stores the opposite sign under this name.
    """
    if atoms.dim() != 2:
        raise ValueError(f"atoms {tuple(atoms.shape)} must be (K, D)")
    atoms = atoms.float()
    return atoms[None] - atoms[:, None]


def direction_between(vlm, base: Tensor, target: Tensor, layer: int, **card) -> Direction:
    """The coarse direction of two sets of states (N, D) and (M, D) read at `blocks.layer.resid_post`, with its card."""
    layer = vlm.anatomy.check_layer(layer)
    norm = torch.cat([base, target]).float().norm(dim=-1).mean().item()
    told = {"method": "difference of means", "n": [len(base), len(target)], "state_norm": norm}
    return Direction(difference_direction(base, target), layer, made_of(vlm) | told | card)


def direction_from_pairs(
    vlm, images: Sequence | Image.Image | None, pairs: Sequence[tuple[str, str]], layer: int, *, batch_size: int = 16, **card
) -> Direction:  # fmt: skip
    """The mean difference, over pictures and (base, target) pairs of prompts, of the state of the prompt's last position.

    images: pictures, one picture, or None for none: every pair is asked of every picture.
    """
    if not pairs:
        raise UserError("pairs is empty: give at least one (base, target) pair of prompts")
    images = [images] if images is None or isinstance(images, Image.Image) else list(images) or [None]
    asked = [(image, pair) for image in images for pair in pairs]
    layer = vlm.anatomy.check_layer(layer)
    read = []
    for k in (0, 1):
        states = []
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            states.append(last_states(vlm, [image for image, _ in batch], [pair[k] for _, pair in batch], layer))
        read.append(torch.cat(states))
    return direction_between(
        vlm, *read, layer, **{"method": "contrast pairs", "pairs": [list(p) for p in pairs]} | card
    )


def last_states(vlm, images: Sequence, prompts: Sequence[str], layer: int) -> Tensor:
    """(N, D), fp32 on the CPU: the state of each prompt's last position at `blocks.layer.resid_post`."""
    inputs = vlm.prepare(images, prompts)
    site = f"blocks.{vlm.anatomy.check_layer(layer)}.resid_post"
    width = inputs.tensors["input_ids"].shape[1]  # left-padded: every row ends in the last column
    return read_positions(vlm, inputs, [width] * len(prompts), [[0]] * len(prompts), [site])[site].float().cpu()


def made_of(vlm) -> dict[str, Any]:
    """What a card says of the model, and its width."""
    facts = model_facts(vlm)
    return {"model": {k: facts[k] for k in ("name", "revision", "weights", "family")}, "width": vlm.anatomy.hidden_size}


def checked_vector(direction: Direction | Tensor, vlm) -> Tensor:
    """(D,) fp32: the vector of a direction made for this model. Raises UserError for another width or other weights."""
    width = vlm.anatomy.hidden_size
    vector = direction.vector if isinstance(direction, Direction) else direction
    if not isinstance(vector, Tensor) or vector.shape != (width,):
        shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise UserError(
            f"the direction is {shape}, the states of {vlm.name} are ({width},): use one made on this model"
        )
    if not torch.isfinite(vector).all():
        raise UserError("the direction holds values that are not finite: make it anew")
    model = direction.card.get("model") if isinstance(direction, Direction) else None
    if model and model.get("weights") != vlm.fingerprint():
        raise UserError(
            f"the direction was made on {model.get('name')} (weights {model.get('weights')}), this is {vlm.name} (weights "
            f"{vlm.fingerprint()}): make it anew, or pass its .vector to use it all the same"
        )
    return vector.detach().float()


def state_norm(direction: Direction | Tensor, given: float | None) -> float:
    """The mean norm of states that scales a direction in units "norm": the one given, else that of the card."""
    norm = given if given is not None else getattr(direction, "card", {}).get("state_norm")
    if norm is None:
        raise UserError(
            'units="norm" needs the mean norm of the states: give norm=, or a Direction whose card has state_norm'
        )
    return float(norm)


def _stem(path: str | Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path

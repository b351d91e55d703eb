"""Directions of the residual stream: made from sets of states, kept with a card that says of what, refused on another model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from PIL import Image
from torch import Tensor

from ..probes.concept_files import load_pair, save_pair
from ..probes.concept_shift import ConceptShift
from ..probes.concepts import Dictionary
from ..probes.extraction import extract
from ..probes.reading import read_positions
from ..probes.subject import model_facts
from ..scenes.errors import UserError
from ..scenes.sample import BadSample, Sample

STATES = ("last_prompt", "caption")


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
        told = f"{self.card.get('method', 'unknown')}, layer {self.layer} of {of}, norm {self.vector.norm():.3g}"
        return f"Direction({told}, {crc32(self.vector.contiguous().numpy().tobytes()):08x})"

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


def direction_from_samples(
    vlm, base: Iterable[Sample | BadSample], target: Iterable[Sample | BadSample], layer: int, *, states: str = "last_prompt",
    batch_size: int = 16, **card,
) -> Direction:  # fmt: skip
    """The coarse direction from one set of samples to another; those that cannot be read are left out.

    states: of each sample the one that predicts the first word of its answer ("last_prompt"), or the mean of those that predict
    what the model says of it ("caption"). For the states that predict a certain word: `extract`, and `direction_between`.
    Raises UserError for other states and for a set without a sample.
    """
    if states not in STATES:
        raise UserError(f"states={states!r} must be one of {', '.join(STATES)}")
    layer, read = vlm.anatomy.check_layer(layer), []
    for name, samples in (("base", base), ("target", target)):
        samples = [one for one in samples if isinstance(one, Sample)]
        if not samples:
            raise UserError(f"{name} holds no sample that can be read: give at least one")
        if states == "caption":
            site = f"blocks.{layer}.resid_post"
            read.append(extract(vlm, samples, None, sites=site, batch_size=batch_size)[site])
        else:
            asked = [s.images for s in samples], [s.prompt for s in samples]
            read.append(last_states(vlm, *asked, layer, batch_size=batch_size))
    return direction_between(vlm, *read, layer, **{"states": states} | card)


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
    shown = [image for image, _ in asked]
    read = [last_states(vlm, shown, [pair[k] for _, pair in asked], layer, batch_size=batch_size) for k in (0, 1)]
    return direction_between(
        vlm, *read, layer, **{"method": "contrast pairs", "pairs": [list(p) for p in pairs]} | card
    )


def directions_of_concepts(dictionary: Dictionary, card: Mapping[str, Any]) -> dict[tuple[int, int], Direction]:
    """The fine directions (i, j), from concept i to concept j, of a dictionary and its card (`load_dictionary`, `Concepts.card`).

    `list(found.values())` is what `try_directions` takes. Raises UserError for concepts of states that no block puts out.
    """
    layer, every = _layer_of(card), concept_directions(dictionary.atoms)
    told = {
        "model": _model_of(card, "model", "model_hash"),
        "width": every.shape[-1],
        "method": "difference of concepts",
    }
    told |= {name: card[name] for name in ("n", "words") if name in card} | {"dictionary": dictionary.method}
    pairs = [(i, j) for i in range(dictionary.k) for j in range(dictionary.k) if i != j]
    words = card.get("concept_words")
    said = {pair: {"concept_words": [words[k] for k in pair]} if words else {} for pair in pairs}
    return {pair: Direction(every[pair], layer, told | {"concepts": list(pair)} | said[pair]) for pair in pairs}


def direction_from_shift(shift: ConceptShift, card: Mapping[str, Any], concept: int) -> Direction:
    """What tuning did to the states of a concept, as a direction for the model that it was done to, of a shift and its card
    (`load_shift`). Raises UserError for a concept that is not there or has no sample, and as `directions_of_concepts`."""
    have = torch.nonzero(torch.isfinite(shift.shift).all(1)).flatten().tolist()
    if concept not in have:
        raise UserError(f"concept {concept} has no shift: use one of {', '.join(map(str, have))}")
    told = {
        "model": _model_of(card, "from", "from_hash"),
        "width": shift.shift.shape[1],
        "method": "shift of a concept",
    }
    told |= {name: card[name] for name in ("n", "words") if name in card}
    tuned = _model_of(card, "model", "model_hash")
    return Direction(shift.shift[concept], _layer_of(card), told | {"concept": concept, "tuned": tuned})


def last_states(vlm, images: Sequence, prompts: Sequence[str], layer: int, *, batch_size: int = 16) -> Tensor:
    """(N, D), fp32 on the CPU: the state of each prompt's last position at `blocks.layer.resid_post`."""
    site, read = f"blocks.{vlm.anatomy.check_layer(layer)}.resid_post", []
    for start in range(0, len(prompts), batch_size):
        some = slice(start, start + batch_size)
        inputs = vlm.prepare(images[some], prompts[some])
        rows, width = inputs.tensors["input_ids"].shape  # left-padded: every row ends in the last column
        read.append(read_positions(vlm, inputs, [width] * rows, [[0]] * rows, [site])[site].float().cpu())
    return torch.cat(read)


def made_of(vlm) -> dict[str, Any]:
    """What a card says of the model, and its width."""
    facts = model_facts(vlm)
    return {
        "model": {k: facts[k] for k in ("name", "revision", "weights", "family", "dtype")},
        "width": vlm.anatomy.hidden_size,
    }


def checked_vector(direction: Direction | Tensor, vlm) -> Tensor:
    """(D,) fp32: the vector of a direction made for this model. Raises UserError for another width, other weights (the same in
    another dtype are others), and for what is not real numbers."""
    width = vlm.anatomy.hidden_size
    vector = direction.vector if isinstance(direction, Direction) else direction
    if not isinstance(vector, Tensor) or vector.shape != (width,):
        shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise UserError(
            f"the direction is {shape}, the states of {vlm.name} are ({width},): use one made on this model"
        )
    if not vector.is_floating_point():
        raise UserError(f"the direction is of {vector.dtype}: give floating-point numbers")
    if not torch.isfinite(vector).all():
        raise UserError("the direction holds values that are not finite: make it anew")
    model = direction.card.get("model") if isinstance(direction, Direction) else None
    if model and model.get("weights") != vlm.fingerprint():
        raise UserError(
            f"the direction was made on {_described(model)}, this is {_described(made_of(vlm)['model'])}: make it anew, or pass "
            "its .vector to use it all the same"
        )
    return vector.detach().float()


def _described(model: Mapping[str, Any]) -> str:
    dtype = f", {model['dtype']}" if model.get("dtype") else ""
    return f"{model.get('name')} (weights {model.get('weights')}{dtype})"


def _layer_of(card: Mapping[str, Any]) -> int:
    """The block whose output the states of a dictionary or a shift are."""
    site = str(card.get("site"))
    if (found := re.fullmatch(r"blocks\.(\d+)\.resid_post", site)) is None:
        raise UserError(f"these concepts are of {site!r}, which is not steered: learn them at blocks.K.resid_post")
    return int(found[1])


def _model_of(card: Mapping[str, Any], name: str, weights: str) -> dict[str, Any]:
    if missing := [key for key in (name, weights) if key not in card]:
        raise UserError(
            f"the card does not say {missing[0]!r}, by which a direction is refused on other models: save it anew"
        )
    return {"name": card[name], "weights": card[weights]}


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

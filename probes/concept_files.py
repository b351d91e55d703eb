"""Dictionaries, shifts and directions on disk: NAME.safetensors with the tensors, NAME.json with the card. Never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..scenes.errors import UserError
from .concept_shift import ConceptShift
from .concepts import Dictionary
from .files import write_whole

FORMAT = 1


def save_dictionary(path: str | Path, dictionary: Dictionary, card: Mapping[str, Any]) -> Path:
    """Writes `path`.safetensors and `path`.json; returns the latter. card: JSON values that say what the states are of: model, model
    hash, site, words, n (as `Concepts.card` has them)."""
    tensors = {"atoms": dictionary.atoms, "codes": dictionary.codes, "mean": dictionary.mean}
    own = {"method": dictionary.method, "penalty": dictionary.penalty, "seed": dictionary.seed, "k": dictionary.k}
    return save_pair(path, "dictionary", tensors, {**card, **own, "objective": list(dictionary.objective)})


def load_dictionary(path: str | Path) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary and its card. Raises UserError, one line, for files that are missing, damaged or something else."""
    tensors, card = load_pair(path, "dictionary", ("atoms", "codes", "mean"))
    dictionary = Dictionary(
        card["method"], **tensors, penalty=card["penalty"], seed=card["seed"], objective=tuple(card["objective"])
    )
    return dictionary, card


def save_shift(path: str | Path, shift: ConceptShift, card: Mapping[str, Any]) -> Path:
    """As `save_dictionary`. card: as there, of both models."""
    return save_pair(path, "shift", shift._asdict(), dict(card))


def load_shift(path: str | Path) -> tuple[ConceptShift, dict[str, Any]]:
    """The shift and its card. Raises as `load_dictionary`."""
    tensors, card = load_pair(path, "shift", ConceptShift._fields)
    return ConceptShift(**tensors), card


def save_pair(path: str | Path, kind: str, tensors: Mapping[str, Tensor], card: dict[str, Any]) -> Path:
    """Writes `path`.safetensors and `path`.json, each whole or not at all; returns the latter."""
    # The card is written last and knows the hash of the tensors: a pair of which one file is old is told from a whole one.
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    told = {**card, "kind": kind, "format": FORMAT, "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(told, indent=1, ensure_ascii=False)
    write_whole(_file(path, ".safetensors"), content)
    write_whole(_file(path, ".json"), text.encode())
    return _file(path, ".json")


def load_pair(path: str | Path, kind: str, names: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of these names and the card of a pair of this kind; UserError, one line, where they are not to be had."""
    try:
        card = json.loads(_file(path, ".json").read_text(encoding="utf-8"))
        content = _file(path, ".safetensors").read_bytes()
        if card.get("kind") != kind or card.get("format") != FORMAT:
            raise UserError(
                f"{str(path)!r} is a {card.get('kind')} of format {card.get('format')}, not a {kind} of format {FORMAT}: save it anew"
            )
        if hashlib.sha256(content).hexdigest() != card["sha256"]:
            raise ValueError("tensors and card are not of one saving")
        tensors = load(content)
        return {name: tensors[name] for name in names}, card
    except FileNotFoundError as error:
        raise UserError(
            f"there is no {kind} {str(path)!r} (NAME.safetensors and NAME.json, named without ending): save one first"
        ) from error
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{kind} {str(path)!r} is damaged ({' '.join(str(error).split())[:120]}): save it anew"
        ) from error


def _file(path: str | Path, ending: str) -> Path:
    return Path(path).with_name(Path(path).name + ending)

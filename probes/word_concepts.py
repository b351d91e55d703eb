"""The concepts a model has of a word, and what tuning did to them: extraction, dictionary, grounding and shift in one call each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..scenes.errors import UserError
from ..scenes.sample import Sample
from .concept_files import save_dictionary
from .concept_recovery import recovery
from .concept_shift import ConceptShift, concept_shift, match_memberships, shift_table, shifted_concepts
from .concepts import Dictionary, decompose
from .extraction import WordStates, extract, matched
from .grounding import ground_words, top_samples


@dataclass(frozen=True)
class Concepts:
    """What a model has for a word. words: of each concept, most first. opposite: of its negative, for PCA, whose signs are arbitrary
    (else empty). top: ids of the samples with most of each. model, hash, site: what the states are of."""

    dictionary: Dictionary
    states: WordStates
    words: list[list[str]]
    opposite: list[list[str]]
    top: list[list[str]]
    model: str
    hash: str
    site: str

    @property
    def card(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "model_hash": self.hash,
            "site": self.site,
            "words": list(self.states.words),
            "n": len(self.states),
            "concept_words": self.words,
        }

    def table(self) -> pd.DataFrame:
        """One row a concept: n samples assigned to it, its words, the samples that have most of it."""
        n = torch.bincount(self.dictionary.assign(), minlength=self.dictionary.k).tolist()
        rows = zip(range(self.dictionary.k), n, map(", ".join, self.words), map(", ".join, self.top), strict=True)
        return pd.DataFrame(rows, columns=["concept", "n", "words", "top_samples"])

    def save(self, path: str | Path) -> Path:
        """Writes the dictionary with its card as `path`.safetensors and `path`.json; `load_dictionary` reads it."""
        return save_dictionary(path, self.dictionary, self.card)


def concepts_of(
    vlm, samples: Iterable[Sample], word: str | Sequence[str] | None, *, k: int = 20, method: str = "snmf", site: str = "final",
    seed: int = 0, n_words: int = 10, n_images: int = 5, final_norm: bool | None = None, extraction: dict | None = None,
    grounding: dict | None = None, **options,
) -> Concepts:  # fmt: skip
    """The k concepts from which a model predicts a word, in words and by the samples that have most of them.

    samples: of any reader. final_norm: apply the final norm before the unembedding (default: for states read before it, but not to
    centred directions). extraction, grounding, options: for `extract`, `ground_words` and `describe` (and through it `decompose`). Raises UserError as these do.
    """
    states = extract(vlm, samples, word, sites=site, **(extraction or {}))
    return describe(vlm, states, k=k, method=method, seed=seed, n_words=n_words, n_images=n_images, final_norm=final_norm, grounding=grounding, **options)  # fmt: skip


def describe(
    vlm, states: WordStates, *, k: int = 20, method: str = "snmf", seed: int = 0, n_words: int = 10, n_images: int = 5,
    site: str | None = None, final_norm: bool | None = None, centre: bool = True, grounding: dict | None = None, **options,
) -> Concepts:  # fmt: skip
    """`concepts_of` for states that were extracted already; site: which of theirs (default: the first);
    centre: as in `Dictionary.directions`."""
    site = site or next(iter(states.states))
    dictionary = decompose(states[site], k, method=method, seed=seed, **options)
    if final_norm is None:
        final_norm = site != "final" and method == "snmf"
    told = {"n": n_words, "final_norm": final_norm} | (grounding or {})
    directions = dictionary.directions(centre=centre)
    words = ground_words(vlm, directions, **told)
    opposite = ground_words(vlm, -directions, **told) if method == "pca" else []
    top = [[states.ids[m] for m in row] for row in top_samples(dictionary.codes, n_images, absolute=method == "pca")]
    return Concepts(dictionary, states, words, opposite, top, vlm.name, vlm.fingerprint(), site)


@dataclass(frozen=True)
class TunedConcepts:
    """Concepts of a word before and after tuning, on the n samples in which both models say it.

    before, after: dictionaries learnt from the same samples. partner: (K,) the concept after that shares most samples with each one
    before. rows: (n,) the samples' positions in the data. words: of the concepts before, shifted, and of their partners after; pictures:
    likewise, positions in the data. shifts: `shift_table`. recovered: `recovery`.
    """

    before: Dictionary
    after: Dictionary
    shift: ConceptShift
    partner: Tensor
    index: Tensor
    words: dict[str, list[list[str]]]
    pictures: dict[str, list[list[int]]]
    shifts: pd.DataFrame
    recovered: pd.DataFrame


def tuned_concepts(
    before_vlm, after_vlm, before: WordStates, after: WordStates, *, k: int = 20, method: str = "kmeans", seed: int = 0,
    n_words: int = 15, n_images: int = 50, candidates: int = 200, matching: str = "membership", alpha: float = 1.0,
    site: str | None = None, centre: bool = True,
) -> TunedConcepts:  # fmt: skip
    """What tuning did to the concepts of a word, from states that `extract` read from both models; site: which of theirs
    (default: the first of the model before).

    Raises UserError, one line, for models of different width or tokenizer, when no sample has the word in both, and when the samples
    are too few for k concepts.
    """
    check_same_words(before_vlm, after_vlm)
    site = site or next(iter(before.states))
    rows_a, rows_b = matched(before, after)
    a, b, index = before[site][rows_a], after[site][rows_b], before.index[rows_a]
    first, second = (decompose(states, k, method=method, seed=seed) for states in (a, b))
    assignment = first.assign()
    shift = concept_shift(a, b, assignment, k)
    shifted = replace(second, atoms=shifted_concepts(first.atoms, shift.shift, alpha).nan_to_num())
    moved_mean = shifted_concepts(first.mean, (b - a).mean(0), alpha)
    partner = match_memberships(assignment, second.assign(), k)

    def words(when: str, directions: Tensor) -> list[list[str]]:
        return ground_words(
            {"before": before_vlm, "after": after_vlm}[when], directions, n=n_words, candidates=candidates
        )

    told = {
        "before": words("before", first.directions(centre=centre)),
        "shifted": words("after", replace(shifted, mean=moved_mean).directions(centre=centre)),
    }
    after_words = words("after", second.directions(centre=centre))
    tops = {name: top_samples(codes, n_images, absolute=method == "pca") for name, codes in
            {"before": first.codes, "shifted": shifted.encode(b), "after": second.codes}.items()}  # fmt: skip
    order = partner.tolist()
    tops["after"] = [tops["after"][j] for j in order]
    pictures = {name: [index[row].tolist() for row in rows] for name, rows in tops.items()}
    recovered = recovery(
        a, b, first, matching=matching, alpha=alpha, seed=seed, words=words, n_words=n_words, n_images=n_images
    )
    shifts = shift_table(a, b, assignment, k, seed=seed)
    told["after"] = [after_words[j] for j in order]
    return TunedConcepts(first, second, shift, partner, index, told, pictures, shifts, recovered)


def check_same_words(a, b) -> None:
    """Refuses two models whose states or words cannot be compared."""
    if a.anatomy.hidden_size != b.anatomy.hidden_size:
        raise UserError(
            f"{a.name} is {a.anatomy.hidden_size} wide and {b.name} {b.anatomy.hidden_size}: a shift needs a model and its tuned self"
        )
    if a.tokenizer.get_vocab() != b.tokenizer.get_vocab():
        raise UserError(f"{a.name} and {b.name} have different tokenizers: a shift needs a model and its tuned self")

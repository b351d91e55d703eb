"""Does a concept's shift lead to a concept of the tuned model? Judged on samples the shift was not estimated from, against baselines.

Source: Khayatan et al. (arXiv 2501.03012), section 3.3. There the shift is estimated on the samples that the tuned model's centroids
are fitted to, and concepts are matched by their cosine before any shift, which favours "no shift": split=False with
matching="original" is that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from ..scenes.errors import UserError
from .concept_shift import concept_shift, match_concepts, match_memberships, shifted_concepts
from .concepts import Dictionary, decompose
from .grounding import shared_share, top_samples

KINDS = ("shift", "global", "permuted", "random")
"""The concept's own shift; one shift, the mean of all samples, for every concept; the other concepts' shifts; random directions of
its length."""

MATCHINGS = ("membership", "original", "shifted")
DRAWS = 5
"""Random directions a concept."""

Words = Callable[[str, Tensor], Sequence[Sequence[str]]]
"""Puts directions (K, D) into words: called with "before" or "after", which says in which model's."""


def recovery_metrics(atoms: Tensor, shifted: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of each concept (K, D), its shifted self and the tuned concept it should become, (K,) each.

    distance_gain: |target - atom| - |target - shifted|, distance_share: of the first term. cosine_gain: cos(target, shifted) -
    cos(target, atom), cosine_share: of the second cosine, which can be near 0 or negative: NaN then (below 0.01).
    """
    before, after = (targets - atoms).norm(dim=1), (targets - shifted).norm(dim=1)
    unit = torch.nn.functional.normalize
    close_before, close_after = ((unit(targets, dim=1) * unit(x, dim=1)).sum(1) for x in (atoms, shifted))
    gain = close_after - close_before
    return {
        "distance_gain": before - after,
        "distance_share": torch.where(before > 0, (before - after) / before, torch.nan),
        "cosine_gain": gain,
        "cosine_share": torch.where(close_before > 0.01, gain / close_before, torch.nan),
    }


def recovery(
    a: Tensor, b: Tensor, dictionary: Dictionary, *, matching: str = "membership", split: bool = True, average: str = "mean",
    alpha: float = 1.0, seed: int = 0, words: Words | None = None, n_words: int = 15, n_images: int = 50,
    centre: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """One row for each concept, kind of shift and half that is judged.

    a, b: (M, D) states of the same samples before and after. dictionary: learnt from a. In each half in turn the tuned model's concepts
    are learnt anew (same method, k and seed); the shift comes from the other half (split=False: from all samples, judged on all).
    matching: which tuned concept is whose partner: by the samples they share ("membership", which no shift enters), or by cosine from
    the "original" or the "shifted" concepts; one matching for every kind. words: puts directions into words, see `Words`;
    n_words, n_images: lengths of the lists compared (fewer pictures where a half has fewer). centre: as in `Dictionary.directions`.

    Columns: half, kind, concept, partner, n (samples the shift is of), those of `recovery_metrics`, and in percent words_before,
    words_after, images_before, images_after: T-Overlap with the partner of the concept and of the shifted one. NaN where a concept
    has no shift. Raises UserError when a half has fewer samples than there are concepts.
    """
    if matching not in MATCHINGS:
        raise UserError(f"concepts are matched by {', '.join(MATCHINGS)}; got {matching!r}")
    k, assignment = dictionary.k, dictionary.assign(a)
    every = torch.arange(len(a))
    halves = split_halves(assignment, seed) if split else (every,)
    if min(map(len, halves)) < k:
        raise UserError(
            f"{len(a)} samples make halves of {min(map(len, halves))}, fewer than {k} concepts: give more samples, or k of at most {len(a) // 2}"
        )
    weights = torch.bincount(assignment, minlength=k).to(dictionary.atoms) / len(a)
    rows = []
    for h, judged in enumerate(halves):
        learnt = halves[1 - h] if split else every
        shift = concept_shift(a[learnt], b[learnt], assignment[learnt], k, average=average).shift.to(a)
        n = torch.bincount(assignment[learnt], minlength=k)
        tuned = decompose(b[judged], k, method=dictionary.method, seed=seed, penalty=dictionary.penalty)
        if matching == "membership":
            partner = match_memberships(assignment[judged], tuned.assign(), k)
        else:
            moved = dictionary.atoms if matching == "original" else shifted_concepts(dictionary.atoms, shift, alpha)
            partner = match_concepts(moved, tuned.atoms)
        sizes = n_words, min(n_images, len(judged))
        judge = _Judge(dictionary, tuned, partner, a[judged], b[judged], weights, words, *sizes, centre)
        for kind, candidates in _kinds(shift, (b[learnt] - a[learnt]).mean(0), seed + h).items():
            found = pd.concat([judge(alpha * one) for one in candidates]).groupby("concept", as_index=False).mean()
            rows.append(found.assign(half=h, kind=kind, partner=partner.tolist(), n=n.tolist()))
    table, first = pd.concat(rows, ignore_index=True), ["half", "kind", "concept", "partner", "n"]
    return table[[*first, *table.columns.difference(first, sort=False)]]


def split_halves(assignment: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of two halves; each concept's samples are dealt to both as evenly as can be."""
    order = torch.randperm(len(assignment), generator=torch.Generator().manual_seed(seed))
    order = order[assignment.cpu()[order].argsort(stable=True)]
    return order[0::2].sort().values, order[1::2].sort().values


def _kinds(shift: Tensor, whole: Tensor, seed: int) -> dict[str, list[Tensor]]:
    """Shifts (K, D) of each kind; where there are several they are judged one by one and averaged."""
    k, generator = len(shift), torch.Generator().manual_seed(seed)
    noise = torch.randn(DRAWS, *shift.shape, generator=generator, dtype=torch.float64).to(shift)
    lengths = shift.norm(dim=1, keepdim=True)
    present = torch.where(lengths.isnan(), torch.nan, 1.0)
    return {
        "shift": [shift],
        "global": [present * whole],
        "permuted": [shift.roll(i, 0) for i in range(1, k)] or [shift * torch.nan],
        "random": [lengths * torch.nn.functional.normalize(one, dim=1) for one in noise],
    }


@dataclass(frozen=True)
class _Judge:
    """Compares shifted concepts with the tuned model's on one half of the samples: a, b their states. weights: (K,) shares of all
    samples; the rest as in `recovery`."""

    dictionary: Dictionary
    tuned: Dictionary
    partner: Tensor
    a: Tensor
    b: Tensor
    weights: Tensor
    words: Words | None
    n_words: int
    n_images: int
    centre: bool

    @cached_property
    def pictures(self) -> list[list[list[int]]]:
        """The top samples of the concepts before and of the tuned ones."""
        return [
            top_samples(codes, self.n_images, absolute=True)
            for codes in (self.dictionary.encode(self.a), self.tuned.codes)
        ]

    @cached_property
    def told(self) -> list[Sequence[Sequence[str]]]:
        """The words of the concepts before and of the tuned ones."""
        both = {"before": self.dictionary, "after": self.tuned}
        return [self.words(when, one.directions(centre=self.centre)) for when, one in both.items()]

    def __call__(self, shift: Tensor) -> pd.DataFrame:
        atoms = self.dictionary.atoms
        shifted, lost = atoms + shift, shift.isnan().any(1)
        table = {
            name: value.cpu().double()
            for name, value in recovery_metrics(atoms, shifted, self.tuned.atoms[self.partner]).items()
        }
        whole = shifted.nan_to_num()  # a concept without a shift must not spoil the codes of the others
        codes = replace(self.tuned, atoms=whole).encode(self.b)
        table |= self._overlaps(
            "images", self.pictures, top_samples(codes, self.n_images, absolute=True), self.n_images
        )
        if self.words is not None:
            table |= self._overlaps(
                "words", self.told, self.words("after", self._directions(whole, shift)), self.n_words
            )
        table = pd.DataFrame(table)
        table.loc[lost.cpu().numpy()] = float("nan")
        return table.assign(concept=range(len(table)))

    def _directions(self, shifted: Tensor, shift: Tensor) -> Tensor:
        """Shifted concepts as directions: less the mean they share, which has moved by the mean shift."""
        moved = self.dictionary.mean + self.weights @ shift.nan_to_num()
        return replace(self.dictionary, atoms=shifted, mean=moved).directions(centre=self.centre)

    def _overlaps(self, what: str, before_and_tuned, shifted, size: int) -> dict[str, list[float]]:
        before, tuned = before_and_tuned
        partners = [tuned[j] for j in self.partner.tolist()]
        lists = {"before": before, "after": shifted}
        return {
            f"{what}_{when}": [shared_share(x, y, size) for x, y in zip(of, partners, strict=True)]
            for when, of in lists.items()
        }

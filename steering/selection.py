"""Choosing among many fine directions those that lead to one answer: by what each does to the counts of answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..scenes.errors import UserError
from .residual import AddDirection, Layers, Vector
from .steer import steer
from .where import Positions


@dataclass(frozen=True)
class Selected:
    """A direction that leads to one answer. index: of the directions tried. target: the answers it adds most of. gap: how many
    more it adds of each of these than of any other. changes: of the counts of its top answers, largest first."""

    index: int
    target: tuple[str, ...]
    gap: float
    changes: dict[str, float] = field(repr=False)


def select_directions(
    counts_before: Mapping[str, int], counts_after: Sequence[Mapping[str, int]], *, top: int = 5, few: int = 1, n: int | None = None
) -> list[Selected]:  # fmt: skip
    """The directions that lead to one answer, one a target, the clearest first.

    counts_before: answers without steering; counts_after: answers with each direction, on the same questions. Of each
    direction the `top` answers with the largest rise in count are split in two clusters by 2-means; it is kept if the upper
    one holds at most `few` answers, its target. Kept ones are ranked by the gap between the two clusters, and the first of
    each target stays; n: at most so many. A direction that adds nothing, or as much of all, is left out.
    Source: Khayatan et al. (arXiv 2501.03012), section 5, and its code, which clusters counts with an unseeded k-means.
    """
    if top < 2 or few < 1:
        raise UserError(f"top={top}, few={few}: compare at least 2 answers, and keep at least 1")
    if not counts_after:
        raise UserError("counts_after is empty: try at least one direction")
    found = []
    for index, after in enumerate(counts_after):
        changes = {answer: after.get(answer, 0) - counts_before.get(answer, 0) for answer in {*counts_before, *after}}
        rises = dict(sorted(changes.items(), key=lambda item: (-item[1], item[0]))[:top])
        if len(rises) == 1:  # nothing to compare with
            rises |= {"": 0}
        upper = upper_cluster(list(rises.values()))
        answers, values = list(rises), list(rises.values())
        if upper and upper <= few and values[upper - 1] > 0:
            found.append(Selected(index, tuple(sorted(answers[:upper])), values[upper - 1] - values[upper], rises))
    found.sort(key=lambda one: (-one.gap, one.index))
    best: dict[tuple[str, ...], Selected] = {}
    for one in found:
        best.setdefault(one.target, one)
    return list(best.values())[:n]


def upper_cluster(values: Sequence[float]) -> int:
    """How many of the values, largest first, form the upper of two clusters; 0 where all are equal.

    In one dimension 2-means is a cut, so every cut is tried: exact, and the same every time. Ties go to fewer.
    """
    values = np.asarray(values, float)
    if len(values) < 2 or values[0] == values[-1]:
        return 0
    spread = [part.var() * len(part) for cut in range(1, len(values)) for part in (values[:cut], values[cut:])]
    return 1 + int(np.argmin(np.round(np.add(spread[::2], spread[1::2]), 9)))


def try_directions(
    vlm, samples: Iterable, directions: Sequence[Vector] | Tensor, *, layer: Layers | None = None, scale: float = 1.0,
    positions: Positions = "last_prompt", batch_size: int = 16, **options,
) -> tuple[Counter, list[Counter]]:  # fmt: skip
    """Answers counted without steering, and with each direction added: what `select_directions` takes.

    directions: (N, D), or a sequence of vectors; of `concept_directions` (K, K, D) the pairs, row by row, i to j at i*K + j (the
    diagonal, which is 0, changes nothing and is never selected). layer, scale, positions: of `AddDirection`; "last_prompt"
    reaches a one-word answer. options: of generate. Answers are compared as `answer_key` has them.
    """
    samples = list(samples)
    if not samples:
        raise UserError("samples is empty: give at least one question")
    if isinstance(directions, Tensor):
        directions = list(directions.flatten(0, -2))
    if not len(directions):
        raise UserError("directions is empty: give at least one")
    changes = [AddDirection(one, layer, scale, positions) for one in directions]
    for change in changes:  # all are checked before the first is tried
        change.edits(vlm)
    options = {"max_new_tokens": 8} | options
    before, after = Counter(), [Counter() for _ in changes]
    for start in range(0, len(samples), batch_size):
        some = samples[start : start + batch_size]
        inputs = vlm.prepare([s.images for s in some], [s.prompt for s in some])
        before.update(map(answer_key, vlm.generate(inputs, **options)))
        for change, counts in zip(changes, after, strict=True):
            with steer(vlm, change):
                counts.update(map(answer_key, vlm.generate(inputs, **options)))
    return before, after


def answer_key(answer: str) -> str:
    """An answer as it is counted: small letters, without punctuation at its ends, spaces single."""
    return re.sub(r"^\W+|\W+$", "", " ".join(answer.lower().split()))

"""Every built-in probe with what goes round it: its title, its words, its figures and its key numbers. One entry a lens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from . import headlines
from .figures import Figure, attention_shift, implicit_alignment
from .page import Card, Claim

Made = Callable[[object, object], object]
"""(vlm, first sample) -> a probe ready for `measure`, or in words why this model or these data have nothing for it."""


@dataclass(frozen=True)
class Lens:
    """What the report needs of a probe. figures: functions of its table; cards, claims: key numbers and verdicts from it."""

    title: str
    intro: str
    make: Made
    figures: Sequence[Callable[[pd.DataFrame], Figure | None]]
    cards: Callable[[pd.DataFrame], list[Card]] = lambda table: []
    claims: Callable[[pd.DataFrame], list[Claim]] = lambda table: []


def _alignment(vlm, sample):
    from ..probes.implicit_alignment import ImplicitAlignment

    return ImplicitAlignment()


def _shift(vlm, sample):
    from ..probes.attention_shift import AttentionShift

    if not vlm.anatomy.image_in_sequence:
        return "this model's pictures enter by cross-attention, so no text is before or behind them"
    return AttentionShift(text_only=True)  # the run without pictures is its contrast


LENSES: dict[str, Lens] = {
    "implicit_alignment": Lens(
        "Implicit alignment",
        "Do visual tokens become like text tokens on their way through the language model? Cosine similarities of the residual stream, "
        "layer by layer, with the controls that tell alignment from a common drift (Shukor and Cord, arXiv 2405.16700).",
        _alignment,
        implicit_alignment.FIGURES,
        headlines.alignment_cards,
        headlines.alignment_claims,
    ),
    "attention_shift": Lens(
        "Attention shift",
        "Where does attention go once a picture stands in the middle of a text, and do the text before and the text behind it still share "
        "one course over layers? (the attention part of Wings, arXiv 2406.03496).",
        _shift,
        attention_shift.FIGURES,
        headlines.attention_cards,
        headlines.attention_claims,
    ),
}
"""By the name of the probe, in the order of the page."""


def built_in(vlm, sample=None) -> tuple[list, dict[str, str]]:
    """The built-in probes for a model and data (of which `sample` is the first), and why the others are left out."""
    made = {name: lens.make(vlm, sample) for name, lens in LENSES.items()}
    probes = [probe for probe in made.values() if not isinstance(probe, str)]
    return probes, {LENSES[name].title: reason for name, reason in made.items() if isinstance(reason, str)}


def figures_of(probe: str, table: pd.DataFrame) -> list[Figure]:
    """Every figure of a built-in probe that its table has something for; none for another probe."""
    made = (function(table) for function in (LENSES[probe].figures if probe in LENSES else ()))
    return [figure for figure in made if figure is not None]

"""Every built-in probe with what goes round it: its title, its words, its figures and its key numbers. One entry a lens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from ..scenes.errors import UserError
from . import headlines
from .figures import Figure, attention_shift, embeddings, implicit_alignment, outliers, shared_weights, vocabulary
from .headlines_embeddings import embedding_cards, embedding_claims, embedding_numbers
from .headlines_weights import weight_cards, weight_claims, weight_numbers
from .headlines_words import word_cards, word_claims, word_numbers
from .options import load_probe
from .page import Card, Claim

Made = Callable[[object, object], object]
"""(vlm, first sample) -> a probe ready for `measure`, or in words why this model or these data have nothing for it."""


@dataclass(frozen=True)
class Lens:
    """What the report needs of a probe. figures: functions of its table; cards, claims: key numbers and verdicts from it, for
    people; numbers: the one to three that are measured again wherever models or interventions are compared."""

    title: str
    intro: str
    make: Made
    figures: Sequence[Callable[[pd.DataFrame], Figure | None]]
    cards: Callable[[pd.DataFrame], list[Card]] = lambda table: []
    claims: Callable[[pd.DataFrame], list[Claim]] = lambda table: []
    numbers: Callable[[pd.DataFrame], dict[str, float]] = lambda table: {}


def _alignment(vlm, sample):
    from ..probes.implicit_alignment import ImplicitAlignment

    return ImplicitAlignment()


def _shift(vlm, sample):
    from ..probes.attention_shift import AttentionShift

    if not vlm.anatomy.image_in_sequence:
        return "this model's pictures enter by cross-attention, so no text is before or behind them"
    return AttentionShift(text_only=True)  # the run without pictures is its contrast


def _outliers(vlm, sample):
    from ..models.patch_scores import score_kinds
    from ..probes.outlier_overlap import OutlierOverlap

    # How far the kinds of score agree is left to the experiment: in a pass of all lenses it would cost as much as all the rest.
    return (
        OutlierOverlap(agreement=False) if score_kinds(vlm.anatomy) else "no patch of this model's tower can be scored"
    )


def _embeddings(vlm, sample):
    from ..probes.embedding_probe import EmbeddingProbe

    if getattr(sample, "truth", {}).get("scene") is None:
        return "depth and segmentation are known of rendered scenes only; for other pictures name a vision model: chiasm run embeddings --teacher MODEL"
    return EmbeddingProbe()


def _words(vlm, sample):
    from ..probes.vocabulary_view import VocabularyView

    if not vlm.anatomy.image_in_sequence:
        return "this model's pictures enter by cross-attention, so no position holds a visual token to be read as words"
    return VocabularyView(vlm.writer.tokenizer if vlm.writer else None)


def _weights(vlm, sample):
    from ..probes.weight_overlap import WeightOverlap

    if not vlm.anatomy.image_in_sequence:
        return "this model's pictures enter by cross-attention, so only text goes through the decoder's weights"
    return WeightOverlap()


LENSES: dict[str, Lens] = {
    "implicit_alignment": Lens(
        "Implicit alignment",
        "Do visual tokens become like text tokens on their way through the language model? Cosine similarities of the residual stream, "
        "layer by layer, with the controls that tell alignment from a common drift (Shukor and Cord, arXiv 2405.16700).",
        _alignment,
        implicit_alignment.FIGURES,
        headlines.alignment_cards,
        headlines.alignment_claims,
        headlines.alignment_numbers,
    ),
    "attention_shift": Lens(
        "Attention shift",
        "Where does attention go once a picture stands in the middle of a text, and do the text before and the text behind it still share "
        "one course over layers? (the attention part of Wings, arXiv 2406.03496).",
        _shift,
        attention_shift.FIGURES,
        headlines.attention_cards,
        headlines.attention_claims,
        headlines.attention_numbers,
    ),
    "outlier_overlap": Lens(
        "Outliers",
        "Vision encoders pile attention on a few patches. Does the decoder look at the same ones? Overlap of the encoder's outliers with the "
        "decoder's attention, against chance and against another picture's outliers (the question of DAMRO, arXiv 2410.04514).",
        _outliers,
        (outliers.by_layer, outliers.by_head),
        outliers.cards,
        outliers.claims,
        outliers.numbers,
    ),
    "embeddings": Lens(
        "What each layer knows",
        "How much of depth and segmentation can a linear probe read from the visual tokens at each layer, and how much of that is there without the "
        "language model? (the probes of OLA-VLM, arXiv 2412.09585, with reference levels and a control task).",
        _embeddings,
        embeddings.FIGURES,
        embedding_cards,
        embedding_claims,
        embedding_numbers,
    ),
    "vocabulary_view": Lens(
        "The vocabulary view",
        "Read through the final norm and the unembedding, which words do visual tokens stand for at each layer, how sure are they, and how far from "
        "what text tokens say? (Shukor and Cord, arXiv 2405.16700).",
        _words,
        vocabulary.FIGURES,
        word_cards,
        word_claims,
        word_numbers,
    ),
    "weight_overlap": Lens(
        "Shared weights",
        "Do pictures and text use the same weights of the language model? Wanda masks of visual and text tokens, their overlap, and what overlap "
        "independent activations would give through equal weights (Shukor and Cord, arXiv 2405.16700).",
        _weights,
        shared_weights.FIGURES,
        weight_cards,
        weight_claims,
        weight_numbers,
    ),
}
"""By the name of the probe, in the order of the page."""


def built_in(vlm, sample=None) -> tuple[list, dict[str, str]]:
    """The built-in probes for a model and data (of which `sample` is the first), and why the others are left out."""
    made = {name: lens.make(vlm, sample) for name, lens in LENSES.items()}
    probes = [probe for probe in made.values() if not isinstance(probe, str)]
    return probes, {LENSES[name].title: reason for name, reason in made.items() if isinstance(reason, str)}


def chosen(names: Sequence[str] | None, vlm, sample=None) -> list:
    """The probes named (built-in ones, or package.module:Class), or every built-in one that applies. Raises UserError."""
    if not names:
        return built_in(vlm, sample)[0]
    probes = []
    for name in names:
        probe = LENSES[name].make(vlm, sample) if name in LENSES else load_probe(name)
        if isinstance(probe, str):
            raise UserError(f"probe {name!r} cannot be used here: {probe}")
        probes.append(probe)
    return probes


def figures_of(probe: str, table: pd.DataFrame) -> list[Figure]:
    """Every figure of a built-in probe that its table has something for; none for another probe."""
    made = (function(table) for function in (LENSES[probe].figures if probe in LENSES else ()))
    return [figure for figure in made if figure is not None]

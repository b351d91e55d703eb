"""The word each visual token of one picture stands for at a layer, and where on the picture it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from ..scenes.errors import UserError
from ..scenes.sample import Sample
from .vocabulary import decode_states
from .vocabulary_table import word_of


@dataclass(frozen=True)
class PatchWords:
    """layer: 0 is the decoder's input, l the stream after block l - 1. words, probabilities: one a visual token of the
    picture, in order; boxes: (N, 4) pixels x0, y0, x1, y1 of the picture as it was given, NaN where the family's tokens have
    no place on it; tokens: ids."""

    layer: int
    words: list[str]
    probabilities: list[float]
    boxes: list[list[float]]
    tokens: list[int]


def patch_words(vlm, sample: Sample, layer: int | Sequence[int], *, picture: int = 0) -> PatchWords | list[PatchWords]:
    """What the visual tokens of a sample's picture say at a layer (or at several, from one forward pass), by the logit lens.

    layer: 0..L, negative ones from the end; picture: which of the sample's. Raises UserError for a layer outside the model, a
    picture the sample does not have, and a family without visual tokens in the sequence.
    """
    found = batch_patch_words(vlm, [sample], [layer] if isinstance(layer, int) else layer, picture=picture)[0]
    return found[0] if isinstance(layer, int) else found


def batch_patch_words(
    vlm, samples: Sequence[Sample], layers: Sequence[int], *, picture: int = 0
) -> list[list[PatchWords]]:  # fmt: skip
    """`patch_words` of several samples, in one forward pass: by sample and layer."""
    if not vlm.anatomy.image_in_sequence:
        raise UserError(
            f"patch_words: the pictures of {vlm.anatomy.family} enter by cross-attention, there are no visual tokens"
        )
    for sample in samples:
        if not 0 <= picture < len(sample.images):
            raise UserError(f"picture {picture} of sample {sample.id!r} does not exist, it has {len(sample.images)}")
    last = vlm.anatomy.n_layers
    for layer in layers:
        if not -last - 1 <= layer <= last:
            raise UserError(
                f"layer {layer} is outside this model's 0..{last} (0 is the decoder's input, {last} its last block's output)"
            )
    layers = [layer % (last + 1) for layer in layers]
    inputs = vlm.prepare_samples(samples)
    spans = inputs.spans
    sites = ["embed" if layer == 0 else f"blocks.{layer - 1}.resid_post" for layer in layers]
    trace = vlm.trace(inputs, list(dict.fromkeys(sites)))
    here = spans.visual & (spans.image_index == picture)
    counts = here.sum(1).tolist()
    boxes = [part.tolist() for part in spans.boxes[here].split(counts)]
    name = cache(lambda token: word_of(token, vlm.tokenizer if vlm.writer is not None else None))
    found: list[list[PatchWords]] = [[] for _ in samples]
    for layer, site in zip(layers, sites, strict=True):
        states = trace[site]
        with torch.no_grad():
            p, ids = decode_states(states[here.to(states.device)], vlm.anatomy.unembedding, vlm.anatomy.norm).max(-1)
        for one, own, tokens, places in zip(found, p.split(counts), ids.split(counts), boxes, strict=True):
            tokens = tokens.tolist()
            one.append(PatchWords(layer, [name(token) for token in tokens], own.tolist(), places, tokens))
    return found

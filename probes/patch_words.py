"""The word each visual token of one picture stands for at a layer, and where on the picture it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    if not vlm.anatomy.image_in_sequence:
        raise UserError(
            f"patch_words: the pictures of {vlm.anatomy.family} enter by cross-attention, there are no visual tokens"
        )
    if not 0 <= picture < len(sample.images):
        raise UserError(f"picture {picture} of sample {sample.id!r} does not exist, it has {len(sample.images)}")
    several = not isinstance(layer, int)
    last = vlm.anatomy.n_layers
    layers = []
    for one in layer if several else [layer]:
        if not -last - 1 <= one <= last:
            raise UserError(
                f"layer {one} is outside this model's 0..{last} (0 is the decoder's input, {last} its last block's output)"
            )
        layers.append(one % (last + 1))
    inputs = vlm.prepare_samples([sample])
    sites = {one: "embed" if one == 0 else f"blocks.{one - 1}.resid_post" for one in layers}
    trace = vlm.trace(inputs, list(dict.fromkeys(sites.values())))
    here = inputs.spans.visual[0] & (inputs.spans.image_index[0] == picture)
    boxes = inputs.spans.boxes[0][here].tolist()
    tokenizer = vlm.tokenizer if vlm.writer is not None else None
    found = []
    for one in layers:
        states = trace[sites[one]][0]
        with torch.no_grad():
            p, ids = decode_states(states[here.to(states.device)], vlm.anatomy.unembedding, vlm.anatomy.norm).max(-1)
        words = [word_of(token, tokenizer) for token in ids.tolist()]
        found.append(PatchWords(one, words, p.tolist(), boxes, ids.tolist()))
    return found if several else found[0]

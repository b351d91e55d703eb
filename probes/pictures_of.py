"""The pictures of a batch as a probe pairs them with targets: whose states, which boxes, and a hash of each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .keys import sample_keys


class Paired(NamedTuple):
    """One picture of one sample. at: (T,) positions in its row; boxes: (T, 4), or (1, 4) where states are pooled, in pixels of
    the picture; key: its hash, below 2^48."""

    row: int
    picture: int
    at: Tensor
    boxes: Tensor
    key: int


def paired_pictures(inputs, *, positions: str, patch: bool) -> tuple[list[Paired], Tensor]:
    """The pictures with positions to read, in the order of the batch; and how many are not: samples without a picture,
    pictures without a known sample, pictures without a token to pair.

    positions: "image" (each picture's visual tokens; with `patch` those that have a place on it), text "after" the picture,
    "all" real positions, the "last" one.
    """
    spans, samples = inputs.spans, inputs.samples
    visual, index, boxes = spans.visual.cpu(), spans.image_index.cpu(), spans.boxes.cpu()
    if positions != "image":
        text = spans.mask("after", "answer", "generated") if positions == "after" else spans.real
        text = text.cpu()
    keys, left, found = sample_keys(inputs, torch.zeros(len(index))).tolist(), torch.zeros(3, dtype=torch.long), []
    for b in range(len(index)):
        if not samples:
            pictures = int(index[b].max()) + 1
            left[0 if not pictures else 1] += max(pictures, 1)
            continue
        left[0] += not samples[b].images
        for k, image in enumerate(samples[b].images):
            if positions == "image":
                chosen = visual[b] & (index[b] == k)
                at = torch.nonzero(chosen & boxes[b].isfinite().all(1) if patch else chosen).flatten()
            else:
                at = torch.nonzero(text[b]).flatten()
                at = at[-1:] if positions == "last" else at
            if not len(at):
                left[2] += 1
                continue
            where = boxes[b, at] if patch else torch.tensor([[0.0, 0.0, *image.size]])
            found.append(Paired(b, k, at, where, (keys[b] + k * 0x9E3779B97F4A) % (1 << 48)))
    return found, left

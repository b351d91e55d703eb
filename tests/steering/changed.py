"""What the tests of skipping, exit and pruning share: batches of the tiny families, and logits under changes."""

from __future__ import annotations

import torch
from chiasm.models import open_vlm
from chiasm.steering import steer

from ..models.families import batch

OPTIONS = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [120, 121, 122, 123]}
"""Random models would otherwise answer with placeholders of a picture."""


def opened(name: str, side: str = "left"):
    """(vlm, a batch of two rows of unequal length)."""
    model, tensors, _ = batch(name, side)
    vlm = open_vlm(model=model)
    return vlm, vlm.from_tensors(**tensors)


def logits(vlm, inputs, *changes):
    with torch.no_grad(), steer(vlm, *changes):
        return vlm.forward(inputs).logits

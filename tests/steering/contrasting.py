"""What the tests of contrast decoding share: batches of the tiny families, and a prompt read once."""

from __future__ import annotations

from chiasm.models import open_vlm
from chiasm.steering.prefill import reading

from ..models.families import IMAGE, batch

STEPS = {"max_new_tokens": 6, "min_new_tokens": 6, "suppress_tokens": [IMAGE]}
"""Random models would otherwise answer with the placeholder of a picture, which the contrast forbids."""


def opened(name: str, side: str = "left"):
    """(vlm, a batch of two rows of unequal length, the same rows alone)."""
    model, tensors, rows = batch(name, side)
    vlm = open_vlm(model=model)
    return vlm, vlm.from_tensors(**tensors), [vlm.from_tensors(**row) for row in rows]


def prefilled(vlm, inputs, negative):
    """The `Prefill` that a decoder with this negative would make."""
    made = []
    with reading(vlm, inputs, negative.sites(vlm)) as prompt:

        def grab(model, input_ids, *, logits_processor, stopping_criteria, generation_config, **given):
            made.append(prompt(model, input_ids, given))
            return input_ids

        vlm.generate_ids(inputs, custom_generate=grab, max_new_tokens=1)
    return made[0]

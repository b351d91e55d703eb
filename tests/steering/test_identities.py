"""What must change nothing: every way to decode at strength 0, every intervention at its own zero, token for token, in all families."""

import pytest
import torch
from chiasm.scenes.errors import UserError
from chiasm.steering import (
    M3ID,
    AddDirection,
    ContrastDecoder,
    NoImage,
    NormPreservingAdd,
    OutlierTokens,
    PruneVisual,
    Rotate,
    SinkRedistribution,
    SkipBlock,
    VisualAttentionBoost,
    VisualExit,
    steer,
)
from chiasm.steering.contrast_processor import ContrastProcessor
from chiasm.steering.schedules import guidance

from ..models.families import FAMILIES
from .contrasting import STEPS, opened

EVERY = pytest.mark.parametrize("name", FAMILIES)


@EVERY
def test_a_contrast_without_strength_is_greedy_with_a_mask_or_without_by_every_route(name):
    """A mask never takes the likeliest token."""
    vlm, inputs, _ = opened(name)
    plain = vlm.generate_ids(inputs, **STEPS)
    for negative, alpha, engine in (
        (OutlierTokens(k=4), 0.0, "two_rows"),
        (NoImage(), M3ID(0.0), "two_calls"),
        (NoImage(), guidance(1.0), "two_rows"),
    ):
        decoder = ContrastDecoder(vlm, negative, alpha=alpha, beta=0.1, engine=engine)
        assert torch.equal(decoder.generate_ids(inputs, **STEPS), plain), (negative, engine)
    processor = ContrastProcessor(vlm, OutlierTokens(k=4), inputs, alpha=0.0, beta=0.1)
    assert torch.equal(vlm.generate_ids(inputs, logits_processor=[processor], **STEPS), plain)


@EVERY
def test_every_intervention_has_a_setting_that_is_plain_generation_or_is_refused_with_a_reason(name):
    vlm, inputs, _ = opened(name)
    plain = vlm.generate_ids(inputs, **STEPS)
    v = torch.randn(vlm.anatomy.hidden_size, generator=torch.Generator().manual_seed(0))
    in_sequence, square = vlm.anatomy.image_in_sequence, vlm.anatomy.layout.grid != "none"
    for change, applies in (
        (AddDirection(v, 1, 0.0), True),
        (AddDirection(v, 1, 0.0, units="norm", norm=3.0), True),
        (NormPreservingAdd(v, 1, 0.0), True),
        (Rotate(v, 0.0, 1), True),
        (SkipBlock(layers=[], positions="text"), True),
        (PruneVisual(1.0), in_sequence and square),
        (VisualExit(-1), in_sequence),
        (VisualAttentionBoost(0.0, layers=-1), in_sequence),
        (SinkRedistribution(p=1.0, tau=3.0, layers=-1), in_sequence),
    ):
        if applies:
            with steer(vlm, change):
                assert torch.equal(vlm.generate_ids(inputs, **STEPS), plain), change
            continue
        with pytest.raises(UserError) as error, steer(vlm, change):
            raise AssertionError("was opened")
        assert "\n" not in str(error.value) and vlm.anatomy.family in str(error.value)

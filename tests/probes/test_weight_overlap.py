"""The weight overlap probe against sums made by hand, over batches, and on other models."""

import pandas as pd
import pytest
import torch
from chiasm.models import open_vlm
from chiasm.probes.measure import measure
from chiasm.probes.weight_overlap import WeightOverlap
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample

from ..models.families import batch
from .measuring import sample, tiny_vlm


def test_sums_are_those_of_the_inputs_and_hooks_are_gone():
    vlm, one = tiny_vlm(), sample(3)
    probe = WeightOverlap()
    measure(vlm, [one], [probe], progress=False)
    inputs = vlm.prepare_samples([one])
    site = "blocks.1.in.mlp.down_proj"
    x = vlm.trace(inputs, [site])[site][0].double().square()
    image, text = (probe.squares.sum(0)[g, probe._at[site]] for g in range(2))
    torch.testing.assert_close(image, x[inputs.spans.visual[0]].sum(0))
    torch.testing.assert_close(image + text, x.sum(0))
    assert not any(m._forward_pre_hooks for m in vlm.model.modules() if isinstance(m, torch.nn.Linear))


def test_batches_and_padding_change_nothing():
    vlm, some = tiny_vlm(), [sample(i) for i in range(12)]
    tables = [measure(vlm, some, [WeightOverlap()], batch_size=b, progress=False).tables["weight_overlap"] for b in (1, 5)]  # fmt: skip
    pd.testing.assert_frame_equal(*tables, atol=2e-3)
    assert tables[0]["mean"].between(0, 1).all() and (tables[0]["n"] == 12).all()


def test_without_text_or_pictures_is_one_line():
    with pytest.raises(UserError, match="no image tokens in 1 samples"):
        measure(tiny_vlm(), [Sample("a", "w1 w2")], [WeightOverlap()], progress=False)


@pytest.mark.parametrize("name", ["llava", "blip2", "qwen3_5", "mllama", "gemma3"])
def test_other_families_have_every_linear(name):
    model, joined, _ = batch(name, "left")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    probe = WeightOverlap()
    probe.attach(vlm.anatomy)
    probe.update(vlm.trace(inputs, probe.sites), inputs)
    assert all((probe.squares.sum(0)[1, at] > 0).any() for at in probe._at.values())

"""Causal tracing: the share by hand, what must be 0 and 1, batched as one by one, as in nnsight, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from chiasm.experiments.causal_trace import colour_pairs
from chiasm.models import open_vlm
from chiasm.scenes.errors import UserError
from chiasm.steering.causal_trace import causal_trace, first_token, restored


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


@pytest.fixture(scope="module")
def pairs():
    return colour_pairs(3)


def at(table, site, layer, span):
    rows = table[(table["site"] == site) & (table["span"] == span)]
    rows = rows[rows["layer"].isna()] if layer is None else rows[rows["layer"] == layer]
    (row,) = rows.to_dict("records")
    return row


def test_the_share_is_of_sums_with_the_jackknife_over_pairs():
    clean, corrupted = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([-1.0, 0.0, 1.0])
    patched = torch.tensor([[1.0, torch.nan], [0.5, 1.0], [1.25, 1.5]])
    found = restored(clean, corrupted, patched)
    assert found.mean == pytest.approx([(2 + 0.5 + 0.25) / (4 + 1 + 1), (1 + 0.5) / (1 + 1)])
    assert found.n.tolist() == [3, 2]
    left_out = np.array([0.75 / 2, 2.25 / 5, 2.5 / 5])
    half = 4.302653 * np.sqrt(2 / 3 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.high[0] - found.mean[0] == pytest.approx(half, rel=1e-5)
    assert np.isnan(restored(clean[:1], corrupted[:1], patched[:1, :1]).low[0])  # one pair has no interval


def test_what_must_be_all_and_what_must_be_nothing(organism, pairs):
    clean, corrupted = pairs
    table = causal_trace(
        organism, clean, corrupted, sites=("embed", "projector", "resid_post"), spans=("image", "after", "last_prompt"), layers=(0, -1)
    )  # fmt: skip
    last = organism.anatomy.n_layers - 1
    assert set(table["layer"].dropna()) == {0, last} and (table["n"] == 3).all()
    for place in [("embed", None, "image"), ("projector", None, "image"), ("resid_post", last, "last_prompt")]:
        assert at(table, *place)["mean"] == pytest.approx(1, abs=1e-4)
    for place in [("embed", None, "after"), ("resid_post", last, "image"), ("resid_post", 0, "last_prompt")]:
        assert at(table, *place)["mean"] == pytest.approx(0, abs=1e-4)
    row = at(table, "resid_post", 0, "image")
    assert row["mean"] == pytest.approx((row["patched"] - row["corrupted"]) / (row["clean"] - row["corrupted"]))
    assert row["metric"] == "logit_difference" and row["clean"] > 0 > row["corrupted"]


def test_rows_of_one_batch_are_as_one_by_one_and_pairs_swapped_mirror_each_other(organism, pairs):
    clean, corrupted = (samples[:2] for samples in pairs)
    options = {"spans": ("image", "last_prompt"), "sites": ("attn_out", "mlp_out"), "layers": (1, 2)}
    together = causal_trace(organism, clean, corrupted, **options)
    alone = causal_trace(organism, clean, corrupted, batch_size=1, **options)
    np.testing.assert_allclose(together["patched"], alone["patched"], atol=1e-4)
    swapped = causal_trace(organism, corrupted, clean, **options)
    np.testing.assert_allclose(swapped["clean"], -together["corrupted"], atol=1e-5)


def test_probability_of_the_answer_and_answers_that_are_given(organism, pairs):
    clean, corrupted = ([s] for s in (pairs[0][0], pairs[1][0]))
    said = [(clean[0].answer, corrupted[0].answer)]
    bare = [[replace(s[0], answer=None)] for s in (clean, corrupted)]
    table = causal_trace(organism, *bare, answers=said, metric="probability", spans=("image",), layers=[0])
    logits = organism.forward(organism.prepare([clean[0].images], [clean[0].prompt])).logits[0, -1]
    token = first_token(organism, clean[0], clean[0].answer)
    assert organism.tokenizer.decode([token]).strip() == clean[0].answer
    assert table["clean"][0] == pytest.approx(float(logits.softmax(-1)[token]), abs=1e-5)
    assert table["low"].isna().all() and table["n"].tolist() == [1]


def test_spans_can_be_functions_and_may_be_empty_in_some_pairs(organism, pairs):
    clean, corrupted = pairs

    def first_only(spans, sample):
        mask = spans.visual.clone()
        return mask if sample.id == clean[0].id else mask & False

    table = causal_trace(organism, clean, corrupted, spans={"some": first_only}, layers=[0])
    assert table["n"].tolist() == [1] and table["mean"][0] > 0.9
    with pytest.raises(UserError, match="'none' holds no position in any pair"):
        causal_trace(organism, clean, corrupted, spans={"none": lambda spans, _: spans.visual & False}, layers=[0])


def test_nnsight_gives_the_same_numbers(organism, pairs):
    """The same patch, written with `vlm.nnsight()`."""
    clean, corrupted = pairs[0][0], pairs[1][0]
    table = causal_trace(organism, [clean], [corrupted], spans=("image", "last_prompt"))
    own, other = (organism.prepare([s.images], [s.prompt]) for s in (clean, corrupted))
    tokens = [first_token(organism, s, s.answer) for s in (clean, corrupted)]
    masks = {
        "image": own.spans.visual[0],
        "last_prompt": torch.arange(own.spans.labels.shape[1]) == own.spans.labels.shape[1] - 1,
    }
    model = organism.nnsight()
    for layer in range(organism.anatomy.n_layers):
        for span, mask in masks.items():
            with torch.no_grad():
                with model.trace(**own.tensors):
                    states = model.model.language_model.layers[layer].output.save()
                with model.trace(**other.tensors):
                    model.model.language_model.layers[layer].output[:, mask] = states[:, mask]
                    logits = model.lm_head.output[0, -1].save()
            row = at(table, "resid_post", layer, span)
            assert row["patched"] == pytest.approx(float(logits[tokens[0]] - logits[tokens[1]]), abs=1e-4)


def test_bad_pairs_are_one_line(organism, pairs):
    clean, corrupted = ([s] for s in (pairs[0][0], pairs[1][0]))

    def changed(**fields):
        return [replace(corrupted[0], **fields)]

    for other, options, words in [
        ([], {}, "1 clean and 0 corrupted samples"),
        (changed(prompt="<image> what ?"), {}, "positions: give prompts of equal length"),
        (changed(prompt=" ".join([*clean[0].prompt.replace("<image>", "").split()[:1], "<image>", *clean[0].prompt.replace("<image>", "").split()[1:]])), {}, "at other positions"),
        (changed(answer=clean[0].answer), {}, "begin with the same token"),
        (changed(answer=None), {}, "has no answer"),
        (corrupted, {"metric": "rank"}, "metric='rank' must be one of"),
        (corrupted, {"sites": ("attn_mass",)}, "site 'attn_mass' must be one of"),
        (corrupted, {"spans": ("picture",)}, "positions='picture'"),
        (corrupted, {"layers": [12]}, "layer 12 is outside"),
        (corrupted, {"answers": []}, "0 pairs of answers for 1"),
        (corrupted, {"answers": [(corrupted[0].answer, clean[0].answer)]}, "do not favour their answers"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=words):
            causal_trace(organism, clean, other, **options)

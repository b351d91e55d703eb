"""The vocabulary view on models: against the pure functions, over batches, padding, families, and bad input."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.models import open_vlm
from chiasm.probes.measure import measure
from chiasm.probes.vocabulary import decode_states, entropy, kl_divergence
from chiasm.probes.vocabulary_view import VocabularyView
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample

from ..models.families import FAMILIES, batch
from .fakes import one, state_size
from .measuring import WORDS, sample, tiny_vlm


def answered(i: int) -> Sample:
    own = sample(i)
    return Sample(own.id, own.prompt, own.images, " ".join(WORDS[(i * k + 3) % 9] for k in range(1, 4)))


def table(samples, vlm=None, batch_size=4, **options):
    vlm = vlm or tiny_vlm()
    return measure(vlm, samples, [VocabularyView(**options)], batch_size=batch_size, progress=False).tables[
        "vocabulary_view"
    ]


def test_one_sample_is_what_its_states_decode_to():
    vlm, own = tiny_vlm(), answered(3)
    found = table([own], vlm, tokens=None)
    inputs = vlm.prepare_samples([own])
    trace = vlm.trace(inputs, ["embed", "blocks.*.resid_post", "logits"])
    visual, text = inputs.spans.visual[0], inputs.spans.mask("after", "answer")[0]
    states = [trace["embed"], *trace.select("blocks.*.resid_post")]
    final = trace["logits"][0].softmax(-1)
    with torch.no_grad():
        for layer, x in enumerate(states):
            p = decode_states(x[0], vlm.anatomy.unembedding, vlm.anatomy.norm)
            for pair, at in (("P", visual), ("T", text)):
                row = one(found, quantity="entropy", pair=pair, layer=layer)
                assert row["mean"] == pytest.approx(entropy(p[at]).mean().item(), rel=1e-4)
                assert row["limit"] == pytest.approx(math.log(vlm.anatomy.vocab_size)) and row["n"] == 1
                told = one(found, quantity="to_final", pair=pair, layer=layer)["mean"]
                assert told == pytest.approx(kl_divergence(p[at], final[at]).mean().item(), rel=1e-3, abs=1e-6)
            across = one(found, quantity="kl", pair="P-T", layer=layer)["mean"]
            assert across == pytest.approx(kl_divergence(p[visual].mean(0), p[text].mean(0)).item(), rel=1e-4)
    last = len(states) - 1
    assert one(found, quantity="to_final", pair="P", layer=last)["mean"] == 0
    assert one(found, quantity="agreement", pair="T", layer=last)["mean"] == 1


def test_matched_pairing_takes_every_layer_of_both_and_means_divergences():
    vlm, own = tiny_vlm(), answered(3)
    found = table([own], vlm, pairing="matched")
    inputs = vlm.prepare_samples([own])
    trace = vlm.trace(inputs, ["embed", "blocks.*.resid_post"])
    with torch.no_grad():
        for layer, x in enumerate(trace):
            p = decode_states(trace[x][0], vlm.anatomy.unembedding, vlm.anatomy.norm)
            visual, text = p[inputs.spans.visual[0]], p[inputs.spans.mask("after", "answer")[0]]
            n = min(len(visual), len(text))
            row = one(found, quantity="kl", pair="P-T", layer=layer)
            assert row["variant"] == "matched"
            assert row["mean"] == pytest.approx(kl_divergence(visual[:n], text[:n]).mean().item(), rel=1e-4)
    assert found[found["quantity"] == "kl"]["pair"].unique().tolist() == ["P-T"]


def test_batches_order_and_padding_change_nothing():
    samples = [answered(i) for i in range(14)]
    tables = [table(samples, batch_size=1), table(samples[::-1], batch_size=5)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)
    assert one(tables[0], quantity="hits", variant="own", layer=0)["n"] == 14


def test_hits_and_words_are_of_the_samples_top_words():
    vlm, samples = tiny_vlm(), [answered(i) for i in range(6)]
    found = table(samples, vlm, tokenizer=vlm.tokenizer)
    assert (found["quantity"] == "hits").any()
    words = found[(found["quantity"] == "word") & (found["pair"] == "P") & (found["layer"] == 0)]
    assert words["mean"].is_monotonic_decreasing and words["rank"].tolist() == list(range(1, len(words) + 1))
    inputs = vlm.prepare_samples(samples)
    with torch.no_grad():
        p = decode_states(vlm.trace(inputs, ["embed"])["embed"], vlm.anatomy.unembedding, vlm.anatomy.norm)
    shares = [(p[b][inputs.spans.visual[b]].argmax(-1) == words["token"].iloc[0]).float().mean() for b in range(6)]
    assert words["mean"].iloc[0] == pytest.approx(np.mean(shares))
    assert words["word"].iloc[0] == vlm.tokenizer.decode([words["token"].iloc[0]]).strip()
    assert table(samples, vlm)["word"].dropna().str.fullmatch(r"#\d+").all()


def test_samples_without_a_picture_or_text_are_counted_and_state_does_not_grow():
    vlm = tiny_vlm()
    probe = VocabularyView()
    measure(vlm, [answered(0), Sample("t", "w1 w2 w3"), answered(1)], [probe], progress=False)
    small = state_size(probe)
    found = probe.compute()
    assert one(found, quantity="skipped", reason="no visual token")["n"] == 1
    assert one(found, quantity="entropy", pair="P", layer=0)["n"] == 2
    measure(vlm, [answered(i) for i in range(20)], [probe], progress=False)
    assert state_size(probe) == small


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"mllama"}))
def test_every_family_and_padding(name):
    tables = []
    for side in ("left", "right"):
        model, joined, _ = batch(name, side)
        vlm = open_vlm(model=model)
        inputs = vlm.from_tensors(**joined)
        probe = VocabularyView()
        probe.attach(vlm.anatomy)
        with torch.no_grad():
            probe.update(vlm.trace(inputs, probe.sites), inputs)
            logits = vlm.forward(inputs, use_cache=False).logits
        found = probe.compute()
        wanted = np.mean([entropy(logits[b].softmax(-1))[inputs.spans.visual[b]].mean().item() for b in range(2)])
        last = one(found, quantity="entropy", pair="P", layer=vlm.anatomy.n_layers)
        assert last["mean"] == pytest.approx(wanted, rel=1e-3) and last["n"] == 2
        tables.append(found[found["quantity"].isin(["entropy", "kl", "to_final"])]["mean"].to_numpy())
    np.testing.assert_allclose(*tables, rtol=2e-2, atol=1e-3)  # positions of the two sides differ in some families


def test_half_precision_is_finite():
    vlm = tiny_vlm()
    vlm.model.to(torch.bfloat16)
    found = table([answered(i) for i in range(3)], vlm)
    assert found[found["quantity"] == "entropy"]["mean"].notna().all()


def test_bad_input_is_one_line():
    model, _, _ = batch("mllama", "left")
    with pytest.raises(UserError, match="no position holds a visual token"):
        VocabularyView().attach(open_vlm(model=model).anatomy)
    for wrong, told in (
        ({"tokens": 1}, "tokens 1"),
        ({"pairing": "best"}, "'best' is not one of"),
        ({"top": 0}, "top 0"),
    ):
        with pytest.raises(UserError, match=told):
            VocabularyView(**wrong)

"""One pass: the numbers, what is read when, what is skipped, what is refused."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import weakref

import pandas as pd
import pytest
import torch
from chiasm.probes.loader import Data, Loader
from chiasm.probes.measure import measure
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import BadSample
from PIL import Image

from . import measuring
from .measuring import POSITIONS, WORDS, Contrast, Norms, Stream, sample, tiny_vlm


@pytest.fixture(scope="module")
def shared_vlm():
    return tiny_vlm()


@pytest.fixture
def vlm(shared_vlm):
    """The tiny model with its weights put back after a test has damaged them."""
    kept = {name: value.clone() for name, value in shared_vlm.model.state_dict().items()}
    yield shared_vlm
    shared_vlm.model.load_state_dict(kept)


@pytest.fixture
def forwards(vlm):
    """Number of rows of each forward pass of the language model."""
    rows = []
    hook = vlm.anatomy.blocks[0].register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    yield rows
    hook.remove()


def one_by_one(vlm, samples) -> pd.DataFrame:
    """What `Norms` says, from each sample alone: nothing padded, nothing batched, nothing accumulated."""
    norms = []
    for s in samples:
        trace = vlm.trace(vlm.prepare([list(s.images)], [s.prompt]), ["blocks.*.resid_post"])
        norms.append(torch.stack([x[0].double().norm(dim=-1) for x in trace.select("blocks.*.resid_post")]))
    lengths = torch.tensor([n.shape[1] for n in norms], dtype=torch.float64)
    joined = torch.cat(norms, 1)
    table = pd.DataFrame({"layer": range(3), "mean": joined.mean(1), "max": joined.amax(1)})
    return table.assign(n=joined.shape[1], spread=lengths.var(correction=0).item(), rows=len(norms))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_tables_are_those_of_every_sample_alone(vlm, batch_size):
    result = measure(vlm, Stream(10), [Norms()], batch_size=batch_size)
    expected = one_by_one(vlm, [sample(i) for i in range(10)])
    pd.testing.assert_frame_equal(result.tables["norms"], expected, rtol=1e-6)
    assert result.n == 10
    assert result.skipped.empty and list(result.skipped.columns) == ["id", "reason"]
    assert result.seconds > 0


def test_all_probes_share_one_pass_and_text_only_adds_one(vlm, forwards):
    class More(Norms):
        name, sites = "more", ("embed", "blocks.*.resid_post")

    measure(vlm, Stream(7), [Norms(), More()], batch_size=3)
    assert forwards == [3, 3, 1]
    forwards.clear()
    measure(vlm, Stream(7), [Norms(), Contrast()], batch_size=3)
    assert forwards == [3, 3, 3, 3, 1, 1]


def test_text_only_is_the_same_text_without_pictures(vlm):
    seen = []

    class Look(Contrast):
        def update(self, trace, inputs):
            seen.append((trace, inputs))

        def compute(self):
            return pd.DataFrame()

    measure(vlm, [sample(0), sample(3)], [Look()], batch_size=2)
    ((trace, inputs),) = seen
    text = trace.text_only.inputs
    assert "pixel_values" not in text.tensors and "pixel_values" in inputs.tensors
    assert (text.spans.real.sum(1) == inputs.spans.real.sum(1) - 16).all()
    assert set(trace.text_only) >= {"blocks.2.resid_post", "blocks.0.attn_mass"}


def test_data_are_read_one_batch_at_a_time_and_may_be_endless(vlm):
    read, when = [], []

    def endless():
        i = 0
        while True:
            read.append(i)
            yield sample(i)
            i += 1

    class Watch(Norms):
        def update(self, trace, inputs):
            super().update(trace, inputs)
            when.append(len(read))

    result = measure(vlm, endless(), [Watch()], batch_size=4, limit=10)
    assert when == [4, 8, 10]
    assert result.n == 10 == len(read)


def test_nothing_of_a_batch_outlives_it(vlm):
    alive = []

    class Watch(Norms):
        def update(self, trace, inputs):
            gc.collect()
            assert [ref for ref in alive if ref() is not None] == []
            super().update(trace, inputs)
            alive.extend(weakref.ref(tensor) for tensor in trace.tensors.values())
            alive.extend(weakref.ref(tensor) for tensor in inputs.tensors.values())

    measure(vlm, Stream(12), [Watch()], batch_size=3)
    assert len(alive) > 20


def test_a_probe_measured_twice_starts_from_nothing(vlm):
    probe = Norms()
    first = measure(vlm, Stream(5), [probe]).tables["norms"]
    pd.testing.assert_frame_equal(measure(vlm, Stream(5), [probe]).tables["norms"], first)


# -- bad samples -------------------------------------------------------------------------------------------------------


def spoiled() -> list:
    """Ten items of which five cannot be measured, each for another reason."""
    items = [sample(i) for i in range(10)]
    items[1] = BadSample("s1", "line 2 is not JSON")
    items[3] = dataclasses.replace(items[3], prompt=" ".join(WORDS[:60]))
    items[4] = dataclasses.replace(items[4], prompt="w1 <image> w2 <image>")
    items[6] = dataclasses.replace(items[6], prompt="<image> w3", images=(items[6].images[0],) * 2)
    items[9] = dataclasses.replace(items[9], images=(Image.new("RGB", (2, 2)),) * 4)
    return items


@pytest.mark.parametrize("batch_size", [2, 5, 10])
def test_bad_samples_are_skipped_counted_and_listed(vlm, batch_size):
    items = spoiled()
    result = measure(vlm, items, [Norms()], batch_size=batch_size)
    assert result.n == 5
    assert list(result.skipped.id) == ["s1", "s3", "s4", "s6", "s9"]
    reasons = dict(zip(result.skipped.id, result.skipped.reason, strict=True))
    assert reasons["s1"] == "line 2 is not JSON"
    assert str(POSITIONS) in reasons["s3"] and "positions" in reasons["s3"]
    assert "1 pictures for 2 <image>" in reasons["s4"]
    assert "2 pictures for 1 <image>" in reasons["s6"]
    assert str(POSITIONS) in reasons["s9"]
    assert all("\n" not in reason for reason in reasons.values())
    good = [items[i] for i in (0, 2, 5, 7, 8)]
    pd.testing.assert_frame_equal(result.tables["norms"], one_by_one(vlm, good), rtol=1e-6)


def test_a_plain_error_of_a_processor_is_a_bad_sample_too(vlm, monkeypatch):
    prepare = vlm.prepare

    def picky(images, prompts, answers=None):
        if any(p.startswith(WORDS[14]) for p in prompts):
            raise ValueError("absolute aspect ratio must be\nsmaller than 200")
        return prepare(images, prompts, answers)

    monkeypatch.setattr(vlm, "prepare", picky)
    result = measure(vlm, Stream(6), [Norms()], batch_size=3)
    assert result.skipped.to_dict("records") == [
        {"id": "s2", "reason": "absolute aspect ratio must be smaller than 200"}
    ]


def test_samples_that_do_not_go_together_are_measured_apart(vlm, monkeypatch, forwards):
    prepare = vlm.prepare

    def alone(images, prompts, answers=None):
        if len(prompts) > 1:
            raise UserError("one at a time")
        return prepare(images, prompts, answers)

    monkeypatch.setattr(vlm, "prepare", alone)
    result = measure(vlm, Stream(5), [Norms()], batch_size=5)
    assert forwards == [1] * 5
    assert result.n == 5 and result.skipped.empty


@pytest.mark.parametrize(("k", "words"), [(1, ["'s1'", "number 2", "line 2 is not JSON"]), (3, ["'s3'", "positions"])])
def test_strict_stops_at_the_first_bad_sample(vlm, k, words):
    items = spoiled()
    items = items[:k] + items[k : k + 1] if k == 1 else [items[0], items[2], items[3]]
    with pytest.raises(UserError) as caught:
        measure(vlm, items, [Norms()], strict=True)
    assert all(word in str(caught.value) for word in words)


def test_answers_are_read_in_the_same_pass(vlm):
    answered = dataclasses.replace(sample(0), answer="w5 w6")
    seen = []

    class Look(Norms):
        def update(self, trace, inputs):
            super().update(trace, inputs)
            seen.append(inputs.spans.mask("answer").sum(1).tolist())

    measure(vlm, [answered, sample(1)], [Look()])
    assert seen == [[2, 0]]


def test_probes_are_told_which_samples_the_rows_are(vlm):
    seen = []

    class Look(Contrast):
        def update(self, trace, inputs):
            super().update(trace, inputs)
            seen.append([[s.id for s in i.samples] for i in (inputs, trace.inputs, trace.text_only.inputs)])

    measure(vlm, [sample(5), BadSample("x", "?"), sample(7), sample(8)], [Look()], batch_size=3)
    assert seen == [[["s5", "s7"]] * 3, [["s8"]] * 3]


# -- what is refused ---------------------------------------------------------------------------------------------------


def refusal(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        measure(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("samples", [[], (), iter([]), (x for x in ())])
def test_empty_data(vlm, samples):
    assert "empty" in refusal(vlm, samples, [Norms()])


def test_data_of_which_nothing_can_be_measured(vlm):
    message = refusal(vlm, [BadSample("a", "no such picture"), BadSample("b", "?")], [Norms()])
    assert "none of the 2" in message and "'a'" in message and "no such picture" in message


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": 2.5}, {"limit": 0}, {"limit": -3}, {"checkpoint_every": 0}]
)
def test_numbers_out_of_range(vlm, options):
    ((name, value),) = options.items()
    message = refusal(vlm, Stream(3), [Norms()], **options)
    assert name in message and str(value) in message


def test_things_that_are_no_probes(vlm):
    assert "at least one" in refusal(vlm, Stream(3), [])
    assert "Norms()" in refusal(vlm, Stream(3), [Norms])
    assert "two probes are called 'norms'" in refusal(vlm, Stream(3), [Norms(), Norms()])
    assert "object is not a probe" in refusal(vlm, Stream(3), [object()])


def test_things_that_are_no_data(vlm):
    assert "put it in a list" in refusal(vlm, sample(0), [Norms()])
    assert "item 1 of the data is a str" in refusal(vlm, [sample(0), "s1"], [Norms()])


@pytest.mark.parametrize(
    ("damage", "site"),
    [
        (lambda a: a.blocks[1].mlp.down_proj.weight, "'blocks.1.resid_post'"),
        (lambda a: a.vision_blocks[0].mlp.fc1.weight, "'vision.blocks.0.resid_post'"),
        (lambda a: next(a.projector.parameters()), "'projector'"),
        (lambda a: a.norm.weight, "'final'"),
        (lambda a: a.unembedding.weight, "'logits'"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_the_first_site(vlm, damage, site, value):
    with torch.no_grad():
        damage(vlm.anatomy).view(-1)[0] = value
    message = refusal(vlm, Stream(4), [Norms(), Contrast()])
    assert site in message and "not finite" in message


def test_values_that_are_not_finite_later_are_found_too(vlm):
    """One word's embedding is damaged, and only the ninth sample uses it."""
    rows = vlm.model.get_input_embeddings().weight
    with torch.no_grad():
        rows[vlm.tokenizer.convert_tokens_to_ids("w58")] = float("nan")
    assert "'embed'" in refusal(vlm, Stream(12), [Norms()], batch_size=2)


def test_a_full_device_is_one_line(vlm, monkeypatch):
    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    monkeypatch.setattr(vlm.model, "forward", full)
    assert "batch_size=4" in refusal(vlm, Stream(9), [Norms()], batch_size=8)


# -- randomness, reading ahead, memory ---------------------------------------------------------------------------------


def test_random_draws_depend_on_seed_and_batch_only(vlm):
    def draw(**options) -> float:
        table = measure(vlm, Stream(12), [Contrast()], batch_size=2, **options).tables["contrast"]
        return table.set_index("quantity").loc["draw", "mean"]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = draw()
    assert torch.equal(torch.get_rng_state(), before)  # the caller's generator is left alone
    torch.manual_seed(6)
    assert draw(checkpoint_every=1) == first != draw(seed=1)


def test_reading_ahead_changes_nothing(vlm):
    def loaded(ahead, processes=1, index=0):
        loader = Loader(vlm, Data(spoiled()), 3, ahead=ahead, processes=processes, index=index)
        return [(b.items, b.n, b.skipped, [i.tensors["input_ids"].tolist() for i in b.inputs]) for b in loader]

    assert loaded(2) == loaded(0)
    assert [b[0] for b in loaded(0)] == [3, 3, 3, 1]
    assert loaded(0, 2, 0) + loaded(0, 2, 1) == [loaded(0)[k] for k in (0, 2, 1, 3)]


def test_reading_ahead_passes_errors_on(vlm):
    def broken():
        yield sample(0)
        raise OSError("the share is gone")

    with pytest.raises(OSError, match="the share is gone"):
        list(Loader(vlm, Data(broken()), 1, ahead=2))


def test_peak_memory_does_not_grow_with_the_samples():
    script = [sys.executable, measuring.__file__, "--memory", "200", "2000"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=200, check=True)
    few, many = (float(line) for line in done.stdout.splitlines()[1:])
    assert many <= 1.03 * few


def test_progress_lines_where_there_is_no_terminal(vlm, caplog, monkeypatch):
    monkeypatch.setattr("chiasm.probes.progress.LOG_EVERY", 0.0)
    with caplog.at_level("INFO", logger="chiasm"):
        measure(vlm, [BadSample("x", "?"), *Stream(5)], [Norms()], batch_size=2)
    lines = [record.message for record in caplog.records]
    assert lines[0].startswith("measured 2 of 6, ") and "left" in lines[0] and lines[0].endswith("1 skipped")
    caplog.clear()
    with caplog.at_level("INFO", logger="chiasm"):
        measure(vlm, Stream(4), [Norms()], progress=False)
    assert caplog.records == []

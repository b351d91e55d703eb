"""Decodings by name: their names and settings, what they must beat, and that nothing asked for changes nothing."""

import math
from dataclasses import replace

import pytest
import torch
from chiasm.experiments.benchmarks import Benchmark, open_benchmark
from chiasm.experiments.changing import change_of
from chiasm.experiments.decoding import (
    DECODINGS,
    Contrasted,
    MaskedSampling,
    controls,
    method_of,
    open_decoding,
    with_controls,
)
from chiasm.experiments.evaluation import evaluate
from chiasm.experiments.methods import Greedy, row_seed
from chiasm.experiments.yes_bias import HeldOutYesBias, YesBias, best_bias, held_out_biases, tuned_yes_bias
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import pope_questions
from chiasm.scenes.errors import UserError
from chiasm.scenes.world import make_scene, split_seeds
from chiasm.steering import Direction


@pytest.fixture(scope="module")
def vlm():
    return open_vlm("organism")


@pytest.fixture(scope="module")
def questions():
    return pope_questions([make_scene(seed) for seed in split_seeds("train", 6)], "adversarial")


def asked(vlm, questions):
    return vlm.prepare([q.images for q in questions], [q.prompt for q in questions])


@pytest.mark.parametrize(
    "name", [*DECODINGS, "damro-a2-k10", "vcd-a1.5-b0.2", "no-image-b0", "random-tokens-a0.5", "damro-a1-sampled"]
)
def test_a_decodings_name_is_read_back_to_itself(name):
    made = open_decoding(name)
    assert made.name == name
    assert open_decoding(made.name) == made


def test_settings_in_a_name_are_those_of_the_contrast():
    made = open_decoding("damro-a2-b0.2-k10")
    assert (made.alpha, made.beta, made.k) == (2.0, 0.2, 10)
    assert open_decoding("no-image-b0").beta is None
    assert open_decoding("greedy") is None
    assert method_of("sampling-b0.2") == MaskedSampling(0.2)
    assert method_of("greedy") == Greedy()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("damro-x", "settings of damro are -aALPHA"),
        ("damro-a1.2.3", "alpha and beta are numbers"),
        ("vcd-k3", "k is for damro and random-tokens"),
        ("damro-b2", r"beta=2.0 must be in \(0, 1\]"),
        ("nonsense", "method 'nonsense' is not known: use greedy, .*, damro, vcd, "),
    ],
)
def test_a_bad_name_is_one_line(name, words):
    with pytest.raises(UserError, match=words):
        method_of(name)


@pytest.mark.parametrize("name", [name for name in DECODINGS if name != "pai"])  # which boosts attention, too
def test_without_strength_and_mask_every_decoding_is_greedy(vlm, questions, name):
    inputs = asked(vlm, questions[:6])
    plain = vlm.generate(inputs, max_new_tokens=6)
    quiet = Contrasted(name, alpha=0.0, beta=None)
    assert quiet.answer(vlm, inputs, max_new_tokens=6) == plain


def test_the_controls_of_the_page_stand_beside_a_contrast(vlm):
    names = [method.name for method in controls(Contrasted("damro", alpha=1.0), yes_bias=YesBias(0.5))]
    assert names == ["sampling-b0.1", "sampling-t0.5", "yes+0.5", "no-image-a1", "random-tokens-a1"]

    drawn = [method.name for method in controls(Contrasted("damro", alpha=1.0, sampled=True))]
    assert drawn == ["sampling", "sampling-b0.1", "sampling-t0.5", "no-image-a1-sampled", "random-tokens-a1-sampled"]
    captions, files = (
        Benchmark(name, kind, [], 16, dict) for name, kind in (("chair-scenes", "chair"), ("mine", "pope"))
    )
    asked = [Contrasted("damro")]
    assert [m.name for m in with_controls(asked, vlm, captions)] == [
        "greedy", "damro", "sampling-b0.1", "sampling-t0.5", "no-image-a1", "random-tokens-a1",
    ]  # fmt: skip
    assert "yes-held-out" in [m.name for m in with_controls(asked, vlm, files)]
    assert with_controls([Greedy()], vlm, captions) == [Greedy()]


def test_a_contrast_whose_tokens_are_drawn(vlm, questions):
    """Each row from its own seed, whatever the batch."""
    inputs, seeds = asked(vlm, questions[:4]), [row_seed(0, q.id) for q in questions[:4]]
    method = Contrasted("no-image", alpha=0.3, beta=None, sampled=True)
    answers = method.answer(vlm, inputs, max_new_tokens=8, seeds=seeds)
    assert answers == method.answer(vlm, inputs, max_new_tokens=8, seeds=seeds)
    alone = [
        method.answer(vlm, asked(vlm, [q]), max_new_tokens=8, seeds=[seed])[0]
        for q, seed in zip(questions, seeds, strict=False)
    ]
    assert answers == alone


def test_masked_sampling_draws_only_plausible_tokens(vlm, questions):
    inputs = asked(vlm, questions[:4])
    narrow = MaskedSampling(1.0)  # nothing but the likeliest is left
    assert narrow.answer(vlm, inputs, max_new_tokens=4, seeds=range(4)) == vlm.generate(inputs, max_new_tokens=4)


def test_a_bias_moves_the_answer_and_only_the_first_token(vlm, questions):
    inputs = asked(vlm, questions[:8])
    assert YesBias(0.0).answer(vlm, inputs, max_new_tokens=4) == vlm.generate(inputs, max_new_tokens=4)
    assert all(answer.startswith("yes") for answer in YesBias(1e4).answer(vlm, inputs, max_new_tokens=4))
    assert not any("yes" in answer for answer in YesBias(-1e4).answer(vlm, inputs, max_new_tokens=4))


def test_the_tuned_bias_is_at_least_as_right_as_none(vlm, questions):
    bias = tuned_yes_bias(vlm, questions)
    inputs = asked(vlm, questions)
    labels = [q.truth["label"] for q in questions]

    def right(method):
        answers = method.answer(vlm, inputs, max_new_tokens=2, seeds=())
        return sum(a.startswith(label) for a, label in zip(answers, labels, strict=True))

    assert math.isfinite(bias)
    assert right(YesBias(bias)) >= right(YesBias(0.0))


def test_a_change_is_put_together_from_options(vlm, questions, tmp_path):
    assert change_of() is None
    width = vlm.anatomy.hidden_size
    file = Direction(torch.randn(width), 1, {"state_norm": 2.0}).save(tmp_path / "mine")
    change = change_of(decode="damro", alpha=0.0, beta=0, steer=[file], scale=0.0, boost=0.0)
    assert change.name == "damro-a0-b0, mine × 0, attention to the picture + 0"
    inputs = asked(vlm, questions[:3])
    assert change.generate(vlm, inputs, max_new_tokens=4) == vlm.generate(inputs, max_new_tokens=4)
    named = change_of(decode="damro-a2-k3", beta=0.2).contrast
    assert (named.alpha, named.beta, named.k) == (2.0, 0.2, 3)
    assert change_of(decode="damro-a2", alpha=0.5).contrast.alpha == 0.5
    kept = change_of(prune=1.0, exit_after=-1)
    assert kept.generate(vlm, inputs, max_new_tokens=4) == vlm.generate(inputs, max_new_tokens=4)
    with pytest.raises(UserError, match="add --decode"):
        change_of(alpha=1.0)
    with pytest.raises(UserError, match="decoding 'beam' is not known"):
        change_of(decode="beam")


@pytest.mark.parametrize("name", ["damro", "pai", "no-image-sampled"])
def test_questions_without_a_picture_are_answered_as_they_are_among_others(vlm, questions, name):
    """HallusionBench has some; a batch of them alone has nothing to contrast."""
    method, options = method_of(name), {"max_new_tokens": 4, "seeds": [1]}
    text = method.answer(vlm, vlm.prepare([None], ["is there a cat ?"]), **options)
    mixed = vlm.prepare([None, questions[0].images], ["is there a cat ?", questions[0].prompt])
    if method.sampled:
        assert len(text) == 1 and text == method.answer(vlm, vlm.prepare([None], ["is there a cat ?"]), **options)
    else:
        assert text == method.answer(vlm, mixed, max_new_tokens=4)[:1] == vlm.generate(mixed, max_new_tokens=4)[:1]


def test_the_best_bias_by_hand():
    odds, yes = torch.tensor([-3.0, -1.0, -0.5, 2.0]).double(), torch.tensor([False, True, True, True])
    assert best_bias(odds, yes) == 2.0  # between -3 and -1
    assert best_bias(odds, odds > 0) == 0.0
    assert best_bias(odds[:0], yes[:0]) == 0.0


def test_a_bias_tuned_on_the_other_half_of_the_pictures(vlm):
    benchmark = open_benchmark("pope-scenes", limit=24)
    biases = held_out_biases(vlm, benchmark)
    images = list(dict.fromkeys(benchmark.facts(q)["image"] for q in benchmark.samples))
    assert set(biases) == {q.id for q in benchmark.samples} and len(images) >= 4
    for k in (0, 1):
        rest = [q for q in benchmark.samples if benchmark.facts(q)["image"] in images[1 - k :: 2]]
        own = {biases[q.id] for q in benchmark.samples if benchmark.facts(q)["image"] in images[k::2]}
        assert len(own) == 1 and own.pop() == pytest.approx(tuned_yes_bias(vlm, rest), abs=1e-3)
    control = HeldOutYesBias(benchmark)
    control.check(vlm)
    assert evaluate(vlm, benchmark, [control]).n == len(biases)
    control.biases = {benchmark.samples[0].id: 1e4, benchmark.samples[1].id: -1e4}  # others are as they are
    inputs = vlm.prepare([s.images for s in benchmark.samples[:3]], [s.prompt for s in benchmark.samples[:3]])
    inputs = replace(inputs, samples=tuple(benchmark.samples[:3]))
    said = control.answer(vlm, inputs, max_new_tokens=2)
    assert said[0].startswith("yes") and "yes" not in said[1] and said[2] == vlm.generate(inputs, max_new_tokens=2)[2]

"""The ways to answer that change nothing inside the model: drawing by rows, and the first token's probabilities."""

import pytest
import torch
from chiasm.experiments.methods import (
    FirstStep,
    FirstToken,
    Greedy,
    GumbelNoise,
    Method,
    Sampling,
    likelier,
    open_method,
    row_seed,
)
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import caption_set, pope_questions
from chiasm.scenes.errors import UserError
from chiasm.scenes.world import make_scene, split_seeds
from scipy.stats import chisquare
from transformers import LogitsProcessorList

from ..models.families import FAMILIES
from ..steering.contrasting import opened


@pytest.fixture(scope="module")
def vlm():
    return open_vlm("organism")


def inputs_of(vlm, samples):
    return vlm.prepare([s.images for s in samples], [s.prompt for s in samples])


def test_gumbel_noise_draws_from_the_softmax():
    logits = torch.tensor([2.0, 0.5, 0.0, -1.0, float("-inf")])
    for temperature in (1.0, 0.5):
        n = 4000
        draw = GumbelNoise(range(n), temperature)
        counts = draw(None, logits.expand(n, -1)).argmax(-1).bincount(minlength=5).numpy()
        expected = torch.softmax(logits.double() / temperature, -1).numpy() * n
        assert counts[4] == 0  # what is forbidden stays so
        assert chisquare(counts[:4], expected[:4]).pvalue > 1e-3


def test_the_draws_of_a_row_are_its_own():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    together = GumbelNoise([5, 6, 7])
    first, second = together(None, logits), together(None, logits)
    assert not torch.equal(first, second)
    alone = GumbelNoise([6])
    assert torch.equal(alone(None, logits[1:2])[0], first[1]) and torch.equal(alone(None, logits[1:2])[0], second[1])
    with pytest.raises(ValueError, match="3 rows for 2 seeds"):
        GumbelNoise([1, 2])(None, logits)


def test_sampled_answers_depend_on_neither_the_batch_nor_its_order(vlm):
    samples = caption_set(6)
    seeds = [row_seed(0, sample.id) for sample in samples]
    method = Sampling(1.0)
    together = method.answer(vlm, inputs_of(vlm, samples), max_new_tokens=24, seeds=seeds)
    back = method.answer(vlm, inputs_of(vlm, samples[::-1]), max_new_tokens=24, seeds=seeds[::-1])
    alone = [
        method.answer(vlm, inputs_of(vlm, [sample]), max_new_tokens=24, seeds=[seed])[0]
        for sample, seed in zip(samples, seeds, strict=True)
    ]
    assert together == back[::-1] == alone
    others = method.answer(vlm, inputs_of(vlm, samples), max_new_tokens=24, seeds=[row_seed(1, s.id) for s in samples])
    assert sum(a != b for a, b in zip(together, others, strict=True)) >= 3
    cold = Sampling(1e-4).answer(vlm, inputs_of(vlm, samples), max_new_tokens=24, seeds=seeds)
    assert cold == Greedy().answer(vlm, inputs_of(vlm, samples), max_new_tokens=24, seeds=seeds)


def test_first_token_agrees_with_what_is_generated(vlm):
    scenes = [make_scene(seed) for seed in split_seeds("test", 8)]
    samples = pope_questions(scenes, "random")
    inputs = inputs_of(vlm, samples)
    pairs = FirstToken().probabilities(vlm, inputs)
    assert pairs.shape == (len(samples), 2) and (pairs >= 0).all() and (pairs.sum(1) <= 1 + 1e-6).all()
    logits = vlm.forward(inputs).logits[:, -1].softmax(-1)
    (yes,) = vlm.tokenizer("yes", add_special_tokens=False)["input_ids"]
    assert torch.allclose(pairs[:, 0], logits[:, yes].float(), atol=1e-5)
    said = FirstToken().answer(vlm, inputs)
    greedy = [answer.split()[0] for answer in vlm.generate(inputs, max_new_tokens=4)]
    assert said == greedy


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_draws_by_row_and_shows_its_first_step(name):
    vlm, inputs, _ = opened(name)

    def drawn(seeds, n=4):
        noise = LogitsProcessorList([GumbelNoise(seeds)])
        return vlm.generate_ids(inputs, max_new_tokens=n, min_new_tokens=n, logits_processor=noise)

    rows = len(inputs)
    first, again, other = (drawn(range(start, start + rows)) for start in (0, 0, 100))
    assert torch.equal(first, again) and not torch.equal(first, other)
    for row in range(rows):  # another row's seed changes nothing in this one
        seeds = [seed if seed == row else 100 + seed for seed in range(rows)]
        assert torch.equal(drawn(seeds)[row], first[row])
    step = FirstStep()
    vlm.generate_ids(inputs, max_new_tokens=1, logits_processor=LogitsProcessorList([step]))
    with torch.no_grad():
        logits = vlm.forward(inputs).logits[:, -1]
    kept = torch.isfinite(step.scores)
    torch.testing.assert_close(step.scores[kept], logits[kept].float(), atol=2e-4, rtol=1e-4)


def test_names():
    for name in ("greedy", "sampling", "sampling-t0.5", "first-token"):
        method = open_method(name)
        assert method.name == name and isinstance(method, Method)
    assert open_method("sampling-t0.5") == Sampling(0.5) and Sampling(0.5).sampled and not Greedy().sampled
    for name in ("beam", "sampling-tx", "sampling-t"):
        with pytest.raises(UserError, match="is not known: use greedy"):
            open_method(name)
    for t in ("0", "-1", "inf", "nan"):
        with pytest.raises(UserError, match="above 0"):
            open_method(f"sampling-t{t}")
    assert row_seed(0, "a") == row_seed(0, "a") != row_seed(1, "a") and 0 <= row_seed(0, "a") < 2**63
    assert (likelier(0.2, 0.1), likelier(0.1, 0.2), likelier(0.1, 0.1)) == ("yes", "no", "")

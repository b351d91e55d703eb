"""KL on a model's own samples: by hand, exactly 0 against itself, both estimates of one number, on every family."""

import math

import pandas as pd
import pytest
import torch
from chiasm.experiments.divergence import kl_tally, sample_kl, token_kl
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import description_set, skill_set
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample
from PIL import Image

from ..alignment.pairs import tiny
from ..models.processors import PROCESSORS


@pytest.fixture(scope="module")
def before():
    return open_vlm("organism", device="cpu")


@pytest.fixture(scope="module")
def after():
    return open_vlm("organism/colour", device="cpu")


def test_by_hand():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5]]), torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]])
    found = token_kl(p.log(), q.log() + 3)  # logits are known up to a constant
    by_hand = [0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), 0.9 * math.log(1.8) + 0.1 * math.log(0.2), 0]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-7)


def test_equal_logits_have_exactly_no_divergence_and_large_ones_a_finite_one():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * 50
    assert token_kl(logits, logits.clone()).tolist() == [0] * 5
    assert torch.isfinite(token_kl(torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4])))


def test_of_one_token_the_exact_sum_is_that_of_the_first_distributions(before, after):
    samples = [*description_set(2), *skill_set("colour", 2)]
    found = sample_kl(after, before, samples, draws=2, max_new_tokens=1)
    for sample in samples:
        inputs = before.prepare([sample.images], [sample.prompt])
        with torch.no_grad():
            p, q = (vlm.forward(inputs, use_cache=False).logits[0, -1] for vlm in (after, before))
        rows = found[found["id"] == sample.id]
        assert rows["exact"].tolist() == pytest.approx([token_kl(p, q).item()] * 2, abs=1e-4)
        ratios = (p.double().log_softmax(-1) - q.double().log_softmax(-1)).tolist()
        assert all(min(abs(plain - one) for one in ratios) < 1e-4 for plain in rows["plain"])
    assert found["id"].tolist() == [sample.id for sample in samples for _ in range(2)] and (found["tokens"] == 1).all()


def test_both_estimates_are_of_one_number(before, after):
    found = sample_kl(after, before, description_set(48), draws=2, max_new_tokens=3, batch_size=48)
    gap = found["plain"] - found["exact"]
    assert gap.std() > 0 and abs(gap.mean()) < 4 * gap.std() / len(found) ** 0.5
    assert (found["exact"] >= 0).all() and (found["plain"] < found["exact"]).any()


def test_answers_do_not_depend_on_the_batch_but_on_the_seed(before, after):
    samples = [*description_set(3), Sample("text", "what is 2 plus 3 ?")]
    found = [sample_kl(after, before, samples, draws=1, max_new_tokens=6, batch_size=n) for n in (1, 4)]
    assert found[0]["plain"].tolist() == pytest.approx(found[1]["plain"].tolist(), abs=1e-3)
    other = sample_kl(after, before, samples, draws=1, max_new_tokens=6, seed=5)
    assert other["plain"].tolist() != pytest.approx(found[0]["plain"].tolist(), abs=1e-3)


@pytest.mark.parametrize("family", sorted(PROCESSORS))
def test_a_model_against_itself_on_every_family(family):
    model, processor = tiny(family)
    vlm = open_vlm(model=model, processor=processor)
    picture = Image.new("RGB", (32, 32), (200, 30, 90))
    samples = [Sample(f"{i}", "what is in the picture ?", (picture,)) for i in range(2)]
    found = sample_kl(vlm, vlm, samples, draws=1, max_new_tokens=3)
    assert found["exact"].tolist() == [0, 0] and found["plain"].tolist() == [0, 0]


def test_sums_by_prompt():
    rows = pd.DataFrame(
        {"id": ["a", "a", "b"], "draw": [0, 1, 0], "tokens": [2, 4, 4], "exact": [1.0, 2, 3], "plain": [0, 2, 3]}
    )
    tally = kl_tally(rows)
    found = {name: float(value) for name, value in tally.metrics(tally.counts.sum(0)).items()}
    assert len(tally.counts) == 2 and found["nats_a_token"] == 0.6 and found["nats_an_answer"] == 2
    assert found["plain_nats_a_token"] == 0.5 and found["tokens_an_answer"] == pytest.approx(10 / 3)


def test_nothing_to_sample_is_refused(before):
    with pytest.raises(UserError, match="at least 1"):
        sample_kl(before, before, [])

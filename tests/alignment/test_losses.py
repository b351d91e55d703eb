"""Preference losses by hand: values, gradients, extremes, and a small step on logits that rows do not share."""

from __future__ import annotations

import math

import pytest
import torch
from chiasm.alignment.losses import sequence_logps, visual_dpo
from chiasm.scenes.errors import UserError

LOG2 = math.log(2)


def triple(*values):
    return tuple(torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in values)


def zeros():
    return tuple(torch.zeros(1, dtype=torch.float64) for _ in range(3))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_log_probabilities_are_sums_over_the_scored_tokens_of_unshifted_labels():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3]]]))
    labels = torch.tensor([[-100, 1, 2]])
    assert sequence_logps(logits, labels).item() == pytest.approx(math.log(0.25) + math.log(0.7), abs=1e-6)
    assert sequence_logps(logits, torch.tensor([[0, -100, 2]])).item() == pytest.approx(math.log(0.7), abs=1e-6)
    assert sequence_logps(logits, torch.tensor([[0, -100, -100]])).item() == 0  # the first position is never scored
    assert sequence_logps(logits[:, :1], labels[:, :1]).item() == 0
    assert sequence_logps(logits.bfloat16(), labels).dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(B, T, V\)"):
        sequence_logps(logits, labels[:, :2])


@pytest.mark.parametrize(
    ("options", "n"),
    [(dict(visual_weight=0.0), 1), ({}, 2), (dict(anchor_weight=1.0), 3), (dict(visual_loss_type="joint"), 1)],
)
def test_a_policy_equal_to_its_reference_gives_log_two_for_each_logistic(options, n):
    policy = triple(-3.0, -4.0, -5.0)
    losses, rewards = visual_dpo(policy, [p.detach() for p in policy], beta=0.1, **options)
    assert losses.item() == pytest.approx(n * LOG2, abs=1e-9)
    assert set(rewards) == {"chosen", "rejected", "visual"} and not any(r.item() for r in rewards.values())


def test_values_by_hand():
    policy, reference = triple(-1.0, -4.0, -2.5), triple(-2.0, -3.0, -2.0)  # c = 1, r = -1, s = -0.5
    loss = lambda **options: visual_dpo(policy, reference, beta=0.5, **options)[0].item()  # noqa: E731
    text, visual, anchor = -log_sigmoid(0.5 * 2), -log_sigmoid(0.5 * 1.5), -log_sigmoid(0.5 * 1 - 0.2)
    assert loss(visual_weight=0.0) == pytest.approx(text)
    assert loss(visual_weight=0.25) == pytest.approx(text + 0.25 * visual)
    assert loss(anchor_weight=2.0, anchor_margin=0.2) == pytest.approx(text + visual + 2 * anchor)
    joint = -log_sigmoid(0.5 * (2 + 0.25 * 1.5))
    assert loss(visual_loss_type="joint", visual_weight=0.25, anchor_weight=1.0, anchor_margin=0.2) == pytest.approx(
        joint + anchor
    )
    rewards = visual_dpo(policy, reference, beta=0.5)[1]
    assert {name: r.item() for name, r in rewards.items()} == {"chosen": 0.5, "rejected": -0.5, "visual": -0.25}
    assert not any(r.requires_grad for r in rewards.values())


def test_gradients_are_those_of_the_formula():
    beta, (c, r, s) = 0.3, triple(0.7, -0.2, 0.4)
    visual_dpo((c, r, s), zeros(), beta=beta)[0].backward()
    text, visual = (beta / (1 + math.exp(beta * m)) for m in (0.9, 0.3))
    assert c.grad.item() == pytest.approx(-text - visual)
    assert r.grad.item() == pytest.approx(text)
    assert s.grad.item() == pytest.approx(visual)


def test_swaps_flip_the_margins():
    reference = zeros()
    for a, b in ((1, 2), (2, 1)):
        policy = list(triple(0.5, 0.5, 0.5))
        policy[a] = policy[a] + 1.0
        swapped = [policy[a] if i == 0 else policy[0] if i == a else policy[b] for i in range(3)]
        one, two = (visual_dpo(p, reference, beta=1.0)[1] for p in (policy, swapped))
        name = ("chosen", "rejected", "visual")[a]
        assert one["chosen"] - one[name] == -(two["chosen"] - two[name])


@pytest.mark.parametrize("margin", [1000.0, -1000.0])
def test_margins_of_a_thousand_are_finite(margin):
    policy = triple(margin, 0.0, 0.0)
    losses, _ = visual_dpo(policy, zeros(), beta=1.0, anchor_weight=1.0)
    losses.backward()
    assert losses.isfinite().all() and all(p.grad.isfinite().all() for p in policy)
    assert losses.item() == pytest.approx(0.0 if margin > 0 else 3000.0)


def test_a_term_of_weight_zero_is_left_out_and_not_multiplied():
    policy = (torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([-math.inf]))
    reference = tuple(torch.zeros(1) for _ in range(3))
    assert visual_dpo(policy, reference, beta=0.1, visual_weight=0.0)[0].item() == pytest.approx(LOG2)
    assert visual_dpo((*policy[:2], None), (*reference[:2], None), beta=0.1, visual_weight=0.0)[0].isfinite()


def test_a_small_step_lowers_the_rejected_tokens_themselves():
    """The fault of the published code: it scored the model's own best tokens, and a step raised the true ones."""
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 11, requires_grad=True)  # chosen | v, rejected | v, chosen | v_l; nothing is shared
    labels = torch.randint(0, 11, (3, 5))
    labels[:, :2] = -100
    before = sequence_logps(logits, labels)
    losses, _ = visual_dpo(before.split(1), before.detach().split(1), beta=0.1)
    losses.sum().backward()
    with torch.no_grad():
        after = sequence_logps(logits - 0.1 * logits.grad, labels)
    assert after[0] > before[0] and after[1] < before[1] and after[2] < before[2]


def test_bad_arguments_are_one_clear_line():
    ones = zeros()
    with pytest.raises(UserError, match="visual_loss_type 'chip' is not known: use sum or joint"):
        visual_dpo(ones, ones, beta=0.1, visual_loss_type="chip")
    with pytest.raises(UserError, match="visual_weight is -1"):
        visual_dpo(ones, ones, beta=0.1, visual_weight=-1.0)
    with pytest.raises(ValueError, match="differ in shape"):
        visual_dpo(ones, (ones[0], torch.zeros(2), ones[2]), beta=0.1)

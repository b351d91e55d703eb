"""The formulas of implicit alignment: hand-computed values and every check of the method page on pure functions."""

import math

import pytest
import torch
from chiasm.probes.implicit_alignment import consecutive_similarity, cross_similarity, token_similarity
from chiasm.probes.similarity import MODES

A = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
B = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
R = math.sqrt(0.5)
# cosines: [[1, R], [0, R]]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # pooled (0.5, 1) and (2, 0.5)
        ("avg", 1.5 / (math.sqrt(1.25) * math.sqrt(4.25))),
        ("mean", (1 + 2 * R) / 4),
        ("median", R),
        ("max", 1.0),
        ("min", 0.0),
        ("max_mean", (1 + R) / 2),
        ("diag_mean", (1 + R) / 2),
        ("diag_median", (1 + R) / 2),
        ("diag_max", 1.0),
    ],
)
def test_modes_by_hand(mode, expected):
    found = token_similarity(A, B, mode=mode)
    assert found.dtype == torch.float64 and found.dim() == 0
    assert found.item() == pytest.approx(expected, abs=1e-7)


def test_median_of_an_even_count_is_the_mean_of_the_two_middle_values():
    a = torch.tensor([[1.0, 0.0]])
    b = torch.tensor([[math.cos(x), math.sin(x)] for x in (0.1, 0.2, 0.9, 1.0)])
    assert token_similarity(a, b, mode="median").item() == pytest.approx((math.cos(0.2) + math.cos(0.9)) / 2, abs=1e-7)


def test_max_mean_is_asymmetric_and_diag_is_cut_to_the_shorter():
    b = torch.cat([B, torch.tensor([[0.0, -1.0]])])
    assert token_similarity(A, b, mode="max_mean") != token_similarity(b, A, mode="max_mean")
    assert token_similarity(A, b, mode="diag_mean") == token_similarity(A, B, mode="diag_mean")


def test_eps_only_for_pooled_vectors_and_zero_vectors():
    small = torch.tensor([[1e-4, 0.0]], dtype=torch.float64)
    assert token_similarity(small, small, mode="avg").item() == pytest.approx(1e-8 / (1e-8 + 1e-7), rel=1e-9)
    assert token_similarity(small, small, mode="mean").item() == 1
    zero = torch.zeros(1, 2)
    assert token_similarity(zero, A, mode="avg") == 0
    assert torch.isnan(token_similarity(zero, A, mode="mean")) and torch.isnan(token_similarity(zero, A, mode="median"))


@pytest.mark.parametrize("mode", MODES)
def test_one_token_per_side_all_modes_equal(mode):
    a, b = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10
    assert token_similarity(a, b, mode=mode).item() == pytest.approx((a @ b.T / a.norm() / b.norm()).item(), abs=1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_unchanged_by_scale_and_rotation_but_not_by_a_common_vector(mode):
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(5, 8, generator=g, dtype=torch.float64), torch.randn(5, 8, generator=g, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64)).Q
    plain = token_similarity(a, b, mode=mode)
    torch.testing.assert_close(token_similarity(7 * a, b, mode=mode), plain, atol=1e-7, rtol=0)
    torch.testing.assert_close(token_similarity(a @ turn, b @ turn, mode=mode), plain, atol=1e-7, rtol=0)
    assert (token_similarity(a + 3, b + 3, mode=mode) - plain).abs() > 0.01
    each = torch.linspace(0.5, 3, 5, dtype=torch.float64)[:, None]
    changed = (token_similarity(each * a, b, mode=mode) - plain).abs() > 1e-3
    assert changed == (mode == "avg")  # pooling weighs tokens by their norm, and nothing else does


def test_order_of_the_statistics_and_their_bounds():
    g = torch.Generator().manual_seed(2)
    for _ in range(20):
        a, b = torch.randn(4, 3, generator=g), torch.randn(6, 3, generator=g)
        low, mean, best, high = (token_similarity(a, b, mode=m) for m in ("min", "mean", "max_mean", "max"))
        assert -1 <= low <= mean <= best <= high <= 1 + 1e-12
    for mode in ("max_mean", "max", "diag_mean", "diag_median", "diag_max"):
        assert token_similarity(a, a, mode=mode).item() == pytest.approx(1, abs=1e-12)


def test_mean_of_pair_matrix_equals_dot_of_mean_units():
    g = torch.Generator().manual_seed(3)
    a, b = torch.randn(9, 4, 16, generator=g), torch.randn(7, 4, 16, generator=g)
    brute = torch.stack(
        [
            torch.stack([token_similarity(x[None], y[None], mode="avg") for x in a[:, i] for y in b[:, i]]).mean()
            for i in range(4)
        ]
    )
    torch.testing.assert_close(cross_similarity(a, b), brute, atol=1e-6, rtol=0)
    torch.testing.assert_close(cross_similarity(a.flip(0), b[torch.randperm(7, generator=g)]), brute, atol=1e-6, rtol=0)


def test_consecutive_interval_0_is_exactly_1_and_identity_blocks_are_1_for_all_intervals():
    states = torch.randn(5, 6, 32, generator=torch.Generator().manual_seed(4))
    assert (consecutive_similarity(states, interval=0) == 1).all()
    same = states[:, :1].expand(-1, 6, -1)
    for n in (1, 2, 5):
        torch.testing.assert_close(
            consecutive_similarity(same, interval=n), torch.ones(6 - n, dtype=torch.float64), atol=1e-12, rtol=0
        )


def test_consecutive_by_hand_matched_and_all():
    states = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 2.0], [0.0, -3.0]]])  # two samples, two layers
    assert consecutive_similarity(states, interval=1).tolist() == pytest.approx([(R - 1) / 2])
    # pairs: (0,0) R, (0,1) 0, (1,0) R, (1,1) -1
    assert consecutive_similarity(states, interval=1, pairing="all").tolist() == pytest.approx([(2 * R - 1) / 4])


def test_matched_tells_smooth_trajectories_from_unrelated_samples():
    g = torch.Generator().manual_seed(5)
    start = torch.randn(40, 1, 64, generator=g)
    states = start + 0.2 * torch.randn(40, 5, 64, generator=g).cumsum(1)
    assert consecutive_similarity(states, interval=1).mean() > 0.9
    assert consecutive_similarity(states, interval=1, pairing="all").mean() < 0.1


def test_half_precision_is_widened():
    states = torch.full((2, 3, 4), 3000.0, dtype=torch.float16)  # the square of its norm overflows in fp16
    assert consecutive_similarity(states, interval=1).tolist() == pytest.approx([1, 1])
    assert cross_similarity(states, states).tolist() == pytest.approx([1, 1, 1])
    assert token_similarity(states[0], states[1], mode="mean").item() == pytest.approx(1)


def test_isotropic_gaussian_is_about_0_with_spread_1_over_root_width():
    g, width = torch.Generator().manual_seed(6), 1024
    a, b = torch.randn(80, width, generator=g), torch.randn(80, width, generator=g)
    cosines = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
    assert token_similarity(a, b, mode="mean").abs() < 4 / math.sqrt(width) / 80
    assert cosines.std().item() == pytest.approx(1 / math.sqrt(width), rel=0.05)


def test_shared_mean_and_pooling_follow_the_closed_form():
    g, width, length = torch.Generator().manual_seed(7), 2048, 8
    common = torch.randn(width, generator=g) * 0.5
    a, b = (common + torch.randn(length * 25, width, generator=g) for _ in range(2))
    m2 = common.square().sum().item()
    assert token_similarity(a, b, mode="mean").item() == pytest.approx(m2 / (m2 + width), rel=0.02)
    pooled = [x.view(25, length, width).mean(1) for x in (a, b)]
    assert token_similarity(*pooled, mode="mean").item() == pytest.approx(m2 / (m2 + width / length), rel=0.02)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: token_similarity(A, B, mode="average"), "'average' is not one of avg, mean"),
        (lambda: token_similarity(A, torch.ones(2, 3), mode="avg"), r"\(2, 2\) and \(2, 3\)"),
        (lambda: token_similarity(A, torch.ones(0, 2), mode="avg"), r"\(0, 2\)"),
        (lambda: cross_similarity(torch.ones(2, 3, 4), torch.ones(2, 2, 4)), r"\(2, 2, 4\)"),
        (lambda: consecutive_similarity(torch.ones(2, 3, 4), interval=3), "interval 3 does not fit 3 layers"),
        (lambda: consecutive_similarity(torch.ones(2, 3, 4), interval=-1), "interval -1"),
        (
            lambda: consecutive_similarity(torch.ones(2, 3, 4), interval=1, pairing="some"),
            "'some' is not one of matched, all",
        ),
        (lambda: consecutive_similarity(torch.ones(3, 4), interval=1), r"\(3, 4\)"),
    ],
)
def test_bad_input_is_told_in_one_line(call, told):
    with pytest.raises(ValueError, match=told):
        call()

"""LoRRA: against a loop written from its formulas, and what must hold exactly."""

from __future__ import annotations

import math

import pytest
import torch
from chiasm.alignment.learners import LoRRA

B, TQ, TK, D, H, R = 2, 5, 7, 16, 2, 3


def learner(trained: bool = True, **options) -> LoRRA:
    torch.manual_seed(0)
    made = LoRRA(D, H, R, **options)
    if trained:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return made


def call(seed: int = 1):
    draw = torch.Generator().manual_seed(seed)
    x, f = torch.randn(B, TQ, D, generator=draw), torch.randn(B, TK, D, generator=draw)
    return x, f, torch.arange(3, 3 + TQ).expand(B, -1), torch.tensor([0, 2, 3, 5, 6, 7, 9]).expand(B, -1)


def by_hand(made: LoRRA, x, f, px, pf, mask=None, theta=10_000.0):
    """One number at a time, with complex numbers for the rotation."""
    w = {name: getattr(made, name).weight.detach().double() for name in (f"{a}_{p}" for a in "AB" for p in "qkvo")}
    d = D // H
    out = torch.zeros(B, TQ, D, dtype=torch.float64)

    def turned(vector, position):
        half = d // 2
        z = torch.complex(vector[:half], vector[half:])
        z = z * torch.polar(
            torch.ones(half, dtype=torch.float64),
            torch.tensor([position * theta ** (-2 * i / d) for i in range(half)], dtype=torch.float64),
        )
        return torch.cat([z.real, z.imag])

    for b in range(B):
        rows = f[b].double()
        k, v = (rows + rows @ w[f"A_{p}"].T @ w[f"B_{p}"].T for p in "kv")
        for i in range(TQ):
            row = x[b, i].double()
            q = row + w["B_q"] @ (w["A_q"] @ row)
            seen = [j for j in range(TK) if mask is None or mask[b, i, j]]
            if not seen:
                continue
            joined = []
            for h in range(H):
                at = slice(h * d, (h + 1) * d)
                turned_q = turned(q[at], int(px[b, i]))
                logits = [float(turned_q @ turned(k[j, at], int(pf[b, j]))) / math.sqrt(d) for j in seen]
                weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
                joined.append(sum(p * v[j, at] for p, j in zip(weights, seen, strict=True)))
            out[b, i] = w["B_o"] @ (w["A_o"] @ torch.cat(joined))
    return out


@pytest.mark.parametrize("theta", [10_000.0, 500.0])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_formula(masked, theta):
    made, (x, f, px, pf) = learner(rope_theta=theta), call()
    mask = (pf[:, None, :] <= px[:, :, None]) if masked else None
    assert torch.allclose(made(x, f, px, pf, mask).double(), by_hand(made, x, f, px, pf, mask, theta), atol=1e-5)


def test_it_starts_as_exactly_nothing_and_only_the_output_learns_at_first():
    made, (x, f, px, pf) = learner(trained=False), call()
    out = made(x.requires_grad_(), f.requires_grad_(), px, pf)
    assert torch.equal(out, torch.zeros(B, TQ, D))
    out.pow(2).add(out).sum().backward()
    moved = {name for name, p in made.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"B_o.weight"}
    assert x.grad.abs().max() == 0 == f.grad.abs().max()


def test_sizes_and_beginning():
    made = LoRRA(64, 4, 8)
    assert sum(p.numel() for p in made.parameters()) == 8 * 64 * 8
    assert (
        set(dict(made.named_parameters()))
        == {f"{a}_{p}.weight" for a in "AB" for p in "qkvo"}
        == set(made.state_dict())
    )
    for part in "qkvo":
        down = getattr(made, f"A_{part}").weight
        assert 0.015 < down.std() < 0.02 and down.abs().max() <= 0.04
        assert getattr(made, f"B_{part}").weight.abs().max() == 0


def test_permuting_features_with_their_positions_changes_nothing():
    made, (x, f, px, pf) = learner(), call()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    whole = made(x, f, px, pf)
    assert torch.allclose(made(x, f[:, order], px, pf[:, order]), whole, atol=1e-6)
    assert not torch.allclose(made(x, f[:, order], px, pf), whole, atol=1e-3)  # the positions count


def test_positions_count_by_their_distance_only():
    made, (x, f, px, pf) = learner(), call()
    assert torch.allclose(made(x, f, px + 11, pf + 11), made(x, f, px, pf), atol=1e-5)


def test_a_masked_feature_is_as_if_it_were_not_there():
    made, (x, f, px, pf) = learner(), call()
    mask = torch.ones(B, TQ, TK, dtype=torch.bool)
    mask[..., 4:] = False
    assert torch.allclose(made(x, f, px, pf, mask), made(x, f[:, :4], px, pf[:, :4]), atol=1e-6)


def test_who_sees_nothing_gets_nothing_and_no_gradient_is_lost_to_nan():
    made, (x, f, px, pf) = learner(), call()
    mask = torch.ones(B, TQ, TK, dtype=torch.bool)
    mask[0, 2] = False
    x, f = x.requires_grad_(), f.requires_grad_()
    out = made(x, f, px, pf, mask)
    assert out[0, 2].abs().max() == 0 < out[0, 1].abs().max()
    out[0, 2].sum().backward()
    for grad in (x.grad, f.grad, *(p.grad for p in made.parameters())):
        assert grad.abs().max() == 0  # finite, too: NaN is not 0
    none = torch.zeros(B, TQ, TK, dtype=torch.bool)
    assert made(x, f, px, pf, none).abs().max() == 0
    assert made(x, f[:, :0], px, pf[:, :0]).abs().max() == 0


def test_half_precision_keeps_far_positions_apart():
    made, (x, f, px, pf) = learner(), call()
    exact = made(x, f, px + 3000, pf + 3000)
    out = made.to(torch.bfloat16)(x.bfloat16(), f.bfloat16(), px + 3000, pf + 3000)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), exact, atol=0.05 * float(exact.abs().max()))


@pytest.mark.parametrize(("size", "heads", "rank"), [(16, 3, 4), (6, 2, 4), (16, 0, 4), (16, 2, 0)])
def test_sizes_that_cannot_be(size, heads, rank):
    with pytest.raises(ValueError, match=r"num_heads|rank"):
        LoRRA(size, heads, rank)

"""What is read from logits, against the pure functions token by token; parts change nothing."""

import pytest
import torch
from chiasm.probes.vocabulary import decode_states, entropy, kl_divergence
from chiasm.probes.word_readings import MOMENTS, chosen, read_words
from torch import nn

V, D, LAYERS = 23, 6, 3


def given(real):
    torch.manual_seed(0)
    states = [torch.randn(*real.shape, D) * 2 for _ in range(LAYERS)]
    return states, nn.Linear(D, V), nn.LayerNorm(D)


REAL = torch.tensor([[[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]]).bool()  # fmt: skip


@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("chunk", [1 << 20, 2 * 5 * V, 2 * V, 1])
def test_everything_is_what_the_pure_functions_give(chunk, matched):
    states, unembed, norm = given(REAL)
    with torch.no_grad():
        found, top = read_words(states, REAL, unembed, norm, vocabulary=V, chunk=chunk, matched=matched)
        p = torch.stack([decode_states(x, unembed, norm) for x in states])  # (layers, B, 2, K, V)
    assert found.shape == (len(MOMENTS), LAYERS, 3) and torch.equal(top, p.argmax(-1))
    value = {name: found[i] for i, name in enumerate(MOMENTS)}
    for layer in range(LAYERS):
        for b in range(3):
            of = {pair: p[layer, b, g][REAL[b, g]] for g, pair in enumerate("PT")}
            end = {pair: p[-1, b, g][REAL[b, g]] for g, pair in enumerate("PT")}
            for pair in "PT":
                close(value["entropy", pair][layer, b], entropy(of[pair]).mean())
                close(value["to_final", pair][layer, b], kl_divergence(of[pair], end[pair]).mean())
                close(value["agreement", pair][layer, b], (of[pair].argmax(-1) == end[pair].argmax(-1)).float().mean())
                halves = value["kl", f"{pair}-{pair}"][layer, b]
                if matched or len(of[pair]) < 2:
                    assert torch.isnan(halves)
                else:
                    close(halves, kl_divergence(of[pair][::2].mean(0), of[pair][1::2].mean(0)))
            if matched:
                wanted = torch.stack([kl_divergence(x, y) for x, y in zip(of["P"], of["T"], strict=False)]).mean()
            else:
                wanted = kl_divergence(of["P"].mean(0), of["T"].mean(0))
            close(value["kl", "P-T"][layer, b], wanted)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_positions_are_spread_evenly_over_a_group():
    groups = torch.zeros(2, 1, 12, dtype=torch.bool)
    groups[0, 0, 2:10] = True
    groups[1, 0, [4, 7]] = True
    at, real = chosen(groups, 4)
    assert at[0].tolist() == [[2, 4, 6, 8]] and at[1, 0, :2].tolist() == [4, 7]
    assert real.tolist() == [[[True] * 4], [[True, True, False, False]]]
    at, real = chosen(groups, None)
    assert at[0].tolist() == [list(range(2, 10))] and real.sum(2).tolist() == [[8], [2]]

"""Attention given back from sinks: the formula by hand and on every family, what is a sink, what stays as it is."""

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import scene_samples
from chiasm.steering import SinkRedistribution, steer
from chiasm.steering.sinks import redistributed, sink_dimensions

from .attending import SEQUENCE, last_layer, mixed, scores, spied, tiny


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


def test_redistribution_by_hand():
    #                       text  text sink | visual sink, visual, visual
    weights = torch.tensor([[0.10, 0.20, 0.20, 0.10, 0.40],
                            [0.10, 0.20, 0.40, 0.10, 0.20],
                            [0.50, 0.40, 0.02, 0.03, 0.05]])  # fmt: skip
    visual = torch.tensor([False, False, True, True, True])
    sinks = torch.tensor([False, True, True, False, False])
    new, changed = redistributed(weights, visual, sinks, p=0.5, rho=0.5, image_share=0.2)
    assert changed.tolist() == [
        True,
        False,
        False,
    ]  # the second has 4/7 of the picture on sinks, the third 0.1 on the picture
    torch.testing.assert_close(new[0], torch.tensor([0.10, 0.10, 0.10, 0.14, 0.56]))
    assert torch.equal(new[1:], weights[1:])
    torch.testing.assert_close(new.sum(-1), torch.ones(3))
    torch.testing.assert_close(
        redistributed(weights, visual, sinks, p=0.5, rho=4 / 7 + 1e-6, image_share=0.7)[0][1],
        torch.tensor([0.10, 0.10, 0.20, 0.2, 0.4]),
    )


@pytest.mark.parametrize(
    ("visual", "sinks", "p"),
    [
        ([0, 1, 1], [0, 0, 0], 0.5),  # no sink
        ([0, 0, 0], [1, 0, 0], 0.5),  # no picture
        ([0, 1, 1], [1, 1, 1], 0.5),  # nobody to give it to
        ([0, 1, 1], [1, 0, 0], 1.0),
    ],
)
def test_redistribution_without_anything_to_move(visual, sinks, p):
    weights = torch.tensor([0.2, 0.3, 0.5])
    new, changed = redistributed(
        weights, torch.tensor(visual).bool(), torch.tensor(sinks).bool(), p=p, rho=1.0, image_share=0.0
    )
    assert torch.equal(new, weights) and not changed


@SEQUENCE
def test_the_last_query_of_every_family_by_hand(name):
    vlm, inputs, _ = tiny(name)
    layer, spans = last_layer(vlm), inputs.spans
    rule = {"p": 0.3, "rho": 0.7, "image_share": 0.05}
    states = entering(vlm, inputs, layer)
    states = states / states.pow(2).mean(-1, keepdim=True).sqrt()
    firsts = spans.real.long().argmax(1)
    dims = [states[b, firsts[b]].abs().topk(2).indices for b in range(len(inputs))]
    size = torch.stack([states[b][:, dims[b]].abs().amax(-1) for b in range(len(inputs))])
    tau = float(size[spans.visual].median()) + 1e-4  # about half of the visual tokens are sinks
    change = SinkRedistribution(tau=tau, layers=layer, positions="last_prompt", **rule)
    plain, call = spied(vlm, inputs, layer), spied(vlm, inputs, layer, change)
    some = False
    for b in range(len(inputs)):
        keys = torch.nonzero(spans.real[b]).flatten()
        sinks = size[b, keys] > tau
        z = scores(call, b, -1, keys).softmax(-1)
        want, changed = redistributed(z, spans.visual[b, keys], sinks, **rule)
        some |= bool(changed.any())
        torch.testing.assert_close(call[4][b, :, -1][:, keys].double(), want, atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(call[4][b, :, -1].sum(-1), torch.ones(call[4].shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(call[3][b, -1].double(), mixed(call, b, want, keys), atol=1e-5, rtol=1e-4)
        assert torch.equal(call[3][b, -1][~changed], plain[3][b, -1][~changed]), "heads that are not selected"
        assert torch.equal(call[3][b, keys[:-1]], plain[3][b, keys[:-1]]), "other queries"
    assert some, "a head must be changed for the test to say anything"


def entering(vlm, inputs, layer: int) -> torch.Tensor:
    seen = []
    hook = vlm.anatomy.blocks[layer].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        vlm.forward(inputs)
    hook.remove()
    return seen[0]


@SEQUENCE
def test_p_1_and_no_sink_change_no_bit(name):
    vlm, inputs, _ = tiny(name)
    with torch.no_grad():
        plain = vlm.forward(inputs).logits
        for change in (SinkRedistribution(p=1.0, tau=1.5), SinkRedistribution(tau=5, dims=[8])):
            with steer(vlm, change):
                assert torch.equal(vlm.forward(inputs).logits, plain)
        with steer(vlm, SinkRedistribution(p=0.0, tau=4, rho=1.0, image_share=0.0, n_dims=1)):
            steered = vlm.forward(inputs).logits
    assert not torch.equal(steered, plain)


def test_sinks_of_the_prompt_are_remembered_while_decoding(organism):
    """A step's row of attention, seen by a lens, sums to 1 and has lost what lay on the prompt's sinks."""
    inputs = organism.prepare([next(scene_samples(1, "test", "caption")).images], ["describe the image ."])
    site = "blocks.2.attn_mass"
    every = {"tau": 2.0, "image_share": 0.0, "rho": 1.0, "layers": 2}
    ids, plain = organism.trace_generation(inputs, [site], max_new_tokens=5, eos_token_id=-1)
    with steer(organism, SinkRedistribution(p=0.999, **every)):
        same, slight = organism.trace_generation(inputs, [site], max_new_tokens=5, eos_token_id=-1)
    with steer(organism, SinkRedistribution(p=0.0, **every)):
        _, steered = organism.trace_generation(inputs, [site], max_new_tokens=5, eos_token_id=-1)
    torch.testing.assert_close(steered[site].sum(-1), plain[site].sum(-1), atol=1e-5, rtol=0)
    assert torch.equal(ids, same)
    width = inputs.spans.labels.shape[1]
    shift = (slight[site] - plain[site])[0, :, width:, 3]
    assert (shift > 1e-7).any() and (shift > -1e-5).all()


def test_dimensions_are_those_largest_at_the_first_position_or_given(organism):
    inputs = organism.prepare([None, None], ["is there a cat ?", "what is this place called ?"])
    found = sink_dimensions(organism, inputs, layer=2, n=3)
    state = organism.trace(inputs, ["blocks.1.resid_post"])["blocks.1.resid_post"]
    first = torch.stack([row[real][0] for row, real in zip(state, inputs.spans.real, strict=True)])
    size = (first / first.pow(2).mean(-1, keepdim=True).sqrt()).abs().mean(0)
    assert [d for d, _ in found] == size.topk(3).indices.tolist()
    assert found[0][1] == pytest.approx(float(size.max()), rel=1e-5)
    picture = organism.prepare([next(scene_samples(1, "test")).images], ["what is this place called ?"])
    rule = {"tau": 1.0, "p": 0.0, "image_share": 0.0, "rho": 1.0, "layers": 2}
    own = spied(organism, picture, 2, SinkRedistribution(n_dims=1, **rule))
    dims = sink_dimensions(organism, picture, n=1)
    given = spied(organism, picture, 2, SinkRedistribution(dims=[dims[0][0]], **rule))
    assert torch.equal(own[3], given[3])
    other = spied(organism, picture, 2, SinkRedistribution(dims=[(dims[0][0] + 1) % 128], **rule))
    assert not torch.equal(own[3], other[3])

"""What an intervention costs: FLOPs by the formula, by what is really run, and positions by layer."""

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.steering import AddDirection, PruneVisual, SkipAttention, SkipBlock, SkipFFN, VisualExit, steer
from chiasm.steering.cost import layer_flops, report
from torch.utils.flop_counter import FlopCounterMode

from ..models.families import FAMILIES, batch, build


def opened(name: str = "llava"):
    model, tensors = build(name)
    vlm = open_vlm(model=model)
    return vlm, vlm.from_tensors(**tensors)


def flops_of(n: int, **more) -> int:
    return layer_flops(n, hidden=32, width=64, heads=4, kv_heads=2, **more)


def test_flops_of_a_layer_are_those_of_the_page():
    n, d, m = 10, 64, 256
    assert layer_flops(n, hidden=d, width=m, heads=4) == 2 * (4 * n * d * d + 2 * n * n * d + 3 * n * d * m)
    assert layer_flops(n, hidden=d, width=m, heads=4, gated=False) == 2 * (
        4 * n * d * d + 2 * n * n * d + 2 * n * d * m
    )
    grouped = 2 * (2 * n * d * d + 2 * n * d * d // 4 + 2 * n * n * d + 3 * n * d * m)
    assert layer_flops(n, hidden=d, width=m, heads=4, kv_heads=1) == grouped
    assert layer_flops(n, hidden=d, width=m, heads=4, head_dim=32) == 2 * (
        8 * n * d * d + 4 * n * n * d + 3 * n * d * m
    )


def test_skipping_the_feed_forward_of_llava_saves_what_the_page_says():
    llava = {"hidden": 4096, "width": 11008, "heads": 32}
    saved = layer_flops(640, **llava) - layer_flops(640, **llava, ffn=640 - 576)
    assert saved == 576 * 6 * 4096 * 11008
    assert saved / 1e12 == pytest.approx(0.156, abs=5e-4)


@pytest.mark.parametrize(
    ("changes", "visual", "asked", "fed"),
    [
        ([], (16, 16, 16), (25, 25, 25), (25, 25, 25)),
        ([SkipFFN(layers=1)], (16, 16, 16), (25, 25, 25), (25, 9, 25)),
        ([SkipAttention(layers=1)], (16, 16, 16), (25, 9, 25), (25, 25, 25)),
        ([SkipBlock(layers=[0, 2])], (16, 16, 16), (9, 25, 9), (9, 25, 9)),
        ([VisualExit(0)], (16, 0, 0), (25, 9, 9), (25, 9, 9)),
        ([PruneVisual(0.25)], (4, 4, 4), (13, 13, 13), (13, 13, 13)),
        ([PruneVisual(0.5), SkipFFN(layers=1), VisualExit(1)], (8, 8, 0), (17, 17, 9), (17, 9, 9)),
        ([VisualExit(0, by="mask")], (16, 16, 16), (25, 25, 25), (25, 25, 25)),
    ],
)
def test_the_report_counts_what_every_layer_still_computes(changes, visual, asked, fed):
    vlm, inputs = opened()
    found = report(vlm, inputs, *changes, rounds=1).layers
    assert tuple(found["visual_tokens"]) == visual
    assert tuple(found["attention_positions"]) == asked
    assert tuple(found["ffn_positions"]) == fed
    positions = [9 + v for v in visual]
    want = [flops_of(n, queries=q, ffn=f) / 1e9 for n, q, f in zip(positions, asked, fed, strict=True)]
    assert found["gflops"].tolist() == pytest.approx(want)
    assert found["plain_gflops"].tolist() == pytest.approx([flops_of(25) / 1e9] * 3)


def test_what_is_saved_is_not_run():
    """By torch's own counter of what its kernels do, without attention, which it does not know on every device."""
    vlm, inputs = opened()

    def run(*changes) -> int:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), steer(vlm, *changes), counter:
            vlm.forward(inputs, use_cache=False)
        products = counter.get_flop_counts()["Global"]
        return sum(n for op, n in products.items() if str(op).split(".")[-1] in ("mm", "addmm", "bmm"))

    plain = run()
    assert plain - run(SkipFFN(layers=[0, 1])) == 2 * 16 * 6 * 32 * 64
    assert plain - run(SkipAttention(layers=1)) == 2 * 16 * 2 * 32 * 32
    mixed = 4 * 25 * 25 * 32 - 4 * 9 * 9 * 32
    assert plain - run(VisualExit(1)) == flops_of(25) - flops_of(9) - mixed
    assert plain - run(PruneVisual(0.25, score="norm")) == 3 * (
        flops_of(25) - flops_of(13) - (4 * 25 * 25 * 32 - 4 * 13 * 13 * 32)
    )


def test_the_totals_tell_the_change_of_the_next_token_and_the_time():
    model, tensors, _ = batch("llava", "left")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    same = report(vlm, inputs, rounds=2).total.iloc[0]
    assert same["kl_nats"] == 0 and same["gflops_ratio"] == 1 and same["same_token_share"] == 1 and same["n"] == 2
    assert same["milliseconds"] > 0 and same["time_ratio"] > 0
    v = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 5
    add = AddDirection(v, layer=2)
    found = report(vlm, inputs, add, rounds=1).total.iloc[0]
    with torch.no_grad():
        p = vlm.forward(inputs).logits[:, -1].log_softmax(-1)
        with steer(vlm, add):
            q = vlm.forward(inputs).logits[:, -1].log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    assert found["kl_nats"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found["kl_low"] <= found["kl_nats"] <= found["kl_high"]
    assert found["same_token_share"] == (p.argmax(-1) == q.argmax(-1)).double().mean()


@pytest.mark.parametrize("name", ["blip2", "qwen3_5", "gemma3", "mllama"])
def test_every_kind_of_layer_is_counted(name):
    assert name in FAMILIES
    vlm, inputs = opened(name)
    found = report(vlm, inputs, SkipFFN(layers=1, positions="text"), rounds=1).layers
    text = int((inputs.spans.real & ~inputs.spans.mask("image")).sum())
    length = inputs.spans.labels.shape[1]
    assert found["ffn_positions"].tolist() == [length - text * (i == 1) for i in range(vlm.anatomy.n_layers)]
    assert (found["gflops"] > 0).all() and found["gflops"][1] < found["plain_gflops"][1]

"""What steering costs, and what pruning, exiting and skipping save: prefill and generation beside the plain model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..models import VLM, open_vlm
from ..scenes.benchmarks import caption_set
from ..steering import AddDirection, PruneVisual, SkipFFN, VisualExit, steer
from .bench import Row, Size
from .bench_models import billion_vlm, prompt
from .timing import interleave

TOKENS = 8
"""Tokens of an answer."""


def rows(size: Size) -> Iterator[Row]:
    """Prefill with less for the picture's tokens, and generation with a direction added, against the plain model."""
    vlm = billion_vlm(size)
    inputs, depth = prompt(vlm), vlm.anatomy.n_layers
    savings = {
        "PruneVisual, 25 % kept": (PruneVisual(0.25), 0.55),
        "VisualExit at half depth": (VisualExit(depth // 2 - 1), 0.7),
        "SkipFFN in half the layers": (SkipFFN(layers=range(0, depth, 2)), None),
    }
    steps: dict[str, Callable[[], object]] = {"plain": _prefill(vlm, inputs)}
    steps |= {name: _prefill(vlm, inputs, change) for name, (change, _) in savings.items()}
    found = interleave(steps, size.scene_rounds, warm=1)
    base = f"plain prefill, {vlm.n_parameters / 1e9:.2f} B fp32, {inputs.spans.labels.shape[1]} positions"
    for name, (_, bar) in savings.items():
        yield Row(f"{name}: time", base, found.ratio(name, "plain"), f"{found.milliseconds(name):.0f} ms", bar)
    yield _steered(vlm, inputs, size.scene_rounds, f"{vlm.n_parameters / 1e9:.2f} B")
    del vlm
    organism = open_vlm("organism", device="cpu")
    sample = caption_set(1)[0]
    yield _steered(organism, organism.prepare([sample.images], [sample.prompt]), size.rounds, "organism")


def _prefill(vlm: VLM, inputs, *changes) -> Callable[[], object]:
    def run():
        with torch.no_grad(), steer(vlm, *changes):
            return vlm.forward(inputs, logits_to_keep=1)

    return run


def _steered(vlm: VLM, inputs, rounds: int, what: str) -> Row:
    """Generation with a direction added at the output of one block; small enough to leave the answer as long as it is."""
    vector = torch.randn(vlm.anatomy.hidden_size, generator=torch.Generator().manual_seed(0)) * 1e-3
    change = AddDirection(vector, layer=vlm.anatomy.n_layers // 2)
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}

    def steered():
        with steer(vlm, change):
            return vlm.generate_ids(inputs, **options)

    steps = {"plain": lambda: vlm.generate_ids(inputs, **options), "steered": steered}
    found = interleave(steps, rounds, warm=1)
    detail = f"{found.milliseconds('steered') / TOKENS:.2f} ms a token"
    return Row(
        f"AddDirection, {TOKENS} tokens, {what}: time",
        "plain generation",
        found.ratio("steered", "plain"),
        detail,
        1.03,
    )

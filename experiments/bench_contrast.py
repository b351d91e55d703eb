"""What contrast decoding costs beside plain generation: time a token, time to the first token, peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..models import VLM, open_vlm
from ..models.spans import find_spans
from ..scenes.benchmarks import caption_set
from ..steering.branches import Branch, join, new_cache
from ..steering.contrast import ContrastDecoder, contrast
from ..steering.negatives import NoisedImage, OutlierTokens
from .bench import IMAGE, Row, Size
from .bench_models import PICTURE, WORDS, billion_vlm, prompt
from .timing import Ratio, Rounds, allocation_peak, interleave

K = 10
"""Visual tokens that DAMRO keeps."""

PATCHES = (PICTURE // 14) ** 2
DAMRO = f"DAMRO, k={K}"


def rows(size: Size) -> Iterator[Row]:
    yield from token_rows(size)
    yield from prompt_rows(size)
    yield from organism_rows(size)


def token_rows(size: Size) -> Iterator[Row]:
    """A token of a billion parameters: one row, two rows on one cache, two calls on two caches; the choice included.

    In fp32, in which a CPU's time goes with the bytes of the weights, as an accelerator's does in any type; a CPU without
    units for bf16 spends its time on arithmetic there, and a second row costs as much as the first. Caches hold random keys:
    what is in them costs nothing.
    """
    vlm = billion_vlm(size)

    def plain(branch: Branch) -> None:
        branch.step(branch.logits.argmax(-1))

    def contrasted(*branches: Branch) -> None:
        positive, negative = torch.cat([branch.logits for branch in branches]).chunk(2)
        token = contrast(positive, negative, alpha=1.0, beta=0.1).argmax(-1)
        for branch in branches:
            branch.step(token.repeat(2 // len(branches)))

    def pair() -> tuple[Branch, Branch]:
        return at_length(vlm, PATCHES + WORDS + 1), at_length(vlm, K + WORDS + 1)

    one, two, both = pair()[0], join(*pair()), pair()
    steps = {"plain": lambda: plain(one), "rows": lambda: contrasted(two), "calls": lambda: contrasted(*both)}
    with torch.no_grad():
        found = interleave(steps, size.rounds // 2)
    against = f"plain, {_size(vlm)} fp32, 640 positions, batch 1"
    yield Row(f"{DAMRO}: time a token", against, found.ratio("rows", "plain"), _ms(found, "rows"), 1.25)
    yield Row(f"{DAMRO}, naive two calls: time a token", against, found.ratio("calls", "plain"), _ms(found, "calls"))


def prompt_rows(size: Size) -> Iterator[Row]:
    """The prompt: vision tower, decoder, the choice of outliers, the second prompt. A quarter of the layers, in fp32, since
    the ratio does not hang on depth and a prompt is much arithmetic."""
    vlm = billion_vlm(size, layers=4)
    inputs = prompt(vlm)
    outliers, noised = ContrastDecoder(vlm, OutlierTokens(k=K)), ContrastDecoder(vlm, NoisedImage())
    steps = {
        name: lambda make=make: make(inputs, max_new_tokens=1)
        for name, make in {
            "plain": vlm.generate_ids, "damro": outliers.generate_ids, "vcd": noised.generate_ids,
        }.items()
    }  # fmt: skip
    found = interleave(steps, max(1, size.long_rounds // 2), warm=1)
    against = f"plain, {_size(vlm)} fp32, 576 image tokens, batch 1"
    yield Row(f"{DAMRO}: time to the first token", against, found.ratio("damro", "plain"), _ms(found, "damro"), 1.25)
    yield Row("VCD: time to the first token", against, found.ratio("vcd", "plain"), _ms(found, "vcd"))
    weights = sum(p.numel() * p.element_size() for p in vlm.model.parameters())
    makers = {"plain": vlm.generate_ids, "damro": outliers.generate_ids}
    peaks = {
        name: allocation_peak(lambda make=make: make(inputs, max_new_tokens=4, min_new_tokens=4))
        for name, make in makers.items()
    }
    above = f"{peaks['damro'] / 2**20:.0f} and {peaks['plain'] / 2**20:.0f} MiB above {weights / 2**20:.0f} of weights"
    ratio = Ratio.of([(weights + peaks["damro"]) / (weights + peaks["plain"])])
    yield Row(f"{DAMRO}: peak memory", against, ratio, above, 1.10)


def organism_rows(size: Size) -> Iterator[Row]:
    """Whole answers of the organism, so small that time is what Python does around it."""
    vlm = open_vlm("organism", device="cpu")
    sample = caption_set(1)[0]
    inputs = vlm.prepare([sample.images], [sample.prompt])
    negative = OutlierTokens(k=K)
    makers = {
        "plain": vlm.generate_ids,
        "rows": ContrastDecoder(vlm, negative).generate_ids,
        "calls": ContrastDecoder(vlm, negative, engine="two_calls").generate_ids,
    }
    first: dict[str, list[float]] = {name: [] for name in makers}
    later: dict[str, list[float]] = {name: [] for name in makers}

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            for kept, seconds in zip((first, later), _timed(makers[name], inputs), strict=True):
                kept[name].append(seconds)

        return run

    interleave({name: step(name) for name in makers}, size.rounds)
    for quantity, kept in (("time to the first token", first), ("time a token", later)):
        found = Rounds({name: seconds[2:] for name, seconds in kept.items()})  # the first two warm up
        for name, shown in (("rows", DAMRO), ("calls", f"{DAMRO}, naive two calls")):
            yield Row(f"{shown}: {quantity}", "plain, organism, batch 1", found.ratio(name, "plain"), _ms(found, name))


def _timed(generate: Callable, inputs, tokens: int = 12) -> tuple[float, float]:
    """Seconds to the first token, and the mean of those behind it: told by a criterion, which is asked after each."""
    told: list[float] = []

    def see(ids: Tensor, *_args, **_kwargs) -> Tensor:
        told.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool)

    began = time.perf_counter()
    generate(inputs, stopping_criteria=[see], max_new_tokens=tokens, min_new_tokens=tokens)
    return told[0] - began, (told[-1] - told[0]) / (len(told) - 1)


def at_length(vlm: VLM, length: int) -> Branch:
    """A branch of one row behind a prompt of this length, its cache full of random keys and values."""
    text = vlm.anatomy.text_config
    cache, mask = new_cache(vlm.anatomy), torch.ones(1, length, dtype=torch.long)
    for layer in range(text.num_hidden_layers):
        shape = (1, text.num_key_value_heads, length, text.head_dim)
        cache.update(torch.randn(shape, dtype=vlm.dtype), torch.randn(shape, dtype=vlm.dtype), layer)
    spans = find_spans(torch.full_like(mask, 4), mask, IMAGE)
    logits = torch.randn(1, vlm.anatomy.vocab_size, dtype=vlm.dtype)
    return Branch(vlm.anatomy, cache, mask, torch.full((1, 1), length), spans, logits)


def _size(vlm: VLM) -> str:
    return f"{vlm.n_parameters / 1e9:.2f} B"


def _ms(found: Rounds, name: str) -> str:
    return f"{found.milliseconds(name):.1f} of {found.milliseconds('plain'):.1f} ms"

"""The control that moves the threshold: a constant added to the logit of yes at the first token, tuned on other pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..probes.loader import Data, Loader
from ..probes.yes_no import yes_no_ids
from ..scenes.benchmarks import SAMPLINGS, pope_questions
from ..scenes.world import make_scene, split_seeds
from .benchmarks import Benchmark
from .evaluation import Questions
from .methods import FirstToken

HELD_OUT = 60
"""Rendered scenes of the training split on which the bias is tuned for rendered scenes."""


@dataclass(frozen=True)
class YesBias:
    """A constant added to the logit of yes at the first token: what moving the threshold does by itself."""

    bias: float
    sampled: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        return f"yes{self.bias:+.2g}"

    def answer(self, vlm, inputs, *, max_new_tokens: int, seeds: Sequence[int] = ()) -> list[str]:
        return _shifted(vlm, inputs, [self.bias] * len(inputs), max_new_tokens)


class HeldOutYesBias:
    """The same for a benchmark without other pictures to tune on: every second picture's questions are answered with the bias that
    is best for the rest, and the other way round. Both are tuned when the first question is asked, in one pass over all of them."""

    name, sampled = "yes-held-out", False

    def __init__(self, benchmark: Benchmark):
        self.benchmark, self.biases = benchmark, None

    def check(self, vlm) -> None:
        yes_no_ids(vlm.tokenizer)  # UserError where there is no such token

    def answer(self, vlm, inputs, *, max_new_tokens: int, seeds: Sequence[int] = ()) -> list[str]:
        if self.biases is None:
            self.biases = held_out_biases(vlm, self.benchmark, batch_size=len(inputs))
        own = [self.biases.get(sample.id, 0.0) for sample in inputs.samples]
        return _shifted(vlm, inputs, own, max_new_tokens)


def yes_bias_control(vlm, benchmark: Benchmark) -> YesBias | HeldOutYesBias | None:
    """The control for a benchmark: tuned on scenes of the training split where it has rendered scenes, else on the other half of
    its pictures; None where nothing is answered by yes or no."""
    if benchmark.kind == "chair":
        return None
    if benchmark.name != "pope-scenes":
        return HeldOutYesBias(benchmark)
    scenes = [make_scene(seed) for seed in split_seeds("train", HELD_OUT)]
    return YesBias(tuned_yes_bias(vlm, [one for sampling in SAMPLINGS for one in pope_questions(scenes, sampling)]))


def tuned_yes_bias(vlm, samples: Sequence, *, batch_size: int = 32) -> float:
    """The bias that is best for these yes/no samples, which must show other pictures than those that are judged."""
    odds = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        odds.append(_odds(vlm, vlm.prepare([s.images for s in batch], [s.prompt for s in batch])))
    return best_bias(torch.cat(odds), torch.tensor([s.truth["label"] == "yes" for s in samples]))


def held_out_biases(vlm, benchmark: Benchmark, *, batch_size: int = 8) -> dict[str, float]:
    """By id of each question that has a label the bias that is best for the pictures of the other half (0 where there are none)."""
    odds, labels, pictures, ids = [], [], [], []
    for batch in Loader(vlm, Data(Questions(benchmark)), batch_size):
        for inputs in batch.inputs:
            facts = [benchmark.facts(sample) for sample in inputs.samples]
            asked = [b for b, fact in enumerate(facts) if "label" in fact]
            odds.append(_odds(vlm, inputs)[asked])
            labels += [facts[b]["label"] == "yes" for b in asked]
            pictures += [facts[b]["image"] for b in asked]
            ids += [inputs.samples[b].id for b in asked]
    odds, yes = torch.cat(odds), torch.tensor(labels)
    number = {picture: n for n, picture in enumerate(dict.fromkeys(pictures))}
    half = torch.tensor([number[picture] % 2 for picture in pictures])
    best = [best_bias(odds[half != k], yes[half != k]) for k in (0, 1)]
    return {name: best[k] for name, k in zip(ids, half.tolist(), strict=True)}


def best_bias(odds: Tensor, yes: Tensor) -> float:
    """The constant b with which most of (odds + b > 0) == yes; of equal ones the nearest to 0. odds: (N,) log P(yes) / P(no)."""
    edges = odds.sort().values
    biases = torch.cat([torch.zeros(1), -(edges[1:] + edges[:-1]) / 2]).double()
    right = ((odds + biases[:, None] > 0) == yes).sum(1)
    best = biases[right == right.max()]
    return round(best[best.abs().argmin()].item(), 4)


def _odds(vlm, inputs) -> Tensor:
    yes, no = FirstToken().probabilities(vlm, inputs).double().clamp_min(1e-30).log().unbind(-1)
    return (yes - no).cpu()


def _shifted(vlm, inputs, biases: Sequence[float], max_new_tokens: int) -> list[str]:
    shift = LogitsProcessorList([_Shifted(vlm, biases)])
    return vlm.generate(inputs, max_new_tokens=max_new_tokens, logits_processor=shift)


class _Shifted(LogitsProcessor):
    """Of one generation: the first call is that of the first token. biases: one a row."""

    def __init__(self, vlm, biases: Sequence[float]):
        self.tokens, self.biases, self.begun = yes_no_ids(vlm.tokenizer)[0], torch.tensor(biases), False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.begun:
            return scores
        self.begun = True
        scores = scores.clone()
        scores[:, self.tokens] += self.biases.to(scores)[:, None]
        return scores

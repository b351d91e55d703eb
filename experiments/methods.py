"""Ways to get an answer out of a model, as an evaluation takes them; the ones here change nothing inside the model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..probes.yes_no import yes_no_probabilities
from ..scenes.errors import UserError


@runtime_checkable
class Method(Protocol):
    """What `evaluate` runs: plain decoding, contrast decoding, steering, …

    name: of its answers' file and its rows, so it tells its settings too (letters, digits and `_.+-`). sampled: whether answers
    depend on the seeds; such a method is run several times, and its rows are means over these.
    A method that also has `probabilities(vlm, inputs) -> (B, 2)`, of yes and of no, answers by these; they are kept beside the
    answers and scored as well. One that also has `check(vlm)` is asked before the first question whether it can be run: UserError.
    """

    name: str
    sampled: bool

    def answer(self, vlm, inputs, *, max_new_tokens: int, seeds: Sequence[int]) -> list[str]:
        """One answer a row of `inputs` (a batch of `vlm.prepare`). seeds: one a row, from the seed of the run and the id of the
        question: whoever draws draws from a generator of its own for each row, so that no answer depends on the batch."""
        ...


@dataclass(frozen=True)
class Greedy:
    """The likeliest token at every step: what everything else is compared with."""

    name: str = "greedy"
    sampled: bool = False

    def answer(self, vlm, inputs, *, max_new_tokens: int, seeds: Sequence[int]) -> list[str]:
        return vlm.generate(inputs, max_new_tokens=max_new_tokens)


@dataclass(frozen=True)
class Sampling:
    """Tokens drawn from the model's distribution, sharpened by 1 / temperature."""

    temperature: float = 1.0
    sampled: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature {self.temperature} must be above 0 and finite: use greedy for 0")

    @property
    def name(self) -> str:
        return "sampling" if self.temperature == 1 else f"sampling-t{self.temperature:g}"

    def answer(self, vlm, inputs, *, max_new_tokens: int, seeds: Sequence[int]) -> list[str]:
        draw = LogitsProcessorList([GumbelNoise(seeds, self.temperature)])
        return vlm.generate(inputs, max_new_tokens=max_new_tokens, logits_processor=draw)


@dataclass(frozen=True)
class FirstToken:
    """Yes or no, whichever all its spellings together are the likelier first token; a tie is neither."""

    name: str = "first-token"
    sampled: bool = False

    def probabilities(self, vlm, inputs) -> Tensor:
        """(B, 2): P(yes) and P(no)."""
        first = FirstStep()
        vlm.generate_ids(inputs, max_new_tokens=1, logits_processor=LogitsProcessorList([first]))
        return yes_no_probabilities(first.scores, vlm.tokenizer)

    def answer(self, vlm, inputs, *, max_new_tokens: int = 1, seeds: Sequence[int] = ()) -> list[str]:
        return [likelier(*pair) for pair in self.probabilities(vlm, inputs).tolist()]


def likelier(yes: float, no: float) -> str:
    """ "yes", "no", or "" for a tie."""
    return "yes" if yes > no else "no" if no > yes else ""


class GumbelNoise(LogitsProcessor):
    """Turns taking the likeliest token into drawing one: argmax(logits / temperature + Gumbel noise) is a draw from the softmax.

    Every row has its generator, on the CPU, so that a draw depends on neither the batch nor the device. seeds: one a row.
    """

    def __init__(self, seeds: Sequence[int], temperature: float = 1.0):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if len(scores) != len(self.generators):
            raise ValueError(f"{len(scores)} rows for {len(self.generators)} seeds: give one seed a row, and no beams")
        drawn = torch.stack(
            [torch.rand(scores.shape[1], generator=one, dtype=torch.float64) for one in self.generators]
        )
        noise = -torch.log(-torch.log(drawn.clamp(min=torch.finfo(torch.float64).tiny)))
        return scores.float() / self.temperature + noise.to(scores.device, torch.float32)


class FirstStep(LogitsProcessor):
    """Keeps the scores of the first step."""

    scores: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.scores = scores if self.scores is None else self.scores
        return scores


def row_seed(seed: int, name: str) -> int:
    """A seed in 0..2^63 for one question of one run."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "little") >> 1


METHODS = ("greedy", "sampling", "sampling-tT", "first-token")
"""The methods made here, T a temperature; `decoding.method_of` knows more."""


def open_method(name: str, others: Sequence[str] = ()) -> Method:
    """The built-in method of a name. Raises UserError, which also tells of the names in `others`."""
    plain = {made.name: made for made in (Greedy(), Sampling(), FirstToken())}
    if name in plain:
        return plain[name]
    kind, t, temperature = name.partition("-t")
    if kind == "sampling" and t:
        try:
            return Sampling(float(temperature))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
    raise UserError(f"method {name!r} is not known: use {', '.join((*METHODS, *others))} (e.g. sampling-t0.5)")

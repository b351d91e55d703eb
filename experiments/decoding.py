"""Named ways to decode, each with what it must be compared with: mitigations of hallucination and their controls."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..scenes.errors import UserError
from ..steering.attention import VisualAttentionBoost
from ..steering.contrast import ContrastDecoder, check_alpha, check_beta
from ..steering.exit import VisualExit
from ..steering.negatives import Blank, NoImage, NoisedImage, OutlierTokens, RandomTokens
from ..steering.prune import PruneVisual
from ..steering.schedules import M3ID, guidance
from ..steering.steer import steer
from .methods import Greedy, GumbelNoise, Method, Sampling, open_method
from .yes_bias import yes_bias_control


@dataclass(frozen=True)
class Decoding:
    """A contrast by name. negative: makes it of k; alpha: its default; inside: interventions on the full-picture rows."""

    title: str
    negative: Callable[[int | None], Any]
    alpha: Any = 1.0
    inside: tuple = ()


DECODINGS = {
    "damro": Decoding("DAMRO: outlier tokens only", lambda k: OutlierTokens(k=k)),
    "vcd": Decoding("VCD: noised picture", lambda k: NoisedImage()),
    "no-image": Decoding("no picture", lambda k: NoImage()),
    "m3id": Decoding("M3ID: no picture, growing strength", lambda k: NoImage(), M3ID()),
    "pai": Decoding(
        "PAI: no picture, attention boosted", lambda k: NoImage(), guidance(1.1), (VisualAttentionBoost(),)
    ),
    "random-tokens": Decoding("random tokens only", lambda k: RandomTokens(k=k)),
    "blank": Decoding("blank picture", lambda k: Blank()),
}


@dataclass(frozen=True)
class Contrasted:
    """One of DECODINGS as a method. alpha: default, the decoding's own; k: tokens kept, where it keeps some. sampled: tokens are drawn
    behind the contrast, at temperature 1."""

    decoding: str
    alpha: float | None = None
    beta: float | None = 0.1
    k: int | None = None
    interventions: tuple = ()
    sampled: bool = False

    def __post_init__(self):
        if self.decoding not in DECODINGS:
            raise UserError(f"decoding {self.decoding!r} is not known: use plain, {', '.join(DECODINGS)}")
        if self.alpha is not None:
            check_alpha(self.alpha)
        check_beta(self.beta)
        if self.k is not None and self.decoding not in ("damro", "random-tokens"):
            raise UserError(f"k={self.k}: {self.decoding} keeps no tokens; k is for damro and random-tokens")

    @property
    def name(self) -> str:
        own = [f"a{self.alpha:g}"] if self.alpha is not None else []
        own += ["b0" if self.beta is None else f"b{self.beta:g}"] if self.beta != 0.1 else []
        own += [f"k{self.k}"] if self.k is not None else []
        own += ["sampled"] if self.sampled else []
        return "-".join([self.decoding, *own])

    @property
    def strength(self):
        return DECODINGS[self.decoding].alpha if self.alpha is None else self.alpha

    def decoder(self, vlm) -> ContrastDecoder:
        made = DECODINGS[self.decoding]
        inside = (*made.inside, *self.interventions)
        # two branches cannot share a cache out of which one of them lost tokens
        engine = "two_calls" if any(isinstance(one, PruneVisual | VisualExit) for one in inside) else "two_rows"
        negative = made.negative(self.k)
        return ContrastDecoder(vlm, negative, alpha=self.strength, beta=self.beta, interventions=inside, engine=engine)

    def check(self, vlm) -> None:
        """Raises UserError for a model that has no such negative, or no place for an intervention."""
        check_interventions(vlm, self.decoder(vlm).interventions)

    def answer(self, vlm, inputs, *, max_new_tokens: int, seeds: Sequence[int] = ()) -> list[str]:
        if not any(
            name.startswith("pixel") for name in inputs.tensors
        ):  # as rows without a picture among others: only masked
            plain = MaskedSampling(self.beta or 1e-9) if self.sampled else None
            steered = Steered(self.name, (*DECODINGS[self.decoding].inside, *self.interventions), plain)
            return steered.answer(vlm, inputs, max_new_tokens=max_new_tokens, seeds=seeds)
        drawn = {"do_sample": True, "top_k": 0, "seeds": seeds} if self.sampled else {}
        return self.decoder(vlm).generate(inputs, max_new_tokens=max_new_tokens, **drawn)


@dataclass(frozen=True)
class Steered:
    """Another method inside a `steer` with these interventions."""

    name: str
    interventions: tuple = ()
    within: Method | None = None

    @property
    def sampled(self) -> bool:
        return self.within is not None and self.within.sampled

    def check(self, vlm) -> None:
        """Raises UserError for a model that has no place for an intervention."""
        check_interventions(vlm, self.interventions)

    def answer(self, vlm, inputs, *, max_new_tokens: int, seeds: Sequence[int] = ()) -> list[str]:
        with steer(vlm, *self.interventions) if self.interventions else nullcontext():
            if self.within is None:
                return vlm.generate(inputs, max_new_tokens=max_new_tokens)
            return self.within.answer(vlm, inputs, max_new_tokens=max_new_tokens, seeds=seeds)


def check_interventions(vlm, interventions: Sequence) -> None:
    """UserError for one that this model has no place for."""
    for one in interventions:
        one.edits(vlm)


@dataclass(frozen=True)
class MaskedSampling:
    """Tokens drawn at temperature 1 among those with p >= beta max p: what the plausibility mask does by itself."""

    beta: float = 0.1
    sampled: bool = True

    @property
    def name(self) -> str:
        return f"sampling-b{self.beta:g}"

    def answer(self, vlm, inputs, *, max_new_tokens: int, seeds: Sequence[int]) -> list[str]:
        draw = LogitsProcessorList([_Plausible(self.beta), GumbelNoise(seeds)])
        return vlm.generate(inputs, max_new_tokens=max_new_tokens, logits_processor=draw)


class _Plausible(LogitsProcessor):
    def __init__(self, beta: float):
        check_beta(beta)
        self.floor = math.log(beta)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + self.floor, -torch.inf)


def open_decoding(name: str) -> Contrasted | None:
    """The contrast of a name such as `damro`, `damro-a2-k10`, `vcd-a1-b0.2` or `no-image-b0` (b0: no mask); None for other names.
    `-sampled` at its end: tokens are drawn."""
    kind = next((one for one in DECODINGS if name == one or name.startswith(f"{one}-")), None)
    if kind is None:
        return None
    settings = re.fullmatch(r"(?:-a([\d.]+))?(?:-b([\d.]+))?(?:-k(\d+))?(-sampled)?", name[len(kind) :])
    if settings is None:
        raise UserError(
            f"method {name!r}: settings of {kind} are -aALPHA, -bBETA, -kTOKENS and -sampled, in this order ({kind}-a1-b0.1)"
        )
    alpha, beta, k, sampled = settings.groups()
    try:
        beta = 0.1 if beta is None else float(beta) or None
        alpha, k = None if alpha is None else float(alpha), None if k is None else int(k)
        return Contrasted(kind, alpha, beta, k, sampled=bool(sampled))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"method {name!r}: alpha and beta are numbers, e.g. {kind}-a1-b0.1") from error


def method_of(name: str) -> Method:
    """The method of a name: one of `methods.METHODS`, a contrast as `open_decoding` takes it, or `sampling-bB` (draws behind the
    plausibility mask alone). Raises UserError."""
    if contrast := open_decoding(name):
        return contrast
    if masked := re.fullmatch(r"sampling-b([\d.]+)", name):
        return MaskedSampling(float(masked[1]))
    return open_method(name, ("sampling-bB", *DECODINGS))


def with_controls(methods: Sequence[Method], vlm, benchmark) -> list[Method]:
    """The methods, and where there is a contrast among them what it must beat: greedy first, then `controls` of the first one.

    The bias towards yes is tuned on other pictures than those that are judged, see `yes_bias_control`."""
    contrast = next((method for method in methods if isinstance(method, Contrasted)), None)
    if contrast is None:
        return list(methods)
    bias = yes_bias_control(vlm, benchmark)
    wanted = [Greedy(), *methods, *controls(contrast, yes_bias=bias)]
    return list({method.name: method for method in wanted}.values())


def controls(method: Contrasted, *, yes_bias: Method | None = None) -> list[Method]:
    """The six controls that a contrast must beat, plain greedy apart (which every comparison has): sampling behind the mask
    alone; sampling sharpened as the contrast sharpens, at temperature 1 / (1 + alpha); a bias towards yes tuned on held-out
    pictures (where answers are yes or no: yes_bias); the same contrast with no picture, and with random tokens. One whose tokens are
    drawn must beat plain sampling, too."""
    alpha = method.strength if isinstance(method.strength, float | int) else 1.0
    made: list[Method] = [Sampling()] if method.sampled else []
    made += [MaskedSampling(method.beta or 1e-9), Sampling(round(1 / (1 + alpha), 3))]
    made += [yes_bias] if yes_bias is not None else []
    for other in ("no-image", "random-tokens"):
        k = method.k if other == "random-tokens" else None
        made += [replace(method, decoding=other, k=k, alpha=alpha)] if method.decoding != other else []
    return made

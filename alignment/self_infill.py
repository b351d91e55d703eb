"""Masks filled by a VLM that chooses among candidates: the model that is tuned, so that rejected texts are its own, or another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .infill import Fill, Shown
from .losses import IGNORED, sequence_logps
from .masking import MaskedText, Masker


@dataclass(frozen=True)
class _Beam:
    strings: tuple[str, ...]
    logp: float
    tokens: int


class ConstrainedInfill:
    """The candidates of each mask are scored by teacher forcing under the picture, from left to right, with the frame up to the
    next mask behind them, so that what follows counts as well; a beam keeps the best.

    The frame stays as it is, so a pair differs in grounded words only. The score is the sum of the log-probabilities of the text so
    far; a `Fill`'s logp is the mean a token. model: a `VLM`; name: "self" or "local".
    """

    deterministic = True

    def __init__(self, vlm, masker: Masker, *, name: str = "self", batch_size: int = 32, max_new_tokens: int = 96):
        self.vlm, self.masker, self.name = vlm, masker, name
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.version = f"constrained-1:{masker.name}:{vlm.fingerprint()}:{max_new_tokens}"

    def caption(self, shown: Sequence[Shown], prompts: Sequence[str], seed: int) -> list[str]:
        texts = []
        for i in range(0, len(shown), self.batch_size):
            images = [[one.image] for one in shown[i : i + self.batch_size]]
            inputs = self.vlm.prepare(images, list(prompts[i : i + self.batch_size]))
            texts += self.vlm.generate(inputs, max_new_tokens=self.max_new_tokens)
        return texts

    def fill(
        self, masked: Sequence[MaskedText], shown: Sequence[Shown], prompts: Sequence[str], n: int, seed: int
    ) -> list[list[Fill]]:
        beams = [[_Beam((), 0.0, 1)] for _ in masked]
        for k in range(max((len(text.spans) for text in masked), default=0)):
            asked = [(i, (*beam.strings, word)) for i, text in enumerate(masked) if k < len(text.spans)
                     for beam in beams[i] for word in dict.fromkeys(self.masker.candidates(text, text.spans[k]))]  # fmt: skip
            scores = self._scores([(self._begun(masked[i], s), shown[i], prompts[i]) for i, s in asked])
            for i in {i for i, _ in asked}:
                own = [_Beam(s, *score) for (j, s), score in zip(asked, scores, strict=True) if j == i]
                beams[i] = sorted(own, key=lambda beam: (-beam.logp, beam.strings))[:n]
        return [
            [Fill(self.masker.agree(text.filled(b.strings)), b.strings, b.logp / b.tokens) for b in best if b.strings]
            for text, best in zip(masked, beams, strict=True)
        ]

    def _begun(self, masked: MaskedText, strings: tuple[str, ...]) -> str:
        """The text with its first masks filled, up to the next one."""
        frame = masked.frame
        text = frame[0] + "".join(s + piece for s, piece in zip(strings, frame[1:], strict=False))
        return self.masker.agree(text).rstrip()

    def _scores(self, asked: list[tuple[str, Shown, str]]) -> list[tuple[float, int]]:
        """(sum of log-probabilities of the answer's tokens, their number) of each text."""
        found: list[tuple[float, int]] = []
        for start in range(0, len(asked), self.batch_size):
            part = asked[start : start + self.batch_size]
            found += answer_logps(
                self.vlm, [one.image for _, one, _ in part], [p for *_, p in part], [text for text, *_ in part]
            )
        return found


@torch.no_grad()
def answer_logps(vlm, images, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[float, int]]:
    """For each row: the sum of the log-probabilities of the answer's tokens in nats, and how many they are."""
    inputs = vlm.prepare([[image] for image in images], list(prompts), list(answers))
    answer = inputs.spans.mask("answer")
    ids = inputs.tensors["input_ids"]
    logits = vlm.forward(inputs, use_cache=False).logits
    sums = sequence_logps(logits[:, -ids.shape[1] :], ids.masked_fill(~answer, IGNORED))
    return list(zip(sums.tolist(), answer.sum(1).clamp(min=1).tolist(), strict=True))

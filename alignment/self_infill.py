"""Masks filled by a VLM that chooses among candidates: the model that is tuned, so that rejected texts are its own, or another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    far; a `Fill`'s logp is the mean a token. model: a `VLM`; name: "self" or "local". shortlist: how many candidates of a mask are
    scored with what follows, those whose first token is the likeliest after what stands before; None: all of them.
    """

    deterministic = True

    def __init__(
        self,
        vlm,
        masker: Masker,
        *,
        name: str = "self",
        shortlist: int | None = 6,
        batch_size: int = 32,
        max_new_tokens: int = 96,
    ):
        self.vlm, self.masker, self.name, self.shortlist = vlm, masker, name, shortlist
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.version = f"constrained-1:{masker.name}:{vlm.fingerprint()}:{shortlist}:{max_new_tokens}"

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
            begun = [(i, beam) for i, text in enumerate(masked) if k < len(text.spans) for beam in beams[i]]
            words = self._words(k, [(masked[i], beam.strings, shown[i], prompts[i]) for i, beam in begun])
            asked = [(i, (*beam.strings, word)) for (i, beam), some in zip(begun, words, strict=True) for word in some]
            scores = self._scores([(self._begun(masked[i], s), shown[i], prompts[i]) for i, s in asked])
            for i in {i for i, _ in asked}:
                own = [_Beam(s, *score) for (j, s), score in zip(asked, scores, strict=True) if j == i]
                beams[i] = sorted(own, key=lambda beam: (-beam.logp, beam.strings))[:n]
        return [
            [Fill(self.masker.agree(text.filled(b.strings)), b.strings, b.logp / b.tokens) for b in best if b.strings]
            for text, best in zip(masked, beams, strict=True)
        ]

    def _words(self, k: int, begun: list[tuple[MaskedText, tuple[str, ...], Shown, str]]) -> list[list[str]]:
        """The candidates of the k-th mask after each beginning, no more than the shortlist has room for."""
        words = [list(dict.fromkeys(self.masker.candidates(text, text.spans[k]))) for text, *_ in begun]
        if self.shortlist is None:
            return words
        rows, firsts = [], []
        for row, (text, strings, shown, prompt) in enumerate(begun):
            before = self._begun(text, strings)
            first = self._first_tokens(before, words[row]) if len(words[row]) > self.shortlist else None
            if first is not None:
                rows.append((row, before, shown, prompt))
                firsts.append(first)
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            logits = last_logits(
                self.vlm, [s.image for *_, s, _ in part], [p for *_, p in part], [before for _, before, *_ in part]
            )
            for (row, *_), first, logit in zip(part, firsts[start:], logits, strict=False):
                best = logit[first].argsort(descending=True, stable=True)[: self.shortlist].tolist()
                words[row] = [words[row][i] for i in best]
        return words

    def _first_tokens(self, before: str, words: list[str]) -> list[int] | None:
        """The first token each word adds to a text; None where one changes the text's own tokens, so that it has none."""
        if not before:
            return None
        ids = self.vlm.tokenizer([before, *(f"{before} {word}" for word in words)], add_special_tokens=False)
        own, *longer = ids["input_ids"]
        if any(one[: len(own)] != own or len(one) == len(own) for one in longer):
            return None
        return [one[len(own)] for one in longer]

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
def last_logits(vlm, images, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
    """(B, V) logits behind the last token of each answer; rows are left-padded, so it is the last of all."""
    inputs = vlm.prepare([[image] for image in images], list(prompts), list(answers))
    return vlm.forward(inputs, use_cache=False).logits[:, -1].float().cpu()


@torch.no_grad()
def answer_logps(vlm, images, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[float, int]]:
    """For each row: the sum of the log-probabilities of the answer's tokens in nats, and how many they are."""
    inputs = vlm.prepare([[image] for image in images], list(prompts), list(answers))
    answer = inputs.spans.mask("answer")
    ids = inputs.tensors["input_ids"]
    logits = vlm.forward(inputs, use_cache=False).logits
    sums = sequence_logps(logits[:, -ids.shape[1] :], ids.masked_fill(~answer, IGNORED))
    return list(zip(sums.tolist(), answer.sum(1).clamp(min=1).tolist(), strict=True))

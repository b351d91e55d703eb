"""Whether a text is true of a picture: by the scene's graph, or by asking the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ..probes.yes_no import yes_no_probabilities
from ..scenes.answers import answer_to, is_question
from ..scenes.claims import contradicts_itself, holds, readable
from .infill import Shown

STATEMENT = 'Is this statement true of the image? "{text}" Answer yes or no.'


class Judge(Protocol):
    """name: noted with every pair. exact: truth is 0 or 1 and certain. A call gives for each text how true it is of its picture, in
    0..1, or None where that cannot be told."""

    name: str
    exact: bool

    def __call__(self, texts: Sequence[str], shown: Sequence[Shown]) -> list[float | None]: ...


class SceneJudge:
    """A text in the world's grammar against the scene: every claim must hold, or it must be the answer to what was asked. A text that
    contradicts itself cannot be judged."""

    name, exact = "scene-graph", True

    def __call__(self, texts: Sequence[str], shown: Sequence[Shown]) -> list[float | None]:
        return [self._truth(text, one) for text, one in zip(texts, shown, strict=True)]

    @staticmethod
    def _truth(text: str, shown: Shown) -> float | None:
        scene = shown.truth.get("scene")
        if scene is None:
            return None
        if " " not in text and is_question(shown.asked):
            right = answer_to(shown.asked, scene)
            return float(text == right)
        return float(holds(text, scene)) if readable(text) and not contradicts_itself(text) else None


class ModelJudge:
    """P(yes) / (P(yes) + P(no)) of the model's first token when it is asked whether the statement is true; for natural images."""

    exact = False

    def __init__(self, vlm, *, question: str = STATEMENT, batch_size: int = 16):
        self.vlm, self.question, self.batch_size = vlm, question, batch_size
        self.name = f"yes-no:{vlm.fingerprint()}"

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], shown: Sequence[Shown]) -> list[float | None]:
        found: list[float | None] = []
        for i in range(0, len(texts), self.batch_size):
            asked = [self.question.format(text=text) for text in texts[i : i + self.batch_size]]
            inputs = self.vlm.prepare([[one.image] for one in shown[i : i + self.batch_size]], asked)
            step = self.vlm.model.generate(
                **inputs.tensors, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_scores=True
            )
            both = yes_no_probabilities(step.scores[0], self.vlm.tokenizer)
            found += (both[:, 0] / both.sum(1).clamp(min=1e-12)).tolist()
        return found

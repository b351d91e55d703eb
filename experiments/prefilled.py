"""Prompts read once and answered many times: what an intervention on the answer does not reach is kept in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from ..models.inputs import Inputs
from ..models.passes import telling
from ..scenes.sample import Sample


class Prefilled:
    """Samples whose prompts were read up to their last position, which with the answer is all that is run again.

    What `steer` has open where `answers` or `losses` is called acts. Right only for interventions that leave earlier positions
    as they are: positions "last_prompt", "generated" and -1 (the prompt's last position, and on through the answer). For
    decoder-only models whose pictures stand in the sequence.
    """

    def __init__(self, vlm, samples: Sequence[Sample], batch_size: int = 512):
        self.vlm, self.samples = vlm, list(samples)
        order = sorted(range(len(self.samples)), key=lambda i: len(self.samples[i].prompt))  # little padding
        self.batches = [self._read(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return len(self.samples)

    def answers(self, max_new_tokens: int) -> list[str]:
        """Greedy answers, in the order of the samples."""
        answers = [""] * len(self)
        for rows, inputs, cache in self.batches:
            texts = self.vlm.generate(inputs, max_new_tokens=max_new_tokens, past_key_values=deepcopy(cache))
            for i, text in zip(rows, texts, strict=True):
                answers[i] = text
        return answers

    def losses(self, texts: Sequence[str]) -> Tensor:
        """(N,) nats a token of a text for every sample, its end token counted, fed as the answer."""
        tokenizer = self.vlm.tokenizer
        told = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
        losses = torch.full((len(self),), torch.nan)
        for rows, inputs, cache in self.batches:
            answers, ids = [told[i] for i in rows], inputs.tensors["input_ids"]
            longest = max(map(len, answers))
            labels = torch.tensor([one + [-100] * (longest - len(one)) for one in answers], device=ids.device)
            mask = pad(inputs.tensors["attention_mask"], (0, longest - 1), value=1)  # behind a text nothing is scored
            fed = torch.cat([ids[:, -1:], labels[:, :-1].clamp_min(0)], 1)
            with telling(inputs.spans), torch.no_grad():
                logits = self.vlm.model(
                    input_ids=fed, attention_mask=mask, position_ids=_positions(mask)[:, -longest:],
                    past_key_values=deepcopy(cache),
                ).logits  # fmt: skip
            each = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
            losses[rows] = (each.sum(1) / (labels >= 0).sum(1)).cpu()
        return losses

    def _read(self, rows: list[int]) -> tuple[list[int], Inputs, object]:
        """A batch without its pictures, and the cache of all positions but the last."""
        some = [self.samples[i] for i in rows]
        inputs = self.vlm.prepare([one.images for one in some], [one.prompt for one in some])
        mask = inputs.tensors["attention_mask"]
        begun = {k: v[:, :-1] if v.shape[:2] == mask.shape else v for k, v in inputs.tensors.items()}
        with torch.no_grad():
            cache = self.vlm.model(**begun, position_ids=_positions(mask)[:, :-1], use_cache=True).past_key_values
        seen = {k: v for k, v in inputs.tensors.items() if not k.startswith("pixel")}
        return rows, replace(inputs, tensors=seen), cache


def _positions(mask: Tensor) -> Tensor:
    """(B, T) numbers of the positions as `generate` counts them: padding on the left is left out."""
    return (mask.cumsum(1) - 1).clamp_min(0)

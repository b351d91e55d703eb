"""The contrast for code that owns the call of `generate`: a logits processor with a negative branch of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ..models.inputs import Inputs
from ..models.vlm import VLM
from ..scenes.errors import UserError
from .branches import Branch
from .contrast import ContrastDecoder
from .negatives import Negative
from .prefill import check_inputs, reading
from .schedules import Schedule


class ContrastProcessor(LogitsProcessor):
    """The contrast as a logits processor for plain `generate`: `vlm.generate(inputs, logits_processor=[processor])`.

    For code that owns the call of `generate`. It reads the prompt a second time and runs the negative branch in a pass of its
    own a token, so it costs what `ContrastDecoder` saves. transformers runs it behind penalties and before temperature, top-k
    and top-p. One batch, whose inputs it was made with; a generation begun again starts afresh, `reset` also frees the cache.
    Raises UserError for beams and several answers a prompt, whose rows cannot be told apart here.
    """

    def __init__(
        self, vlm: VLM, negative: Negative, inputs: Inputs, *, alpha: float | Schedule = 1.0, beta: float | None = 0.1
    ):
        check_inputs(inputs)
        self.decoder, self.inputs = ContrastDecoder(vlm, negative, alpha=alpha, beta=beta), inputs
        self.begins: int | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets the generation that is under way."""
        self.branch: Branch | None = None
        self.seen: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if len(input_ids) != len(self.inputs):
            raise UserError(
                f"{len(input_ids)} rows for {len(self.inputs)} prompts: the contrast cannot follow beams or several answers a "
                "prompt here (num_beams=1; ContrastDecoder takes num_return_sequences)"
            )
        length = input_ids.shape[1]
        if self.seen is None or length == self.begins:
            self.begins, self.branch = length, self._start()
        elif length == self.seen.shape[1] + 1 and torch.equal(input_ids[:, :-1], self.seen):
            self.branch.step(input_ids[:, -1])
        else:
            raise UserError(
                "the tokens do not follow those of the last call: reset() the processor before another generation"
            )
        self.seen = input_ids.clone()
        decoder = self.decoder
        return decoder.contrasted(scores, self.branch.logits, length - self.begins + 1)(decoder.beta)

    def _start(self) -> Branch:
        decoder, made = self.decoder, []
        with reading(decoder.vlm, self.inputs, decoder.sites) as prompt:

            def grab(model, input_ids, *, logits_processor, stopping_criteria, generation_config, **given):
                made.append(decoder.negative.branch(prompt(model, input_ids, given)))
                return input_ids

            decoder.vlm.generate_ids(self.inputs, custom_generate=grab, max_new_tokens=1)
        return made[0]

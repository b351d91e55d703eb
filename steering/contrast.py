"""Contrast decoding: the next token is scored by what the picture adds over a negative branch that sees less of it.

One engine for DAMRO, VCD, M3ID, PAI's guidance and their controls, which differ in the negative branch (`negatives.py`), in
alpha (`schedules.py`) and in beta: score = (1 + alpha) l+ - alpha l-, among the tokens with p+ >= beta max p+.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from transformers import StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode

from ..models.inputs import Inputs
from ..models.vlm import VLM
from ..scenes.errors import UserError
from .branches import join
from .negatives import Negative
from .prefill import check_inputs, reading
from .schedules import Schedule
from .steer import steer

ENGINES = ("two_rows", "two_calls")


def contrast(positive: Tensor, negative: Tensor, *, alpha: float | Tensor, beta: float | None) -> Tensor:
    """Scores (B, V), float32, of logits or log-probabilities (B, V) with and without what is contrasted.

    (1 + alpha) l+ - alpha l-, computed as l+ + alpha (l+ - l-) so that equal branches give l+ itself; -inf where l+ is below
    max l+ + ln beta (beta=None: no mask), which hangs on the positive branch alone and never takes its best token. alpha: a
    number, or one a row (B, 1). What is -inf in the positive branch stays -inf, whatever the negative; what is -inf in the
    negative alone is not contrasted; so no infinities meet to a NaN. Raises UserError for alpha below 0 or beta outside
    (0, 1], ValueError for shapes that differ. Source: DAMRO (arXiv 2410.04514), VCD (arXiv 2311.16922).
    """
    check_alpha(alpha)
    check_beta(beta)
    if positive.shape != negative.shape:
        raise ValueError(
            f"logits of two branches must agree in shape, got {(*positive.shape,)} and {(*negative.shape,)}"
        )
    positive, negative = positive.float(), negative.float()
    both = torch.isfinite(positive) & torch.isfinite(negative)
    added = torch.where(both, positive - negative, 0)
    scores = positive + alpha * added
    if beta is not None:
        scores = scores.masked_fill(positive < positive.amax(-1, keepdim=True) + math.log(beta), -torch.inf)
    return scores


def check_alpha(alpha) -> None:
    """UserError for a strength below 0."""
    least = float(alpha.min()) if isinstance(alpha, Tensor) else alpha
    if not (isinstance(least, int | float) and math.isfinite(least) and least >= 0):
        raise UserError(f"alpha={least} must be 0 (no contrast) or more")


def check_beta(beta: float | None) -> None:
    """UserError for a cut-off outside (0, 1]."""
    if beta is not None and not 0 < beta <= 1:
        raise UserError(f"beta={beta} must be in (0, 1], or None for no mask")


class ContrastDecoder:
    """Decodes a batch with a negative branch beside it: two rows a sample, one cache, one pass a token.

    negative: `OutlierTokens` (DAMRO), `NoisedImage` (VCD), `NoImage` (M3ID, PAI), `RandomTokens`, `Blank`. alpha: a number or
    a schedule such as `M3ID()`. beta: see `contrast`. interventions: see `steer`; they act on the full-picture rows only.
    (Without them, a `steer` that is open around the decoder changes both branches.) engine: "two_calls" runs the branches one
    after the other on caches of their own: for comparison, for interventions that take positions out of the cache, and for
    one prompt on a CPU in fp32, where two rows are multiplied at several times the cost of one.

    Nothing is kept between calls. Raises UserError for settings out of range and for a negative that this model cannot give.
    """

    def __init__(
        self, vlm: VLM, negative: Negative, *, alpha: float | Schedule = 1.0, beta: float | None = 0.1,
        interventions: Sequence = (), engine: str = "two_rows",
    ):  # fmt: skip
        if not callable(alpha):
            check_alpha(alpha)
        check_beta(beta)
        if engine not in ENGINES:
            raise UserError(f"engine={engine!r} must be one of {', '.join(ENGINES)}")
        self.vlm, self.negative, self.alpha, self.beta = vlm, negative, alpha, beta
        self.interventions, self.engine = tuple(interventions), engine
        self.sites = negative.sites(vlm)

    @property
    def tokenizer(self):
        return self.vlm.tokenizer

    def generate(self, inputs: Inputs, *, skip_special_tokens: bool = True, **options) -> list[str]:
        """The answers. Options: those of `generate_ids`."""
        ids = self.generate_ids(inputs, **options)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens)]

    def generate_ids(self, inputs: Inputs, **options) -> Tensor:
        """Ids of the new tokens only, (B * num_return_sequences, new). Options: those of `output`."""
        return self.output(inputs, **options).sequences

    def stream(self, inputs: Inputs, **options) -> Iterator[str]:
        """The answer to a batch of one, piece by piece; as `VLM.stream`."""
        return VLM.stream(self, inputs, **options)  # which asks of its model nothing but `generate_ids` and a tokenizer

    def output(
        self, inputs: Inputs, *, seeds: Sequence[int] | None = None, generators: Sequence[torch.Generator] | None = None,
        num_return_sequences: int = 1, streamer=None, **options,
    ) -> GenerateDecoderOnlyOutput:  # fmt: skip
        """What transformers' `generate` gives with `return_dict_in_generate`; `sequences` are the new tokens only, `logits`
        the scores of the contrast, `scores` these after the options' processors (each where asked for).

        Takes every option of `generate` for greedy decoding and sampling (greedy, 64 tokens unless asked otherwise). Contrast
        and mask come first, then penalties, temperature, top-k, top-p. seeds, generators: one an answer, for draws that do
        not hang on the rest of the batch. Raises UserError for beams and other searches, and for prompts without a picture.
        """
        check_inputs(inputs)
        rows = len(inputs) * num_return_sequences
        if num_return_sequences > 1 and not options.get("do_sample"):
            raise UserError(
                f"num_return_sequences={num_return_sequences} greedy answers are all one: add do_sample=True"
            )
        if seeds is not None:
            generators = [torch.Generator(self.vlm.device).manual_seed(seed) for seed in seeds]
        if generators is not None and len(generators) != rows:
            raise UserError(f"{len(generators)} generators or seeds for {rows} answers: give one an answer")
        if stop_strings := options.pop(
            "stop_strings", None
        ):  # transformers keeps the tokenizer from a loop of one's own
            stop = StopStringCriteria(options.pop("tokenizer", None) or self.tokenizer, stop_strings)
            options["stopping_criteria"] = StoppingCriteriaList([*options.get("stopping_criteria", ()), stop])
        found: list[GenerateDecoderOnlyOutput] = []
        with self._steered(), reading(self.vlm, inputs, self.sites) as prompt:

            def decode(model, input_ids, *, logits_processor, stopping_criteria, generation_config, **given):
                check_mode(generation_config)
                prefill = prompt(model, input_ids, given, steered=bool(self.interventions))
                branches = [prefill.positive(), self.negative.branch(prefill)]
                del prefill
                branches = [branch.repeated(num_return_sequences) for branch in branches]
                result = self._decode(
                    branches, input_ids.repeat_interleave(num_return_sequences, 0), logits_processor,
                    stopping_criteria, generation_config, generators, streamer,
                )  # fmt: skip
                found.append(result)
                return input_ids

            options = {"return_dict_in_generate": True, "streamer": streamer} | options
            self.vlm.generate_ids(inputs, custom_generate=decode, **options)
        return found[0]

    def _steered(self):
        return steer(self.vlm, *self.interventions) if self.interventions else ExitStack()

    def _decode(self, branches, ids, processors, criteria, config, generators, streamer) -> GenerateDecoderOnlyOutput:
        if self.engine == "two_rows":
            branches = [join(*branches)]
        start, rows = ids.shape[1], len(ids)
        unfinished = torch.ones(rows, dtype=torch.bool, device=ids.device)
        ends = any(hasattr(one, "eos_token_id") for one in criteria)
        pad = _pad_token(config)
        logits, scores = [], []
        while True:
            positive, negative = torch.cat([branch.logits for branch in branches]).to(ids.device).chunk(2)
            scored = self.contrasted(positive, negative, ids.shape[1] - start + 1)
            chosen = processors(ids, scored(self.beta))
            # a mask can leave nothing but what the options forbid (the end before min_new_tokens): then of all tokens
            empty = (chosen == -torch.inf).all(-1, keepdim=True)
            if empty.any():
                chosen = torch.where(empty, processors(ids, scored(None)), chosen)
            if config.output_logits:
                logits.append(scored(self.beta))
            if config.output_scores:
                scores.append(chosen)
            tokens = sample(chosen, generators) if config.do_sample else chosen.argmax(-1)
            if ends:
                tokens = torch.where(unfinished, tokens, pad)
            ids = torch.cat([ids, tokens[:, None]], 1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            unfinished = unfinished & ~criteria(ids, tuple(scores) or None)
            if not unfinished.any():
                break
            for branch in branches:
                branch.step(tokens.to(self.vlm.device).repeat(2 // len(branches)))
        if streamer is not None:
            streamer.end()
        return GenerateDecoderOnlyOutput(
            sequences=ids[:, start:], scores=tuple(scores) or None, logits=tuple(logits) or None
        )

    def contrasted(self, positive: Tensor, negative: Tensor, t: int):
        """The scores of token t as a function of beta. The image placeholder is never an answer: it would ask for a picture."""
        positive, negative = (_without_placeholder(self.vlm, logits) for logits in (positive, negative))
        alpha = self.alpha(t, positive) if callable(self.alpha) else self.alpha
        return lambda beta: contrast(positive, negative, alpha=alpha, beta=beta)


def check_mode(config) -> None:
    """UserError for searches: only greedy decoding and sampling follow one answer a row."""
    if config.num_beams > 1:
        raise UserError(f"num_beams={config.num_beams}: a contrast follows one answer a row, not beams (num_beams=1)")
    if config.num_return_sequences > 1:
        raise UserError("give num_return_sequences as an option of its own, not in a generation config")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise UserError(f"{mode.value} cannot be contrasted: use greedy decoding or do_sample=True")


def sample(scores: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Tokens (B,) drawn from softmax(scores), each row from its own generator where there are any."""
    probabilities = scores.softmax(-1)
    if generators is None:
        return torch.multinomial(probabilities, 1)[:, 0]
    rows = zip(probabilities, generators, strict=True)
    return torch.cat([torch.multinomial(row.to(own.device), 1, generator=own).to(row.device) for row, own in rows])


def _without_placeholder(vlm: VLM, logits: Tensor) -> Tensor:
    token = vlm.anatomy.image_token_id
    logits = logits.float()
    if token >= logits.shape[-1]:
        return logits
    return logits.index_fill(-1, torch.tensor(token, device=logits.device), -torch.inf)


def _pad_token(config) -> int:
    pad, end = config.pad_token_id, config.eos_token_id
    if pad is None and end is not None:
        pad = end[0] if isinstance(end, Sequence) else end
    return pad if pad is not None else 0

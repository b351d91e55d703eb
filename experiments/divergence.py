"""How far a tuned model has moved from its reference: Kullback-Leibler divergence on answers that a model samples itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import VLM
from ..probes.bootstrap import Tally, ratio
from ..probes.extraction import said_tokens
from ..probes.measure import memory_is_told
from ..probes.reading import continued
from ..scenes.errors import UserError
from ..scenes.sample import Sample
from .methods import GumbelNoise, row_seed

DRAWS, LONGEST = 2, 64
"""Answers sampled for each prompt, and their longest, in tokens."""


def token_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) of next-token distributions, in nats: logits (..., V), (..., V) -> (...), float64.

    Summed over the whole vocabulary, not over what was sampled. Equal logits give exactly 0.
    """
    p, q = policy.double().log_softmax(-1), reference.double().log_softmax(-1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1).clamp(min=0)


def sample_kl(
    policy: VLM,
    reference: VLM,
    samples: Sequence[Sample],
    *,
    draws: int = DRAWS,
    max_new_tokens: int = LONGEST,
    seed: int = 0,
    batch_size: int = 32,
) -> pd.DataFrame:
    """KL(policy || reference) on what the policy samples at temperature 1, one row a sampled answer.

    Columns: id, draw, tokens (its end token counted), exact: the sum along the answer of the divergences between the two
    next-token distributions, plain: log policy(answer) - log reference(answer). Both have the same mean, the divergence of
    the distributions over answers (cut at max_new_tokens). The first, Rao-Blackwellised token by token, is never negative and mostly
    varies less (where models are far apart its sum may vary more). Nothing is truncated or sharpened: answers are drawn from the softmax itself, each from a seed of its own. Raises UserError.
    """
    if draws < 1 or max_new_tokens < 1 or not samples:
        raise UserError(
            f"{len(samples)} prompts, draws={draws}, max_new_tokens={max_new_tokens}: each must be at least 1"
        )
    asked = sorted((replace(sample, answer=None) for sample in samples), key=lambda sample: len(sample.prompt))
    rows = []
    for group in (True, False):  # with and without a picture, since a batch has pictures or has none
        some = [sample for sample in asked if bool(sample.images) == group]
        for start in range(0, len(some), batch_size):
            part = some[start : start + batch_size]
            for draw in range(draws):
                with torch.no_grad(), memory_is_told(batch_size):
                    rows += _rows(policy, reference, part, draw, max_new_tokens, seed)
    order = {sample.id: i for i, sample in enumerate(samples)}
    return pd.DataFrame(rows).sort_values(["id", "draw"], key=lambda c: c.map(order) if c.name == "id" else c, ignore_index=True)  # fmt: skip


def _rows(policy: VLM, reference: VLM, samples: Sequence[Sample], draw: int, longest: int, seed: int) -> list[dict]:
    inputs = policy.prepare([s.images for s in samples], [s.prompt for s in samples])
    noise = GumbelNoise([row_seed(seed + draw, sample.id) for sample in samples])
    said = said_tokens(policy, policy.generate_ids(inputs, max_new_tokens=longest, logits_processor=[noise]))
    whole, begins = continued(policy, inputs, said)
    logits = [model.forward(whole, use_cache=False).logits for model in (policy, reference)]
    rows = []
    for b, (sample, ids, begin) in enumerate(zip(samples, said, begins, strict=True)):
        at = slice(begin - 1, begin - 1 + len(ids))  # the logits before a token are those it was drawn from
        p, q = (one[b, at].double() for one in logits)
        drawn = torch.tensor(ids, device=p.device)[:, None]
        told = [one.log_softmax(-1).gather(-1, drawn).sum().item() for one in (p, q.to(p.device))]
        rows.append({"id": sample.id, "draw": draw, "tokens": len(ids), "exact": token_kl(p, q.to(p.device)).sum().item(),
                     "plain": told[0] - told[1]})  # fmt: skip
    return rows


def kl_tally(rows: pd.DataFrame) -> Tally:
    """What `sample_kl` gave, summed by prompt in the order of the prompts: nats_a_token, nats_an_answer, their plain_... estimates,
    and tokens_an_answer."""
    sums = rows.groupby("id", sort=False)[["exact", "plain", "tokens"]].sum()
    counts = np.column_stack([rows.groupby("id", sort=False).size(), sums]).astype(float)
    return Tally(counts, _kl)


def _kl(s: np.ndarray) -> dict[str, np.ndarray]:
    answers, exact, plain, tokens = np.moveaxis(s, -1, 0)
    return {
        "nats_a_token": ratio(exact, tokens),
        "nats_an_answer": ratio(exact, answers),
        "plain_nats_a_token": ratio(plain, tokens),
        "plain_nats_an_answer": ratio(plain, answers),
        "tokens_an_answer": ratio(tokens, answers),
    }

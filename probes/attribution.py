"""Direct logit attribution: how much each part of the decoder adds to the logit of a word, through the frozen final norm.

The residual stream is a sum of what the embedding, the attentions and the MLPs wrote into it. With the final norm's scale held
at the value it has, norm and unembedding are linear, and the logit is the sum of the parts' logits. Source: Elhage et al., "A
mathematical framework for transformer circuits" (2021), as TransformerLens has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.trace import site_names
from ..scenes.errors import UserError
from .vocabulary import widened

WRITTEN = ("attn_out", "mlp_out")
CLOSED = 1e-3
"""A block's attention and MLP are two parts where their outputs make up what it wrote, up to this share of its length."""


@dataclass(frozen=True)
class Attribution:
    """parts: names; values: (B, parts) what each adds to the logit; constant: (B,) what biases add; logits: (B,) the model's own,
    the sum of both; tokens, positions: (B,) of which word, and where."""

    parts: tuple[str, ...]
    values: Tensor
    constant: Tensor
    logits: Tensor
    tokens: Tensor
    positions: Tensor


def frozen_norm(norm, states: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """The final norm as the linear map that it is at `states` (B, D), applied to parts (C, B, D); and its bias (D,).

    For layer norms and root-mean-square norms of any kind, told from what they do: the gain and the centring are read off
    with two test vectors, the scale off the norm's own output.
    """
    signs = 1.0 - 2 * (torch.arange(states.shape[-1], device=states.device) % 2)
    probe = (signs - signs.mean()).to(states)  # mean 0 and no entry of 0
    bias = norm(torch.zeros_like(probe))
    centred = bool(torch.allclose(norm(torch.ones_like(probe)), bias, atol=1e-4))
    gain = (norm(probe) - bias) / probe

    def linear(x: Tensor) -> Tensor:
        return gain * (x - x.mean(-1, keepdim=True) if centred else x)

    plain, out = linear(states), norm(states) - bias
    scale = (plain * out).sum(-1, keepdim=True) / plain.square().sum(-1, keepdim=True)
    return linear(parts) * scale, bias


def direct_attribution(vlm, inputs, *, tokens: Tensor | None = None, positions: Tensor | None = None) -> Attribution:
    """What the embedding, every attention and every MLP add to the logit of a word, from chiasm's own sites.

    positions: (B,), default each row's last; tokens: (B,) ids, default the model's own top word there. Where a block's
    attention and MLP do not make up what it wrote (norms or gates behind them, linear attention, features added between
    blocks) the block is one part. Raises UserError for a position or token outside the batch or vocabulary.
    """
    written = [site for site in site_names(vlm.anatomy) if site.endswith(WRITTEN)]
    sites = ["embed", "blocks.*.resid_post", *written, "logits"]
    trace = vlm.trace(inputs, sites)
    return _attributed(vlm.anatomy, inputs, trace.tensors.get, tokens, positions)


def transformer_lens_attribution(
    vlm, inputs, *, tokens: Tensor | None = None, positions: Tensor | None = None
) -> Attribution:  # fmt: skip
    """`direct_attribution` from the cache of a TransformerLens bridge over a copy of the model. UserError where it has none."""
    bridge = vlm.transformer_lens()
    tensors = dict(inputs.tensors)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tensors.pop("input_ids"), **tensors)

    def read(site: str) -> Tensor | None:
        if site == "logits":
            return logits
        block, _, kind = site.rpartition(".")
        name = f"{block}.hook_{kind}" if block else "blocks.0.hook_resid_pre"
        return cache.cache_dict.get(name)

    return _attributed(vlm.anatomy, inputs, read, tokens, positions)


@torch.no_grad()
def _attributed(anatomy, inputs, read: Callable[[str], Tensor | None], tokens, positions) -> Attribution:
    device = anatomy.unembedding.weight.device
    real = inputs.spans.real.to(device)
    rows, places = torch.arange(len(real), device=device), torch.arange(real.shape[1], device=device)
    positions = torch.where(real, places, -1).amax(1) if positions is None else torch.as_tensor(positions).to(device)
    if positions.shape != rows.shape or not (0 <= int(positions.min()) <= int(positions.max()) < real.shape[1]):
        raise UserError(
            f"positions {positions.tolist()} must be one of 0..{real.shape[1] - 1} for each of the {len(rows)} rows"
        )

    def at(site: str) -> Tensor | None:
        value = read(site)
        return None if value is None else value.to(device)[rows, positions].float()

    logits = at("logits")
    tokens = logits.argmax(-1) if tokens is None else torch.as_tensor(tokens).to(device)
    if tokens.shape != rows.shape or not (0 <= int(tokens.min()) <= int(tokens.max()) < anatomy.vocab_size):
        raise UserError(
            f"tokens {tokens.tolist()} must be one of 0..{anatomy.vocab_size - 1} for each of the {len(rows)} rows"
        )
    parts = {"embed": at("embed")}
    stream = parts["embed"]
    for i in range(anatomy.n_layers):
        after, both = at(f"blocks.{i}.resid_post"), [at(f"blocks.{i}.{kind}") for kind in WRITTEN]
        wrote = after - stream
        if all(x is not None for x in both) and bool(
            ((sum(both) - wrote).norm(dim=1) <= CLOSED * wrote.norm(dim=1)).all()
        ):
            parts |= {f"blocks.{i}.{kind}": x for kind, x in zip(WRITTEN, both, strict=True)}
        else:
            parts[f"blocks.{i}"] = wrote
        stream = after
    normed, bias = frozen_norm(widened(anatomy.norm), stream, torch.stack(list(parts.values())))
    words = anatomy.unembedding.weight[tokens].float()
    constant = words @ bias.to(device)
    if getattr(anatomy.unembedding, "bias", None) is not None:
        constant = constant + anatomy.unembedding.bias[tokens].float()
    values = (normed.to(device) * words).sum(-1).T
    return Attribution(tuple(parts), values, constant, logits[rows, tokens], tokens, positions)

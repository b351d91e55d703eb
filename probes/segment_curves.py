"""From attention masses of a batch to curves over layers, by sample, query set and segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..models.spans import POST, Spans

QUERIES = ("post", "all", "gen", "last")
SEGMENTS = ("sink", "system", "before", "image", "after", "answer")
VERSIONS = ("raw", "without_sink", "without_image", "excess")
ANSWER = ("answer", "generated")

_MEMBERS = {
    "sink": ("bos",),
    "system": ("system",),
    "before": ("before",),
    "image": ("image",),
    "after": POST,
    "answer": ANSWER,
}
MEMBERS = torch.tensor([[float(name in _MEMBERS[segment]) for segment in SEGMENTS] for name in Spans.names])
"""(7, 6): which labels make which segment."""
_REST = torch.tensor([[float(name != left_out) for left_out in ("bos", "image")] for name in Spans.names])
"""(7, 2): what is left without the sink, and without the picture."""


def query_weights(spans: Spans, device=None, post: Tensor | None = None) -> Tensor:
    """(B, Q, T) weights of the queries of each set, summing to 1, or all 0 where a row has none. post: (B, T) bool instead
    of all text behind the first picture."""
    answer = spans.mask(*ANSWER)
    prompt = spans.real & ~answer
    places = torch.arange(spans.labels.shape[1], device=prompt.device)
    last = prompt & (places == torch.where(prompt, places, -1).amax(1, keepdim=True))
    sets = torch.stack([spans.mask(*POST) if post is None else post, spans.real, answer, last], 1).to(device).float()
    return sets / sets.sum(2, keepdim=True).clamp(min=1)


def curves_of(masses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """masses: (layers, B, H, T, 7) by label; weights: (B, Q, T) -> curves (3, B, Q, S, layers) as they are, without the sink
    key, without the picture; and the first by head, (layers, B, H, Q, S). Rows are renormalised before the mean."""
    rest = masses @ _REST.to(masses)
    scaled = [masses, *(masses / rest[..., i, None].clamp(min=1e-12) for i in (0, 1))]
    # A row with nothing left (the first position attends to itself alone) has nothing to say: it leaves the mean.
    told = (rest > 1e-12).to(masses.dtype)
    found = weights[None, :, None] @ torch.cat([*scaled, told], -1)  # (layers, B, H, Q, 3 * 7 + 2)
    by_segment = found[..., :-2].unflatten(-1, (3, -1)) @ MEMBERS.to(masses.device)
    curves = by_segment.mean(2)  # (layers, B, Q, 3, S)
    share = found[..., -2:].mean(2)
    curves[..., 1:, :] /= share.clamp(min=1e-12)[..., None]
    curves[..., 1, SEGMENTS.index("sink")] = 0
    curves[..., 2, SEGMENTS.index("image")] = 0
    return curves.permute(3, 1, 2, 4, 0), by_segment[..., 0, :]


def mean_curves(masses: Tensor, weights: Tensor) -> Tensor:
    """masses: (layers, B, H, T, S) of any segments; weights: (B, Q, T) -> their curves (S, B, Q, layers)."""
    return (weights[None, :, None] @ masses).mean(2).permute(3, 1, 2, 0)


def split_curves(
    trace, spans: Spans, layers: Sequence[int], weights: Tensor, n_images: int, min_tokens: int
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """For samples with several pictures, for every picture k: k, the curves (B, Q, layers) of the text before it and of all
    text after it, and (B, Q) bool where they count. "post" queries are those after picture k."""
    device = weights.device
    text = torch.stack([trace[f"blocks.{i}.attn_images"][..., 1::2].to(device, torch.float32) for i in layers])
    first = torch.stack(
        [trace[f"blocks.{i}.attn_mass"][..., Spans.names.index("before")].to(device, torch.float32) for i in layers]
    )
    places = spans.image_indicators()[..., 1::2].bool().to(device)  # (B, T, K) text that follows each picture
    several = spans.image_index.amax(1).to(device)
    n_before, n_text = spans.mask("before").sum(1).to(device), places.sum(1)
    for k in range(n_images):
        mass = torch.stack([first + text[..., :k].sum(-1), text[..., k:].sum(-1)], -1)  # (layers, B, H, T, 2)
        own = query_weights(spans, device, post=places[..., k:].any(-1))
        curves = mean_curves(mass, own)  # (2, B, Q, layers)
        long = (n_before + n_text[:, :k].sum(1) >= min_tokens) & (n_text[:, k:].sum(1) >= min_tokens)
        part = (long & (several >= max(k, 1)))[:, None] & (own.sum(2) > 0)
        yield k, curves[0], curves[1], part

"""Attention mass on segments of keys: from the probabilities, from queries and keys, and what uniform attention would give.

Source: Lu et al., "Wings" (NeurIPS 2024, arXiv 2406.03496), the attention part of MLLM-Laws.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_mass(attention: Tensor, segments: Tensor, n_segments: int) -> Tensor:
    """Attention each query gives to each segment of keys.

    attention: (B, H, Tq, T), rows are queries and sum to 1; segments: (B, T) ints in [0, n_segments), -1 is padding and
    counts nowhere. Returns (B, H, Tq, n_segments), fp32 or wider; a segment without keys has mass exactly 0. Sums over keys
    first, so that means over heads and queries commute. Raises ValueError on a shape mismatch.
    """
    if attention.dim() != 4 or segments.shape != (attention.shape[0], attention.shape[3]):
        raise ValueError(
            f"attention (B, H, T, T) and segments (B, T) are needed, and these are {tuple(attention.shape)} and {tuple(segments.shape)}"
        )
    columns = segment_columns(segments, n_segments)
    attention = attention if attention.dtype == torch.float64 else attention.float()
    return attention @ columns[:, None].to(attention.dtype)


def segment_columns(segments: Tensor, n_segments: int) -> Tensor:
    """(B, T) segment numbers as (B, T, n_segments) fp32 indicators; padding, -1, is in none of them."""
    if segments.numel() and not -1 <= int(segments.min()) <= int(segments.max()) < n_segments:
        raise ValueError(
            f"segments {int(segments.min())}..{int(segments.max())} are outside 0..{n_segments - 1} (-1 is padding)"
        )
    return torch.nn.functional.one_hot(segments.long() + 1, n_segments + 1)[..., 1:].float()


def segment_mass_lse(
    query: Tensor,
    key: Tensor,
    segments: Tensor,
    n_segments: int,
    *,
    scale: float,
    mask: Tensor | None = None,
    chunk: int = 128,
) -> Tensor:
    """`segment_mass` from queries and keys, where no attention function can be called: memory B * H * chunk * T.

    query: (B, H, Tq, d), key: (B, Hkv, T, d) after rotary embedding and norms, H a multiple of Hkv; the last query stands
    at the last key. mask: (B or 1, 1 or H, Tq, T), boolean (True = visible) or additive; None is causal. A query that sees
    nothing gets mass 0. Returns (B, H, Tq, n_segments), fp32. Raises ValueError on a shape mismatch.
    """
    batch, heads, n_queries, _ = query.shape
    n_keys = key.shape[2]
    if segments.shape != (batch, n_keys) or heads % key.shape[1] or n_keys < n_queries:
        raise ValueError(
            f"query (B, H, Tq, d), key (B, Hkv, T, d) and segments (B, T) are needed, and these are "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(segments.shape)}"
        )
    key = key.float().repeat_interleave(heads // key.shape[1], 1)
    inside = segment_columns(segments, n_segments).bool()
    everywhere = torch.arange(n_keys, device=key.device)
    found = []
    for start in range(0, n_queries, chunk):
        rows = slice(start, min(start + chunk, n_queries))
        logits = query[:, :, rows].float() @ key.transpose(2, 3) * scale
        if mask is None:
            at = torch.arange(rows.start, rows.stop, device=key.device) + n_keys - n_queries
            logits = logits.masked_fill(everywhere > at[:, None], -torch.inf)
        elif mask.dtype == torch.bool:
            logits = logits.masked_fill(~mask[:, :, rows], -torch.inf)
        else:
            logits = logits + mask[:, :, rows].float()
        lse = torch.stack(
            [logits.masked_fill(~inside[:, None, None, :, s], -torch.inf).logsumexp(-1) for s in range(n_segments)], -1
        )
        # padded keys that the mask lets through take their share of the whole, as in the model
        whole = logits.logsumexp(-1, keepdim=True)
        found.append((lse - whole).exp().masked_fill(whole == -torch.inf, 0))
    return torch.cat(found, 2)


def uniform_mass(start: int, end: int, length: int) -> float:
    """Mean mass that uniform causal attention over `length` tokens puts on keys [start, end): what the place of a segment
    alone explains. (1/T) sum_i max(0, min(end, i + 1) - start) / (i + 1)."""
    if not 0 <= start <= end <= length or length < 1:
        raise ValueError(f"segment [{start}, {end}) is not within 0..{length}")
    return sum(max(0, min(end, i + 1) - start) / (i + 1) for i in range(length)) / length


def uniform_segment_mass(columns: Tensor) -> Tensor:
    """Mass of every query under uniform causal attention: columns (B, T, S) indicators, padding in none -> (B, T, S)."""
    seen = columns.cumsum(1)
    return seen / seen.sum(-1, keepdim=True).clamp(min=1)

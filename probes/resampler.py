"""The probe OLA-VLM reads embeddings with: learned queries attend once to all states of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Resampler(nn.Module):
    """A Perceiver resampler of one layer: states (B, T, in_dim) -> (B, num_queries, out_dim).

    Source: Jain et al., "OLA-VLM" (arXiv 2412.09585). Keys and values are the states and the queries themselves; no positional
    encoding, so the order of the states does not matter; softmax in fp32. `mask`, (B, T) with True for real positions, keeps
    padding out (the released code attends to it); queries are never masked. normalise_output: the last LayerNorm, which
    gives every output token unit variance; leave it out where targets are not of that kind. num_queries=None: it has no queries
    of its own and is given some, (N, in_dim), which enter by the projection of the states.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_queries: int | None,
        *,
        width: int | None = None,
        heads: int = 4,
        head_dim: int = 32,
        ff_mult: int = 1,
        normalise_output: bool = True,
    ):
        super().__init__()
        width, inner = width or out_dim, heads * head_dim
        self.heads, self.head_dim = heads, head_dim
        own = None if num_queries is None else nn.Parameter(torch.randn(num_queries, width) * width**-0.5)
        self.register_parameter("queries", own)
        self.proj_in = nn.Linear(in_dim, width)
        self.norm_states, self.norm_queries = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, ff_mult * width, bias=False),
            nn.GELU(),
            nn.Linear(ff_mult * width, width, bias=False),
        )
        self.proj_out = nn.Linear(width, out_dim)
        self.norm_out = nn.LayerNorm(out_dim) if normalise_output else nn.Identity()

    def forward(self, states: Tensor, mask: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        queries = (self.queries if queries is None else self.proj_in(queries)).expand(len(states), -1, -1)
        states = self.proj_in(states)
        queries = queries + self._attend(self.norm_states(states), self.norm_queries(queries), mask)
        queries = queries + self.feed_forward(queries)
        return self.norm_out(self.proj_out(queries))

    def _attend(self, states: Tensor, queries: Tensor, mask: Tensor | None) -> Tensor:
        both = torch.cat([states, queries], 1)
        q = self._split(self.to_q(queries))
        k, v = (self._split(part) for part in self.to_kv(both).chunk(2, -1))
        scale = self.head_dim**-0.25  # on both sides: their product stays in range in half precision
        scores = ((q * scale) @ (k * scale).mT).float()
        if mask is not None:
            own = mask.new_ones(()).expand(*queries.shape[:2])
            scores = scores.masked_fill(~torch.cat([mask, own], 1)[:, None, None, :], -torch.inf)
        mixed = scores.softmax(-1).to(v) @ v
        return self.to_out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, heads * head_dim) -> (B, heads, N, head_dim)."""
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

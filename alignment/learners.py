"""Modality learners: attention of low rank beside a decoder layer's own, which begins as exactly nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

PARTS = ("q", "k", "v", "o")


class LoRRA(nn.Module):
    """Low-rank residual attention of a stream on features: a full-rank identity path with a low-rank change in q, k and v,
    and a low-rank output without an identity path.

    q = x + B_q A_q x of the query; k, v likewise of the features; half-rotation rotary embedding of q and k by the positions
    they are given; softmax(q kᵀ / sqrt(d)), in fp32; out = B_o A_o (the heads joined). All maps are without bias, 8 D rank
    parameters. Every A is drawn from a normal (std 0.02, cut at two), every B is 0: the output is exactly 0 and at first
    only B_o has a gradient. Source: Zhang et al., "Wings" (arXiv 2406.03496), section 4.
    """

    def __init__(self, hidden_size: int, num_heads: int, rank: int, rope_theta: float = 10_000.0):
        """Raises ValueError for heads that do not divide the hidden size into even sizes (rotation pairs their halves)."""
        super().__init__()
        if num_heads < 1 or hidden_size % (2 * num_heads):
            raise ValueError(
                f"num_heads={num_heads} does not divide hidden_size={hidden_size} into even sizes: "
                "give a divisor of half the hidden size"
            )
        if rank < 1:
            raise ValueError(f"rank={rank}: give 1 or more (the released models have 64)")
        self.num_heads, self.head_dim, self.rope_theta = num_heads, hidden_size // num_heads, rope_theta
        for part in PARTS:
            down, up = nn.Linear(hidden_size, rank, bias=False), nn.Linear(rank, hidden_size, bias=False)
            nn.init.trunc_normal_(down.weight, std=0.02, a=-0.04, b=0.04)
            nn.init.zeros_(up.weight)
            self.add_module(f"A_{part}", down)
            self.add_module(f"B_{part}", up)

    def forward(
        self,
        query: Tensor,
        features: Tensor,
        query_positions: Tensor,
        feature_positions: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(B, Tq, D) of query (B, Tq, D) and features (B, Tk, D).

        query_positions (B, Tq) and feature_positions (B, Tk): places in the sequence, for the rotation alone. mask:
        (B, Tq, Tk) bool, True where the query may see the feature; None for everywhere. A query that may see nothing gets
        0, and has no gradient.
        """
        if not features.shape[1]:
            return torch.zeros_like(query)
        q = self._heads(query + self._low_rank("q", query))
        k = self._heads(features + self._low_rank("k", features))
        v = self._heads(features + self._low_rank("v", features))
        q, k = self._rotated(q, query_positions), self._rotated(k, feature_positions)
        if mask is None:
            mixed = scaled_dot_product_attention(q, k, v)  # every kernel sums and normalises in fp32
        else:
            some = mask.any(-1, keepdim=True)
            # a row without a visible key is shown all and then set to 0: a softmax over nothing would be NaN, backward too
            mixed = scaled_dot_product_attention(q, k, v, (mask | ~some)[:, None])
            mixed = mixed.masked_fill(~some[:, None], 0)
        return self._low_rank("o", mixed.transpose(1, 2).flatten(2))

    def _low_rank(self, part: str, x: Tensor) -> Tensor:
        return getattr(self, f"B_{part}")(getattr(self, f"A_{part}")(x))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, d)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, H, T, d): its halves turned against each other by the position's angles, in fp32 whatever the weights are."""
        steps = torch.arange(0, self.head_dim, 2, device=x.device).float() / self.head_dim
        angles = positions[:, None, :, None].float() * self.rope_theta**-steps
        cos, sin = (part.to(x.dtype) for part in (angles.cos(), angles.sin()))
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

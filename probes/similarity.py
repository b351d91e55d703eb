"""Cosine similarities between groups of hidden states: the formulas of implicit multimodal alignment.

Source: Shukor and Cord, "Implicit multimodal alignment" (NeurIPS 2024, arXiv 2405.16700). Everything in fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-7  # in the denominator of a cosine of pooled vectors, as the source has it
MODES = ("avg", "mean", "median", "max", "min", "max_mean", "diag_mean", "diag_median", "diag_max")


def token_similarity(a: Tensor, b: Tensor, *, mode: str) -> Tensor:
    """Similarity of two groups of tokens, a (Ta, D) and b (Tb, D): a scalar, fp64.

    mode: "avg" pools the tokens first and takes one cosine (eps 1e-7 in the denominator). The others are statistics of
    the matrix of cosines C (Ta, Tb), without eps (a zero vector gives NaN): "mean", "median" (of an even count the mean
    of the two middle values), "max", "min" over all entries; "max_mean" the mean over the tokens of a of their best match
    in b (asymmetric); "diag_*" over C[t, t], cut to the shorter of the two. Raises ValueError for another mode or shape.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(
            f"two groups of tokens (Ta, D), (Tb, D) of one width are needed, and these are {tuple(a.shape)} and {tuple(b.shape)}"
        )
    a, b = a.double(), b.double()
    if mode == "avg":
        a, b = a.mean(0), b.mean(0)
        return a @ b / (a.norm() * b.norm() + EPS)
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    if mode.startswith("diag"):
        n = min(len(a), len(b))
        values = (a[:n] * b[:n]).sum(1)
    else:
        values = a @ b.T
    if mode == "max_mean":
        return values.amax(1).mean()
    statistic = {"mean": Tensor.mean, "median": median, "max": Tensor.max, "min": Tensor.min}
    return statistic[mode.removeprefix("diag_")](values.flatten())


def median(values: Tensor) -> Tensor:
    """Median of a flat tensor; of an even count the mean of the two middle values (torch.median gives the lower)."""
    if torch.isnan(values).any():
        return values.new_full((), torch.nan)
    ordered, n = values.sort().values, len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def cross_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine over all pairs of samples, matched or not, by layer: a (N1, L, D), b (N2, L, D) pooled states -> (L,).

    The mean of all pairs is the product of the mean unit vectors, so nothing of size N1 x N2 is made; a zero vector
    counts as similarity 0. Raises ValueError on a shape mismatch.
    """
    if a.dim() != 3 or b.dim() != 3 or a.shape[1:] != b.shape[1:] or not len(a) or not len(b):
        raise ValueError(
            f"pooled states (N1, L, D) and (N2, L, D) are needed, and these are {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return (units(a).mean(0) * units(b).mean(0)).sum(-1)


def units(states: Tensor) -> Tensor:
    """Unit vectors along the last axis, fp64; zero stays zero."""
    states = states.double()
    size = states.norm(dim=-1, keepdim=True)
    return states / torch.where(size > 0, size, 1)


def consecutive_similarity(states: Tensor, *, interval: int, pairing: str = "matched") -> Tensor:
    """Mean over samples of cos(H[l], H[l + interval]) for every l that fits: states (N, L, D) -> (L - interval,), fp64.

    pairing: "matched" compares a sample with itself; "all" averages over all pairs of samples, own pairs included, as the
    released code of the source does (for parity only: it mixes in how much samples differ). Interval 0 gives exactly 1
    when matched; a zero vector gives NaN. Raises ValueError for an interval that does not fit or another pairing.
    """
    if states.dim() != 3 or not len(states):
        raise ValueError(f"states (N, L, D) are needed, and these are {tuple(states.shape)}")
    n_layers = states.shape[1]
    if not 0 <= interval < n_layers:
        raise ValueError(f"interval {interval} does not fit {n_layers} layers: use 0..{n_layers - 1}")
    if pairing not in ("matched", "all"):
        raise ValueError(f"pairing {pairing!r} is not one of matched, all")
    states = states.double()  # a norm of a few thousand overflows when squared in fp16
    low, high = states[:, : n_layers - interval], states[:, interval:]
    if pairing == "all":
        low, high = (x / x.norm(dim=-1, keepdim=True) for x in (low, high))
        return (low.mean(0) * high.mean(0)).sum(-1)
    dot = (low * high).sum(-1)
    # sqrt(x * x) is x to the last bit, a product of two roots is not
    return (dot / ((low * low).sum(-1) * (high * high).sum(-1)).sqrt()).mean(0)

"""What an intervention saves and what it costs: positions that each layer still computes, FLOPs, the change of the next token,
and time."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from ..probes.intervals import mean_over_samples, powers
from ..probes.vocabulary import kl_divergence
from .steer import Intervention, steer


class Cost(NamedTuple):
    """layers: a row a layer: positions a row of the batch brings to the layer, visual tokens among them, positions at which
    attention asks and the feed-forward layer is computed (means over the rows), and gflops beside those of the plain pass.
    total: one row: gflops and milliseconds of the decoder's layers and of the whole pass, and how far the next token's
    distribution moved: KL(plain | changed) in nats, mean over rows with its interval, and the share of rows whose best token stayed.
    """

    layers: pd.DataFrame
    total: pd.DataFrame


def layer_flops(
    n: int, *, hidden: int, width: int, heads: int, kv_heads: int | None = None, head_dim: int | None = None,
    gated: bool = True, queries: int | None = None, ffn: int | None = None,
) -> int:  # fmt: skip
    """FLOPs of one decoder layer on n positions, a multiply-add counted as 2: 8 n d^2 + 4 n^2 d + 6 n d m for a gated
    feed-forward layer of width m, with as many key heads as heads. queries, ffn: at how many of the positions attention asks
    and the feed-forward layer is computed; default, at all.
    """
    inner, kv = heads * (head_dim or hidden // heads), (kv_heads or heads) * (head_dim or hidden // heads)
    asked, fed = n if queries is None else queries, n if ffn is None else ffn
    projections = 2 * asked * hidden * inner + 2 * n * hidden * kv
    return 2 * (projections + 2 * asked * n * inner + (3 if gated else 2) * fed * hidden * width)


def report(vlm, inputs, *interventions: Intervention, rounds: int = 5) -> Cost:
    """What one pass over a batch of prompts costs with the interventions and without: see `Cost`. FLOPs are estimated from the
    rows that every linear layer is given and the queries and keys of attention; times are medians of `rounds` interleaved
    passes. A pruned tower reads its own attention, which is part of its time.
    """
    steps = {"plain": nullcontext, "changed": lambda: steer(vlm, *interventions)}
    counts, logits = {}, {}
    for name, context in steps.items():
        with context(), _counting(vlm.anatomy) as rows:
            logits[name] = _next_logits(vlm, inputs)
        counts[name] = _layer_table(vlm.anatomy, inputs, rows)
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, context in steps.items():
            with context():
                spent[name].append(_seconds(vlm, inputs))
    layers = counts["changed"].assign(plain_gflops=counts["plain"]["gflops"])
    plain, changed = (logits[name].float().softmax(-1) for name in ("plain", "changed"))
    moved = mean_over_samples(powers(kl_divergence(plain, changed)).sum(0))
    took = {name: 1000 * statistics.median(values) for name, values in spent.items()}
    total = {
        "gflops": layers["gflops"].sum(), "plain_gflops": layers["plain_gflops"].sum(),
        "gflops_ratio": layers["gflops"].sum() / layers["plain_gflops"].sum(),
        "milliseconds": took["changed"], "plain_milliseconds": took["plain"],
        "time_ratio": statistics.median(a / b for a, b in zip(spent["changed"], spent["plain"], strict=True)),
        "kl_nats": float(moved.mean), "kl_low": float(moved.low), "kl_high": float(moved.high), "n": int(moved.n),
        "same_token_share": float((plain.argmax(-1) == changed.argmax(-1)).double().mean()),
    }  # fmt: skip
    return Cost(layers, pd.DataFrame([total]))


def _next_logits(vlm, inputs) -> Tensor:
    """(B, V) the logits that follow each prompt."""
    with torch.no_grad():
        logits = vlm.forward(inputs, use_cache=False).logits
    at = inputs.spans.predicting()[:, 0].to(logits.device)
    return logits[torch.arange(len(at), device=at.device), at]


def _seconds(vlm, inputs) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        vlm.forward(inputs, use_cache=False)
    if vlm.device.type == "cuda":
        torch.cuda.synchronize(vlm.device)
    return time.perf_counter() - began


@contextmanager
def _counting(anatomy) -> Iterator[dict]:
    """While open, how many rows each block and each of its linear layers is given, after all edits: {module id: rows}."""
    rows: dict[int, int] = defaultdict(int)

    def count(module, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        rows[id(module)] += states.shape[:-1].numel()

    counted = [*anatomy.blocks, *(m for block in anatomy.blocks for m in block.modules() if isinstance(m, nn.Linear))]
    handles = [module.register_forward_pre_hook(count, with_kwargs=True) for module in counted]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _layer_table(anatomy, inputs, rows: dict[int, int]) -> pd.DataFrame:
    batch, length = inputs.spans.labels.shape
    visual = int(inputs.spans.visual.sum())
    config = anatomy.text_config
    inner = anatomy.n_heads * (getattr(config, "head_dim", None) or anatomy.hidden_size // anatomy.n_heads)
    records = []
    for i, block in enumerate(anatomy.blocks):
        linears = [m for m in block.modules() if isinstance(m, nn.Linear)]
        here, attention = rows[id(block)], anatomy.attention(i)
        query = getattr(attention, "q_proj", None)
        asked = rows[id(query)] if query is not None else here
        fed = getattr(block, "fc1", None) or next((m for m in block.mlp.modules() if isinstance(m, nn.Linear)), None)
        # a linear-attention layer has no queries by keys
        mixed = 4 * asked * here / batch * inner if attention is not None else 0
        flops = sum(2 * rows[id(m)] * m.weight.numel() for m in linears) + mixed
        records.append({
            "layer": i, "positions": here / batch, "visual_tokens": (visual - (batch * length - here)) / batch,
            "attention_positions": asked / batch, "ffn_positions": rows[id(fed)] / batch, "gflops": flops / 1e9,
        })  # fmt: skip
    return pd.DataFrame(records)

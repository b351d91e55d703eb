"""How early the visual tokens can leave without changing the answer: DyVTE's measurement, without its gate."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from ..probes.intervals import proportion
from ..scenes.errors import UserError
from .exit import VisualExit
from .steer import steer

AGREEMENT, LOSS = 0.99, 1.03


class SafeExits(NamedTuple):
    """samples: a row a sample: the earliest safe layer, answer tokens, loss of the full run. layers: a row a layer: share of
    samples for which an exit behind it is safe, with Wilson's interval, and their mean agreement and loss."""

    samples: pd.DataFrame
    layers: pd.DataFrame


def exit_safe(plain: Tensor, changed: Tensor, answer: Tensor) -> tuple[bool, float, float, float]:
    """Whether an exit is safe: logits (A, V) that predict the answer (A,), without and with it -> (safe, agreement of the best
    tokens, loss, loss without it). Safe: agreement above 99 %, and loss below 1.03 of the full one (or no higher).
    """
    agreement = float((plain.argmax(-1) == changed.argmax(-1)).double().mean())
    full, loss = (float(torch.nn.functional.cross_entropy(x.double(), answer)) for x in (plain, changed))
    return agreement > AGREEMENT and (loss < LOSS * full or loss <= full), agreement, loss, full


def earliest_safe_exit(vlm, samples: Iterable, *, batch_size: int = 8) -> SafeExits:
    """For every sample with an answer the earliest layer behind which all visual tokens may leave: see `exit_safe`. The answer
    is read with the prompt, once for each layer. Source: DyVTE, labels of its gate.
    """
    records, samples = [], iter(samples)
    while batch := list(islice(samples, batch_size)):
        if missing := [str(sample.id) for sample in batch if not sample.answer]:
            raise UserError(f"sample {missing[0]} has no answer: an exit is judged by the answer's tokens")
        records += _records(vlm, batch)
    if not records:
        raise UserError("there are no samples to judge an exit by")
    table = pd.DataFrame(records)
    safe = table[table["safe"]]
    samples_table = table.groupby("sample", sort=False).agg(
        tokens=("tokens", "first"), full_loss_nats=("full", "first")
    )
    samples_table.insert(0, "earliest_layer", safe.groupby("sample")["layer"].min())
    rows = []
    for layer, part in table.groupby("layer"):
        share = proportion(torch.tensor(part["safe"].to_numpy(dtype=float)))
        rows.append({
            "layer": layer, "safe_share": float(share.mean), "low": float(share.low), "high": float(share.high),
            "n": len(part), "agreement": part["agreement"].mean(), "loss_nats": part["loss"].mean(),
            "full_loss_nats": part["full"].mean(),
        })  # fmt: skip
    return SafeExits(samples_table.reset_index(), pd.DataFrame(rows))


def _records(vlm, batch) -> list[dict]:
    inputs = vlm.prepare_samples(batch)
    at = inputs.spans.predicting()
    plain, ids = _logits(vlm, inputs), inputs.tensors["input_ids"]
    records = []
    for layer in range(vlm.anatomy.n_layers):
        with steer(vlm, VisualExit(layer)):
            changed = _logits(vlm, inputs)
        for row, sample in enumerate(batch):
            places = at[row][at[row] >= 0]
            answer = ids[row, places + 1]
            safe, agreement, loss, full = exit_safe(plain[row, places], changed[row, places], answer)
            records.append({
                "sample": sample.id, "layer": layer, "safe": safe, "agreement": agreement, "loss": loss, "full": full,
                "tokens": len(places),
            })  # fmt: skip
    return records


def _logits(vlm, inputs) -> Tensor:
    with torch.no_grad():
        return vlm.forward(inputs, use_cache=False).logits

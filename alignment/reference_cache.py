"""The reference's log-probabilities of a whole data set, computed once and kept: valid for the weights and data they came from.

A file holds one row of floats for each pair, and in its metadata the key: hashes of the reference's weights, of the data and
of everything that decides the ids and pixels of a row. Another key is another file, so a stale cache is never read; and the
rows that are read are compared with fresh ones before the first step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import nn

from ..probes.files import written_whole
from ..scenes.errors import UserError

_LIBRARIES = ("torch", "transformers", "trl", "peft")


def reference_hash(model: nn.Module) -> str:
    """A hash of the weights the reference computes with: those of a model, without the adapter that is being trained."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        parts = name.split(".")
        if "default" in parts:
            continue
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    frozen = getattr(model, "peft_config", {}).get("ref")
    if frozen is not None:
        digest.update(f"{frozen.r} {frozen.lora_alpha} {getattr(frozen, 'use_rslora', False)}".encode())
    return digest.hexdigest()


def cache_key(**parts: Any) -> str:
    """A short hash of JSON values and of the libraries' versions."""
    parts["versions"] = {name: version(name) for name in _LIBRARIES}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def write_cache(folder: str | Path, key: str, columns: dict[str, Sequence[float]]) -> Path:
    """Writes the columns, whole or not at all. Returns the file."""
    path = _path(folder, key)
    table = pa.table({name: pa.array(values, pa.float64()) for name, values in columns.items()})
    with written_whole(path) as temporary:
        pq.write_table(table.replace_schema_metadata({"key": key}), temporary)
    return path


def read_cache(folder: str | Path, key: str, names: Sequence[str], rows: int) -> dict[str, list[float]] | None:
    """The columns kept under this key, or None where there are none, not as many, or the file cannot be read."""
    path = _path(folder, key)
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid):
        return None
    kept = (table.schema.metadata or {}).get(b"key", b"").decode()
    if kept != key or table.num_rows != rows or set(table.column_names) != set(names):
        return None
    return {name: table[name].to_pylist() for name in names}


def with_columns(dataset: Dataset, columns: dict[str, Sequence[float]]) -> Dataset:
    """The data set with the columns added, those of the same name replaced."""
    dataset = dataset.remove_columns([name for name in columns if name in dataset.column_names])
    for name, values in columns.items():
        dataset = dataset.add_column(name, list(values))
    return dataset


def check_map_style(dataset) -> None:
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"reference log-probabilities cannot be cached for a {type(dataset).__name__}: use a datasets.Dataset, or leave "
            "precompute_ref_log_probs and reference_cache_dir out"
        )


def spread(rows: int, few: int) -> list[int]:
    """A few row numbers from the first to the last, evenly."""
    if rows <= few:
        return list(range(rows))
    return sorted({round(k * (rows - 1) / (few - 1)) for k in range(few)}) if few > 1 else [0]


def _path(folder: str | Path, key: str) -> Path:
    return Path(folder) / f"reference-{key}.parquet"

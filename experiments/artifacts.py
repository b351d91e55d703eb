"""The files in a run's folder, and in what format each kind is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..scenes.errors import UserError

if TYPE_CHECKING:  # both take a second to import, and a list of runs needs neither
    import pandas as pd
    from torch import Tensor


def names(folder: Path, suffix: str) -> list[str]:
    """Names of the files of a kind, sorted; files being written are left out."""
    return sorted(path.name.removesuffix(suffix) for path in folder.glob(f"[!.]*{suffix}"))


def write_table(table: pd.DataFrame, path: Path) -> None:
    table.to_parquet(path, index=False)


def write_array(name: str, tensor, path: Path) -> None:
    """One tensor or array under `name`, or a mapping of several under their own names."""
    import torch
    from safetensors.torch import save

    arrays = tensor if isinstance(tensor, Mapping) else {name: tensor}
    # A copy: safetensors refuses tensors that share memory.
    tensors = {key: torch.as_tensor(value).detach().cpu().contiguous().clone() for key, value in arrays.items()}
    path.write_bytes(save(tensors))


def read_table(folder: Path, name: str) -> pd.DataFrame:
    import pandas as pd

    path = _existing(folder, name, ".parquet")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise _damaged(path, error) from error


def read_array(folder: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _existing(folder, name, ".safetensors")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _existing(folder: Path, name: str, suffix: str) -> Path:
    path = folder / f"{name}{suffix}"
    if not path.is_file():
        there = ", ".join(names(folder, suffix)) or "none"
        raise UserError(
            f"run {str(folder.parent)!r} has nothing called {name!r} in {folder.name}/; what is there: {there}"
        )
    return path


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{str(path)!r} cannot be read ({' '.join(str(error).split())}): measure again")

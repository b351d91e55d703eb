"""The base of every probe: a torchmetrics metric that reads sites and gives a table."""

from __future__ import annotations

from typing import ClassVar

import pandas as pd
import torch
from torchmetrics import Metric


class Probe(Metric):
    """An instrument: says which sites it reads, accumulates over batches, gives one table at the end.

    name: what its tables and figures are called. sites: what `update` needs in the trace (`*` matches layers).
    text_only: whether `measure` should run the same texts without their pictures too, as `trace.text_only`.

    A subclass allocates its states in `attach(anatomy)` with `add_state`, adds to them in `update(trace, inputs)`, and
    returns a pandas table in long form from `compute()`. States are sufficient statistics: their size does not depend on
    the number of samples. Every state is reduced over processes by "sum", "max", "min" or "cat" (a list), so that a
    measurement by several processes, or one that was interrupted, gives the table of a single one.
    """

    name: ClassVar[str] = ""
    sites: tuple[str, ...] = ()
    text_only: bool = False

    full_state_update = False
    is_differentiable = False

    def attach(self, anatomy) -> None:
        """Called once before the first batch, with the model's anatomy: allocate the states here."""
        raise NotImplementedError(f"{type(self).__name__} must define attach(anatomy)")

    def update(self, trace, inputs) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define update(trace, inputs)")

    def compute(self) -> pd.DataFrame:
        raise NotImplementedError(f"{type(self).__name__} must define compute()")

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> None:
        """A state of zeros that is summed over processes; fp64 unless said otherwise (fp32 where there is none, MPS)."""
        self.add_state(name, torch.zeros(shape, dtype=dtype or self.wide), dist_reduce_fx="sum")

    @property
    def wide(self) -> torch.dtype:
        """The type to accumulate in."""
        return getattr(self, "_wide", torch.float64)

    def use_device_of(self, anatomy) -> None:
        """Accumulate in what the model's device has: everything but MPS has fp64."""
        parameter = next(iter(anatomy.model.parameters()), None) if hasattr(anatomy, "model") else None
        self._wide = torch.float32 if parameter is not None and parameter.device.type == "mps" else torch.float64

"""The base of every probe: a torchmetrics metric that reads sites and gives a table."""

from __future__ import annotations

from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum

REDUCTIONS = {"sum": dim_zero_sum, "max": dim_zero_max, "min": dim_zero_min, "cat": dim_zero_cat}


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

    def state(self) -> dict[str, Tensor]:
        """A copy of everything accumulated, tensors only; list states as one tensor each."""
        found = {}
        for name, value in self.metric_state.items():
            if isinstance(value, list):
                value = torch.cat(value) if value else torch.zeros(0)
            found[name] = value.detach().clone()
        return found | {"updates": torch.tensor(self.update_count)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state()` returned. Raises ValueError when it is the state of another probe."""
        missing = set(self.metric_state) - set(state)
        if missing:
            raise ValueError(f"this is no state of probe {self.name!r}: it lacks {', '.join(sorted(missing))}")
        for name, default in self._defaults.items():
            value = state[name].to(self.device, copy=True)
            if isinstance(default, list):
                setattr(self, name, [value] if value.numel() else [])
            elif value.shape != default.shape:
                raise ValueError(
                    f"state {name!r} of probe {self.name!r} has shape {tuple(value.shape)}, expected "
                    f"{tuple(default.shape)}: measure with the model and the options it was saved with"
                )
            else:
                setattr(self, name, value)
        self._update_count = int(state.get("updates", torch.tensor(1)))
        self._computed = None

"""What `measure` does with probes as such: their names, what they are set to, and their states in and out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_mean

from ..scenes.errors import UserError
from .processes import n_processes

State = dict[str, Tensor | list[Tensor]]


def check_probes(probes: Sequence) -> list:
    """The probes as a list; UserError when there is none, one is not a probe, or two have the same name."""
    probes = list(probes) if isinstance(probes, Sequence) else [probes]
    if not probes:
        raise UserError("no probe was given: give at least one, e.g. [ImplicitAlignment()]")
    for probe in probes:
        if isinstance(probe, type):
            raise UserError(f"{probe.__name__} is a class: give an instance of it, {probe.__name__}()")
        missing = [what for what in ("name", "sites", "attach", "update", "compute") if not hasattr(probe, what)]
        if missing or not isinstance(probe, Metric):
            lacks = f"lacks {', '.join(missing)}" if missing else "is no torchmetrics.Metric"
            raise UserError(
                f"{type(probe).__name__} is not a probe ({lacks}): derive it from chiasm.probes.probe.Probe"
            )
    names = [probe.name for probe in probes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two probes are called {twice[0]!r}: give one of them another name")
    return probes


def probes_setup(probes: Sequence) -> dict[str, Any]:
    """What the probes are and are set to, as JSON values: a resumed measurement must have the same."""
    setup: dict[str, Any] = {"set of probes": ", ".join(probe.name for probe in probes)}
    for probe in probes:
        # Without the module: the same class may come from a script today and from a package tomorrow.
        setup[f"probe {probe.name!r}"] = type(probe).__qualname__
        own = {name: value for name, value in sorted(vars(probe).items()) if _is_option(probe, name, value)}
        setup[f"option of probe {probe.name!r}"] = {name: _plain(value) for name, value in own.items()}
    return setup


def _is_option(probe, name: str, value: Any) -> bool:
    return not name.startswith("_") and name != "training" and name not in probe.metric_state and not callable(value)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return hashlib.sha256(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(entry) for entry in value)
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    return type(value).__name__  # its repr may hold an address, which is another one next time


def take_states(probes: Sequence) -> tuple[dict[str, State], dict[str, int]]:
    """The states of the probes, those of all processes reduced to one, and how often each was updated.

    With several processes all of them must call this.
    """
    states, updates = {}, {}
    for probe in probes:
        if n_processes() > 1:
            _check_reductions(probe)
        with probe.sync_context():
            states[probe.name] = {
                name: [tensor.clone() for tensor in value] if isinstance(value, list) else value.clone()
                for name, value in _as_lists(probe)
            }
        updates[probe.name] = probe.update_count
    return states, updates


def _as_lists(probe) -> list[tuple[str, Tensor | list[Tensor]]]:
    """A list state that was reduced over processes is one tensor; as a list it can be accumulated on."""
    pairs = []
    for name, value in probe.metric_state.items():
        is_list = isinstance(probe._defaults[name], list)
        pairs.append((name, [value] if is_list and isinstance(value, Tensor) else value))
    return pairs


def restore_states(probes: Sequence, states: dict[str, State], updates: dict[str, int]) -> None:
    """Puts the probes back to where they were when `take_states` was called."""
    for probe in probes:
        for name, value in states[probe.name].items():
            parts = [part.to(probe.device) for part in (value if isinstance(value, list) else [value])]
            setattr(probe, name, parts if isinstance(value, list) else parts[0])
        probe._update_count = updates[probe.name]  # torchmetrics warns of a compute() before any update()


def _check_reductions(probe) -> None:
    for name, reduction in probe._reductions.items():
        if reduction is None or reduction is dim_zero_mean:
            raise UserError(
                f"state {name!r} of probe {probe.name!r} cannot be joined over processes: give add_state "
                "dist_reduce_fx 'sum', 'max', 'min' or 'cat', or measure with one process"
            )

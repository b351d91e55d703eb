"""The training loop all stages share: data made ahead, curves, and checkpoints from which a killed stage goes on."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from .muon import Muon


class Batches(Dataset):
    """Batches by step: `make(step)` must depend on nothing but the step, so that a resumed stage sees the same data."""

    def __init__(self, make: Callable[[int], object], steps: int):
        self.make, self.steps = make, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int):
        return self.make(step)


def optimisers_of(module: torch.nn.Module, matrix_rate: float, rest_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest: far fewer steps than AdamW needs alone."""
    inside = {n for n, p in module.named_parameters() if p.ndim == 2 and "layers." in n}
    matrices = [p for n, p in module.named_parameters() if n in inside]
    rest = [p for n, p in module.named_parameters() if n not in inside]
    return [
        Muon(matrices, lr=matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=rest_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate(step: int, steps: int, decay: float, warm: int = 100) -> float:
    """The share of the peak learning rate at a step: linear warm-up, constant, linear decay to 2 %."""
    left = (steps - step) / max(1, decay * steps)
    return min((step + 1) / min(warm, max(1, steps // 4)), 1.0, max(0.02, left))


def run_stage(
    name: str,
    folder: Path,
    modules: Mapping[str, torch.nn.Module],
    optimisers: list[torch.optim.Optimizer],
    make_batch: Callable[[int], object],
    loss_of: Callable[[object, int], tuple[torch.Tensor, dict[str, float]]],
    *,
    steps: int,
    decay: float,
    progress: Callable[[str], None] = print,
    every: Mapping[int, Callable[[int], dict[str, float] | None]] | None = None,
    save_seconds: float = 60.0,
    log_steps: int = 100,
    workers: int = 1,
) -> float:
    """Train `modules` for `steps` steps, from the checkpoint in `folder` if there is one; returns seconds spent in all.

    `loss_of(batch, step)` gives the loss and what to log. `every` maps a period in steps to a function called after each
    multiple of it; what it returns goes into the curves. Writes `<folder>/<name>.safetensors`, the finished modules, and
    `<folder>/<name>.csv`, the curves. Raises FloatingPointError when the loss or a gradient is not a number.
    """
    final, halfway = folder / f"{name}.safetensors", folder / f"{name}.half.safetensors"
    if final.exists():
        spent = load_state(final, modules, [])["seconds"]
        progress(f"{name}: already grown")
        return spent
    state = load_state(halfway, modules, optimisers) if halfway.exists() else {"step": 0, "seconds": 0.0, "curves": []}
    start, curves, before = state["step"], state["curves"], state["seconds"]
    peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    if start:
        peaks = state["peaks"]
    parameters = [p for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
    workers = workers if sys.platform == "linux" else 0  # elsewhere workers cannot be forked, and makers not be sent
    loader = DataLoader(
        Batches(make_batch, steps),
        batch_size=None,
        sampler=range(start, steps),
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    began = saved = time.monotonic()
    running: dict[str, list[float]] = {}
    for step, batch in enumerate(loader, start):
        for optimiser, group_peaks in zip(optimisers, peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, group_peaks, strict=True):
                group["lr"] = peak * rate(step, steps, decay)
            optimiser.zero_grad()
        loss, logged = loss_of(batch, step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}; lower its learning rate")
        loss.backward()
        if not torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, 1.0)):
            raise FloatingPointError(f"{name}: a gradient is no number at step {step}; lower its learning rate")
        for optimiser in optimisers:
            optimiser.step()
        for key, value in {"loss": loss.item(), **logged}.items():
            running.setdefault(key, []).append(value)
        done = step + 1
        seconds = before + time.monotonic() - began
        more = {}
        for period, function in (every or {}).items():
            if done % period == 0:
                more |= function(done) or {}
        if more or done % log_steps == 0 or done == steps:
            means = {
                key: sum(v for v in values if v == v) / max(1, sum(v == v for v in values))
                for key, values in running.items()
            }
            curves.append({"step": done, "seconds": round(seconds, 1), **means, **more})
            shown = "  ".join(
                f"{key} {value:.3f}" for key, value in curves[-1].items() if key not in ("step", "seconds")
            )
            progress(f"{name} {done}/{steps}  {seconds:.0f} s  {shown}")
            running = {}
        if not running and (time.monotonic() - saved > save_seconds) and done < steps:
            save_state(
                halfway, modules, optimisers, {"step": done, "seconds": seconds, "curves": curves, "peaks": peaks}
            )
            saved = time.monotonic()
    seconds = before + time.monotonic() - began
    save_state(final, modules, [], {"step": steps, "seconds": seconds, "curves": curves})
    pd.DataFrame(curves).to_csv(folder / f"{name}.csv", index=False)
    halfway.unlink(missing_ok=True)
    return seconds


def save_state(path: Path, modules, optimisers, state: dict) -> None:
    """Write modules, optimisers and plain values into one safetensors file, under a temporary name until complete."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in trained(module).items()}
    for i, optimiser in enumerate(optimisers):
        for index, slots in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser{i}/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(
        {key: value.detach().contiguous().clone() for key, value in tensors.items()},
        temporary,
        {"state": json.dumps(state)},
    )
    os.replace(temporary, path)


def load_state(path: Path, modules, optimisers) -> dict:
    """Fill modules and optimisers from `save_state`'s file; returns its plain values."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        state = json.loads(file.metadata()["state"])
    for name, module in modules.items():
        own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        module.load_state_dict(own, strict=False)
    for i, optimiser in enumerate(optimisers):
        slots: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimiser{i}/"):
                _, index, slot = key.split("/")
                slots.setdefault(int(index), {})[slot] = value
        optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    return state


def trained(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's parameters, each once, shared and frozen ones left out."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}

"""What watches a training run from outside the loss: gradients that are numbers, and the run store's record."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from transformers import TrainerCallback

from ..scenes.errors import UserError


class RunFolder(Protocol):
    """What training needs of a run (see `chiasm.experiments.run.Run`)."""

    path: Path

    def table(self, name: str, table: pd.DataFrame) -> Path: ...
    def log(self, line: str) -> None: ...
    def note(self, **facts: Any) -> None: ...


class FiniteGradients(TrainerCallback):
    """Stops before an update that would spoil the weights, so that the last checkpoint stays good."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if args.fp16:  # the gradient scaler skips such steps by itself
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients and not torch.stack([n.float().cpu() for n in torch._foreach_norm(gradients)]).isfinite().all():
            raise not_finite("a gradient", state, args)


def not_finite(what: str, state, args) -> UserError:
    """The error for a loss or gradient that is no number, with the way on."""
    from .checkpoints import last_complete_checkpoint

    good = last_complete_checkpoint(args.output_dir, args.world_size)
    on = f"go on from {str(good)!r}" if good else "begin again"
    return UserError(
        f"{what} is not a finite number after step {state.global_step}; no weights were changed by it: {on} with a lower "
        f"learning_rate than {args.learning_rate:g} or a lower max_grad_norm, and look at the pairs of that step"
    )


class RunRecord(TrainerCallback):
    """Keeps the metrics of a training in a run: the table `training`, one row a log entry, and lines in its log."""

    def __init__(self, run: RunFolder):
        self.run = run

    def on_train_begin(self, args, state, control, **_):
        self.run.note(training=args.to_dict())

    def on_log(self, args, state, control, logs=None, **_):
        if not state.is_world_process_zero:
            return
        self.run.table("training", pd.DataFrame(state.log_history))
        shown = {name: value for name, value in (logs or {}).items() if isinstance(value, float)}
        self.run.log(f"step {state.global_step}: " + ", ".join(f"{k} {v:.4g}" for k, v in list(shown.items())[:6]))

"""Preference tuning from pairs on disk to an adapter in a run: settings by method and model, training, what held-out pairs say."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..scenes.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from ..models import VLM
    from .run import Run

METHODS = ("rdpo", "dpo", "mdpo", "recommended", "sft")
"""rDPO (Re-Align), DPO, mDPO, rDPO with an anchor of 0.5, and plain fine-tuning on the chosen answers, for comparison."""

LORA = {"rank": 64, "alpha": None, "dropout": 0.05, "projector": False}
"""Settings of the adapter beside those of `VisualDPOConfig`: see `language_lora`."""

HELD_OUT = 64
"""Pairs kept from training at most, and never more than a tenth."""

_SMALL = {
    "learning_rate": 1e-3,
    "rank": 8,
    "dropout": 0.0,
    "per_device_train_batch_size": 8,
    "gradient_checkpointing": False,
}
_LARGE = {"learning_rate": 5e-6, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}


@dataclass(frozen=True)
class Tuned:
    """adapter: its folder, for `open_vlm(…, adapter=)`. held_out: metrics of the held-out pairs before and after, by name.
    history: one row a log entry."""

    adapter: Path
    held_out: pd.DataFrame
    history: pd.DataFrame
    steps: int


def settings_of(vlm: VLM, method: str = "rdpo", given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every setting that differs from the trainer's own defaults: what the model's size asks, then the method, then `given`.

    given: fields of `VisualDPOConfig` and of `LORA`. Raises UserError for a method or name that is not known.
    """
    from ..alignment.config import PRESETS, VisualDPOConfig
    from .lineage import is_organism

    if method not in METHODS:
        raise UserError(f"method {method!r} is not known: use {', '.join(METHODS)}")
    known = {field.name for field in fields(VisualDPOConfig)} | set(LORA)
    for name in given or {}:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            raise UserError(f"setting {name!r} is not known" + (f": do you mean {', '.join(near)}?" if near else ""))
    visual, anchor = PRESETS.get(method, (0.0, 0.0))
    settings = {
        **LORA, "lr_scheduler_type": "cosine", "warmup_steps": 0.03, "num_train_epochs": 1, "save_steps": 0.1, "eval_steps": 0.25,
        "logging_steps": 0.02, **(_SMALL if is_organism(vlm) else _LARGE),
        "visual_weight": visual, "anchor_weight": anchor,
    }  # fmt: skip
    if method == "sft":
        settings["loss_type"] = ["sft"]
    return settings | dict(given or {})


def tune(
    vlm: VLM,
    pairs: Dataset,
    *,
    run: Run | None = None,
    folder: str | Path | None = None,
    method: str = "rdpo",
    settings: Mapping[str, Any] | None = None,
    held_out: int | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
) -> Tuned:
    """Trains an adapter of the language model on preference pairs; `vlm` itself is left as it was.

    pairs: rows as `chiasm pairs` makes them. run, or folder: where it goes, `adapter/` and while it trains `training/` with
    checkpoints and TensorBoard files; a run also keeps the table `training`, row by row as it is logged, and `held_out`.
    held_out: so many pairs are kept apart and judged before, while and after (default: a tenth, at most 64; 0: none). resume:
    from the newest whole checkpoint there, to the same numbers. Raises UserError as `VisualDPOTrainer` does.
    """
    from transformers import PrinterCallback

    from ..alignment.adapters import language_lora
    from ..alignment.config import VisualDPOConfig
    from ..alignment.trainer import VisualDPOTrainer
    from .tune_progress import StepMeter

    place = Path(run.path if run is not None else folder)
    chosen = settings_of(vlm, method, settings)
    lora = {name: chosen.pop(name) for name in LORA}
    train, kept = _split(pairs, held_out, seed)
    if kept is None:
        chosen["eval_strategy"], chosen["eval_steps"] = "no", None
    args = VisualDPOConfig(
        **{
            "output_dir": str(place / "training"), "use_cpu": vlm.device.type == "cpu", "report_to": "tensorboard", "disable_tqdm": True,
            "save_strategy": "steps", "save_total_limit": 2, "eval_strategy": "steps", "eval_on_start": kept is not None,
            "per_device_eval_batch_size": chosen["per_device_train_batch_size"], "seed": seed,
        } | chosen
    )  # fmt: skip
    trainer = VisualDPOTrainer(
        vlm, args=args, train_dataset=train, eval_dataset=kept, peft_config=language_lora(vlm.model, **lora), run=run,
        callbacks=[StepMeter(progress)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # the meter shows what it would print
    try:
        trainer.train(resume_from_checkpoint=resume or None)
        adapter = place / "adapter"
        if trainer.is_world_process_zero():
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(adapter)
            for checkpoint in (place / "training").glob("checkpoint-*"):
                shutil.rmtree(checkpoint)  # they are for going on after a stop
        history = pd.DataFrame(trainer.state.log_history)
    finally:
        trainer.model.unload()  # the caller's model without its adapter again
    table = before_after(history)
    if run is not None and kept is not None:
        run.table("held_out", table)
    return Tuned(adapter, table, history, trainer.state.global_step)


HELD = {
    "loss": "loss",
    "rewards/accuracies": "chosen answer gained on the rejected one, share",
    "rewards/margins": "by how much, beta × nats",
    "rewards/visual_accuracies": "chosen answer gained on itself under the rejected picture, share",
    "rewards/visual_margins": "by how much, beta × nats",
    "rewards/displaced": "chosen answer became less likely, share",
    "kl/chosen": "chosen answer, reference minus policy, nats a token",
}
"""Metrics of held-out pairs that are told, and what they are."""


def before_after(history: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, what, before, after: of the first and the last evaluation in a trainer's history. Empty without one."""
    rows = []
    for name, what in HELD.items():
        values = history[f"eval_{name}"].dropna() if f"eval_{name}" in history else ()
        if len(values):
            rows.append({"metric": name, "what": what, "before": values.iloc[0], "after": values.iloc[-1]})
    return pd.DataFrame(rows, columns=["metric", "what", "before", "after"])


def _split(pairs: Dataset, held_out: int | None, seed: int) -> tuple[Dataset, Dataset | None]:
    most = len(pairs) // 10
    n = min(HELD_OUT, most) if held_out is None else held_out
    if n >= len(pairs):
        raise UserError(f"{n} pairs held out of {len(pairs)} leave none to train on: hold out at most {most}")
    if n < 1:
        return pairs, None
    both = pairs.train_test_split(test_size=n, seed=seed)
    return both["train"], both["test"]

"""The reference of a trainer: its log-probabilities, live or cached in columns of the data."""

from __future__ import annotations

import contextlib
import logging

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import IterableDataset
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import FusedCausalLMOutput, use_adapter

from ..models.anatomy import find_anatomy
from ..probes.progress import Meter
from ..scenes.errors import UserError
from . import reference_cache
from .branches import check_branches, forward_rows, row_sums
from .collator import REFERENCE_COLUMNS

logger = logging.getLogger("chiasm")


class Reference:
    """The part of `VisualDPOTrainer` that asks the reference; it reads the trainer's fields."""

    def reference_logps(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Log-probabilities (N,) of the branches of a batch under the reference, in nats: chosen, rejected, visual."""
        return row_sums(self._reference_output(inputs), inputs).chunk(check_branches(inputs))

    def _reference_output(self, inputs: dict[str, Tensor]) -> FusedCausalLMOutput:
        model, adapter = self.ref_model, contextlib.nullcontext()
        if model is None:
            whole = self.accelerator.unwrap_model(self.model)
            if not is_peft_model(whole):
                raise UserError(
                    "these rows have no reference log-probabilities, and no reference model was kept: give them as "
                    "eval_dataset when the trainer is made, or pass ref_model"
                )
            model, adapter = self.model, use_adapter(whole, "ref" if "ref" in whole.peft_config else None)
        anatomy = self.anatomy if model is self.model else find_anatomy(self.accelerator.unwrap_model(model))
        quiet = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
        with torch.no_grad(), quiet, adapter, self.accelerator.autocast():
            return forward_rows(model, anatomy, inputs, self.layout)

    def _attach_references(self) -> None:
        self.train_dataset = self._with_references(self.train_dataset, "train")
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: self._with_references(data, name) for name, data in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = self._with_references(self.eval_dataset, "eval")

    def _with_references(self, dataset, name: str):
        """The data set with the reference's columns: from the cache if its key and its first and last rows are right."""
        reference_cache.check_map_style(dataset)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(
                "reference log-probabilities are cached on one device or with DDP, not with FSDP or DeepSpeed"
            )
        names = REFERENCE_COLUMNS[: self.data_collator.branches]
        folder, columns, key = self.args.reference_cache_dir, None, None
        if folder is not None:
            key = reference_cache.cache_key(
                weights=reference_cache.reference_hash(self.ref_model or self.model), data=dataset._fingerprint,
                collator=self.data_collator.settings(), bf16=self.args.bf16, fp16=self.args.fp16,
                dtype=str(self.anatomy.model.dtype),
            )  # fmt: skip
            columns = reference_cache.read_cache(folder, key, names, len(dataset))
            if columns is not None and not self._agrees(dataset, columns):
                logger.warning(
                    "cached reference log-probabilities of the %s data are not those of this model: anew", name
                )
                columns = None
            every = gather_object([columns is None])
            columns = None if any(every) else columns
        if columns is None:
            columns = self._compute_references(dataset, names, name)
            if folder is not None and self.accelerator.is_main_process:
                reference_cache.write_cache(folder, key, columns)
            self.accelerator.wait_for_everyone()
        return reference_cache.with_columns(dataset, columns)

    def _compute_references(self, dataset, names, what: str) -> dict[str, list[float]]:
        """The reference's log-probabilities of every row; the rows are shared out among the processes."""
        size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine, found = list(range(rank, len(dataset), processes)), []
        show = self.accelerator.is_local_main_process and not self.args.disable_tqdm
        with Meter(len(mine), show=show) as meter, self._evaluating():
            for start in range(0, len(mine), size):
                rows = mine[start : start + size]
                found += zip(rows, *(x.tolist() for x in self._reference_of(dataset, rows)), strict=True)
                meter.advance(len(rows))
        table = {row: values for row, *values in gather_object(found)}
        return {name: [table[row][k] for row in range(len(dataset))] for k, name in enumerate(names)}

    def _reference_of(self, dataset, rows: list[int]) -> tuple[Tensor, ...]:
        batch = self._prepare_inputs(self.data_collator([dataset[row] for row in rows]))
        return tuple(x.float() for x in self.reference_logps(batch))

    def _agrees(self, dataset, columns) -> bool:
        """Whether a few rows, from the first to the last, have the log-probabilities that the columns say."""
        rows = reference_cache.spread(len(dataset), 4)
        with self._evaluating():
            fresh = self._reference_of(dataset, rows)
        near = 1e-2 if self.args.bf16 or self.args.fp16 else 1e-4
        kept = [torch.tensor([columns[name][row] for row in rows]) for name in REFERENCE_COLUMNS[: len(fresh)]]
        return all(torch.allclose(a.cpu(), b, rtol=near, atol=near) for a, b in zip(fresh, kept, strict=True))

    def _check_given_references(self) -> None:
        """Columns of reference log-probabilities that came with the data are used if they are this reference's."""
        datasets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        for dataset in (self.train_dataset, *datasets):
            names = REFERENCE_COLUMNS[: self.data_collator.branches]
            if dataset is None or isinstance(dataset, IterableDataset) or names[0] not in dataset.column_names:
                continue
            if self.ld_alpha is not None:
                raise UserError(
                    f"ld_alpha weights single tokens of the reference: remove the columns {', '.join(names)}"
                )
            missing = [name for name in names if name not in dataset.column_names]
            if missing or not self._agrees(dataset, {name: dataset[name] for name in names}):
                wrong = f"lacks {missing[0]}" if missing else "is not that of this reference model"
                raise UserError(
                    f"the data's {names[0]} {wrong}: remove the columns {', '.join(names)}, or set reference_cache_dir"
                )

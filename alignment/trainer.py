"""Preference tuning of a vision-language model: DPO, rDPO, mDPO and the joint form on TRL's trainer.

One forward pass of the policy covers all branches. TRL's own losses and metrics are computed from its first two branches by
handing TRL's `_compute_loss` a model that returns what is known already; the visual term and the anchor are added to it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from pathlib import Path

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import IterableDataset
from torch import Tensor
from transformers.integrations import is_tensorboard_available
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import FusedCausalLMOutput, use_adapter

from ..models import VLM
from ..models.anatomy import find_anatomy
from ..probes.progress import Meter
from ..scenes.errors import UserError
from . import reference_cache
from .adapters import check_adapters, vision_side_is_frozen
from .branches import check_branches, first_rows, forward_rows, plain_logits, why_no_features
from .checkpoints import last_complete_checkpoint
from .collator import REFERENCE_COLUMNS, VisualPreferenceCollator
from .config import VisualDPOConfig
from .event_log import EventLog
from .guards import FiniteGradients, RunFolder, RunRecord, not_finite
from .losses import logistic_loss, loss_terms, sequence_logps
from .shared_prefix import why_not

logger = logging.getLogger("chiasm")

_TEXT_KEYS = ("input_ids", "attention_mask", "completion_mask")


class VisualDPOTrainer(DPOTrainer):
    """Trains on pairs with a rejected answer and a rejected image; everything `trl.DPOTrainer` takes, and what is below.

    model: a model, a `PeftModel`, a folder or hub id, or a `VLM` (which brings its processor). train_dataset, eval_dataset:
    rows as `VisualPreferenceCollator` tells. The reference is ref_model; else, with adapters, the model with its adapter off
    (or the frozen copy of an adapter that is trained on); else a copy of the model as it is given. run: a run of the run store,
    which then keeps the metrics. Use the model of `language_lora` for peft_config.

    Raises UserError, one line, for settings, data or a model that cannot be trained together; while training, for a loss or
    gradient that is no number (the weights are then those of the step before).
    """

    _tag_names = ("trl", "dpo", "rdpo")

    def __init__(
        self,
        model,
        *,
        args: VisualDPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        ref_model=None,
        peft_config=None,
        data_collator: VisualPreferenceCollator | None = None,
        callbacks=None,
        run: RunFolder | None = None,
        **options,
    ):
        if isinstance(model, VLM):
            model, processing_class = model.model, processing_class or model.processor
        args = copy.copy(args) if args is not None else VisualDPOConfig(output_dir="tuned")
        if options.get("compute_metrics") is not None:
            raise UserError(
                "compute_metrics needs the logits, which this trainer never builds: evaluate the saved model"
            )
        visual = _has_visual_branch(args, train_dataset, data_collator)
        cached = args.precompute_ref_log_probs or args.reference_cache_dir is not None
        args.precompute_ref_log_probs = False  # TRL refuses it for vision data; it is done below
        events = "tensorboard" in args.report_to and not is_tensorboard_available()
        if events:  # the files are written without the package
            args.report_to = [name for name in args.report_to if name != "tensorboard"]
        copied = ref_model is None and peft_config is None and not isinstance(model, str) and not is_peft_model(model)
        if copied:
            ref_model = copy.deepcopy(model).requires_grad_(False)
        if ref_model is None and is_peft_model(model) and "default" not in model.peft_config:
            raise UserError(f"the adapter is called {', '.join(model.peft_config)}: load it under the name 'default'")
        super().__init__(
            model, ref_model=ref_model, args=args, data_collator=data_collator, train_dataset=train_dataset,
            eval_dataset=eval_dataset, processing_class=processing_class, peft_config=peft_config, callbacks=callbacks,
            **options,
        )  # fmt: skip
        self.anatomy = find_anatomy(self.model)
        check_adapters(self.model, self.anatomy, shared_reference=self.ref_model is None)
        if data_collator is None:
            self.data_collator = VisualPreferenceCollator(
                self.processing_class, self.anatomy, max_length=args.max_length, visual=visual
            )
        self._check_head()
        self.layout = self._pick_layout(data_collator is not None)
        if cached:
            self._attach_references()
            if copied:
                self.ref_model = None  # what it says is in the columns now
        else:
            self._check_given_references()
        self.add_callback(FiniteGradients())
        if events:
            self.add_callback(EventLog(os.environ.get("TENSORBOARD_LOGGING_DIR") or Path(args.output_dir) / "runs"))
        if run is not None:
            self.add_callback(RunRecord(run))

    # -- how a batch is computed ---------------------------------------------------------------------------------------

    def _pick_layout(self, given: bool) -> str:
        """ "prefix", "features" or "rows": the first that is asked for, possible, and proved on the first pairs."""
        args, sharing = self.args, self.args.prefix_sharing
        if given:  # the collator of the caller decides which pictures are in a batch
            if not self.data_collator.distinct_images:
                return "rows"
            sharing = sharing or not args.share_vision_features
        wanted = []
        if sharing:
            wanted.append(("prefix", self._why_no_prefix(), sharing is True))
        if args.share_vision_features:
            wanted.append(("features", self._why_no_features(), True))
        for layout, reason, insisted in wanted:
            reason = reason or self._difference(layout)
            if reason is None:
                self.data_collator.distinct_images = True
                return layout
            if insisted:
                name = "prefix_sharing" if layout == "prefix" else "share_vision_features"
                raise UserError(f"{name} is not possible: {reason}; leave it out")
            logger.info("every row is computed by itself: %s", reason)
        self.data_collator.distinct_images = False
        return "rows"

    def _why_no_prefix(self) -> str | None:
        if self.aux_loss_enabled:
            return "the auxiliary loss of a mixture of experts counts every token of every row"
        if any(config.is_prompt_learning for config in getattr(self.model, "peft_config", {}).values()):
            return "prompt learning puts tokens of its own in front of a row"
        return why_not(self.anatomy)

    def _why_no_features(self) -> str | None:
        spread = self.accelerator.num_processes > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled
        if spread and not vision_side_is_frozen(self.model, self.anatomy):
            return "on several processes the pictures may be encoded outside the wrapped model only if nothing of it is trained"
        return why_no_features(self.anatomy)

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuses a family for which TRL's fused head does not give the log-probabilities of the model's own logits."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        collator = copy.copy(self.data_collator)
        collator.distinct_images = False
        batch = self._prepare_inputs(collator(_first(self.train_dataset, 1)))
        family = self.anatomy.family
        with self._evaluating(), self.accelerator.autocast():
            try:
                fused = _sums(forward_rows(self.model, self.anatomy, batch, "rows"), batch)
            except AttributeError as error:
                raise UserError(
                    f"{family} does not work with TRL's fused language head ({error}): tune another family"
                ) from error
            own = sequence_logps(plain_logits(self.model, batch), batch["labels"])
        apart = ((fused - own).abs() / batch["completion_mask"].sum(1)).max().item()
        if apart > self._tolerance:
            raise UserError(
                f"TRL's fused language head gives {family} log-probabilities {apart:.2g} nats a token from those of its own "
                "logits, so it would not train what is read at inference: tune another family"
            )

    @property
    def _tolerance(self) -> float:
        """How far per-token log-probabilities of two ways to compute them may be apart, in nats."""
        half = self.args.bf16 or self.args.fp16 or self.anatomy.model.dtype.itemsize < 4
        return 0.1 if half else 1e-4

    @torch.no_grad()
    def _difference(self, layout: str) -> str | None:
        """What is wrong with a layout, by the log-probabilities of the first two pairs, or None."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None  # the model is not whole yet: `why_not` has to do
        rows = _first(self.train_dataset, 2)
        found, collator = {}, copy.copy(self.data_collator)
        with self._evaluating(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            for name in ("rows", layout):
                collator.distinct_images = name != "rows"
                batch = self._prepare_inputs(collator(rows))
                try:
                    with self.accelerator.autocast():
                        found[name] = forward_rows(self.model, self.anatomy, batch, name).log_probs
                except (ValueError, RuntimeError, TypeError, IndexError, AttributeError) as error:
                    if name == "rows":
                        raise
                    return f"{self.anatomy.family} does not take it ({' '.join(str(error).split())[:120]})"
        apart = (found["rows"] - found[layout]).abs().max().item()
        if apart <= self._tolerance:
            return None
        return f"log-probabilities of {self.anatomy.family} would differ by {apart:.2g} nats a token"

    @contextlib.contextmanager
    def _evaluating(self):
        before = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(before)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        for name in ("rejected_images", "rejected_image", *REFERENCE_COLUMNS):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    # -- the reference -------------------------------------------------------------------------------------------------

    def reference_logps(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Log-probabilities (N,) of the branches of a batch under the reference, in nats: chosen, rejected, visual."""
        return _sums(self._reference_output(inputs), inputs).chunk(check_branches(inputs))

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

    def compute_ref_log_probs(self, model, inputs):
        raise UserError("TRL's reference pass knows two branches only: use reference_logps(inputs)")

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

    # -- the loss ------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs, return_outputs):
        branches = check_branches(inputs)
        options = {"output_router_logits": True} if self.aux_loss_enabled else {}
        output = forward_rows(model, self.anatomy, inputs, self.layout, **options)
        policy = _sums(output, inputs).chunk(branches)
        names = REFERENCE_COLUMNS[:branches]
        if all(name in inputs for name in names):
            reference = pair = tuple(inputs[name] for name in names)
        else:
            kept = self._reference_output(inputs)
            reference = pair = _sums(kept, inputs).chunk(branches)
            if self.ld_alpha is not None:  # TRL weights the tokens of both models
                rows, replay = self._text_rows(inputs, kept)
                pair = super().compute_ref_log_probs(replay, rows)
        loss = self._text_loss(inputs, output, pair)

        args = self.args
        if args.visual_weight or args.anchor_weight:
            if branches == 2 and args.visual_weight:
                raise UserError(
                    "visual_weight is above 0 and this batch has no rejected images: use a collator with visual=True"
                )
            terms = loss_terms(
                policy, reference, beta=args.beta, visual_beta=args.visual_beta, visual_weight=args.visual_weight,
                anchor_weight=args.anchor_weight, anchor_margin=args.anchor_margin, visual_loss_type=args.visual_loss_type,
            )  # fmt: skip
            if "joint" in terms:  # takes the place of TRL's loss, which gave its metrics
                loss = 0.0
            for name, (weight, rows) in terms.items():
                if name != "text":
                    loss = loss + weight * rows.mean()
        self._note(inputs, policy, reference, loss)
        return (loss, output) if return_outputs else loss

    def _text_loss(self, inputs, output: FusedCausalLMOutput, reference: tuple[Tensor, ...]) -> Tensor:
        """TRL's loss of the first two branches, computed by TRL from outputs that are there already."""
        pair, replay = self._text_rows(inputs, output)
        pair |= dict(zip(REFERENCE_COLUMNS[:2], reference[:2], strict=True))
        self.precompute_ref_logps = True  # take the reference from the batch
        try:
            return super()._compute_loss(replay, pair, False)
        finally:
            self.precompute_ref_logps = False

    def _text_rows(self, inputs, output: FusedCausalLMOutput):
        """The rows of the first two branches, and a model that answers them without computing anything."""
        rows = 2 * int((inputs["branch"] == 0).sum())
        pair = {name: inputs[name][:rows] for name in _TEXT_KEYS}
        known = first_rows(output, rows)
        return pair, lambda **_: known

    def _note(self, inputs, policy, reference, loss: Tensor) -> None:
        """Adds our metrics to TRL's, means over all processes, and stops at a loss that is no number.

        kl/chosen: reference minus policy a token of the chosen answers, an estimate of KL(reference || policy) in nats as far
        as the answers could be the reference's. rewards/displaced: the share of pairs whose chosen answer has become less
        likely.
        """
        args, mode = self.args, "train" if self.model.training else "eval"
        c, tokens = policy[0] - reference[0], inputs["completion_mask"][: len(policy[0])].sum(1)
        rows = {"kl/chosen": -c / tokens, "rewards/displaced": (c < 0).float()}
        if len(policy) == 3:
            beta = args.beta if args.visual_beta is None else args.visual_beta
            s = policy[2] - reference[2]
            rows |= {
                "rewards/visual_rejected": beta * s,
                "rewards/visual_margins": beta * (c - s),
                "rewards/visual_accuracies": (c > s).float(),
                "logps/visual_rejected": policy[2],
                "loss/visual": logistic_loss(beta * (c - s)),
            }
        if args.anchor_weight:
            rows["loss/anchor"] = logistic_loss(args.beta * c - args.anchor_margin)
        table = torch.stack([*(row.detach().float() for row in rows.values()), loss.detach().float().expand(len(c))])
        *means, total = self.accelerator.gather(table.T.contiguous()).mean(0).tolist()
        for name, mean in zip(rows, means, strict=True):
            self._metrics[mode][name].append(mean)
        if mode == "train" and not torch.isfinite(torch.tensor(total)):
            raise not_finite("the loss", self.state, self.args)

    def _send_telemetry(self) -> None:
        """TRL's usage ping is not sent."""

    # -- going on ------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, **options):
        """Trains. resume_from_checkpoint: a folder, or True for the newest checkpoint that was written to its end (what a kill
        left half-written is passed over; with none, training begins at the start)."""
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(self.args.output_dir, self.args.world_size)
            logger.info("training goes on from %s", found or "the start: there is no complete checkpoint")
            resume_from_checkpoint = str(found) if found else None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)


def _sums(output: FusedCausalLMOutput, inputs) -> Tensor:
    """(rows,) log-probabilities. Prompt learning puts outputs in front: the last ones are those of the rows."""
    return output.log_probs[:, -(inputs["labels"].shape[1] - 1) :].sum(1)


def _first(dataset, n: int) -> list[dict]:
    rows = iter(dataset)
    return [row for row, _ in zip(rows, range(n), strict=False)]


def _has_visual_branch(args: VisualDPOConfig, dataset, collator) -> bool:
    """Whether batches have the third branch. Refuses data that cannot be trained on so."""
    if dataset is None:
        raise UserError(
            "train_dataset is missing: give a datasets.Dataset with images, rejected_images, prompt, chosen, rejected"
        )
    first = next(iter(dataset), None)
    if first is None:
        raise UserError("train_dataset has no rows")
    if "images" not in first and "image" not in first:
        raise UserError(
            f"train_dataset has no column images (it has {', '.join(first)}): for text alone use trl.DPOTrainer"
        )
    rejected = "rejected_images" in first or "rejected_image" in first
    if args.visual_weight and not rejected:
        raise UserError(
            f"visual_weight is {args.visual_weight:g} and train_dataset has no rejected_images (it has {', '.join(first)}): add "
            "the column, or set visual_weight=0 for plain DPO"
        )
    if collator is not None:
        return collator.visual
    if not args.visual_weight and rejected and not args.visual_metrics:
        logger.info(
            "visual_weight is 0: plain DPO, the rejected images are left out (visual_metrics=True reports them)"
        )
    elif not rejected:
        logger.warning("train_dataset has no rejected_images: plain DPO")
    return rejected and bool(args.visual_weight or args.visual_metrics)

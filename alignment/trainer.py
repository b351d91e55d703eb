"""Preference tuning of a vision-language model: DPO, rDPO, mDPO and the joint form on TRL's trainer.

One forward pass of the policy covers all branches. TRL's own losses and metrics are computed from its first two branches by
handing TRL's `_compute_loss` a model that returns what is known already; the visual term and the anchor are added to it.
"""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers.integrations import is_tensorboard_available
from trl import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from ..models import VLM
from ..models.anatomy import find_anatomy
from ..scenes.errors import UserError
from .adapters import check_adapters
from .branches import check_branches, first_rows, forward_rows, row_sums
from .checkpoints import last_complete_checkpoint
from .collator import REFERENCE_COLUMNS, VisualPreferenceCollator
from .config import VisualDPOConfig
from .event_log import EventLog
from .guards import FiniteGradients, RunFolder, RunRecord, not_finite
from .layout import LayoutChecks
from .losses import logistic_loss, loss_terms
from .reference import Reference

logger = logging.getLogger("chiasm")

_TEXT_KEYS = ("input_ids", "attention_mask", "completion_mask")


class VisualDPOTrainer(LayoutChecks, Reference, DPOTrainer):
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
        adapted = not isinstance(model, str) and is_peft_model(model)
        copied = ref_model is None and peft_config is None and not isinstance(model, str) and not adapted
        given = ref_model
        if copied:
            ref_model = copy.deepcopy(model).requires_grad_(False)
        if adapted and ref_model is None and "default" not in model.peft_config:
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
            if given is None:
                self.ref_model = None  # what it says is in the columns now
        else:
            self._check_given_references()
        self.add_callback(FiniteGradients())
        if events:
            self.add_callback(EventLog(os.environ.get("TENSORBOARD_LOGGING_DIR") or Path(args.output_dir) / "runs"))
        if run is not None:
            self.add_callback(RunRecord(run))

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        for name in ("rejected_images", "rejected_image", *REFERENCE_COLUMNS):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def compute_ref_log_probs(self, model, inputs):
        raise UserError("TRL's reference pass knows two branches only: use reference_logps(inputs)")

    # -- the loss ------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs, return_outputs):
        branches = check_branches(inputs)
        options = {"output_router_logits": True} if self.aux_loss_enabled else {}
        output = forward_rows(model, self.anatomy, inputs, self.layout, **options)
        policy = row_sums(output, inputs).chunk(branches)
        names = REFERENCE_COLUMNS[:branches]
        if all(name in inputs for name in names):
            reference = pair = tuple(inputs[name] for name in names)
        else:
            kept = self._reference_output(inputs)
            reference = pair = row_sums(kept, inputs).chunk(branches)
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
        if not isinstance(collator, VisualPreferenceCollator):
            raise UserError(
                f"data_collator is a {type(collator).__name__}: use VisualPreferenceCollator, or leave it out"
            )
        return collator.visual
    if not args.visual_weight and rejected and not args.visual_metrics:
        logger.info(
            "visual_weight is 0: plain DPO, the rejected images are left out (visual_metrics=True reports them)"
        )
    elif not rejected:
        logger.warning("train_dataset has no rejected_images: plain DPO")
    return rejected and bool(args.visual_weight or args.visual_metrics)

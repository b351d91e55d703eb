"""Which layout a trainer's batches are computed in, proved on the first pairs before anything is trained."""

from __future__ import annotations

import contextlib
import copy
import logging

import torch
from trl.models.utils import disable_gradient_checkpointing

from ..scenes.errors import UserError
from .adapters import vision_side_is_frozen
from .branches import forward_rows, plain_logits, row_sums, why_no_features
from .losses import sequence_logps
from .shared_prefix import pays, why_not

logger = logging.getLogger("chiasm")


class LayoutChecks:
    """The part of `VisualDPOTrainer` that picks the layout (see `branches`) and proves it; it reads the trainer's fields."""

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
            if reason is None and layout == "prefix" and not insisted and not given and not self._pays():
                reason = "the answers are about as long as the picture and prompt they would share"
            if reason is None:
                self.data_collator.distinct_images = True
                return layout
            if insisted:
                name = "prefix_sharing" if layout == "prefix" else "share_vision_features"
                raise UserError(f"{name} is not possible: {reason}; leave it out")
            logger.info("every row is computed by itself: %s", reason)
        self.data_collator.distinct_images = False
        return "rows"

    def _pays(self) -> bool:
        return pays(self.data_collator(first_pairs(self.train_dataset, 8)), self.anatomy.hidden_size)

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
        batch = self._prepare_inputs(collator(first_pairs(self.train_dataset, 1)))
        family = self.anatomy.family
        with self._evaluating(), self.accelerator.autocast():
            try:
                fused = row_sums(forward_rows(self.model, self.anatomy, batch, "rows"), batch)
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
        rows = first_pairs(self.train_dataset, 2)
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


def first_pairs(dataset, n: int) -> list[dict]:
    rows = iter(dataset)
    return [row for row, _ in zip(rows, range(n), strict=False)]

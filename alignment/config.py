"""What a preference-tuning run of a vision-language model is told: TRL's own settings and those of the visual terms."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from trl import DPOConfig

from ..scenes.errors import UserError
from .losses import check_weights

PRESETS = {"dpo": (0.0, 0.0), "rdpo": (1.0, 0.0), "mdpo": (1.0, 1.0), "recommended": (1.0, 0.5)}
"""Method: visual_weight, anchor_weight. "recommended" is rDPO with an anchor that holds the chosen answers up."""


@dataclass
class VisualDPOConfig(DPOConfig):
    """Settings of `VisualDPOTrainer`: everything `trl.DPOConfig` takes, and the fields below.

    Defaults that differ from TRL's: `max_length` is None (a cut could fall into the image tokens), `bf16` is off on a CPU
    and on a GPU that has no bfloat16, `report_to` is "none". `precompute_ref_log_probs` works for vision data.

    visual_weight: weight of the visual term; 1 is rDPO, 0 is DPO and leaves the rejected images out. visual_beta: beta of
    the visual margin, default beta. anchor_weight, anchor_margin: mDPO's anchor. visual_loss_type: "sum" of two logistic
    terms, or "joint", one logistic of the summed margins. visual_metrics: compute the third branch for its metrics although
    visual_weight is 0. prefix_sharing: True, False or "auto" (where the model allows it, the first rows agree, and it costs less).
    share_vision_features: encode each distinct picture once; needed only where the prefix is not shared.
    reference_cache_dir: a folder for the reference's log-probabilities, computed once before training; implies
    precompute_ref_log_probs. Raises UserError for values that do not go together, saying why.
    """

    max_length: int | None = field(default=None, metadata={"help": "Longest row in tokens; None cuts nothing."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Where metrics go besides the log."})
    visual_weight: float = field(default=1.0, metadata={"help": "Weight of the visual term (rDPO 1, DPO 0)."})
    visual_beta: float | None = field(default=None, metadata={"help": "Beta of the visual margin; None is beta."})
    anchor_weight: float = field(default=0.0, metadata={"help": "Weight of mDPO's anchor (mDPO 1)."})
    anchor_margin: float = field(default=0.0, metadata={"help": "Margin the anchor asks of the chosen answer."})
    visual_loss_type: str = field(default="sum", metadata={"help": "'sum' or 'joint' (one logistic)."})
    visual_metrics: bool = field(default=False, metadata={"help": "Report visual margins although the weight is 0."})
    prefix_sharing: bool | str = field(default="auto", metadata={"help": "True, False or 'auto'."})
    share_vision_features: bool = field(default=False, metadata={"help": "Encode each distinct picture once."})
    reference_cache_dir: str | None = field(default=None, metadata={"help": "Folder of cached reference log-probs."})

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and has_bf16()
        super().__post_init__()
        check_weights(self.visual_weight, self.anchor_weight, self.anchor_margin, self.visual_loss_type)
        for name in ("beta", "visual_beta"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}: give a number above 0 (0.1 is usual)")
        self.prefix_sharing = {"true": True, "false": False}.get(str(self.prefix_sharing).lower(), self.prefix_sharing)
        if self.prefix_sharing not in (True, False, "auto"):
            raise UserError(f"prefix_sharing is {self.prefix_sharing!r}: use True, False or 'auto'")
        if self.visual_weight or self.anchor_weight:
            self._check_extended()
        if self.ld_alpha is not None and (self.reference_cache_dir or self.precompute_ref_log_probs):
            raise UserError(
                "ld_alpha weights single tokens of the reference, and a cache holds sums: leave one of them out"
            )
        if self.reference_cache_dir and self.sync_ref_model:
            raise UserError(
                "sync_ref_model moves the reference while training, so a cache of it goes stale: leave one of them out"
            )

    def _check_extended(self) -> None:
        """Settings of TRL that have no meaning beside the visual term or the anchor."""
        why = {
            "ld_alpha": "it weights the tokens of two answers by the length they share, and the visual pair has one answer",
            "use_weighting": "its weights are defined for a pair of answers under one picture",
        }
        for name, reason in why.items():
            if getattr(self, name):
                raise UserError(f"{name} does not go with visual_weight or anchor_weight above 0: {reason}")
        if self.f_divergence_type != "reverse_kl":
            raise UserError(
                f"f_divergence_type {self.f_divergence_type!r} does not go with visual_weight or anchor_weight above 0: "
                "the visual term and the anchor are defined for reverse_kl"
            )
        if self.visual_loss_type == "joint" and self.visual_weight and self.loss_type != ["sigmoid"]:
            raise UserError(
                f"visual_loss_type 'joint' is one logistic of both margins and takes the place of loss_type {self.loss_type}: "
                "use loss_type sigmoid, or visual_loss_type sum"
            )


def has_bf16() -> bool:
    """Whether this machine's accelerator computes in bfloat16; a CPU does so several times slower than in float32."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()

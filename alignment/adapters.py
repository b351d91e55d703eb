"""Adapters (LoRA) of a vision-language model: which layers they go on, and the traps that spoil a reference."""

from __future__ import annotations

import logging
import re

from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..models.anatomy import Anatomy, find_anatomy
from ..scenes.errors import UserError

logger = logging.getLogger("chiasm")


def language_lora(
    model: nn.Module,
    *,
    rank: int = 64,
    alpha: int | None = None,
    dropout: float = 0.05,
    projector: bool = False,
    **options,
) -> LoraConfig:
    """A `peft.LoraConfig` for every linear layer of the decoder's blocks and nothing else: not the tower, not the head.

    A bare list such as ["q_proj", "v_proj"] would put adapters on a CLIP tower too, and "all-linear" on the tower and the
    projector. alpha: 2 * rank by default. projector: train the projector as well, inside the adapter (`modules_to_save`),
    so that switching the adapter off gives the reference's projector back. options go to `LoraConfig`.
    """
    anatomy = find_anatomy(model)
    layers = {name for block in anatomy.blocks for name, part in block.named_modules() if isinstance(part, nn.Linear)}
    names = "|".join(re.escape(name) for name in sorted(layers))
    if projector:
        options["modules_to_save"] = [*options.get("modules_to_save", ()), anatomy.layout.projector]
    return LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout,
        target_modules=rf"{re.escape(anatomy.layout.blocks)}\.\d+\.({names})", **options,
    )  # fmt: skip


def check_adapters(model: nn.Module, anatomy: Anatomy, *, shared_reference: bool) -> None:
    """Refuses a model that nothing would train, or whose training would move its own reference.

    shared_reference: the reference is this model with its adapter switched off. Warns of adapters on the vision side.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise UserError(
            "no parameter of this model is trained: pass peft_config=language_lora(model), load the adapter with "
            "is_trainable=True, or call model.requires_grad_(True) for full tuning"
        )
    if shared_reference:
        outside = [name for name in trained if "lora_" not in name and not re.search(r"\.default(\.|$)", name)]
        if outside:
            raise UserError(
                f"{outside[0]!r} and {len(outside) - 1} more parameters are trained outside the adapter, so switching it off "
                "would not give the reference back: put them into modules_to_save (language_lora(model, projector=True))"
            )
    vision = [
        name
        for name, part in anatomy.model.get_submodule(anatomy.layout.vision).named_modules()
        if isinstance(part, BaseTunerLayer)
    ]
    if vision:
        logger.warning(
            "%d layers of the vision tower carry adapters (such as %s); for the language model alone use language_lora(model)",
            len(vision), vision[0],
        )  # fmt: skip


def vision_side_is_frozen(model: nn.Module, anatomy: Anatomy) -> bool:
    """Whether neither the tower nor the projector is trained."""
    inside = (anatomy.layout.vision, anatomy.layout.projector)
    parts = [anatomy.model.get_submodule(path) for path in inside]
    return not any(parameter.requires_grad for part in parts for parameter in part.parameters())

"""Wings that stay on a model, so that whoever opens it has them: in every pass, in every thread, in every copy of it."""

from __future__ import annotations

from functools import cache, wraps
from pathlib import Path

from torch import nn

from ..models import VLM
from ..models.anatomy import find_anatomy
from ..scenes.errors import UserError
from .wing_hooks import attached, open_wings, seen_ids
from .wings import Wings, markers_of


def keep(vlm: VLM, wings: Wings) -> VLM:
    """The same model with the wings on it for good; `vlm.model.wings` are they.

    The model becomes one of a class of its own, whose `forward` attaches the wings around each pass: what generates,
    traces, measures or trains finds them there. They are a part of the model (`state_dict`, `parameters`, `to`), so that a fingerprint
    tells it from the plain one. Raises UserError for a model of other sizes or one that has wings already, later for a pass
    that is made through the decoder alone, and for saving as a Hugging Face folder, which would lose them.
    """
    model = vlm.anatomy.model
    if hasattr(model, "wings"):
        raise UserError(f"{vlm.name} has wings already: open it anew")
    wings.check_sizes(vlm.anatomy)
    model.wing_markers = markers_of(vlm)
    model.__class__ = winged(type(model))
    model.wings = wings.eval()
    vlm.anatomy.decoder.register_forward_pre_hook(_refuse_bare, prepend=True)
    return vlm


def keep_saved(model: nn.Module, processor, folder: str | Path) -> nn.Module:
    """A plain model with the wings of a folder on it: how a member of the organism's family gets them."""
    vlm = VLM(model, processor)
    return keep(vlm, Wings.load(folder, vlm).requires_grad_(False)).model


@cache
def winged(kind: type) -> type:
    """The class of models of this kind with wings."""

    @wraps(kind.forward)
    def forward(self, *args, **kwargs):
        if open_wings() is self.wings:  # somebody attached these very wings, to train them
            return kind.forward(self, *args, **kwargs)
        with attached(self.wings, find_anatomy(self), self.wing_markers, seen_ids(args, kwargs)):
            return kind.forward(self, *args, **kwargs)

    def save_pretrained(self, *args, **kwargs):
        raise UserError("a Hugging Face folder cannot hold wings: save them with model.wings.save(folder)")

    return type(f"Winged{kind.__name__}", (kind,), {"forward": forward, "save_pretrained": save_pretrained})


def _refuse_bare(decoder: nn.Module, args) -> None:
    if open_wings() is None:
        raise UserError(
            "this pass is made through the decoder alone and would miss the model's wings: call the model, or open the "
            "context `model.wings.attached(vlm)` around it"
        )

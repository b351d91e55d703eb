"""Pairs of runs that differ in their picture alone."""

from __future__ import annotations

import torch
from chiasm.models import open_vlm

from ..models.families import build


def two_pictures(name: str):
    """A tiny family in double precision (a picture moves some families' logits by 1e-4), with one picture and with another."""
    model, tensors = build(name)
    vlm = open_vlm(model=model.double())
    torch.manual_seed(1)
    other = tensors | {"pixel_values": 2 * torch.randn_like(tensors["pixel_values"])}
    return vlm, vlm.from_tensors(**tensors), vlm.from_tensors(**other)

"""Tells a model that computes nonsense (damaged weights, an overflowing dtype) before it becomes a table of NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from ..scenes.errors import UserError


def check_finite(vlm, trace, inputs) -> None:
    """Raises UserError naming the first site of the forward pass with a value that is not finite at a real position.

    Looks at "final" and "logits" where the trace has them: one sum and one number to the host, because a value that is
    not finite stays so through the layers. Only when the sum is not finite is the batch read again, at every site.
    """
    total = sum(trace[site].sum(dtype=torch.float32).to(vlm.device) for site in ("final", "logits") if site in trace)
    if torch.isfinite(total):
        return
    again = vlm.trace(
        inputs, sites=["vision.blocks.*.resid_post", "projector", "embed", "blocks.*.resid_post", "final", "logits"]
    )
    for site in again:
        if not _finite_where_real(again[site], inputs.spans.real):
            raise UserError(
                f"values at site {site!r} of {vlm.name} are not finite (NaN or infinite) in dtype {str(vlm.dtype)[6:]}: "
                "check the weights, or use dtype fp32 or bf16"
            )


def _finite_where_real(value: Tensor, real: Tensor) -> bool:
    """Padding may hold anything: a row that attends to nothing is NaN in some kernels."""
    if value.shape[:2] == real.shape:
        value = value[real.to(value.device)]
    return bool(torch.isfinite(value).all())

"""Preference losses of a vision-language model as functions of log-probabilities: DPO, rDPO, mDPO and the joint form.

Every log-probability is that of a whole completion, a sum over its tokens. With policy minus reference written `c` for the
chosen answer under the image, `r` for the rejected answer under the image and `s` for the chosen answer under the rejected
image, the per-row losses are

    text    -log sigma(beta (c - r))                                  DPO
    visual  -log sigma(beta (c - s))                                  rDPO: text + visual
    anchor  -log sigma(beta c - margin)                               mDPO: text + visual + anchor
    joint   -log sigma(beta ((c - r) + visual_weight (c - s)))        in place of text and visual

Sources: DPO (arXiv 2305.18290), Re-Align's rDPO (arXiv 2502.13146), mDPO (arXiv 2406.11839); the joint form is CHiP's
(arXiv 2501.16629) without its token weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..scenes.errors import UserError

IGNORED = -100
"""The label of a position that is not scored."""

VISUAL_LOSS_TYPES = ("sum", "joint")


def sequence_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each row's scored tokens, in nats, computed in float32.

    logits: (B, T, V); labels: (B, T), unshifted: the logits at t-1 score the label at t, -100 is not scored and neither is
    the first position. Returns (B,) sums; a row with nothing scored gives 0. Raises ValueError on a shape mismatch.
    """
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} are not (B, T, V) for labels {tuple(labels.shape)} (B, T)")
    rows, length = labels.shape
    if length < 2:
        return logits.new_zeros(rows, dtype=torch.float32)
    scores = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -scores.view(rows, length - 1).sum(1)


def check_weights(visual_weight: float, anchor_weight: float, anchor_margin: float, visual_loss_type: str) -> None:
    """Raises UserError for a weight below 0, a value that is not a number, or a form that is not known."""
    if visual_loss_type not in VISUAL_LOSS_TYPES:
        raise UserError(f"visual_loss_type {visual_loss_type!r} is not known: use {' or '.join(VISUAL_LOSS_TYPES)}")
    for name, value in (("visual_weight", visual_weight), ("anchor_weight", anchor_weight)):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} is {value}: give a number of 0 or more (0 leaves the term out)")
    if not math.isfinite(anchor_margin):
        raise UserError(f"anchor_margin is {anchor_margin}: give a finite number")


def logistic_loss(margin: Tensor) -> Tensor:
    """-log sigma(margin), finite for every finite margin; log 2 at 0."""
    return -F.logsigmoid(margin)


def loss_terms(
    policy: Sequence[Tensor | None],
    reference: Sequence[Tensor | None],
    *,
    beta: float,
    visual_beta: float | None = None,
    visual_weight: float = 1.0,
    anchor_weight: float = 0.0,
    anchor_margin: float = 0.0,
    visual_loss_type: str = "sum",
) -> dict[str, tuple[float, Tensor]]:
    """The terms of the loss by name, each a weight and its rows (B,); a term of weight 0 is absent.

    Absent rather than multiplied by 0, since 0 times infinity is not a number. Arguments as in `visual_dpo`; visual_beta
    is the beta of the visual margin, by default beta. The third entries may be None where visual_weight is 0.
    """
    check_weights(visual_weight, anchor_weight, anchor_margin, visual_loss_type)
    (c, r), visual_beta = _log_ratios(policy[:2], reference[:2]), beta if visual_beta is None else visual_beta
    terms = {}
    text = beta * (c - r)
    if visual_weight:
        (s,) = _log_ratios(policy[2:], reference[2:])
        visual = visual_beta * (c - s)
        if visual_loss_type == "joint":
            terms["joint"] = (1.0, logistic_loss(text + visual_weight * visual))
        else:
            terms["text"] = (1.0, logistic_loss(text))
            terms["visual"] = (visual_weight, logistic_loss(visual))
    else:
        terms["text"] = (1.0, logistic_loss(text))
    if anchor_weight:
        terms["anchor"] = (anchor_weight, logistic_loss(beta * c - anchor_margin))
    return terms


def visual_dpo(
    policy: Sequence[Tensor | None],
    reference: Sequence[Tensor | None],
    *,
    beta: float,
    visual_weight: float = 1.0,
    anchor_weight: float = 0.0,
    anchor_margin: float = 0.0,
    visual_loss_type: str = "sum",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-row losses and rewards of preference pairs with a rejected answer and a rejected image.

    policy, reference: log-probabilities `(chosen, rejected, visual)` in nats, each (B,): the chosen answer under the image,
    the rejected answer under the image, the chosen answer under the rejected image. visual_weight 1 is rDPO, 0 is DPO,
    anchor_weight 1 besides is mDPO; visual_loss_type "joint" is one logistic of the summed margins. Returns losses (B,) and
    a dict of rewards, beta times the log-ratios `chosen`, `rejected` and `visual`, each (B,) and detached. Policy equal to
    reference gives log 2 for each logistic. Raises UserError for a weight below 0 or an unknown form.
    """
    terms = loss_terms(
        policy, reference, beta=beta, visual_weight=visual_weight, anchor_weight=anchor_weight,
        anchor_margin=anchor_margin, visual_loss_type=visual_loss_type,
    )  # fmt: skip
    losses = sum(weight * rows for weight, rows in terms.values())
    pairs = zip(("chosen", "rejected", "visual"), policy, reference, strict=True)
    rewards = {name: beta * (p - q).detach() for name, p, q in pairs if p is not None and q is not None}
    return losses, rewards


def _log_ratios(policy: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
    for p, q in zip(policy, reference, strict=True):
        if p is None or q is None or p.shape != q.shape:
            shapes = ["none" if x is None else str(tuple(x.shape)) for x in (p, q)]
            raise ValueError(f"log-probabilities of policy and reference differ in shape: {shapes[0]} and {shapes[1]}")
    return [p - q for p, q in zip(policy, reference, strict=True)]

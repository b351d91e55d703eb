"""What tuning did to preference pairs: log-probabilities of their branches under any model, and what policy and reference make of them.

With policy minus reference written `c`, `r`, `s` for the three branches (see `losses`), the implicit rewards are beta c, beta r
and beta s (DPO, arXiv 2305.18290, section 4), the margins beta (c - r) and beta (c - s).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..scenes.errors import UserError
from .branches import plain_logits
from .collator import VisualPreferenceCollator
from .losses import sequence_logps

PICTURES = ("own", "other", "blank")
"""What pairs are shown with: their own picture, another pair's, or a grey one."""


@dataclass(frozen=True)
class PairLogps:
    """Sums of log-probabilities in nats, float64 on the CPU, (N,) each: of the chosen answer, the rejected answer, and the chosen
    answer under the rejected image (None without one). tokens: (N,) of the chosen answer, its end token counted."""

    chosen: Tensor
    rejected: Tensor
    visual: Tensor | None
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.chosen)


@torch.no_grad()
def pair_logps(vlm, pairs: Sequence[Mapping], *, visual: bool = True, batch_size: int = 8) -> PairLogps:
    """The branches of every pair under one model, by the rows that training makes and the model's own head.

    pairs: rows as `VisualPreferenceCollator` tells; visual: read the third branch. Raises UserError as the collator does, and for
    no pairs.
    """
    if not len(pairs):
        raise UserError("there are no preference pairs: give at least one")
    collator = VisualPreferenceCollator(vlm.processor, vlm.anatomy, visual=visual)
    found, tokens = [], []
    for start in range(0, len(pairs), batch_size):
        batch = collator([pairs[i] for i in range(start, min(start + batch_size, len(pairs)))])
        batch = {name: value.to(vlm.device) for name, value in batch.items()}
        batch |= {
            name: x.to(vlm.dtype) for name, x in batch.items() if name.startswith("pixel") and x.is_floating_point()
        }
        rows = sequence_logps(plain_logits(vlm.model, batch), batch["labels"]).double().cpu()
        found.append(rows.view(collator.branches, -1))
        tokens.append(batch["completion_mask"].sum(1).cpu().view(collator.branches, -1)[0])
    chosen, rejected, *more = torch.cat(found, 1)
    return PairLogps(chosen, rejected, more[0] if more else None, torch.cat(tokens))


def rewards(policy: PairLogps, reference: PairLogps, *, beta: float = 0.1) -> dict[str, Tensor]:
    """What one policy gives each pair, (N,) by quantity.

    rewards: chosen, rejected (and visual_rejected): beta times the log-ratios. text_margin, text_accuracy (and visual_...): of the
    chosen over the rejected answer, and of the picture over the rejected one; a tie is half right. displaced: 1 where the chosen
    answer has become less likely. drift: log-ratio of the chosen answer a token, in nats. Raises ValueError for other pairs.
    """
    if len(policy) != len(reference):
        raise ValueError(f"{len(policy)} pairs of the policy and {len(reference)} of the reference: give the same")
    c, r = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    found = {
        "chosen_reward": beta * c, "rejected_reward": beta * r, "text_margin": beta * (c - r), "text_accuracy": _above(c, r),
        "displaced": (c < 0).double(), "drift": c / policy.tokens,
    }  # fmt: skip
    if policy.visual is not None and reference.visual is not None:
        s = policy.visual - reference.visual
        found |= {
            "visual_rejected_reward": beta * s,
            "visual_margin": beta * (c - s),
            "visual_accuracy": _above(c, s),
        }
    return found


def likelihoods(model: PairLogps) -> dict[str, Tensor]:
    """What one model by itself finds likelier, (N,) by quantity: prefers_chosen, prefers_image (1, 0, a tie is half), and the
    log-probability of the chosen answer a token, in nats. No reference enters: this is what generation sees."""
    found = {"prefers_chosen": _above(model.chosen, model.rejected)}
    if model.visual is not None:
        found["prefers_image"] = _above(model.chosen, model.visual)
    return found | {"chosen_logp_a_token": model.chosen / model.tokens}


def shown_with(pairs: Sequence[Mapping], what: str) -> list[dict]:
    """The pairs with other pictures: "own" as they are, "other" the next pair's, "blank" a grey one of the same size.

    A margin that stays with other pictures was learnt from the texts alone. "other" of one pair is refused.
    """
    if what not in PICTURES:
        raise UserError(f"pictures {what!r} are not known: use {', '.join(PICTURES)}")
    rows = [dict(pairs[i]) for i in range(len(pairs))]
    if what == "own":
        return rows
    if what == "other" and len(rows) < 2:
        raise UserError("one pair has no other pair's picture: give two or more")
    every = [row.get("images") or [row["image"]] for row in rows]
    for i, row in enumerate(rows):
        if what == "other":
            row["images"] = every[(i + 1) % len(rows)]
        else:
            row["images"] = [Image.new("RGB", picture.size, (127, 127, 127)) for picture in every[i]]
    return rows


def _above(a: Tensor, b: Tensor) -> Tensor:
    return (a > b).double() + 0.5 * (a == b).double()

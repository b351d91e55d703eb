"""Outlier patches of a vision encoder: their scores, and the choice of the few that stand out.

Source: Gong et al., "DAMRO" (EMNLP 2024, arXiv 2410.04514): a ViT's CLS token attends to a few background patches, and the
language model tends to look at the same ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.vision_attention import combine_heads
from ..scenes.errors import UserError

MODES = ("headmean", "released")
RULES = ("fixed", "ratio", "threshold", "mass")
DEFAULTS = {"fixed": 10, "ratio": 60, "threshold": 6.0, "mass": 0.2}
"""k; patches to one outlier; deviations above the median; share of all score."""


def outlier_scores(query: Tensor, keys: Tensor, *, heads: int, mode: str = "headmean") -> Tensor:
    """Score (N,), fp32, of each patch: what the CLS token's query gives to it.

    query: (C,), keys: (N + 1, C), CLS at row 0, as the layer's projections make them: with their biases, without 1/sqrt(d).
    "headmean": softmax(q_h k_h / sqrt(d)) in every head, mean over heads. "released": one softmax(q k / sqrt(C)) over the
    undivided width. Over all N + 1 keys; then the CLS column is dropped, so that scores sum to less than 1 and are not
    renormalised. Raises ValueError on a shape mismatch or another mode. Source: DAMRO's release.
    """
    if query.dim() != 1 or keys.dim() != 2 or keys.shape[1] != len(query) or len(query) % heads:
        raise ValueError(
            f"query (C,), keys (N+1, C) and heads that divide C are needed, and these are {tuple(query.shape)}, "
            f"{tuple(keys.shape)} and {heads}"
        )
    q, k = query.float().view(heads, 1, -1), keys.float().view(len(keys), heads, -1).transpose(0, 1)
    logits = (q @ k.transpose(1, 2))[:, 0] * q.shape[-1] ** -0.5
    return combine_heads(logits.log_softmax(-1), 1, mode)


def select_outliers(scores: Tensor, *, k: int) -> Tensor:
    """Indices (k,) of the k largest scores (N,), best first, ties to the lower index. Raises UserError for k outside 1..N
    or scores that are not finite."""
    if not 1 <= k <= len(scores):
        raise UserError(f"k {k} is outside 1..{len(scores)}, the number of patches: give a smaller k")
    if not torch.isfinite(scores).all():
        raise UserError(f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} patch scores are not finite")
    return scores.argsort(descending=True, stable=True)[:k]


def choose_k(scores: Tensor, *, rule: str = "ratio", value: float | None = None, patches: int = 1) -> int:
    """How many outliers (at least 1, at most N) the scores (N,) of one picture or tile have.

    "fixed": `value`, for every encoder. "ratio": one in `value` patches (60: 10 of CLIP-L's 576, 4 of EVA's 256).
    "threshold": those above median + `value` * MAD. "mass": the smallest set that holds the share `value` of all score.
    patches: how many patches one candidate was merged from; "fixed" and "ratio", which count patches, then give
    max(1, round(2 k / patches)). Raises UserError for another rule or a value that makes no sense.
    """
    rule, value = check_rule(rule, value)
    if rule in ("fixed", "ratio"):
        k = value if rule == "fixed" else max(1, round(len(scores) * patches / value))
        k = k if patches == 1 else max(1, round(2 * k / patches))
    elif rule == "threshold":
        middle = scores.median()
        k = (scores > middle + value * (scores - middle).abs().median()).sum()
    else:
        share = scores.sort(descending=True).values.cumsum(0) / scores.sum()
        k = (share < value).sum() + 1
    return min(max(int(k), 1), len(scores))


def check_rule(rule: str, value: float | None) -> tuple[str, float]:
    """The rule with its value, the rule's own where none is given. Raises UserError."""
    if rule not in RULES:
        raise UserError(f"rule {rule!r} for the number of outliers is not known: use one of {', '.join(RULES)}")
    value = DEFAULTS[rule] if value is None else value
    if rule == "mass" and not 0 < value <= 1:
        raise UserError(f"rule 'mass' takes a share of the score in (0, 1], got {value}")
    if rule == "fixed" and (value < 1 or value != int(value)):
        raise UserError(f"rule 'fixed' takes a whole number of outliers from 1 up, got {value}")
    if value <= 0:
        raise UserError(f"rule {rule!r} takes a number above 0, got {value}")
    return rule, value


def outlier_set(scores: Tensor, tiles: Tensor, *, rule: str, value: float | None, patches: int = 1) -> Tensor:
    """(N,) bool: the outliers of one picture, chosen in every tile by itself. tiles: (N,) number of each candidate's tile."""
    chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    for tile in set(tiles.tolist()):
        at = torch.nonzero(tiles == tile).flatten()
        k = choose_k(scores[at], rule=rule, value=value, patches=patches)
        chosen[at[select_outliers(scores[at], k=k)]] = True
    return chosen

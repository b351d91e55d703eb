"""What a concept is, in words (through the unembedding) and in pictures (the samples that have most of it).

Source: CoX-LMM (arXiv 2406.08074), section 3.3; the scores of a grounding are in `grounding_scores.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..scenes.errors import UserError

_FUNCTION_WORDS = """
the and for are but not you all any can her was one our out his has had how its may who did yes let put say she too use
that with have this will your from they been were said each which their them then than these those some what when where
there here into onto over under about after before because while also just only very such both more most other same own
off per via nor yet him who whom whose why would could should shall might must does done being upon within without between
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Function words of English, which say nothing of a picture."""

_ROWS = 8192
"""Rows of the unembedding widened to fp32 at a time."""


def concept_logits(vlm, atoms: Tensor, *, final_norm: bool = False, bias: bool = True) -> Tensor:
    """(K, V) fp32 logits of concepts (K, D): W_U u_k, for the ids the tokenizer knows.

    final_norm: apply the model's final norm first, as states read before it need. bias: add the head's bias, where it has one.
    Rows of the head beyond the tokenizer (padding to a round number) are left out. Raises UserError for another width.
    """
    head, norm = vlm.anatomy.unembedding, vlm.anatomy.norm
    if atoms.shape[-1] != head.weight.shape[1]:
        raise UserError(
            f"concepts are {atoms.shape[-1]} wide, this model's words {head.weight.shape[1]}: ground them in their own model"
        )
    device = head.weight.device
    if final_norm:
        like = next(norm.parameters(), head.weight)
        with torch.no_grad():
            atoms = norm(atoms.to(like.device, like.dtype))
    atoms, n = atoms.to(device, torch.float32), min(len(vlm.tokenizer), len(head.weight))
    logits = torch.cat([atoms @ head.weight[i : min(i + _ROWS, n)].detach().float().T for i in range(0, n, _ROWS)], 1)
    return logits + head.bias[:n].detach().float() if bias and getattr(head, "bias", None) is not None else logits


def ground_words(
    vlm, atoms: Tensor, *, n: int = 10, candidates: int = 50, final_norm: bool = False, bias: bool = True,
    words: Collection[str] | None = None, stop: Collection[str] = STOP_WORDS, unique: bool = False,
) -> list[list[str]]:  # fmt: skip
    """For each concept (K, D) its first n words: those of the largest logits among `candidates` tokens, in that order.

    Each token is decoded alone, stripped and lower-cased, and kept if it is a number, or longer than two letters, not in `stop` and in
    the list `words` (None: letters only, so pieces of words stay in). unique: name a word once (tokens "dog" and " Dog" are
    one word twice). A PCA concept has no sign of its own: ground its negative as well. Other arguments as in `concept_logits`.
    """
    logits = concept_logits(vlm, atoms, final_norm=final_norm, bias=bias)
    special = [i for i in vlm.tokenizer.all_special_ids if i < logits.shape[1]]
    logits[:, special] = -torch.inf
    kept = []
    for row in logits.topk(min(candidates, logits.shape[1] - len(special))).indices.tolist():
        told = [word for i in row if _says_something(word := vlm.tokenizer.decode([i]).strip().lower(), words, stop)]
        kept.append((list(dict.fromkeys(told)) if unique else told)[:n])
    return kept


def random_words(vlm, lists: int, *, seed: int = 0, **options) -> list[list[str]]:
    """The control: words of `lists` directions drawn evenly, by the same filter and to the same length."""
    generator = torch.Generator().manual_seed(seed)
    return ground_words(
        vlm, torch.randn(lists, vlm.anatomy.unembedding.weight.shape[1], generator=generator), **options
    )


def top_samples(codes: Tensor, n: int = 5, *, absolute: bool = False) -> list[list[int]]:
    """For each concept the rows of codes (M, K) with most of it, most first; absolute: by size, which PCA's signs ask for."""
    order = (codes.abs() if absolute else codes).argsort(dim=0, descending=True, stable=True)
    return order[:n].T.tolist()


def overlap_score(words: Sequence[Sequence[str]]) -> float:
    """Mean over ordered pairs of concepts k, l of the share of k's words that are l's, too; repeats count, an empty list has 0.

    1 for identical lists, 0 for disjoint ones; NaN for a single concept.
    """
    shares = [
        sum(word in set(other) for word in own) / len(own) if own else 0.0
        for i, own in enumerate(words)
        for j, other in enumerate(words)
        if i != j
    ]
    return sum(shares) / len(shares) if shares else float("nan")


def shared_share(first: Sequence, second: Sequence, size: int) -> float:
    """T-Overlap: how many of `size` words, or samples, two lists have in common, in percent."""
    return 100 * len(set(first) & set(second)) / size


def _says_something(word: str, words: Collection[str] | None, stop: Collection[str]) -> bool:
    if re.fullmatch(r"[-+]?\d+([.,]\d+)*", word):
        return True
    return len(word) > 2 and word not in stop and (word in words if words is not None else word.isalpha())

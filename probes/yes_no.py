"""Yes or no: read from what a model wrote, by our rule and by the three in use, or from the probabilities of its first token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..scenes.errors import UserError
from .bootstrap import Tally, estimates, ratio, units
from .logistic import auc_interval

ANSWERS = ("yes", "no")
UNPARSED = "unparsed"
RULES = ("default", "official", "opera", "vcd")
BINS = 10

_ENDS = re.compile(r"^[\W_]+|[\W_]+$")
_FIRST = re.compile(r"^(yes|no)\b")
_ANY = re.compile(r"\b(yes|no)\b")


def parse_yes_no(answer: str, *, rule: str = "default", label: str | None = None) -> str:
    """ "yes", "no" or "unparsed": what an answer says, by one of four rules.

    default: lower case, trimmed of space, punctuation and markup at both ends; then a leading yes or no, else the first
    whole word yes or no before the first . ! or ?, else "unparsed". It never looks at the label.
    official (POPE): before the first ".", without commas; no if a word is No, not or no, else yes.
    opera (OPERA, PAI): without "." and ","; no if a word is No, not, no, NO or ends in n't, else yes.
    vcd (VCD, DAMRO): the label where it is a substring of the lower-cased answer, else the other word. It needs the label, and
    so calls an answer with both words right and one with neither wrong: offered for comparison with published numbers only.
    Raises UserError.
    """
    if rule not in RULES:
        raise UserError(f"rule {rule!r} is not known: use {', '.join(RULES)}")
    if not isinstance(answer, str):
        raise UserError(f"an answer is text, got {answer!r}: give an empty text where the model said nothing")
    if rule == "official":
        words = answer.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "not", "no"} & set(words) else "yes"
    if rule == "opera":
        words = answer.replace(".", "").replace(",", "").split(" ")
        return "no" if {"No", "not", "no", "NO"} & set(words) or any(w.endswith("n't") for w in words) else "yes"
    if rule == "vcd":
        if label is None:
            raise UserError(
                "rule 'vcd' scores an answer by its label, got none: give label='yes' or 'no', or use 'default'"
            )
        label = check_label(label)
        return label if label in answer.lower() else ANSWERS[label == "yes"]
    trimmed = _ENDS.sub("", answer.lower())
    found = _FIRST.search(trimmed) or _ANY.search(re.split("[.!?]", trimmed, maxsplit=1)[0])
    return found[1] if found else UNPARSED


def parse_mme(answer: str) -> str:
    """MME's rule: exactly yes or no, else whichever of them, yes first, is in the first four characters ("not sure" is no)."""
    start = answer.strip().lower()[:4]
    return next((word for word in ANSWERS if word in start), UNPARSED)


def check_label(label: Any) -> str:
    """A label as "yes" or "no". Raises UserError."""
    word = label.strip().lower() if isinstance(label, str) else label
    if word not in ANSWERS:
        raise UserError(f"a label is 'yes' or 'no', got {label!r}: correct it")
    return word


def yes_no_ids(tokenizer) -> tuple[list[int], list[int]]:
    """The ids of every token that is yes, and of every one that is no: in any case, with or without a space before it.

    Raises UserError where the vocabulary lacks either, since then the first token does not tell the answer.
    """
    vocabulary = tokenizer.get_vocab().items()
    found = tuple(
        sorted(i for token, i in vocabulary if word in token.lower() and tokenizer.decode([i]).strip().lower() == word)
        for word in ANSWERS
    )
    for word, ids in zip(ANSWERS, found, strict=True):
        if not ids:
            raise UserError(f"this tokenizer has no token that is {word!r}: generate answers and parse them instead")
    return found


def yes_no_probabilities(logits: Tensor, tokenizer) -> Tensor:
    """(B, V) logits at the first position of each answer -> (B, 2) probability of all ways to say yes, and to say no."""
    yes, no = yes_no_ids(tokenizer)
    p = torch.softmax(logits.detach().float(), -1)
    return torch.stack([p[:, yes].sum(-1), p[:, no].sum(-1)], -1)


def probability_metrics(
    logits: Tensor, labels: Sequence[str], tokenizer, *, images: Sequence | None = None, bins: int = BINS
) -> dict[str, dict[str, float]]:
    """Yes/no questions scored without generating: logits (B, V) at the first position of each answer, labels "yes" or "no".

    p = P(yes) / (P(yes) + P(no)), each summed over its variants. auc: of p for the label yes (NaN with one kind of label).
    accuracy: p > ½ for yes, a tie is wrong. ece: expected calibration error of p over `bins` bins of equal width (Guo et al.
    2017), biased upwards where bins are thin. mass: mean of P(yes) + P(no); where it is small the model would say something
    else, and the rest means little. Each as {"mean", "low", "high", "n"}, images drawn with replacement.
    Raises UserError.
    """
    if logits.ndim != 2 or len(logits) != len(labels):
        raise UserError(f"logits are (answers, vocabulary), got {tuple(logits.shape)} for {len(labels)} labels")
    both = yes_no_probabilities(logits, tokenizer).double().cpu().numpy()
    return metrics_of_probabilities(both, labels, images=images, bins=bins)


def metrics_of_probabilities(
    both: np.ndarray, labels: Sequence[str], *, images: Sequence | None = None, bins: int = BINS
) -> dict[str, dict[str, float]]:
    """`probability_metrics` of (B, 2) probabilities of yes and of no."""
    truth = np.array([check_label(label) == "yes" for label in labels])
    mass = both.sum(1)
    p = ratio(both[:, 0], mass)
    right = np.where(truth, p > 0.5, p < 0.5)
    bin_of = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.zeros((len(p), bins))
    gap[np.arange(len(p)), bin_of] = p - truth  # the error of a bin is the sum of these, whatever its size
    counts = np.column_stack([np.ones(len(p)), right, mass, gap])

    def metrics(s: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "accuracy": ratio(s[..., 1], s[..., 0]),
            "mass": ratio(s[..., 2], s[..., 0]),
            "ece": ratio(np.abs(s[..., 3:]).sum(-1), s[..., 0]),
        }

    mean, low, high = auc_interval(p, truth, units(images, len(p)))
    return {
        "auc": {"mean": mean, "low": low, "high": high, "n": len(p)},
        **estimates(Tally(counts, metrics, {"accuracy": 1}), images),
    }

"""How much a model makes up, from its answers: POPE, CHAIR, MME's hallucination subset, HallusionBench (AMBER beside it).

Every `..._metrics` gives {metric: {"mean", "low", "high", "n"}}, fractions unless its name says otherwise, 95 % intervals
by the bootstrap with the image as the unit; a ratio without a denominator is 0. Every `..._tally` is the same before any
average, for `comparison` of several systems on the same items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..scenes.errors import UserError
from .amber import amber_metrics
from .bootstrap import Tally, estimates, harmonic_mean, nested, ratio
from .comparison import comparison
from .mentions import Matcher, same_length, scene_synonyms
from .yes_no import UNPARSED, check_label, parse_mme, parse_yes_no, probability_metrics

__all__ = [
    "amber_metrics", "chair_metrics", "chair_tally", "comparison", "hallusion_metrics", "hallusion_tally", "mme_metrics",
    "mme_tally", "parse_yes_no", "pope_metrics", "pope_splits", "pope_tally", "probability_metrics", "same_length", "scene_synonyms",
]  # fmt: skip

Metrics = dict[str, dict[str, float]]


def pope_metrics(
    answers: Sequence[str], labels: Sequence[str], *, rule: str = "default", images: Sequence | None = None
) -> Metrics:
    """POPE (Li et al. 2023, arXiv 2305.10355): accuracy, precision, recall, f1, yes_ratio, unparsed_rate; positive is yes.

    answers: as the model wrote them; labels: "yes" or "no" for each. rule: of `parse_yes_no`; an answer that says neither is
    wrong whatever the label. images: the image of each answer. Raises UserError.
    """
    return estimates(pope_tally(answers, labels, rule=rule), images)


def pope_tally(answers: Sequence[str], labels: Sequence[str], *, rule: str = "default") -> Tally:
    """What `pope_metrics` counts of each answer."""
    said, truth = _said(answers, labels, _by(rule))
    yes, wanted = said == "yes", truth == "yes"
    counts = np.column_stack([np.ones(len(said)), said == truth, yes & wanted, yes, wanted, said == UNPARSED])
    return Tally(counts.astype(float), _pope, {"accuracy": 1, "yes_ratio": 3, "unparsed_rate": 5})


def pope_splits(
    answers: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[str]],
    images: Mapping[str, Sequence] | None = None,
    *,
    rule: str = "default",
) -> dict[str, Metrics]:
    """`pope_metrics` of each split, and under "mean" the mean over splits.

    The splits share images and positive questions, so the interval of the mean draws an image's questions of all splits
    together. All by split: answers, labels, images (without them the mean takes every answer for independent).
    Raises UserError.
    """
    if answers.keys() != labels.keys() or (images is not None and answers.keys() != images.keys()):
        raise UserError(
            f"answers are of the splits {list(answers)}, labels of {list(labels)}: give both, and images, by split"
        )
    tallies = [pope_tally(answers[split], labels[split], rule=rule) for split in answers]
    width = tallies[0].counts.shape[1]
    counts = np.concatenate([
        np.pad(tally.counts, ((0, 0), (i * width, (len(tallies) - i - 1) * width))) for i, tally in enumerate(tallies)
    ])  # fmt: skip

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        parts = _pope(sums.reshape(*sums.shape[:-1], len(tallies), width))
        found = {f"{split}/{name}": v[..., i] for i, split in enumerate(answers) for name, v in parts.items()}
        return found | {f"mean/{name}": values.mean(-1) for name, values in parts.items()}

    sizes = {
        f"{s}/{name}": len(t.counts) for s, t in zip(answers, tallies, strict=True) for name in _pope(np.zeros(width))
    }
    pictures = None if images is None else [image for split in answers for image in images[split]]
    return nested(estimates(Tally(counts, metrics, sizes=sizes), pictures))


def _pope(s: np.ndarray) -> dict[str, np.ndarray]:
    n, right, both, yes, wanted, unparsed = np.moveaxis(s, -1, 0)
    return {
        "accuracy": ratio(right, n),
        "precision": ratio(both, yes),
        "recall": ratio(both, wanted),
        "f1": ratio(2 * both, yes + wanted),
        "yes_ratio": ratio(yes, n),
        "unparsed_rate": ratio(unparsed, n),
    }


def chair_metrics(
    captions: Sequence[str],
    truth: Sequence[Iterable[str]],
    *,
    synonyms: Mapping[str, Iterable[str]] | None = None,
    mode: str = "nouns",
    images: Sequence | None = None,
) -> Metrics:
    """CHAIR (Rohrbach et al. 2018, arXiv 1809.02156): chair_s, chair_i, recall, f1; mean_length, objects_per_caption.

    chair_i: hallucinated object mentions / object mentions, repetitions counted; chair_s: captions with at least one /
    captions; recall: true objects mentioned / true objects; f1: harmonic mean of 1 - chair_i and recall. CHAIR falls when
    captions get shorter, so it means nothing without recall, mean_length (words) and objects_per_caption (mentions); see
    `same_length`. truth: the canonical names of what is in each image; synonyms, mode: as in `Matcher`. Raises UserError.
    """
    return estimates(chair_tally(captions, truth, synonyms=synonyms, mode=mode), images)


def chair_tally(
    captions: Sequence[str],
    truth: Sequence[Iterable[str]],
    *,
    synonyms: Mapping[str, Iterable[str]] | None = None,
    mode: str = "nouns",
) -> Tally:
    """What `chair_metrics` counts of each caption."""
    if len(captions) != len(truth):
        raise UserError(
            f"{len(captions)} captions, {len(truth)} truths: give the true objects of each caption, in order"
        )
    matcher, rows = Matcher(synonyms, mode), []
    for number, (caption, names) in enumerate(zip(captions, truth, strict=True)):
        there = {names} if isinstance(names, str) else set(names)
        if unknown := sorted(there - matcher.names):
            raise UserError(
                f"truth {number} has {unknown[0]!r}, which no caption can mention: use the table's {len(matcher.names)} canonical "
                "names, or give synonyms that have it"
            )
        said = matcher(caption)
        invented = sum(name not in there for name in said)
        recalled = len(there & set(said))
        rows.append([1, invented > 0, len(said), invented, recalled, len(there), len(caption.split())])
    return Tally(np.array(rows, float).reshape(len(rows), 7), _chair, {"chair_s": 1})


def _chair(s: np.ndarray) -> dict[str, np.ndarray]:
    n, any_invented, mentions, invented, recalled, there, words = np.moveaxis(s, -1, 0)
    chair_i, recall = ratio(invented, mentions), ratio(recalled, there)
    return {
        "chair_s": ratio(any_invented, n),
        "chair_i": chair_i,
        "recall": recall,
        "f1": harmonic_mean(1 - chair_i, recall),
        "mean_length": ratio(words, n),
        "objects_per_caption": ratio(mentions, n),
    }


def mme_metrics(answers: Sequence[str], labels: Sequence[str], *, images: Sequence | None = None) -> Metrics:
    """One task of MME (Fu et al. 2023, arXiv 2306.13394): accuracy, accuracy_plus, score (0 to 200), unparsed_rate.

    accuracy_plus: images with all questions right / images (its n); score: 100 × both. Answers are read by `parse_mme`.
    images: the image of each answer; without them each two consecutive answers are about one. Raises UserError.
    """
    pictures = mme_images(len(answers)) if images is None else images
    return estimates(mme_tally(answers, labels, images=pictures), pictures)


def mme_images(n: int) -> np.ndarray:
    """(n,) the image of each of n answers in MME's order, two questions an image. Raises UserError for an odd n."""
    if n % 2:
        raise UserError(f"MME asks two questions an image, got {n} answers: give all of them, or the image of each")
    return np.arange(n) // 2


def mme_tally(answers: Sequence[str], labels: Sequence[str], *, images: Sequence | None = None) -> Tally:
    """What `mme_metrics` counts of each answer; give the same images to what uses it."""
    said, truth = _said(answers, labels, lambda answer, label: parse_mme(answer))
    right = said == truth
    all_right, first = _groups(mme_images(len(said)) if images is None else images, right)
    counts = np.column_stack([np.ones(len(said)), right, all_right, first, said == UNPARSED]).astype(float)
    return Tally(counts, _mme, {"accuracy": 1, "unparsed_rate": 4}, {"accuracy_plus": int(first.sum())})


def _mme(s: np.ndarray) -> dict[str, np.ndarray]:
    n, right, all_right, groups, unparsed = np.moveaxis(s, -1, 0)
    accuracy, plus = ratio(right, n), ratio(all_right, groups)
    return {
        "accuracy": accuracy,
        "accuracy_plus": plus,
        "score": 100 * (accuracy + plus),
        "unparsed_rate": ratio(unparsed, n),
    }


def hallusion_metrics(
    answers: Sequence[str], labels: Sequence[str], *, images: Sequence, pairs: Sequence, rule: str = "default"
) -> Metrics:
    """HallusionBench (Guan et al. 2024, arXiv 2310.14566): accuracy, figure_accuracy, pair_accuracy, unparsed_rate.

    images: the figure of each question, None where it has none; figure_accuracy: figures with all questions right / figures.
    pairs: the name of each question, the same for all variants of its figure; pair_accuracy: names right on all variants /
    names. Published figures are graded by GPT-4, these by `parse_yes_no`. Figures that share a question are drawn together.
    Raises UserError.
    """
    tally = hallusion_tally(answers, labels, images=images, pairs=pairs, rule=rule)
    return estimates(tally, hallusion_sets(images, pairs))


def hallusion_tally(
    answers: Sequence[str], labels: Sequence[str], *, images: Sequence, pairs: Sequence, rule: str = "default"
) -> Tally:
    """What `hallusion_metrics` counts of each answer; its units are `hallusion_sets`."""
    said, truth = _said(answers, labels, _by(rule))
    right = said == truth
    figures = _groups(images, right, "images")
    questions = _groups(pairs, right, "pairs")
    counts = np.column_stack([np.ones(len(said)), right, *figures, *questions, said == UNPARSED]).astype(float)
    sizes = {"figure_accuracy": int(figures[1].sum()), "pair_accuracy": int(questions[1].sum())}
    return Tally(counts, _hallusion, {"accuracy": 1, "unparsed_rate": 6}, sizes)


def hallusion_sets(images: Sequence, pairs: Sequence) -> np.ndarray:
    """(n,) the set each question belongs to: figures and questions that are linked, directly or through others."""
    figure, question = (pd.factorize(pd.Series(list(names), dtype=object))[0] for names in (images, pairs))
    question = question + figure.max(initial=-1) + 1
    linked = figure >= 0
    n = int(question.max()) + 1
    edges = coo_array((np.ones(linked.sum()), (figure[linked], question[linked])), shape=(n, n))
    return connected_components(edges, directed=False)[1][question]


def _hallusion(s: np.ndarray) -> dict[str, np.ndarray]:
    n, right, figures_right, figures, pairs_right, pairs, unparsed = np.moveaxis(s, -1, 0)
    return {
        "accuracy": ratio(right, n),
        "figure_accuracy": ratio(figures_right, figures),
        "pair_accuracy": ratio(pairs_right, pairs),
        "unparsed_rate": ratio(unparsed, n),
    }


def _said(
    answers: Sequence[str], labels: Sequence[str], parse: Callable[[str, str], str]
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) what each answer says, given the answer and its label; (n,) what is true."""
    if len(answers) != len(labels):
        raise UserError(
            f"{len(answers)} answers, {len(labels)} labels: give the label of each answer, in the same order"
        )
    truth = [check_label(label) for label in labels]
    said = [parse(answer, label) for answer, label in zip(answers, truth, strict=True)]
    return np.array(said, dtype=object), np.array(truth, dtype=object)


def _by(rule: str) -> Callable[[str, str], str]:
    return lambda answer, label: parse_yes_no(answer, rule=rule, label=label)


def _groups(names: Sequence, right: np.ndarray, what: str = "images") -> tuple[np.ndarray, np.ndarray]:
    """Two columns that count groups of answers: 1 at the first answer of each, and of each that is right throughout."""
    if len(names) != len(right):
        raise UserError(f"{len(names)} {what} for {len(right)} answers: give one for each answer, in the same order")
    numbers, found = pd.factorize(pd.Series(list(names), dtype=object))
    named = numbers >= 0
    all_right = np.bincount(numbers[named], ~right[named], minlength=len(found)) == 0
    first = np.zeros(len(right), bool)
    first[np.unique(numbers, return_index=True)[1]] = True
    first &= named
    return first & all_right[numbers] if len(found) else first, first

"""AMBER (Wang et al. 2023, arXiv 2311.07397): what descriptions make up, leave out and are lured into; yes/no questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..scenes.errors import UserError
from .bootstrap import Tally, estimates, harmonic_mean, nested, ratio
from .mentions import Matcher, singular
from .yes_no import check_label, parse_yes_no

SIMILAR = 0.8
START = 0.001
"""What every denominator of the release starts from."""

KINDS = ("existence", "state", "number", "action", "relation")
TYPES = {
    "discriminative": KINDS,
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
    "relation": ("relation",),
}
"""What is reported of yes/no questions -> the kinds of question in it."""

_DESCRIBED, _ASKED = 9, 5  # numbers counted of a description, and of a question


def amber_metrics(
    responses: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    *,
    associations: Mapping[str, Iterable[str]] | None = None,
    safe_words: Iterable[str] = (),
    vocabulary: Iterable[str] | None = None,
    compat: bool = False,
    images: Mapping[Any, Any] | None = None,
    similar: Callable[[str, str], float] | None = None,
) -> dict[str, Any]:
    """{metric: {"mean", "low", "high", "n"}} of descriptions, and {kind: {metric: …}} of questions, of what is annotated.

    responses: {"id", "response"}; annotations: {"id", "type", "truth", "hallu"} as published, truth "yes" or "no" for
    questions; joined by id. associations: object -> words as good. safe_words: never made up. vocabulary: the words that are
    objects (default: all in associations and annotations). images: id -> image, the unit of the bootstrap.

    Descriptions, sums over all: chair: mentioned objects, repetitions included, that are neither true, nor as good, nor safe /
    mentioned objects; cover: distinct true objects mentioned / those; hal: responses with an object made up / responses; cog:
    objects a model is likely to make up that are mentioned / those listed; cog_mentioned: mentions of such / mentioned objects
    (the paper's). Questions (`TYPES`): accuracy, precision, recall, f1; the positive answer is no. score: 50 × (1 - chair + f1
    of all questions), where there are both.

    Nouns are found by reduction to the singular and the vocabulary, without the release's tagger. similar: similarity of two
    words (the release: spaCy's vectors), above 0.8 as good; default: none is. compat: the release's quirks: no lower-casing,
    likely objects rescued by similarity, true objects listed twice counted twice, denominators that start at 0.001, F1 from
    rounded values plus a constant, only "Yes" and "No" understood. Raises UserError, also for an id without a response.
    """
    tally, names = amber_tally(
        responses, annotations, associations=associations, safe_words=safe_words, vocabulary=vocabulary, compat=compat,
        similar=similar,
    )  # fmt: skip
    by_name = {str(name): image for name, image in (images or {}).items()}
    if images is not None and (missing := [name for name in names if name not in by_name]):
        raise UserError(f"id {missing[0]!r} has no image: name the image of every annotated id, or of none")
    return nested(estimates(tally, None if images is None else [by_name[name] for name in names]))


def amber_tally(
    responses: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], *, associations=None,
    safe_words=(), vocabulary=None, compat=False, similar=None,
) -> tuple[Tally, list[str]]:  # fmt: skip
    """What `amber_metrics` counts of each annotated id, and these ids."""
    said: dict[str, str] = {}
    for one in responses:
        if str(one["id"]) in said:
            raise UserError(f"id {one['id']!r} has two responses: give one")
        said[str(one["id"])] = one["response"]
    names = [str(one["id"]) for one in annotations]  # the release has numbers, samples have text
    if missing := [name for name in names if name not in said]:
        raise UserError(f"id {missing[0]!r} has no response ({len(missing)} ids in all): give one for every annotation")
    describe = _descriptions(annotations, associations or {}, safe_words, vocabulary, compat, similar)
    counts = np.zeros((len(annotations), _DESCRIBED + _ASKED * len(KINDS)))
    for row, name, one in zip(counts, names, annotations, strict=True):
        if one["type"] == "generative":
            row[:_DESCRIBED] = describe(said[name], one)
        else:
            start = _DESCRIBED + _ASKED * KINDS.index(_kind(one["type"]))
            row[start : start + _ASKED] = _question(said[name], check_label(one["truth"]), compat)
    asked = counts[:, _DESCRIBED:].sum(0).reshape(-1, _ASKED)[:, 0]
    sizes = {kind: int(sum(asked[KINDS.index(part)] for part in parts)) for kind, parts in TYPES.items()}
    described = int(counts[:, 0].sum())

    def metrics(s: np.ndarray) -> dict[str, np.ndarray]:
        found = _generative(s[..., :_DESCRIBED], compat) if described else {}
        parts = s[..., _DESCRIBED:].reshape(*s.shape[:-1], len(KINDS), _ASKED)
        for kind in (kind for kind, size in sizes.items() if size):
            sums = parts[..., [KINDS.index(part) for part in TYPES[kind]], :].sum(-2)
            found |= {f"{kind}/{name}": v for name, v in _discriminative(sums, compat, kind).items()}
        if described and sizes["discriminative"]:
            found["score"] = 50 * (1 - found["chair"] + found["discriminative/f1"])
        return found

    about = {name: name.split("/")[0] for name in metrics(counts.sum(0)) if name != "score"}
    return Tally(counts, metrics, sizes={name: sizes.get(kind, described) for name, kind in about.items()}), names


def _descriptions(annotations, associations, safe_words, vocabulary, compat: bool, similar):
    """(response, annotation) -> the nine numbers `_generative` needs of a description."""
    case = (lambda word: word) if compat else str.lower
    good = {case(word): [case(other) for other in others] for word, others in associations.items()}
    safe = {case(word) for word in safe_words}
    listed = {
        case(w)
        for one in annotations
        if one["type"] == "generative"
        for w in (*one["truth"], *(one.get("hallu") or ()))
    }
    words = {case(word) for word in vocabulary} if vocabulary is not None else listed.union(good, *good.values())
    nouns = Matcher(dict.fromkeys(words, ()), no_object=())

    def near(noun: str, objects: dict[str, int]) -> str | None:
        """The object a noun stands for by similarity."""
        return next((one for one in objects if similar and similar(noun, one) > SIMILAR), None)

    def mentioned_in(response: str) -> list[str]:
        if not compat:
            return nouns(response)
        found = (word if word in words else singular(word) for word in re.findall(r"\w+", response))
        return [word for word in found if word in words]

    def counts(response: str, one: Mapping[str, Any]) -> list[float]:
        truth, hallu = ([case(word) for word in one.get(key) or ()] for key in ("truth", "hallu"))
        true, lure = stands_for(truth, good), stands_for(hallu, good)
        mentioned, covered, lured, lures, invented = mentioned_in(response), set(), set(), 0, 0
        for noun in mentioned:
            if noun in safe:
                continue
            if noun in true:
                covered.add(true[noun])
                continue
            bait = lure.get(noun) or lure.get(near(noun, lure))
            if bait is not None:
                lures += 1
                lured.add(bait)
            rescued = near(noun, true) if compat or bait is None else None
            if rescued is None:
                invented += 1
            else:
                covered.add(true[rescued])
        in_truth, in_hallu = (len(listing if compat else set(listing)) for listing in (truth, hallu))
        return [1, len(mentioned), invented, invented > 0, len(covered), in_truth, len(lured), in_hallu, lures]

    return counts


def stands_for(objects: Sequence[str], good: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Word -> the object it stands for: each for itself, then the words as good, the first that has them."""
    found = {name: name for name in objects}
    for name in objects:
        for word in good.get(name, ()):
            found.setdefault(word, name)
    return found


def _kind(kind: str) -> str:
    """Which of `KINDS` a published type of question is."""
    last = kind.rpartition("-")[2]
    last = "existence" if last == "hallucination" else last
    if last not in KINDS:
        raise UserError(f"type {kind!r} is not known: use 'generative' or 'discriminative-' with {', '.join(KINDS)}")
    return last


def _question(response: str, label: str, compat: bool) -> list[float]:
    """1, whether right, no said and true, no said, no true."""
    said = {"Yes": "yes", "No": "no"}.get(response) if compat else parse_yes_no(response)
    return [1, said == label, said == label == "no", said == "no", label == "no"]


def _generative(s: np.ndarray, compat: bool) -> dict[str, np.ndarray]:
    n, mentioned, invented, any_invented, covered, true, lured, likely, lures = np.moveaxis(s, -1, 0)
    start = START * compat
    return {
        "chair": ratio(invented, mentioned + start),
        "cover": ratio(covered, true + start),
        "hal": 1 - ratio(n - any_invented, n + start) if compat else ratio(any_invented, n),
        "cog": ratio(lured, likely + start),
        "cog_mentioned": ratio(lures, mentioned + start),
    }


def _discriminative(s: np.ndarray, compat: bool, kind: str) -> dict[str, np.ndarray]:
    n, right, both, said, true = np.moveaxis(s, -1, 0)
    start = START * compat
    precision, recall = ratio(both, said + start), ratio(both, true + start)
    f1 = harmonic_mean(precision, recall)
    if compat:
        p, r = precision.round(3), recall.round(3)
        f1 = 2 * p * r / (p + r + (0.001 if kind == "existence" else 0.0001))
    return {"accuracy": ratio(right, n + start), "precision": precision, "recall": recall, "f1": f1}

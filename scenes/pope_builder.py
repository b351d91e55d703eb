"""Building POPE's questions from lists of what is in pictures (Li et al. 2023, arXiv 2305.10355, section 4)."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .errors import UserError
from .words import with_article
from .world import Scene

STRATEGIES = ("random", "popular", "adversarial")
PAIRS = 3
"""Questions with the answer yes, and as many with the answer no, about each picture."""


def build_pope(
    images: Iterable[Mapping[str, Any]], strategy: str, seed: int = 0, *, n: int | None = None
) -> list[dict[str, Any]]:
    """Six questions a picture, yes and no in turn, as the records of a POPE file.

    images: {"image": name, "objects": names in listed order}; an object listed again counts once, and a picture with fewer
    than three is left out. n: draw so many of the others (the published files have 500), in their order; default: all.
    Positives are the first three listed. The negative after each is never in the picture nor asked for it already.
    random: uniform over all objects of the pictures used. popular: the most frequent one. adversarial: the one most often
    in a picture together with the positive just asked, or a random one where no such is left. Frequencies count pictures;
    ties go to the object seen first.
    Returns {"question_id": 1…, "image", "text", "label"}, which `PopeQuestions` reads. Raises UserError.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"strategy {strategy!r} is not known: use {', '.join(STRATEGIES)}")
    rng = random.Random(seed)
    listed = [(entry["image"], list(dict.fromkeys(entry["objects"]))) for entry in images]
    listed = [(image, objects) for image, objects in listed if len(objects) >= PAIRS]
    if not listed:
        raise UserError(f"no picture has {PAIRS} different objects or more: POPE cannot be built from these")
    if n is not None:
        if not 1 <= n <= len(listed):
            raise UserError(
                f"n={n} pictures asked for, {len(listed)} have {PAIRS} objects or more: give 1 to {len(listed)}"
            )
        listed = [listed[i] for i in sorted(rng.sample(range(len(listed)), n))]
    often, together = _frequencies(objects for _, objects in listed)
    records: list[dict[str, Any]] = []
    for image, objects in listed:
        taken = set(objects)
        for positive in objects[:PAIRS]:
            left = [name for name in often if name not in taken]
            if not left:
                raise UserError(
                    f"picture {image!r} leaves no object to ask for in vain: give pictures with other objects"
                )
            near = [name for name in together[positive] if name not in taken]
            negative = {"random": None, "popular": left[0], "adversarial": near[0] if near else None}[strategy]
            negative = negative or rng.choice(left)
            taken.add(negative)
            for name, label in ((positive, "yes"), (negative, "no")):
                asked = f"Is there {with_article(name)} in the image?"
                records.append({"question_id": len(records) + 1, "image": image, "text": asked, "label": label})
    return records


def scene_objects(scenes: Iterable[Scene]) -> Iterator[dict[str, Any]]:
    """Scenes as `build_pope` takes them: the image is "scene-SEED", the objects are its categories."""
    for scene in scenes:
        yield {"image": f"scene-{scene.seed}", "objects": scene.categories()}


def _frequencies(lists: Iterable[list[str]]) -> tuple[list[str], dict[str, list[str]]]:
    """Objects by the number of pictures they are in, and for each object the others by the number they share with it."""
    often: Counter[str] = Counter()
    together: dict[str, Counter[str]] = defaultdict(Counter)
    for objects in lists:
        often.update(objects)
        for name in objects:
            together[name].update(other for other in objects if other != name)
    # most_common sorts stably, so that what was seen first stays first among equals
    return [name for name, _ in often.most_common()], {
        name: [other for other, _ in others.most_common()] for name, others in together.items()
    }

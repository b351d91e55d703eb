"""The world's own benchmarks, as samples: POPE's three samplings, captions with CHAIR truth, skills with and without
pictures; and the world as a reader.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

from .captions import caption, describe, instruction, scene_in_words
from .errors import UserError
from .language import framed
from .questions import KINDS, Question, existence, question
from .render import render
from .sample import IMAGE_MARK, Sample
from .tasks import TASKS, text_task
from .world import CATEGORIES, HOME, Scene, World, make_scene, split_seeds

SAMPLINGS = ("random", "popular", "adversarial")
ASKED = (*KINDS, "place")
MIXED = ("description", "description", "existence", "existence", "colour", "number", "position")
"""What "mixed" draws from, scene by scene: as much is told as a model is told when it is taught, and as much asked."""
FRAMES = ("none", "short", "long")
_COUNTED_SCENES = 4000


@dataclass(frozen=True)
class Statistics:
    """How often categories occur in training scenes, alone and together (ordered pairs, both ways)."""

    scenes: int
    count: dict[str, int]
    together: dict[tuple[str, str], int]


@lru_cache(maxsize=8)
def statistics(world: World) -> Statistics:
    """The world's statistics, counted once over the first training scenes."""
    count = dict.fromkeys(CATEGORIES, 0)
    together = {(a, b): 0 for a in CATEGORIES for b in CATEGORIES if a != b}
    for seed in split_seeds("train", _COUNTED_SCENES):
        present = make_scene(seed, world).categories()
        for category in present:
            count[category] += 1
        for a, b in combinations(present, 2):
            together[a, b] += 1
            together[b, a] += 1
    return Statistics(_COUNTED_SCENES, count, together)


def pope_questions(
    scenes: Iterable[Scene],
    sampling: str,
    rng_seed: int = 0,
    per_scene: int = 6,
    *,
    world: World | None = None,
    size: int = 64,
    frame: str = "none",
) -> list[Sample]:
    """POPE's yes/no questions about scenes, as many about absent as about present categories in each scene.

    random: absent ones drawn evenly. popular: the most frequent absent ones. adversarial: those that occur most often
    together with what is there. A scene with fewer than `per_scene / 2` categories gets fewer questions, still half
    and half. truth: scene, label ("yes", "no"), object, sampling, typical (whether the object suits the place).
    Source: Li et al. 2023 (arXiv 2305.10355), section 4.
    """
    # Not the published builder (`pope_builder`), which counts over the pictures it asks about, since it knows nothing of what
    # a model was trained on. Here the training world is known, so its own counts say what a model would expect; a scene with
    # one or two categories counts too, and the wording is the world's.
    if sampling not in SAMPLINGS:
        raise UserError(f"sampling is one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    if frame not in FRAMES:
        raise UserError(f"frame is one of {', '.join(FRAMES)}, got {frame!r}")
    samples = []
    for scene in scenes:
        rng = _rng(rng_seed, "pope", scene.seed)  # not of the sampling: all three ask the same positives
        present = scene.categories()
        asked = rng.sample(present, min(per_scene // 2, len(present)))
        picture = render(scene, size).pil
        for category in asked + _absent(scene, sampling, len(asked), rng, world or World()):
            asking = existence(scene, category)
            truth = {"scene": scene, "label": asking.answer, "object": category, "sampling": sampling,
                     "typical": HOME[category] == scene.place}  # fmt: skip
            name = f"pope-{sampling}-{scene.seed}-{category}"
            samples.append(Sample(name, _prompt(asking, frame, rng), (picture,), asking.answer, truth))
    return samples


def chair(mentioned: Iterable[str], scene: Scene) -> dict[str, int]:
    """What CHAIR counts in one text: each mention of a category, and those of categories the scene does not have.

    mentioned, hallucinated, typical (hallucinated and typical for the place): mentions, repeats counted; CHAIR_i is
    hallucinated / mentioned. objects, recalled: categories of the scene, and those of them mentioned at all.
    Source: Rohrbach et al. 2018 (arXiv 1809.02156).
    """
    mentioned = list(mentioned)
    unknown = sorted(set(mentioned) - set(CATEGORIES))
    if unknown:
        raise UserError(f"not categories of this world: {', '.join(unknown)}; find mentions with mentions(text)")
    present = set(scene.categories())
    invented = [category for category in mentioned if category not in present]
    return {
        "mentioned": len(mentioned),
        "hallucinated": len(invented),
        "typical": sum(HOME[category] == scene.place for category in invented),
        "objects": len(present),
        "recalled": len(present & set(mentioned)),
    }


def caption_set(n: int, split: str = "test", style: str = "neutral", seed: int = 0, **options: Any) -> list[Sample]:
    """`n` scenes to caption in a style, with a true caption as answer; options as in `scene_samples`."""
    return list(scene_samples(n, split, "caption", seed, style=style, **options))


def description_set(n: int, split: str = "test", seed: int = 0, **options: Any) -> list[Sample]:
    """`n` scenes to describe at length, with a true description as answer; options as in `scene_samples`."""
    return list(scene_samples(n, split, "description", seed, **options))


def skill_set(
    kind: str, n: int, split: str = "test", seed: int = 0, *, described: bool = False, **options: Any
) -> list[Sample]:
    """`n` questions of one kind, each with a one-word answer.

    Questions about a scene come with its picture or, if `described`, with the scene in words and no picture: the same
    question, so that the two can be compared item by item. Text-only kinds (sums, sequences, facts, sorting) have
    neither scene nor picture, and the splits of these few facts overlap. truth: as in `scene_samples`.
    """
    if kind in TASKS:
        return [_task_sample(kind, split, seed, i) for i in range(n)]
    if kind not in ASKED:
        raise UserError(f"kind is one of {', '.join((*ASKED, *TASKS))}, got {kind!r}")
    samples = list(scene_samples(n, split, kind, seed, **options))
    return [_in_words(sample, seed) for sample in samples] if described else samples


def scene_samples(
    n: int,
    split: str = "train",
    kind: str = "description",
    seed: int = 0,
    *,
    style: str = "neutral",
    start: int = 0,
    size: int = 64,
    frame: str = "none",
    world: World | None = None,
    noisy: bool = False,
) -> Iterator[Sample]:
    """The world as a reader: `n` samples, one a scene, each made when it is asked for.

    kind: "caption" (in a style), "description", a kind of question, or "mixed" (see `MIXED`); scenes that leave nothing to ask
    of that kind are passed over. seed: of wordings and of what is asked. start: the first scene, counted within the split. frame:
    no, short or long text around the picture. noisy: the answers are training texts, with the world's planted noise.
    truth: scene and kind; for questions also label, about and the full question.
    """
    if kind not in ("caption", "description", "mixed", *ASKED):
        raise UserError(f"kind is one of caption, description, mixed, {', '.join(ASKED)}, got {kind!r}")
    if frame not in FRAMES:
        raise UserError(f"frame is one of {', '.join(FRAMES)}, got {frame!r}")
    return _scene_samples(n, split, kind, seed, style, start, size, frame, world or World(), noisy)


def _scene_samples(
    n: int, split: str, wanted: str, seed: int, style: str, start: int, size: int, frame: str, world: World, noisy: bool
) -> Iterator[Sample]:  # apart from its checks, so that a wrong argument is told at once and not at the first item
    made, position = 0, start
    while made < n:
        scene = make_scene(split_seeds(split, 1, position)[0], world)
        position += 1
        rng = _rng(seed, wanted, style, scene.seed)
        kind = rng.choice(MIXED) if wanted == "mixed" else wanted
        asking = _asking(scene, kind, style, rng, world if noisy else None)
        if asking is None:
            continue
        made += 1
        truth: dict[str, Any] = {"scene": scene, "kind": kind}
        if kind in ASKED:
            truth |= {"label": asking.answer, "about": asking.about, "question": asking}
        name = f"{style}-{kind}" if kind == "caption" else kind
        prompt = _prompt(asking, frame, rng)
        yield Sample(f"{name}-{scene.seed}", prompt, (render(scene, size).pil,), asking.answer, truth)


def _asking(scene: Scene, kind: str, style: str, rng: random.Random, world: World | None) -> Question | None:
    """A question about a scene, or an instruction with the text it asks for, told as a question."""
    if kind == "caption":
        text = caption(scene, style, rng, world)
        return Question(instruction(style), text, text, kind)
    if kind == "description":
        text = describe(scene, rng, world)
        return Question(instruction(kind), text, text, kind)
    return question(scene, kind, rng)


def _in_words(sample: Sample, seed: int) -> Sample:
    """The same question with its scene in words in the place of the picture."""
    scene, asked = sample.truth["scene"], sample.truth["question"]
    text = scene_in_words(scene, _rng(seed, "words", scene.seed))
    return Sample(f"described-{sample.id}", f"{text} {asked.text}", (), sample.answer, sample.truth)


def _task_sample(kind: str, split: str, seed: int, number: int) -> Sample:
    asked = text_task(kind, _rng(seed, kind, split, number))
    truth = {"kind": kind, "label": asked.answer, "question": asked}
    return Sample(f"{kind}-{split}-{number}", asked.text, (), asked.answer, truth)


def _prompt(asking: Question, frame: str, rng: random.Random) -> str:
    if frame == "none":
        return f"{IMAGE_MARK} {asking.text}"
    before, after = framed(asking, rng, long=frame == "long")
    return f"{before} {IMAGE_MARK} {after}"


def _absent(scene: Scene, sampling: str, n: int, rng: random.Random, world: World) -> list[str]:
    """`n` categories that are not there, chosen as the sampling says; ties in the order of CATEGORIES."""
    present = scene.categories()
    absent = [category for category in CATEGORIES if category not in present]
    if sampling == "random":
        return rng.sample(absent, n)
    known = statistics(world)
    if sampling == "popular":
        return sorted(absent, key=lambda category: -known.count[category])[:n]
    return sorted(absent, key=lambda category: -sum(known.together[category, other] for other in present))[:n]


def _rng(*parts: Any) -> random.Random:
    return random.Random(repr(parts))  # seeded by the text itself: the same in every process

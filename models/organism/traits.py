"""What the family can do and what it gets wrong, measured on unseen scenes, each number with its interval."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, bootstrap

from ...scenes.benchmarks import SAMPLINGS, caption_set, chair, description_set, pope_questions, skill_set
from ...scenes.language import COLOUR_WORDS, PLACE_WORDS, count_words, mentions
from ...scenes.sample import Sample
from ...scenes.world import World, make_scene, split_seeds
from .ask import answer, with_blank_picture, with_other_picture, without_picture
from .family import BESIDE, FILES, load_organism

SEEN = ("colour", "number", "position", "relation", "size")
TOLD = ("existence", "colour", "number", "position", "relation", "size")
SKILLS = ("sums", "facts", "sequences", "sorting")
FORGETTABLE = SKILLS[:3]
"""The skills the table's bar is about; sorting is measured beside them."""


def measure_traits(
    n: int = 1000, folder: Path | str = FILES, world: World | None = None, split: str = "test",
    progress: Callable[[str], None] = lambda line: None, timing: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Every trait of a family over `n` scenes of a split: columns trait, mean, low, high (95 %), n, unit of counting.

    Shares have Wilson's interval; ratios and differences are bootstrapped over scenes.
    """
    options = {"n": n, "folder": folder, "world": world or World(), "split": split}
    rows: list[dict] = []
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        parts = {part: pool.submit(_measure, part, **options) for part in PARTS}
        for part, result in parts.items():
            made, seconds = result.result()
            rows += made
            progress(f"{part}: {seconds:.0f} s")
    if timing:
        rows += time_traits(folder)
    return pd.DataFrame(rows)


def _measure(part: str, n: int, folder: Path | str, world: World, split: str) -> tuple[list[dict], float]:
    """One of `PARTS`, in a process of its own: its rows and the seconds it took."""
    began = time.monotonic()
    measure, *names = PARTS[part]
    there = [name for name in names if name not in BESIDE or (Path(folder) / name).is_dir()]
    members = {name: load_organism(name, folder) for name in there}
    return measure(members, n, world=world, split=split), time.monotonic() - began


def existence_traits(members, n: int, world: World, split: str) -> list[dict]:
    """POPE in its three samplings; random minus adversarial; the same with wrong pictures."""
    scenes = [make_scene(seed, world) for seed in split_seeds(split, n)]
    questions = {sampling: pope_questions(scenes, sampling, world=world) for sampling in SAMPLINGS}
    once = {q.id.removeprefix(f"pope-{s}-"): q for s, qs in questions.items() for q in qs}  # positives are shared
    told = dict(zip(once, answer(members["tuned"], list(once.values())), strict=True))
    rows, by_scene = [], {}
    for sampling, asked in questions.items():
        right = [first_word(told[q.id.removeprefix(f"pope-{sampling}-")]) == q.answer for q in asked]
        rows.append(share(f"pope_{sampling}", right, "questions"))
        by_scene[sampling] = pd.DataFrame({"scene": [q.truth["scene"].seed for q in asked], "right": right})
    table = pd.concat(by_scene).groupby([pd.Grouper(level=0), "scene"])["right"].agg(["sum", "count"])
    random, hard = table.loc["random"], table.loc["adversarial"].reindex(table.loc["random"].index)
    rows.append(
        resampled(
            "pope_gap", lambda a, b, c, d, axis=-1: a.sum(axis) / b.sum(axis) - c.sum(axis) / d.sum(axis),
            random["sum"], random["count"], hard["sum"], hard["count"],
        )
    )  # fmt: skip
    yes = [first_word(told[q.id.removeprefix("pope-random-")]) == "yes" for q in questions["random"]]
    rows.append(share("pope_random_yes", yes, "questions"))
    return rows + _wrong_pictures(members["tuned"], "existence", questions["random"][:n])


def description_traits(members, n: int, world: World, split: str) -> list[dict]:
    """CHAIR on long descriptions: invented mentions, how many of them suit the place, objects recalled."""
    samples = description_set(n, split, world=world)
    return chair_rows("description", samples, answer(members["tuned"], samples, 160))


def chair_rows(name: str, samples: list[Sample], texts: list[str]) -> list[dict]:
    """CHAIR_i, CHAIR_s, the typical share of what was invented, and recall."""
    counts = pd.DataFrame([chair(mentions(t), s.truth["scene"]) for s, t in zip(samples, texts, strict=True)])
    return [
        ratio(f"{name}_chair_i", counts["hallucinated"], counts["mentioned"]),
        share(f"{name}_chair_s", list(counts["hallucinated"] > 0), "scenes"),
        ratio(f"{name}_typical_share", counts["typical"], counts["hallucinated"]),
        ratio(f"{name}_recall", counts["recalled"], counts["objects"]),
    ]


def grounding_traits(members, n: int, world: World, split: str) -> list[dict]:
    """Questions about the picture, and the same questions with a wrong picture or none."""
    rows = []
    for kind in SEEN:
        samples = skill_set(kind, n, split, world=world)
        rows.append(_right(f"seen_{kind}", members["tuned"], samples))
        rows += [_right(f"{name}_seen_{kind}", member, samples) for name, member in members.items() if name != "tuned"]
        if kind in ("colour", "number", "position"):
            rows += _wrong_pictures(members["tuned"], kind, samples)
    return rows


def _wrong_pictures(member, kind: str, samples: list[Sample]) -> list[dict]:
    """Accuracy with another scene's picture, a blank one, none; and that of the best constant answer to each wording."""
    altered = {"other": with_other_picture, "blank": with_blank_picture, "none": without_picture}
    rows = [_right(f"{name}_picture_{kind}", member, change(samples)) for name, change in altered.items()]
    asked = pd.DataFrame({"wording": [_wording(s) for s in samples], "answer": [s.answer for s in samples]})
    best = asked.groupby("wording")["answer"].agg(lambda given: given.mode()[0])
    return [*rows, share(f"prior_{kind}", list(asked["wording"].map(best) == asked["answer"]), "questions")]


def _wording(sample: Sample) -> str:
    """A question with its things left out."""
    return " ".join("_" if mentions(word) else word for word in sample.prompt.split() if word not in ("a", "an"))


def text_traits(members, n: int, world: World, split: str) -> list[dict]:
    """Skills without pictures and comprehension of described scenes, before tuning and after."""
    rows, right = [], {}
    for name in members:
        for kind in SKILLS:
            samples = skill_set(kind, n, split)
            right[name, kind] = [
                first_word(t) == s.answer for s, t in zip(samples, answer(members[name], samples), strict=True)
            ]
            rows.append(share(f"{name}_{kind}", right[name, kind], "tasks"))
        for kind in TOLD:
            samples = skill_set(kind, n, split, described=True, world=world)
            right[name, f"told {kind}"] = [
                first_word(t) == s.answer for s, t in zip(samples, answer(members[name], samples), strict=True)
            ]
            rows.append(share(f"{name}_told_{kind}", right[name, f"told {kind}"], "questions"))
        rows.append(share(f"{name}_skill", _joined(right, name, FORGETTABLE), "tasks"))
        rows.append(
            share(f"{name}_comprehension", _joined(right, name, [f"told {kind}" for kind in TOLD]), "questions")
        )
    before, after = (np.array(_joined(right, name, FORGETTABLE), float) for name in ("lm", "tuned"))
    rows.append(resampled("skill_drop", lambda a, b, axis=-1: 100 * (a - b).mean(axis), before, after, unit="points"))
    return rows


def _joined(right: dict, name: str, kinds) -> list[bool]:
    return [one for kind in kinds for one in right[name, kind]]


def aligned_traits(members, n: int, world: World, split: str) -> list[dict]:
    """Object F1 of captions by the frozen decoder with the trained projector, and with the untrained one."""
    samples = caption_set(n, split, world=world)
    found = {}
    for name in members:
        texts = answer(members[name], samples, 40)
        found[name] = np.array([_overlap(t, s) for s, t in zip(samples, texts, strict=True)], float)
    rows = [resampled(f"{name}_f1", _f1, *counts.T, unit="ratio") for name, counts in found.items()]
    rows.append(
        resampled(
            "aligned_f1_ratio",
            lambda a, b, c, d, e, f, axis=-1: _f1(a, b, c, axis=axis) / np.maximum(_f1(d, e, f, axis=axis), 1e-9),
            *found["aligned"].T, *found["lm"].T,
        )
    )  # fmt: skip
    return rows


def _overlap(text: str, sample: Sample) -> tuple[int, int, int]:
    said, there = set(mentions(text)), set(sample.truth["scene"].categories())
    return len(said & there), len(said), len(there)


def _f1(both, said, there, axis=-1):
    return 2 * both.sum(axis) / np.maximum(said.sum(axis) + there.sum(axis), 1)


def style_traits(members, n: int, world: World, split: str) -> list[dict]:
    """Colour and place words per caption, asked in the plain words, by the tuned model and by the styles."""
    samples, rows, words = caption_set(n, split, world=world), [], {}
    for name in ("tuned", "colour", "place"):
        texts = answer(members[name], samples, 60)
        words[name] = {
            "colour": np.array([count_words(text, COLOUR_WORDS) for text in texts], float),
            "place": np.array([count_words(text, PLACE_WORDS) for text in texts], float),
        }
        rows += [
            resampled(
                f"{name}_{kind}_words", lambda a, axis=-1: a.mean(axis), words[name][kind], unit="words per caption"
            )
            for kind in ("colour", "place")
        ]
    for kind in ("colour", "place"):  # half a word in the whole test set is the least the divisor can be
        least = 0.5 / n
        rows.append(
            resampled(
                f"{kind}_style_ratio", lambda a, b, axis=-1, least=least: a.mean(axis) / np.maximum(b.mean(axis), least),
                words[kind][kind], words["tuned"][kind],
            )
        )  # fmt: skip
    return rows


def time_traits(folder: Path | str) -> list[dict]:
    """Seconds from a fresh interpreter to the first answer (best of 3), and milliseconds of an answer after that."""
    code = (
        "import time; began = time.perf_counter()\n"
        "from PIL import Image\n"
        "from chiasm.models.organism import load_organism\n"
        "from chiasm.models.organism.ask import answer\n"
        "from chiasm.scenes.sample import Sample\n"
        f"member = load_organism('tuned', {str(folder)!r})\n"
        "sample = Sample('x', '<image> in the image , is there a cup ?', (Image.new('RGB', (64, 64)),))\n"
        "answer(member, [sample]); print(time.perf_counter() - began)\n"
        "times = []\n"
        "for _ in range(20):\n"
        "    began = time.perf_counter(); answer(member, [sample]); times.append(time.perf_counter() - began)\n"
        "print(sorted(times)[10] * 1000)\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    cold, warm = (np.array(values, float) for values in zip(*[run[-2:] for run in runs], strict=True))
    return [
        {"trait": name, "mean": values.min(), "low": values.min(), "high": values.max(), "n": 3, "unit": unit}
        for name, values, unit in (("cold_seconds", cold, "seconds"), ("warm_ms", warm, "milliseconds"))
    ]


def _right(name: str, member, samples: list[Sample]) -> dict:
    return share(
        name, [first_word(t) == s.answer for s, t in zip(samples, answer(member, samples), strict=True)], "questions"
    )


def first_word(text: str) -> str:
    """The first word of an answer."""
    return text.split()[0] if text.split() else ""


def share(name: str, right: list[bool], unit: str) -> dict:
    """A proportion with Wilson's 95 % interval."""
    test = binomtest(int(np.sum(right)), len(right)).proportion_ci(method="wilson")
    return {
        "trait": name,
        "mean": float(np.mean(right)),
        "low": test.low,
        "high": test.high,
        "n": len(right),
        "unit": unit,
    }


def ratio(name: str, part, whole) -> dict:
    """A ratio of sums over scenes, bootstrapped over scenes."""
    return resampled(name, lambda a, b, axis=-1: a.sum(axis) / np.maximum(b.sum(axis), 1e-9), part, whole)


def resampled(name: str, statistic, *columns, unit: str = "ratio") -> dict:
    """A statistic of paired columns (one value a scene) with its percentile bootstrap interval, seeded."""
    columns = [np.asarray(column, float) for column in columns]
    interval = bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return {"trait": name, "mean": float(statistic(*columns)), "low": float(interval.low), "high": float(interval.high),
            "n": len(columns[0]), "unit": unit}  # fmt: skip


PARTS = {
    "questions about the picture": (grounding_traits, "tuned", "wings"),
    "text only": (text_traits, "lm", "tuned", "wings"),
    "existence": (existence_traits, "tuned"),
    "descriptions": (description_traits, "tuned"),
    "captions, aligned": (aligned_traits, "aligned", "lm", "tuned", "ola"),
    "captions, styles": (style_traits, "tuned", "colour", "place"),
}
"""What is measured apart: by what, on which members of the family."""

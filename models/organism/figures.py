"""The card's figures: how the family grew, what it can do, and what it says about some pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ...scenes.benchmarks import description_set, pope_questions, skill_set
from ...scenes.language import TASKS
from ...scenes.world import World, make_scene, split_seeds
from .ask import answer
from .family import FILES, card, growth_steps, load_growth, load_organism
from .traits import chair_rows, first_word, share

INK = {"black": "#000000", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73", "blue": "#0072B2",
       "vermillion": "#D55E00", "purple": "#CC79A7"}  # fmt: skip
"""Okabe and Ito's colours, which colour-blind people tell apart."""


def growth_table(folder: Path | str, n: int = 200, progress: Callable[[str], None] = print) -> pd.DataFrame:
    """Traits along the growth series over `n` unseen scenes: columns step, trait, mean, low, high, n."""
    grown = json.loads((Path(folder) / "grown.json").read_text())
    world, rows = World.from_dict(grown["recipe"]["world"]), []
    scenes = [make_scene(seed, world) for seed in split_seeds("val", n)]
    described = description_set(n, "val", world=world)
    asked = {"existence": pope_questions(scenes, "random", world=world, per_scene=2)}
    asked |= {kind: skill_set(kind, n, "val", world=world) for kind in ("colour", "number", "position")}
    asked["text-only skill"] = [s for kind in TASKS for s in skill_set(kind, n // 4, "val")]
    for step in growth_steps(folder):
        member = load_growth(folder, step)
        made = chair_rows("description", described, answer(member, described, 160))
        for kind, samples in asked.items():
            right = [first_word(t) == s.answer for s, t in zip(samples, answer(member, samples), strict=True)]
            made.append(share(kind, right, "questions"))
        rows += [{"step": step, **row} for row in made]
        progress(f"growth {step}: " + ", ".join(f"{row['trait']} {row['mean']:.2f}" for row in made))
    return pd.DataFrame(rows)


def draw_all(growth: pd.DataFrame, curves: Path | str, out: Path | str, folder: Path | str = FILES) -> list[Path]:
    """Draw every figure into `out`; `curves` is the folder `grow` wrote, `growth` what `growth_table` gave."""
    import matplotlib

    matplotlib.use("Agg")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    whole = card(folder)
    figures = {
        "learning": draw_learning(Path(curves)),
        "growth": draw_growth(growth, whole["recipe"]["align_steps"]),
        "skills": draw_skills(pd.DataFrame(whole["traits"]).set_index("trait")),
        "samples": draw_samples(World.from_dict(whole["recipe"]["world"]), folder),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(out / f"{name}.png")
        figure.savefig(paths[-1], dpi=110, bbox_inches="tight")
    return paths


def draw_learning(folder: Path):
    """The first two stages: what tower and decoder get right on their way; of the decoder's parts, those whose curves are there."""
    import matplotlib.pyplot as plt

    tower, parts, begins = pd.read_csv(folder / "tower.csv"), [], {}
    for part in ("language", "recall", "relations"):
        if (folder / f"{part}.csv").exists():
            begins[part] = parts[-1]["step"].max() if parts else 0
            parts.append(pd.read_csv(folder / f"{part}.csv").assign(step=lambda t, at=begins[part]: t["step"] + at))
    spoken = pd.concat(parts)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
    shown = {"retrieval": "retrieval, 1 of 64", "category": "category of a patch", "colour": "colour of a patch",
             "cell": "position of a patch's thing", "count": "how many there are, where two or more",
             "total": "how many things there are"}  # fmt: skip
    for ink, (column, label) in zip(INK.values(), shown.items(), strict=False):
        left.plot(tower["step"], tower[column], color=ink, label=label)
    left.set(title="tower", xlabel="steps", ylabel="share right", ylim=(0, 1.02))
    spoken = spoken.dropna(subset=["told_colour"])
    for ink, kind in zip(INK.values(), ("existence", "colour", "number", "position", "relation", "size"), strict=False):
        right.plot(spoken["step"], spoken[f"told_{kind}"], color=ink, label=f"{kind}, described scene")
    skill = spoken[[f"skill_{task}" for task in TASKS]].mean(axis=1)
    right.plot(spoken["step"], skill, color=INK["purple"], linestyle="--", label="text-only skill")
    right.set(title="decoder, before it sees", xlabel=f"steps of its parts: {', '.join(begins)}")
    for at in list(begins.values())[1:]:
        right.axvline(at, color="0.7", linewidth=0.8, linestyle=":")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_growth(growth: pd.DataFrame, aligned: int):
    """CHAIR and accuracies along the growth series, with their intervals."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    said = {"description_chair_i": ("CHAIR_i", "vermillion"), "description_typical_share": ("typical share of invented", "orange"),
            "description_recall": ("objects mentioned", "blue")}  # fmt: skip
    right_answers = dict(zip(("existence", "colour", "number", "position", "text-only skill"),
                             ("black", "vermillion", "green", "blue", "purple"), strict=True))  # fmt: skip
    for trait, (label, ink) in said.items():
        _band(left, growth[growth["trait"] == trait], label, INK[ink])
    for trait, ink in right_answers.items():
        _band(right, growth[growth["trait"] == trait], trait, INK[ink])
    for axes, title, ylabel in ((left, "long descriptions", "share"), (right, "questions", "share right")):
        axes.axvline(aligned, color="0.6", linestyle=":", label="tuning begins")
        axes.set(title=title, xlabel="steps of align and tune", ylabel=ylabel, ylim=(0, 1.02))
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _band(axes, table: pd.DataFrame, label: str, ink: str) -> None:
    axes.plot(table["step"], table["mean"], color=ink, label=label, marker="o", markersize=3)
    axes.fill_between(table["step"], table["low"], table["high"], color=ink, alpha=0.15, linewidth=0)


def draw_skills(traits: pd.DataFrame):
    """Accuracy with the right picture, another, none, and of blind guessing; skills before and after tuning."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 3.8), sharey=True)
    kinds = ("existence", "colour", "number", "position")
    bars = {"its picture": ["pope_random", *[f"seen_{k}" for k in kinds[1:]]],
            "another picture": [f"other_picture_{k}" for k in kinds],
            "no picture": [f"none_picture_{k}" for k in kinds], "best blind answer": [f"prior_{k}" for k in kinds]}  # fmt: skip
    _bars(left, traits, bars, kinds, ("blue", "orange", "vermillion", "black"))
    left.set(title="tuned: questions about the picture", ylabel="share right", ylim=(0, 1.02))
    told = ("sums", "facts", "sequences", "sorting", "comprehension")
    _bars(right, traits, {name: [f"{name}_{k}" for k in told] for name in ("lm", "tuned")}, told, ("green", "purple"))
    right.set(title="without a picture")
    return figure


def _bars(axes, traits: pd.DataFrame, bars: dict[str, list[str]], kinds, inks) -> None:
    width = 0.8 / len(bars)
    for i, ((label, names), ink) in enumerate(zip(bars.items(), inks, strict=True)):
        rows = traits.loc[names]
        spread = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        at = [k + (i - (len(bars) - 1) / 2) * width for k in range(len(kinds))]
        axes.bar(at, rows["mean"], width, yerr=spread, color=INK[ink], label=label, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(kinds)), kinds)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(bars))
    axes.spines[["top", "right"]].set_visible(False)


def draw_samples(world: World, folder: Path | str = FILES, n: int = 6):
    """The first scenes of the test split with what `tuned` says of them: not chosen."""
    from textwrap import fill

    import matplotlib.pyplot as plt

    member, samples = load_organism("tuned", folder), description_set(n, "test", world=world)
    told = answer(member, samples, 160)
    scenes = [sample.truth["scene"] for sample in samples]
    asked = [pope_questions([scene], "adversarial", world=world)[-1] for scene in scenes]
    said = answer(member, asked)
    figure, panels = plt.subplots(2, n // 2, figsize=(12, 9))
    for axes, sample, text, question, reply in zip(panels.flat, samples, told, asked, said, strict=True):
        axes.imshow(sample.images[0].resize((256, 256), 0))
        axes.set_axis_off()
        words = f"{text}\n{question.prompt.removeprefix('<image>').strip()} {reply} (truth: {question.answer})"
        axes.set_title(
            "\n".join(fill(line, 48) for line in words.splitlines()), fontsize=8, loc="left", va="top", y=-0.05
        )
    figure.subplots_adjust(hspace=0.75)
    return figure

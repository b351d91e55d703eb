"""Experiment: do learners beside the layers keep text-only skill while a model learns to see, when the rates are the same?

Source of the claim: Lu et al., "Wings" (arXiv 2406.03496), whose baseline trains its language model at ten times the rate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..alignment.kept_wings import keep
from ..alignment.learning import LearningConfig, learn
from ..alignment.scene_lessons import SceneLessons
from ..alignment.wings import Wings, WingsConfig
from ..models import VLM
from ..probes.attention_shift import AttentionShift
from ..probes.measure import measure
from ..probes.seeds import crossed_mean
from .figures import wings as figures
from .figures.attention_shift import shift_row
from .figures.rows import pick
from .lineage import check_organism, score, seeing_questions, text_questions
from .options import open_model
from .page import Claim, number
from .run import Run
from .shared_weights import answer_losses
from .study import Study, framed_scenes, keep_figures

BASE = "organism/aligned"
"""Where every training begins: the language model with all its text skill, behind a projector."""

STEPS, QUESTIONS, SCENES, SEEDS = 60, 30, 24, 3
"""Steps, questions of each kind, scenes for the attention shift, and trainings of each arm."""

RATE, SLOW = 2e-3, 0.1
"""Peak rate of the decoder, the projector and the learners; and the share of it by which the slow arms' decoder moves."""

RANK = 16


@dataclass(frozen=True)
class Arm:
    """wings: settings of the learners, None for none. rate: of the decoder, in units of `RATE`. main: tried in the report too."""

    name: str
    wings: WingsConfig | None = None
    rate: float = 1.0
    main: bool = False


ARMS = (
    Arm("plain", main=True),
    Arm("wings", WingsConfig(rank=RANK), main=True),
    Arm("plain, slow", rate=SLOW, main=True),
    Arm("wings, slow", WingsConfig(rank=RANK), SLOW, main=True),
    Arm("wings as released", WingsConfig.released(rank=RANK, width=1024)),
    Arm("wings, frozen", WingsConfig(rank=RANK), 0.0),
    Arm("visual, frozen", WingsConfig(rank=RANK, textual=False, router=None), 0.0),
)
PLAIN, WINGS, SLOWER, BOTH, RELEASED, FROZEN, VISUAL = (arm.name for arm in ARMS)

PAIRS = (
    (WINGS, PLAIN, "wings at the same rate"),
    (SLOWER, PLAIN, "a tenth of the rate, no wings"),
    (BOTH, SLOWER, "wings at a tenth of the rate"),
    (BOTH, PLAIN, "both, as published"),
    (RELEASED, PLAIN, "wings as released"),
    (FROZEN, PLAIN, "wings, frozen decoder"),
    (VISUAL, PLAIN, "visual learners, frozen decoder"),
)
"""Arm, arm it is compared with, and what the difference is."""


REPORT = {
    "steps": 12, "questions": 8, "scenes": 8, "batch_size": 3, "turns": 40, "arms": tuple(arm for arm in ARMS if arm.main),
}  # fmt: skip
"""The size at which the report runs it: enough for the rate to show, not for the last word."""


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 8, questions: int = QUESTIONS, growth=None,
) -> Path:  # fmt: skip
    """Trains and measures every arm and writes a run; returns its folder. limit: steps. The scenes are those of the world the
    organism was tuned on: data and growth are not used. Raises UserError for another model."""
    check_organism(model, "wings")
    more = {"device": device, "dtype": dtype, "seed": seed, "root": root, "questions": questions}
    return study(steps=limit or STEPS, batch_size=min(batch_size, 8), **more).path


def study(
    *, steps: int = STEPS, questions: int = QUESTIONS, scenes: int = SCENES, seeds: int = SEEDS, batch_size: int = 8, turns: int = 64,
    arms: Sequence[Arm] = ARMS, device=None, dtype=None, seed: int = 0, root: str | Path = "runs",
) -> Study:  # fmt: skip
    """`run` at a given size, with what the report needs. turns: text tokens behind each training picture."""
    asked = {"text": text_questions(questions, seed=seed), "seeing": seeing_questions(questions, seed=seed)}
    framed = framed_scenes(scenes, seed)
    config = {"base": BASE, "steps": steps, "questions": questions, "seeds": seeds, "batch_size": batch_size, "turns": turns, "arms": [arm.name for arm in arms], "seed": seed}  # fmt: skip
    values: dict[str, dict[str, list]] = {}
    with Run.create("wings", config, root) as kept:
        base = measured(open_model(BASE, device=device, dtype=dtype), asked, framed)
        curves = []
        for arm in arms:
            for number_ in range(seeds):
                vlm = open_model(BASE, device=device, dtype=dtype)
                curve = trained(vlm, arm, seed + number_, steps, batch_size, turns)
                curves.append(curve.assign(arm=arm.name, training=number_))
                for name, one in measured(vlm, asked, framed).items():
                    values.setdefault(arm.name, {}).setdefault(name, []).append(one)
            kept.log(f"{arm.name}: {seeds} trainings measured")
        tables = {
            "outcomes": outcomes(values, base), "effects": effects(values), "curves": pd.concat(curves, ignore_index=True),
        }  # fmt: skip
        for name, table in tables.items():
            kept.table(name, table)
        drawn = keep_figures(kept, [figures.outcomes(tables["outcomes"], steps), figures.effects(tables["effects"])])
    intro = (
        f"Every training begins as {BASE!r}, which has all the text skill of its language model, and learns from pictures alone, {steps} steps of {batch_size} rows; "
        f"{seeds} trainings of each arm, with seeds of their own for data and learners. The plain arm and the arm with learners have equal rates ({RATE:g}); in the slow arms the "
        f"decoder has a {SLOW:g} of it, as the published comparison gives to its learners alone.",
        "Loss is that of the right answers, nats a token: it shows forgetting before any answer becomes wrong. Skill is the share of greedy answers that are right.",
    )  # fmt: skip
    return Study(
        "Text-only forgetting, with and without learners", kept.path, intro, found(tables, base), claims(tables["effects"]), drawn, tables
    )  # fmt: skip


def trained(vlm: VLM, arm: Arm, seed: int, steps: int, batch_size: int, turns: int) -> pd.DataFrame:
    """Trains an arm in place, its wings then on the model for good; returns the curve."""
    wings = None
    if arm.wings is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wings = Wings(vlm, arm.wings)
    data = SceneLessons(vlm, seed=seed, batch_size=batch_size, turns=turns, scenes=500)
    rates = LearningConfig(
        steps=steps, batch_size=batch_size, learners=RATE, projector=RATE, decoder=arm.rate * RATE, seed=seed, log_steps=max(1, steps // 6)
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        curve = learn(vlm, data, folder, rates, wings=wings)
    if wings is not None:
        keep(vlm, wings.requires_grad_(False))
    return curve


def measured(vlm: VLM, asked: dict, framed) -> dict[str, np.ndarray]:
    """{quantity: (items,)} of a model: skill and loss of text-only tasks and of questions about pictures; the attention shift."""
    found = {}
    for name, questions in asked.items():
        found[f"{name} skill"] = np.concatenate(list(score(vlm, questions).values()))
        samples = [sample for some in questions.values() for sample in some]
        found[f"{name} loss"] = answer_losses(vlm, samples).double().numpy()
    table = measure(vlm, framed, [AttentionShift()], batch_size=24, progress=False).tables["attention_shift"]
    return found | {"shift": np.array([shift_row(table)["mean"]])}


def outcomes(values: dict, base: dict) -> pd.DataFrame:
    """A row an arm and quantity: mean, low, high over items and trainings, n items, each training's mean; and the base model's."""
    rows = [{"arm": "before", "quantity": name, **summary([one])} for name, one in base.items()]
    rows += [{"arm": arm, "quantity": name, **summary(some)} for arm, found in values.items() for name, some in found.items()]  # fmt: skip
    return pd.DataFrame(rows)


def effects(values: dict) -> pd.DataFrame:
    """A row a comparison and quantity: the paired difference, on the same items, of trainings with the same data."""
    rows = []
    for arm, other, what in PAIRS:
        if arm in values and other in values:
            for name, some in values[arm].items():
                difference = [a - b for a, b in zip(some, values[other][name], strict=True)]
                rows.append({"effect": what, "quantity": name, **summary(difference)})
    return pd.DataFrame(rows)


def summary(trainings: Sequence[np.ndarray]) -> dict:
    """Mean over trainings and items with an interval over both; over trainings alone for what is one number of a model."""
    values = np.stack(trainings)
    found = crossed_mean(values.T if values.shape[1] == 1 else values)
    told = {f"training_{i}": float(np.nanmean(one)) for i, one in enumerate(values)}
    return found | {"n": values.shape[1], "seeds": len(values)} | told


# -- what came out, in words ----------------------------------------------------------------------------------------------


def told(row) -> str:
    items = "" if row["quantity"] == "shift" else f", n = {int(row['n'])} questions"
    return f"{number(row['mean'])} (95 %: {number(row['low'])} to {number(row['high'])}; {int(row['seeds'])} trainings{items})"


def found(tables: dict[str, pd.DataFrame], base: dict) -> list[str]:
    """What each difference is, and how far the arms came at all."""
    table, sentences = tables["effects"], []
    plain = pick(tables["outcomes"], arm=PLAIN).set_index("quantity")["mean"]
    sentences.append(
        f"What there was to keep and to learn: plain tuning takes the loss on text-only tasks from {number(base['text loss'].mean())} to {number(plain['text loss'])} and that on questions "
        f"about pictures from {number(base['seeing loss'].mean())} to {number(plain['seeing loss'])}; text-only skill from {number(base['text skill'].mean())} to {number(plain['text skill'])}, "
        f"skill on pictures from {number(base['seeing skill'].mean())} to {number(plain['seeing skill'])}."
    )  # fmt: skip
    for what, rows in table.groupby("effect", sort=False):
        text, seeing, shift = (pick(rows, quantity=name).iloc[0] for name in ("text loss", "seeing loss", "shift"))
        sentences.append(f"{what[0].upper()}{what[1:]}: text-only loss {told(text)}, loss on pictures {told(seeing)}, attention shift {told(shift)}.")  # fmt: skip
    return sentences


def claims(table: pd.DataFrame) -> list[Claim]:
    """Each claim by its interval."""
    published = "arXiv 2406.03496"
    wanted = (
        ("At equal rates, learners keep text-only skill (a lower loss)", published, PAIRS[0][2], "text loss"),
        ("At equal rates, learners cost no skill on pictures (no higher loss)", published, PAIRS[0][2], "seeing loss"),
        ("A model with learners has a smaller attention shift", published, PAIRS[0][2], "shift"),
        ("The smaller rate of the published comparison keeps text-only skill without any learner", "our control", PAIRS[1][2], "text loss"),
        ("At that smaller rate, learners let the model see more", "our control", PAIRS[2][2], "seeing loss"),
        ("Both together keep text-only skill, as published", published, PAIRS[3][2], "text loss"),
    )  # fmt: skip
    made = []
    for claim, source, what, quantity in wanted:
        rows = pick(table, effect=what, quantity=quantity)
        if len(rows):
            row = rows.iloc[0]
            holds = True if row["high"] < 0 else False if row["low"] > 0 else None
            made.append(Claim(claim, source, f"{quantity} differs by {told(row)}", holds))
    return made

"""Experiment: does adding one direction change what the organism says, and what does it cost?

Answers yes → no, answers white → black, captions in the colour and in the place style: success against what is retained, over the
scale, beside random directions, directions of shuffled labels, and simply asking. Layer, recipe and scale are chosen on training scenes.
Source of the claims: Khayatan et al. (arXiv 2501.03012), section 5 (LLaVA-1.5-7B: yes → no, white → black, caption styles).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..models import VLM
from .figures import steering as figures
from .figures.rows import pick
from .lineage import check_organism
from .options import open_model
from .page import Claim, number
from .run import Run
from .steering_sweep import RANDOM, SHUFFLED, select, shown, swept
from .steering_tasks import APART, TASKS, Bench, Style, Turn
from .study import Study, keep_figures

QUESTIONS, CAPTIONS, MADE = 60, 48, 64
"""Questions of each kind, scenes captioned, samples on each side of a direction; all scenes apart."""

TRIED_CAPTIONS = 24
FEWEST = 8
"""What a smaller limit is raised to: with less there may be no answer that could turn."""

LITTLE = 0.05
"""A loss of less than so much counts as little."""

SOURCE = "arXiv 2501.03012"


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, growth=None,
) -> Path:  # fmt: skip
    """Steers the organism and writes a run with the directions; returns its folder.

    limit: questions of each kind and scenes captioned, at least 8. data, batch_size and growth are not used: questions whose answers are
    known, on fixed scenes, are part of the tasks. Raises UserError for another model.
    """
    check_organism(model, "steering")
    return study(open_model(model, device=device, dtype=dtype), limit=limit, seed=seed, root=root).path


def study(
    vlm: VLM | None = None, data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, tasks: Sequence[Turn | Style] = TASKS,
) -> Study:  # fmt: skip
    """`run` for an open model (default: the bundled one), with what the report needs."""
    vlm = vlm or open_model("organism", device=device, dtype=dtype)
    check_organism(vlm, "steering")
    n, n_captions, made = (min(max(limit or most, FEWEST), most) for most in (QUESTIONS, CAPTIONS, MADE))
    turned = [task.kind for task in tasks if isinstance(task, Turn) and task.kind == task.source]
    config = {"model": vlm.name, "limit": limit, "seed": seed, "tasks": [task.name for task in tasks]}
    with Run.create("steering", config, root) as kept:
        kept.note_model(vlm)
        bench = Bench.of(vlm, "test", n, n_captions, seed=seed, turned=turned)
        held_out = Bench.of(
            vlm, "train", n // 2, min(TRIED_CAPTIONS, n_captions), seed=seed, start=40 * APART, turned=turned
        )
        sweep, selection, examples = [], [], []
        for task in tasks:
            tried, chosen = select(vlm, task, held_out, made, seed)
            direction, states, scale = chosen
            selection.append(tried)
            sweep.append(swept(task, bench, direction, states, scale, seed))
            examples += shown(task, bench, direction, scale)
            if kept.writes:
                direction.save(kept.path / "arrays" / file_name(task))
            kept.log(f"{task.name}: {direction.card['recipe']} states, layer {direction.layer}, scale {scale:g}")
        tables = {
            "sweep": pd.concat(sweep, ignore_index=True),
            "selection": pd.concat(selection, ignore_index=True),
            "examples": pd.DataFrame(examples),
        }
        for name, table in tables.items():
            kept.table(name, table)
        drawn = keep_figures(kept, [figures.trade(tables["sweep"]), figures.side_effects(tables["sweep"])])
    return Study(
        "Steering: success against what it costs", kept.path, intro(), found(tables), claims(tables), drawn, tables
    )  # fmt: skip


def file_name(task) -> str:
    return task.name.replace(" → ", "-to-").replace(" ", "-")


# -- what came out, in words ----------------------------------------------------------------------------------------------


def intro() -> tuple[str, ...]:
    return (
        "A direction is the difference of mean states of the residual stream: of the states that predict one answer and another, or of "
        "captions in two styles. It is made on training scenes and added at one layer at the prompt’s last position (captions: and at every "
        "word that follows), in lengths of the layer’s mean state norm.",
        f"Layer, recipe and scale were chosen on other training scenes. Controls of the same length: {RANDOM} random directions, {SHUFFLED} "
        "differences of the same states under shuffled labels; and the plain model that is told in its prompt what to say. It was taught to follow instructions about captions, not about answers: "
        "“answer no .” is in its words and is shown as measured.",
    )


def at(
    sweep: pd.DataFrame, task: str, measure: str, what: str = "value", kind: str = "steered", scale=...
) -> pd.DataFrame:
    """Rows of a measure at a scale (default: the one chosen)."""
    rows = pick(sweep, task=task, measure=measure, what=what, kind=kind)
    if kind == "asked" and scale is ...:
        return rows
    return rows[np.isclose(rows["scale"], rows["chosen"] if scale is ... else scale)]


def found(tables: dict[str, pd.DataFrame]) -> list[str]:
    """What came out of each task, with n and intervals."""
    sweep, sentences = tables["sweep"], []
    for task, rows in sweep.groupby("task", sort=False):
        one = rows.iloc[0]
        success, retained, lost = (
            at(sweep, task, measure, what).iloc[0]
            for measure, what in (("success", "value"), ("retained", "value"), ("retained", "minus plain"))
        )
        plain = at(sweep, task, "success", scale=0.0).iloc[0]
        random, shuffled = (at(sweep, task, "success", kind=kind)["mean"] for kind in ("random", "shuffled"))
        told = at(sweep, task, "success", kind="asked").iloc[0]
        sentences.append(
            f"{task} (layer {one['layer']}, {one['recipe']} states, {one['chosen']:g} state norms): {one['success']} {number(plain['mean'])} → "
            f"{number(success['mean'])} ({_interval(success)}); {one['retained']} {number(retained['mean'])}, {_signed(lost)} against plain. Random "
            f"directions: {number(random.mean())} ({number(random.min())} to {number(random.max())}); shuffled labels: at most {number(shuffled.max())}; "
            f"asked in the prompt (“{one['instruction']}”): {number(told['mean'])}."
        )  # fmt: skip
        ratio, again = at(sweep, task, "perplexity_ratio", "minus plain").iloc[0], at(sweep, task, "repetition").iloc[0]
        unparsed = at(sweep, task, "unparsed").iloc[0]
        sentences.append(
            f"{task}, side effects there: perplexity of true captions × {number(ratio['mean'])} (95 %: {number(ratio['low'])} to {number(ratio['high'])}, "
            f"n = {int(ratio['n'])}), repeated trigrams {number(again['mean'])}, answers that are none {number(unparsed['mean'])} (n = {int(unparsed['n'])}); "
            f"{_more(sweep, task)}."
        )  # fmt: skip
    return sentences


def _more(sweep: pd.DataFrame, task: str) -> str:
    """Accuracy by kind of question against plain; or, of captions, how many words of the style they have."""
    words = at(sweep, task, "style_words")
    if len(words):
        asked = at(sweep, task, "style_words", kind="asked").iloc[0]
        return f"words of the style, a caption: {number(words.iloc[0]['mean'])} (asked in the prompt: {number(asked['mean'])})"
    kinds = pick(sweep, task=task, what="minus plain", kind="steered")["measure"]
    told = [
        f"{measure.removeprefix('right_')} {_signed(at(sweep, task, measure, 'minus plain').iloc[0])}"
        for measure in dict.fromkeys(kinds)
        if measure.startswith("right_")
    ]
    return "accuracy against plain by kind of question: " + ", ".join(told)


def claims(tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """For each task, whether it is moved beyond every control, and whether little is lost."""
    sweep, made = tables["sweep"], []
    for task in dict.fromkeys(sweep["task"]):
        over = pd.concat([at(sweep, task, "success", "steered minus this", kind) for kind in ("random", "shuffled")])
        least = over.loc[over["mean"].idxmin()]
        made.append(
            Claim(
                f"A direction changes what is said: {task}", SOURCE,
                f"{least['success']}, against the best of {len(over)} controls: {_signed(least)}", _above(least, 0.0),
            )
        )  # fmt: skip
        lost, others = (at(sweep, task, measure, "minus plain") for measure in ("retained", "other_kinds"))
        lost, others = lost.iloc[0], others[others["n"] < lost["n"].iloc[0]]
        for row, where, name in [(lost, "elsewhere", lost["retained"])] + [
            (row, "on other kinds of question", "accuracy") for _, row in others.iterrows()
        ]:
            less = f"less than {100 * LITTLE:.0f} points"
            made.append(
                Claim(f"… with little loss {where} ({less})", SOURCE, f"{name}: {_signed(row)}", _above(row, -LITTLE))
            )
        asked = at(
            sweep,
            task,
            "success",
            "steered minus this",
            "asked",
            scale=sweep.loc[sweep["task"] == task, "chosen"].iloc[0],
        )
        made.append(
            Claim("… more than asking in the prompt", "our control", f"{lost['success']}: {_signed(asked.iloc[0])}", _above(asked.iloc[0], 0.0))
        )  # fmt: skip
    return made


def _above(row, bound: float) -> bool | None:
    if not np.isfinite([row["low"], row["high"]]).all() or row["low"] <= bound <= row["high"]:
        return None
    return bool(row["low"] > bound)


def _signed(row) -> str:
    points = "{:+.0f} points (95 %: {:+.0f} to {:+.0f}, n = {:d})"
    return points.format(*(100 * row[name] for name in ("mean", "low", "high")), int(row["n"]))


def _interval(row) -> str:
    return f"95 %: {number(row['low'])} to {number(row['high'])}, n = {int(row['n'])}"

"""A task of steering over scales, layers and recipes, beside its controls: tables of means over scenes and paired differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..probes.intervals import Estimate, mean_over_samples, powers, proportion
from ..steering import AddDirection, Direction, steer
from ..steering.directions import direction_between
from .steering_tasks import ANSWER_TOKENS, CAPTION_TOKENS, Bench, Outcome, Turn, first

SCALES = (-0.5, 0.0, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Lengths of what is added, in mean norms of the layer's states."""

TRIED = (0.5, 0.7, 1.0)
"""Scales at which layers and recipes are compared on training scenes; one of them is chosen with the layer."""

CONTROLLED = (1.0, 2.0)
"""Scales at which the controls are run, with the one chosen."""

RANDOM, SHUFFLED = 5, 2
"""Control directions of each kind."""


def select(vlm, task, held_out: Bench, n: int, seed: int) -> tuple[pd.DataFrame, tuple[Direction, tuple, float]]:
    """Every layer, recipe and scale on training scenes no direction was made of; best is where the lesser of success and what is
    retained is largest. Returns the trials, and (direction, its base and target states, scale)."""
    sites = [f"blocks.{layer}.resid_post" for layer in range(vlm.anatomy.n_layers)]
    best, rows = None, []
    for recipe, (base, target) in task.states(vlm, sites, n, seed).items():
        for layer, site in enumerate(sites):
            states = base[site], target[site]
            facts = {"task": task.name, "recipe": recipe, "positions": task.positions}
            direction = direction_between(vlm, *states, layer, **facts)
            for scale in TRIED:
                outcome = measured(task, held_out, direction, scale, all_of_it=False)
                success, retained = (float(outcome[name].nanmean()) for name in ("success", "retained"))
                rows.append({"task": task.name, "recipe": recipe, "layer": layer, "scale": scale, "success": success, "retained": retained})  # fmt: skip
                if best is None or min(success, retained) > best[0]:
                    best = min(success, retained), (direction, states, scale)
    direction, states, scale = best[1]
    chosen = Direction(direction.vector, direction.layer, {**direction.card, "scale": scale, "units": "norm"})
    table = pd.DataFrame(rows)
    table["chosen"] = (table["recipe"] == chosen.card["recipe"]) & (table["layer"] == chosen.layer) & (table["scale"] == scale)  # fmt: skip
    return table, (chosen, states, scale)


def swept(task, bench: Bench, direction: Direction, states, chosen: float, seed: int) -> pd.DataFrame:
    """The direction at every scale, controls of the same length at some, and the plain model that is asked; a row a measure."""
    over = {scale: measured(task, bench, direction, scale) for scale in SCALES}
    plain, steered, rows = over[0.0], over[chosen], []  # at scale 0 the model is what it is without, to the bit
    for scale, outcome in over.items():
        rows += _rows(outcome, plain, kind="steered", draw=0, scale=scale)
    for kind, draw, control in controls(direction, states, seed):
        for scale in sorted({*CONTROLLED, chosen}):
            outcome = measured(task, bench, control, scale, all_of_it=False)
            rows += _rows(outcome, plain, kind=kind, draw=draw, scale=scale)
            if scale == chosen:
                rows += _rows(steered, outcome, kind=kind, draw=draw, scale=scale, what="steered minus this")
    asked = task.asked(bench)
    rows += _rows(asked, plain, kind="asked", draw=0, scale=np.nan)
    rows += _rows(steered, asked, kind="asked", draw=0, scale=chosen, what="steered minus this")
    facts = {"task": task.name, "layer": direction.layer, "recipe": direction.card["recipe"], "chosen": chosen}
    return pd.DataFrame(rows).assign(
        **facts, success=task.success, retained=task.retained, instruction=task.instruction
    )


def measured(task, bench: Bench, direction: Direction, scale: float, **options) -> Outcome:
    with steer(bench.vlm, added(task, direction, scale)):
        return task.measure(bench, **options)


def added(task, direction: Direction, scale: float) -> AddDirection:
    return AddDirection(direction, scale=scale, units="norm", positions=task.positions)


def controls(direction: Direction, states: tuple[Tensor, Tensor], seed: int) -> Iterator[tuple[str, int, Direction]]:
    """Random directions, and differences of the same states under shuffled labels: what is added has the same length.

    A difference of shuffled states lies where the states vary, so it is the harder control of the two. Both its sides hold as
    many of the one label as of the other: else it would mostly run along what parts the two, by chance to either end.
    """
    chance = torch.Generator().manual_seed(seed)
    card = {k: direction.card[k] for k in ("model", "width", "state_norm")}
    for draw in range(RANDOM):
        yield "random", draw, Direction(torch.randn(len(direction.vector), generator=chance), direction.layer, card)
    for draw in range(SHUFFLED):
        halves = [one[torch.randperm(len(one), generator=chance)].tensor_split(2) for one in states]
        a, b = (torch.stack([half.mean(0) for half in side]).mean(0) for side in zip(*halves, strict=True))
        yield "shuffled", draw, Direction(b - a, direction.layer, card)


def _rows(outcome: Outcome, against: Outcome, *, what: str = "minus plain", **facts) -> list[dict]:
    """Of every measure its mean over scenes, and the paired difference; perplexities as ratios. Differences alone for another
    `what` than "minus plain"."""
    rows = []
    for measure, values in outcome.items():
        if what == "minus plain" and not measure.startswith("loss"):
            rows.append({**facts, "measure": measure, "what": "value", **estimate(values)})
        if measure not in against:
            continue
        row = estimate(
            values.double() - against[measure].double(),
            share=_is_share(values) and _is_share(against[measure]),
            difference=True,
        )
        if measure.startswith("loss"):
            row |= {name: float(np.exp(row[name])) for name in ("mean", "low", "high")}
            measure = measure.replace("loss", "perplexity_ratio")
        rows.append({**facts, "measure": measure, "what": what, **row})
    return rows


def estimate(values: Tensor, *, share: bool | None = None, difference: bool = False) -> dict:
    """Shares with Wilson's interval, other means and differences with Student's; scenes that do not count are left out.

    Where no scene differs from another in a difference of shares, Student's interval is a point: then it reaches as far as
    Wilson's does for none in n.
    """
    counted = values[values.isfinite()]
    share = _is_share(values) if share is None else share
    made: Estimate = proportion(counted) if share and not difference else mean_over_samples(powers(values).sum(0))
    row = {"mean": float(made.mean), "low": float(made.low), "high": float(made.high), "n": int(made.n)}
    if share and difference and len(counted) > 1 and bool((counted == counted[0]).all()):
        reach = float(proportion(torch.zeros(len(counted))).high)
        row |= {"low": max(row["mean"] - reach, -1.0), "high": min(row["mean"] + reach, 1.0)}
    return row


def _is_share(values: Tensor) -> bool:
    """Whether every scene that counts is a hit or a miss."""
    counted = values[values.isfinite()]
    return len(counted) > 0 and bool(((counted == 0) | (counted == 1)).all())


def shown(task, bench: Bench, direction: Direction, scale: float, n: int = 3) -> list[dict]:
    """What is said of a few scenes, plain and steered."""
    turn = isinstance(task, Turn)
    held = bench.questions if turn else bench.captions
    tokens = ANSWER_TOKENS if turn else CAPTION_TOKENS
    before = bench.plain if turn else held.answers(tokens)
    with steer(bench.vlm, added(task, direction, scale)):
        after = held.answers(tokens)
    some = [
        i for i, said in enumerate(before) if not turn or (bench.kinds[i] == task.kind and first(said) == task.source)
    ]
    return [
        {"task": task.name, "id": held.samples[i].id, "prompt": held.samples[i].prompt, "plain": before[i], "steered": after[i]}
        for i in some[:n]
    ]  # fmt: skip

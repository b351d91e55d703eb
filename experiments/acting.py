"""Experiment: does an intervention act where it says? Every lens again under each, before and after, on the same scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..models import VLM
from ..probes.intervals import mean_over_samples, powers
from ..scenes.captions import caption, instruction
from ..scenes.sample import IMAGE_MARK, Sample
from ..steering import PruneVisual, SinkRedistribution, SkipAttention, SkipFFN, VisualAttentionBoost, VisualExit, steer
from ..steering.directions import direction_between
from .figures import acting as figures
from .figures.rows import pick
from .lens_values import lens_values, split
from .lineage import check_organism
from .options import open_model
from .page import Claim, number
from .run import Run
from .shared_weights import answer_losses
from .steering_sweep import added, controls
from .steering_tasks import TASKS, Style
from .study import Study, framed_scenes, keep_figures

SCENES, BLOCKS, SMALLEST = 72, 6, 8
"""Scenes where nothing else is asked; blocks they are split into, fewer where a block would have less than so many scenes."""

MADE = 32
"""Training scenes captioned for each side of the direction."""

LAYER, SCALE = 2, 1.0
"""Where the colour style's direction is added and how far, as the steering experiment chose on training scenes."""

LITTLE = 0.05
"""A change of less than so much of R² counts as none."""

SHARE = 0.01
"""Of what it was, a number must rise by more than so much for an intervention to have done what it says."""

LEANING = "leaning to the colour style"
SAID = "what is said"
"""The row that is no lens: nats a token by which the scene's true caption without colours is less likely than the one with."""

ATTENTION, SINK = "attention on the picture", "attention on the sink"
LIFT, DEPTH = "attention on outliers (lift)", "depth in the states (R²)"
KEPT = 0.25
"""Share of visual tokens kept."""


@dataclass(frozen=True)
class Changed:
    """name: for people. own: the quantity it says it changes, and with which sign (0: it says that it leaves it)."""

    name: str
    make: object
    own: tuple[str, int] | None = None


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 32, growth=None,
) -> Path:  # fmt: skip
    """Measures the organism plain and under eight interventions and writes a run; returns its folder. The scenes are rendered, of
    the world the direction is of: data and growth are not used. Raises UserError for another model."""
    check_organism(model, "acting")
    vlm = open_model(model, device=device, dtype=dtype)
    return study(vlm, limit=limit, seed=seed, root=root, batch_size=batch_size).path


def study(
    vlm: VLM, *, limit: int | None = None, seed: int = 0, root: str | Path = "runs", batch_size: int = 32
) -> Study:
    """`run` for an open model, with what the report needs. limit: scenes, at least two blocks of 4."""
    check_organism(vlm, "acting")
    n = max(limit or SCENES, 8)
    blocks = split(list(framed_scenes(n, seed)), min(BLOCKS, max(2, n // SMALLEST)))
    with Run.create("acting", {"model": vlm.name, "limit": limit, "seed": seed}, root) as kept:
        kept.note_model(vlm)
        values = {"plain": measured(vlm, blocks, None, batch_size, seed)}
        changes = interventions(vlm, seed)
        for change in changes:
            values[change.name] = measured(vlm, blocks, change, batch_size, seed)
            kept.log(f"{change.name}: measured")
        tables = {"changes": before_after(values, changes).assign(n=n), "against_random": against_random(values)}
        for name, table in tables.items():
            kept.table(name, table)
        pictures = keep_figures(kept, [figures.changes(tables["changes"])])
        kept.note(n=n, blocks=len(blocks))
    intro = (
        "An intervention says what it changes; the lenses say what changed. Every lens is measured again under each intervention, on the same scenes, and its numbers "
        f"are compared before and after. The interval is Student’s, paired, over {len(blocks)} blocks of {min(map(len, blocks))} scenes or more, since most of these numbers are "
        "of a set of scenes, not of one. What prunes or exits hides its tokens (by=\"mask\"), so that every lens finds every position.",
    )  # fmt: skip
    return Study(
        "Does it act where it says?", kept.path, intro, found(tables), claims(tables), pictures, tables
    )  # fmt: skip


def interventions(vlm: VLM, seed: int = 0) -> list[Changed]:
    """What is tried. The random direction is as long as the colour style's and added at the same place."""
    style = next(task for task in TASKS if isinstance(task, Style) and task.style == "colour")
    site = f"blocks.{LAYER}.resid_post"
    base, target = (part[site] for part in style.states(vlm, [site], MADE, seed)["caption"])
    direction = direction_between(vlm, base, target, LAYER)
    _, _, random = next(controls(direction, (base, target), seed))
    depth = vlm.anatomy.n_layers
    later = range(depth // 2, depth)
    return [
        Changed("PAI\nboost", VisualAttentionBoost(1.0), (ATTENTION, 1)),
        Changed("VAR\nsinks", SinkRedistribution(tau=3.0), (ATTENTION, 1)),  # no state here reaches the default, 20
        Changed("colour\nstyle", added(style, direction, SCALE), (LEANING, 1)),
        Changed("random\ndirection", added(style, random, SCALE)),
        Changed("prune\nto ¼", PruneVisual(KEPT, by="mask"), (LIFT, 1)),
        Changed("exit at\nhalf", VisualExit(depth // 2 - 1, by="mask"), (ATTENTION, -1)),
        Changed("skip\nFFN", SkipFFN(layers=later), (DEPTH, 0)),
        Changed("skip\nattention", SkipAttention(layers=later), (DEPTH, 0)),
    ]


def measured(vlm: VLM, blocks: Sequence[Sequence[Sample]], change: Changed | None, batch_size: int, seed: int):
    """{(lens, quantity): (blocks,) values} under a change, None for the plain model."""
    with steer(vlm, *([change.make] if change else [])):
        found = lens_values(vlm, blocks, batch_size=batch_size, seed=seed).numbers
        return found | {(SAID, LEANING): np.array([leaning(vlm, block) for block in blocks])}


def leaning(vlm: VLM, scenes: Sequence[Sample]) -> float:
    """Mean over scenes of the loss of the true neutral caption minus that of the true caption with colours, nats a token."""
    asked = [replace(one, prompt=f"{IMAGE_MARK} {instruction('neutral')}") for one in scenes]
    losses = [
        answer_losses(vlm, [replace(one, answer=caption(one.truth["scene"], style)) for one in asked])
        for style in ("neutral", "colour")
    ]
    return float((losses[0] - losses[1]).mean())


def before_after(values: dict[str, dict], changes: Sequence[Changed]) -> pd.DataFrame:
    """A row a quantity and intervention. before, after: means over blocks; change with low, high: paired, over blocks; sd: of the
    plain value between blocks; standardised: change / sd; own, sign: whether the intervention says that it acts here, and how.
    """
    rows = []
    for change in changes:
        for (lens, quantity), before in values["plain"].items():
            after = values[change.name][lens, quantity]
            sd = float(np.std(before, ddof=1))
            row = paired(after - before)
            own = change.own is not None and change.own[0] == quantity
            rows.append({
                "lens": lens, "quantity": quantity, "intervention": change.name.replace("\n", " "), "before": before.mean(), "after": after.mean(),
                **row, "sd": sd, "standardised": row["change"] / sd if sd > 0 else np.nan, "own": own,
                "sign": change.own[1] if own else np.nan,
            })  # fmt: skip
    return pd.DataFrame(rows)


def against_random(values: dict[str, dict]) -> pd.DataFrame:
    """The colour direction minus the random one of its length, by quantity, paired over blocks."""
    colour, random = values["colour\nstyle"], values["random\ndirection"]
    return pd.DataFrame(
        [{"lens": lens, "quantity": q, **paired(colour[lens, q] - random[lens, q])} for lens, q in colour]
    )


def paired(differences: np.ndarray) -> dict:
    """Mean of differences (blocks,) with Student's interval; blocks without a value are left out, and counted out of `blocks`."""
    one = mean_over_samples(powers(torch.from_numpy(differences)).sum(0))
    return {"change": float(one.mean), "low": float(one.low), "high": float(one.high), "blocks": int(one.n)}


# -- what came out, in words ----------------------------------------------------------------------------------------------


def claims(tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """Whether each intervention changed what it says it changes, and nothing it says it leaves."""
    table, random = tables["changes"], tables["against_random"]
    made = [
        _rises(table, "PAI boost", ATTENTION, "Boosting scores raises attention on the picture", "arXiv 2407.21771"),
        _rises(table, "VAR sinks", ATTENTION, "Taking from sinks moves attention back to the picture", "arXiv 2503.03321", _sinks(table)),
        _rises(table, "colour style", LEANING, "A style’s direction moves what is said", "arXiv 2501.03012"),
    ]  # fmt: skip
    row = pick(random, quantity=LEANING).iloc[0]
    made.append(
        Claim("… more than a random direction of its length", "our control", told("difference", row), sign_of(row))
    )
    row = pick(table, intervention="colour style", quantity="IMA score, centred").iloc[0]
    moved = None if sign_of(row) is None else False
    made.append(Claim("… and leaves the alignment of picture and text alone", "our question", told("IMA score, centred", row), moved))  # fmt: skip
    alone = f" Hiding the others, with attention in proportion, makes it × {1 / KEPT:g} by itself."
    made.append(
        _rises(table, "prune to ¼", LIFT, "Pruning by the encoder’s attention sends the decoder to its outliers", "our question", alone)
    )  # fmt: skip
    for name, what in (("skip FFN", "feed-forward layers"), ("skip attention", "attention")):
        row = pick(table, intervention=name, quantity=DEPTH).iloc[0]
        holds = True if row["low"] > -LITTLE else False if row["high"] < -LITTLE else None
        made.append(
            Claim(f"Visual tokens can skip later {what}: depth is read from them as before (less than {LITTLE:g} lost)",
                  "arXiv 2405.16700, section 5; measure ours", told("R²", row), holds)
        )  # fmt: skip
    return made


def _rises(table: pd.DataFrame, intervention: str, quantity: str, claim: str, source: str, more: str = "") -> Claim:
    """By more than a hundredth of what it was: an interval can leave 0 out and be of no consequence."""
    row = pick(table, intervention=intervention, quantity=quantity).iloc[0]
    least = SHARE * abs(row["before"])
    holds = True if row["low"] > least else False if row["high"] < least else None
    return Claim(f"{claim} (by 1 % or more)", source, told(quantity, row) + more, holds)


def _sinks(table: pd.DataFrame) -> str:
    """How much there is to take."""
    row = pick(table, intervention="VAR sinks", quantity=SINK).iloc[0]
    return f" What there was to take: {number(row['before'])} of attention is on the sink of the plain model."


def sign_of(row) -> bool | None:
    """Whether a change is above 0; None where its interval holds 0, or there is none."""
    return True if row["low"] > 0 else False if row["high"] < 0 else None


def told(what: str, row) -> str:
    course = f"{number(row['before'])} → {number(row['after'])}, " if "before" in row else ""
    change = f"{number(row['change'])} (95 %: {number(row['low'])} to {number(row['high'])}"
    return f"{what} {course}change {change}; {int(row['blocks'])} blocks)."


def found(tables: dict[str, pd.DataFrame]) -> list[str]:
    """How much of what is measured each intervention moves, beside its own cell."""
    table, sentences = tables["changes"], []
    for name, rows in table.groupby("intervention", sort=False):
        moved = rows[[sign_of(row) is not None for _, row in rows.iterrows()]]
        others = moved[~moved["own"]].sort_values("standardised", key=abs, ascending=False)
        most = ", ".join(f"{row.quantity} {number(row.before)} → {number(row.after)}" for row in others.head(3).itertuples())  # fmt: skip
        said = f"{name}: {len(moved)} of {len(rows)} numbers move"
        sentences.append(said + (f"; most, apart from its own: {most}." if most else "."))
    return [*sentences, f"With {len(table)} intervals, about {0.05 * len(table):.0f} would leave 0 out by chance."]

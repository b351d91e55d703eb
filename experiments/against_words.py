"""What a comparison of a tuned model with the model before says: one short table, sentences, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from .before_after import MEAN
from .figures.rows import pick
from .figures.scores import named
from .page import Claim, number

Tables = Mapping[str, pd.DataFrame]

DPO, REALIGN, ANCHOR = "arXiv 2305.18290", "arXiv 2502.13146", "arXiv 2406.11839"
KEPT = 0.02
"""Skill that may be lost: two points of a hundred."""

OWN = {"pictures": "own", "kind": "all"}
REWARDS = {
    "text_margin": "margin over the rejected answer", "visual_margin": "margin over the rejected picture",
    "text_accuracy": "pairs with a margin over the rejected answer", "visual_accuracy": "pairs with a margin over the rejected picture",
    "displaced": "pairs whose chosen answer became less likely",
}  # fmt: skip
LIKELIHOOD = {
    "prefers_chosen": "chosen answer likelier than rejected",
    "prefers_image": "chosen answer likelier under its picture",
    "chosen_logp_a_token": "log-probability of the chosen answer a token",
}
SCORES = (
    ("mean", "accuracy"), ("adversarial", "accuracy"), ("mean", "yes_ratio"), ("all", "chair_i"), ("all", "chair_s"),
    ("same length", "chair_i"), ("all", "recall"), ("all", "mean_length"),
)  # fmt: skip
"""(split, metric) of the rendered benchmarks in the short table."""


def summary(tables: Tables) -> pd.DataFrame:
    """One row a quantity. Columns: group, quantity, before, after, change with low, high, sd over trainings, n.

    The rewards of the model before are those it is given against itself: no margin, half of the pairs right by ties. A divergence is
    a change by itself.
    """
    rows = []
    for metric, name in REWARDS.items():
        rows += _rows(tables, "margins", "preferences", name, metric=metric, **OWN)
    for metric, name in LIKELIHOOD.items():
        rows += _rows(tables, "likelihood", "preferences", name, metric=metric, **OWN)
    for kind in dict.fromkeys(tables["kl"]["prompts"] if "kl" in tables else ()):
        where = {"prompts": kind, "direction": "after ‖ before", "metric": "nats_a_token"}
        rows += _rows(tables, "kl", "divergence", f"nats a token, {kind}", "after", **where)
    if "scores" in tables:
        scores = tables["scores"]
        scenes = set(scores["benchmark"]) <= {"pope-scenes", "chair-scenes"}
        wanted = SCORES if scenes else dict.fromkeys(zip(scores["split"], scores["metric"], strict=True))
        for split, metric in wanted:
            name = named(metric) if scenes and split in ("mean", "all") else f"{named(metric)}, {split}"
            rows += _rows(tables, "scores", "made up", name, split=split, metric=metric)
    for table, group in (("retention", "text alone"), ("skill", "skill elsewhere")):
        for kind in dict.fromkeys(tables[table]["kind"] if table in tables else ()):
            rows += _rows(
                tables, table, group, "all questions" if kind == "all" else kind, kind=kind, metric="accuracy"
            )
    for row in pick(tables["lenses"], model=MEAN).to_dict("records") if "lenses" in tables else ():
        names = ("before", "after", "change", "low", "high", "sd", "n")
        rows.append({"group": "lenses", "quantity": row["quantity"], **{name: row[name] for name in names}})
    columns = ["group", "quantity", "before", "after", "change", "low", "high", "sd", "n"]
    return pd.DataFrame(rows, columns=columns)


def _rows(tables: Tables, table: str, group: str, quantity: str, change: str = "difference", **where) -> list[dict]:
    if table not in tables:
        return []
    ends = ("low", "high") if change == "after" else ("difference_low", "difference_high")
    return [
        {"group": group, "quantity": quantity, "before": row["before"], "after": row["after"], "change": row[change],
         "low": row[ends[0]], "high": row[ends[1]], "sd": row["sd"], "n": row["n"]}
        for row in pick(tables[table], model=MEAN, **where).to_dict("records")
    ]  # fmt: skip


def intro(trainings: int) -> tuple[str, ...]:
    several = (
        f"Numbers after are means over {trainings} trainings, and their intervals take in both the pictures and the trainings; with so few trainings, read them as rough."
        if trainings > 1
        else "One training: intervals are over pictures alone, and say nothing of how another training would have come out."
    )
    return (
        "The model after tuning and the model before, on the same held-out pairs, questions and scenes; differences are paired. Beside what tuning was meant to change stand what it must "
        "not change, how far it moved, and every lens before and after.",
        several,
    )  # fmt: skip


def found(tables: Tables, same: Sequence[str] = ()) -> list[str]:
    """What came out, with n and intervals. same: models that answer like the model before, bit for bit."""
    sentences = []
    if same:
        sentences.append(
            f"{', '.join(same)} computes what the model before computes, bit for bit: all its differences are 0."
        )
    table = tables["summary"]
    for group, start in (
        ("preferences", "Held-out pairs"), ("divergence", "Moved from the model before, on its own samples"),
        ("made up", "Made up"), ("text alone", "Text alone"), ("skill elsewhere", "Skill elsewhere"),
    ):  # fmt: skip
        rows = pick(table, group=group)
        if len(rows):
            n = sorted({int(n) for n in rows["n"]})
            count = f"n = {n[0]:,}" if len(n) == 1 else f"n = {n[0]:,} to {n[-1]:,}"
            sentences.append(f"{start} ({count}): " + "; ".join(told(row) for row in rows.to_dict("records")) + ".")
    lenses = pick(table, group="lenses")
    if len(lenses):
        moved = [row for row in lenses.to_dict("records") if sign(row) is not None]
        said = "; ".join(told(row) for row in moved) or "none"
        sentences.append(
            f"Of {len(lenses)} numbers of the lenses (n = {int(lenses['n'].max())} scenes) {len(moved)} move: {said}. About {0.05 * len(lenses):.1f} would by chance."
        )
    return sentences


def told(row: Mapping) -> str:
    """A row of the summary in words."""
    course = f"{number(row['before'])} → {number(row['after'])}, change " if row["before"] == row["before"] else ""
    return f"{row['quantity']} {course}{number(row['change'])} (95 %: {number(row['low'])} to {number(row['high'])})"


def sign(row: Mapping) -> bool | None:
    """Whether a change is above 0; None where its interval holds 0, or there is none."""
    return True if row["low"] > 0 else False if row["high"] < 0 else None


def claims(tables: Tables) -> list[Claim]:
    """Verdicts on what preference tuning is said to do; those whose parts were not measured are left out."""
    table, made = tables["summary"].set_index(["group", "quantity"]), []

    def judge(claim: str, source: str, key: tuple[str, str], holds) -> None:
        if key in table.index:
            row = table.loc[key].to_dict() | {"quantity": key[1]}
            made.append(Claim(claim, source, f"{told(row)}, n = {int(row['n'])}.", holds(row)))

    def less(row):
        return None if sign(row) is None else not sign(row)

    judge(
        "Tuning raises the margin over rejected answers on held-out pairs",
        DPO,
        ("preferences", REWARDS["text_margin"]),
        sign,
    )
    judge("… and over rejected pictures", REALIGN, ("preferences", REWARDS["visual_margin"]), sign)
    judge("… without making chosen answers less likely", f"{ANCHOR}, section 3.2: it does not hold for DPO", ("preferences", LIKELIHOOD["chosen_logp_a_token"]), _not_below)  # fmt: skip
    judge("A tuned model makes up fewer objects", REALIGN, ("made up", named("chair_i")), less)
    judge(
        "… also when descriptions are equally long",
        "our control",
        ("made up", f"{named('chair_i')}, same length"),
        less,
    )
    judge("… and answers adversarial questions better", REALIGN, ("made up", f"{named('accuracy')}, adversarial"), sign)
    for group, name in (
        ("text alone", "what it knows without pictures"),
        ("skill elsewhere", "colours, numbers and positions"),
    ):
        judge(f"Tuning keeps {name} (less than {100 * KEPT:g} points lost)", "our bar", (group, "all questions"), _kept)
    return made


def _not_below(row) -> bool | None:
    return False if row["high"] < 0 else True if row["low"] >= 0 else None


def _kept(row) -> bool | None:
    """Where no answer changed, an interval of no width says nothing: of n questions as many as 3 / n could still be lost (95 %)."""
    low = row["low"] if row["high"] > row["low"] else row["change"] - 3 / row["n"]
    return True if low > -KEPT else False if row["high"] < -KEPT else None

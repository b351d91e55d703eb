"""Figures of a tuned model against the model before, from the tables of `experiments.against`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from ..style import BLUE, GREY, ORANGE, PICTURE, PURPLE, VERMILION, Look
from .chart import Chart, Figure, Line, Panel, Points
from .rows import pick
from .scores import better, named

MEAN = "mean"
EACH = Look(GREY, "^", "")
OWN, OTHERS = Look(BLUE, "o", ""), {"other": Look(ORANGE, "s", ""), "blank": Look(GREY, "D", "")}
SHOWN = {"own": "own picture", "other": "another’s picture", "blank": "blank picture"}
BEFORE, AFTER = Look(GREY, "s", "--"), Look(BLUE, "o", "-")

BY_BLOCK = ("Attention shift", "Outliers", "Shared weights")
"""Lenses whose layers are blocks; those of the others are what a block has put out, from the input on."""

Tables = Mapping[str, pd.DataFrame]


def drawable(tables: Tables) -> list[Figure]:
    """Every figure that the tables have something for."""
    made = []
    if "margins" in tables:
        made.append(margins(tables["margins"], tables["likelihood"]))
    if "scores" in tables:
        made.append(changes(tables))
    if "kl" in tables:
        made.append(divergence(tables["kl"]))
    if "layers" in tables:
        made.append(layers(tables["layers"]))
    if "state_shift" in tables:
        made.append(states(tables["state_shift"], tables["concept_shift"]))
    return made


def margins(table: pd.DataFrame, likelihood: pd.DataFrame) -> Figure:
    """Margins of held-out pairs with their own and other pictures; shares of pairs."""
    kinds = [kind for kind in dict.fromkeys(table["kind"]) if kind != "all"]
    lines = [("text", "own", "all"), *(("text", "own", kind) for kind in kinds), ("text", "other", "all"), ("text", "blank", "all"), ("visual", "own", "all")]  # fmt: skip
    lines = [
        one for one in lines if len(pick(table, model=MEAN, metric=f"{one[0]}_margin", pictures=one[1], kind=one[2]))
    ]
    names = {"text": "rejected answer", "visual": "rejected picture"}
    labels = [names[what] + ("" if kind == "all" else f": {kind}") + ("" if shown == "own" else f", {SHOWN[shown]}") for what, shown, kind in lines]  # fmt: skip
    at = [float(len(lines) - 1 - i) for i in range(len(lines))]
    marks = []
    for shown, name in SHOWN.items():
        here = [(y, line) for y, line in zip(at, lines, strict=True) if line[1] == shown]
        rows = [pick(table, model=MEAN, metric=f"{w}_margin", pictures=s, kind=k).iloc[0] for _, (w, s, k) in here]
        if rows:
            marks.append(_points(rows, [y for y, _ in here], name, OWN if shown == "own" else OTHERS[shown], "after"))
    shares = (("margins", "text_accuracy", "margin over rejected answer"), ("margins", "visual_accuracy", "margin over rejected picture"), ("margins", "displaced", "chosen answer less likely"),
              ("likelihood", "prefers_chosen", "chosen answer likelier"), ("likelihood", "prefers_image", "its picture likelier"))  # fmt: skip
    own = {"model": MEAN, "pictures": "own", "kind": "all"}
    frames = {"margins": table, "likelihood": likelihood}
    shown = [(name, pick(frames[frame], metric=metric, **own)) for frame, metric, name in shares]
    shown = [(name, rows.iloc[0]) for name, rows in shown if len(rows)]
    heights = [float(len(shown) - 1 - i) for i in range(len(shown))]
    own_rows = [row for _, row in shown]
    share = [
        _points(own_rows, heights, "after", OWN, "after", 100),
        _points(own_rows, [y + 0.22 for y in heights], "before", BEFORE.with_(dash=""), "before", 100),
    ]
    panels = [
        Panel("Margin over …", "reward, β × log-ratio", "", marks, upright=(0.0, ""), y_ticks=(at, labels), y_limits=(-0.7, len(lines) + 1.4), direct=False),
        Panel("Share of pairs", "%", "", share, upright=(50.0, ""), y_ticks=(heights, [name for name, _ in shown]), y_limits=(-0.7, len(shown) + 0.9), x_limits=(-4, 104), direct=False),
    ]  # fmt: skip
    n, seeds = int(table["n"].max()), _seeds(table)
    return Figure(
        "margins", "Did it learn the preference, and from the picture?",
        "Left: how much more than the model before the tuned model prefers the chosen answer over the rejected one, and the true picture over the rejected one; a margin that is as large with another’s "
        "picture or a blank one was learnt from the texts alone. Right: how many pairs have such a margin, in how many the chosen answer has become less likely, and what either model finds likelier by "
        "itself, which is what generation sees.",
        "Left: reward margins of held-out pairs by kind and by the picture shown. Right: shares of pairs with a margin, displaced, and likelier.",
        Chart(panels, f"n = {n} held-out pairs{seeds}; whiskers: 95 % interval", height=1.35 + 0.3 * max(len(lines), len(shown))),
    )  # fmt: skip


def changes(tables: Tables) -> Figure:
    """Differences of scores, retention and skill, in points; each training as a grey mark."""
    lines: list[tuple[str, str, dict]] = []
    scores = tables["scores"]
    for benchmark in dict.fromkeys(scores["benchmark"]):
        rows = pick(scores, benchmark=benchmark, model=MEAN)
        for split in dict.fromkeys(rows["split"]):
            for metric in ("accuracy", "yes_ratio", "chair_i", "chair_s", "recall"):
                if metric == "recall" and "chair_i" not in set(rows["metric"]):
                    continue  # POPE's is of yes, and accuracy and the share of yes say it
                if len(pick(rows, split=split, metric=metric)):
                    name = named(metric).split(",")[0] + ("" if split == "all" else f", {split}")
                    lines.append(("scores", name, {"benchmark": benchmark, "split": split, "metric": metric}))
    for table, what in (("retention", "Text alone"), ("skill", "Elsewhere")):
        for kind in dict.fromkeys(tables[table]["kind"]) if table in tables else ():
            lines.append((table, f"{what}: {kind}", {"kind": kind, "metric": "accuracy"}))
    at = [float(len(lines) - 1 - i) for i in range(len(lines))]
    mean = [pick(tables[table], model=MEAN, **where).iloc[0] for table, _, where in lines]
    each = [
        (float(value) * 100, y)
        for y, (table, _, where) in zip(at, lines, strict=True)
        for value in _each(tables[table], **where)["difference"]
    ]
    marks = [_points(mean, at, "mean" if each else "change", OWN, "difference", 100)]
    if each:
        x, y = zip(*each, strict=True)
        marks.insert(0, Points(x, [v - 0.22 for v in y], "each training", EACH))
    ways = [better(where["metric"]).replace(" is better", "") for _, _, where in lines]
    labels = [name + (f" ({way})" if way else "") for (_, name, _), way in zip(lines, ways, strict=True)]
    biggest = max(
        int(pick(tables[table], model=MEAN)["n"].max()) for table in ("scores", "retention", "skill") if table in tables
    )
    least = min(int(row["n"]) for row in mean)
    return Figure(
        "changes", "What did tuning change?",
        "Each blue point is the tuned model minus the model before, on the same questions; in brackets which way is better. A gain in CHAIR counts where it stays at equal length and recall does not fall; "
        "a gain in accuracy counts where the share of yes has not just moved. What stands below must not fall.",
        "Paired differences of the tuned model from the model before, by benchmark, split and kind of question.",
        Chart(
            [Panel("After minus before", "points", "", marks, upright=(0.0, ""), y_ticks=(at, labels), y_limits=(-0.7, len(lines) + 0.9), direct=False)],
            f"n = {least} to {biggest} questions or descriptions{_seeds(scores)}; whiskers: paired 95 % interval", columns=1, height=1.2 + 0.235 * len(lines),
        ),
    )  # fmt: skip


def divergence(table: pd.DataFrame) -> Figure:
    """Nats a token by kind of prompt, exact and plain, and the other way round."""
    kinds = list(dict.fromkeys(table["prompts"]))
    at = [float(len(kinds) - 1 - i) for i in range(len(kinds))]
    series = (
        ("after ‖ before", "nats_a_token", "tuned from before, exact", OWN, 0.18),
        ("after ‖ before", "plain_nats_a_token", "the same, plain estimate", EACH, 0.0),
        ("before ‖ after", "nats_a_token", "before from tuned, exact", Look(VERMILION, "s", ""), -0.18),
    )
    panels = []
    for unit, title in (("a_token", "A token"), ("an_answer", "An answer")):
        marks = [
            _points([pick(table, model=MEAN, prompts=kind, direction=direction, metric=metric.replace("a_token", unit)).iloc[0] for kind in kinds], [y + shift for y in at], name, look, "after")
            for direction, metric, name, look, shift in series
        ]  # fmt: skip
        panel = Panel(title, "KL divergence (nats)", "", marks, upright=(0.0, ""), y_ticks=(at, kinds), y_limits=(-0.6, len(kinds) + 0.5), direct=False)  # fmt: skip
        panels.append(_bare(panel) if panels else panel)
    return Figure(
        "divergence", "How far has it moved from the model before?",
        "Divergence between the two models’ answers, on answers that one of them sampled at temperature 1. The exact estimate sums over the whole vocabulary at every token of the sample; the plain one takes the "
        "log-ratio of what was sampled, and must agree with it within its wider interval. Tuning on descriptions should move descriptions, and leave text without pictures where it was.",
        "KL divergence in nats a token and an answer, by kind of prompt and direction.",
        Chart(panels, f"n = {int(table['n'].max())} prompts of each kind{_seeds(table)}; whiskers: 95 % interval over prompts", height=1.5 + 0.5 * len(kinds)),
    )  # fmt: skip


def layers(table: pd.DataFrame) -> Figure:
    """The change of every lens by layer, a panel a quantity."""
    rows, panels = pick(table, model=MEAN), []
    for quantity in dict.fromkeys(rows["quantity"]):
        some = pick(rows, quantity=quantity).sort_values("layer")
        x = some["layer"].astype(int).tolist()
        marks = [Line(x, some["change"].tolist(), "", AFTER, some["low"].tolist(), some["high"].tolist())]
        for _, one in _each(table, quantity=quantity).groupby("model", sort=False):
            one = one.sort_values("layer")
            marks.insert(
                0, Line(one["layer"].astype(int).tolist(), one["change"].tolist(), "", Look(GREY, "", ":", 1.0))
            )
        short = quantity[0].upper() + quantity[1:]
        where = "block" if some["lens"].iloc[0] in BY_BLOCK else "layer"
        panels.append(Panel(folded(short), where, "", marks, level=(0, "")))
    first = rows.iloc[0]
    return Figure(
        "layers_changed", "Where did tuning act?",
        "Each panel is one quantity of a lens, layer by layer: the tuned model minus the model before, on the same scenes; grey dots are single trainings. Where the band leaves the line at 0 the lens sees tuning. "
        "Layer 0 is the input, which adapters in the decoder cannot change; blocks are counted from 0.",
        "Small multiples: change of each lens's quantity over layers with intervals.",
        Chart(panels, f"n = {int(first['n'])} scenes in {int(first['blocks'])} blocks{_seeds(rows)}; bands: paired 95 % interval over blocks", columns=3, height=2.15),
    )  # fmt: skip


def states(sites: pd.DataFrame, concepts: pd.DataFrame) -> Figure:
    """How far the states that predict a word moved by layer, and how much the samples of a concept agree on it."""
    mean = pick(sites, model=MEAN).sort_values("layer")
    x = mean["layer"].astype(int).tolist()
    names = ["norm" if site == "final" else str(int(site.split(".")[1]) + 1) for site in mean["site"]]
    lines = [
        Line(x, (100 * mean["move"]).tolist(), "each sample", PICTURE),
        Line(x, (100 * mean["common"]).tolist(), "in common", Look(VERMILION, "s", "--")),
    ]
    order = (
        concepts.groupby(["concept", "words"], sort=False)[["consistency", "low", "high", "floor"]].mean().reset_index()
    )
    order = order.sort_values("consistency").assign(low=order["low"].clip(-1, 1), high=order["high"].clip(-1, 1))
    at = [float(i) for i in range(len(order))]
    marks = [
        Points(order["consistency"].tolist(), at, "consistency", OWN, order["low"].tolist(), order["high"].tolist()),
        Points(order["floor"].tolist(), at, "without a common move", Look(PURPLE, "v", "")),
    ]
    labels = [", ".join(text.split(", ")[:2]) for text in order["words"]]
    panels = [
        Panel("How far did states move?", "layer", "% of their length", lines, x_ticks=(x, names), y_limits=(0, max(lines[0].y) * 1.15)),
        Panel("Does a concept move as one?", "mean cosine of two moves", "", marks, upright=(0.0, ""), y_ticks=(at, labels), y_limits=(-0.7, len(at) + 1.2), direct=False),
    ]  # fmt: skip
    return Figure(
        "states_moved", "What moved in the states that predict a word?",
        "States from which both models predict the first thing they name, picture by picture. Left: the length of a state’s move, and of the mean of all moves, by layer: the nearer they are, the more tuning is "
        "one shift for all. Right: at the final norm, how alike the moves of one concept’s samples are, beside what random signs would give.",
        "Left: relative length of the move of states by layer. Right: consistency of moves by concept, with floor.",
        Chart(panels, f"n = {int(mean['n'].max())} captions; whiskers: 95 % jackknife interval, mean over trainings", height=1.5 + 0.3 * max(4, len(at))),
    )  # fmt: skip


def _points(rows, at, label: str, look: Look, column: str, scale: float = 1.0) -> Points:
    """Points along x at heights `at`, with the interval that goes with a column."""
    ends = ("low", "high") if column == "after" else (f"{column}_low", f"{column}_high")
    x, low, high = ([scale * float(row[name]) for row in rows] for name in (column, *ends))
    return Points(x, list(at), label, look, low, high)


def _each(table: pd.DataFrame, **where) -> pd.DataFrame:
    rows = pick(table, **where)
    return rows[rows["model"] != MEAN]


def _seeds(table: pd.DataFrame) -> str:
    many = int(pick(table, model=MEAN)["seeds"].max())
    return f", mean over {many} trainings" if many > 1 else ""


def folded(text: str, width: int = 24) -> str:
    """On two lines where it is long."""
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width)
    return f"{text[:cut]}\n{text[cut + 1 :]}" if cut > 0 else text


def _bare(panel: Panel) -> Panel:
    """The panel beside another one with the same rows: without their names and without a legend."""
    marks = [replace(mark, label="") for mark in panel.marks]
    return replace(panel, marks=marks, y_ticks=(panel.y_ticks[0], [""] * len(panel.y_ticks[0])))

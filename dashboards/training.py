"""Trainings as they go on: which there are, how far each is, and its curves, from the table it writes at every log entry."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..experiments.figures.chart import Chart, Figure, Line, Panel
from ..experiments.manifest import Listed
from ..experiments.style import look
from .evaluations import label, told_apart
from .store import run_name

if TYPE_CHECKING:
    import pandas as pd

TABLE = "training"
"""The table, one row a log entry of the trainer; rows of evaluations have columns `eval_…`."""

SILENT, GIVEN_UP = 300.0, 6 * 3600.0
"""Seconds after which a training that writes nothing is called silent, and after which nobody waits for it."""


@dataclass(frozen=True)
class Training:
    """run: its name in the store. state: "trained", "training", "silent" or "stopped". told: that in words."""

    run: str
    label: str
    state: str
    told: str
    manifest: Mapping[str, Any]

    @property
    def live(self) -> bool:
        return self.state in ("training", "silent")


@dataclass(frozen=True)
class Curve:
    """column: of the table. level: a value that means something. reading: what the curve says."""

    column: str
    title: str
    unit: str
    reading: str
    level: tuple[float, str] | None = None
    limits: tuple[float, float] | None = None


ACCURACY = {"level": (0.5, "chance"), "limits": (-0.02, 1.02)}
CURVES = (
    Curve("loss", "Loss", "nats", "What is minimised. It starts at ln 2 = 0.69 for each preference term, since a model equals its reference at first; methods with other terms compare by shape, not by height."),
    Curve("rewards/margins", "Margin: chosen against rejected answer", "β × nats",
          "How much more the chosen answer has gained than the rejected one. It should rise; without bound it is overfitting.", (0.0, "")),
    Curve("rewards/visual_margins", "Margin: right against rejected picture", "β × nats",
          "How much more the chosen answer has gained under its picture than under the rejected one. Where it stays at 0 nothing is learned from pictures.", (0.0, "")),
    Curve("rewards/accuracies", "Pairs whose chosen answer gains more", "share", "½ is chance; before the first step it is 0, as nothing has gained yet. Held-out pairs (dashed) say whether it carries over.", **ACCURACY),
    Curve("rewards/visual_accuracies", "Pairs whose own picture gains more", "share", "The same between the two pictures. Learning from words alone leaves it at ½.", **ACCURACY),
    Curve("kl/chosen", "Distance from the reference, on chosen answers", "nats a token",
          "Reference minus policy: above 0 chosen answers have become less likely than they were, the known failing of preference tuning.", (0.0, "")),
)  # fmt: skip
"""What is drawn of every training."""

MORE = (
    Curve("rewards/displaced", "Chosen answers less likely than before", "share", "Should stay low; near 1 both answers sink and the chosen one only more slowly.", limits=(-0.02, 1.02)),
    Curve("loss/visual", "Loss of the pictures’ term", "nats", "The second term of rDPO alone; ln 2 = 0.69 at the start.", (0.693, "ln 2")),
    Curve("loss/anchor", "Loss of the anchor", "nats", "What holds chosen answers up; ln 2 = 0.69 at the start.", (0.693, "ln 2")),
    Curve("grad_norm", "Length of the gradient", "", "Before it is clipped. Spikes point at single pairs worth a look."),
    Curve("learning_rate", "Learning rate", "", "As scheduled."),
)  # fmt: skip
"""What may be drawn besides."""


def trainings(runs: Sequence[Listed], now: float | None = None) -> list[Training]:
    """Every run that trains or has trained, in the order of the runs."""
    found = [run for run in runs if run.experiment == "tune" or "training" in run.manifest]
    found = [run for run in found if run.state in ("complete", "incomplete")]
    labels = [_label(run) for run in found]
    more = told_apart(labels, [run_name(run) for run in found])
    return [
        Training(run_name(run), name + end, *_state(run, time.time() if now is None else now), run.manifest)
        for run, name, end in zip(found, labels, more, strict=True)
    ]


def progress(table: pd.DataFrame, manifest: Mapping[str, Any]) -> tuple[float | None, str]:
    """(share done or None, in words) of a training, from its last log entry."""
    if not len(table) or "step" not in table:
        return None, "no log entry yet"
    training = manifest.get("training") or {}
    last, steps = table.iloc[-1], training.get("max_steps") or -1
    told = f"step {int(last['step']):,}"
    if steps > 0:
        return min(1.0, float(last["step"]) / steps), f"{told} of {steps:,}"
    epochs, epoch = training.get("num_train_epochs"), last.get("epoch")
    if epochs and epoch == epoch and epoch is not None:
        return min(1.0, float(epoch) / float(epochs)), f"{told}, epoch {float(epoch):.2f} of {float(epochs):g}"
    return None, told


def figure(curve: Curve, tables: Mapping[str, pd.DataFrame], smooth: int = 1) -> Figure | None:
    """The curve of every training that logs it, held-out pairs dashed; smooth: entries in a running mean. None where nobody does."""
    marks, entries, held = [], [], False
    for i, (name, table) in enumerate(tables.items()):
        for column, dashed in ((curve.column, False), (f"eval_{curve.column}", True)):
            rows = _rows(table, column)
            if not len(rows):
                continue
            values = rows if dashed else rows.rolling(smooth, min_periods=1).mean()
            end = name if len(tables) > 1 and not dashed else "held out" if dashed and len(tables) == 1 else ""
            style = look(i).with_(
                dash="--" if dashed else "-", marker=look(i).marker if dashed or len(rows) < 40 else ""
            )
            marks.append(Line(values.index.tolist(), values.tolist(), end, style))
            held |= dashed
            entries += [] if dashed else [len(rows)]
    if not marks:
        return None
    n = " and ".join(f"{count:,}" for count in sorted({*entries} or {len(marks[0].x)}))
    notes = [
        f"n = {n} log entries, each a mean over its steps’ pairs",
        "dashed: held-out pairs" if held else "",
        f"running mean of {smooth}" if smooth > 1 else "",
    ]
    return Figure(
        curve.column.replace("/", "_"), curve.title, curve.reading,
        f"{curve.title} over the steps of {len(tables)} training{'s' * (len(tables) > 1)}.",
        Chart(
            [Panel("", "step", curve.unit, marks, level=curve.level, y_limits=curve.limits)],
            "; ".join([note for note in notes if note] + ["no interval: one training each"]), columns=1, height=2.5,
        ),
    )  # fmt: skip


def _rows(table: pd.DataFrame, column: str) -> pd.Series:
    """Values by step; an entry written twice, as after a resumed training, counts as it was last."""
    import pandas as pd

    if column not in table or "step" not in table:
        return pd.Series(dtype=float)
    values = pd.to_numeric(table[column], errors="coerce")
    rows = pd.Series(values.to_numpy(float), index=table["step"]).dropna()
    return rows[~rows.index.duplicated(keep="last")].sort_index()


def _label(run: Listed) -> str:
    method = (run.manifest.get("config") or {}).get("method")
    return f"{method} {label(run)}" if method else label(run)


def _state(run: Listed, now: float) -> tuple[str, str]:
    if run.state == "complete":
        return "trained", "complete"
    if run.manifest.get("error"):
        return "stopped", f"stopped: {run.detail}"
    since = now - max(_changed(run.path / name) for name in ("manifest.json", "log.txt", f"tables/{TABLE}.parquet"))
    if since > GIVEN_UP:
        return "stopped", "was killed, or waits to be resumed"
    if since > SILENT:
        return "silent", f"has written nothing for {since / 60:.0f} minutes"
    return "training", "training"


def _changed(path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

"""`chiasm evaluate --against`: a tuned model against the model before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..scenes.errors import UserError
from . import options as o
from .options import say

_NOT_HERE = ("method", "answers", "steer", "prune", "exit_after", "boost")


def run(config: dict[str, Any], begun, out: Path) -> None:
    """The command, from what it was told; begun: the run to go on with, or None. Raises UserError."""
    if told := next((name for name in _NOT_HERE if config[name]), None):
        option = "exit" if told == "exit_after" else told
        raise UserError(f"--{option} and --against exclude each other: both models answer greedily, as they are")
    if config["benchmark"] and config["pairs"]:
        raise UserError("with a benchmark only that is asked: leave out --pairs, or the benchmark")
    if config["limit"] is not None and config["limit"] < 1:
        raise UserError(f"--limit {config['limit']} must be at least 1, or left out")
    if begun is not None and begun.finished:
        say("this run is complete: these are its results, nothing was measured again", error=True)
        _show(begun.read_table("summary"))
        say(str(begun.path))
        return
    from .against import against
    from .benchmarks import open_benchmark

    pairs, benchmarks = None, None
    if config["pairs"]:
        from ..alignment.pair_files import load_pairs

        pairs = load_pairs(config["pairs"])
        pairs = pairs.select(range(min(len(pairs), config["limit"] or len(pairs))))
    if config["benchmark"]:
        benchmarks = [
            open_benchmark(
                config["benchmark"], config["source"], limit=config["limit"], seed=config["seed"], **o.read_options(config["read"])
            )
        ]  # fmt: skip
    placed = {name: config[name] for name in ("device", "dtype")}
    revision = config["revision"]
    before = o.open_model(
        config["against"], revision=revision if config["against"] == config["model"] else None, **placed
    )
    models = {
        name: o.open_model(config["model"], adapter=adapter, revision=revision, **placed)
        for name, adapter in named(config["adapter"] or [None], config["model"]).items()
    }
    how = {"limit": config["limit"], "seed": config["seed"], "batch_size": config["batch_size"]}
    run = begun.resume() if begun is not None else _new_run(config, out)
    study = against(before, models, pairs=pairs, benchmarks=benchmarks, run=run, **how)
    _show(study.tables["summary"])
    for claim in study.claims:
        say(f"{claim.verdict}  {claim.claim}", error=True)
    for name in run.manifest.get("same_answers", ()):
        say(f"{name} computes what the model before computes, bit for bit: all its differences are 0", error=True)
    say(f"every table is in tables/, {len(study.figures)} figures in figures/", error=True)
    say(str(study.path))


def named(adapters: list[str | None], model: str) -> dict[str, str | None]:
    """Adapters by a name for each: the end of its path, as long as it must be to tell them apart; of none, the model's."""
    if doubled := next((one for one in adapters if adapters.count(one) > 1), None):
        raise UserError(f"--adapter {doubled!r} was given twice: give each training once")
    parts = [Path(one or model).parts for one in adapters]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(re.sub(r"[^\w.+-]+", "-", part).strip("-.") for part in some[-length:]) for some in parts]
        names = [f"tuned-{name}" if name in ("before", "mean") else name or "tuned" for name in names]
        if len(set(names)) == len(names):
            return dict(zip(names, adapters, strict=True))
    raise UserError(f"adapters {', '.join(map(str, adapters))} cannot be told apart by name: rename one")


def _new_run(config: dict[str, Any], out: Path):
    from .run import Run

    return Run.create("against", config, out)


def _show(summary) -> None:
    """The short table; a change whose interval leaves 0 out is bold."""
    from rich.console import Console
    from rich.table import Table

    varied = summary["sd"].notna().any()
    shown = Table(
        "", "quantity", "before", "after", "change", "95 % interval", *(["s.d. of trainings"] if varied else []), "n"
    )
    above = None
    for row in summary.itertuples():
        if above not in (None, row.group):
            shown.add_section()
        sure = row.low > 0 or row.high < 0
        change = f"[bold]{row.change:+.3f}[/]" if sure else f"{row.change:+.3f}"
        cells = [
            "" if row.group == above else row.group,
            row.quantity,
            *(_number(x) for x in (row.before, row.after)),
            change,
        ]
        cells += [f"{row.low:+.3f} to {row.high:+.3f}", *([_number(row.sd)] if varied else []), f"{int(row.n):,}"]
        shown.add_row(*cells)
        above = row.group
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width to fit into
    console.print(shown)


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3f}"

"""`chiasm evaluate`: how often a model makes things up, by several ways of decoding."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from ..scenes.errors import UserError
from . import options as o
from .options import say

_RULES = ("default", "official", "opera", "vcd")  # of probes.yes_no, which takes seconds to import


def evaluate(
    context: typer.Context,
    benchmark: Annotated[
        str | None,
        typer.Argument(help="pope-scenes, chair-scenes (both rendered), pope, chair, amber, mme or hallusion."),
    ] = None,
    source: Annotated[
        Path | None, typer.Argument(help="The benchmark's file or folder; not for rendered scenes.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="greedy, sampling, sampling-tT (T a temperature), first-token, or a contrast: damro, vcd, no-image, m3id, pai, "
            "random-tokens, blank, with settings as in damro-a1-b0.1-k10 (and -sampled: tokens are drawn). May be given again; the others are compared with greedy, "
            "or else with the first. Default: greedy.",
            metavar="NAME",
        ),
    ] = None,
    controls: Annotated[bool, typer.Option(help="Beside a contrast, greedy and all that it must beat.")] = True,
    steer: o.Steer = None,
    scale: o.Scale = 1.0,
    positions: o.PositionsOf = "all",
    prune: o.Prune = None,
    exit_after: o.ExitAfter = None,
    boost: o.Boost = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(
            "--answers", help="Score these answers (JSON Lines with id and answer) and ask no model.", metavar="FILE"
        ),
    ] = None,
    rule: Annotated[
        str, typer.Option(help=f"How yes and no are read: {', '.join(_RULES)}.", metavar="NAME")
    ] = "default",
    seeds: Annotated[int, typer.Option(help="How many times a sampling method answers.", metavar="N")] = 5,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer. Default: the benchmark's own.", metavar="N")
    ] = None,
    model: o.Model = "organism",
    device: o.Device = None,
    dtype: o.Dtype = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            help="At most so many questions of each split. Default: 200 scenes; files: all.",
            metavar="N",
        ),
    ] = None,
    seed: o.Seed = 0,
    out: o.Out = o.RUNS,
    read: o.Read = None,
    batch_size: o.BatchSize = 8,
    strict: o.Strict = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            help="A PEFT adapter to put on the model. With --against it may be given again: trainings with other seeds.",
            metavar="FOLDER",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="The model before tuning: everything is asked of both and compared (preferences, KL, hallucination, retention, "
            "every lens; with a benchmark, only that). --limit: scenes described, the rest in proportion.",
            metavar="NAME",
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs", help="With --against: held-out preference pairs (default: of unseen scenes).", metavar="FOLDER"
        ),
    ] = None,
    revision: o.Revision = None,
    resume: o.Resume = None,
) -> None:
    """Ask a benchmark's questions by several methods and compare what they get wrong. Answers are kept as they come."""
    from .benchmarks import open_benchmark
    from .evaluation import evaluate, evaluate_answers
    from .run import Run

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("evaluate runs on one process: start it without accelerate launch")
    config, begun = o.begun_config(context, resume, "evaluate" if against is None else "against", out)
    if config["against"] is not None:
        from .cli_against import run

        return run(config, begun, out)
    if config["pairs"] is not None:
        raise UserError("--pairs is for --against: name the model before tuning, e.g. --against organism")
    if len(config["adapter"] or ()) > 1:
        raise UserError(
            "several --adapter are trainings of one model, to compare with the model before: name that with --against"
        )
    if config["benchmark"] is None:
        raise UserError("evaluate needs a benchmark, e.g. `chiasm evaluate pope-scenes` (--help lists them)")
    if config["rule"] not in _RULES:
        raise UserError(f"--rule {config['rule']!r} is not known: use {', '.join(_RULES)}")
    for name in ("seeds", "batch_size", "max_new_tokens"):
        if config[name] is not None and config[name] < 1:
            raise UserError(f"--{name.replace('_', '-')} {config[name]} must be at least 1")
    files = config["answers"] or []
    if files and config["method"]:
        raise UserError("--answers and --method exclude each other: answers are scored, or a model is asked for them")
    methods = [] if files else _methods(config)
    opened = open_benchmark(
        config["benchmark"], config["source"], limit=config["limit"], seed=config["seed"], look=not files,
        **o.read_options(config["read"]),
    )  # fmt: skip
    how = {"rule": config["rule"]}
    if not files:
        opening = {name: config[name] for name in ("device", "dtype", "revision")}
        vlm = o.open_model(config["model"], adapter=(config["adapter"] or [None])[0], **opening)
        if config["controls"]:
            from .decoding import with_controls

            methods = with_controls(methods, vlm, opened)
        how |= {name: config[name] for name in ("batch_size", "seed", "seeds", "max_new_tokens", "strict")}

    def run_into(run: Run):
        return (
            evaluate_answers(opened, files, run=run, **how) if files else evaluate(vlm, opened, methods, run=run, **how)
        )

    if begun is not None and begun.finished:
        result, path = run_into(begun), begun.path
        say("this run is complete: these are its answers, nothing was asked again", error=True)
    else:
        with begun.resume() if begun is not None else Run.create("evaluate", config, out) as kept:
            result = run_into(kept)
        path = kept.path
    _show(_brief(result.table))
    skipped = f", {len(result.skipped)} skipped (see tables/skipped.parquet)" if len(result.skipped) else ""
    say(f"{result.n} questions{skipped}; every metric and split is in tables/scores.parquet", error=True)
    say(str(path))


def _methods(config: dict) -> list:
    """The methods that the command was told, with the interventions it was told as one more."""
    from .changing import change_of
    from .decoding import Steered, method_of

    inside = {name: config[name] for name in ("scale", "positions", "prune", "exit_after", "boost")}
    change = change_of(steer=config["steer"] or (), **inside)
    methods = [method_of(name) for name in config["method"] or ("greedy",)]
    if change is not None:
        name = re.sub(r"[^\w.+-]+", "-", change.name).strip("-")
        methods.append(Steered(name, change.interventions))
    return methods


SHOWN = ("accuracy", "accuracy_plus", "f1", "yes_ratio", "auc", "chair_i", "chair_s", "recall", "cover", "hal", "score")
"""The metrics of the table that is printed; the run has all."""


def _brief(table):
    """The rows worth a terminal: the main metrics, and of several splits their mean where many methods are compared."""
    shown = table[table["metric"].isin(SHOWN)]
    if "accuracy" in set(shown["metric"]):
        shown = shown[shown["metric"] != "recall"]
    many = shown["method"].nunique() > 3 and "mean" in set(shown["split"])
    return shown[shown["split"] == "mean"] if many else shown


def _show(table) -> None:
    """The table of scores. "n would show": the smallest difference that so many questions would find four times in five."""
    from rich.console import Console
    from rich.table import Table

    varied = table["sd"].notna().any()
    compared = table["difference"].notna().any()
    shown = Table("split", "method", "metric", "mean ± s.d. over seeds" if varied else "mean", "95 % interval", "n")
    for column in ("difference", "95 % interval", "p", "p (Holm)", "n would show") if compared else ():
        shown.add_column(column)
    above = ("", "")
    for row in table.sort_values(["split", "method"], key=_in_order, kind="stable").itertuples():
        here = (row.split, row.method)
        if here != above and above[0]:
            shown.add_section()
        mean = f"{row.mean:.3f}" + (f" ± {row.sd:.3f}" if row.sd == row.sd else "")
        cells = [
            *(("", "") if here == above else here),
            row.metric,
            mean,
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.n:,}",
        ]
        if compared and row.difference == row.difference:
            interval = f"{row.difference_low:+.3f} to {row.difference_high:+.3f}"
            tests = ["" if p != p else f"{p:.2g}" for p in (row.p, row.p_holm)]
            cells += [
                f"{row.difference:+.3f}",
                interval,
                *tests,
                "" if row.detectable != row.detectable else f"±{row.detectable:.3f}",
            ]
        shown.add_row(*cells)
        above = here
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width to fit into
    console.print(shown)


def _in_order(column):
    """Sorts as first met, so that what belongs together stands together."""
    from pandas import factorize

    return factorize(column)[0]

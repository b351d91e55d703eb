"""`chiasm tune`: preference tuning."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ..scenes.errors import UserError
from . import options as o
from .options import say


def tune(
    context: typer.Context,
    pairs: Annotated[
        Path,
        typer.Option("--pairs", "--data", help="Preference pairs, as `chiasm pairs` makes them.", metavar="FOLDER"),
    ] = Path("pairs"),
    method: Annotated[
        str,
        typer.Option(help="rdpo, dpo, mdpo, recommended (rdpo with an anchor), or sft for comparison.", metavar="NAME"),
    ] = "rdpo",
    model: o.Model = "organism",
    device: o.Device = None,
    dtype: o.Dtype = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", help="Use at most so many pairs.", metavar="N")] = None,
    held_out: Annotated[
        int | None,
        typer.Option(help="Pairs that are judged and not trained on. Default: a tenth, at most 64.", metavar="N"),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="Default: 5e-6; the bundled model: 1e-3.", metavar="RATE")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Times through the pairs.", metavar="X")] = 1.0,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many steps.", metavar="N")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", help="Pairs in a pass. Default: 4; the bundled model: 8.", metavar="N"),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Passes in a step. Default: 8; the bundled model: 1.", metavar="N")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="How close to stay to the reference. Default: 0.1.", metavar="B")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Of the adapter. Default: 64; the bundled model: 8.", metavar="N")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file of settings: fields of VisualDPOConfig, and rank, alpha, dropout, projector.",
            metavar="FILE",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One of these settings, over the file's. May be given again.", metavar="NAME=VALUE"),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Put the adapter here as well; one that is there is replaced.", metavar="FOLDER")
    ] = None,
    seed: o.Seed = 0,
    out: o.Out = o.RUNS,
    revision: o.Revision = None,
    resume: o.Resume = None,
) -> None:
    """Tune a model on preference pairs. Prints the run, whose folder `adapter` every command takes as --adapter."""
    from ..alignment.pairs import load_pairs
    from ..probes.processes import join_processes
    from .run import Run
    from .tune import tune

    join_processes()
    told, begun = o.begun_config(context, resume, "tune", out)
    if begun is not None and begun.finished:
        say("this run is complete: there is nothing left to tune", error=True)
        say(str(begun.path))
        return
    settings = _settings(told)
    if (save := told["save"] and Path(told["save"])) and save.exists() and not (save / "adapter_config.json").is_file():
        raise UserError(f"--save {str(save)!r} is there and holds no adapter: give another folder")
    for name in ("limit", "max_steps", "batch_size", "accumulate", "rank"):
        if told[name] is not None and told[name] < 1:
            raise UserError(f"--{name.replace('_', '-')} {told[name]} must be at least 1")
    data = load_pairs(told["pairs"])
    if told["limit"] is not None:
        data = data.select(range(min(told["limit"], len(data))))
    vlm = o.open_model(told["model"], **{name: told[name] for name in ("device", "dtype", "revision")})
    with begun.resume() if begun is not None else Run.create("tune", told, out) as run:
        run.note_model(vlm)
        how = {name: told[name] for name in ("method", "held_out", "seed")}
        done = tune(vlm, data, run=run, settings=settings, resume=begun is not None, **how)
        run.note(n=len(data), steps=done.steps)
    if save and run.writes:
        shutil.copytree(run.path / "adapter", save, dirs_exist_ok=True)
    if run.writes:
        _show(done, told)
    say(f"chiasm generate, evaluate and report take it as --adapter {save or run.path}", error=True)
    say(str(run.path))


_FLAGS = {
    "learning_rate": "learning_rate", "epochs": "num_train_epochs", "max_steps": "max_steps", "beta": "beta", "rank": "rank",
    "batch_size": "per_device_train_batch_size", "accumulate": "gradient_accumulation_steps",
}  # fmt: skip


def _settings(told: dict[str, Any]) -> dict[str, Any]:
    """The file's settings, over them those of --set, over them the command's own options. Raises UserError."""
    import yaml

    settings: dict[str, Any] = {}
    if told["config"] is not None:
        try:
            settings = yaml.safe_load(Path(told["config"]).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise UserError(f"--config {str(told['config'])!r} cannot be read as YAML: {reason}") from error
        if not isinstance(settings, dict):
            raise UserError(f"--config {str(told['config'])!r} must be lines of NAME: VALUE")
    for pair in told["set_"] or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair!r} must be NAME=VALUE, e.g. --set visual_weight=0.5")
        settings[name] = yaml.safe_load(value)
    settings = {name: _number(value) for name, value in settings.items()}
    return settings | {
        name: told[flag]
        for flag, name in _FLAGS.items()
        if told[flag] is not None and (flag != "epochs" or told[flag] != 1)
    }


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _show(done, told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table("on held-out pairs", "before", "after", title=f"{told['method']}, {done.steps} steps")
    for row in done.held_out.itertuples():
        shown.add_row(row.what, f"{row.before:.3f}", f"{row.after:.3f}")
    if len(done.held_out):
        console = Console()
        if not console.is_terminal:
            console.width = 200  # a pipe has no width to fit into
        console.print(shown)

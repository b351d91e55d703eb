"""The command line. Each command is a few lines around library functions; whatever a user can cause is one line and exit 2."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..scenes.errors import UserError
from . import options as o
from .cli_dashboard import dashboard
from .cli_evaluate import evaluate
from .cli_generate import generate
from .cli_look import info, runs
from .cli_measure import measure
from .cli_organism import organism
from .cli_pairs import pairs
from .cli_tune import tune
from .options import say

# torch and transformers take seconds to import: commands import what needs them, so that `--help` is there at once.

app = typer.Typer(
    name="chiasm",
    help="A lab for the place in a vision-language model where vision crosses into language.\n\n"
    "Every command works without options, on the bundled model and rendered scenes. Start with: chiasm report",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXPERIMENTS = {
    "alignment": "alignment across layers and checkpoints, against skill",
    "forgetting": "attention shift against forgetting of text skill: base, aligned, tuned",
    "outliers": "where the encoder's outliers sit, and whether the decoder looks there when it makes things up",
    "embeddings": "what each layer knows of depth and segmentation, against reference levels and skill",
    "concepts": "what tuning did to the concepts behind a word: base against two styles",
    "image_words": "what image tokens say when they are read as words, on the picture",
    "shared_weights": "do image and text tokens use the same weights, and do these carry the model alone",
    "causal_trace": "which layer's tokens carry the answer: a repainted thing put back span by span",
    "steering": "answers turned and captions restyled by one direction: success against what is retained",
    "hallucination": "mitigations against greedy decoding and against controls without a story",
    "acting": "does an intervention act where it says: every lens before and after",
    "compute": "skipping, exit and pruning: time and accuracy",
    "preferences": "rDPO against DPO against plain fine-tuning at equal steps on equal pairs; what filters buy",
    "tuned_lenses": "where preference tuning acted: every lens before and after, by layer",
    "wings": "text-only forgetting with and without learners, at equal learning rates and at the published ones",
    "distilling": "what distillation of depth and segmentation leaves in the layers, against shuffled targets",
}
"""Name of each experiment's module -> what it asks."""


@app.command()
def report(
    model: o.Model = "organism",
    data: o.DataSpec = "scenes",
    device: o.Device = None,
    dtype: o.Dtype = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-n", help="Read at most so many samples. Default: 200 scenes; other data: all.", metavar="N"
        ),
    ] = None,
    seed: o.Seed = 0,
    out: o.Out = o.RUNS,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            "-p",
            help="A probe of your own beside the built-in ones: package.module:Class or file.py:Class.",
            metavar="NAME",
        ),
    ] = None,
    read: o.Read = None,
    batch_size: o.BatchSize = 8,
    strict: o.Strict = False,
    adapter: o.Adapter = None,
    revision: o.Revision = None,
    interactive: Annotated[bool, typer.Option(help="Figures one can zoom and point at; adds 2 MB to the page.")] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer samples and seeds: a first look in half the time.")
    ] = False,
) -> None:
    """Look at a model through every probe and write one HTML page with figures. Prints the page's path."""
    from ..probes.processes import join_processes
    from .report import QUICK, report

    join_processes()
    limit = QUICK if quick and limit is None else limit
    own = [o.load_probe(name) for name in probe or ()]
    vlm = o.open_model(model, device=device, dtype=dtype, adapter=adapter, revision=revision)
    samples = o.open_samples(data, limit=limit, seed=seed, read=read) if data != "scenes" or read else None
    page = report(
        vlm, samples, out, limit=limit, seed=seed, device=device, dtype=dtype, probes=own, batch_size=batch_size,
        strict=strict, interactive=interactive,
    )  # fmt: skip
    say(str(page))


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help=f"One of {', '.join(EXPERIMENTS)}.")],
    model: o.Model = "organism",
    data: o.DataSpec = "scenes",
    device: o.Device = None,
    dtype: o.Dtype = None,
    limit: o.Limit = None,
    seed: o.Seed = 0,
    out: o.Out = o.RUNS,
    read: o.Read = None,
    batch_size: o.BatchSize = 32,
    questions: Annotated[
        int | None, typer.Option(help="Questions of each kind. Default: the experiment's own.", metavar="N")
    ] = None,
    growth: Annotated[
        Path | None,
        typer.Option(help="What `chiasm organism grow` wrote, to include its growth series.", metavar="FOLDER"),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="embeddings: a vision model (folder or hub id) whose embedding is the target.", metavar="MODEL"
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="preferences: train anew with so many steps, in place of what the organism comes with.", metavar="N"
        ),
    ] = None,
    word: Annotated[
        str | None, typer.Option(help="concepts: the word whose predicting states are read.", metavar="WORD")
    ] = None,
) -> None:
    """Run an experiment that comes with chiasm and write its tables and figures."""
    from importlib import import_module
    from inspect import signature

    for name, value in (("--limit", limit), ("--questions", questions), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    if experiment not in EXPERIMENTS:
        known = "; ".join(f"{name} ({asks})" for name, asks in EXPERIMENTS.items())
        raise UserError(f"experiment {experiment!r} is not known: use {known}")
    module = import_module(f".{experiment}", __package__)
    asked = {"questions": questions, "teacher": teacher, "word": word, "steps": steps}
    more = {name: value for name, value in asked.items() if value is not None}
    takes = signature(module.run).parameters
    for name in more:
        if name not in takes:
            raise UserError(f"--{name} is not an option of experiment {experiment!r}: leave it out")
    samples = None if data == "scenes" else o.open_samples(data, limit=limit, seed=seed, read=read)
    path = module.run(
        model, samples, device=device, dtype=dtype, limit=limit, seed=seed, root=out, batch_size=batch_size, growth=growth, **more
    )  # fmt: skip
    say(str(path))


for command in (measure, generate, evaluate, info, runs, pairs, tune, dashboard):
    app.command()(command)
app.add_typer(organism, name="organism")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Exit codes: 0 done, 2 the user can put it right (one line on stderr), 130 interrupted; anything
    else is a fault of chiasm and shows its traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("chiasm").setLevel(logging.INFO)
    try:
        code = app(args=arguments, prog_name="chiasm", standalone_mode=False)
    except Exception as error:
        line = _line(error)
        if line is None:
            raise
        _fail(line)
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        told = "`chiasm measure --resume latest` (or evaluate) goes on where it was, generate with --out FILE --resume"
        print(f"chiasm: stopped; {told}", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _line(error: Exception) -> str | None:
    """What to tell the user of an error that the user can put right; None for any other."""
    import errno

    if isinstance(error, UserError):
        return str(error)
    if hasattr(error, "format_message"):  # typer's own: an unknown option, a value of the wrong type
        if not error.format_message():  # no command was given, and the help has been shown
            sys.exit(2)
        path = getattr(getattr(error, "ctx", None), "command_path", "chiasm")
        return f"{error.format_message()} ({path} --help lists the options)"
    if isinstance(error, typer.Abort):
        return "stopped"
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError) and error.filename is not None:
        return f"{str(error.filename)!r} cannot be used ({error.strerror}): choose another place"
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{str(error.filename)!r} is not there: correct the path"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk ({error.filename or 'temporary folder'}): free some space and try again"
    return None


def _fail(line: str) -> None:
    print("chiasm: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

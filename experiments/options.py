"""What every command can be told, and how a model, data and probes are made of it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from ..scenes.errors import UserError

# torch and transformers take seconds to import: everything that needs them is imported where it is used.

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="'organism' (bundled), 'organism/aligned' …, a folder, or a Hugging Face id.",
        metavar="NAME",
    ),
]
DataSpec = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="'scenes' (rendered, the default), 'scenes:KIND', a folder of pictures, a JSON Lines, POPE or COCO file, "
        "or a Hugging Face data set.",
        metavar="PATH",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cuda, cuda:1, mps or cpu. Default: the best there is.", metavar="NAME")
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="fp32, bf16, fp16 or auto. Default: fp32 on a CPU, else as saved.", metavar="NAME"),
]
Limit = Annotated[
    int | None, typer.Option("--limit", "-n", help="Read at most so many samples. Default: all.", metavar="N")
]
Seed = Annotated[
    int, typer.Option("--seed", help="Of everything random: rendered scenes, draws of the probes.", metavar="N")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", metavar="FOLDER")]
ProbeNames = Annotated[
    list[str] | None,
    typer.Option(
        "--probe",
        "-p",
        help="A built-in probe's name, or your own as package.module:Class or file.py:Class. May be given again. "
        "Default: every built-in probe.",
        metavar="NAME",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", help="Samples in one forward pass.", metavar="N")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first bad sample instead of skipping and listing it.")
]
Read = Annotated[
    list[str] | None,
    typer.Option(
        "--read",
        help="How to read the data, e.g. prompt='What is this?', images=photos, split=test, image_column=img, format=coco. "
        "May be given again.",
        metavar="NAME=VALUE",
    ),
]
Adapter = Annotated[str | None, typer.Option("--adapter", help="A PEFT adapter to put on the model.", metavar="FOLDER")]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        help="Go on with this run folder, or with the 'latest' that is incomplete, as it was begun.",
        metavar="RUN",
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.", metavar="NAME")
]
Decode = Annotated[
    str,
    typer.Option(
        "--decode",
        help="plain, damro, vcd, no-image, m3id, pai, random-tokens or blank; or with settings: damro-k10.",
        metavar="NAME",
    ),
]
Alpha = Annotated[
    float | None, typer.Option("--alpha", help="Strength of the contrast. Default: the method's own.", metavar="A")
]
Beta = Annotated[
    float, typer.Option("--beta", help="Cut-off of unlikely tokens in the contrast; 0: none.", metavar="B")
]
Steer = Annotated[
    list[str] | None,
    typer.Option("--steer", help="A direction to add (NAME.safetensors). May be given again.", metavar="FILE"),
]
SteerOrReady = Annotated[
    list[str] | None,
    typer.Option(
        "--steer",
        help="A direction to add: NAME.safetensors, or, of the organism, yes-to-no, white-to-black, colour-style or place-style. "
        "May be given again.",
        metavar="FILE",
    ),
]
LayerOf = Annotated[
    int | None, typer.Option("--layer", help="Block at which to steer. Default: the direction's own.", metavar="BLOCK")
]
Scale = Annotated[float, typer.Option("--scale", help="How far along the directions, in mean norms.", metavar="X")]
PositionsOf = Annotated[
    str,
    typer.Option(
        "--positions", help="Where to steer: all, image, text, last_prompt, generated, or an index.", metavar="WHERE"
    ),
]
Prune = Annotated[
    float | None, typer.Option("--prune", help="Keep this share of the visual tokens, 0 to 1.", metavar="SHARE")
]
Skip = Annotated[
    list[int] | None,
    typer.Option(
        "--skip",
        help="Visual tokens pass by the feed-forward layer of this block. May be given again.",
        metavar="BLOCK",
    ),
]
ExitAfter = Annotated[
    int | None, typer.Option("--exit", help="Take the visual tokens out after this block.", metavar="BLOCK")
]
Boost = Annotated[
    float | None, typer.Option("--boost", help="Strengthen attention to the picture (PAI: 0.2).", metavar="A")
]

RUNS = Path("runs")

PROBES = {
    "implicit_alignment": "chiasm.probes.implicit_alignment:ImplicitAlignment",
    "attention_shift": "chiasm.probes.attention_shift:AttentionShift",
    "outlier_overlap": "chiasm.probes.outlier_overlap:OutlierOverlap",
    "embeddings": "chiasm.probes.embedding_probe:EmbeddingProbe",
    "vocabulary_view": "chiasm.probes.vocabulary_view:VocabularyView",
    "weight_overlap": "chiasm.probes.weight_overlap:WeightOverlap",
}
"""The built-in probes by name; `lenses.LENSES` has what goes round them (and is slow to import)."""


def say(text: str, *, error: bool = False) -> None:
    """Prints, on the main process only."""
    from ..probes.processes import is_main

    if is_main():
        print(text, file=sys.stderr if error else sys.stdout, flush=True)


def open_model(
    model: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    adapter: str | None = None,
    revision: str | None = None,
):
    """The VLM; under `accelerate launch`, on the device of this process. Raises UserError."""
    from transformers.utils import logging

    from ..models.open import open_vlm

    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # of loading weights: in a log file every step would be a line
    if device is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        device = str(PartialState().device)
    return open_vlm(model, device=device, dtype=dtype, adapter=adapter, revision=revision)


def open_samples(
    data: str, *, limit: int | None = None, seed: int = 0, read: Sequence[str] | None = None, frame: str = "none"
):
    """The reader for `--data` with its `--read` options; rendered scenes take their number and seed from the others, and
    the text around the picture (none, short, long) from `frame`.

    Raises UserError.
    """
    from ..scenes.readers import open_data

    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} must be at least 1, or left out to read everything")
    options = read_options(read)
    if data == "scenes" or data.startswith("scenes:"):
        options = {"seed": seed, "frame": frame, **({} if limit is None else {"n": limit}), **options}
    return open_data(data, **options)


def read_options(read: Sequence[str] | None) -> dict[str, Any]:
    """The `--read NAME=VALUE` options by name; true, false and whole numbers as such. Raises UserError."""
    options: dict[str, Any] = {}
    for pair in read or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--read {pair!r} must be NAME=VALUE, e.g. --read prompt='What is this?'")
        options[name] = {"true": True, "false": False}.get(value.lower(), int(value) if value.isdecimal() else value)
    return options


def begun_config(context: typer.Context, resume: str | None, experiment: str, root: Path):
    """(what the command was told, the run to go on with or None): as that run was begun, save what was given anew.

    resume: a run folder, or "latest" for the latest of the experiment that is incomplete. Raises UserError.
    """
    from .run import list_runs, load_run

    config = {name: value for name, value in context.params.items() if name not in ("resume", "out")}
    if resume is None:
        return config, None
    if resume == "latest":
        runs = [run for run in list_runs(root) if run.experiment == experiment and run.state == "incomplete"]
        if not runs:
            what = {"measure": "measurement", "evaluate": "evaluation"}.get(experiment, experiment)
            raise UserError(f"there is no incomplete {what} in {str(root)!r}: `chiasm runs` lists the runs there are")
        resume = max(runs, key=lambda run: run.path.name).path
    begun = load_run(resume)
    given = {name for name in config if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    before = {name: value for name, value in begun.manifest["config"].items() if name in config and name not in given}
    return config | before, begun


def load_probe(name: str):
    """The probe called `name`, or of the class at package.module:Class or file.py:Class. Raises UserError."""
    from ..probes.state import check_probes

    place, colon, qualified = PROBES.get(name, name).partition(":")
    if not colon or not place or not qualified:
        raise UserError(f"probe {name!r} is not known: use {', '.join(PROBES)}, or your own as package.module:Class")
    module = _module(name, place)
    made = getattr(module, qualified, None)
    if made is None:
        own = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        raise UserError(f"probe {name!r}: {place} has no {qualified!r}; the classes in it: {', '.join(own) or 'none'}")
    if not isinstance(made, type):
        raise UserError(
            f"probe {name!r} is a {type(made).__name__}, must be a class derived from chiasm.probes.probe.Probe"
        )
    try:
        probe = made()
    except TypeError as error:
        raise UserError(f"probe {name!r} cannot be made without arguments ({error}): give them defaults") from error
    return check_probes([probe])[0]


def _module(name: str, place: str) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place).expanduser()
        if not path.is_file():
            raise UserError(f"probe {name!r}: there is no file {place!r}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses and others look their own module up
        return _imported(name, lambda: spec.loader.exec_module(module)) or module
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed script does not look where it is called, `python -m` does
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UserError(f"probe {name!r}: there is no module {place!r} here or among what is installed")
    return _imported(name, lambda: importlib.import_module(place))


def _imported(name: str, load):
    try:
        return load()
    except Exception as error:  # whatever a user's own file raises, it is that file's
        last = error.__traceback__
        while last.tb_next is not None:
            last = last.tb_next
        where = f"{last.tb_frame.f_code.co_filename}, line {last.tb_lineno}"
        if isinstance(error, SyntaxError):
            where = f"{error.filename}, line {error.lineno}"
        raise UserError(f"probe {name!r} cannot be imported: {type(error).__name__}: {error} ({where})") from error

"""`chiasm info` and `chiasm runs`: what there is, without measuring anything."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from . import options as o
from .options import say


def info(
    model: Annotated[
        str, typer.Argument(help="'organism', a folder, a config.json, or a Hugging Face id.")
    ] = "organism",
    batch: Annotated[int, typer.Option(help="Rows in the batch whose memory is computed.", metavar="N")] = 1,
    length: Annotated[int | None, typer.Option(help="Positions in a row, pictures included.", metavar="N")] = None,
    images: Annotated[int, typer.Option(help="Pictures in a row.", metavar="N")] = 1,
    picture: Annotated[str, typer.Option(help="Their size in pixels.", metavar="WIDTHxHEIGHT")] = "640x480",
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Allow the hub's own code of this model to run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for scripts.")] = False,
) -> None:
    """Show a model's parts, tokens per picture and the memory a trace needs, without its weights."""
    from rich.console import Console

    from .info import info, parse_size, render

    facts = info(
        model,
        batch=batch,
        length=length,
        images=images,
        image_size=parse_size(picture),
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        say(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        Console().print(render(facts))


def runs(out: o.Out = o.RUNS) -> None:
    """List the runs in a folder, those that are incomplete or broken too."""
    from rich.console import Console
    from rich.table import Table

    from .manifest import list_runs

    listed = list_runs(out)
    if not listed:
        say(f"no runs in {str(out)!r}: `chiasm measure` and `chiasm report` make some", error=True)
        return
    table = Table("run", "state", "model", "n", "detail")
    for entry in listed:
        model = (entry.manifest.get("model") or {}).get("name", "")
        table.add_row(str(entry.path), entry.state, str(model), str(entry.manifest.get("n", "")), entry.detail)
    console = Console()
    if not console.is_terminal:
        console.width = 400  # a pipe has no width to fit into
    console.print(table)

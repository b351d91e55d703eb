"""`chiasm organism`: growing the bundled family anew, and checking it against its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

organism = typer.Typer(
    help="The bundled model family: grow it anew, or check it against its card.", no_args_is_help=True
)


@organism.command()
def grow(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the grown family.", metavar="FOLDER")] = Path(
        "grown"
    ),
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe as JSON. Default: the one it was grown by.", metavar="FILE")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")] = False,
) -> None:
    """Train the family from nothing: tower, language, alignment, tuning, styles."""
    from ..models.organism.grow import grow

    print(grow(out, recipe=recipe, resume=resume))


@organism.command()
def verify(
    n: Annotated[int, typer.Option("--limit", "-n", help="Unseen scenes to measure on.", metavar="N")] = 1000,
) -> None:
    """Measure the shipped family again and compare it with its card."""
    from ..models.organism.verify import verify

    print(verify(n))

"""`chiasm organism`: growing the bundled family anew, and checking it against its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import say

organism = typer.Typer(
    help="The bundled model family: grow it anew, or check it against its card.", no_args_is_help=True
)


@organism.command()
def grow(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the grown family.", metavar="FOLDER")] = Path(
        "grown"
    ),
    recipe: Annotated[
        Path | None,
        typer.Option(help="A JSON file with the dials to change. Default: as it was grown.", metavar="FILE"),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with what is in the folder, or refuse to.")] = True,
    card_scenes: Annotated[
        int, typer.Option(help="Scenes each trait in the card is measured on; 0: no card.", metavar="N")
    ] = 1000,
) -> None:
    """Train the family from nothing: tower, language, alignment, tuning, styles, learners. An hour and a half on two cores."""
    from ..alignment.members import grow_members
    from ..models.organism.grow import grow

    more = {"progress": _progress, "card_scenes": card_scenes, "members": grow_members}
    say(str(grow(out, recipe=recipe, resume=resume, **more)))


@organism.command()
def verify(
    folder: Annotated[
        Path | None, typer.Option(help="A grown family's files. Default: the bundled family.", metavar="FOLDER")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Unseen scenes to measure on.", metavar="N")] = 1000,
) -> None:
    """Measure a family again and compare it with its card. Exit code 1 when a trait is not as it must be."""
    from ..models.organism.verify import verify

    table = verify(limit, **({} if folder is None else {"folder": folder}), progress=_progress)
    say(table.to_string(index=False))
    if any(met is False for met in table["met"].astype(object).tolist()):
        raise typer.Exit(1)


def _progress(line: str) -> None:
    say(line, error=True)

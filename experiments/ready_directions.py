"""Directions of the organism that need no file: made anew from its own states, each for a thing it can be steered to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..scenes.errors import UserError
from ..steering import Direction
from ..steering.directions import direction_between
from .steering_tasks import TASKS, Style, Turn

MADE_OF = 16
"""Samples on each side, of training scenes."""


@dataclass(frozen=True)
class Ready:
    """task: what it is to do, and at which positions. layer: where it does best (tried on training scenes, at `SCALE`)."""

    task: Turn | Style
    layer: int


READY = {
    "yes-to-no": Ready(TASKS[0], 2),
    "white-to-black": Ready(TASKS[1], 3),
    "colour-style": Ready(TASKS[2], 1),
    "place-style": Ready(TASKS[3], 1),
}

SCALE = 0.7
"""Mean norms of the states at which success and what is retained are in balance, for all of them."""


def ready_directions(vlm, name: str) -> list[Direction]:
    """The direction of that name, made at every decoder block; the same numbers each time. Raises UserError for another name and
    for a model that does not say what it would be made of."""
    if name not in READY:
        raise UserError(f"direction {name!r} is not known: use {', '.join(READY)}, or the file of a direction")
    if not vlm.name.startswith("organism"):
        raise UserError(
            f"direction {name!r} is of the bundled organism, this is {vlm.name}: give the file of a direction"
        )
    task = READY[name].task
    sites = [f"blocks.{layer}.resid_post" for layer in range(vlm.anatomy.n_layers)]
    base, target = task.states(vlm, sites, MADE_OF, 0)["word"]
    if not len(base[sites[0]]) or not len(target[sites[0]]):
        raise UserError(f"direction {name!r}: {vlm.name} never says what it is made of: take another one")
    return [direction_between(vlm, base[s], target[s], layer, name=name) for layer, s in enumerate(sites)]


def ready_or_file(vlm, given: str | Path, layer: int | None = None) -> Direction | str | Path:
    """What `change_of` takes: the direction of a name in READY, made at `layer` (default: its own); all else is a file."""
    if str(given) not in READY or Path(given).exists():
        return given
    layer = READY[str(given)].layer if layer is None else layer
    return ready_directions(vlm, str(given))[vlm.anatomy.check_layer(layer)]

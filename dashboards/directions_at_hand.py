"""Where the page Steer takes a direction from: the organism's own, those saved in the runs folder, or two prompts.

Each kind says how the direction is made, and how Python and the command line come to the same one. Nothing that is typed names a file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from PIL import Image

from ..experiments.ready_directions import READY, SCALE, ready_directions
from ..steering import Direction, direction_from_pairs


class Code(NamedTuple):
    """An expression that gives the direction, of `vlm` and `picture`, and where from what is imported for it."""

    made: str
    module: str
    name: str


class Source(Protocol):
    """label: for a list. layer, scale, positions: where one begins. units: as `change_of` has them. option: of `chiasm generate
    --steer`, None where no file holds it."""

    label: str
    layer: int
    scale: float
    positions: str
    units: str
    option: str | None

    def direction(self, vlm, layer: int, picture: Image.Image) -> Direction: ...

    def code(self, layer: int) -> Code: ...


@dataclass(frozen=True)
class Ready:
    """One that comes with the organism."""

    name: str

    @property
    def label(self) -> str:
        return READY[self.name].task.name

    @property
    def layer(self) -> int:
        return READY[self.name].layer

    @property
    def positions(self) -> str:
        return str(READY[self.name].task.positions)

    @property
    def option(self) -> str:
        return self.name

    scale: ClassVar[float] = SCALE
    units: ClassVar[str] = "norm"

    def direction(self, vlm, layer: int, picture: Image.Image) -> Direction:
        return ready_directions(vlm, self.name)[layer]

    def code(self, layer: int) -> Code:
        made = f'ready_directions(vlm, "{self.name}")[{layer}]'
        return Code(made, "chiasm.experiments.ready_directions", "ready_directions")


@dataclass(frozen=True)
class Saved:
    """One that a run kept, or that was saved in `directions/` of the runs folder. where: the run, or ""."""

    path: Path
    where: str
    layer: int
    scale: float = 1.0
    positions: str = "all"
    units: str = "norm"

    @property
    def label(self) -> str:
        return f"{self.path.stem} ({self.where or 'saved'})"

    @property
    def option(self) -> str:
        return str(self.path)

    def direction(self, vlm, layer: int, picture: Image.Image) -> Direction:
        return Direction.load(self.path)

    def code(self, layer: int) -> Code:
        return Code(f"Direction.load({quoted(str(self.path))})", "chiasm.steering", "Direction")


@dataclass(frozen=True)
class TwoPrompts:
    """From the state of one prompt to that of another, of the picture that is shown."""

    base: str
    target: str
    layer: int = 1
    scale: float = 1.0
    positions: str = "last_prompt"

    label: ClassVar[str] = "from two prompts"
    units: ClassVar[str] = "norm"
    option: ClassVar[None] = None

    def direction(self, vlm, layer: int, picture: Image.Image) -> Direction:
        return direction_from_pairs(vlm, picture, [(self.base, self.target)], layer)

    def code(self, layer: int) -> Code:
        made = f"direction_from_pairs(vlm, picture, [({quoted(self.base)}, {quoted(self.target)})], layer={layer})"
        return Code(made, "chiasm.steering", "direction_from_pairs")


def saved_directions(root: str | Path, weights: str) -> tuple[list[Saved], int]:
    """Those under the runs folder that were made on the model whose fingerprint is `weights`, newest runs first; and how many
    others there are. Cards alone are read; what is damaged, and links to other places, are left out."""
    root, found, others = Path(root), [], 0
    for card_path in [*sorted(root.glob("*/*/arrays/*.json"), reverse=True), *sorted(root.glob("directions/*.json"))]:
        path = card_path.with_suffix(".safetensors")
        inside = all(one.resolve().is_relative_to(root.resolve()) for one in (card_path, path))
        card = _card(card_path) if inside and path.is_file() else {}
        if card.get("kind") != "direction" or not isinstance(card.get("layer"), int):
            continue
        model = card.get("model")
        if not isinstance(model, dict) or model.get("weights") != weights:
            others += 1
            continue
        run = card_path.parent.parent
        where = "" if run == root else f"{run.parent.name}/{run.name}"
        scale = card["scale"] if isinstance(card.get("scale"), int | float) else 1.0
        units = "norm" if "state_norm" in card else "raw"
        found.append(Saved(path, where, card["layer"], float(scale), str(card.get("positions", "all")), units))
    return found, others


def quoted(text: str) -> str:
    """The text as a literal of Python, in double quotes whatever it holds."""
    return json.dumps(text, ensure_ascii=False)


def _card(path: Path) -> dict:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}

"""What a user asks to be changed at inference, put together: a decoding by name and interventions around it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from ..scenes.errors import UserError
from ..steering import AddDirection, Direction, PruneVisual, SkipFFN, VisualAttentionBoost, VisualExit, steer
from .decoding import DECODINGS, Contrasted, check_interventions, open_decoding


@dataclass(frozen=True)
class Change:
    """name: what is changed, in words. A contrast, or None for plain decoding; interventions act on the full-picture rows."""

    name: str
    contrast: Contrasted | None
    interventions: tuple

    def check(self, vlm) -> None:
        """Raises UserError for a model on which this cannot be done."""
        if self.contrast is not None:
            self.contrast.check(vlm)
        check_interventions(vlm, self.interventions)

    def generate(self, vlm, inputs, **options) -> list[str]:
        """Answers under the change; options as in `VLM.generate`."""
        if self.contrast is not None:
            return self.contrast.decoder(vlm).generate(inputs, **options)
        with steer(vlm, *self.interventions) if self.interventions else nullcontext():
            return vlm.generate(inputs, **options)


def change_of(
    *, decode: str = "plain", alpha: float | None = None, beta: float | None = 0.1, steer: Sequence[str | Path | Direction] = (),
    layer: int | None = None, scale: float = 1.0, positions: str = "all", prune: float | None = None, skip: Sequence[int] = (),
    exit_after: int | None = None, boost: float | None = None,
) -> Change | None:  # fmt: skip
    """The change that these options of the command line ask for; None where they ask for none. Raises UserError.

    decode: plain, or a contrast as `open_decoding` takes it (damro, damro-a2-k10). steer: files of directions, or directions, all added at `scale` times the mean norm of the states where
    the direction knows it, else as they are. layer: at which block, default each direction's own. prune: share of visual tokens
    kept. skip: blocks whose feed-forward layer visual tokens pass by. exit_after: the block behind which they are taken out.
    boost: PAI's strength.
    """
    inside, words = [], []
    if not steer and (scale != 1 or positions != "all" or layer is not None):
        raise UserError("--scale, --layer and --positions are of a direction: add --steer NAME.safetensors")
    for given in steer:
        made = isinstance(given, Direction)
        direction = given if made else Direction.load(given)
        called = direction.card.get("name", "direction") if made else Path(given).stem
        units = "norm" if "state_norm" in direction.card else "raw"
        inside.append(AddDirection(direction, layer=layer, scale=scale, positions=_place(positions), units=units))
        words.append(f"{called} × {scale:g}" + ("" if positions == "all" else f" at {positions}"))
    for value, make, said in (
        (boost, VisualAttentionBoost, "attention to the picture + {:g}"),
        (prune, PruneVisual, "{:g} of the visual tokens"),
        (list(skip) or None, SkipFFN, "visual tokens pass by the feed-forward layer of blocks {}"),
        (exit_after, VisualExit, "no visual tokens after block {:g}"),
    ):
        if value is not None:
            inside.append(make(value))
            words.append(said.format(", ".join(map(str, value)) if isinstance(value, list) else value))
    if decode == "plain":
        if alpha is not None:
            raise UserError(f"--alpha {alpha:g} is the strength of a contrast: add --decode {', '.join(DECODINGS)}")
        if beta != 0.1:
            raise UserError(f"--beta {beta:g} is the cut-off of a contrast: add --decode {', '.join(DECODINGS)}")
        return Change(", ".join(words), None, tuple(inside)) if inside else None
    contrast = open_decoding(decode)
    if contrast is None:
        raise UserError(f"decoding {decode!r} is not known: use plain, {', '.join(DECODINGS)}")
    if contrast.sampled:
        raise UserError(f"decoding {decode!r}: tokens are drawn with --sample, leave out -sampled")
    given = ({"alpha": alpha} if alpha is not None else {}) | ({"beta": beta or None} if beta != 0.1 else {})
    contrast = replace(contrast, interventions=tuple(inside), **given)
    return Change(", ".join([contrast.name, *words]), contrast, tuple(inside))


def _place(positions: str) -> str | int:
    return int(positions) if positions.lstrip("-").isdecimal() else positions

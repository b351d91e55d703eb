"""What a window looks at: one generation with its picture, and what is said about the chosen word of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from . import overlays
from .charts import escaped
from .pictures import Chosen, shown

if TYPE_CHECKING:  # takes seconds to import
    from ..probes.patch_words import PatchWords
    from .live import Seen

ENDINGS = {"longest": "cut off at the longest answer asked for", "stopped": "stopped"}


@dataclass
class Looked:
    """number: of the generation in this window, part of the keys of its controls. seen: None until something was. lens: words of the patches by layer, once they
    were asked for."""

    number: int
    chosen: Chosen
    seen: Seen | None = None
    lens: list[PatchWords] | None = None
    _grounds: dict[int, tuple] = field(default_factory=dict)

    def ground(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """The picture as pixels, its longer side `side`, and the boxes of the candidates on it."""
        if side not in self._grounds:
            image = shown(self.chosen.image, self.chosen.sample, side)
            self._grounds[side] = overlays.fitted(image, self.seen.boxes, self.chosen.image.size)
        return self._grounds[side]

    @cached_property
    def on_picture(self) -> np.ndarray:
        """(V, L, H) how much of each word's attention is on the picture; summed once, as all of it may be a gigabyte."""
        return self.seen.attention.sum(-1)

    def telling(self) -> int:
        """The word that looked at the picture most, over all layers; one of more than three letters where there is one."""
        seen, shares = self.seen, self.on_picture.mean((1, 2))
        long = np.array([len(word.strip()) > 3 for word in seen.words[: len(shares)]])
        return int(np.where(long | ~long.any(), shares, -1).argmax())

    def busiest(self) -> int:
        """The place in `seen.layers` of the layer that looks at the picture most, over all words."""
        return int(self.on_picture.mean((0, 2)).argmax())

    def named(self, word: int) -> str:
        return self.seen.words[word].strip() or "end"

    def facts(self) -> str:
        """How the answer came about."""
        seen = self.seen
        n, read = len(seen.words), len(seen.attention)
        facts = [f"{n} tokens in {seen.seconds:.1f} s"]
        facts += [ENDINGS[seen.ending]] if seen.ending in ENDINGS else []
        facts += [f"attention is kept of the first {read}"] if read < n else []
        return "; ".join(facts) + "."

    def told(self, word: int, layer: int, head: int | None) -> str:
        """How much of a word's attention is on the picture and on the encoder's outliers; layer: place in `seen.layers`."""
        seen = self.seen
        values, outliers = seen.map(word, head)[layer], seen.encoder.outliers[seen.encoder.at]
        share, percent = float(np.nansum(values)), overlays.percent
        text = (
            f"“{self.named(word)}”, layer {seen.layers[layer]}, {heads(head)}: {percent(share)} of its attention is on the picture, "
            f"at most {percent(float(np.nanmax(values)))} on one patch."
        )
        if share > 0:
            on = percent(float(np.nansum(values[outliers])) / share)
            text += f" Of this, {on} is on the {int(outliers.sum())} of {len(outliers)} patches that are outliers of the encoder."
        if placeless := int((~np.isfinite(seen.boxes).all(1)).sum()):
            text += f" {placeless} of {len(outliers)} visual tokens of this model have no place on the picture and are not drawn."
        return text

    def whole(self, boxes) -> np.ndarray:
        """Boxes (n, 4) of visual tokens, of which only those of the view of the whole picture are left a place, where the model is
        shown tiles of it too: words of both would lie on each other."""
        boxes, tiles = np.array(boxes, float), self.seen.tiles
        at = np.arange(len(boxes))
        at = at if len(at) == len(tiles) else at[np.isfinite(boxes).all(1)]  # newlines between rows are no candidates
        if len(at) == len(tiles) and (tiles == 0).any():
            boxes[at[tiles != 0]] = np.nan
        return boxes


def heads(head: int | None) -> str:
    return "mean of all heads" if head is None else f"head {head}"


def labels(words: Sequence[str]) -> list[str]:
    """A label for each word, none like another: Streamlit tells choices apart by their labels alone, so a word that comes again is
    followed by signs that have no width."""
    found, names = Counter(), []
    for i, word in enumerate(words):
        name = escaped(word.strip()) or ("end" if i == len(words) - 1 else "·")
        names.append(name + "\u200b" * found[name])
        found[name] += 1
    return names

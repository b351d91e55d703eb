"""What each position of the expanded sequence is: padding, system text, the picture, the answer, and where on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar
from zlib import crc32

import torch
from torch import Tensor

FEW = 8
"""Queries that the sites `attn_few` and `cross_few` read at most of an answer."""

POST = ("after", "answer", "generated")
"""The labels of text behind the first picture."""


@dataclass(frozen=True)
class Spans:
    """Labels of every position of a batch, after each image placeholder has become its visual tokens.

    labels: (B, T) index into `names`, -1 is padding. "bos" is the first real position whatever its token (the attention
    sink), unless a visual token stands there. "image" holds the visual tokens and the markers that wrap or divide them;
    text between two pictures counts as "after". image_index: (B, T) which picture of the row, -1 elsewhere.
    visual: (B, T) true where a feature of the picture stands (newline features included, markers not).
    row, col: (B, T) place of a visual token in its grid, -1 where it has none (newline, query tokens, markers).
    boxes: (B, T, 4) pixels x0, y0, x1, y1 of the picture as it was given, NaN where there is no place.
    """

    names: ClassVar[tuple[str, ...]] = ("bos", "system", "before", "image", "after", "answer", "generated")

    labels: Tensor
    image_index: Tensor
    visual: Tensor
    row: Tensor
    col: Tensor
    boxes: Tensor

    def mask(self, *names: str) -> Tensor:
        """(B, T) bool: positions with any of these labels."""
        wanted = torch.zeros_like(self.labels, dtype=torch.bool)
        for name in names:
            if name not in self.names:
                raise ValueError(f"no span is called {name!r}; the spans are {', '.join(self.names)}")
            wanted |= self.labels == self.names.index(name)
        return wanted

    @property
    def real(self) -> Tensor:
        """(B, T) bool: not padding."""
        return self.labels >= 0

    @property
    def n_images(self) -> int:
        """The largest number of pictures in one row."""
        return int(self.image_index.max()) + 1 if self.image_index.numel() else 0

    def predicting(self, most: int | None = None) -> Tensor:
        """(B, Q) positions that predict a token of the answer, in order, -1 where a row has fewer: the first is the last
        position of the prompt. Of a row without an answer its last position alone. most: so many of each row at most,
        evenly spaced, the first one always."""
        rows = []
        for labels in self.labels:
            answer = torch.nonzero(labels == self.names.index("answer")).flatten()
            row = answer - 1 if len(answer) else torch.nonzero(labels >= 0).flatten()[-1:]
            rows.append(row[evenly(len(row), most).to(row.device)])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    def indicators(self) -> Tensor:
        """(B, T, S) float: one column a span; padding is in none."""
        return torch.nn.functional.one_hot(self.labels + 1, len(self.names) + 1)[..., 1:].float()

    def image_indicators(self) -> Tensor:
        """(B, T, 2K) float: for picture k its positions, then the text that follows it up to the next picture."""
        later = torch.cummax(self.image_index, dim=1).values  # the last picture begun at or before a position
        columns = []
        for k in range(self.n_images):
            columns += [self.image_index == k, (later == k) & (self.image_index < 0) & self.real]
        return torch.stack(columns, -1).float() if columns else torch.zeros(*self.labels.shape, 0, device=later.device)

    def shuffled_indicators(self) -> Tensor:
        """(B, T, 2) float: text before the picture and text behind it, once these labels are dealt anew among the text of
        each row (`permuted_segments`). Their sum stays as it was. The draw hangs on the row's own labels alone, so that
        neither the batch nor padding changes it."""
        text = tuple(self.names.index(name) for name in ("before", *POST))
        seeds = [crc32(bytes(label for label in row if label >= 0)) for row in self.labels.tolist()]
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        spans = replace(self, labels=permuted_segments(self.labels, text, draws))
        return torch.stack([spans.mask("before"), spans.mask(*POST)], -1).float()

    def extended(self, n: int) -> Spans:
        """These spans with n generated positions appended to every row."""

        def grow(value: Tensor, fill) -> Tensor:
            return torch.cat([value, value.new_full((value.shape[0], n, *value.shape[2:]), fill)], 1)

        generated = self.names.index("generated")
        return Spans(
            grow(self.labels, generated),
            grow(self.image_index, -1),
            grow(self.visual, False),
            grow(self.row, -1),
            grow(self.col, -1),
            grow(self.boxes, float("nan")),
        )

    def without_images(self) -> tuple[Spans, list[Tensor]]:
        """These spans with the pictures' positions deleted, right-padded; and, per row, the positions kept."""
        image = self.names.index("image")
        kept = [torch.nonzero((row >= 0) & (row != image)).flatten() for row in self.labels]
        width = max(len(positions) for positions in kept)
        fills = {"labels": -1, "image_index": -1, "visual": False, "row": -1, "col": -1, "boxes": float("nan")}
        new = {
            name: torch.stack([_padded(getattr(self, name)[i][at], width, fill) for i, at in enumerate(kept)])
            for name, fill in fills.items()
        }
        return Spans(**new), kept

    def to(self, device) -> Spans:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def evenly(n: int, most: int | None) -> Tensor:
    """At most `most` of the numbers 0 to n - 1, evenly spaced, the first one always; all of them for None."""
    return torch.arange(n) if most is None or n <= most else torch.linspace(0, n - 1, most).round().long()


def permuted_segments(
    segments: Tensor, among: tuple[int, ...], generator: torch.Generator | Sequence[torch.Generator] | None = None
) -> Tensor:
    """Segments (B, T) with the labels in `among` dealt anew to the positions that have one of them, within each row.

    generator: one for all rows, or one for each. The masses of such segments are the null for "which text stands before and which after"; counts stay as they are.
    """
    new = segments.clone()
    wanted = torch.isin(segments, torch.tensor(among, device=segments.device))
    own = generator if isinstance(generator, Sequence) else [generator] * len(new)
    for row, at, draw in zip(new, wanted, own, strict=True):
        positions = torch.nonzero(at).flatten()
        order = torch.randperm(len(positions), generator=draw).to(positions.device)
        row[positions] = row[positions[order]]
    return new


def _padded(values: Tensor, width: int, fill) -> Tensor:
    return torch.cat([values, values.new_full((width - len(values), *values.shape[1:]), fill)])


def find_spans(
    ids: Tensor,
    attention_mask: Tensor,
    image_token_id: int,
    *,
    markers: frozenset[int] = frozenset(),
    continued: frozenset[int] = frozenset(),
    closing: frozenset[int] = frozenset(),
    in_sequence: bool = True,
) -> Spans:
    """Spans that can be told from the ids alone: bos, before, image, after. ids, attention_mask: (B, T).

    `markers` are ids that belong to a picture when they touch it (vision start and end, row breaks). After one that is
    `continued` (the name of a tile) everything is picture until the tile behind a `closing` one (the name of the
    thumbnail). Where pictures are not in the sequence (`in_sequence=False`) the one placeholder token is "image" but carries no visual token.
    """
    index = {name: i for i, name in enumerate(Spans.names)}
    visual = (ids == image_token_id) & attention_mask.bool()
    rows = zip(ids.tolist(), attention_mask.bool().tolist(), visual.tolist(), strict=True)
    labels, images = [], []
    for row, real, features in rows:
        positions = [t for t, keep in enumerate(real) if keep]
        marked = _with_markers(row, positions, features, markers)
        label, image = [-1] * len(row), [-1] * len(row)
        seen_image, count, inside, open_tiles = False, -1, False, False
        for t in positions:
            open_tiles = (open_tiles or row[t] in continued) and row[t] not in closing
            if t in marked or open_tiles:
                count += not inside
                inside = seen_image = True
                label[t], image[t] = index["image"], count
            else:
                inside = False
                label[t] = index["after" if seen_image else "before"]
        if positions and positions[0] not in marked:
            label[positions[0]] = index["bos"]
        labels.append(label)
        images.append(image)
    none = torch.full_like(ids, -1)
    boxes = torch.full((*ids.shape, 4), float("nan"), device=ids.device)
    labels, images = (torch.tensor(values, device=ids.device).view(ids.shape) for values in (labels, images))
    return Spans(labels, images, visual & in_sequence, none, none.clone(), boxes)


def _with_markers(row: list[int], positions: list[int], visual: list[bool], markers: frozenset[int]) -> set[int]:
    """Positions of visual tokens and of the runs of markers that touch them."""
    marked = {t for t in positions if visual[t]}
    for step in (positions, positions[::-1]):
        before = False
        for t in step:
            before = t in marked or (before and row[t] in markers)
            if before:
                marked.add(t)
    return marked

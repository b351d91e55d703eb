"""Where each visual token lies on the picture: through tiles, newlines, merged patches and the processor's cropping."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..scenes.errors import UserError
from .anatomy import Anatomy, first
from .spans import Spans


@dataclass(frozen=True)
class Grid:
    """Places of the visual tokens of one picture, in order. rows, cols: (n,), -1 for none; boxes: (n, 4) in fractions of
    the part of the picture that the model is shown, NaN for none. `cropped`: whether the processor may have cut the
    picture's borders (whole pictures are stretched instead)."""

    rows: Tensor
    cols: Tensor
    boxes: Tensor
    cropped: bool = False

    def __len__(self) -> int:
        return len(self.rows)


def lattice(height: int, width: int, *, cropped: bool = False) -> Grid:
    """height x width tokens, row by row, that cover the picture evenly."""
    rows = torch.arange(height).repeat_interleave(width)
    cols = torch.arange(width).repeat(height)
    edges = torch.stack([cols / width, rows / height, (cols + 1) / width, (rows + 1) / height], -1)
    return Grid(rows, cols, edges.float(), cropped)


def nowhere(n: int) -> Grid:
    """n tokens without a place: newlines, query tokens, tiles whose arrangement is not known."""
    none = torch.full((n,), -1)
    return Grid(none, none.clone(), torch.full((n, 4), float("nan")))


def _joined(*grids: Grid) -> Grid:
    return Grid(*(torch.cat([getattr(g, name) for g in grids]) for name in ("rows", "cols", "boxes")))


def _square(anatomy: Anatomy, tensors: dict, counts: list[int], **_) -> list[Grid]:
    pictures = len(tensors["pixel_values"])
    n, left = divmod(sum(counts), pictures)
    if left:
        _mismatch(sum(counts), f"{pictures} pictures of equal size")
    side = math.isqrt(n)
    patch = first(anatomy.vision_config.patch_size) * anatomy.merge
    height, width = (size // patch for size in tensors["pixel_values"].shape[-2:])
    return [
        lattice(height, width, cropped=True) if height * width == n else lattice(side, n // side, cropped=True)
    ] * pictures


def _anyres(anatomy: Anatomy, tensors: dict, **_) -> list[Grid]:
    """Base picture, then the tiled one row by row with a newline feature at each row's end.

    The model's own packing is run on marked features (0, newline = 1), so that unpadding and resizing are its own.
    """
    inner, config = anatomy.model.model, anatomy.model.config
    vision = anatomy.vision_config
    base = lattice(*[vision.image_size // vision.patch_size] * 2)
    sizes = tensors["image_sizes"].cpu()
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    several = [n > 1 for n in tensors.get("batch_num_images", torch.ones(len(sizes))).tolist() for _ in range(int(n))]
    marked = []
    for size, several_here in zip(
        sizes, several, strict=True
    ):  # OneVision does not tile the pictures of a row that has several
        tiles = 1 if several_here else image_size_to_num_patches(size, config.image_grid_pinpoints, vision.image_size)
        marked.append(torch.zeros(tiles, len(base), 1))
    options = {"image_newline": torch.ones(1)}
    if hasattr(config, "vision_aspect_ratio"):
        options["vision_aspect_ratio"] = config.vision_aspect_ratio
    else:
        options["vision_feature_select_strategy"] = config.vision_feature_select_strategy
    packed, _ = inner.pack_image_features(marked, sizes, **options)
    grids = []
    for features in packed:
        newline = features[len(base) :, 0] > 0.5
        if not newline.any():
            grids.append(base)
            continue
        height = int(newline.sum())
        width = int(torch.nonzero(newline)[0]) if len(newline) > 1 else 0
        fine = [lattice(height, width)] if width else []
        grid = nowhere(len(newline))
        if fine:
            grid.rows[~newline], grid.cols[~newline], grid.boxes[~newline] = fine[0].rows, fine[0].cols, fine[0].boxes
        grids.append(_joined(base, grid))
    return grids


def _merged(anatomy: Anatomy, tensors: dict, **_) -> list[Grid]:
    merge = anatomy.merge
    return [
        _joined(*[lattice(int(h) // merge, int(w) // merge)] * int(t)) for t, h, w in tensors["image_grid_thw"].tolist()
    ]


def _rows(anatomy: Anatomy, tensors: dict, **_) -> list[Grid]:
    cell = first(anatomy.vision_config.patch_size) * anatomy.merge
    return [lattice(int(h) // cell, int(w) // cell) for h, w in tensors["image_sizes"].tolist()]


def _tiles(anatomy: Anatomy, tensors: dict, counts: list[int], tiles_of=None, **_) -> list[Grid]:
    """Tiles of equal size, each a square of tokens, a thumbnail of the whole last; `tiles_of(k)` gives (rows, cols)."""
    side = tensors["pixel_values"].shape[-1] // first(anatomy.vision_config.patch_size) // anatomy.merge
    grids = []
    for k, count in enumerate(counts):
        tiles, left = divmod(count, side * side)
        if left:
            _mismatch(count, f"tiles of {side * side} tokens")
        shape = (1, 1) if tiles == 1 else tiles_of(k, tiles) if tiles_of else None
        if shape is None or shape[0] * shape[1] not in (tiles, tiles - 1):
            grids.append(nowhere(count))
            continue
        parts = [_tile(r, c, side, shape) for r in range(shape[0]) for c in range(shape[1])]
        thumbnail = [lattice(side, side)] * (tiles - len(parts))
        grids.append(_joined(*parts, *thumbnail))
    return grids


def _tile(r: int, c: int, side: int, shape: tuple[int, int]) -> Grid:
    inside = lattice(side, side)
    corner = torch.tensor([c, r, c, r])
    scale = torch.tensor([shape[1], shape[0], shape[1], shape[0]])
    return Grid(inside.rows + r * side, inside.cols + c * side, (inside.boxes + corner) / scale)


def _none(counts: list[int], **_) -> list[Grid]:
    return [nowhere(count) for count in counts]


_GRIDS = {"square": _square, "anyres": _anyres, "merged": _merged, "rows": _rows, "tiles": _tiles, "none": _none}


def place(spans: Spans, anatomy: Anatomy, tensors: dict, *, processor=None, sizes=None, tiles_of=None) -> Spans:
    """Spans with rows, columns and pixel boxes of the visual tokens filled in, and pictures told apart.

    sizes: (width, height) of every picture as it was given, in order; without them boxes are in pixels of the picture
    that the model is shown. Raises UserError when tokens in the prompt and features of the pictures do not agree.
    """
    at = torch.nonzero(spans.visual.cpu())  # (n, 2), row by row
    if len(at) == 0 or not any(key.startswith("pixel") for key in tensors):
        return spans
    owner = spans.image_index.cpu()[at[:, 0], at[:, 1]]
    counts = torch.unique_consecutive(torch.stack([at[:, 0], owner], -1), dim=0, return_counts=True)[1]
    grids = _GRIDS[anatomy.layout.grid](anatomy=anatomy, tensors=tensors, counts=counts.tolist(), tiles_of=tiles_of)
    if sum(map(len, grids)) != len(at):
        _mismatch(
            len(at), f"pictures that make {' + '.join(str(len(g)) for g in grids)} = {sum(map(len, grids))} features"
        )
    image_index, row, col, boxes = (t.cpu().clone() for t in (spans.image_index, spans.row, spans.col, spans.boxes))
    start, in_row = 0, {}
    for k, grid in enumerate(grids):
        b, t = at[start : start + len(grid)].T
        start += len(grid)
        number = in_row.get(int(b[0]), 0)
        in_row[int(b[0])] = number + 1
        image_index[b, t] = number
        row[b, t], col[b, t] = grid.rows, grid.cols
        boxes[b, t] = _to_pixels(grid, processor, sizes[k] if sizes else None, tensors)
    markers = (image_index >= 0) & ~spans.visual.cpu()
    if markers.any():  # wrapping markers follow the visual token beside them
        image_index[markers] = _nearest(image_index, spans.visual.cpu())[markers]
    device = spans.labels.device
    placed = replace(spans, image_index=image_index, row=row, col=col, boxes=boxes)
    return placed if device.type == "cpu" else placed.to(device)


def _nearest(image_index: Tensor, visual: Tensor) -> Tensor:
    """For every position the picture of the last visual token before it, or of the next where none came before."""
    seen = torch.where(visual, image_index, -1)
    return torch.cummax(seen, 1).values.clamp(min=0)


def _to_pixels(grid: Grid, processor, size: tuple[int, int] | None, tensors: dict) -> Tensor:
    if size is None:
        shape = tensors["pixel_values"].shape
        height, width = shape[-2:] if len(shape) >= 4 else (1, 1)  # Qwen towers take loose patches: fractions
        window = (0.0, 0.0, float(width), float(height))
    else:
        window = shown_window(processor, *size) if grid.cropped else (0.0, 0.0, float(size[0]), float(size[1]))
    x0, y0, x1, y1 = window
    return grid.boxes * torch.tensor([x1 - x0, y1 - y0] * 2) + torch.tensor([x0, y0] * 2)


def shown_window(processor, width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a width x height picture that the image processor shows the model, in pixels of that picture.

    Resize of the shorter side and centre crop (CLIP) cuts borders; padding to a square (LLaVA's `do_pad`) reaches beyond
    them; any other resize stretches the whole picture.
    """
    images = getattr(processor, "image_processor", None)
    if getattr(images, "do_pad", False) and type(images).__name__.startswith("LlavaImageProcessor"):
        side = max(width, height)
        x0, y0 = (width - side) / 2, (height - side) / 2
        return x0, y0, x0 + side, y0 + side
    size = getattr(images, "size", None) or {}
    size = dict(size) if not isinstance(size, dict) else size
    crop = getattr(images, "crop_size", None)
    if not getattr(images, "do_center_crop", False) or not crop:
        return 0.0, 0.0, float(width), float(height)
    crop = dict(crop)
    if short := size.get("shortest_edge"):
        scale_x = scale_y = short / min(width, height)
    else:
        scale_x, scale_y = size["width"] / width, size["height"] / height
    w, h = crop["width"] / scale_x, crop["height"] / scale_y
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def tile_arrangement(processor, tokens: list[list[str]], spans: Spans, sizes: list[tuple[int, int]]):
    """A function (k, tiles) -> (rows, cols) of picture k's tiles, from the tokens that name them or the picture's size."""
    named = []
    for b, row in enumerate(tokens):
        index = spans.image_index[b].tolist()
        for k in range(max(index, default=-1) + 1):
            names = [row[t] for t, i in enumerate(index) if i == k]
            found = [(int(m[1]), int(m[2])) for n in names if (m := re.search(r"row_(\d+)_col_(\d+)", n))]
            named.append(tuple(map(max, zip(*found, strict=True))) if found else None)

    def arrangement(k: int, tiles: int) -> tuple[int, int] | None:
        if k < len(named) and named[k]:
            return named[k]
        images = getattr(processor, "image_processor", None)
        if k >= len(sizes) or not hasattr(images, "max_patches"):
            return None
        from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

        width, height = sizes[k]
        tile = (images.size["height"], images.size["width"])
        columns, rows = get_optimal_tiled_canvas((height, width), tile, images.min_patches, images.max_patches)
        return rows, columns

    return arrangement


def _mismatch(tokens: int, features: str) -> None:
    raise UserError(
        f"the prompt holds {tokens} image tokens, which does not fit {features}: "
        "let `prepare` build the prompt, or check that processor and model belong together"
    )

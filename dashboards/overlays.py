"""Pictures with what a model makes of them laid over, and the chart of what a word's attention is shared out to."""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..experiments.figures.chart import Chart, Figure, Line, Overlay, Panel, over_boxes
from ..experiments.figures.picture import faded
from ..experiments.style import PAPER, SCALE, SEGMENTS, SOFT, VERMILION

STRENGTH = 0.72
"""How much of a pixel is the colour of its value, where the value is the largest; the rest is the picture in grey."""

LEAST = 0.25
"""The same where the value is the smallest."""


def fitted(image: Image.Image, boxes, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture as pixels, and boxes in pixels of another picture of it that is `size` (width, height), in its own."""
    scale = np.array([image.width / size[0], image.height / size[1]] * 2)
    return np.asarray(image.convert("RGB")), np.asarray(boxes, float) * scale


def paint(overlay: Overlay) -> Image.Image:
    """The picture in light grey under the values' colours, with outlines; without values as it is."""
    image = Image.fromarray(overlay.image)
    if overlay.values is not None:
        image = _coloured(faded(overlay.image), overlay.map(), *overlay.range)
    pen = ImageDraw.Draw(image)
    for index in overlay.outlined:
        if np.isfinite(overlay.boxes[index]).all():
            x0, y0, x1, y1 = (round(float(edge)) for edge in overlay.boxes[index])
            pen.rectangle(
                [x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)], outline=VERMILION, width=max(2, image.width // 160)
            )
    return image


def _coloured(grey: np.ndarray, values: np.ndarray, low: float, high: float) -> Image.Image:
    """Pixels (H, W, 3) under the colours of values (H, W) from low to high; as they are where there is no value."""
    share = np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)[..., None]
    cover = np.where(np.isfinite(values)[..., None], LEAST + (STRENGTH - LEAST) * share, 0)
    pale, full = (np.array(_rgb(colour), float) for colour in SCALE)
    mixed = grey * (1 - cover) + (pale + (full - pale) * share) * cover
    return Image.fromarray(mixed.round().astype(np.uint8))


def worded(image: np.ndarray, boxes, words: Sequence[str], used: Container[str] = ()) -> Image.Image:
    """The picture in light grey with a word in each box, those in `used` (lower case) in blue; "" for none."""
    drawn = Image.fromarray(faded(faded(image)))
    pen = ImageDraw.Draw(drawn)
    for box, word in zip(np.asarray(boxes, float), words, strict=True):
        if word and np.isfinite(box).all():
            _write(pen, box.tolist(), word, strong=word.lower() in used)
    return drawn


def side_for_words(boxes, size: tuple[int, int], least: int = 448, most: int = 1600) -> int:
    """Pixels of the picture's longer side at which a word can be read in each box; boxes in pixels of a picture of `size`."""
    widths = np.asarray(boxes, float)[:, 2] - np.asarray(boxes, float)[:, 0]
    widths = widths[np.isfinite(widths)]
    return least if not len(widths) else int(np.clip(60 * max(size) / np.median(widths), least, most))


def _write(pen: ImageDraw.ImageDraw, box: Sequence[float], word: str, strong: bool) -> None:
    """A word in the middle of a box, as large as it fits, on a light edge so that it can be read on anything."""
    x0, y0, x1, y1 = box
    room, size = (x1 - x0) * 0.9, max(6, int((y1 - y0) * 0.3))
    length = pen.textlength(word, font=_font(size, strong))
    if length > room:
        size = max(6, int(size * room / length))
    while len(word) > 2 and pen.textlength(word, font=_font(size, strong)) > room:
        word = word.rstrip("…")[:-1] + "…"
    place, colour = ((x0 + x1) / 2, (y0 + y1) / 2), SCALE[1] if strong else SOFT
    pen.text(
        place,
        word,
        fill=colour,
        font=_font(size, strong),
        anchor="mm",
        stroke_width=max(1, size // 12),
        stroke_fill=PAPER,
    )


@lru_cache(maxsize=64)
def _font(size: int, strong: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows more alphabets than Pillow's own."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' if strong else ''}.ttf", size)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def multiples(image: np.ndarray, boxes, maps, *, common: bool = False, gap: int = 8) -> list[Image.Image]:
    """One small picture for each row of maps (L, N), in their own colours each or on one scale for all; with a transparent
    edge right and below, `gap` pixels wide, as they are shown side by side."""
    finite = np.nan_to_num(np.asarray(maps, float))
    tops = np.full(len(finite), finite.max()) if common else finite.max(1)
    made, grey = [], faded(image)
    for values, top in zip(over_boxes(image.shape[:2], boxes, maps), tops, strict=True):
        framed = Image.new("RGBA", (image.shape[1] + gap, image.shape[0] + gap))
        framed.paste(_coloured(grey, values, 0.0, float(top) or 1.0))
        made.append(framed)
    return made


def percent(share: float) -> str:
    """A share as people read it: never 0 where there is something."""
    if 0 < share < 0.001:
        return "less than 0.1%"
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}"


def strip(layers: Sequence[int], shares, names: Sequence[str], word: str, heads: str) -> Figure:
    """What a word's attention is shared out to, over layers: shares (M, S) by span; spans that get less than 0.1% everywhere
    are left out. heads: "mean of all heads" or which one."""
    shares = np.asarray(shares, float)
    marks = [
        Line(list(layers), shares[:, i].tolist(), name, SEGMENTS[name])
        for i, name in enumerate(names)
        if shares[:, i].max(initial=0) >= 0.001
    ]
    return Figure(
        "attention_by_segment",
        f"“{word}”: attention by segment",
        "Each curve is the share of the attention that goes to one part of the sequence, from the query that chose this word; "
        "at every layer they add up to 1. Bos is the first token, where attention goes that has nothing to do.",
        f"Shares of attention by part of the sequence over {len(layers)} layers, for the word “{word}”.",
        Chart(
            [Panel("", "layer", f"share of attention, {heads}", marks, y_limits=(0.0, 1.02))],
            "n = 1 word of one answer: a single value, so no interval.",
            columns=1,
        ),
    )

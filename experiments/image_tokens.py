"""How many positions a picture takes, told from the configuration alone (and the image processor, where there is one)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from ..models.anatomy import Anatomy, first

PHOTO = (480, 640)
"""Height and width assumed for a picture, where the count depends on it: the common size of COCO photographs."""


@dataclass(frozen=True)
class ImageTokens:
    """What one picture costs.

    tokens: positions in the language model's sequence (features only, without begin/end markers); tiles: how often the
    vision tower runs on it; patches: positions in the tower per tile; why: the rule, with what was assumed.
    """

    tokens: int
    tiles: int
    patches: int
    why: str


def image_tokens(anatomy: Anatomy, size: tuple[int, int] = PHOTO, image_processor: Any = None) -> ImageTokens | None:
    """Tokens of one picture of `size` (height, width) pixels, or None for a family outside the table.

    `image_processor` is the model's own where it is at hand; without it the defaults of its class, fitted to the tower's
    size, are assumed, and `why` says so.
    """
    return _RULES[anatomy.layout.grid](anatomy, size, image_processor)


def _side(anatomy: Anatomy) -> int:
    """Patches along one side of a tower with a fixed input size."""
    return first(anatomy.vision_config.image_size) // first(anatomy.vision_config.patch_size)


def _square(anatomy: Anatomy, size: tuple[int, int], processor: Any) -> ImageTokens:
    if anatomy.vision_config.model_type == "pixtral":  # a Llava with Pixtral's tower takes any size
        return _rows(anatomy, size, processor)
    side = _side(anatomy)
    tokens = (side // anatomy.merge) ** 2
    if getattr(anatomy.model.config, "vision_feature_select_strategy", "default") == "full":
        tokens += anatomy.layout.prefix
    return ImageTokens(
        tokens, 1, side**2 + anatomy.layout.prefix, "fixed: every picture is resized to the tower's size"
    )


def _anyres(anatomy: Anatomy, size: tuple[int, int], processor: Any) -> ImageTokens:
    """Base picture, then tiles without their padding, one newline feature a row (LLaVA-NeXT, section on AnyRes)."""
    config, side = anatomy.model.config, _side(anatomy)
    pinpoints = [list(pair) for pair in config.image_grid_pinpoints]
    rows, cols = get_anyres_image_grid_shape(list(size), pinpoints, first(anatomy.vision_config.image_size))
    _, height, width = unpad_image(torch.empty(1, rows * side, cols * side, device="meta"), list(size)).shape
    if limit := str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_"):
        ratio = math.sqrt(height * width / (int(limit) * side**2)) if limit.isdigit() else 0.0
        if ratio > 1.1:  # OneVision shrinks the tiles' features to at most `limit` tiles' worth
            height, width = int(height // ratio), int(width // ratio)
    tokens = side**2 + height * (width + 1)
    patches = side**2 + anatomy.layout.prefix
    return ImageTokens(tokens, rows * cols + 1, patches, f"depends on the size: {rows}x{cols} tiles and the whole")


def _merged(anatomy: Anatomy, size: tuple[int, int], processor: Any) -> ImageTokens:
    vision = anatomy.vision_config
    processor, assumed = _processor_or_default(anatomy, processor)
    height, width = smart_resize(
        *size,
        factor=vision.patch_size * anatomy.merge,
        min_pixels=processor.size["shortest_edge"],
        max_pixels=processor.size["longest_edge"],
    )
    patches = (height // vision.patch_size) * (width // vision.patch_size)
    return ImageTokens(
        patches // anatomy.merge**2, 1, patches, f"depends on the size: resized to {width}x{height} pixels{assumed}"
    )


def _tiles(anatomy: Anatomy, size: tuple[int, int], processor: Any) -> ImageTokens:
    processor, assumed = _processor_or_default(anatomy, processor)
    found = processor.get_number_of_image_patches(*size, {})
    tiles = max(1, found[0] if isinstance(found, tuple) else found)
    side = _side(anatomy)
    each = (side // anatomy.merge) ** 2
    return ImageTokens(
        tiles * each, tiles, side**2 + anatomy.layout.prefix, f"depends on the size: {tiles} tiles of {each}{assumed}"
    )


def _rows(anatomy: Anatomy, size: tuple[int, int], processor: Any) -> ImageTokens:
    """Pixtral: shrunk so that the longer side fits, then cut into whole patches; row breaks are markers, not features."""
    vision, merge = anatomy.vision_config, anatomy.merge
    longest = processor.size["longest_edge"] if processor is not None else first(vision.image_size)
    ratio = max(1.0, max(size) / longest)
    rows, cols = (math.ceil(int(edge / ratio) / (vision.patch_size * merge)) for edge in size)
    return ImageTokens(rows * cols, 1, rows * cols * merge**2, f"depends on the size: {rows}x{cols} features")


def _queries(anatomy: Anatomy, size: tuple[int, int], processor: Any) -> ImageTokens | None:
    config = anatomy.model.config
    queries = getattr(config, "num_query_tokens", None) or getattr(
        getattr(config, "perceiver_config", None), "resampler_n_latents", None
    )
    if queries is None:  # found by structural search: no rule is known
        return None
    patches = _side(anatomy) ** 2 + anatomy.layout.prefix
    return ImageTokens(queries, 1, patches, "fixed: learned queries read the picture (not split into tiles)")


def _cross(anatomy: Anatomy, size: tuple[int, int], processor: Any) -> ImageTokens:
    vision = anatomy.vision_config
    patches = _side(anatomy) ** 2 + anatomy.layout.prefix
    return ImageTokens(1, vision.max_num_tiles, patches, "one placeholder: the picture enters by cross-attention")


_RULES = {
    "square": _square,
    "anyres": _anyres,
    "merged": _merged,
    "tiles": _tiles,
    "rows": _rows,
    "none": _queries,
    "cross": _cross,
}

_DEFAULT_PROCESSORS = {"merged": "Qwen2VLImageProcessorPil"} | {
    "internvl": "GotOcr2ImageProcessorPil",
    "aya_vision": "GotOcr2ImageProcessorPil",
    "idefics3": "Idefics3ImageProcessorPil",
    "smolvlm": "SmolVLMImageProcessorPil",
}


def _processor_or_default(anatomy: Anatomy, processor: Any) -> tuple[Any, str]:
    """The image processor given, or its class's default with the tower's tile size; and what to say about it."""
    if processor is not None:
        return processor, ""
    name = _DEFAULT_PROCESSORS.get(anatomy.family) or _DEFAULT_PROCESSORS[anatomy.layout.grid]
    tile = first(anatomy.vision_config.image_size) if anatomy.layout.grid == "tiles" else None
    options: dict[str, Any] = {}
    if anatomy.family in ("idefics3", "smolvlm"):  # the published ones split a picture four tiles long
        options = {"size": {"longest_edge": 4 * tile}, "max_image_size": {"longest_edge": tile}}
    elif tile:
        options = {"size": {"height": tile, "width": tile}, "crop_to_patches": True}
    return getattr(transformers, name)(**options), " (its processor's defaults assumed)"

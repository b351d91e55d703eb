"""How much a vision encoder makes of each patch, for any encoder and projector, on the tokens the language model sees.

Kinds of score, best first: "cls" (attention of the CLS token), "pool" (attention of the pooling head's probe), "received"
(attention a patch gets from the other patches), "norm" (length of the patch's feature). Which exist depends on the tower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..scenes.errors import UserError
from .anatomy import Anatomy, first
from .geometry import lattice
from .vision_attention import combine_heads, patch_columns, pooling_attention, sees_all, tower_attention

KINDS = ("cls", "pool", "received", "norm")


def feature_layer(anatomy: Anatomy) -> int:
    """The layer of the tower whose output the projector reads (`vision_feature_layer`; of several the last)."""
    chosen = getattr(anatomy.model.config, "vision_feature_layer", None)
    chosen = chosen[-1] if isinstance(chosen, list | tuple) and chosen else chosen
    if not isinstance(chosen, int):
        return anatomy.n_vision_layers - 1
    # it counts hidden states, of which the first is the tower's input
    return max(chosen - 1, 0) if chosen >= 0 else anatomy.n_vision_layers + chosen


def score_kinds(anatomy: Anatomy) -> tuple[str, ...]:
    """The kinds of score that can be read from this model, best first."""
    layers = range(anatomy.n_vision_layers)
    readable = [i for i in layers if tower_attention(anatomy, i) is not None]
    have = {
        "cls": bool(anatomy.layout.prefix and readable),
        "pool": pooling_attention(anatomy) is not None,
        "received": any(sees_all(anatomy, i) for i in readable),
        "norm": bool(anatomy.n_vision_layers),
    }
    return tuple(kind for kind in KINDS if have[kind])


def check_kind(anatomy: Anatomy, kind: str) -> str:
    """The kind of score, or UserError with those that this model has."""
    have = score_kinds(anatomy)
    if kind not in have:
        if kind not in KINDS:
            raise UserError(f"score {kind!r} is not known: use one of {', '.join(have)}")
        lacks = {"cls": "CLS token", "pool": "pooling head", "received": "attention that can be read"}.get(kind, kind)
        raise UserError(
            f"score {kind!r}: the vision tower of this {anatomy.family} has no {lacks}; use {' or '.join(have)}"
        )
    return kind


def score_layer(anatomy: Anatomy, kind: str, layer: int | None = None) -> int:
    """The layer a score is read at: the one given, or the feature layer, for "received" the last full one up to there."""
    if layer is not None:
        layer = anatomy.check_layer(layer, vision=True)
        if kind == "received" and not sees_all(anatomy, layer):
            raise UserError(
                f"score 'received': vision layer {layer} of this {anatomy.family} attends within windows only"
            )
        return layer
    layer = feature_layer(anatomy)
    if kind != "received":
        return layer
    full = [i for i in range(anatomy.n_vision_layers) if sees_all(anatomy, i)]
    return max((i for i in full if i <= layer), default=full[0])


def score_site(anatomy: Anatomy, kind: str, layer: int | None = None) -> str:
    """The site that has to be traced for a kind of score. Raises UserError for one that this model does not have."""
    if check_kind(anatomy, kind) == "pool":
        return "vision.pool_attention"
    what = {"cls": "cls_logprobs", "received": "received", "norm": "resid_post"}[kind]
    return f"vision.blocks.{score_layer(anatomy, kind, layer)}.{what}"


@dataclass(frozen=True)
class PictureScores:
    """The candidates of one picture: what the language model can look at that has a score.

    row, picture: where it is in the batch. scores: (N,), the sum over the patches a token was merged from. tiles: (N,)
    number of the tile each lies in, 0 the whole picture. positions: (N,) in the sequence, or None where patches are read
    through query tokens or by cross-attention; then `reads` says how. patches: number of patches a candidate stands for.
    boxes: (N, 4) in the picture's pixels, NaN where not known.
    """

    row: int
    picture: int
    scores: Tensor
    tiles: Tensor
    positions: Tensor | None
    reads: Tensor | slice | None
    patches: int
    boxes: Tensor

    def attention(self, rows: Tensor) -> Tensor:
        """What queries (..., T or keys) of this row of the batch give to the candidates: (..., N)."""
        if self.positions is None:
            return rows[..., self.reads]
        seen = rows[..., self.positions]
        return seen if self.reads is None else seen @ self.reads.to(seen)


def picture_scores(trace, inputs, anatomy: Anatomy, kind: str, *, mode="headmean", layer=None) -> list[PictureScores]:
    """The scores of one kind for every picture of a batch, in order; [] for a batch without pictures.

    trace holds `score_site(anatomy, kind, layer)` and, in families with query tokens, "resampler.attention". mode: of "cls",
    see `combine_heads`.
    """
    if not any(name.startswith("pixel") for name in inputs.tensors):
        return []
    found = trace[score_site(anatomy, kind, layer)].float()
    if kind == "cls":
        patches = combine_heads(found, anatomy.layout.prefix, mode)
    elif kind == "received":
        patches = found.mean(1)
    elif kind == "norm":
        patches = _by_tile(anatomy, found.norm(dim=-1))
    else:
        patches = found
    return _READ[anatomy.layout.grid](anatomy, patches, trace, inputs)


def _by_tile(anatomy: Anatomy, values: Tensor) -> Tensor:
    """(tiles, N) of values (rows, length) or (length,) at all positions of the tower; the prefix dropped."""
    values = values.reshape(-1, values.shape[-1])
    return values[:, patch_columns(anatomy, values.shape[-1]).to(values.device)].flatten(0, 1)


def merged(values: Tensor, height: int, width: int, by: int) -> Tensor:
    """(..., height * width) patches, row by row -> (..., height * width / by^2) sums over by x by of them."""
    blocks = values.unflatten(-1, (height // by, by, width // by, by))
    return blocks.sum((-3, -1)).flatten(-2)


def _in_order(anatomy: Anatomy, inputs, scores: Tensor, tiles: Tensor) -> list[PictureScores]:
    """One entry a picture, from the scores (n,) of all features in the order in which they enter the sequence; features
    without a score (newlines) are NaN and no candidates."""
    spans = inputs.spans
    at = torch.nonzero(spans.visual)
    owner = torch.stack([at[:, 0], spans.image_index[at[:, 0], at[:, 1]]], -1)
    if len(scores) != len(at):
        raise UserError(f"{len(scores)} patch scores do not fit the {len(at)} visual tokens of this {anatomy.family}")
    pictures, counts = torch.unique_consecutive(owner, dim=0, return_counts=True)
    made, start = [], 0
    for (row, picture), count in zip(pictures.tolist(), counts.tolist(), strict=True):
        part, places = scores[start : start + count], at[start : start + count, 1]
        of, start = tiles[start : start + count], start + count
        have = torch.isfinite(part)
        places = places[have.to(places.device)]
        boxes = spans.boxes[row, places]
        made.append(PictureScores(row, picture, part[have], of[have], places, None, anatomy.merge**2, boxes))
    return made


def _tiled(anatomy: Anatomy, patches: Tensor, trace, inputs) -> list[PictureScores]:
    """One square of patches a tile, tiles in order; the last of several shows the whole picture."""
    height, width = (n // first(anatomy.vision_config.patch_size) for n in inputs.tensors["pixel_values"].shape[-2:])
    if height * width != patches.shape[-1]:
        height = width = math.isqrt(patches.shape[-1])
    scores = merged(patches, height, width, anatomy.merge)
    made = _in_order(anatomy, inputs, scores.flatten(), torch.zeros(scores.numel(), device=scores.device))
    if anatomy.layout.grid == "square":
        return made
    each = scores.shape[-1]
    return [replace(p, tiles=_thumbnail_first(len(p.scores) // each, each).to(scores.device)) for p in made]


def _thumbnail_first(n_tiles: int, each: int) -> Tensor:
    """Tile numbers when the whole picture comes last: 1, 2, ..., 0; of one tile 0."""
    numbers = torch.arange(1, n_tiles + 1) % n_tiles
    return numbers.repeat_interleave(each)


def _anyres(anatomy: Anatomy, patches: Tensor, trace, inputs) -> list[PictureScores]:
    """The model's own packing, run on scores and tile numbers in the place of features; newlines become NaN."""
    inner, config, tensors = anatomy.model.model, anatomy.model.config, inputs.tensors
    sizes = tensors["image_sizes"].cpu()
    tiles = _tiles_of(anatomy, tensors, sizes)
    features, start = [], 0
    for n in tiles:
        numbers = torch.arange(n).repeat_interleave(patches.shape[-1]).view(n, -1)
        features.append(torch.stack([patches[start : start + n].cpu(), numbers], -1))
        start += n
    options = {"image_newline": torch.full((2,), torch.nan)}
    if hasattr(config, "vision_aspect_ratio"):
        options["vision_aspect_ratio"] = config.vision_aspect_ratio
    else:
        options["vision_feature_select_strategy"] = config.vision_feature_select_strategy
    packed = torch.cat(list(inner.pack_image_features(features, sizes, **options)[0])).to(patches.device)
    return _in_order(anatomy, inputs, packed[:, 0], packed[:, 1].nan_to_num(0).round())


def _tiles_of(anatomy: Anatomy, tensors: dict, sizes: Tensor) -> list[int]:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    points, side = anatomy.model.config.image_grid_pinpoints, anatomy.vision_config.image_size
    in_row = tensors.get("batch_num_images", torch.ones(len(sizes))).tolist()
    several = [n > 1 for n in in_row for _ in range(int(n))]  # OneVision does not tile the pictures of such a row
    return [
        1 if one else int(image_size_to_num_patches(size, points, side))
        for size, one in zip(sizes, several, strict=True)
    ]


def _blocked(anatomy: Anatomy, patches: Tensor, trace, inputs) -> list[PictureScores]:
    """Qwen's towers: the patches of a token follow each other; where windows reorder the tokens, the order is undone."""
    scores = patches.flatten().view(-1, anatomy.merge**2).sum(-1)
    vision = anatomy.vision_config
    if hasattr(vision, "fullatt_block_indexes"):
        from transformers.vision_utils import get_vision_window_index

        grid = inputs.tensors["image_grid_thw"]
        order, _ = get_vision_window_index(grid, vision.spatial_merge_size, vision.window_size, vision.patch_size)
        scores = scores[order.argsort().to(scores.device)]
    return _in_order(anatomy, inputs, scores, torch.zeros(len(scores), device=scores.device))


def _strung(anatomy: Anatomy, patches: Tensor, trace, inputs) -> list[PictureScores]:
    """Pixtral: pictures of any size, one behind the other."""
    patch, by = first(anatomy.vision_config.patch_size), anatomy.merge
    shapes = [(int(h) // patch, int(w) // patch) for h, w in inputs.tensors["image_sizes"].tolist()]
    parts = patches.flatten().split([h * w for h, w in shapes])
    scores = torch.cat([merged(part, *shape, by) for part, shape in zip(parts, shapes, strict=True)])
    return _in_order(anatomy, inputs, scores, torch.zeros(len(scores), device=scores.device))


def _resampled(anatomy: Anatomy, patches: Tensor, trace, inputs) -> list[PictureScores]:
    """Query tokens: the candidates are the patches, which the language model reads through the resampler's attention."""
    if "resampler.attention" not in trace:
        raise UserError(f"patch scores of this {anatomy.family} need the site 'resampler.attention' in the trace")
    spans, reads = inputs.spans, trace["resampler.attention"]
    at = torch.nonzero(spans.visual)
    made = []
    for k, places in enumerate(at.view(len(patches), -1, 2)):
        row, positions = int(places[0, 0]), places[:, 1]
        picture = int(spans.image_index[row, positions[0]])
        n = patches.shape[-1]
        boxes = _whole_picture(anatomy, inputs, n)
        zeros = torch.zeros(n, device=patches.device)
        made.append(PictureScores(row, picture, patches[k], zeros, positions, reads[k], 1, boxes))
    return made


def _crossed(anatomy: Anatomy, patches: Tensor, trace, inputs) -> list[PictureScores]:
    """Mllama: the candidates are the keys of the cross-attention layers, without each tile's CLS and without empty tiles."""
    real = inputs.tensors["aspect_ratio_mask"].bool()  # (B, pictures, tiles)
    n, before, max_tiles = patches.shape[-1], anatomy.layout.prefix, real.shape[-1]
    each = patches.view(*real.shape, n)
    made = []
    for row, picture in torch.nonzero(real.any(-1)).tolist():
        tiles = torch.nonzero(real[row, picture]).flatten()
        start = (picture * max_tiles + tiles) * (n + before) + before
        keys = (start[:, None] + torch.arange(n, device=start.device)).flatten()
        boxes = _whole_picture(anatomy, inputs, n) if len(tiles) == 1 else torch.full((len(keys), 4), torch.nan)
        scores = each[row, picture, tiles.to(each.device)].flatten()
        of = tiles.repeat_interleave(n).to(each.device)
        made.append(PictureScores(row, picture, scores, of, None, keys, 1, boxes))
    return made


def _whole_picture(anatomy: Anatomy, inputs, n: int) -> Tensor:
    """Boxes of n patches, row by row, in pixels of what the model is shown."""
    height, width = inputs.tensors["pixel_values"].shape[-2:]
    patch = first(anatomy.vision_config.patch_size)
    return lattice(height // patch, width // patch).boxes[:n] * torch.tensor([width, height, width, height])


_READ = {
    "square": _tiled, "tiles": _tiled, "anyres": _anyres, "merged": _blocked, "rows": _strung, "none": _resampled,
    "cross": _crossed,
}  # fmt: skip

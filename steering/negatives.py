"""The negative branches of contrast decoding: what the other rows of the batch are shown in the place of the picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol
from zlib import crc32

import torch
from torch import Tensor

from ..models.patch_scores import PictureScores, check_kind, picture_scores, score_kinds, score_site
from ..models.vision_attention import resampler_attentions
from ..probes.outliers import MODES, check_rule, choose_k, select_outliers
from ..scenes.errors import UserError
from .branches import Branch
from .kept_tokens import ORDERS, Chosen, kept_positions, text_positions
from .noise import noised, pictures, seeded, signal_share
from .prefill import Prefill, resampler


class Negative(Protocol):
    """What the contrast is with. `sites`: to be read while the prompt is read with its picture; UserError for a model that
    this negative cannot be made of. `branch`: the negative, from what was read."""

    def sites(self, vlm) -> tuple[str, ...]: ...

    def branch(self, prefill: Prefill) -> Branch: ...


@dataclass(frozen=True)
class OutlierTokens:
    """The few visual tokens that stand out in the vision encoder, and the same text. Source: Gong et al., "DAMRO" (EMNLP
    2024, arXiv 2410.04514). The vision tower runs once; only the decoder reads the shorter prompt.

    k: how many, counted in patches; where patches are merged fewer tokens stay (see `probes.outliers.choose_k`); None: by the
    rule, whose default gives DAMRO's 10 of 576 and 4 of 256. score: "headmean" or "released" (the CLS token's attention: mean
    over heads, or DAMRO's undivided heads), "pool", "received", "norm", or None, the best attention that the model has. layer: of the tower, default the one whose output is the feature. rule,
    value: how k is found: "ratio" (the default), "threshold", "mass", "fixed" (k itself). order: "released", best first,
    or "raster". positions: "packed", or "original", those of the whole prompt; default "original" where rotary positions have
    several axes. tiles: "base", the whole picture alone, as released, or "all", k of each (Mllama, without a whole picture
    among its tiles: always all). shifted: the released gather for Q-Formers, which is off by one; for comparison only.

    Per-token projectors keep the chosen tokens; query tokens (Q-Former, perceiver) read the chosen patches only and keep
    their number; cross-attention layers see the chosen patches only.
    """

    k: int | None = None
    score: str | None = None
    layer: int | None = None
    rule: str | None = None
    value: float | None = None
    order: str = "released"
    positions: str | None = None
    tiles: str = "base"
    shifted: bool = False

    def __post_init__(self):
        if self.k is not None and (self.rule not in (None, "fixed") or self.value is not None):
            raise UserError(f"k={self.k} is for rule 'fixed': give rule={self.rule!r} a value=")
        check_rule(self._rule, self.k if self.k is not None else self.value)
        for name, allowed in (
            ("order", ORDERS),
            ("positions", (None, "packed", "original")),
            ("tiles", ("base", "all")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}={getattr(self, name)!r} must be one of {', '.join(map(str, allowed))}")

    def sites(self, vlm) -> tuple[str, ...]:
        anatomy = vlm.anatomy
        if self.shifted and not hasattr(anatomy.model, "qformer"):
            raise UserError(f"shifted=True is DAMRO's gather for a Q-Former, which this {anatomy.family} has not")
        also = ("resampler.attention",) if resampler_attentions(anatomy) else ()
        return (score_site(anatomy, self._kind(anatomy), self._layer()), *also)

    def branch(self, prefill: Prefill) -> Branch:
        chosen = [self._chosen(picture, prefill) for picture in self._pictures(prefill)]
        grid = prefill.anatomy.layout.grid
        if grid == "cross":
            return prefill.changed_in_place(cross_attention_mask=_crossing(prefill, chosen))
        if resampler(prefill.anatomy) is not None:
            return prefill.changed_in_place(inputs_embeds=_resampled(prefill, chosen, 0 if self.shifted else None))
        kept = kept_positions(prefill.inputs.spans, chosen, order=self.order, grid=grid)
        return prefill.kept(kept, positions=self.positions or ("original" if prefill.positions.dim() > 2 else "packed"))

    @property
    def _rule(self) -> str:
        return self.rule or ("fixed" if self.k is not None else "ratio")

    # -- the choice ----------------------------------------------------------------------------------------------------

    def _kind(self, anatomy) -> str:
        if self.score in MODES:
            return check_kind(anatomy, "cls")
        kinds = score_kinds(anatomy)
        if not kinds or (self.score is None and kinds == ("norm",)):
            other = 'score="norm" for the length of features, or ' if kinds else ""
            raise UserError(
                f"no attention of this {anatomy.family}'s tower can be read: use {other}NoImage or NoisedImage"
            )
        return check_kind(anatomy, self.score or kinds[0])

    def _layer(self) -> int | None:
        return self.layer

    def _pictures(self, prefill: Prefill) -> list[PictureScores]:
        anatomy = prefill.anatomy
        mode = self.score if self.score in MODES else "headmean"
        return picture_scores(
            prefill.trace, prefill.inputs, anatomy, self._kind(anatomy), mode=mode, layer=self._layer()
        )

    def _chosen(self, picture: PictureScores, prefill: Prefill) -> Chosen:
        base = self.tiles == "base" and prefill.anatomy.layout.grid != "cross"
        tiles = [0] if base else sorted(set(picture.tiles.tolist()))
        places = [torch.nonzero(picture.tiles == tile).flatten() for tile in tiles]
        value = self.k if self.k is not None else self.value
        most = max(map(len, places)) * picture.patches
        if self.k is not None and self.k > most:
            raise UserError(f"k={self.k} outliers are more than the {most} patches of a picture: give k={most} or less")
        best = []
        for at in places:
            scores = picture.scores[at]
            k = choose_k(scores, rule=self._rule, value=value, patches=picture.patches)
            best.append(at[select_outliers(scores, k=k)])
        return Chosen(picture, torch.cat(best))


@dataclass(frozen=True)
class RandomTokens(OutlierTokens):
    """As many visual tokens as `OutlierTokens` keeps, drawn at random: the control for the claim that outliers matter.

    seed: with the prompt's tokens (and the sample's id where there is one) it gives the draw, whatever the batch.
    """

    seed: int = 0

    def _kind(self, anatomy) -> str:
        return check_kind(anatomy, "norm")  # any score: only the candidates are wanted

    def _layer(self) -> None:
        return None

    def _pictures(self, prefill: Prefill) -> list[PictureScores]:
        return [replace(one, scores=self._draw(one, prefill.inputs)) for one in super()._pictures(prefill)]

    def _draw(self, picture: PictureScores, inputs) -> Tensor:
        row = picture.row
        ids = inputs.tensors["input_ids"][row][inputs.spans.labels[row] >= 0].tolist()
        name = inputs.samples[row].id if inputs.samples else ""
        generator = torch.Generator().manual_seed(crc32(f"{self.seed} {name} {picture.picture} {ids}".encode()))
        return torch.rand(len(picture.scores), generator=generator).to(picture.scores.device)


@dataclass(frozen=True)
class NoImage:
    """The text without the picture: the negative of M3ID and PAI, and the natural control for DAMRO."""

    def sites(self, vlm) -> tuple[str, ...]:
        return ()

    def branch(self, prefill: Prefill) -> Branch:
        return prefill.kept(text_positions(prefill.inputs.spans), positions="packed")


@dataclass(frozen=True)
class NoisedImage:
    """The picture under noise. Source: Leng et al., "VCD" (CVPR 2024, arXiv 2311.16922). The vision tower runs twice.

    step: of 0..999 (see `noise.signal_share`). seed: with the picture's pixels it gives the noise, whatever the batch.
    """

    step: int = 500
    seed: int = 0

    def __post_init__(self):
        signal_share(self.step)

    def sites(self, vlm) -> tuple[str, ...]:
        return ()

    def branch(self, prefill: Prefill) -> Branch:
        return _with_pixels(prefill, lambda pixels: noised(pixels, self.step, seeded(self.seed, pixels)))


@dataclass(frozen=True)
class Blank:
    """A picture of the mean colour: zero in normalised pixels. The vision tower runs twice."""

    def sites(self, vlm) -> tuple[str, ...]:
        return ()

    def branch(self, prefill: Prefill) -> Branch:
        # not zero itself: Idefics takes a picture of zeros for padding
        return _with_pixels(prefill, lambda pixels: torch.full_like(pixels, torch.finfo(pixels.dtype).tiny))


def _with_pixels(prefill: Prefill, change) -> Branch:
    tensors = dict(prefill.inputs.tensors)
    tensors["pixel_values"] = tensors["pixel_values"].clone()
    for view in pictures(prefill.anatomy, tensors):
        view.copy_(change(view))
    return prefill.other_pictures(tensors)


def _resampled(prefill: Prefill, chosen: list[Chosen], offset: int | None) -> Tensor:
    """The decoder's inputs with query tokens that read the chosen patches only, from features that exist already.

    offset: of the patches behind what stands in front of them (default: the CLS token, as it should be).
    """
    anatomy, module, call = prefill.anatomy, resampler(prefill.anatomy), dict(prefill.seen.resampler)
    q_former = hasattr(anatomy.model, "qformer")
    features, name = ("encoder_hidden_states", "encoder_attention_mask") if q_former else ("context", "attention_mask")
    offset = anatomy.layout.prefix if offset is None else offset
    allowed = torch.zeros(call[features].shape[:2], dtype=torch.bool, device=call[features].device)
    for row, one in zip(allowed, chosen, strict=True):
        row[one.best.to(row.device) + offset] = True
    given = call.get(name)
    call[name] = (allowed & given.bool()).to(given.dtype) if isinstance(given, Tensor) else allowed.long()
    out = module(**call)
    if q_former:
        out = anatomy.projector(out[0][:, : call["query_embeds"].shape[1]].to(call[features].dtype))
    visual = prefill.inputs.spans.visual
    embeds = prefill.embeds.clone()
    embeds[visual] = out.flatten(0, 1).to(embeds)
    return embeds


def _crossing(prefill: Prefill, chosen: list[Chosen]) -> Tensor:
    """Mllama's mask of its cross-attention layers, with the chosen patches of each row alone left visible."""
    mask = prefill.seen.decoder["cross_attention_mask"]
    hidden = torch.zeros(len(mask), mask.shape[-1], dtype=torch.bool, device=mask.device)
    hidden[[one.picture.row for one in chosen]] = True
    for one in chosen:
        hidden[one.picture.row, one.picture.reads[one.best].to(mask.device)] = False
    return mask.masked_fill(hidden[:, None, None], torch.finfo(mask.dtype).min)

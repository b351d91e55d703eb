"""Pruning before the language model: of each picture only the visual tokens go on that its encoder attends to most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..models.attention import reading_attention
from ..models.geometry import place
from ..models.inputs import Inputs
from ..models.passes import told
from ..models.patch_scores import PictureScores, check_kind, picture_scores, score_kinds, score_layer, score_site
from ..models.spans import Spans
from ..models.trace import Recorder
from ..models.vision_attention import tower_attention, vision_readers
from ..scenes.errors import UserError
from .dropping import check_in_sequence, dropped_at
from .steer import Edit
from .where import Where

METHODS = ("fastervlm", "fopru_rank", "fopru_row")
POSITIONS = ("keep", "reindex")


def best_tokens(scores: Tensor, keep: float | int) -> Tensor:
    """(N,) bool: the highest of the scores (N,), ties to the lower index. keep: a share, of which round(share * N) are
    kept, or a number. Source: FasterVLM."""
    n = min(round(keep * len(scores)) if isinstance(keep, float) else keep, len(scores))
    kept = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    kept[scores.argsort(descending=True, stable=True)[:n]] = True
    return kept


def best_ranked(scores: Tensor, keep: float | int) -> Tensor:
    """As `best_tokens`, but floor(share * N) are kept. Source: FoPru, rank strategy."""
    # 0.29 * 100 is 28.999999999999996
    return best_tokens(scores, int(keep * len(scores) + 1e-9) if isinstance(keep, float) else keep)


def best_rows(scores: Tensor, rows: Tensor, keep: float | int) -> Tensor:
    """(N,) bool: the tokens of whole rows of the grid, those with the highest mean score. rows: (N,) the row of each token.
    keep: a share, of which floor(share * G) of G rows are kept, or a number of rows. Source: FoPru, row strategy."""
    names, at = rows.unique(return_inverse=True)
    at = at.to(scores.device)
    total = scores.new_zeros(len(names)).index_add(0, at, scores)
    return best_ranked(total / at.bincount(minlength=len(names)), keep)[at]


@dataclass(frozen=True)
class PruneVisual:
    """Of each crop of a picture only the best visual tokens enter the first block, in their order; newlines always do.

    keep: the share that is kept (0 to 1), or their number in each crop (of rows for "fopru_row"). method: "fastervlm" and
    "fopru_rank" keep tokens, by round and by floor, "fopru_row" whole rows of the grid. score: "cls", the encoder's CLS row,
    or "received", the attention that a patch gets; default, the first of them that the tower has. layer: of the tower,
    default the one whose features are read. Scores of merged patches add up. Padding that the model cuts off is no candidate.

    positions: "reindex" counts on over what is left, the default where positions have one axis, "keep" leaves the gaps.
    by: "slice" saves the compute, "mask" keeps the shape of every site (see `dropping`). Sources: FasterVLM (released code);
    FoPru (from its description: no code is public).
    """

    keep: float | int = 0.25
    method: str = "fastervlm"
    score: str | None = None
    layer: int | None = None
    positions: str | None = None
    by: str = "slice"

    def edits(self, vlm) -> list[Edit]:
        anatomy = vlm.anatomy
        self._check(anatomy)
        kind = self.score or next(k for k in score_kinds(anatomy) if k != "pool")
        check_kind(anatomy, kind)
        if kind == "pool":
            raise UserError("score='pool' is of the pooling head, which a pass of the language model does not run")
        scores = _Scores(anatomy, kind, self.layer)
        several = _several_axes(anatomy)
        reindex = self.positions == "reindex" or (self.positions is None and not several)
        if reindex and several:
            raise UserError(
                f"positions='reindex': this {anatomy.family} has positions on three axes, use positions='keep'"
            )
        return scores.edits() + dropped_at(vlm, 0, partial(self._gone, scores), by=self.by, reindex=reindex)

    def _check(self, anatomy) -> None:
        if self.method not in METHODS:
            raise UserError(f"method={self.method!r} must be one of {', '.join(METHODS)}")
        if self.positions not in (None, *POSITIONS):
            raise UserError(f"positions={self.positions!r} must be one of {', '.join(POSITIONS)}")
        share = isinstance(self.keep, float) and 0 <= self.keep <= 1
        number = isinstance(self.keep, int) and not isinstance(self.keep, bool) and self.keep >= 0
        if not (share or number):
            raise UserError(f"keep={self.keep!r} must be a share from 0.0 to 1.0, or a whole number of tokens")
        check_in_sequence(anatomy, "pruning")
        if anatomy.layout.grid == "none":
            raise UserError(
                f"pruning: the visual tokens of a {anatomy.family} are query tokens, each of which reads all patches, so that "
                "patch scores do not rank them"
            )

    def _gone(self, scores: _Scores, where: Where) -> Tensor | None:
        """(B, T) the visual tokens of a prompt that do not go on."""
        visual = where.mask("image")
        if not visual.any():
            return None
        spans, pictures = scores.pictures(where)
        gone = torch.zeros_like(spans.visual)
        for picture in pictures:
            at = picture.positions.to(gone.device)
            gone[picture.row, at] = ~self._kept(picture, spans.row[picture.row, at]).to(gone.device)
        gone = gone.repeat_interleave(where.batch // len(gone), 0)
        return pad(gone, (0, where.length - gone.shape[1])) & visual

    def _kept(self, picture: PictureScores, rows: Tensor) -> Tensor:
        kept = torch.zeros(len(picture.scores), dtype=torch.bool, device=picture.scores.device)
        for tile in picture.tiles.unique():
            here = picture.tiles == tile
            scores = picture.scores[here]
            if self.method == "fopru_row":
                if (rows < 0).any():
                    raise UserError(
                        "method='fopru_row': the rows of this picture's tokens are not known: use method='fopru_rank', or prepare "
                        "the batch with the model's processor"
                    )
                kept[here] = best_rows(scores, rows.to(here.device)[here], self.keep)
            else:
                kept[here] = (best_ranked if self.method == "fopru_rank" else best_tokens)(scores, self.keep)
        return kept


WHICH = ("best", "random")


@dataclass(frozen=True, kw_only=True)
class RemoveVisual(PruneVisual):
    """The test of whether the few tokens that the encoder makes most of matter: they leave, and all others of each crop go on.

    k: how many leave. which: "best", those of the highest score (score="norm": the longest), or "random", as many drawn by `seed`,
    its control. Other fields as in `PruneVisual`. k=0 changes nothing.
    """

    keep: float | int = field(default=1.0, init=False)
    method: str = field(default=METHODS[0], init=False)
    k: int = 10
    which: str = "best"
    seed: int = 0

    def _check(self, anatomy) -> None:
        super()._check(anatomy)
        if self.which not in WHICH:
            raise UserError(f"which={self.which!r} must be one of {', '.join(WHICH)}")
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 0:
            raise UserError(f"k={self.k!r} must be a whole number of tokens")

    def _kept(self, picture: PictureScores, rows: Tensor) -> Tensor:
        scores = picture.scores
        if self.which == "random":
            place = f"{self.seed} {picture.picture} {int(scores.argmax())} {int(scores.argmin())}"  # the same in every batch
            drawn = torch.Generator().manual_seed(crc32(place.encode()))
            scores = torch.rand(len(scores), generator=drawn).to(scores.device)
        kept = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        for tile in picture.tiles.unique():
            here = picture.tiles == tile
            if self.k > (n := int(here.sum())):
                raise UserError(f"k={self.k} is more than the {n} visual tokens of a crop: give k={n} or less")
            kept[here] = ~best_tokens(scores[here], self.k)
        return kept


class _Scores:
    """The encoder's scores of the pictures, read whenever the tower runs: in the pass of a prompt, or before it."""

    def __init__(self, anatomy, kind: str, layer: int | None):
        self.anatomy, self.kind, self.layer = anatomy, kind, layer
        self.site = score_site(anatomy, kind, layer)
        self.recorder = Recorder(anatomy, [self.site], None)
        self.tensors: dict[str, Tensor] | None = None
        self.reading = ExitStack()

    def edits(self) -> list[Edit]:
        block = score_layer(self.anatomy, self.kind, self.layer)
        tower = self.anatomy.model.get_submodule(self.anatomy.layout.vision)
        edits = [Edit(self.anatomy.model, before=self._arrive, during=self._closing), Edit(tower, before=self._begin)]
        if self.kind == "norm":
            return [*edits, Edit(self.anatomy.vision_blocks[block], after=self._keep)]
        # attention is read for this one call: a reader that stays would make others' edits show their weights
        return [*edits, Edit(tower_attention(self.anatomy, block), before=self._open, after=self._close)]

    @contextmanager
    def _closing(self) -> Iterator[None]:
        with self.reading:
            yield

    def _arrive(self, args: tuple, kwargs: dict, where):
        pixels = any(name.startswith("pixel") and value is not None for name, value in kwargs.items())
        self.tensors = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)} if pixels else None
        return args, kwargs

    def _begin(self, args: tuple, kwargs: dict, where):
        self.recorder.read.clear()
        return args, kwargs

    def _open(self, args: tuple, kwargs: dict, where):
        for config, reader in vision_readers(self.recorder):
            self.reading.enter_context(reading_attention(config, reader))
        return args, kwargs

    def _close(self, output: Tensor, where) -> Tensor:
        self.reading.close()
        return output

    def _keep(self, output: Tensor, where) -> Tensor:
        self.recorder.read.setdefault(self.site, []).append(output)
        return output

    def pictures(self, where: Where) -> tuple[Spans, list[PictureScores]]:
        """The spans of the prompt, with the scores of its pictures."""
        now = told()
        if self.tensors is not None:
            tensors, spans = self.tensors, where.spans
        elif now is not None and now.tensors is not None:  # generate runs the tower by itself, before rows are repeated
            tensors, spans = now.tensors, now.spans
        else:
            raise UserError(
                "pruning needs the pictures of the prompt: call vlm.generate, or the model with pixel_values"
            )
        if self.site not in self.recorder.read:
            raise UserError("the pictures of this prompt did not go through the vision tower, whose attention prunes")
        spans = place(spans, self.anatomy, tensors) if now is None else spans
        found = picture_scores(self.recorder.trace(), Inputs(tensors, spans), self.anatomy, self.kind, layer=self.layer)
        return spans, found


def _several_axes(anatomy) -> bool:
    rope = getattr(anatomy.text_config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return any("mrope_section" in kind for kind in kinds)

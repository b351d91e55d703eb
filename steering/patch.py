"""Activation patching: the values that another run had at some sites and positions, written into this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.spans import Spans
from ..models.trace import Trace, expand_sites
from ..scenes.errors import UserError
from .steer import Edit
from .where import POSITIONS, Positions, Where, at_places, check_positions

KINDS = ("resid_post", "attn_out", "mlp_out", "embed", "projector")


@dataclass(frozen=True, eq=False)
class Patch:
    """Writes a source run's values at `sites` and `positions` into this run, in the pass that reads the prompt.

    source: a `Trace` of a prompt of the same length, or tensors (1 or B, T, D) by site; one row serves all. sites: names or
    patterns, of the kinds KINDS. positions: of `Where`, a span's name (`Spans.names`), or a mask (1 or B, T); "image" is the
    visual tokens. A projector's output is written whole. rows: of the batch, those to patch; default all.
    Raises UserError for a site the source does not have, and where lengths or the spans at the positions differ.
    """

    source: Trace | Mapping[str, Tensor]
    sites: str | Sequence[str]
    positions: Positions | Tensor = "image"
    rows: Sequence[int] | None = None

    def edits(self, vlm) -> list[Edit]:
        anatomy = vlm.anatomy
        edits = []
        for site in expand_sites(anatomy, self.sites):
            kind = site.rpartition(".")[2]
            if kind not in KINDS or site.startswith("vision"):
                raise UserError(f"site {site!r} cannot be patched; those of the kinds {', '.join(KINDS)} can")
            if site not in self.source:
                raise UserError(
                    f"the source has no {site!r}: trace it there; it has {', '.join(self.source) or 'nothing'}"
                )
            values = self.source[site]
            if kind == "projector":
                edits.append(Edit(anatomy.projector, after=self._whole(values)))
                continue
            check_spans(self.positions)
            if isinstance(self.positions, str) and self.positions == "image" and not anatomy.image_in_sequence:
                raise UserError(
                    f"positions='image': the pictures of a {anatomy.family} enter by cross-attention, no position holds one: "
                    "patch the projector"
                )
            change = self._at_positions(site, values)
            if kind == "embed":
                edits.append(Edit(anatomy.blocks[0], before=_of_first_argument(change)))
                continue
            block = anatomy.blocks[i := int(site.split(".")[1])]
            module = {"resid_post": block, "attn_out": anatomy.attention(i), "mlp_out": getattr(block, "mlp", None)}[
                kind
            ]
            edits.append(Edit(module, after=change))
        return edits

    def _at_positions(self, site: str, values: Tensor):
        def change(output: Tensor, where: Where) -> Tensor:
            length = values.shape[1]
            if where.start >= length:  # decoding: there is nothing to write
                return output
            self._check(site, where, length)
            mask = self._mask(where, length).to(output.device)
            here = values[:, where.start : where.start + mask.shape[1]].to(output.device, output.dtype)
            if len(output) % len(here):
                raise UserError(f"the source has {len(here)} rows, this run {len(output)}: give one row, or as many")
            here = here.repeat_interleave(len(output) // len(here), 0)
            if where.places is not None:  # other interventions took positions out
                at = where.places.clamp(min=0).to(here.device)
                mask, here = at_places(mask, where.places), here.gather(1, at[..., None].expand(-1, -1, here.shape[2]))
            patched = torch.where(mask[..., None], here, output[:, : mask.shape[1]])
            return torch.cat([patched, output[:, mask.shape[1] :]], 1)

        return change

    def _check(self, site: str, where: Where, length: int) -> None:
        if where.spans is None:
            where.mask("image")  # says what is missing
        here = where.spans.labels.shape[1]
        if here != length:
            raise UserError(
                f"the source of {site} has {length} positions, this prompt {here}: patch between prompts of equal length"
            )
        inputs = getattr(self.source, "inputs", None)
        if inputs is not None and not isinstance(self.positions, Tensor):
            theirs = span_mask(inputs.spans, self.positions).to(where.spans.labels.device)
            ours = span_mask(where.spans, self.positions)
            rows = slice(None) if self.rows is None else list(self.rows)
            if len(ours) % len(theirs) or not torch.equal(
                theirs.repeat_interleave(len(ours) // len(theirs), 0)[rows], ours[rows]
            ):
                raise UserError(
                    f"positions={self.positions!r} are not the same in the source and in this prompt: give a mask (1, {here})"
                )

    def _mask(self, where: Where, length: int) -> Tensor:
        """(B, positions of this pass that the source has) bool."""
        if isinstance(self.positions, Tensor):
            if self.positions.dim() != 2 or self.positions.shape[1] != length or where.batch % len(self.positions):
                raise UserError(f"the mask is {tuple(self.positions.shape)}, the prompt is ({where.batch}, {length})")
            mask = self.positions.bool().repeat_interleave(where.batch // len(self.positions), 0)
            mask = mask.to(where.spans.labels.device)
        else:
            mask = span_mask(where.spans, self.positions)
        mask = mask[:, where.start : where.start + where.length]
        if where.changed is not None:
            mask = mask & where.changed.to(mask.device)[:, None]
        if self.rows is not None:
            chosen = torch.zeros(where.batch, dtype=torch.bool, device=mask.device)
            chosen[list(self.rows)] = True
            mask = mask & chosen[:, None]
        return mask

    def _whole(self, values: Tensor):
        """A projector's first axis holds patches, pictures or tiles, never rows: one source is written over each repeat of it."""

        def change(output, _where):
            now = getattr(output, "last_hidden_state", output)
            if now.shape[0] % values.shape[0] or now.shape[1:] != values.shape[1:]:
                raise UserError(
                    f"the source's projector gave {tuple(values.shape)}, this one's {tuple(now.shape)}: patch between pictures of "
                    "the same size"
                )
            repeats = now.shape[0] // values.shape[0]
            new = now.clone().unflatten(0, (repeats, -1))
            new[list(range(repeats) if self.rows is None else self.rows)] = values.to(now.device, now.dtype)
            new = new.flatten(0, 1)
            return new if now is output else type(output)(**{**output, "last_hidden_state": new})

        return change


def check_spans(positions: Positions | Tensor) -> None:
    """UserError for what is neither a position of `Where` nor a span nor a mask."""
    if isinstance(positions, Tensor) or (isinstance(positions, str) and positions in Spans.names):
        return
    if isinstance(positions, str) and positions not in POSITIONS:
        names = dict.fromkeys((*POSITIONS, *Spans.names))
        raise UserError(f"positions={positions!r} must be one of {', '.join(names)}, an index or a mask")
    check_positions(positions)


def span_mask(spans: Spans, positions: Positions) -> Tensor:
    """(B, T) bool: the positions of a prompt that are called so, as `Where` or as `Spans` has the name."""
    if positions in Spans.names and positions not in POSITIONS:
        return spans.mask(positions)
    batch, length = spans.labels.shape
    return Where(spans, 0, length, batch).mask(positions)


def _of_first_argument(change):
    def before(args: tuple, kwargs: dict, where: Where) -> tuple[tuple, dict]:
        if args:
            return (change(args[0], where), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"], where)}

    return before

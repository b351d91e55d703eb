"""Attention that lies on sinks given back to the picture (VAR), in the heads that look at the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..scenes.errors import UserError
from .attention import Rows, at_keys, attention_layers, change_rows
from .residual import Layers, finite
from .steer import Edit
from .where import Positions, Where, at_places, check_positions


@dataclass(frozen=True, eq=False)
class SinkRedistribution:
    """In heads that look at the picture, attention on sinks is multiplied by p, and what that frees goes to the visual tokens
    that are none, in proportion to their attention. Rows keep their sum; p=1 changes no bit.

    Sinks are the prompt's positions whose state, before the layer and at root mean square 1, is beyond `tau` in one of the
    sink dimensions: `dims`, or the `n_dims` that are largest at the first position of the same prompt, layer by layer. A token
    that is generated is none. A head counts for a query where at least `image_share` of its attention is on the picture and
    at most `rho` of that on sinks. positions: of the queries. layers: default, every one from the third on.
    Source: Kang et al., VAR (arXiv 2503.03321), section 4; its dims are 2533 and 1415 for Llama-2-7B, 2100 and 4743 for 13B.
    """

    p: float = 0.6
    rho: float = 0.5
    tau: float = 20.0
    image_share: float = 0.2
    dims: Sequence[int] | None = None
    n_dims: int = 2
    layers: Layers | None = None
    positions: Positions = "text"

    def edits(self, vlm) -> list[Edit]:
        for name in ("p", "rho", "image_share"):
            if not 0 <= finite(name, getattr(self, name)) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be a share, 0 to 1")
        check_positions(self.positions)
        width = vlm.anatomy.hidden_size
        if not 0 < finite("tau", self.tau) < math.sqrt(width):
            raise UserError(
                f"tau={self.tau}: no state of width {width} at root mean square 1 reaches beyond {math.sqrt(width):.1f}: give a "
                "smaller tau (see sink_dimensions for how large the first position's are)"
            )
        wrong = [d for d in self.dims or () if not 0 <= d < width]
        if wrong or (self.dims is not None and not len(self.dims)) or not 1 <= self.n_dims <= width:
            raise UserError(
                f"dims={self.dims}, n_dims={self.n_dims}: give one or more dimensions of the states, 0 to {width - 1}"
            )
        layers = attention_layers(self.layers, vlm, type(self).__name__)
        if self.p == 1:
            return []
        edits = []
        for i in layers:
            edits.append(Edit(vlm.anatomy.blocks[i], before=self._mark(i)))
            edits.append(Edit(vlm.anatomy.attention(i), attend=self._attend(i)))
        return edits

    def _mark(self, layer: int):
        """Keeps which positions of the prompt are sinks of a layer, for as long as the generation lasts."""

        def before(args: tuple, kwargs: dict, where: Where) -> tuple[tuple, dict]:
            if where.spans is None:
                where.mask("image")  # says what is missing
            states = args[0] if args else kwargs["hidden_states"]
            prompt = (where.spans.real & ~where.spans.mask("answer", "generated")).to(states.device)
            here = prompt[:, where.start : where.start + where.length]
            if not here.shape[1]:  # decoding
                return args, kwargs
            at = torch.arange(here.shape[1], device=states.device).expand_as(here) + where.start
            if where.places is not None:  # of what is left of the prompt
                at, here = where.places.clamp(min=0).to(states.device), at_places(here, where.places)
            kept = where.memory.setdefault(self, {})
            states = at_unit_rms(states[:, : here.shape[1]])
            if (layer, "dims") not in kept:
                first = states[torch.arange(len(states)), here.long().argmax(1)]
                kept[layer, "dims"] = self._dims(first)
                kept[layer] = torch.zeros_like(prompt)
            found = states.gather(2, kept[layer, "dims"][:, None].expand(-1, states.shape[1], -1)).abs().amax(-1)
            row, column = torch.nonzero((found > self.tau) & here, as_tuple=True)
            kept[layer][row, at[row, column]] = True
            return args, kwargs

        return before

    def _dims(self, first: Tensor) -> Tensor:
        """(B, n): the dimensions to look at in each row, from its first state (B, D)."""
        if self.dims is None:
            return first.abs().topk(self.n_dims, dim=-1).indices
        return torch.tensor(list(self.dims), device=first.device).expand(len(first), -1)

    def _attend(self, layer: int):
        def attend(plain, where: Where, module, query, key, value, mask, **options):
            sinks = where.memory.get(self, {}).get(layer)
            chosen = where.mask(self.positions, query.device)
            if sinks is None or not sinks.any() or not chosen.any():
                return plain(module, query, key, value, mask, **options)
            visual, sinks = (at_keys(m, where, key, layer)[:, None, None] for m in (where.spans.visual, sinks))

            def change(rows: Rows) -> tuple[Tensor, Tensor]:
                return redistributed(rows.weights, visual, sinks, p=self.p, rho=self.rho, image_share=self.image_share)

            return change_rows(change, chosen, plain, module, query, key, value, mask, **options)

        return attend


def redistributed(
    weights: Tensor, visual: Tensor, sinks: Tensor, *, p: float, rho: float, image_share: float
) -> tuple[Tensor, Tensor]:
    """weights (..., Tk), visual and sinks bool (..., Tk) -> new weights, rows with the same sum, and (...) which rows changed."""
    on_picture, on_sinks = (weights * visual).sum(-1), (weights * (visual & sinks)).sum(-1)
    others = weights * (visual & ~sinks)
    room = others.sum(-1)
    freed = (1 - p) * (weights * sinks).sum(-1)
    changed = (on_picture >= image_share) & (on_sinks <= rho * on_picture) & (room > 0) & (freed > 0)
    new = torch.where(sinks, p * weights, weights) + others * (freed / room.clamp_min(1e-30))[..., None]
    return torch.where(changed[..., None], new, weights), changed


def at_unit_rms(states: Tensor) -> Tensor:
    """States (..., D) in fp32, each divided by its root mean square."""
    states = states.float()
    return states / states.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


def sink_dimensions(vlm, inputs, *, layer: int = 2, n: int = 2) -> list[tuple[int, float]]:
    """The `n` dimensions with the largest magnitude at the first position before a layer, at root mean square 1, largest first,
    each with that magnitude, the mean over the rows of a batch. What is far above 1 is a sink's; `tau` belongs below it."""
    layer = vlm.anatomy.check_layer(layer)
    site = f"blocks.{layer - 1}.resid_post" if layer else "embed"
    states = at_unit_rms(vlm.trace(inputs, [site])[site])
    first = states[torch.arange(len(states)), inputs.spans.real.long().argmax(1).to(states.device)]
    found = first.abs().mean(0).topk(n)
    return [(int(d), float(v)) for d, v in zip(found.indices, found.values, strict=True)]

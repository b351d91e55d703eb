"""What is read of the decoder's attention: mass by span (text labels as they are, and shuffled), by picture and by tile, and
the rows of chosen queries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .attention import Call
from .spans import FEW, Spans

MASSES = ("attn_mass", "attn_shuffled", "attn_images")
ROWS = ("attn_rows", "attn_few", "cross_rows", "cross_few")
_PADDED = (*MASSES, *ROWS)


class DecoderReader:
    """Takes the attention sites that a recorder wants of the decoder, at whatever keys a layer really has."""

    def __init__(self, recorder):
        self.recorder, self.anatomy, self.sites = recorder, recorder.anatomy, set(recorder.sites)
        spans, blocks = recorder.spans, [site for site in recorder.sites if site.startswith("blocks.")]
        kinds = {site.rsplit(".", 1)[1] for site in blocks}
        wanted = {*MASSES, *ROWS, "cross_mass"}
        layers = {int(site.split(".")[1]) for site in blocks if site.rsplit(".", 1)[1] in wanted}
        self.layers = {id(self.anatomy.attention(i)): i for i in layers}
        parts = {"attn_mass": spans.indicators()}
        if "attn_shuffled" in kinds:  # one draw for all layers, and for every step of a generation
            parts["attn_shuffled"] = spans.shuffled_indicators()
        if "attn_images" in kinds:
            parts["attn_images"] = spans.image_indicators()
        self.widths = {kind: part.shape[-1] for kind, part in parts.items()}
        self.columns = torch.cat(list(parts.values()), -1)
        self.later = torch.zeros(self.columns.shape[-1])  # what a key that is decoded later belongs to
        self.later[Spans.names.index("generated")] = 1
        if "attn_shuffled" in parts:
            self.later[len(Spans.names) + 1] = 1  # behind the picture
        self.queries = {kind: _asked(spans, kind) for kind in kinds & set(ROWS)}

    def see(self, call: Call) -> None:
        layer = self.layers.get(id(call.module))
        if layer is None:
            return
        cross = self.anatomy.attention_kinds[layer] == "cross"
        if self._wants(layer, "cross_mass"):
            self._keep(layer, "cross_mass", call.mass(self._tiles(call.key)))
        if any(self._wants(layer, kind) for kind in MASSES):
            mass = call.mass(self._at_keys(self.columns.to(call.key.device), call.key.shape[0], call.key.shape[2]))
            for kind, part in zip(self.widths, mass.split(list(self.widths.values()), -1), strict=True):
                if self._wants(layer, kind):
                    self._keep(layer, kind, part)
        for kind in self.queries:
            if self._wants(layer, kind):
                rows = call.rows(self._queries(kind, call.query))
                self._keep(layer, kind, rows if cross else _first_keys(rows, self.recorder.seen))

    def _wants(self, layer: int, kind: str) -> bool:
        return f"blocks.{layer}.{kind}" in self.sites

    def _keep(self, layer: int, kind: str, value: Tensor) -> None:
        self.recorder.read.setdefault(f"blocks.{layer}.{kind}", []).append(value)

    def _queries(self, kind: str, query: Tensor) -> Tensor:
        """(B, Q) which of these queries' rows are wanted: those that `_asked` says; of a decoding step its last one."""
        batch, n = query.shape[0], query.shape[2]
        if n < self.recorder.seen:
            return torch.full((batch, 1), n - 1, device=query.device)
        wanted = self.queries[kind].to(query.device).clamp(min=0)
        return wanted.repeat_interleave(batch // len(wanted), 0)

    def _at_keys(self, groups: Tensor, batch: int, length: int) -> Tensor:
        """The groups (B, T, G) at the keys a layer really has: cached, windowed, preallocated, repeated for beams."""
        if self.recorder.seen > groups.shape[1]:
            groups = self._longer(groups, self.recorder.seen)
        if length < groups.shape[1]:  # a sliding window has forgotten the first keys
            groups = groups[:, groups.shape[1] - length :]
        elif length > groups.shape[1]:  # a static cache holds room for keys to come, which are masked
            groups = self._longer(groups, length)
        return groups.repeat_interleave(batch // groups.shape[0], 0) if batch != groups.shape[0] else groups

    def _longer(self, groups: Tensor, length: int) -> Tensor:
        """groups (B, T, G) with keys decoded later appended up to this length."""
        new = self.later.to(groups).expand(groups.shape[0], length - groups.shape[1], -1)
        return torch.cat([groups, new], 1)

    def _tiles(self, key: Tensor) -> Tensor:
        """Cross-attention keys (B, H, pictures * tiles * patches, d) grouped by tile."""
        vision = self.anatomy.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        tiles = key.shape[2] // patches
        return torch.eye(tiles, device=key.device).repeat_interleave(patches, 0).expand(key.shape[0], -1, -1)


def without_padding(values: dict[str, Tensor], spans: Spans) -> dict[str, Tensor]:
    """Values by site, with the attention of padding, and of queries that a row does not have, set to 0."""
    kinds = {site: site.rsplit(".", 1)[1] for site in values if site.startswith("blocks.") and site.endswith(_PADDED)}
    real = {kind: _asked(spans, kind) >= 0 if kind in ROWS else spans.real for kind in set(kinds.values())}
    real = {kind: there for kind, there in real.items() if not there.all()}
    return {
        site: _masked(value, real[kinds[site]]) if kinds.get(site) in real else value for site, value in values.items()
    }


def _masked(value: Tensor, real: Tensor) -> Tensor:
    """Masses or rows (B, H, T, ...) of the positions that are real (B, T); of those decoded later all."""
    real = real.to(value.device).repeat_interleave(len(value) // len(real), 0)
    return value * pad(real, (0, value.shape[2] - real.shape[1]), value=True)[:, None, :, None]


def _asked(spans: Spans, site: str) -> Tensor:
    """(B, Q) the queries whose rows a site of ROWS holds, -1 where a row has fewer."""
    return spans.predicting(FEW if site.endswith("_few") else None)


def _first_keys(rows: Tensor, seen: int) -> Tensor:
    """Rows (..., Tk) at the `seen` positions so far: a static cache's room cut off, keys a window has forgotten 0."""
    return rows[..., :seen] if rows.shape[-1] >= seen else pad(rows, (seen - rows.shape[-1], 0))

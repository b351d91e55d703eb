"""Attention shift: does attention to the text before a picture still move together with attention to the text after it?"""

from __future__ import annotations

import warnings

import pandas as pd
import torch
from torch import Tensor

from ..scenes.errors import UserError
from .intervals import BLOCKS, powers
from .keys import sample_keys
from .masses import segment_mass, segment_mass_lse, uniform_mass, uniform_segment_mass
from .probe import Probe
from .segment_curves import (
    MEMBERS,
    POST,
    QUERIES,
    SEGMENTS,
    VERSIONS,
    curves_of,
    mean_curves,
    query_weights,
    split_curves,
)
from .shift_table import FLOOR, shift_table
from .shifts import COMPARATORS, attention_shift, circular_null, distance, permuted_segments

__all__ = [
    "AttentionShift", "attention_shift", "circular_null", "permuted_segments", "segment_mass", "segment_mass_lse",
    "uniform_mass", "uniform_segment_mass",
]  # fmt: skip


MAX_IMAGES = 8
REASONS = (
    "no picture in the sample",
    "picture first: no text before it",
    "picture last: no text after it",
    "less than {} tokens before or after the picture",
)


class AttentionShift(Probe):
    """Attention mass on the text before the picture, the picture and the text after it, by layer, and the shift between.

    Source: Zhang et al., "Wings" (NeurIPS 2024, arXiv 2406.03496). The mass of a segment is the sum over its keys, meaned over
    queries and heads; a curve is that mass by layer; the shift is 1 - correlation of the curves of "before" and "after".

    The table has one row a value. Columns (empty where they do not apply):

    - quantity: "mass" (curves); "uniform" (what uniform causal attention would give: the place of a segment alone);
      "head_mass" (by head); "shift"; "null_circular" (pearson, one curve turned by `draw` layers; mean over samples);
      "null_labels" (pearson; which text token is before and which behind the picture dealt anew within each sample, one draw a
      sample: what any two sets of text tokens share; samples whose spans have the same lengths get the same draw, so where
      most do, the interval leaves out how much draws differ); "shift_split" (several pictures: before and after picture
      number `image`, from 0); "difference" (shift with the picture less shift of the same text without) and
      "distance" (1 - rho of a segment's curve with and without the picture), both with `text_only`; "undefined" (`n` eligible samples whose curve has no variance); "skipped" (`n`
      samples without a shift, `reason`); "left_out" (layers that take no part, `kind`, `reason`).
    - run: "vlm", or "text" (the same texts without pictures) for mass and shift.
    - version: "raw"; "without_sink" (first position dropped as a key, rows renormalised); "without_image" (mass / (1 - mass
      on the picture)); "log_ratio" (shift of log(before / image) and log(after / image), which escapes that masses sum to
      1); "excess" (mass less uniform; its shift is that of raw, correlation ignores what is added).
    - queries: whose attention: "post" (text after the picture and answer; the default to look at, since text before the
      picture cannot see it), "all", "gen" (answer and generated), "last" (the last position of the prompt).
    - segment: "sink" (the first position), "system", "before", "image", "after" (text behind the first picture, answer
      included), "answer" (a part of "after"). With "sink" they sum to 1 without "answer".
    - layer: block number from 0; site; kind ("full", "sliding"; sliding ones are shown, and no part of a shift unless
      `sliding=True`); head.
    - comparator: "pearson", "spearman", "cosine", "l2", "js". order: "per_sample_then_mean", or "curve_of_means".
    - mean, low, high: the value and its 95 % interval over samples (Student's; jackknife over 32 blocks for
      "curve_of_means"); sd between samples; n: samples; p: share of turned curves with so small a mean shift (Pearson's
      "shift" rows, raw); reason: why a value is NaN.

    A sample takes part in shifts with at least `min_tokens` tokens before and after its picture. State: sums only.
    """

    name = "attention_shift"
    sites = ("blocks.*.attn_mass", "blocks.*.attn_shuffled", "blocks.*.attn_images")

    def __init__(self, *, text_only: bool = False, sliding: bool = False, min_tokens: int = 4):
        """text_only: also run the same texts without pictures, for the paired contrast (a second forward pass).
        sliding: let layers with a sliding window take part in shifts. Raises ValueError."""
        super().__init__()
        if min_tokens < 1:
            raise ValueError(f"min_tokens {min_tokens} must be 1 or more")
        self.text_only, self.sliding, self.min_tokens = text_only, sliding, min_tokens

    def attach(self, anatomy) -> None:
        if not anatomy.image_in_sequence:
            raise UserError(
                f"attention_shift: the pictures of {anatomy.family} enter by cross-attention and have no place in the "
                "sequence, so nothing is before or after them: leave this probe out, or read the sites blocks.*.cross_mass"
            )
        self.use_device_of(anatomy)
        self.kinds = tuple(anatomy.attention_kinds)
        self.layers = tuple(i for i, kind in enumerate(self.kinds) if kind in ("full", "sliding"))
        self.used = tuple(k for k, i in enumerate(self.layers) if self.sliding or self.kinds[i] == "full")
        if not self.layers:
            raise UserError(f"attention_shift: no layer of this {anatomy.family} has softmax attention between tokens")
        n, used, q, s, c = len(self.layers), len(self.used), len(QUERIES), len(SEGMENTS), len(COMPARATORS)
        self.add_sum("mass", len(VERSIONS), q, s, n, 3)
        self.add_sum("uniform", q, s, 3)
        self.add_sum("head_mass", n, anatomy.n_heads, q, s, 3)
        self.add_sum("shift", c, 4, q, 3)
        self.add_sum("null", q, max(used - 1, 0), 3)
        self.add_sum("null_labels", q, 3)
        self.add_sum("split", MAX_IMAGES, c, q, 3)
        self.add_sum("curve_sum", BLOCKS, 3, q, 3, used)
        self.add_sum("curve_count", BLOCKS, q)
        self.add_sum("eligible", q, dtype=torch.long)
        self.add_sum("skipped", len(REASONS), dtype=torch.long)
        if self.text_only:
            self.add_sum("text_mass", 2, q, s, n, 3)
            self.add_sum("text_shift", c, 2, q, 3)
            self.add_sum("difference", c, 2, q, 3)
            self.add_sum("distance", 2, 3, q, 3)

    def update(self, trace, inputs) -> None:
        spans = inputs.spans
        here = self.mass.device
        counts = torch.stack([spans.mask("image").sum(1), spans.mask("before").sum(1), spans.mask(*POST).sum(1)], 1).to(
            here
        )
        has_image, eligible = counts[:, 0] > 0, self._eligible(counts)
        (masses, shuffled), weights = self._masses(trace, spans), query_weights(spans, here)
        curves, heads = curves_of(masses, weights)  # (3, B, Q, S, layers), (layers, B, H, Q, S)
        asked = weights.sum(2) > 0  # (B, Q) whether a row has queries of this set
        curves = curves.masked_fill(~asked[..., None, None], torch.nan)
        uniform = (weights @ uniform_segment_mass(spans.indicators().to(here)) @ MEMBERS.to(here)).float()
        uniform = uniform.masked_fill(~asked[..., None], torch.nan)
        seen = has_image[:, None] & asked
        self._add(
            "mass",
            torch.cat([curves, (curves[0] - uniform[..., None])[None]]).transpose(0, 1),
            seen[:, None, :, None, None],
        )
        self._add("uniform", uniform, seen[..., None])
        self._add("head_mass", heads.transpose(0, 1), seen[:, None, None, :, None])

        part = eligible[:, None] & asked
        self.eligible += part.sum(0)
        if len(self.used) < 2:
            return
        before, image, after = (self._used(curves, x) for x in ("before", "image", "after"))
        pairs = self._with_log_ratio(before, image, after)  # two of (4, B, Q, layers)
        shifts = torch.stack([distance(*pairs, c) for c in COMPARATORS])  # (C, 4, B, Q)
        self._add("shift", shifts.movedim(2, 0), part[:, None, None])
        self._add("null", circular_null(before[0], after[0]), part[..., None])
        dealt = mean_curves(shuffled, weights)[..., list(self.used)]
        self._add("null_labels", distance(*dealt, "pearson"), part)
        self._add_curves(before, image, after, part, inputs)
        self._add_splits(trace, spans, weights)
        if self.text_only and trace.text_only is not None:
            self._add_text(trace.text_only, curves, before, after, shifts, part)

    def _add(self, name: str, values: Tensor, where: Tensor) -> None:
        """Adds to the state the powers of values (B, ...) where it is true and they are finite."""
        getattr(self, name).add_(powers(values.masked_fill(~where, torch.nan)).sum(0).to(self.wide))

    def _used(self, curves: Tensor, segment: str) -> Tensor:
        """The curve of one segment (..., B, Q, layers) over the layers that take part in shifts."""
        return curves[..., SEGMENTS.index(segment), :].index_select(-1, torch.tensor(self.used, device=curves.device))

    def _eligible(self, counts: Tensor) -> Tensor:
        image, before, after = counts.unbind(1)
        reasons = [image == 0, before == 0, after == 0, (before < self.min_tokens) | (after < self.min_tokens)]
        left = torch.ones_like(image, dtype=torch.bool)
        for i, hit in enumerate(reasons):
            self.skipped[i] += (left & hit).sum()
            left &= ~hit
        return left

    def _masses(self, trace, spans) -> tuple[Tensor, Tensor]:
        """(layers, B, H, T, 7) masses by label, rows checked to sum to 1; and the (…, 2) of shuffled text."""
        masses, shuffled = (
            torch.stack([trace[f"blocks.{i}.{kind}"].to(self.mass.device, torch.float32) for i in self.layers])
            for kind in ("attn_mass", "attn_shuffled")
        )
        real = spans.real.to(masses.device)[:, None]
        total = masses.sum(-1)
        off = (total - 1).abs().masked_fill(~real, 0).amax()
        if off > 1e-3:
            warnings.warn(
                f"attention rows sum to 1 only within {off.item():.1e} (a softmax in half precision?): they were renormalised",
                stacklevel=3,
            )
            masses, shuffled = (x / total.clamp(min=FLOOR)[..., None] for x in (masses, shuffled))
        return masses, shuffled

    @staticmethod
    def _with_log_ratio(before: Tensor, image: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """The curves of all versions but "excess", and the log-ratios of the raw ones: two of (4, ..., layers)."""
        ratios = [((x[:1] + FLOOR) / (image[:1] + FLOOR)).log() for x in (before, after)]
        return torch.cat([before, ratios[0]]), torch.cat([after, ratios[1]])

    def _add_curves(self, before: Tensor, image: Tensor, after: Tensor, part: Tensor, inputs) -> None:
        """Sums of the curves by block of samples, for the shift of the mean curves."""
        mark = before[0, :, QUERIES.index("all")].nan_to_num(0).sum(-1)
        block = (sample_keys(inputs, mark) % BLOCKS).to(part.device)
        curves = torch.stack([before, image, after], 3)  # (3, B, Q, 3, layers)
        curves = curves.masked_fill(~part[..., None, None], 0).transpose(0, 1)
        self.curve_sum.index_add_(0, block, curves.to(self.wide))
        self.curve_count.index_add_(0, block, part.to(self.wide))

    def _add_splits(self, trace, spans, weights: Tensor) -> None:
        n_images = min(spans.n_images, MAX_IMAGES)
        if n_images < 2:
            return
        layers = [self.layers[k] for k in self.used]
        for k, before, after, part in split_curves(trace, spans, layers, weights, n_images, self.min_tokens):
            shifts = torch.stack([distance(before, after, c) for c in COMPARATORS], 1)  # (B, C, Q)
            self.split[k] += powers(shifts.masked_fill(~part[:, None], torch.nan)).sum(0).to(self.wide)

    def _add_text(self, text, curves: Tensor, before: Tensor, after: Tensor, shifts: Tensor, part: Tensor) -> None:
        spans = text.inputs.spans
        weights = query_weights(spans, self.mass.device)
        asked = weights.sum(2) > 0
        alone, _ = curves_of(self._masses(text, spans)[0], weights)
        alone = alone.masked_fill(~asked[..., None, None], torch.nan)
        part = part & asked
        self._add("text_mass", alone[:2].transpose(0, 1), part[:, None, :, None, None])
        ends = [self._used(alone, x) for x in ("before", "after")]
        found = torch.stack([distance(ends[0][:2], ends[1][:2], c) for c in COMPARATORS])
        self._add("text_shift", found.movedim(2, 0), part[:, None, None])
        self._add("difference", (shifts[:, :2] - found).movedim(2, 0), part[:, None, None])
        # without the picture's share a curve is compared with the plain one: there is no picture in the text run
        plain = [torch.stack([x[0], x[1], x[0]]) for x in ends]
        apart = torch.stack([distance(x, y, "pearson") for x, y in zip(plain, (before, after), strict=True)])
        self._add("distance", apart.movedim(2, 0), part[:, None, None])

    def compute(self) -> pd.DataFrame:
        sums = {name: getattr(self, name).cpu() for name in self._defaults}
        reasons = [reason.format(self.min_tokens) for reason in REASONS]
        return shift_table(sums, kinds=self.kinds, layers=self.layers, used=self.used, reasons=reasons)

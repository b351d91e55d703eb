"""How much of depth, segmentation or a teacher's embedding can be read from each layer of a language model?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from ..scenes.errors import UserError
from .embedding_table import embedding_table, empty_table
from .kept_pictures import KeptPictures
from .pictures_of import Paired, paired_pictures
from .probe import Probe
from .reference_features import (
    PIXELS,
    PLACES,
    pixel_features,
    place_index,
    projection,
    tower_features,
    tower_site,
    tower_width,
)  # fmt: skip
from .ridge import Moments, products
from .targets import Target, scene_targets

EDGES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Samples are dealt into cells by a hash: each cell ends at such a share of all."""

FOLDS = ((0, 1, 2, 3), (4,), (5,), (6,))
"""Cells of each fold: quarters of the data."""

CODED = ((0,), (1,), (2,), (3,), (4,), (5, 6))
"""Cells of each block of the online code: every block is as large as all before it."""

FOLD_OF = tuple(f for f, cells in enumerate(FOLDS) for _ in cells)
KEPT, KEPT_TOKENS = 128, 64
WIDTH = 256

REASONS = (
    "no picture in the sample",
    "no target for the picture: give scenes, or a teacher (see chiasm.probes.teachers)",
    "no visual token with a place on the picture",
)
POSITIONS = ("image", "after", "all", "last")


class EmbeddingProbe(Probe):
    """Probes that read targets from the residual stream of every layer, all layers in one pass, with their controls.

    Source: Jain et al., "OLA-VLM" (arXiv 2412.09585), whose probe is `readouts=("resampler",)`; ridge from streaming sums is
    ours. Pairs: the state of each visual token with the target's mean over its box ("patch"), or the mean state with the mean
    over the picture ("pooled"). Pictures count equally, whatever their tokens. Every score is of pictures that the probe has
    not seen (4 folds by hash, penalty chosen inside). Layer 0 is the input of block 0 (the projector's output), l the
    residual stream after block l - 1, before the norm, L + 1 the final norm's output.

    The table has one row a value. Columns (empty where they do not apply):

    - target: its name. readout: "ridge", "mlp", "resampler" (the latter two trained on the kept pictures' first half, stopped
      on the third quarter, scored on the last).
    - features: "layer"; and the reference levels "mean" (one constant), "place" (the mean at each place of a 24 x 24 grid),
      "pixels" (the box's pixels averaged to 4 x 4 colours), "tower" (what the projector reads; see `tower_site`).
    - labels: "true", or "shuffled": targets of another picture of the data, the control task; its score says what the probe
      gets without the picture. quantity "selectivity" is true less shuffled R².
    - quantity: "r2" (variance weighted), "r2_uniform" (mean of the outputs' own), "cos_flat" (OLA-VLM's), "cos_centred"
      (without the mean at each place), "retrieval" (top-1 among the n kept pictures, with `chance`), "accuracy" and "miou" (classes:
      ridge on shares, the largest is the answer), "saved_bits" (online code, bits a target number, see `saved_bits`),
      "zero" (share of predictions that are zero, whose cosine is 0), "skipped" (`n` pictures or samples, `reason`).
    - layer, site; width: of the features read (wider ones are projected, see `width`); parameters: of the probe.
    - mean, low, high: value and 95 % interval over pictures, the fitted probes taken as given. R² is of all n pictures, with the
      spread of the kept ones; cosines, classes and retrieval are of the kept ones (drawn by hash, `tokens` of each).
    - alpha: the penalty in units of a feature's mean variance, middle of the folds'. sd_seeds: standard deviation over seeds (mlp,
      resampler). reason: why a value is missing.

    State: for each cell of samples, n, Σx, Σy, Σxxᵀ, Σxyᵀ, Σy² of every layer, and a bounded number of pictures' states.
    """

    name = "embeddings"

    def __init__(
        self,
        targets: Sequence[Target] | None = None,
        *,
        pairing: str | None = None,
        positions: str = "image",
        readouts: Sequence[str] = ("ridge",),
        width: int | None = WIDTH,
        keep: int = KEPT,
        tokens: int = KEPT_TOKENS,
        normalise: bool = False,
        standardise: bool = True,
        seeds: int = 3,
        seed: int = 0,
    ):
        """targets: default depth and segmentation of rendered scenes. pairing: "patch" or "pooled" (default: patch where visual
        tokens have places). positions: whose states are pooled: "image" tokens, text "after" the picture, "all", the "last"
        position of the sequence. width: wider states are projected to this by a fixed random orthonormal map, so that sums stay
        small (None: never); what is read is then at most what the states hold. keep, tokens: pictures kept, and tokens of each.
        normalise: divide every state by its root mean square first. seeds: of the trained readouts. Raises UserError."""
        super().__init__()
        for name, value, allowed in (
            ("pairing", pairing, (None, "patch", "pooled")),
            ("positions", positions, POSITIONS),
        ):
            if value not in allowed:
                raise UserError(f"{name} {value!r} is not one of {', '.join(str(one) for one in allowed)}")
        if wrong := set(readouts) - {"ridge", "mlp", "resampler"}:
            raise UserError(f"readout {min(wrong)!r} is not one of ridge, mlp, resampler")
        if pairing == "patch" and positions != "image":
            raise UserError(f"positions {positions!r} have no place on the picture: use pairing 'pooled'")
        if min(keep, tokens, seeds, width or 1) < 1:
            raise UserError(f"keep {keep}, tokens {tokens}, seeds {seeds} and width {width} must be 1 or more")
        self.targets = tuple(scene_targets() if targets is None else targets)
        if not self.targets:
            raise UserError("no target was given: give one or more, or None for the depth and segmentation of scenes")
        self.pairing, self.positions, self.readouts = pairing, positions, tuple(readouts)
        self.width, self.keep, self.tokens, self.normalise = width, keep, tokens, normalise
        self.standardise, self.seeds, self.seed = standardise, seeds, seed
        self.told = [f"{target.name}: {target.told}, {len(target.labels)} outputs" for target in self.targets]
        self.sites = ("embed", "blocks.*.resid_post", "final")

    # -- states --------------------------------------------------------------------------------------------------------

    def attach(self, anatomy) -> None:
        self.use_device_of(anatomy)
        placed = anatomy.layout.grid not in ("none", "cross")
        self.patch = (self.pairing or ("patch" if placed and self.positions == "image" else "pooled")) == "patch"
        self.whose = "after" if anatomy.layout.grid == "cross" and self.positions == "image" else self.positions
        tower = tower_site(anatomy) if self.whose == "image" else None
        layers = ("embed", "blocks.*.resid_post", "final")
        self.sites = (*layers, tower) if tower else layers
        self._tower, self._anatomy = tower, anatomy
        self.layer_sites = ["embed", *(f"blocks.{i}.resid_post" for i in range(anatomy.n_layers)), "final"]
        widths = {"layer": anatomy.hidden_size, "pixels": 3 * PIXELS**2}
        if tower:
            self._tower_width = widths["tower"] = tower_width(anatomy)
        self.widths = {bank: min(n, self.width or n) for bank, n in widths.items()}
        self._maps = {bank: projection(n, self.widths[bank], self.seed) for bank, n in widths.items()}
        depth = {bank: len(self.layer_sites) if bank == "layer" else 1 for bank in self.widths}
        outputs = 2 * sum(len(target.labels) for target in self.targets)
        cells = len(EDGES)
        for name, shape in (("rows", ()), ("n", ()), ("y", (outputs,)), ("yy", (outputs,))):
            self.add_sum(name, cells, *shape)
        self.add_sum("place_n", cells, PLACES**2)
        self.add_sum("place_y", cells, PLACES**2, outputs)
        for bank, d in self.widths.items():
            self.add_sum(f"x_{bank}", cells, depth[bank], d)
            self.add_sum(f"xz_{bank}", cells, depth[bank], d, d + outputs)  # with features and targets
        self.add_sum("skipped", len(REASONS), dtype=torch.long)
        self.add_sum("unmatched", dtype=torch.long)
        banks = {bank: (depth[bank], self.widths[bank]) for bank in self.widths}
        self._kept = KeptPictures(self.keep, self.tokens if self.patch else 1, banks, outputs, self.seed)
        self.add_state("kept", [], dist_reduce_fx="cat")
        self.add_state("partner", [], dist_reduce_fx="cat")

    def update(self, trace, inputs) -> None:
        pictures, left = paired_pictures(inputs, positions=self.whose, patch=self.patch)
        found = []
        for picture in pictures:
            values = self._target(inputs.samples[picture.row], picture)
            good = None if values is None else torch.isfinite(values).all(1)
            if good is None or not good.any():
                left[1 if good is None else 2] += 1
                continue
            if not good.all():
                at = picture.at[good] if self.patch else picture.at
                picture, values = picture._replace(at=at, boxes=picture.boxes[good]), values[good]
            found.append((picture, values))
        self.skipped += left.to(self.skipped)
        if not found:
            return
        shuffled = self._shuffled([values for _, values in found])
        cell = self._cells([picture.key for picture, _ in found])
        order = cell.argsort(stable=True)  # so that the rows of a cell are one piece
        pictures = [found[i][0] for i in order]
        y = torch.cat([torch.cat([found[i][1], shuffled[i]], 1) for i in order]).to(self.n.device)
        sizes = [inputs.samples[picture.row].images[picture.picture].size for picture in pictures]
        places = torch.cat([place_index(p.boxes, size) for p, size in zip(pictures, sizes, strict=True)])
        x = self._features(trace, inputs, pictures)
        lengths = torch.tensor([len(picture.boxes) for picture in pictures])
        self._add(x, y, lengths, places.to(y.device), cell[order])
        store = self.kept[0] if len(self.kept) else None
        keys, fold = torch.tensor([p.key for p in pictures]), torch.tensor(FOLD_OF)[cell[order]]
        self.kept = [self._kept.add(store, keys, fold, x, y, places.to(y.device), lengths)]

    @staticmethod
    def _cells(keys: list[int]) -> Tensor:
        return torch.bucketize(torch.tensor(keys).double() / (1 << 48), torch.tensor(EDGES).double(), right=True)

    def _target(self, sample, picture: Paired) -> Tensor | None:
        parts = []
        for target in self.targets:
            part = target.at(sample, picture.picture, picture.boxes)
            if part is None:
                return None
            parts.append(part.cpu().float())
        return torch.cat(parts, 1)

    def _shuffled(self, values: list[Tensor]) -> list[Tensor]:
        """For every picture the targets of the one before it in the data; for the first those of the last in its batch."""
        before = self.partner[-1].cpu() if len(self.partner) else values[-1].flip(0)
        taken = []
        for own in values:
            same = len(before) == len(own)
            taken.append(before if same else before[torch.linspace(0, len(before) - 1, len(own)).round().long()])
            before = own
        self.partner = [before.to(self.n.device)]
        return taken

    def _features(self, trace, inputs, pictures: list[Paired]) -> dict[str, Tensor]:
        """(layers, R, D) rows of each bank, on the probe's device, projected."""
        here, spans = self.n.device, inputs.spans
        lengths = torch.tensor([len(picture.at) for picture in pictures])
        row = torch.repeat_interleave(torch.tensor([picture.row for picture in pictures]), lengths)
        at = torch.cat([picture.at for picture in pictures]) + row * spans.labels.shape[1]
        own = None if self.patch else torch.repeat_interleave(lengths)

        def taken(bank: str, state: Tensor) -> Tensor:
            rows = state.flatten(0, 1)[at.to(state.device)].float()
            if self.normalise:
                rows = rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
            if own is not None:
                total = rows.new_zeros(len(pictures), rows.shape[1]).index_add_(0, own.to(rows.device), rows)
                rows = total / lengths.to(rows)[:, None]
            return self._projected(bank, rows).to(here)

        images = [inputs.samples[p.row].images[p.picture] for p in pictures]
        pixels = pixel_features(images, [p.boxes for p in pictures])
        banks = {
            "layer": torch.stack([taken("layer", trace[site]) for site in self.layer_sites]),
            "pixels": self._projected("pixels", torch.cat(pixels))[None].to(here),
        }
        if self._tower:
            states = tower_features(trace[self._tower], spans, self._anatomy)
            self.unmatched += states is None
            full = torch.zeros(*spans.visual.shape, self._tower_width, device=here)
            if states is not None:
                full[spans.visual.to(here)] = states.to(here)
            banks["tower"] = taken("tower", full)[None]
        return banks

    def _projected(self, bank: str, rows: Tensor) -> Tensor:
        onto = self._maps[bank]
        return rows if onto is None else rows @ onto.to(rows)

    def _add(self, x: dict[str, Tensor], y: Tensor, lengths: Tensor, places: Tensor, cell: Tensor) -> None:
        """Adds rows, which are sorted by their pictures' cell, to the sums."""
        weight = torch.repeat_interleave(1 / lengths, lengths).to(y.device)
        even = len(lengths.unique()) == 1  # then a weight is one factor of the sums
        ends = lengths.cumsum(0)
        for c in cell.unique().tolist():
            own = torch.nonzero(cell == c).flatten()
            rows = slice(int(ends[own[0]] - lengths[own[0]]), int(ends[own[-1]]))
            factor = float(weight[rows.start]) if even else 1.0
            for bank, states in x.items():
                n, mean, about, squares = products(states[:, rows], y[rows], None if even else weight[rows])
                n, mean, d = (n * factor).to(self.wide), mean.to(self.wide), states.shape[-1]
                total = n * mean
                getattr(self, f"x_{bank}")[c] += total[:, :d]
                xz = getattr(self, f"xz_{bank}")[c].add_(about, alpha=factor)
                xz.baddbmm_(total[:, :d, None], mean[:, None])
            self.rows[c] += rows.stop - rows.start
            self.n[c] += n
            self.y[c] += total[0, d:]
            self.yy[c] += factor * squares.to(self.wide) + total[0, d:] * mean[0, d:]
            self.place_n[c].index_add_(0, places[rows], weight[rows].to(self.wide))
            self.place_y[c].index_add_(0, places[rows], (y[rows] * weight[rows, None]).to(self.wide))

    # -- the table -----------------------------------------------------------------------------------------------------

    def compute(self) -> pd.DataFrame:
        skipped = [(reason, int(n)) for reason, n in zip(REASONS, self.skipped, strict=True) if n]
        if not float(self.rows.sum()):
            return empty_table(skipped)
        kept = self.kept if isinstance(self.kept, Tensor) else torch.cat(self.kept)
        banks = [bank for bank in self.widths if bank != "tower" or not int(self.unmatched)]
        n, y, yy = (value[:, None].cpu().double() for value in (self.n, self.y, self.yy))
        sums = {}
        for bank in banks:
            xz = getattr(self, f"xz_{bank}").cpu().double()
            d = self.widths[bank]
            sums[bank] = Moments(n, getattr(self, f"x_{bank}").cpu().double(), y, xz[..., :d], xz[..., d:], yy)
        return embedding_table(
            sums,
            rows=self.rows.cpu(),
            places=(self.place_n.cpu().double(), self.place_y.cpu().double()),
            held=self._kept.held(kept),
            folds=FOLDS,
            coded=CODED,
            targets=self.targets,
            sites=self.layer_sites,
            tower=self._tower,
            readouts=self.readouts,
            skipped=skipped,
            standardise=self.standardise,
            seeds=range(self.seed, self.seed + self.seeds),
        )

"""Implicit multimodal alignment: do visual and text tokens become similar on their way through the language model?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from ..scenes.errors import UserError
from .alignment_table import alignment_table
from .intervals import BLOCKS, powers, widen
from .keys import Kept, sample_keys
from .probe import Probe
from .similarity import consecutive_similarity, cross_similarity, token_similarity
from .token_groups import GroupSums, group_sums

__all__ = ["ImplicitAlignment", "consecutive_similarity", "cross_similarity", "token_similarity"]

TEXT = {
    "after": ("after", "answer", "generated"),
    "all": ("bos", "system", "before", "after", "answer", "generated"),
}
INTERVALS = (1, 2, 4, 8)
KEPT, KEPT_BYTES = 256, 1 << 28


class ImplicitAlignment(Probe):
    """Cosine similarity of visual tokens (P) and text tokens (T) by layer, with the controls that give it a meaning.

    Source: Shukor and Cord (NeurIPS 2024, arXiv 2405.16700). Layer 0 is the input of block 0 (`embed`), l the residual
    stream after block l - 1 (`blocks.{l-1}.resid_post`), L + 1 the final norm's output (`final`).

    The table has one row a value. Columns (empty where they do not apply):

    - quantity: "similarity"; "anchored" (P at layer 0, T at `layer`); "global" (cosine of the two grand means);
      "matched", "mismatched", "semantic" (P-T of a sample with itself, with the others, and the difference: whether a
      picture is nearer to its own text); "ima_same_layer", "ima_input_anchor" (the IMA score: mean over all layers of
      "similarity" P-T, of "anchored"); "retrieval" (share of pictures whose own text is among the `k` most similar of
      the `n` kept, `chance` = k / n); "consecutive" (cosine of layers `layer` and `layer + interval`, residual stream
      only); "norm"; "sinks" (share of the tokens left out as sinks); "skipped" (samples left out, `n` of them, `reason`).
    - pair: "P-T", "P-P" and "T-T" (between data sets, mean over pairs of them), "p-p" and "t-t" (cones: within a data
      set, pairs of different samples), "T-P" (retrieval from text); "P" or "T" for consecutive, norm, sinks.
    - pooling: "avg" (tokens are pooled, then one cosine) or "mean" (mean cosine over all pairs of tokens); for norms
      "mean", "median" (of the token norms) and "pooled" (norm of the mean token, much smaller where tokens disagree).
    - variant: "raw"; "centred_both" (mean of both groups subtracted), "centred_each" (each group's own: all-pairs values
      are near 0 by construction, "semantic" is what to read); "without_outliers" (sink tokens and top channels left out,
      by sample: see below). For consecutive "matched" or "all" (all pairs of samples, for parity with the released code).
    - layer, site, depth (layer / L, at most 1), interval, k.
    - mean, low, high: the value and its 95 % interval over samples; sd: standard deviation between samples (norm,
      consecutive) or pairs of kept samples (similarity P-T avg raw); n: samples; chance; p: permutation test of "semantic"
      (avg), one-sided, texts shuffled among kept samples; reason: why a value is NaN.

    With several data sets (`groups`) values are means over data sets. Samples count equally, whatever their length.

    How centring works in one pass. "avg": exactly, on the pooled states of `keep` samples. "mean": on unit vectors, as the
    mean inner product of the centred unit vectors over the root mean squares of their lengths, which sums give exactly;
    it is the mean cosine where those lengths are equal. Neither depends on the order of the data.

    Outliers: a sink is the first position, or a token with more than `sink_factor` times the median norm of its group in
    its sample and layer. Top channels are the `top_channels` with the largest share in the sample's mean unit vectors
    (squared, P plus T), set to zero before lengths are taken.

    Intervals: Student's for means over samples; else a jackknife over 32 blocks of samples (see `intervals.jackknife`).
    """

    name = "implicit_alignment"
    sites = ("embed", "blocks.*.resid_post", "final")

    def __init__(
        self,
        *,
        text: str = "after",
        groups: Sequence[str] = (),
        keep: int | None = None,
        intervals: Sequence[int] = INTERVALS,
        top_channels: int = 3,
        sink_factor: float = 5.0,
        permutations: int = 2000,
        seed: int = 0,
    ):
        """text: which tokens are T: "after" the first picture with the answer, or "all" text. groups: names of the data
        sets, if there are several: a sample says its own in `truth["group"]`. keep: at most so many samples' pooled states
        are kept, for what needs pairs of samples (default: 256, or as many as fit 256 MB). Raises ValueError."""
        super().__init__()
        if text not in TEXT:
            raise ValueError(f"text {text!r} is not one of {', '.join(TEXT)}")
        if keep is not None and keep < 2:
            raise ValueError(f"keep {keep} is too few to compare samples: use 2 or more, or None")
        if any(n < 1 for n in intervals):
            raise ValueError(f"intervals {tuple(intervals)} must be 1 or more")
        self.text, self.groups, self.keep = text, tuple(groups), keep
        self.intervals, self.top_channels, self.sink_factor = tuple(intervals), top_channels, sink_factor
        self.permutations, self.seed = permutations, seed

    def attach(self, anatomy) -> None:
        self.use_device_of(anatomy)
        layers, width, sets = anatomy.n_layers + 2, anatomy.hidden_size, max(len(self.groups), 1)
        self.n_states = layers
        self.fitting = tuple(n for n in self.intervals if n <= anatomy.n_layers)
        row = 2 * layers * width + 2
        self._kept = Kept(self.keep or max(2, min(KEPT, KEPT_BYTES // (4 * row))), row)
        blocks = sets * BLOCKS
        self.add_sum("count", blocks, dtype=torch.long)
        self.add_sum("unit_sum", blocks, 2, 2, 2, layers, width)  # raw / without outliers, avg / mean, P / T
        self.add_sum("self_dot", blocks, 2, 2, 2, layers)
        self.add_sum("matched_dot", blocks, 2, 2, layers)
        self.add_sum("state_sum", blocks, 2, layers, width)
        self.add_sum("norms", sets, 3, 2, layers, 3)
        self.add_sum("consecutive", sets, 2, len(self.fitting), 2, layers - 1, 3)
        self.add_sum("sinks", sets, 2, layers, 3)
        self.add_sum("skipped", 2, dtype=torch.long)
        self.add_state("kept", [], dist_reduce_fx="cat")

    def update(self, trace, inputs) -> None:
        states = [trace["embed"], *trace.select("blocks.*.resid_post"), trace["final"]]
        spans = inputs.spans
        groups = torch.stack([spans.visual, spans.mask(*TEXT[self.text]) & ~spans.visual], 1)
        has = groups.any(2)
        self.skipped += torch.stack([~has[:, 0], has[:, 0] & ~has[:, 1]]).sum(1).to(self.skipped)
        use = torch.nonzero(has.all(1)).flatten()
        if not len(use):
            return
        if len(use) < len(has):
            states = [x[use.to(x.device)] for x in states]
        sums = group_sums(
            states,
            groups[use],
            spans.real[use],
            intervals=self.fitting,
            top_channels=self.top_channels,
            sink_factor=self.sink_factor,
            device=self.count.device,
        )
        mark = torch.zeros(len(has), device=sums.pooled.device)
        mark[use.to(mark.device)] = sums.pooled[:, 0, 0].abs().sum(-1)
        keys = sample_keys(inputs, mark)[use.cpu()]
        self._add(sums, keys, self._data_set(inputs, use))

    def _add(self, sums: GroupSums, keys: Tensor, data_set: Tensor) -> None:
        device = self.count.device
        block = keys % BLOCKS
        cell = (data_set * BLOCKS + block).to(device)
        data_set_here = data_set.to(device)
        self.count.index_add_(0, cell, torch.ones_like(cell))
        for name, value in (
            ("unit_sum", sums.units),
            ("self_dot", sums.units.square().sum(-1)),
            ("matched_dot", (sums.units[:, :, :, 0] * sums.units[:, :, :, 1]).sum(-1)),
            ("state_sum", sums.pooled),
        ):
            state = getattr(self, name)
            state.index_add_(0, cell, value.to(state.dtype))
        for name, value in (("norms", sums.norms), ("consecutive", sums.consecutive), ("sinks", sums.sinks)):
            getattr(self, name).index_add_(0, data_set_here, powers(value).to(self.wide))
        rows = torch.cat([data_set[:, None].float(), block[:, None].float(), sums.pooled.flatten(1).cpu()], 1)
        store = self.kept[0] if len(self.kept) else self._kept.empty(device)
        self.kept = [self._kept.add(store, keys, rows)]

    def _data_set(self, inputs, use: Tensor) -> Tensor:
        """(B,) number of each sample's data set."""
        if not self.groups:
            return torch.zeros(len(use), dtype=torch.long)
        numbers = []
        for i in use.tolist():
            name = inputs.samples[i].truth.get("group") if inputs.samples else None
            if name not in self.groups:
                raise UserError(
                    f"a sample says its data set is {name!r}: with groups= set, truth['group'] is one of {', '.join(self.groups)}"
                )
            numbers.append(self.groups.index(name))
        return torch.tensor(numbers)

    def compute(self) -> pd.DataFrame:
        kept = self.kept if isinstance(self.kept, Tensor) else torch.cat(self.kept) if self.kept else None
        rows = self._kept.rows(kept).cpu() if kept is not None else torch.zeros(0, self._kept.width)
        return alignment_table(
            {name: widen(getattr(self, name).cpu()) for name in self._defaults if name != "kept"},
            rows,
            intervals=self.fitting,
            n_sets=max(len(self.groups), 1),
            permutations=self.permutations,
            seed=self.seed,
        )
